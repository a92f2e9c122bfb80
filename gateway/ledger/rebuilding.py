"""Rebuilding: the ledger made again from the journal, in large steps; a crash in the middle loses nothing.

What retention has removed from the journal is in the ledger alone, so a rebuild that would lose it is refused
unless the operator accepts exactly that.
"""

from __future__ import annotations

import gc
import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from gateway.ledger.follower import write_batch
from gateway.ledger.position import Position, lost
from gateway.ledger.projection import Projector, Rows
from gateway.ledger.store import Store
from gateway.ledger.writing import accept_loss, defer_sums, enrol, forget, refill
from otel.journal.files import Files
from otel.journal.reader import Batch, Reader
from otel.journal.removed import folder_id, removed_from

LINES_MAX: Final = 4_000
"""Bills in one transaction."""
BYTES_MAX: Final = 32 * 1024 * 1024
BATCHES_AHEAD: Final = 2
"""Batches that wait to be written, for each process that projects."""

_packed: Final = msgspec.msgpack.Encoder().encode
_rows: Final = msgspec.msgpack.Decoder(Rows).decode


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
    progress: Callable[[int, int], None] | None = None,
) -> Rebuilt:
    """Make an open ledger's part of this journal again; nobody else may follow it meanwhile.

    Args:
        accept: lose what retention has removed.
        processes: how many project lines beside this one, which reads and writes.
        progress: told of (bytes done, bytes in all) now and then.

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
    passed = {segment: size for segment, (size, _) in gone.items()}
    position = Position(passed, {})
    bills = conflicts = refused = 0
    known: set[int] = set()
    ahead = _Ahead(Reader(directory, read := Position(passed, {}), files), read, progress)
    with _no_collections(), _projecting(gateway_id, processes) as project:
        for batch, rows in project(ahead.batches()):
            written = write_batch(store, gateway_id, position, batch, rows, known, now_ns(), sums=False)
            bills += written.bills
            conflicts += written.conflicts
            refused += written.refused
        store.run(lambda c: refill(c, gateway_id), writes=True)
    return Rebuilt(
        bills=bills,
        conflicts=conflicts,
        refused=refused,
        lost=bills_gone,
        seconds=time.monotonic() - began,
    )


class _Ahead:
    """Reads on before what was read is written: a position of its own says how far."""

    def __init__(self, reader: Reader, read: Position, progress: Callable[[int, int], None] | None) -> None:
        self._reader = reader
        self._read = read
        self._progress = progress

    def batches(self) -> Iterator[Batch]:
        """Yield all that is there."""
        total = 0
        for batch in self._reader.batches(LINES_MAX, BYTES_MAX):
            self._read.move(batch.segment, batch.end, batch.writer, batch.seen)
            if self._progress is not None:
                left = self._reader.pending_bytes()
                total = max(total, left)
                self._progress(total - left, total)
            yield batch


Project = Callable[[Iterable[Batch]], Iterator[tuple[Batch, Rows]]]


@contextmanager
def _projecting(gateway_id: int, processes: int) -> Iterator[Project]:
    """Return a way to project batches, in their order: here, or in other processes."""
    if processes <= 1:
        projector = Projector(gateway_id)

        def here(batches: Iterable[Batch]) -> Iterator[tuple[Batch, Rows]]:
            for batch in batches:
                rows = Rows()
                projector.add(rows, batch.spans)
                yield batch, rows

        yield here
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, gc.disable) as pool:

        def there(batches: Iterable[Batch]) -> Iterator[tuple[Batch, Rows]]:
            waiting: deque[tuple[Batch, Future[bytes]]] = deque()
            for batch in batches:
                waiting.append((batch, pool.submit(_project, gateway_id, batch.spans)))
                if len(waiting) > processes * BATCHES_AHEAD:
                    done, future = waiting.popleft()
                    yield done, _rows(future.result())
            for done, future in waiting:
                yield done, _rows(future.result())

        yield there


def _project(gateway_id: int, spans: tuple[bytes, ...]) -> bytes:
    rows = Rows()
    Projector(gateway_id).add(rows, spans)
    return _packed(rows)


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
