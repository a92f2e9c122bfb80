"""Days of any zone, cut without overlap and without a gap."""

from __future__ import annotations

from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.ledger.periods import DAYS_MAX, Period, days_of, instant_ns, midnight_ns, pieces_of
from gateway.ledger.schema import DAY_NS, HOUR_NS

UNIT = {"bill": 1, "hour": HOUR_NS, "day": DAY_NS}
ZONES = [
    "UTC",
    "America/Los_Angeles",
    "Asia/Kolkata",
    "Australia/Lord_Howe",
    "America/Santiago",
    "Pacific/Apia",
]
times = st.integers(0, 3 * 10**18)


@given(start=times, length=st.integers(0, 400 * DAY_NS), days=st.booleans())
def test_pieces_cover_a_period_once(start: int, length: int, *, days: bool) -> None:
    period = Period(start, start + length)
    pieces = sorted(
        (p.start * UNIT[p.grain], p.end * UNIT[p.grain], p.grain) for p in pieces_of(period, "", days=days)
    )
    at = start
    for begin, end, grain in pieces:
        assert begin == at
        assert end > begin
        assert days or grain != "day"
        at = end
    assert at == start + length
    assert len(pieces) <= 5
    assert sum(end - begin for begin, end, grain in pieces if grain == "bill") < 2 * HOUR_NS


@given(start=times, length=st.integers(0, 40 * DAY_NS), zone=st.sampled_from(ZONES))
def test_days_cover_a_period_once(start: int, length: int, zone: str) -> None:
    at = start
    for label, day in days_of(Period(start, start + length), ZoneInfo(zone)):
        assert day.start_ns == at < day.end_ns
        local = datetime.fromtimestamp(day.start_ns // 10**9, ZoneInfo(zone))
        assert local.date().isoformat() == label
        at = day.end_ns
    assert at == start + length


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("UTC", date(2026, 3, 8), 24),
        ("America/Los_Angeles", date(2026, 3, 8), 23),
        ("America/Los_Angeles", date(2026, 11, 1), 25),
        ("Asia/Kolkata", date(2026, 3, 8), 24),
        ("Australia/Lord_Howe", date(2026, 4, 5), 24.5),
        ("America/Santiago", date(2026, 9, 6), 23),  # midnight itself is skipped
    ],
)
def test_a_day_is_as_long_as_its_clock_says(zone: str, day: date, hours: float) -> None:
    start = midnight_ns(day, ZoneInfo(zone))
    end = midnight_ns(date.fromordinal(day.toordinal() + 1), ZoneInfo(zone))
    assert end - start == hours * HOUR_NS
    labels = dict(days_of(Period(start - 1, end + 1), ZoneInfo(zone)))
    assert labels[day.isoformat()] == Period(start, end)
    assert len(labels) == 3


def test_instants_are_exact_and_need_a_zone() -> None:
    assert instant_ns(datetime(2026, 11, 21, 10, 0, 0, 1, tzinfo=UTC)) == 1_795_255_200_000_001_000
    with pytest.raises(ValueError, match="time zone"):
        instant_ns(datetime(2026, 11, 21))  # noqa: DTZ001  # that is the point


def test_more_days_than_an_answer_holds_are_refused() -> None:
    with pytest.raises(ValueError, match=str(DAYS_MAX)):
        list(days_of(Period(0, (DAYS_MAX + 1) * DAY_NS), ZoneInfo("UTC")))
