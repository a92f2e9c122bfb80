"""Totals: what bills come to, in all and by each of several groupings, from one look at the ledger.

A total without its counts by status is no total: bills without a price are in the counts and not in the cost.
Groupings by what an account holds are folded from one statement, and so are those of a route: they agree with
each other and with the total to the last digit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, Final
from zoneinfo import ZoneInfo

import msgspec
from sqlalchemy import Connection, func, select

from gateway.core.money import pico_to_usd
from gateway.ledger import schema
from gateway.ledger.expiry import horizon_of
from gateway.ledger.periods import Period
from gateway.ledger.queries import Dimension, Filters, Group, Sums, costs
from gateway.ledger.schema import DAY_NS, HOUR_NS

GROUPS_MAX: Final = 10_000
"""Groups of one grouping; callers choose the names of models, so that there could be any number."""
ROWS_MAX: Final = 100_000
"""Rows of one statement, which several groupings are folded from."""

HOURS: Final = DAY_NS // HOUR_NS

_FOLDED: Final[tuple[tuple[Dimension, ...], ...]] = (
    ("key", "user", "team", "project"),
    ("provider", "model"),
    ("day",),
)
"""Groupings that one statement answers together."""


class TooManyGroups(ValueError):
    """The answer would have no bound; the question is to be narrowed."""


class StatusTotal(msgspec.Struct, frozen=True, kw_only=True):
    """What bills of one status come to.

    Args:
        cost_usd: exact; None where none of them has a cost.
        errors: requests that ended with an error.
        tokens: by dimension, only where at least one bill reported it.
    """

    requests: int
    errors: int
    cost_usd: str | None
    tokens: dict[str, int]


class Total(msgspec.Struct, frozen=True, kw_only=True):
    """What some bills come to.

    Args:
        priced: requests with a cost; `cost_usd` is theirs, and None where none of the requests is priced.
        by_status: the same for `final`, `estimated`, `unpriced` and `unmetered`, where there are any.
    """

    requests: int
    priced: int
    errors: int
    cost_usd: str | None
    tokens: dict[str, int]
    by_status: dict[str, StatusTotal]


class Grouped(msgspec.Struct, frozen=True, kw_only=True):
    """One group: None is what the bills do not say."""

    value: str | None
    total: Total


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to one question."""

    total: Total
    by: dict[Dimension, tuple[Grouped, ...]]


def totals_of(
    connection: Connection, groupings: Sequence[Dimension], filters: Filters, period: Period, zone: ZoneInfo
) -> Totals:
    """Return the totals of a half-open period.

    Args:
        zone: whose days `day` means.

    Raises:
        TooManyGroups: the question must be narrowed.
    """
    period = _held(connection, period)
    by: dict[Dimension, tuple[Grouped, ...]] = {}
    whole: list[Group] | None = None
    for together in _FOLDED:
        wanted = [name for name in together if name in groupings]
        if not wanted:
            continue
        groups = _asked(connection, wanted, filters, period, zone)
        if whole is None:
            whole = groups
        for place, name in enumerate(wanted):
            by[name] = _grouped(groups, lambda g, at=place: g.values[at])  # type: ignore[misc]  # bound now
    if whole is None:
        whole = _asked(connection, (), filters, period, zone)
    return Totals(total=_total(_merged(whole)), by={name: by[name] for name in groupings})


def _held(connection: Connection, period: Period) -> Period:
    """Return the part of a period whose UTC days can hold bills: there is nothing to cut before the first.

    The sums are asked, for old bills have no rows any more.
    """
    hour = schema.totals.c.hour
    first = connection.execute(select(func.min(hour))).scalar()
    last = connection.execute(select(func.max(hour))).scalar()
    if first is None or last is None:
        return Period(period.start_ns, period.start_ns)
    first_day, next_day = first // HOURS * DAY_NS, (last // HOURS + 1) * DAY_NS
    return Period(max(period.start_ns, first_day), min(period.end_ns, next_day))


def _asked(
    connection: Connection, group_by: Sequence[Dimension], filters: Filters, period: Period, zone: ZoneInfo
) -> list[Group]:
    try:
        question = costs(group_by, filters, period, zone, horizon_ns=horizon_of(connection))
    except ValueError as fault:
        raise TooManyGroups(str(fault)) from fault
    return question.fold(chain.from_iterable(_rows(connection, s) for s in question.statements))


def _rows(connection: Connection, statement: Any) -> list[Sequence[Any]]:
    rows: list[Sequence[Any]] = [tuple(row) for row in connection.execute(statement.limit(ROWS_MAX + 1))]
    if len(rows) > ROWS_MAX:
        raise TooManyGroups(f"it takes more than {ROWS_MAX} sums")
    return rows


def _grouped(groups: Iterable[Group], value_of: Callable[[Group], str | None]) -> tuple[Grouped, ...]:
    found: dict[str | None, list[Group]] = {}
    for group in groups:
        found.setdefault(value_of(group), []).append(group)
    if len(found) > GROUPS_MAX:
        raise TooManyGroups(f"there are {len(found)} groups, and an answer has at most {GROUPS_MAX}")
    return tuple(
        Grouped(value=value, total=_total(_merged(found[value])))
        for value in sorted(found, key=lambda v: (v is None, v or ""))
    )


def _merged(groups: Iterable[Group]) -> dict[str, Sums]:
    by_status: dict[str, Sums] = {}
    for group in groups:
        for status, sums in group.by_status.items():
            by_status.setdefault(status, Sums()).merge(sums)
    return by_status


def _total(by_status: Mapping[str, Sums]) -> Total:
    whole = Sums()
    for sums in by_status.values():
        whole.merge(sums)
    return Total(
        requests=whole.bills,
        priced=whole.priced,
        errors=whole.errors,
        cost_usd=_cost(whole),
        tokens=whole.tokens,
        by_status={
            status: StatusTotal(
                requests=sums.bills, errors=sums.errors, cost_usd=_cost(sums), tokens=sums.tokens
            )
            for status, sums in sorted(by_status.items())
        },
    )


def _cost(sums: Sums) -> str | None:
    return pico_to_usd(sums.cost_pico) if sums.priced or not sums.bills else None
