"""Revising: a bill that was rated anew is a row of its own, made of its bill's and of what the revision says.

    its bill is here            a row; if none of the bill's has a higher number, the sums follow it
    known number, the same      nothing: it was delivered twice
    known number, different     a line in `conflicts`; the first one counts
    its bill is not here yet    waits in `revisions_waiting`, and becomes a row in the bill's transaction

Numbers come in any order, for the journal's writers are not read in the order of time. The sums of what is
touched are made again from the bills: taken off a sum, a count that nobody else reported would leave a 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, bindparam, delete, insert, select, update

from gateway.ledger import schema
from gateway.ledger.inserting import insert_missing, insert_rows
from gateway.ledger.packing import COUNT, packed, unpacked
from gateway.ledger.projection import NO_RATE, SETTLED_REVISION, Revision, Row, id_of, revision_of

_COLUMN: Final = {name: at for at, name in enumerate(schema.bills.c.keys())}
_ID: Final = _COLUMN["record_id"]
_REVISION: Final = _COLUMN["revision"]
_LINES: Final = _COLUMN["cost_lines"]
_SERVICE_TIER: Final = list(schema.rates.c.keys()).index("service_tier") - 1
_LOOK_UP: Final = 500
"""Ids in one statement: SQLite takes 32,766 parameters."""
_CURRENT: Final = _COLUMN["current"]
"""The last column, which rows here are without until they are written."""
assert len(_COLUMN) - 1 == _CURRENT


class Origin(msgspec.Struct, frozen=True):
    """Where a revision stands in the journal, and its line."""

    segment: str
    line_end: int
    line: str


class Revised(msgspec.Struct, kw_only=True):
    """What became of some revisions.

    Args:
        touched: rows that counted and do no more, and those that count now.
        clashes: the origin and record id of each that is not what its number already says.
    """

    fresh: int = 0
    again: int = 0
    waiting: int = 0
    touched: list[Row] = []
    clashes: list[tuple[Origin, str]] = []


Arrived = tuple[Revision, Origin]


def revise(
    connection: Connection,
    gateway_id: int,
    settled: Iterable[str],
    revisions: list[Revision],
    origin: Callable[[Revision], Origin],
) -> Revised:
    """Write revisions, and those that waited for bills that were settled just now.

    Args:
        settled: ids of the bills that this transaction has added.
        origin: tells where one of `revisions` stands.
    """
    done = Revised()
    arrived = _arrived(connection, gateway_id, settled)
    arrived += [(revision, origin(revision)) for revision in revisions]
    if not arrived:
        return done
    held = _held(connection, sorted({revision.record_id for revision, _ in arrived}))
    tiers = _service_tiers(connection, held)
    rates: dict[int, Row] = {}
    bills: list[Row] = []
    early: list[Arrived] = []
    for revision, place in arrived:
        own = held.get(revision.record_id)
        if own is None:
            early.append((revision, place))
            continue
        row, rate = _row(own[SETTLED_REVISION], revision, tiers)
        before = own.get(revision.number)
        if before is not None:
            if before == row:
                done.again += 1
            else:
                done.clashes.append((place, revision.record_id))
            continue
        newest = max(own)
        own[revision.number] = row
        done.fresh += 1
        if revision.number > newest:
            done.touched += [own[newest], row]
        bills.append(row)
        rates |= rate
    if rates:
        insert_missing(connection, schema.rates, [(key, *rates[key]) for key in sorted(rates)])
    _put(connection, bills, {record_id: max(own) for record_id, own in held.items()})
    _keep(connection, gateway_id, early, done)
    return done


def _put(connection: Connection, rows: list[Row], newest: dict[str, int]) -> None:
    """Write rows of revisions, after those that they take the place of have said so."""
    if not rows:
        return
    bills = schema.bills
    ids = sorted({str(row[_ID]) for row in rows})
    connection.execute(
        update(bills)
        .where(bills.c.record_id == bindparam("own_id"), bills.c.revision < bindparam("newest"))
        .where(bills.c.current.is_(True))
        .values(current=False),
        [{"own_id": record_id, "newest": newest[record_id]} for record_id in ids],
    )
    whole = [(*row, row[_REVISION] == newest[str(row[_ID])]) for row in rows]
    insert_rows(connection, bills, whole)


def _row(bill: Row, revision: Revision, tiers: dict[int, str | None]) -> tuple[Row, dict[int, Row]]:
    """Return the row of a revision, and the rates that it needs by their id."""
    before: Any = bill[_COLUMN["rate_id"]]
    rate = list(revision.rate)
    rate[_SERVICE_TIER] = tiers.get(before)
    rate_id = None if tuple(rate) == NO_RATE else id_of(tuple(rate))
    row = list(bill)
    row[_REVISION] = revision.number
    row[_COLUMN["status"]] = revision.status
    row[_COLUMN["rate_id"]] = rate_id
    row[_COLUMN["cost_pico"]] = revision.cost_pico
    settled: Any = bill[_LINES]
    counts = [line for line in unpacked(settled) if line[0] == COUNT]
    row[_LINES] = packed([*revision.lines, *counts])
    return tuple(row), {} if rate_id is None else {rate_id: tuple(rate)}


def _held(connection: Connection, ids: list[str]) -> dict[str, dict[int, Row]]:
    """Return all rows of some bills by their numbers, of those that are here."""
    bills = schema.bills
    found: dict[str, dict[int, Row]] = {}
    for at in range(0, len(ids), _LOOK_UP):
        some = ids[at : at + _LOOK_UP]
        for bill in connection.execute(select(bills).where(bills.c.record_id.in_(some))):
            found.setdefault(bill.record_id, {})[bill.revision] = tuple(bill)[:_CURRENT]
    return found


def _service_tiers(connection: Connection, held: dict[str, dict[int, Row]]) -> dict[int, str | None]:
    rates = schema.rates
    ids = sorted({int(own[SETTLED_REVISION][_COLUMN["rate_id"]] or 0) for own in held.values()})
    found: dict[int, str | None] = {}
    for at in range(0, len(ids), _LOOK_UP):
        chosen = select(rates.c.id, rates.c.service_tier).where(rates.c.id.in_(ids[at : at + _LOOK_UP]))
        found.update(connection.execute(chosen).tuples().all())
    return found


def _arrived(connection: Connection, gateway_id: int, settled: Iterable[str]) -> list[Arrived]:
    """Take those that waited for bills that are here now."""
    waiting = schema.waiting
    own = waiting.c.gateway_id == gateway_id
    if connection.execute(select(waiting.c.record_id).where(own).limit(1)).first() is None:
        return []
    ids = list(settled)
    found: list[Arrived] = []
    for at in range(0, len(ids), _LOOK_UP):
        these = waiting.c.record_id.in_(ids[at : at + _LOOK_UP])
        rows = connection.execute(select(waiting).where(these).order_by(*waiting.primary_key.columns)).all()
        if rows:
            connection.execute(delete(waiting).where(these))
        found += [
            (revision_of(row.line.encode()), Origin(row.segment, row.line_end, row.line)) for row in rows
        ]
    return found


def _keep(connection: Connection, gateway_id: int, early: list[Arrived], done: Revised) -> None:
    """Let revisions wait for their bills."""
    waiting = schema.waiting
    for revision, place in early:  # there are hardly ever any
        known = connection.execute(
            select(waiting.c.line).where(
                waiting.c.record_id == revision.record_id, waiting.c.revision == revision.number
            )
        ).scalar()
        if known is not None:
            if known == place.line:
                done.again += 1
            else:
                done.clashes.append((place, revision.record_id))
            continue
        connection.execute(
            insert(waiting),
            [
                {
                    "record_id": revision.record_id,
                    "revision": revision.number,
                    "gateway_id": gateway_id,
                    "segment": place.segment,
                    "line_end": place.line_end,
                    "line": place.line,
                }
            ],
        )
        done.waiting += 1
