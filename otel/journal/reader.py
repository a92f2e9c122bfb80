"""Reader: what is durable and not yet delivered, in batches, oldest segment first.

Of a living writer's segments only what its mark declares durable is read; a dead writer's are made durable
and read to their ends. A record that was written again after a failed sync is read once. Damage is reported
once, with its place, and never stands in the way of later lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from otel.journal.cursor import Passed
from otel.journal.files import Files
from otel.journal.lines import LINE_BYTES_MAX, Damage, kind_of, lines_in, number_of, spans_of
from otel.journal.segments import SEGMENTS, SegmentName, in_order, is_sealed, mark_path, readable

READ_BYTES: Final = 2 * 1024 * 1024
"""How much of a segment is read at once; more than one line can be long."""
assert READ_BYTES > LINE_BYTES_MAX


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """Bills of one segment, ready to be sent.

    Args:
        segment: name relative to the journal's folder.
        writer: whose segment it is.
        spans: the inside of each line's `resourceSpans`.
        reaches: for each of them what `end` and `seen` are once it and all before it are passed.
        end: offset after the last line that this batch covers, bills or not.
        seen: number up to which the writer's records have then been passed without a gap.
        damage: stretches before `end` that are no lines.
    """

    segment: str
    writer: str
    spans: tuple[bytes, ...]
    reaches: tuple[tuple[int, int], ...]
    end: int
    seen: int
    damage: tuple[Damage, ...] = ()


class Stretch(msgspec.Struct, frozen=True, kw_only=True):
    """A segment, and how far it may be read now.

    Args:
        limit: offset in bytes.
        sealed: nothing will come behind `limit`.
        first: it is the oldest of its writer.
    """

    name: str
    writer: str
    limit: int
    sealed: bool
    first: bool


class Reader:
    """Reads the journal behind a cursor; all methods belong to one thread.

    Args:
        directory: of the journal.
    """

    def __init__(self, directory: Path, cursor: Passed, files: Files | None = None) -> None:
        self._directory = directory
        self._cursor = cursor
        self._files = files or Files()
        self._names: list[str] = []
        self._segments: list[tuple[str, SegmentName]] = []
        self._final: dict[str, int] = {}
        self._safe: set[str] = set()
        self._ahead: list[Stretch] | None = None

    def batches(
        self, lines_max: int, bytes_max: int, wanted: Callable[[str], bool] = lambda _: True
    ) -> Iterator[Batch]:
        """Yield what is new, at most `lines_max` bills and about `bytes_max` bytes in each batch.

        Revisions come like bills. Only segments of `wanted` writers are read.

        The iterator ends when all that was durable as it began has been yielded. Move the cursor before
        asking for more.
        """
        self._ahead = self._look()
        for stretch in self._ahead:
            if not wanted(stretch.writer):
                continue
            yield from self.batches_of(stretch, lines_max, bytes_max)

    def stretches(self) -> tuple[Stretch, ...]:
        """Return what is new, in the order in which `batches` would read it."""
        self._ahead = self._look()
        return tuple(self._ahead)

    def pending_bytes(self) -> int:
        """Return how many bytes of what the newest `batches` found the cursor has not passed yet."""
        ahead = self._look() if self._ahead is None else self._ahead
        return sum(max(0, stretch.limit - self._cursor[stretch.name]) for stretch in ahead)

    def _look(self) -> list[Stretch]:
        """Return the segments that the cursor has not passed, and how far they may be read."""
        names = self._files.names(self._directory, SEGMENTS)
        if names != self._names:
            self._segments = in_order(names)
            found = {name for name, _ in self._segments}
            self._cursor.keep_only(found, {segment.writer for _, segment in self._segments})
            self._final = {name: size for name, size in self._final.items() if name in found}
            self._safe &= found
            self._names = names
        ahead = []
        marks: dict[str, int | None] = {}
        for name, segment in self._segments:
            first = segment.writer not in marks
            if first:
                marks[segment.writer] = self._files.held(mark_path(self._directory, segment.writer))
            mark = marks[segment.writer]
            try:
                limit = self._limit(name, segment, mark)
            except FileNotFoundError:
                continue  # removed since its name was read
            if self._cursor[name] < limit:
                ahead.append(
                    Stretch(
                        name=name,
                        writer=segment.writer,
                        limit=limit,
                        sealed=is_sealed(segment, mark),
                        first=first,
                    )
                )
        return ahead

    def _limit(self, name: str, segment: SegmentName, mark: int | None) -> int:
        if mark is None and name not in self._safe:
            # Its process may have died before its last sync: what is delivered must not be lost.
            self._files.sync_file(self._directory / name)
            self._final.pop(name, None)
            self._safe.add(name)
        size = self._final.get(name)
        if size is None:
            size = self._files.size(self._directory / name)
            if is_sealed(segment, mark):
                self._final[name] = size
        return readable(segment, mark, size)

    def batches_of(self, stretch: Stretch, lines_max: int, bytes_max: int) -> Iterator[Batch]:
        """Yield what is new of one stretch, as `batches` does."""
        path, name, limit = self._directory / stretch.name, stretch.name, stretch.limit
        seen = self._cursor.seen(stretch.writer)
        end = told = self._cursor[name]
        spans: list[bytes] = []
        reaches: list[tuple[int, int]] = []
        damage: list[Damage] = []
        size = 0

        def batch() -> Batch:
            return Batch(
                segment=name,
                writer=stretch.writer,
                spans=tuple(spans),
                reaches=tuple(reaches),
                end=end,
                seen=seen,
                damage=tuple(damage),
            )

        while end < limit:  # each turn reads at least one line, or the rest of the segment
            start = end
            data = self._files.read(path, start, min(READ_BYTES, limit - start))
            for found in lines_in(data, start):
                if isinstance(found, Damage):
                    more = start + len(data) < limit
                    if found.reason == "torn" and (end > start if more else not stretch.sealed):
                        break  # the rest of the line is in the next read, or is being written
                    damage.append(found)
                    end = found.offset + found.length
                    continue
                offset, line = found
                inner, seen = _new_bill(line, seen, stretch.first)
                end = offset + len(line) + 1
                if inner is None:
                    continue
                spans.append(inner)
                reaches.append((end, seen))
                size += len(inner)
                if len(spans) >= lines_max or size >= bytes_max:
                    yield batch()
                    spans, reaches, damage, size, told = [], [], [], 0, end
            if end == start:
                break
        if end > told:
            yield batch()


def _new_bill(line: bytes, seen: int, first: bool) -> tuple[bytes | None, int]:
    """Return the spans of a line that was not passed before, and the number passed without a gap after it.

    Args:
        first: the line's segment is the oldest of its writer.
    """
    number = number_of(line)
    if kind_of(line) == "H":
        # What stands before a later header may still come again: a failed sync lost it. Only the oldest
        # segment's header says where to begin, and what stood before it was passed and then removed.
        return None, seen or (number - 1 if first else 0)
    if number <= seen:
        return None, seen
    return spans_of(line), number if number == seen + 1 else seen
