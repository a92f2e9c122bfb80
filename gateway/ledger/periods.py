"""Periods: half-open stretches of time, cut into days of any time zone and into what the roll-ups hold.

A day of Kolkata begins in the middle of an hour of UTC, a day of Los Angeles has 23 or 25 hours twice a year:
so a stretch becomes whole UTC days, whole UTC hours, and what is left at its edges, which is summed from the
bills themselves. The parts never overlap and leave nothing out, and therefore days add up to their range.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from typing import Final, Literal
from zoneinfo import ZoneInfo

import msgspec

from gateway.ledger.schema import DAY_NS, HOUR_NS

DAYS_MAX: Final = 3_700
"""Days of one answer: ten years."""
SECOND_NS: Final = 10**9

Grain = Literal["bill", "hour", "day"]


class Period(msgspec.Struct, frozen=True):
    """A half-open stretch of time, in Unix nanoseconds."""

    start_ns: int
    end_ns: int


class Piece(msgspec.Struct, frozen=True):
    """A part of a period as it stands in one table: from `start` to before `end`, in the table's own unit."""

    grain: Grain
    start: int
    end: int
    label: str


def instant_ns(moment: datetime) -> int:
    """Return an instant in Unix nanoseconds, exactly.

    Raises:
        ValueError: it has no time zone.
    """
    if moment.tzinfo is None:
        raise ValueError("an instant needs a time zone")
    since = moment.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * SECOND_NS + since.microseconds * 1_000


def midnight_ns(day: date, zone: ZoneInfo) -> int:
    """Return when a day begins; where midnight is skipped by a change of clocks, at that change."""
    return instant_ns(datetime.combine(day, time(), tzinfo=zone))


def days_of(period: Period, zone: ZoneInfo) -> Iterator[tuple[str, Period]]:
    """Yield the days of a period with their ISO dates; the first and the last may be parts of days.

    Raises:
        ValueError: there are more than DAYS_MAX.
    """
    if period.end_ns - period.start_ns > DAYS_MAX * DAY_NS:
        raise ValueError(f"more than {DAYS_MAX} days are not summed by day")
    at = period.start_ns
    day = datetime.fromtimestamp(at // SECOND_NS, zone).date()
    while at < period.end_ns:  # each turn is a day
        following = day + timedelta(days=1)
        end = min(midnight_ns(following, zone), period.end_ns)
        if end > at:
            yield day.isoformat(), Period(at, end)
            at = end
        day = following


def in_hours(period: Period, horizon_ns: int) -> Period:
    """Return a period whose edges before the horizon are beginnings of hours: nothing finer is kept.

    An edge goes to the beginning of its hour, whether a period begins or ends there: days still add up.
    """

    def edge(at_ns: int) -> int:
        return at_ns - at_ns % HOUR_NS if at_ns < horizon_ns else at_ns

    return Period(edge(period.start_ns), edge(period.end_ns))


def pieces_of(period: Period, label: str, *, days: bool) -> Iterator[Piece]:
    """Cut a period into what the tables hold.

    Args:
        label: what its pieces are called.
        days: whole UTC days are wanted as such; otherwise hours stand for them.
    """
    yield from _cut("bill", period.start_ns, period.end_ns, label, days=days)


def _cut(finest: Grain, start: int, end: int, label: str, *, days: bool) -> Iterator[Piece]:
    """Cut a stretch that is given in the unit of `finest`, the coarsest pieces in the middle."""
    if start >= end:
        return
    if finest == "day" or (finest == "hour" and not days):
        yield Piece(finest, start, end, label)
        return
    coarser: Grain = "hour" if finest == "bill" else "day"
    unit = HOUR_NS if finest == "bill" else DAY_NS // HOUR_NS
    first, last = -(-start // unit), end // unit
    if first >= last:
        yield Piece(finest, start, end, label)
        return
    if start < first * unit:
        yield Piece(finest, start, first * unit, label)
    yield from _cut(coarser, first, last, label, days=days)
    if last * unit < end:
        yield Piece(finest, last * unit, end, label)
