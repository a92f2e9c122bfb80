"""Batches: what was read at once is written at once, and the position follows what was committed."""

from __future__ import annotations

from pathlib import Path

from gateway.ledger.position import Position
from gateway.ledger.projection import KNOWN_MAX, Rows
from gateway.ledger.store import Store
from gateway.ledger.tallying import Remembered
from gateway.ledger.writing import Stretch, Written, write
from otel.journal.reader import Batch


def write_batch(
    store: Store,
    gateway_id: int,
    position: Position,
    batch: Batch,
    rows: Rows,
    known: set[int],
    remembered: Remembered,
    now_unix_ns: int,
    *,
    sums: bool = True,
) -> Written:
    """Write what a batch came to, and follow with the position.

    Raises:
        Overtaken, LedgerUnavailable, LedgerBroken: the position is to be read again.
        Spoiled: nothing was done; rows without a shard are wanted.
    """
    stretch = Stretch(
        segment=batch.segment,
        writer=batch.writer,
        start=position[batch.segment],
        end=batch.end,
        seen=batch.seen,
        spans=batch.spans,
        ends=tuple(end for end, _ in batch.reaches),
    )
    written = store.run(
        lambda c: write(
            c,
            gateway_id,
            rows,
            stretch,
            now_unix_ns=now_unix_ns,
            sums=sums,
            known=known,
            remembered=remembered,
        ),
        writes=True,
        beside=None if rows.shard is None else Path(rows.shard[0]),
    )
    if len(known) > KNOWN_MAX:
        known.clear()
    known.update(rows.accounts, rows.routes, rows.rates)
    position.move(batch.segment, batch.end, batch.writer, batch.seen)
    return written
