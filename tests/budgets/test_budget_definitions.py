"""Whose spending a budget bounds, in which stretches of time, and what cannot be a budget."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.budgets.definitions import FOREVER, Budget, Span, checked, limit_of
from gateway.ledger.periods import instant_ns
from tests.budgets.worlds import USD, identity

ZONES = ("UTC", "America/Los_Angeles", "Asia/Kolkata", "Europe/Berlin", "Pacific/Apia", "America/Sao_Paulo")
BUDGET = Budget(id="b", scope="user", payer="alice", limit_pico=USD, span="day")


def of(span: Span, zone: str) -> Budget:
    return msgspec.structs.replace(BUDGET, span=span, zone=zone)


def at(zone: str, *moment: int) -> int:
    return instant_ns(datetime(*moment, tzinfo=ZoneInfo(zone)))  # type: ignore[arg-type,misc]


@pytest.mark.parametrize(
    ("span", "first", "after"),
    [
        ("day", (2026, 3, 8), (2026, 3, 9)),
        ("week", (2026, 3, 2), (2026, 3, 9)),
        ("month", (2026, 3, 1), (2026, 4, 1)),
    ],
)
@pytest.mark.parametrize("zone", ZONES)
def test_a_period_begins_at_midnight_in_the_budgets_zone(
    span: Span, first: tuple[int, ...], after: tuple[int, ...], zone: str
) -> None:
    budget = of(span, zone)  # a Sunday on which the clocks change in Los Angeles
    period = budget.period_at(at(zone, 2026, 3, 8, 12))
    assert (period.start_ns, period.end_ns) == (at(zone, *first), at(zone, *after))
    hours = (period.end_ns - period.start_ns) / 3600e9
    if zone == "America/Los_Angeles" and span == "day":
        assert hours == 23


def test_a_total_never_begins_anew() -> None:
    assert of("total", "UTC").period_at(at("UTC", 2200, 1, 1)) == FOREVER


@given(st.integers(0, 4 * 10**18), st.sampled_from(("day", "week", "month")), st.sampled_from(ZONES))
def test_each_moment_has_one_period_and_the_next_begins_where_it_ends(
    moment: int, span: Span, zone: str
) -> None:
    budget = of(span, zone)
    period = budget.period_at(moment)
    assert period.start_ns <= moment < period.end_ns
    assert budget.period_at(period.start_ns) == period
    assert budget.period_at(period.end_ns).start_ns == period.end_ns
    assert budget.period_at(period.end_ns - 1) == period
    assert datetime.fromtimestamp(period.end_ns // 10**9, UTC).microsecond == 0


def test_a_budget_is_for_its_payer_or_for_each_of_a_kind() -> None:
    who = identity("alice", key="k1", team="blue")
    values = {"key": "k1", "user": "alice", "team": "blue", "project": None}
    for scope, payer in values.items():
        single = Budget(id="b", scope=scope, payer=payer or "x", limit_pico=1, span="day")  # type: ignore[arg-type]
        assert single.payer_of(who) == payer
        assert msgspec.structs.replace(single, payer="other").payer_of(who) is None
        assert msgspec.structs.replace(single, payer="*").payer_of(who) == payer


@pytest.mark.parametrize("usd", ["0", "-1", "1e999999", "NaN", "", "ten", "9000001", "0.0000000000001"])
def test_what_is_no_limit_is_refused(usd: str) -> None:
    with pytest.raises(ValueError, match=r"USD|money|limit"):
        limit_of(usd)


def test_a_limit_is_exact() -> None:
    assert limit_of("0.000000000001") == 1
    assert limit_of("9000000") == 9_000_000 * USD


@pytest.mark.parametrize(
    "changes",
    [{"id": "a b"}, {"id": ""}, {"payer": ""}, {"payer": "a\nb"}, {"zone": "Mars/Olympus"}, {"zone": "../x"}],
)
def test_what_is_no_budget_is_refused(changes: dict[str, str]) -> None:
    checked(BUDGET)
    with pytest.raises(ValueError, match=r"id|payer|zone"):
        checked(msgspec.structs.replace(BUDGET, **changes))
