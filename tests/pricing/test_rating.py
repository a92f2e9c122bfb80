"""Each unit is charged exactly once, at one rate, whatever else has a rate and in whatever order."""

from __future__ import annotations

import random
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.charge import Charge, NoRate
from gateway.core.dimensions import DIMENSIONS
from gateway.core.money import rate_to_atto
from gateway.core.usage import Usage
from gateway.pricing.catalogue import Catalogue, CatalogueError, packaged_rates
from gateway.pricing.rates import Rate, RateCard
from gateway.pricing.rating import charge

CATALOGUE = Catalogue(packaged_rates())
TOKENS = [name for name, d in DIMENSIONS.items() if d.side != "request"]
WHOLES = [name for name in TOKENS if DIMENSIONS[name].part_of is None]
NOW = 1_790_000_000


def usd(amount: str) -> Rate:
    return Rate(rate_to_atto(Decimal(amount)))


@st.composite
def honest_usage(draw: st.DrawFn) -> dict[str, int]:
    """Counts whose parts never exceed their whole."""
    counts: dict[str, int] = {}
    room: dict[str, int] = {}
    for name in TOKENS:
        if not draw(st.booleans()) and name not in ("input", "output"):
            continue
        part_of = DIMENSIONS[name].part_of
        if part_of is not None and part_of not in counts:
            continue
        limit = 10**6 if part_of is None else room[part_of]
        counts[name] = room[name] = draw(st.integers(0, limit))
        if part_of is not None:
            room[part_of] -= counts[name]
    return counts


@given(honest_usage(), st.sets(st.sampled_from(TOKENS)))
def test_each_unit_is_charged_exactly_once(counts: dict[str, int], rated: set[str]) -> None:
    rated |= set(WHOLES)
    card = RateCard(price_id="x", rates={name: usd("1") for name in rated})
    result = charge(Usage(counts=counts), card, "c")
    assert isinstance(result, Charge)
    assert sum(line.units for line in result.lines) == sum(counts.get(whole, 0) for whole in WHOLES)
    assert result.cost_pico_usd == sum(line.cost_pico_usd for line in result.lines)
    assert len({line.dimension for line in result.lines}) == len(result.lines)
    assert all(line.dimension in rated and line.units >= 0 for line in result.lines)


def test_the_most_specific_rate_applies() -> None:
    card = RateCard(
        price_id="x",
        rates={
            "input": usd("3"),
            "cache_read": usd("0.3"),
            "cache_write": usd("3.75"),
            "cache_write_1h": usd("6"),
            "output": usd("15"),
        },
    )
    counts = {
        "input": 10_000,
        "cache_read": 4_000,
        "cache_write": 3_000,
        "cache_write_5m": 500,
        "cache_write_1h": 1_000,
        "output": 100,
    }
    result = charge(Usage(counts=counts), card, "c")
    assert isinstance(result, Charge)
    assert {line.dimension: line.units for line in result.lines} == {
        "input": 3_000,
        "cache_read": 4_000,
        "cache_write": 2_000,  # the split is stale by 1,500: the rest is charged at the plain write rate
        "cache_write_1h": 1_000,
        "output": 100,
    }


def test_parts_above_their_whole_are_charged_as_reported_and_never_negative() -> None:
    card = RateCard(price_id="x", rates={"input": usd("1"), "cache_read": usd("1"), "output": usd("1")})
    result = charge(Usage(counts={"input": 29, "cache_read": 157, "output": 1}), card, "c")
    assert isinstance(result, Charge)
    assert [(line.dimension, line.units) for line in result.lines] == [("cache_read", 157), ("output", 1)]


def test_units_without_any_rate_make_the_bill_unpriced_not_cheaper() -> None:
    card = RateCard(price_id="x", rates={"input": usd("1")})
    assert charge(Usage(counts={"input": 5, "output": 7}), card, "c") == NoRate("output")
    assert isinstance(charge(Usage(counts={"input": 5, "output": 0}), card, "c"), Charge)


def test_only_what_costs_nothing_by_itself_needs_no_rate() -> None:
    tokens = {"input": 5, "output": 7}
    card = RateCard(price_id="x", rates={"input": usd("1"), "output": usd("1")})
    for name in WHOLES:
        if name not in tokens:
            free = DIMENSIONS[name].free_without_rate
            assert isinstance(charge(Usage(counts={**tokens, name: 1}), card, "c"), Charge) is free, name
            assert isinstance(charge(Usage(counts={**tokens, name: 0}), card, "c"), Charge)
            assert isinstance(charge(Usage(counts={name: 1}), card, "c"), NoRate), (
                "nothing known is never free"
            )


def test_an_unknown_model_has_no_rate() -> None:
    assert CATALOGUE.card("openai", "openai", "no-such-model-9", NOW) is None
    assert CATALOGUE.card("x", "no-such-provider", "gpt-4o", NOW) is None


def test_an_override_wins_keeps_the_buckets_and_changes_the_hash() -> None:
    own = Catalogue(packaged_rates(), {"openai/gpt-4o": {"input": "10", "cache_read": "1", "output": 20}})
    card = own.card("openai", "openai", "gpt-4o", NOW)
    assert card is not None
    result = charge(Usage(counts={"input": 100, "cache_read": 60, "output": 10}), card, own.hash)
    assert isinstance(result, Charge)
    assert result.cost_pico_usd == 40 * 10_000_000 + 60 * 1_000_000 + 10 * 20_000_000
    assert result.price_id == "override:openai/gpt-4o"
    assert own.hash != CATALOGUE.hash


@pytest.mark.parametrize(
    "bad",
    [{"gpt-4o": {"input": "1"}}, {"a/b": {"inputs": "1"}}, {"a/b": {"input": "x"}}, {"a/b": {"input": "-1"}}],
)
def test_an_override_that_cannot_be_used_is_named(bad: dict[str, dict[str, str]]) -> None:
    with pytest.raises(CatalogueError, match=r"prices.overrides"):
        Catalogue(packaged_rates(), bad)


@given(honest_usage(), st.sets(st.sampled_from(TOKENS)), st.sampled_from(TOKENS))
def test_one_more_rate_moves_units_and_never_charges_one_twice(
    counts: dict[str, int], rated: set[str], added: str
) -> None:
    rated |= set(WHOLES)
    before = charge(Usage(counts=counts), RateCard(price_id="x", rates=dict.fromkeys(rated, usd("1"))), "c")
    more = RateCard(price_id="x", rates=dict.fromkeys([*rated, added], usd("1")))
    after = charge(Usage(counts=counts), more, "c")
    assert isinstance(before, Charge)
    assert isinstance(after, Charge)
    assert sum(line.units for line in before.lines) == sum(line.units for line in after.lines)
    assert before.cost_pico_usd == after.cost_pico_usd


@given(honest_usage(), st.randoms(use_true_random=False))
def test_the_order_of_counts_and_rates_changes_nothing(counts: dict[str, int], chance: random.Random) -> None:
    rates = {name: usd(str(place + 1)) for place, name in enumerate(TOKENS)}
    shuffled_counts, shuffled_rates = list(counts.items()), list(rates.items())
    chance.shuffle(shuffled_counts)
    chance.shuffle(shuffled_rates)
    assert charge(Usage(counts=counts), RateCard(price_id="x", rates=rates), "c") == charge(
        Usage(counts=dict(shuffled_counts)), RateCard(price_id="x", rates=dict(shuffled_rates)), "c"
    )


def test_a_cached_audio_token_is_charged_as_one_of_both_and_once() -> None:
    names = ("input", "cache_read", "cache_read_audio", "input_audio", "output")
    counts = {"input": 100, "cache_read": 50, "cache_read_audio": 40, "input_audio": 60, "output": 1}
    for rated, expected in (
        (names, {"input": 30, "cache_read": 10, "cache_read_audio": 40, "input_audio": 20, "output": 1}),
        (
            ("input", "cache_read", "input_audio", "output"),
            {"input": 30, "cache_read": 50, "input_audio": 20},
        ),
        (("input", "input_audio", "output"), {"input": 40, "input_audio": 60}),
    ):
        result = charge(
            Usage(counts=counts), RateCard(price_id="x", rates=dict.fromkeys(rated, usd("1"))), "c"
        )
        assert isinstance(result, Charge)
        units = {line.dimension: line.units for line in result.lines}
        assert units == {"output": 1} | expected


def test_a_multiplier_acts_on_tokens_and_not_on_calls() -> None:
    card = RateCard(
        price_id="x",
        rates={name: usd("3") for name in ("input", "output", "web_search", "request")},
        multiplier=(11, 10),
    )
    result = charge(Usage(counts={"input": 10, "output": 1, "web_search": 2}), card, "c")
    assert isinstance(result, Charge)
    assert {line.dimension: line.multiplier for line in result.lines} == {
        "input": (11, 10),
        "output": (11, 10),
        "web_search": (1, 1),
        "request": (1, 1),
    }
    assert next(line for line in result.lines if line.dimension == "input").cost_pico_usd == 33_000_000


def test_a_stated_fact_without_a_rate_prices_nothing() -> None:
    card = RateCard(price_id="x", rates={"input": usd("1"), "output": usd("1")}, missing="service_tier=flex")
    assert charge(Usage(counts={"input": 1, "output": 1}), card, "c") == NoRate("service_tier=flex")
