"""Reader: what is durable and not yet delivered, in batches, oldest segment first.

Of a living writer's segments only what its mark declares durable is read; a dead writer's are made durable
and read to their ends. A record that was written again after a failed sync is read once. Damage is reported
once, with its place, and never stands in the way of later lines.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from otel.journal.cursor import Cursor
from otel.journal.files import Files
from otel.journal.lines import LINE_BYTES_MAX, Damage, kind_of, lines_in, number_of, spans_of
from otel.journal.segments import mark_path, name_of, readable, segments_in

READ_BYTES: Final = 2 * 1024 * 1024
"""How much of a segment is read at once; more than one line can be long."""
assert READ_BYTES > LINE_BYTES_MAX


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """Bills of one segment, ready to be sent.

    Args:
        segment: name relative to the journal's folder.
        writer: whose segment it is.
        spans: the inside of each line's `resourceSpans`.
        end: offset after the last line that this batch covers, bills or not.
        seen: number up to which the writer's records have then been passed without a gap.
        damage: stretches before `end` that are no lines.
    """

    segment: str
    writer: str
    spans: tuple[bytes, ...]
    end: int
    seen: int
    damage: tuple[Damage, ...] = ()


class Reader:
    """Reads the journal behind a cursor; all methods belong to one thread.

    Args:
        directory: of the journal.
    """

    def __init__(self, directory: Path, cursor: Cursor, files: Files | None = None) -> None:
        self._directory = directory
        self._cursor = cursor
        self._files = files or Files()
        self._sealed: dict[str, int] = {}

    def batches(self, lines_max: int, bytes_max: int) -> Iterator[Batch]:
        """Yield what is new, at most `lines_max` bills and about `bytes_max` bytes in each batch.

        The iterator ends when all that is durable has been yielded. Move the cursor before asking for more.
        """
        begun: set[str] = set()
        for path, limit, sealed in self._limits():
            name, writer = self._name(path), name_of(path).writer
            if self._cursor[name] < limit:
                first = writer not in begun
                yield from self._batches_of(path, name, limit, sealed, first, lines_max, bytes_max)
            begun.add(writer)

    def pending_bytes(self) -> int:
        """Return how many durable bytes the cursor has not passed yet."""
        return sum(max(0, limit - self._cursor[self._name(path)]) for path, limit, _ in self._limits())

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self._directory))

    def _limits(self) -> list[tuple[Path, int, bool]]:
        """Return every segment, the offset up to which it may be read, and whether it is sealed."""
        marks: dict[str, int | None] = {}
        found = []
        names = set()
        for path in segments_in(self._directory, self._files):
            segment, name = name_of(path), self._name(path)
            names.add(name)
            if segment.writer not in marks:
                marks[segment.writer] = self._files.held(mark_path(self._directory, segment.writer))
            mark = marks[segment.writer]
            if mark is None:
                found.append((path, self._sealed_size(path, name), True))
            else:
                found.append((path, readable(segment, mark, self._files.size(path)), False))
        self._cursor.keep_only(names, set(marks))
        self._sealed = {name: size for name, size in self._sealed.items() if name in names}
        return found

    def _sealed_size(self, path: Path, name: str) -> int:
        size = self._sealed.get(name)
        if size is None:
            # Its process may have died before its last sync: what is delivered must not be lost.
            self._files.sync_file(path)
            size = self._sealed[name] = self._files.size(path)
        return size

    def _batches_of(
        self, path: Path, name: str, limit: int, sealed: bool, first: bool, lines_max: int, bytes_max: int
    ) -> Iterator[Batch]:
        writer = name_of(path).writer
        seen = self._cursor.seen(writer)
        end = told = self._cursor[name]
        spans: list[bytes] = []
        damage: list[Damage] = []
        size = 0
        while end < limit:  # each turn reads at least one line, or the rest of the segment
            start = end
            data = self._files.read(path, start, min(READ_BYTES, limit - start))
            for found in lines_in(data, start):
                if isinstance(found, Damage):
                    more = start + len(data) < limit
                    if found.reason == "torn" and (end > start if more else not sealed):
                        break  # the rest of the line is in the next read, or is being written
                    damage.append(found)
                    end = found.offset + found.length
                    continue
                offset, line = found
                inner, seen = _new_bill(line, seen, first)
                end = offset + len(line) + 1
                if inner is None:
                    continue
                spans.append(inner)
                size += len(inner)
                if len(spans) >= lines_max or size >= bytes_max:
                    yield _batch(name, writer, spans, end, seen, damage)
                    spans, damage, size, told = [], [], 0, end
            if end == start:
                break
        if end > told:
            yield _batch(name, writer, spans, end, seen, damage)


def _batch(name: str, writer: str, spans: list[bytes], end: int, seen: int, damage: list[Damage]) -> Batch:
    return Batch(segment=name, writer=writer, spans=tuple(spans), end=end, seen=seen, damage=tuple(damage))


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
