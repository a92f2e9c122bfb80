"""Summary: what a ledger holds of one journal, for people and for `verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, Row, Table, func, select

from gateway.ledger import schema
from gateway.ledger.expiry import horizon_of
from gateway.ledger.migrations import revision_of
from gateway.ledger.position import passed_by, position_of
from gateway.ledger.projection import SETTLED_REVISION, id_of
from gateway.ledger.rollups import counts, sums_of_bills, sums_of_sums
from gateway.ledger.schema import HOUR_NS, total_pico
from gateway.ledger.store import Store
from gateway.ledger.tallying import tallied
from otel.journal.audit import LedgerSays
from otel.journal.files import Files
from otel.journal.reader import Reader
from otel.journal.removed import folder_id


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What a ledger holds of one journal.

    Args:
        bytes: of the whole ledger, other journals included.
        pending_bytes: of the journal, durable and not yet in the ledger.
        revisions: of bills, each a row of its own; waiting: those whose bills are not here yet.
        lost_bills: that retention had removed before they were read, as the operator has accepted.
    """

    revision: str
    gateway_id: int
    bytes: int
    bills_by_status: dict[str, int]
    cost_pico_by_status: dict[str, int]
    revisions: int
    waiting: int
    pending_bytes: int
    conflicts: int
    refused: int
    lost_bills: int


def summary_of(store: Store, journal: Path, files: Files) -> Summary:
    """Return what an open ledger holds of a journal."""
    gateway_id = id_of(folder_id(journal, files))
    position = store.run(lambda c: position_of(c, gateway_id))
    reader = Reader(journal, position, files)
    notes = schema.conflicts

    def read(c: Connection) -> Summary:
        sums = _rollups(c, gateway_id)
        kinds = c.execute(
            select(notes.c.kind, func.count()).where(notes.c.gateway_id == gateway_id).group_by(notes.c.kind)
        )
        found = dict(kinds.tuples().all())
        return Summary(
            revision=revision_of(c) or "",
            gateway_id=gateway_id,
            bytes=0,
            bills_by_status={status: bills for status, (bills, _) in sums.items()},
            cost_pico_by_status={status: cost for status, (_, cost) in sums.items()},
            revisions=_count(c, schema.bills, gateway_id, schema.bills.c.revision != SETTLED_REVISION),
            waiting=_count(c, schema.waiting, gateway_id),
            pending_bytes=reader.pending_bytes(),
            conflicts=found.get("conflict", 0),
            refused=found.get("refused", 0),
            lost_bills=_lost(c, gateway_id),
        )

    return msgspec.structs.replace(store.run(read), bytes=store.bytes())


class Holds(msgspec.Struct, frozen=True, kw_only=True):
    """What a ledger holds of one journal, read in one transaction from what it has summed.

    Args:
        bills, cost_pico: as they were settled; `current_*` with revisions, as the roll-ups have it.
        passed: how far each segment was read.
    """

    bills: int
    cost_pico: int
    current_bills: int
    current_cost_pico: int
    passed: dict[str, int]
    waiting: int
    conflicts: int
    refused: int
    lost: int


def holds(c: Connection, gateway_id: int) -> Holds:
    """Return what a ledger holds of a journal; reads sums, and no bill."""
    bills, cost_pico = tallied(c, gateway_id)
    current = _rollups(c, gateway_id).values()
    notes = schema.conflicts
    return Holds(
        bills=bills,
        cost_pico=cost_pico,
        current_bills=sum(count for count, _ in current),
        current_cost_pico=sum(cost for _, cost in current),
        passed=passed_by(c, gateway_id),
        waiting=_count(c, schema.waiting, gateway_id),
        conflicts=_count(c, notes, gateway_id, notes.c.kind == "conflict"),
        refused=_count(c, notes, gateway_id, notes.c.kind == "refused"),
        lost=_lost(c, gateway_id),
    )


def says(store: Store, journal: Path, files: Files) -> LedgerSays:
    """Return what an open ledger says of a journal, for the audit to hold against it."""
    gateway_id = id_of(folder_id(journal, files))
    bills = schema.bills

    def read(c: Connection) -> LedgerSays:
        horizon_ns = horizon_of(c, gateway_id)
        own = (bills.c.gateway_id == gateway_id) & (bills.c.ended_unix_ns >= horizon_ns)
        hours = schema.totals.c.hour
        settled = select(bills.c.record_id, bills.c.status, bills.c.cost_pico).where(
            own, bills.c.revision == SETTLED_REVISION
        )
        revised = select(bills.c.record_id, bills.c.revision, bills.c.status, bills.c.cost_pico).where(
            own, bills.c.revision != SETTLED_REVISION
        )
        early = select(schema.waiting.c.record_id, schema.waiting.c.revision).where(
            schema.waiting.c.gateway_id == gateway_id
        )
        counted = (
            select(bills.c.status, *sums_of_bills(bills)).where(own, counts(bills)).group_by(bills.c.status)
        )
        return LedgerSays(
            name=store.name,
            held={record_id: (status, cost) for record_id, status, cost in c.execute(settled)},
            revisions={
                (row.record_id, row.revision): (row.status, row.cost_pico) for row in c.execute(revised)
            },
            waiting=frozenset(c.execute(early).tuples().all()),
            passed=passed_by(c, gateway_id),
            rows={row.status: _sums(row) for row in c.execute(counted)},
            rollups=_rollups(c, gateway_id, hours >= horizon_ns // HOUR_NS),
            lost_bills=_lost(c, gateway_id),
            horizon_ns=horizon_ns,
            expired=_rollups(c, gateway_id, hours < horizon_ns // HOUR_NS),
        )

    return store.run(read)


def _rollups(c: Connection, gateway_id: int, *where: ColumnElement[bool]) -> dict[str, tuple[int, int]]:
    totals = schema.totals
    rows = c.execute(
        select(totals.c.status, *sums_of_sums(totals))
        .where(totals.c.gateway_id == gateway_id, *where)
        .group_by(totals.c.status)
        .order_by(totals.c.status)
    )
    return {row.status: _sums(row) for row in rows}


def _sums(row: Row[Any]) -> tuple[int, int]:
    return int(row.bills), total_pico(int(row.cost_milli), int(row.cost_rest_pico))


def _count(c: Connection, table: Table, gateway_id: int, *where: ColumnElement[bool]) -> int:
    found = select(func.count()).select_from(table).where(table.c.gateway_id == gateway_id, *where)
    return int(c.execute(found).scalar_one())


def _lost(c: Connection, gateway_id: int) -> int:
    segments = schema.segments
    found = select(func.sum(segments.c.lost_bills)).where(segments.c.gateway_id == gateway_id)
    return int(c.execute(found).scalar() or 0)
