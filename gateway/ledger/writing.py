"""Writing: rows, sums and cursor, in the transaction of the caller; a bill counts once, whatever comes again.

    new id                      the rows, and their sums
    known id, the same row      nothing: it was delivered twice
    known id, another row       a line in `conflicts`; the first one counts
    a revision of a bill        a further row, and the bill's sums made again: `gateway.ledger.revising`

The cursor moves only from where it was read: of two that follow one journal the slower one is told so
(`Overtaken`), before any of its rows can stand.
"""

from __future__ import annotations

from typing import Final

import asyncpg
import msgspec
from sqlalchemy import Connection, delete, insert, literal, select, update
from sqlalchemy.exc import IntegrityError

from gateway.ledger import schema
from gateway.ledger.expiry import with_rows
from gateway.ledger.feed import append, begin_again, number_again, number_more
from gateway.ledger.inserting import insert_missing, insert_rows
from gateway.ledger.projection import SETTLED_REVISION, Revision, Row, Rows, id_of, tallies_of
from gateway.ledger.revising import Origin, revise
from gateway.ledger.rollups import fold, fold_all, fold_hours, sum_again
from gateway.ledger.sharding import BILLS, ids_in, take_over
from gateway.ledger.tallying import Remembered, add_tallies
from gateway.ledger.upserting import upsert_for

_LOOK_UP: Final = 500
"""Ids in one statement: SQLite takes 32,766 parameters."""
_INDEXED_LATER: Final = (schema.bills, schema.hourly)
_GATEWAY: Final = list(schema.bills.c.keys()).index("gateway_id")
_CURRENT: Final = list(schema.bills.c.keys()).index("current")


_Inserted = tuple[list[Row], list[int], list[tuple[int, str]]]
"""Bills that are new, their places in what was projected, and for each clash its place and id."""


class Overtaken(Exception):
    """Somebody else moved this gateway's cursor; read it again."""


class Stretch(msgspec.Struct, frozen=True, kw_only=True):
    """Which part of the journal some rows come from.

    Args:
        start, end: offsets in the segment; `start` is where the cursor stands.
        seen: number of the writer's records passed without a gap at `end`.
        spans: the lines that were projected, and where each one ends.
    """

    segment: str
    writer: str
    start: int
    end: int
    seen: int
    spans: tuple[bytes, ...]
    ends: tuple[int, ...]


class Written(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the lines of a stretch; a revision that waits for its bill is in none of the counts."""

    bills: int
    revisions: int
    again: int
    conflicts: int
    refused: int


def write(
    connection: Connection,
    gateway_id: int,
    rows: Rows,
    stretch: Stretch,
    *,
    now_unix_ns: int,
    sums: bool = True,
    known: set[int] | None = None,
    remembered: Remembered | None = None,
) -> Written:
    """Write rows and move the cursor.

    Args:
        sums: keep the roll-ups and the feed; without it `refill` must follow. Of a shard the sums by hour and
            the feed are kept anyway.
        known: ids of what many bills share that are surely there; the caller adds those of `rows` to it once
            the transaction is done.
        remembered: tallies that surely stand there, and then those of `rows`, too.

    Raises:
        Overtaken, Spoiled: nothing must be kept of this transaction.
    """
    _move(connection, gateway_id, stretch)
    for table, shared in (
        (schema.accounts, rows.accounts),
        (schema.routes, rows.routes),
        (schema.rates, rows.rates),
    ):
        # In one order, or two gateways could wait for each other.
        fresh = [(key, *shared[key]) for key in sorted(shared) if known is None or key not in known]
        if fresh:
            insert_missing(connection, table, fresh)
    if rows.shard is not None:
        assert not sums  # a shard is for a rebuild
        take_over(connection)
        fold_hours(connection, BILLS)  # now, while others read; all else of the sums follows from them
        number_more(connection, gateway_id, BILLS)
    fresh_bills, places, clashes = _insert_bills(connection, rows)
    if sums and fresh_bills:
        fold(connection, fresh_bills)
    whole = fresh_bills is rows.bills
    tallies = rows.tallies if whole else tallies_of([stretch.spans[place] for place in places])
    add_tallies(connection, gateway_id, stretch.writer, tallies, {} if remembered is None else remembered)

    def origin(revision: Revision) -> Origin:
        return _origin(stretch, revision.place)

    settled = ids_in(connection) if rows.shard is not None else (str(bill[0]) for bill in fresh_bills)
    revised = revise(connection, gateway_id, settled, rows.revisions, origin)
    if sums and revised.touched:
        sum_again(connection, with_rows(connection, revised.touched))
    if sums:
        append(connection, gateway_id, fresh_bills, revised.touched)
    _note(connection, gateway_id, stretch, clashes, revised.clashes, rows.refused, now_unix_ns)
    return Written(
        bills=len(fresh_bills) if rows.shard is None else rows.shard[1],
        revisions=revised.fresh,
        again=len(rows.bills) - len(fresh_bills) - len(clashes) + revised.again,
        conflicts=len(clashes) + len(revised.clashes),
        refused=len(rows.refused),
    )


def enrol(connection: Connection, folder: str) -> int:
    """Return the id of a journal folder's gateway, which is made if it is new."""
    gateway_id = id_of(folder)
    insert_missing(connection, schema.gateways, [(gateway_id, folder, False)])
    return gateway_id


def defer_sums(connection: Connection, gateway_id: int) -> None:
    """Note that the roll-ups of a gateway have to be made again, by `refill`.

    An empty table loses its indexes until then: that many rows go in faster without them.
    """
    _due(connection, gateway_id, due=True)
    for table in _INDEXED_LATER:
        if connection.execute(select(literal(1)).select_from(table).limit(1)).first() is None:
            for index in table.indexes:
                index.drop(connection, checkfirst=True)


def refill(connection: Connection, gateway_id: int, *, begun: bool = False) -> None:
    """Make the roll-ups and the feed of a gateway again, from its bills.

    Args:
        begun: all bills came in shards, and none was revised: the sums by hour and the feed are right.
    """
    fold_all(connection, gateway_id, hours=not begun)
    for table in _INDEXED_LATER:
        for index in table.indexes:
            index.create(connection, checkfirst=True)
    (begin_again if begun else number_again)(connection, gateway_id)
    _due(connection, gateway_id, due=False)


def sums_due(connection: Connection, gateway_id: int) -> bool:
    """Say whether the roll-ups of a gateway have yet to be made."""
    column = schema.gateways.c.rollups_due
    return bool(connection.execute(select(column).where(schema.gateways.c.id == gateway_id)).scalar())


def forget(connection: Connection, gateway_id: int) -> None:
    """Delete all that came from a gateway's journal; what bills share stays."""
    for table in (
        schema.bills,
        *schema.ROLLUPS,
        schema.segments,
        schema.writers,
        schema.conflicts,
        schema.waiting,
        schema.horizons,
        schema.tallies,
        schema.feed,
        schema.feeds,
    ):
        connection.execute(delete(table).where(table.c.gateway_id == gateway_id))


def accept_loss(connection: Connection, gateway_id: int, lost: dict[str, tuple[int, int]]) -> None:
    """Note that bills of removed segments will never be in this ledger.

    Args:
        lost: by segment its size in bytes and its bills.
    """
    for segment, (size, count) in lost.items():
        row = {"gateway_id": gateway_id, "segment": segment, "passed": size, "lost_bills": count}
        connection.execute(
            upsert_for(connection, schema.segments, {"passed": size, "lost_bills": count}), [row]
        )


def _due(connection: Connection, gateway_id: int, *, due: bool) -> None:
    connection.execute(
        update(schema.gateways).where(schema.gateways.c.id == gateway_id).values(rollups_due=due)
    )


def _move(connection: Connection, gateway_id: int, stretch: Stretch) -> None:
    segments, writers = schema.segments, schema.writers
    moved = connection.execute(
        update(segments)
        .where(
            segments.c.gateway_id == gateway_id,
            segments.c.segment == stretch.segment,
            segments.c.passed == stretch.start,
        )
        .values(passed=stretch.end)
    )
    if moved.rowcount != 1:
        if stretch.start:
            raise Overtaken(stretch.segment)
        row = {"gateway_id": gateway_id, "segment": stretch.segment, "passed": stretch.end, "lost_bills": 0}
        try:
            connection.execute(insert(segments), [row])
        except IntegrityError as fault:
            raise Overtaken(stretch.segment) from fault
    row = {"gateway_id": gateway_id, "writer": stretch.writer, "seen": stretch.seen}
    connection.execute(upsert_for(connection, writers, {"seen": stretch.seen}), [row])


def _insert_bills(connection: Connection, rows: Rows) -> _Inserted:
    """Insert what is new."""
    if not rows.bills:
        return rows.bills, [], []
    try:
        with connection.begin_nested():
            insert_rows(connection, schema.bills, rows.bills)
    except (IntegrityError, asyncpg.UniqueViolationError):
        return _insert_new(connection, rows)
    return rows.bills, rows.places, []


def _insert_new(connection: Connection, rows: Rows) -> _Inserted:
    """Insert rows of which some are known already."""
    held = _held(connection, [str(bill[0]) for bill in rows.bills])
    fresh: list[Row] = []
    places: list[int] = []
    clashes: list[tuple[int, str]] = []
    for place, bill in zip(rows.places, rows.bills, strict=True):
        record_id = str(bill[0])
        before = held.setdefault(record_id, bill)
        if before is bill:
            fresh.append(bill)
            places.append(place)
        elif _content(bill) != _content(before):
            clashes.append((place, record_id))
    insert_rows(connection, schema.bills, fresh)
    return fresh, places, clashes


def _content(bill: Row) -> Row:
    """Return what two deliveries of a bill must agree in.

    All but whose copy of the journal it came from, and whether it was revised since.
    """
    return (*bill[:_GATEWAY], *bill[_GATEWAY + 1 : _CURRENT])


def _held(connection: Connection, ids: list[str]) -> dict[str, Row]:
    """Return the rows, as first settled, of those ids that are there."""
    bills = schema.bills
    found: dict[str, Row] = {}
    for at in range(0, len(ids), _LOOK_UP):
        some = ids[at : at + _LOOK_UP]
        first = bills.c.revision == SETTLED_REVISION
        for bill in connection.execute(select(bills).where(bills.c.record_id.in_(some), first)):
            found[bill[0]] = tuple(bill)
    return found


def _origin(stretch: Stretch, place: int) -> Origin:
    return Origin(stretch.segment, stretch.ends[place], stretch.spans[place].decode().replace("\0", ""))


def _note(
    connection: Connection,
    gateway_id: int,
    stretch: Stretch,
    clashes: list[tuple[int, str]],
    revisions: list[tuple[Origin, str]],
    refused: list[tuple[int, str]],
    now_unix_ns: int,
) -> None:
    different = "another bill with this id came first, and counts"
    notes: list[tuple[str, Origin, str | None, str]] = [
        ("conflict", _origin(stretch, place), record_id, different) for place, record_id in clashes
    ]
    numbered = "another revision of this bill with this number came first, and counts"
    notes += [("conflict", origin, record_id, numbered) for origin, record_id in revisions]
    notes += [("refused", _origin(stretch, place), None, why) for place, why in refused]
    if notes:
        connection.execute(
            insert(schema.conflicts),
            [
                {
                    "gateway_id": gateway_id,
                    "segment": origin.segment,
                    "line_end": origin.line_end,
                    "kind": kind,
                    "record_id": record_id,
                    "why": why,
                    "line": origin.line,
                    "noted_unix_ns": now_unix_ns,
                }
                for kind, origin, record_id, why in notes
            ],
        )
