"""Limit rules: which counters hold for a request, and how much it asks of each."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.admission.limit_headers import _duration, limit_headers
from gateway.admission.limit_rules import KNOWN_MAX, Rule, RuleBook, charges_of, tokens_asked
from gateway.core.exchange import Call, Identity
from gateway.limits.store import COUNT_MAX, Charge, Standing

ALICE = Identity(key_id="k1", user_id="alice", source="key", team="red")


def counters(*rules: Rule, identity: Identity = ALICE, model: str = "alias", target: str = "m1") -> set[str]:
    found = RuleBook(rules).matches(identity, model, "openai", target)
    return {match.key.replace("\x1f", "+") for match in found}


def test_a_rule_that_names_nothing_holds_for_all_requests_together() -> None:
    assert counters(Rule(id="all", concurrent=5)) == {"all concurrent "}


def test_a_star_has_a_counter_for_each_and_a_name_has_one() -> None:
    assert counters(Rule(id="each", user="*", requests_per_minute=1)) == {"each requests alice"}
    assert counters(Rule(id="bob", user="bob", requests_per_minute=1)) == set()
    assert counters(Rule(id="red", team="red", tokens_per_minute=9)) == {"red tokens red"}


def test_who_has_no_team_is_in_none() -> None:
    assert counters(Rule(id="p", project="*", requests_per_minute=1)) == set()
    assert counters(Rule(id="p", project="", requests_per_minute=1)) == set()


@pytest.mark.parametrize("name", ["m1", "openai/m1", "alias"])
def test_a_model_is_known_by_each_of_its_names_and_has_one_counter(name: str) -> None:
    assert counters(Rule(id="m", model=name, requests_per_minute=1)) == {f"m requests {name}"}


def test_another_name_for_a_model_is_no_way_around_its_limit() -> None:
    rule = Rule(id="m", model="*", requests_per_minute=1)
    assert counters(rule, model="m1") == counters(rule, model="openai/m1") == {"m requests openai/m1"}


def test_rules_may_name_two_things() -> None:
    rule = Rule(id="km", key="*", model="m1", requests_per_minute=1)
    assert counters(rule) == {"km requests k1+m1"}
    assert counters(rule, target="m2") == set()


def test_all_that_hold_are_asked() -> None:
    rules = [Rule(id="a", key="*", requests_per_minute=1, concurrent=1), Rule(id="b", user="*", concurrent=1)]
    assert counters(*rules) == {"a requests k1", "a concurrent k1", "b concurrent alice"}


def test_a_particular_rule_takes_the_place_of_the_general_one_for_what_it_limits() -> None:
    rules = [
        Rule(id="each", key="*", requests_per_minute=1, concurrent=1),
        Rule(id="vip", key="k1", requests_per_minute=100),
        Rule(id="users", user="*", requests_per_minute=1),
    ]
    assert counters(*rules) == {"vip requests k1", "each concurrent k1", "users requests alice"}
    bob = Identity(key_id="k2", user_id="bob", source="key")
    assert counters(*rules, identity=bob) == {"each requests k2", "each concurrent k2", "users requests bob"}


def test_two_rules_of_one_id_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="id of its own"):
        RuleBook([Rule(id="a", concurrent=1), Rule(id="a", concurrent=2)])


def test_a_hundred_thousand_names_are_a_bounded_memo() -> None:
    book = RuleBook([Rule(id="m", model="*", requests_per_minute=1)])
    for number in range(100_000):
        assert book.matches(ALICE, f"m{number}", "openai", f"m{number}")
    assert 0 < len(book._known) <= KNOWN_MAX


def call(**other: Any) -> Call:
    return Call(
        record_id="r",
        trace_id="a" * 32,
        span_id="b" * 16,
        server_span_id="c" * 16,
        protocol="chat_completions",
        operation="chat",
        model="m",
        stream=False,
        identity=ALICE,
        started_unix_ns=1,
        **other,
    )


def test_tokens_are_the_input_and_for_each_choice_the_most_it_may_make() -> None:
    assert tokens_asked(call(max_tokens=50, choices=8), 100, 1_000) == 500
    assert tokens_asked(call(choices=2), 100, 1_000) == 2_100
    assert tokens_asked(call(sides=("input",)), 100, 1_000) == 100
    assert tokens_asked(call(max_tokens=0), 100, 1_000) == 100


def test_no_demand_is_too_large_to_be_counted() -> None:
    match = RuleBook([Rule(id="a", tokens_per_minute=5)]).matches(ALICE, "m", "p", "m")
    asked = tokens_asked(call(max_tokens=2**53 - 1, choices=10_000), 100, 1)
    assert charges_of(match, asked)[0].units == COUNT_MAX


@pytest.mark.parametrize(
    ("ms", "told"),
    [
        (0, "0s"),
        (1, "1ms"),
        (999, "999ms"),
        (1_000, "1s"),
        (6_310, "6.31s"),
        (60_000, "1m0s"),
        (61_001, "1m1.001s"),
    ],
)
def test_durations_are_as_openai_writes_them(ms: int, told: str) -> None:
    assert _duration(ms) == told


def test_of_several_limits_the_tightest_is_told() -> None:
    charges = [Charge(key="", unit="requests", units=1, limit=limit) for limit in (100, 10, 50)]
    standings = [Standing(95, 0, 2_000), Standing(8, 0, 59_500), Standing(0, 0, 0)]
    told = dict(limit_headers(charges, standings, anthropic=False, now_unix_ms=0))
    assert told == {
        b"x-ratelimit-limit-requests": b"10",
        b"x-ratelimit-remaining-requests": b"2",
        b"x-ratelimit-reset-requests": b"59.5s",
    }


def test_anthropics_headers_tell_the_time_of_the_reset() -> None:
    charges = [Charge(key="", unit="tokens", units=1, limit=100)]
    told = dict(
        limit_headers(charges, [Standing(130, 0, 1_500)], anthropic=True, now_unix_ms=1_795_256_695_760)
    )
    assert told == {
        b"anthropic-ratelimit-tokens-limit": b"100",
        b"anthropic-ratelimit-tokens-remaining": b"0",
        b"anthropic-ratelimit-tokens-reset": b"2026-11-21T10:24:58Z",
    }
