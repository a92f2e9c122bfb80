"""Lag: up to when an answer of the ledger holds, so that nobody takes an early number for a final one."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
from sqlalchemy import Connection, func, select

from gateway.ledger import schema
from gateway.ledger.expiry import horizon_of
from gateway.ledger.instants import instant
from gateway.ledger.position import position_of
from gateway.ledger.projection import id_of
from otel.journal.files import Files
from otel.journal.reader import Reader
from otel.journal.removed import NAME, folder_id


class AsOf(msgspec.Struct, frozen=True, kw_only=True):
    """How far the ledger is.

    Args:
        time: when it was asked.
        newest_bill: when the newest bill in it was settled; None while it is empty.
        pending_bytes: of this gateway's journal, durable and not yet in the ledger; None where there is no
            journal to look at.
        complete: nothing is pending. Of other gateways on the same ledger nothing is said.
        rows_since: older bills are in totals only, for their rows went by `ledger.retention_days`; None where
            none ever went.
    """

    time: str
    newest_bill: str | None
    pending_bytes: int | None
    complete: bool
    rows_since: str | None


def as_of(connection: Connection, journal: Path, files: Files) -> AsOf:
    """Return how far an open ledger is behind a journal."""
    pending = _pending(connection, journal, files)
    newest = connection.execute(select(func.max(schema.bills.c.ended_unix_ns))).scalar()
    return AsOf(
        time=instant(time.time_ns()),
        newest_bill=None if newest is None else instant(newest),
        pending_bytes=pending,
        complete=pending == 0,
        rows_since=instant(horizon_ns) if (horizon_ns := horizon_of(connection)) else None,
    )


def _pending(connection: Connection, journal: Path, files: Files) -> int | None:
    if not (journal / NAME).exists():
        return None  # asking must not begin a journal
    try:
        gateway_id = id_of(folder_id(journal, files))
        # The position first: what is written meanwhile is pending, and never the other way round.
        return Reader(journal, position_of(connection, gateway_id), files).pending_bytes()
    except (OSError, ValueError):
        return None
