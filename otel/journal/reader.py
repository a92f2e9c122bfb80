"""Reader: what is durable and not yet delivered, in batches, oldest segment first.

Of the segment being written only what the writer declares durable is read; every other segment is sealed
and read to its end. Damage is reported once, with its place, and never stands in the way of later lines.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from otel.journal.cursor import Cursor
from otel.journal.lines import LINE_BYTES_MAX, Damage, lines_in, spans_of
from otel.journal.segments import segments_in
from otel.journal.writer import Position

READ_BYTES: Final = 2 * 1024 * 1024
"""How much of a segment is read at once; more than one line can be long."""
assert READ_BYTES > LINE_BYTES_MAX


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """Bills of one segment, ready to be sent.

    Args:
        segment: name relative to the journal's folder.
        spans: the inside of each line's `resourceSpans`.
        end: offset after the last line that this batch covers, bills or not.
        damage: stretches before `end` that are no lines.
    """

    segment: str
    spans: tuple[bytes, ...]
    end: int
    damage: tuple[Damage, ...] = ()


class Reader:
    """Reads the journal behind a cursor.

    Args:
        directory: of the journal.
        live: where the running writer has got to, None if none runs.
    """

    def __init__(self, directory: Path, cursor: Cursor, live: Callable[[], Position | None]) -> None:
        self._directory = directory
        self._cursor = cursor
        self._live = live
        self._synced: set[str] = set()

    def batches(self, lines_max: int, bytes_max: int) -> Iterator[Batch]:
        """Yield what is new, at most `lines_max` bills and about `bytes_max` bytes in each batch.

        The iterator ends when all that is durable has been yielded. Move the cursor before asking for more.
        """
        live = self._live()
        paths = segments_in(self._directory)
        self._cursor.keep_only({self._name(path) for path in paths})
        for path in paths:
            name = self._name(path)
            limit = self._limit(path, live)
            start = self._cursor[name]
            while start < limit:  # each batch covers at least one line or ends the segment
                batch = _read(path, name, start, limit, lines_max, bytes_max)
                if batch is None:
                    break
                yield batch
                start = batch.end

    def pending_bytes(self) -> int:
        """Return how many durable bytes are behind no cursor yet."""
        live = self._live()
        paths = segments_in(self._directory)
        return sum(max(0, self._limit(path, live) - self._cursor[self._name(path)]) for path in paths)

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self._directory))

    def _limit(self, path: Path, live: Position | None) -> int:
        if live is not None and path == live.segment:
            return live.offset
        if live is not None and _same_writer(path, live.segment) and path.name > live.segment.name:
            return 0  # started after the durable position was taken
        name = self._name(path)
        if name not in self._synced:
            # Sealed by a process that may have died before its last sync: what is delivered must not be lost.
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
            self._synced.add(name)
        return path.stat().st_size


def _same_writer(path: Path, other: Path) -> bool:
    return path.name.rsplit("-", 1)[0] == other.name.rsplit("-", 1)[0]


def _read(path: Path, name: str, start: int, limit: int, lines_max: int, bytes_max: int) -> Batch | None:
    with path.open("rb") as file:
        file.seek(start)
        data = file.read(min(READ_BYTES, limit - start))
    at_end = start + len(data) >= limit
    spans: list[bytes] = []
    damage: list[Damage] = []
    size = 0
    end = start
    for found in lines_in(data, start):
        if isinstance(found, Damage):
            if found.reason == "torn" and not at_end and start + len(data) - found.offset < LINE_BYTES_MAX:
                break  # the rest of the line is in the next read
            damage.append(found)
            end = found.offset + found.length
            continue
        offset, line = found
        inner = spans_of(line)
        if inner is not None:
            if spans and (len(spans) >= lines_max or size + len(inner) > bytes_max):
                break
            spans.append(inner)
            size += len(inner)
        end = offset + len(line) + 1
    if end == start:
        return None
    return Batch(segment=name, spans=tuple(spans), end=end, damage=tuple(damage))
