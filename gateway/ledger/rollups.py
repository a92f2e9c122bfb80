"""Roll-ups: sums of bills by hour and day, kept in the transaction that adds the bills.

They can be made again from the bills at any time and come out the same; a sum of counts that nobody
reported stays NULL. Sums of money are kept in two parts: see `gateway.ledger.schema`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    FromClause,
    Select,
    Table,
    bindparam,
    delete,
    func,
    insert,
    literal,
    select,
    text,
)

from gateway.ledger import schema
from gateway.ledger.projection import Row
from gateway.ledger.schema import DAY_NS, HOUR_NS, PICO_PER_MILLI, SUMS, TOKENS, split
from gateway.ledger.upserting import Upsert, insert_into, upsert

_COLUMN: Final = {name: at for at, name in enumerate(schema.bills.c.keys())}
_ENDED: Final = _COLUMN["ended_unix_ns"]
_GATEWAY: Final = _COLUMN["gateway_id"]
_ACCOUNT: Final = _COLUMN["account_id"]
_ROUTE: Final = _COLUMN["route_id"]
_STATUS: Final = _COLUMN["status"]
_ERROR: Final = _COLUMN["error_type"]
_COST: Final = _COLUMN["cost_pico"]
_FIRST_TOKENS: Final = _COLUMN[f"{TOKENS[0]}_tokens"]
_PER_DAY: Final = DAY_NS // HOUR_NS
_MAYBE: Final = frozenset(f"{name}_tokens" for name in TOKENS)

Sums = list[int | None]
Groups = dict[tuple[Any, ...], Sums]


def fold(connection: Connection, bills: Iterable[Row]) -> None:
    """Add bills, as rows of `schema.bills`, to the roll-ups."""
    by_hour: Groups = {}
    for bill in bills:
        key = (int(bill[_ENDED] or 0) // HOUR_NS, bill[_GATEWAY], bill[_ACCOUNT], bill[_ROUTE], bill[_STATUS])
        _add(by_hour, key, _of(bill))
    by_day: Groups = {}
    total: Groups = {}
    for key, sums in by_hour.items():
        _add(by_day, (key[0] // _PER_DAY, *key[1:]), sums)
        _add(total, (key[0], key[1], key[4]), sums)
    by_account: Groups = {}
    by_route: Groups = {}
    for key, sums in by_day.items():
        _add(by_account, (*key[:3], key[4]), sums)
        _add(by_route, (*key[:2], *key[3:]), sums)
    for table, groups in zip(schema.ROLLUPS, (by_hour, by_day, by_account, by_route, total), strict=True):
        upsert(connection, table, _more, [(*key, *groups[key]) for key in sorted(groups)])


def sum_again(connection: Connection, bills: Iterable[Row]) -> None:
    """Make the sums again that some bills, as rows of `schema.bills`, are or were part of."""
    hours = {(int(b[_ENDED] or 0) // HOUR_NS, b[_GATEWAY], b[_ACCOUNT], b[_ROUTE], b[_STATUS]) for b in bills}
    days = {(hour // _PER_DAY, *key) for hour, *key in hours}
    hourly, daily, counted = schema.hourly, schema.daily, schema.bills
    _again(connection, hourly, hours, counted, counted.c.ended_unix_ns, HOUR_NS, counts(counted))
    _again(connection, daily, days, hourly, hourly.c.hour, _PER_DAY)
    by_account = {(*key[:3], key[4]) for key in days}
    _again(connection, schema.daily_accounts, by_account, daily, daily.c.day, 1)
    by_route = {(*key[:2], *key[3:]) for key in days}
    _again(connection, schema.daily_routes, by_route, daily, daily.c.day, 1)
    _again(connection, schema.totals, {(*key[:2], key[4]) for key in hours}, hourly, hourly.c.hour, 1)


def _again(
    connection: Connection,
    table: Table,
    groups: set[tuple[Any, ...]],
    finer: Table,
    when: ColumnElement[int],
    per: int,
    *where: ColumnElement[bool],
) -> None:
    """Make some groups of a roll-up again from a finer table, of whose `when` each has `per`.

    A group of which nothing is left is gone, as if it had never been.
    """
    unit, *names = _keys(table)
    own = [bindparam(f"own_{name}", type_=table.c[name].type) for name in (unit, *names)]
    rows = [dict(zip([bind.key for bind in own], key, strict=True)) for key in sorted(groups)]
    connection.execute(delete(table).where(*[table.c[bind.key[4:]] == bind for bind in own]), rows)
    start = own[0] * literal(per, BigInteger)
    chosen = (
        select(*own, *(sums_of_bills(finer) if finer is schema.bills else sums_of_sums(finer)))
        .where(when >= start, when < start + literal(per, BigInteger))
        .where(*[finer.c[name] == bind for name, bind in zip(names, own[1:], strict=True)], *where)
        .having(func.count() > 0)
    )
    connection.execute(insert(table).from_select([unit, *names, *SUMS], chosen), rows)


def fold_hours(connection: Connection, bills: Table) -> None:
    """Add bills that stand in a table like `schema.bills` to the sums by hour, and to no other roll-up."""
    hourly = schema.hourly
    new = insert_into(connection, hourly)
    keys = _hour_keys(bills)
    chosen = select(*keys, *sums_of_bills(bills)).where(counts(bills)).group_by(*keys)
    added = new.from_select([*_keys(hourly), *SUMS], chosen)
    own = list(hourly.primary_key.columns)
    connection.execute(added.on_conflict_do_update(index_elements=own, set_=_more(hourly, new)))


def fold_all(connection: Connection, gateway_id: int, *, hours: bool = True) -> None:
    """Make the roll-ups of a gateway again: from its bills, and the coarser ones from the finer.

    Args:
        hours: also the sums by hour; without it they are right, by `fold_hours`.
    """
    hourly, daily, bills = schema.hourly, schema.daily, schema.bills
    for table in schema.ROLLUPS if hours else schema.ROLLUPS[1:]:
        connection.execute(delete(table).where(table.c.gateway_id == gateway_id))
    if hours:
        counted = select().where(bills.c.gateway_id == gateway_id, counts(bills))
        _fill(connection, hourly, _hour_keys(bills), sums_of_bills(bills), counted)
    day = (whole(hourly.c.hour, _PER_DAY), *(hourly.c[name] for name in _keys(daily)[1:]))
    of_hours = select().where(hourly.c.gateway_id == gateway_id)
    _fill(connection, daily, day, sums_of_sums(hourly), of_hours)
    of_days = select().where(daily.c.gateway_id == gateway_id)
    for table, finer, rows in (
        (schema.daily_accounts, daily, of_days),
        (schema.daily_routes, daily, of_days),
        (schema.totals, hourly, of_hours),
    ):
        _fill(connection, table, tuple(finer.c[name] for name in _keys(table)), sums_of_sums(finer), rows)
    if connection.dialect.name == "postgresql":
        # Its own process gets to that later, and until then it takes a million rows for a few.
        for table in (schema.bills, *schema.ROLLUPS):
            connection.execute(text(f"ANALYZE {table.name}"))


def whole(column: ColumnElement[int], by: int) -> ColumnElement[int]:
    """Return a division of whole numbers that are not below zero, without rest."""
    return column.op("/", return_type=column.type)(literal(by, column.type))


def counts(table: FromClause) -> ColumnElement[bool]:
    """Return the condition that a row of `bills` is the newest revision of its bill.

    It stands in the row: to look for newer ones took PostgreSQL more time than all else of a question.
    """
    return table.c.current.is_(True)


def sums_of_bills(bills: FromClause) -> list[ColumnElement[Any]]:
    """Return the aggregates over `bills` that are called SUMS."""
    cost = bills.c.cost_pico
    rest = cost.op("%", return_type=cost.type)(literal(PICO_PER_MILLI, cost.type))
    return [
        func.count().label("bills"),
        func.count(cost).label("priced"),
        func.count(bills.c.error_type).label("errors"),
        *[_sum(bills.c[f"{name}_tokens"]).label(f"{name}_tokens") for name in TOKENS],
        # Cut towards zero and the rest with the sign of the whole: the parts of a credit add up, too.
        func.coalesce(_sum(whole(cost, PICO_PER_MILLI)), 0).label("cost_milli"),
        func.coalesce(_sum(rest), 0).label("cost_rest_pico"),
    ]


def sums_of_sums(table: FromClause) -> list[ColumnElement[Any]]:
    """Return the aggregates over a roll-up that are called SUMS."""
    return [_sum(table.c[name]).label(name) for name in SUMS]


def _sum(column: ColumnElement[int]) -> ColumnElement[Any]:
    return func.sum(column)


def _hour_keys(bills: Table) -> tuple[ColumnElement[Any], ...]:
    """Return the key of `schema.hourly` that each bill has."""
    return whole(bills.c.ended_unix_ns, HOUR_NS), *(bills.c[name] for name in _keys(schema.hourly)[1:])


def _keys(table: Table) -> list[str]:
    return [column.name for column in table.primary_key.columns]


def _of(bill: Row) -> Sums:
    cost: Any = bill[_COST]
    milli, rest = (0, 0) if cost is None else split(cost)
    counts: Any = bill[_FIRST_TOKENS : _FIRST_TOKENS + len(TOKENS)]
    return [1, int(cost is not None), int(bill[_ERROR] is not None), *counts, milli, rest]


def _add(groups: Groups, key: tuple[Any, ...], more: Sums) -> None:
    sums = groups.get(key)
    if sums is None:
        groups[key] = more.copy()
        return
    for at, amount in enumerate(more):
        if amount is not None:
            before = sums[at]
            sums[at] = amount if before is None else before + amount


def _more(table: Table, new: Upsert) -> dict[str, Any]:
    added: dict[str, Any] = {}
    for name in SUMS:
        old, more = table.c[name], new.excluded[name]
        added[name] = func.coalesce(old + more, old, more) if name in _MAYBE else old + more
    return added


def _fill(
    connection: Connection,
    table: Table,
    keys: tuple[ColumnElement[Any], ...],
    sums: list[ColumnElement[Any]],
    rows: Select[Any],
) -> None:
    chosen = rows.add_columns(*keys, *sums).group_by(*keys)
    connection.execute(insert(table).from_select([*_keys(table), *SUMS], chosen))
