"""Money is exact: one rounding rule, no loss on the way in and out."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.money import line_pico, pico_to_usd, rate_to_atto, usd_to_pico


@given(st.integers(0, 10**12), st.integers(0, 10**24))
def test_a_line_is_rounded_half_even_and_once(units: int, rate: int) -> None:
    exact = Decimal(units) * Decimal(rate) / Decimal(10**12)
    assert line_pico(units, rate) == int(exact.quantize(Decimal(1), rounding=ROUND_HALF_EVEN))


def test_exact_halves_go_to_the_even_neighbour() -> None:
    assert [line_pico(1, n * 10**12 // 2) for n in (1, 3, 5, 7)] == [0, 2, 2, 4]


@given(st.integers(-(10**30), 10**30))
def test_an_amount_survives_writing_and_reading(pico: int) -> None:
    text = pico_to_usd(pico)
    assert usd_to_pico(Decimal(text)) == pico
    assert "e" not in text.lower()
    assert not (("." in text) and text.endswith("0"))


@pytest.mark.parametrize("bad", ["NaN", "Infinity", "0.0000000000001"])
def test_what_cannot_be_kept_exactly_is_refused(bad: str) -> None:
    with pytest.raises(ValueError, match=r"amount|finer"):
        usd_to_pico(Decimal(bad))


def test_published_rates_with_seventeen_decimals_are_kept() -> None:
    assert rate_to_atto(Decimal("0.13999999999999999")) == 139999999999999990
