"""Discounts, mark-ups and fees are lines of their own, in one order, and never below zero."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from gateway.core.charge import Adjusted
from gateway.pricing.adjusting import Adjustment, adjusted

AT = 1_790_000_000


def rule(name: str, kind: str, **facts: object) -> Adjustment:
    return Adjustment(id=name, kind=kind, **facts)  # type: ignore[arg-type]


def of(rules: list[Adjustment], pico: int, **who: object) -> tuple[Adjusted, ...]:
    facts = {"provider": "openai", "key_id": "k1", "team": "red", "at_unix_s": AT, **who}
    return adjusted(rules, pico, **facts)  # type: ignore[arg-type]


RULES = [
    rule("fee", "fee", amount_pico_usd=7),
    rule("up", "markup", percent="20", share=(20, 100)),
    rule("off", "discount", percent="10", share=(10, 100)),
]


def test_discounts_come_first_then_mark_ups_on_what_is_left_then_fees() -> None:
    found = of(RULES, 1_000)
    assert [(line.id, line.cost_pico_usd) for line in found] == [("off", -100), ("up", 180), ("fee", 7)]


@given(st.randoms(use_true_random=False), st.integers(0, 10**15))
def test_the_order_of_the_rules_changes_nothing(chance: random.Random, pico: int) -> None:
    shuffled = [*RULES, rule("off2", "discount", percent="3", share=(3, 100))]
    expected = of(shuffled, pico)
    chance.shuffle(shuffled)
    assert of(shuffled, pico) == expected


@given(st.lists(st.integers(0, 100), max_size=5), st.integers(0, 10**15))
def test_discounts_never_exceed_what_they_are_taken_from(percents: list[int], pico: int) -> None:
    rules = [rule(f"d{n}", "discount", share=(percent, 100)) for n, percent in enumerate(percents)]
    assert 0 <= pico + sum(line.cost_pico_usd for line in of(rules, pico)) <= pico


def test_a_rule_applies_to_whom_and_when_it_says() -> None:
    for facts, applies in (
        ({"provider": "openai"}, True),
        ({"provider": "anthropic"}, False),
        ({"key_id": "k1"}, True),
        ({"key_id": "k2"}, False),
        ({"team": "red"}, True),
        ({"team": "blue"}, False),
        ({"since_unix_s": AT, "until_unix_s": AT + 1}, True),
        ({"since_unix_s": AT + 1}, False),
        ({"until_unix_s": AT}, False),
    ):
        found = of([rule("x", "fee", amount_pico_usd=1, **facts)], 5)
        assert bool(found) is applies, facts
    assert of([rule("x", "fee", amount_pico_usd=1, team="red")], 5, team=None) == ()


def test_a_share_is_rounded_half_even_and_once() -> None:
    half = [rule("up", "markup", percent="50", share=(50, 100))]
    assert [of(half, pico)[0].cost_pico_usd for pico in (1, 3, 5, 7)] == [0, 2, 2, 4]
