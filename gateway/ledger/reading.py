"""Reading: a journal as batches of rows, in order, here or by other processes for the sake of speed.

Another process reads a whole segment as if all before it had been passed up to the number that its header
names. Where that turns out not to be so, because a failed sync had records written again, the segment is
read once more, here; what is written is therefore the same, whoever read it.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Final

import msgspec

from gateway.ledger.position import Position
from gateway.ledger.projection import Projector, Rows
from gateway.ledger.sharding import Shard
from otel.journal.files import Files
from otel.journal.lines import LINE_BYTES_MAX, Damage, kind_of, lines_in, number_of
from otel.journal.reader import Batch, Reader, Stretch

LINES_MAX: Final = 4_000
"""Bills in one batch, and so in one transaction."""
SHARD_LINES: Final = 250
"""Bills that are put into a shard at once: few enough for the processor's cache."""
BYTES_MAX: Final = 32 * 1024 * 1024
AHEAD: Final = 1
"""Segments that wait to be written for each process, some ten MiB each, besides those in work."""

Read = Iterator[tuple[Batch, Rows]]


class _Part(msgspec.Struct, frozen=True):
    """A batch as another process hands it over, without its lines: `_Lines` finds them if they are wanted."""

    end: int
    seen: int
    reaches: tuple[tuple[int, int], ...]
    rows: Rows


class _Segment(msgspec.Struct, frozen=True):
    """A segment as another process read it, if all up to the number `passed` had been passed before."""

    passed: int
    parts: list[_Part]


_packed: Final = msgspec.msgpack.Encoder().encode
_segment: Final = msgspec.msgpack.Decoder(_Segment).decode


class Piece(msgspec.Struct, frozen=True):
    """Batches that belong together, and the way to get them without a shard if theirs is spoiled."""

    batches: Read
    again: Callable[[], Read]


class Shards(msgspec.Struct, frozen=True):
    """Where shards are put, and how the table in them is defined."""

    folder: Path
    table: str


@contextmanager
def projected(
    directory: Path,
    position: Position,
    gateway_id: int,
    files: Files,
    processes: int,
    shards: Shards | None = None,
) -> Iterator[Iterator[Piece]]:
    """Return all that is new behind a position, which the caller moves after each batch.

    Args:
        processes: how many read and project beside this one; with 1 this one does it all.
        shards: None where the ledger takes none.
    """
    reader = Reader(directory, position, files)
    projector = Projector(gateway_id)
    if processes <= 1:
        batches = reader.batches(LINES_MAX, BYTES_MAX)
        yield iter([Piece(_here(batches, projector), lambda: iter(()))])
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context(_start()), _begin) as pool:
        yield _there(
            directory, reader, position, projector, gateway_id, pool, processes * (AHEAD + 1), shards
        )


def _start() -> str:
    """Return how other processes are begun: by a copy of this one, which has all code in it already.

    A copy has only one thread, so there must be no other one that could hold a lock. It touches none of the
    connections that it inherits, and leaves without closing them.
    """
    return "fork" if threading.active_count() == 1 else "spawn"


def _begin() -> None:
    """Prepare another process: its rows are in no cycle, and it must not outlive the one that began it.

    A copy has the locks of that one, and would hold them for ever.
    """
    gc.disable()
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is not the first one
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _here(batches: Iterator[Batch], projector: Projector) -> Read:
    for batch in batches:
        rows = Rows()
        projector.add(rows, batch.spans)
        yield batch, rows


def _there(
    directory: Path,
    reader: Reader,
    position: Position,
    projector: Projector,
    gateway_id: int,
    pool: ProcessPoolExecutor,
    waiting_max: int,
    shards: Shards | None,
) -> Iterator[Piece]:
    def again(stretch: Stretch) -> Read:
        return _here(reader.batches_of(stretch, LINES_MAX, BYTES_MAX), projector)

    stretches = deque(reader.stretches())
    waiting: deque[tuple[Stretch, Future[bytes]]] = deque()
    while stretches or waiting:  # each turn hands a segment out, or takes one back
        if stretches and len(waiting) < waiting_max:
            stretch = stretches.popleft()
            waiting.append((stretch, pool.submit(_read, directory, stretch, gateway_id, shards)))
            continue
        stretch, future = waiting.popleft()
        segment = _segment(future.result())
        seen = position.seen(stretch.writer)
        if segment.passed != seen and not (seen == 0 and stretch.first):
            yield Piece(again(stretch), lambda: iter(()))
        else:
            yield Piece(_handed(directory, stretch, segment), partial(again, stretch))
        for part in segment.parts:
            if part.rows.shard is not None:
                Path(part.rows.shard[0]).unlink()


def _handed(directory: Path, stretch: Stretch, segment: _Segment) -> Read:
    for part in segment.parts:
        batch = Batch(
            segment=stretch.name,
            writer=stretch.writer,
            spans=_Lines(directory, stretch, part.end),  # type: ignore[arg-type]  # read if it is asked for
            reaches=part.reaches,
            end=part.end,
            seen=part.seen,
        )
        yield batch, part.rows


def _read(directory: Path, stretch: Stretch, gateway_id: int, shards: Shards | None) -> bytes:
    """Read and project a whole segment, in another process."""
    passed = _passed_before(directory, stretch)
    if shards is not None:
        part = _sharded(directory, stretch, gateway_id, shards)
        if part is not None:
            return _packed(_Segment(passed, [part]))
    parts = []
    for batch, rows in _here(_alone(directory, stretch), Projector(gateway_id)):
        parts.append(_Part(batch.end, batch.seen, batch.reaches, rows))
    return _packed(_Segment(passed, parts))


def _sharded(directory: Path, stretch: Stretch, gateway_id: int, shards: Shards) -> _Part | None:
    """Put the rows of a segment into a shard; None where not all are bills, or one of them comes twice."""
    path = shards.folder / stretch.name.replace("/", "_")
    projector, rows = Projector(gateway_id), Rows()
    shard = Shard(path, shards.table)
    found: _Part | None = None
    try:
        for batch in _alone(directory, stretch, SHARD_LINES):
            projector.add(rows, batch.spans)
            if rows.refused or rows.revisions:
                found = None
                break  # who writes them looks their lines up, batch by batch
            shard.take(rows)
            rows.shard = str(path), shard.bills
            found = _Part(batch.end, batch.seen, (), rows)
    except sqlite3.IntegrityError:
        found = None
    finally:
        shard.close()
    if found is None:
        path.unlink()
    return found


def _alone(directory: Path, stretch: Stretch, lines_max: int = LINES_MAX) -> Iterator[Batch]:
    first = msgspec.structs.replace(stretch, first=True)
    position = Position({}, {})
    yield from Reader(directory, position).batches_of(first, lines_max, BYTES_MAX)


def _passed_before(directory: Path, stretch: Stretch) -> int:
    """Return the number before the first one of a segment, as its header says it; -1 where it says none."""
    data = Files().read(directory / stretch.name, 0, LINE_BYTES_MAX)
    found = next(lines_in(data), None)
    if found is None or isinstance(found, Damage) or kind_of(found[1]) != "H":
        return -1
    return number_of(found[1]) - 1


class _Lines(Sequence[bytes]):
    """The lines of one batch of a segment, read again: they are wanted where one of them gives no row."""

    def __init__(self, directory: Path, stretch: Stretch, end: int) -> None:
        self._directory, self._stretch, self._end = directory, stretch, end

    def _lines(self) -> tuple[bytes, ...]:
        batches = _alone(self._directory, self._stretch)
        return next(batch.spans for batch in batches if batch.end == self._end)

    def __getitem__(self, place: int) -> bytes:  # type: ignore[override]  # no slices
        return self._lines()[place]

    def __len__(self) -> int:
        return len(self._lines())
