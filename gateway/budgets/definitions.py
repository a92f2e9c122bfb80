"""Definitions: whose spending a budget bounds, by how much, and in which stretches of time.

A budget is for one payer, or with `EACH` for every one of its kind apart. A bill belongs to the period in
which it was settled, as in the ledger; days, weeks and months begin at midnight in the budget's own time
zone.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Final, Literal
from zoneinfo import ZoneInfo

import msgspec

from gateway.core.exchange import Identity
from gateway.core.money import PICO_PER_USD, usd_to_pico
from gateway.ledger.periods import SECOND_NS, Period, midnight_ns
from gateway.ledger.queries import Filters
from gateway.ledger.schema import DAY_NS

Scope = Literal["key", "user", "team", "project"]
Span = Literal["day", "week", "month", "total"]
Mode = Literal["refuse", "warn"]

EACH: Final = "*"
LIMIT_USD_MAX: Final = 9_000_000
"""Amounts of one budget are whole numbers of 64 bits in the database, in pico-USD."""
PAYER_CHARS_MAX: Final = 256
BUDGETS_MAX: Final = 10_000
"""Budgets of one gateway: all of them are in the memory of each worker."""
FOREVER: Final = Period(0, (2**62 // DAY_NS) * DAY_NS)
"""The period of a total."""
_ID: Final = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """One budget.

    Args:
        scope: what kind of payer it bounds.
        payer: id of the key or user, name of the team or project; `EACH` for every one apart.
        limit_pico: in pico-USD.
        span: how long one period lasts; `total` never ends.
        zone: time zone in which periods begin.
        mode: `refuse` keeps spending below the limit, `warn` only tells.
    """

    id: str
    scope: Scope
    payer: str
    limit_pico: int
    span: Span
    zone: str = "UTC"
    mode: Mode = "refuse"

    def payer_of(self, identity: Identity) -> str | None:
        """Return who of an identity this budget is for, None if it is for nobody of it."""
        found = _payer(self.scope, identity)
        return found if self.payer in (EACH, found) else None

    def period_at(self, at_unix_ns: int) -> Period:
        """Return the period that holds a moment."""
        return _period(self.span, self.zone, at_unix_ns)


def _payer(scope: Scope, identity: Identity) -> str | None:
    if scope == "key":
        return identity.key_id
    if scope == "user":
        return identity.user_id
    return identity.team if scope == "team" else identity.project


def filters_of(scope: Scope, payer: str) -> Filters:
    """Return which bills a budget counts."""
    values = (payer,)
    match scope:
        case "key":
            return Filters(key=values)
        case "user":
            return Filters(user=values)
        case "team":
            return Filters(team=values)
        case "project":
            return Filters(project=values)


def _period(span: Span, zone_name: str, at_unix_ns: int) -> Period:
    if span == "total":
        return FOREVER
    zone = zone_of(zone_name)
    today = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=at_unix_ns // SECOND_NS)).astimezone(zone)
    first, after = _days(span, today.date())
    return Period(midnight_ns(first, zone), midnight_ns(after, zone))


def _days(span: Span, day: date) -> tuple[date, date]:
    """Return the first day of the period that holds a day, and the first day after it."""
    if span == "day":
        return day, day + timedelta(days=1)
    if span == "week":
        monday = day - timedelta(days=day.weekday())
        return monday, monday + timedelta(days=7)
    first = day.replace(day=1)
    return first, (first + timedelta(days=32)).replace(day=1)


@lru_cache(maxsize=1024)
def zone_of(name: str) -> ZoneInfo:
    """Return a time zone.

    Raises:
        ValueError: there is none of that name.
    """
    try:
        return ZoneInfo(name)
    except (LookupError, ValueError, OSError) as fault:  # a name can also be a folder, or a path
        raise ValueError(f"{name[:64]!r} is no time zone such as Europe/Berlin") from fault


def limit_of(usd: str) -> int:
    """Return a limit in pico-USD.

    Raises:
        ValueError: it is no exact amount above zero, or above LIMIT_USD_MAX.
    """
    try:
        pico = usd_to_pico(Decimal(usd))
    except InvalidOperation as fault:
        raise ValueError(f"{usd[:40]!r} is no amount of USD; write it as a quoted decimal") from fault
    if not 0 < pico <= LIMIT_USD_MAX * PICO_PER_USD:
        raise ValueError(f"a limit is above 0 and at most {LIMIT_USD_MAX} USD")
    return pico


def checked(budget: Budget) -> Budget:
    """Return the budget if it can be used.

    Raises:
        ValueError: what about it cannot be.
    """
    if not _ID.fullmatch(budget.id):
        raise ValueError("an id has 1 to 64 of the characters A-Z a-z 0-9 _ . : -")
    if not budget.payer or len(budget.payer) > PAYER_CHARS_MAX or not budget.payer.isprintable():
        raise ValueError(f"the payer is a name of 1 to {PAYER_CHARS_MAX} printable characters, or `{EACH}`")
    zone_of(budget.zone)
    return budget
