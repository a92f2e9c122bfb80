"""Queries: sums and records as statements with parameters, and the exact folding of what they return.

Nothing is executed here. A sum is asked of the coarsest table that holds it (`gateway.ledger.periods`), so
that a million bills cost no more than a few thousand rows; what several tables return is added in whole
numbers. Callers' words only ever become parameters.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal
from zoneinfo import ZoneInfo

import msgspec
from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    FromClause,
    Select,
    Table,
    Text,
    cast,
    column,
    or_,
    select,
    values,
)

from gateway.ledger import schema
from gateway.ledger.periods import Grain, Period, Piece, days_of, in_hours, pieces_of
from gateway.ledger.projection import SETTLED_REVISION
from gateway.ledger.rollups import counts, sums_of_bills, sums_of_sums, whole
from gateway.ledger.schema import SUMS, TOKENS, total_pico

Dimension = Literal["key", "user", "team", "project", "provider", "model", "day"]

RECORDS_MAX: Final = 1_000
"""Records of one page."""
VALUES_MAX: Final = 100
"""Values of one filter."""
PIECES_A_STATEMENT: Final = 2_000
"""Each piece takes four parameters, twice where it meets two days, and PostgreSQL takes 32,767."""
TOKEN_CHARS_MAX: Final = 512
INSTANT_NS_MAX: Final = 2**63 - 1

_ACCOUNT: Final = {
    "key": schema.accounts.c.key_id,
    "user": schema.accounts.c.user_id,
    "team": schema.accounts.c.team,
    "project": schema.accounts.c.project,
}
_SUMMED: Final = (
    *("account_id", "route_id", "status", "error_type", "cost_pico"),
    *(f"{name}_tokens" for name in TOKENS),
)
_PER_BUCKET: Final[dict[Grain, int]] = {"bill": 0, "hour": 24, "day": 1}
"""How much of a grain's unit is a day of UTC; pieces of days are compared day by day."""
_UNASKED: Final = ("cost_lines", "current")
_ROUTE: Final = {"provider": schema.routes.c.provider, "model": schema.routes.c.model}


class Filters(msgspec.Struct, frozen=True, kw_only=True):
    """Which bills count: of each member, any of its values; empty means all. None is a value: not known."""

    key: tuple[str, ...] = ()
    user: tuple[str, ...] = ()
    team: tuple[str | None, ...] = ()
    project: tuple[str | None, ...] = ()
    provider: tuple[str | None, ...] = ()
    model: tuple[str, ...] = ()
    status: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if any(len(getattr(self, name)) > VALUES_MAX for name in self.__struct_fields__):
            raise ValueError(f"a filter takes at most {VALUES_MAX} values")


class Sums(msgspec.Struct, kw_only=True):
    """What some bills come to.

    Args:
        priced: bills that have a cost; with none of them `cost_pico` is 0, and not known.
        tokens: by dimension, only where at least one bill reported it.
    """

    bills: int = 0
    priced: int = 0
    errors: int = 0
    cost_pico: int = 0
    tokens: dict[str, int] = msgspec.field(default_factory=dict)

    def add(self, row: Sequence[Any]) -> None:
        """Add a row of the columns SUMS."""
        bills, priced, errors, *counts, milli, rest = row
        self.bills += int(bills)
        self.priced += int(priced)
        self.errors += int(errors)
        self.cost_pico += total_pico(int(milli), int(rest))
        for name, count in zip(TOKENS, counts, strict=True):
            if count is not None:
                self.tokens[name] = self.tokens.get(name, 0) + int(count)

    def merge(self, other: Sums) -> None:
        """Add what other bills come to."""
        self.bills += other.bills
        self.priced += other.priced
        self.errors += other.errors
        self.cost_pico += other.cost_pico
        for name, count in other.tokens.items():
            self.tokens[name] = self.tokens.get(name, 0) + count


class Group(msgspec.Struct, kw_only=True):
    """The sums of one combination of values, in all and by status."""

    values: tuple[str | None, ...]
    total: Sums = msgspec.field(default_factory=Sums)
    by_status: dict[str, Sums] = msgspec.field(default_factory=dict)


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """A question for sums: all `statements` are to be executed, and their rows given to `fold`."""

    group_by: tuple[Dimension, ...]
    statements: tuple[Select[Any], ...]

    def fold(self, rows: Iterable[Sequence[Any]]) -> list[Group]:
        """Return the groups in the order of their values, what is not known last."""
        groups: dict[tuple[str | None, ...], Group] = {}
        width = len(self.group_by)
        for row in rows:
            key = tuple(row[:width])
            group = groups.setdefault(key, Group(values=key))
            sums = row[width + 1 :]
            group.total.add(sums)
            group.by_status.setdefault(row[width], Sums()).add(sums)
        return sorted(groups.values(), key=lambda g: [(v is None, v or "") for v in g.values])


def costs(
    group_by: Sequence[Dimension], filters: Filters, period: Period, zone: ZoneInfo, *, horizon_ns: int = 0
) -> Costs:
    """Return the question for sums over a half-open period, by some dimensions.

    Args:
        zone: whose days `day` means.
        horizon_ns: since when there are rows (`gateway.ledger.expiry`); before it days and periods begin with
            an hour.

    Raises:
        ValueError: a dimension is named twice, or there are too many days.
    """
    if len(set(group_by)) != len(group_by):
        raise ValueError("a dimension is named twice")
    by_day = "day" in group_by
    used = {name for name in (*_ACCOUNT, *_ROUTE) if name in group_by or getattr(filters, name)}
    shared = bool(used)
    days = days_of(period, zone) if by_day else [("", period)]
    found: dict[Grain, list[Piece]] = {}
    for label, stretch in days:
        for piece in pieces_of(in_hours(stretch, horizon_ns), label, days=shared):
            found.setdefault(piece.grain, []).append(piece)
    statements: list[Select[Any]] = []
    for grain, pieces in found.items():
        table = _table(grain, who=not used.isdisjoint(_ACCOUNT), what=not used.isdisjoint(_ROUTE))
        for at in range(0, len(pieces), PIECES_A_STATEMENT):
            some = pieces[at : at + PIECES_A_STATEMENT]
            statements.append(_sums(table, grain, some, tuple(group_by), filters))
    return Costs(group_by=tuple(group_by), statements=tuple(statements))


def _table(grain: Grain, *, who: bool, what: bool) -> Table:
    """Return the smallest table of a grain that knows what is asked for."""
    if grain == "bill":
        return schema.bills
    if grain == "hour":
        return schema.hourly if who or what else schema.totals
    if who and what:
        return schema.daily
    return schema.daily_accounts if who else schema.daily_routes


def _sums(
    table: FromClause, grain: Grain, pieces: list[Piece], group_by: tuple[Dimension, ...], filters: Filters
) -> Select[Any]:
    """Return the sums of one table: first by the ids that stand in it, then by what these ids stand for."""
    when = {"bill": "ended_unix_ns", "hour": "hour", "day": "day"}[grain]
    parts = _parts(pieces, _PER_BUCKET[grain] if "day" in group_by else 0)
    ids = [
        name
        for name, columns in (("account_id", _ACCOUNT), ("route_id", _ROUTE))
        if set(group_by) & set(columns)
    ]
    meets = (table.c[when] >= parts.c.start) & (table.c[when] < parts.c.end)
    if "bucket" in parts.c:
        # PostgreSQL would read all hours of an account, and hold each against each day of a year. SQLite does
        # well without: `+ 0` and CAST, which PostgreSQL drops, keep it from beginning with either of these.
        meets &= parts.c.bucket + 0 == whole(table.c[when], _PER_BUCKET[grain])
        at = cast(table.c[when], BigInteger)
        meets &= (at >= min(piece.start for piece in pieces)) & (at < max(piece.end for piece in pieces))
    found: FromClause = parts.join(table, meets)
    day = parts.c.label
    if grain == "bill":
        # First what lies in these hours, by the index of time, and only then whose it is: a planner that
        # begins with a user reads all bills that the user ever had.
        some = select(day, *[table.c[name] for name in _SUMMED]).select_from(found).where(counts(table))
        near = some.cte("near")
        found = table = near.prefix_with("MATERIALIZED")
        day = table.c.label
    keys = [day, *(table.c[name] for name in ids), table.c.status]
    sums = sums_of_bills(table) if grain == "bill" else sums_of_sums(table)
    inner = select(*keys, *sums).select_from(found).where(*_where(table, filters)).group_by(*keys)
    by = inner.subquery("sums")
    if not ids:
        label = [by.c.label] * ("day" in group_by)
        return select(*label, by.c.status, *[by.c[name] for name in SUMS])
    chosen: list[ColumnElement[Any]] = [
        by.c.label if name == "day" else {**_ACCOUNT, **_ROUTE}[name] for name in group_by
    ]
    source: FromClause = by
    if "account_id" in ids:
        source = source.join(schema.accounts, schema.accounts.c.id == by.c.account_id)
    if "route_id" in ids:
        source = source.join(schema.routes, schema.routes.c.id == by.c.route_id)
    return select(*chosen, by.c.status, *sums_of_sums(by)).select_from(source).group_by(*chosen, by.c.status)


def _parts(pieces: list[Piece], per_bucket: int) -> CTE:
    """Return pieces as rows.

    Args:
        per_bucket: cut them at multiples of it, which have numbers of their own; 0: do not.
    """
    label, start, end = column("label", Text), column("start", BigInteger), column("end", BigInteger)
    if not per_bucket:
        uncut = [(piece.label, piece.start, piece.end) for piece in pieces]
        return values(label, start, end, name="parts").data(uncut).cte("parts")
    rows = [
        (piece.label, max(piece.start, at * per_bucket), min(piece.end, (at + 1) * per_bucket), at)
        for piece in pieces
        for at in range(piece.start // per_bucket, -(-piece.end // per_bucket))
    ]
    return values(label, start, end, column("bucket", BigInteger), name="parts").data(rows).cte("parts")


def _where(table: FromClause, filters: Filters) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = [
        table.c[name].in_(select(owner.c.id).where(*chosen))
        for name, owner, columns in (
            ("account_id", schema.accounts, _ACCOUNT),
            ("route_id", schema.routes, _ROUTE),
        )
        if (chosen := [_any(columns[f], getattr(filters, f)) for f in columns if getattr(filters, f)])
    ]
    if filters.status:
        found.append(table.c.status.in_(filters.status))
    return found


def _any(of: ColumnElement[Any], wanted: tuple[str | None, ...]) -> ColumnElement[bool]:
    known = of.in_([value for value in wanted if value is not None])
    return or_(known, of.is_(None)) if None in wanted else known


class After(msgspec.Struct, frozen=True):
    """The last record of a page: the next page begins after it."""

    ended_unix_ns: int
    record_id: str

    def token(self) -> str:
        """Return it as text that a caller can hand back."""
        return base64.urlsafe_b64encode(msgspec.json.encode((self.ended_unix_ns, self.record_id))).decode()


def after(token: str) -> After:
    """Return what a caller handed back.

    Raises:
        ValueError: it is no token of ours.
    """
    try:
        if len(token) > TOKEN_CHARS_MAX:
            raise ValueError
        ended, record_id = msgspec.json.decode(
            base64.b64decode(token, altchars=b"-_", validate=True), type=tuple[int, str]
        )
        if not 0 <= ended <= INSTANT_NS_MAX or "\0" in record_id:
            raise ValueError
        return After(ended, record_id)
    except (ValueError, binascii.Error, msgspec.MsgspecError) as fault:
        raise ValueError("the cursor is none that this door gave out") from fault


def records(
    filters: Filters, period: Period, *, count: int, after: After | None = None, newest_first: bool = False
) -> Select[Any]:
    """Return the question for a page of records, by when they were settled, and for one record more.

    A page goes on exactly where the one before it ended, whatever was added meanwhile.

    Raises:
        ValueError: `count` is not from 1 to RECORDS_MAX.
    """
    if not 1 <= count <= RECORDS_MAX:
        raise ValueError(f"a page has 1 to {RECORDS_MAX} records")
    bills, accounts, routes, rates, gateways = (
        schema.bills,
        schema.accounts,
        schema.routes,
        schema.rates,
        schema.gateways,
    )
    shared = [
        *(c for c in accounts.c if c.name != "id"),
        *(c for c in routes.c if c.name != "id"),
        *(c for c in rates.c if c.name != "id"),
        gateways.c.folder,
    ]
    order = (bills.c.ended_unix_ns, bills.c.record_id)
    # The page is chosen in an index, and only its rows are read. Every bill has a first revision; a status
    # can be another one in a later revision, so that the newest must be looked at where it is asked for.
    newest = counts(bills) if filters.status else bills.c.revision == SETTLED_REVISION
    chosen = (
        select(bills.c.record_id)
        .where(bills.c.ended_unix_ns >= period.start_ns, bills.c.ended_unix_ns < period.end_ns)
        .where(newest, *_where(bills, filters))
        .order_by(*(c.desc() if newest_first else c for c in order))
        .limit(count + 1)
    )
    if after is not None:
        at, record_id = after.ended_unix_ns, after.record_id
        ended, own = order
        if newest_first:
            chosen = chosen.where(ended <= at, or_(ended < at, own < record_id))
        else:
            chosen = chosen.where(ended >= at, or_(ended > at, own > record_id))
    page = chosen.subquery("page")
    return (
        select(*(c for c in bills.c if c.name not in _UNASKED), *shared)
        .select_from(page)
        .join(bills, bills.c.record_id == page.c.record_id)
        .join(accounts, accounts.c.id == bills.c.account_id)
        .join(routes, routes.c.id == bills.c.route_id)
        .join(gateways, gateways.c.id == bills.c.gateway_id)
        .outerjoin(rates, rates.c.id == bills.c.rate_id)
        .where(counts(bills))
        .order_by(*(c.desc() if newest_first else c for c in order))
    )


def lines_of(record_ids: Sequence[str]) -> Select[Any]:
    """Return the question for the lines of some bills, all revisions, in order."""
    lines = schema.lines
    return (
        select(lines)
        .where(lines.c.record_id.in_(record_ids))
        .order_by(lines.c.record_id, lines.c.revision, lines.c.line)
    )
