"""Rebuilding: the ledger made again from the journal, in large steps; a crash in the middle loses nothing.

What retention has removed from the journal is in the ledger alone, so a rebuild that would lose it is refused
unless the operator accepts exactly that.
"""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from gateway.ledger.batches import write_batch
from gateway.ledger.position import Position, lost
from gateway.ledger.reading import Read, Shards, projected
from gateway.ledger.sharding import Spoiled, definition
from gateway.ledger.store import Store
from gateway.ledger.tallying import Remembered
from gateway.ledger.writing import accept_loss, defer_sums, enrol, forget, refill
from otel.journal.files import Files
from otel.journal.removed import folder_id, removed_from


class WouldLose(Exception):
    """Bills are in no journal any more."""

    def __init__(self, bills: int, segments: int) -> None:
        super().__init__(
            f"{bills} bills of {segments} segments are not in the journal any more: retention removed them. "
            "A rebuilt ledger lacks them; look for a copy of the ledger, or say --accept-loss"
        )


class Rebuilt(msgspec.Struct, frozen=True, kw_only=True):
    """What a rebuild came to.

    Args:
        lost: bills that retention had removed.
        seconds: for all of it, the sums included.
    """

    bills: int
    revisions: int
    conflicts: int
    refused: int
    lost: int
    seconds: float


def rebuild(
    directory: Path,
    store: Store,
    *,
    accept: bool = False,
    processes: int = 1,
    files: Files | None = None,
    now_ns: Callable[[], int] = time.time_ns,
    progress: Callable[[int], None] | None = None,
) -> Rebuilt:
    """Make an open ledger's part of this journal again; nobody else may follow it meanwhile.

    Args:
        accept: lose what retention has removed.
        processes: how many project lines beside this one, which reads and writes.
        progress: told of the bytes of the journal that are done, now and then.

    Raises:
        WouldLose: nothing was changed.
        UnreadableManifest: it cannot be known what would be lost; nothing was changed.
        LedgerUnavailable, LedgerBroken, Overtaken, OSError: it is not done; the follower goes on with it.
    """
    files = files or Files()
    began = time.monotonic()
    gone = lost({}, removed_from(directory, files))
    bills_gone = sum(bills for _, bills in gone.values())
    if gone and not accept:
        raise WouldLose(bills_gone, len(gone))
    folder = folder_id(directory, files)
    gateway_id = store.run(lambda c: enrol(c, folder), writes=True)
    store.run(lambda c: forget(c, gateway_id), writes=True)
    if gone:
        store.run(lambda c: accept_loss(c, gateway_id, gone), writes=True)
    store.run(lambda c: defer_sums(c, gateway_id), writes=True)
    position = Position({segment: size for segment, (size, _) in gone.items()}, {})
    done = dict.fromkeys(("bills", "revisions", "conflicts", "refused"), 0)
    known: set[int] = set()
    apart = 0
    """Bills that came without a shard, and revisions: the sums by hour and the feed lack them."""
    remembered: Remembered = {}

    def put(batches: Read) -> None:
        nonlocal apart
        for batch, rows in batches:
            written = write_batch(
                store, gateway_id, position, batch, rows, known, remembered, now_ns(), sums=False
            )
            apart += written.revisions + (0 if rows.shard else written.bills)
            for name in done:
                done[name] += getattr(written, name)
            if progress is not None:
                progress(position.bytes())

    with (
        _no_collections(),
        store.kept_open(),
        _workshop(store if processes > 1 else None) as shards,
        projected(directory, position, gateway_id, files, processes, shards) as read,
    ):
        for piece in read:
            try:
                put(piece.batches)
            except Spoiled:
                remembered.clear()
                put(piece.again())
        store.run(lambda c: refill(c, gateway_id, begun=apart == 0), writes=True)
    return Rebuilt(
        **done,
        lost=bills_gone,
        seconds=time.monotonic() - began,
    )


@contextmanager
def _workshop(store: Store | None) -> Iterator[Shards | None]:
    """Make the folder for shards, and delete it with what a rebuild that was killed may have left in it."""
    folder = None if store is None else store.workshop
    if store is None or folder is None:
        yield None
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield Shards(folder, store.run(definition))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _no_collections() -> Iterator[None]:
    """Spare the garbage collector the millions of rows, none of which is in a cycle."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
