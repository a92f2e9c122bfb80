"""Position: how far a ledger has read one journal, as the ledger itself says it.

It is read from the database and moved only after the rows' transaction is done; what retention has removed
from the folder must stand in it, or the ledger lacks bills that are nowhere else (`lost`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sqlalchemy import Connection, select

from gateway.ledger import schema
from otel.journal.audit.reconcile import Removed


class Position:
    """See `otel.journal.cursor.Passed`."""

    def __init__(self, offsets: Mapping[str, int], seen: Mapping[str, int]) -> None:
        self._offsets = dict(offsets)
        self._seen = dict(seen)

    def __getitem__(self, segment: str) -> int:
        """Return the offset up to which `segment` is in the ledger."""
        return self._offsets.get(segment, 0)

    def seen(self, writer: str) -> int:
        """Return the number up to which the records of `writer` are in the ledger."""
        return self._seen.get(writer, 0)

    def keep_only(self, segments: set[str], writers: set[str]) -> None:
        """Forget what is no longer in the folder; the database does not."""
        self._offsets = {name: offset for name, offset in self._offsets.items() if name in segments}
        self._seen = {name: number for name, number in self._seen.items() if name in writers}

    def bytes(self) -> int:
        """Return how much of the journal has been read, of what was not forgotten."""
        return sum(self._offsets.values())

    def move(self, segment: str, offset: int, writer: str, seen: int) -> None:
        """Follow what was committed."""
        self._offsets[segment] = offset
        if seen:
            self._seen[writer] = seen


def position_of(connection: Connection, gateway_id: int) -> Position:
    """Return the position of a gateway's journal."""
    writers = schema.writers
    seen = connection.execute(
        select(writers.c.writer, writers.c.seen).where(writers.c.gateway_id == gateway_id)
    )
    return Position(passed_by(connection, gateway_id), dict(seen.tuples().all()))


def passed_by(connection: Connection, gateway_id: int) -> dict[str, int]:
    """Return how far each segment was ever read."""
    segments = schema.segments
    rows = connection.execute(
        select(segments.c.segment, segments.c.passed).where(segments.c.gateway_id == gateway_id)
    )
    return dict(rows.tuples().all())


def lost(passed: Mapping[str, int], removed: Iterable[Removed]) -> dict[str, tuple[int, int]]:
    """Return removed segments with bills that a ledger has not read, with their sizes and bills."""
    return {
        entry.segment: (entry.bytes, entry.bills)
        for entry in removed
        if entry.bills and passed.get(entry.segment, 0) < entry.bytes
    }
