"""Recovery: what dead writers left open, found by reading and decided without writing anything.

    dead_writers  which writers' processes are gone
    scan          where each of them ended, and which of their intents have no bill
    retire        forget a dead writer whose intents all have durable bills

One process at a time does this (`otel.journal.turn`). Every segment is made durable before it is read, so
that no decision rests on bytes that a power loss could still take. A bill counts in any dead writer's
segments: a recovery that died half-way has written its bills into its own, and they are found there; one
that lives keeps its turn until all are forgotten. Nothing is repaired: a torn segment stays as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from otel.journal.files import Files
from otel.journal.lines import GENESIS, Damage, Header, chain, header_of, kind_of, lines_in, parse
from otel.journal.segments import MARKS, mark_path, name_of, readable, segments_in

READ_BYTES = 8 * 1024 * 1024
"""How much of a segment is read at once."""
HEADER_BYTES = 64 * 1024
"""How much of a segment is read to find its header; a header that is longer is as if it were damaged."""


class OpenIntent(msgspec.Struct, frozen=True, kw_only=True):
    """An intent whose process died before its bill was written.

    Args:
        call: what the intent holds, as JSON.
        progress: what the newest progress record holds, None if there is none.
    """

    record_id: str
    writer: str
    call: bytes
    progress: bytes | None = None


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """What a scan found.

    Args:
        dead: writers whose process is gone and that are not retired yet, in the order in which to retire
            them: a recovery that died holds bills of others, and must be found for as long as they are.
        heads: of each of them that numbered a record, as far as can be seen, the number and hash of the
            newest before any that lacks; 0 where the first does.
        open_intents: in the order of their writing, writer by writer.
        damage: (segment, what is damaged).
    """

    dead: tuple[str, ...] = ()
    heads: dict[str, tuple[int, str]] = {}
    open_intents: tuple[OpenIntent, ...] = ()
    damage: tuple[tuple[str, Damage], ...] = ()
    bytes_read: int = 0


class _Story:
    """One writer's records, folded: open intents and settled ids since its oldest open segment."""

    def __init__(self, writer: str) -> None:
        self.writer = writer
        self.head: tuple[int, str] | None = None
        """Number and hash of the newest record before any that lacks unpromised; GENESIS: not known."""
        self.doubt = False
        """Something promised cannot be read, and nothing that was read so far stands behind it."""
        self._lacks = False
        """Records were numbered behind the head that are not there, and were not promised."""
        self._beyond: dict[int, str] = {}
        self.settled: set[str] = set()
        self.calls: dict[str, bytes] = {}
        self.progress: dict[str, tuple[int, bytes]] = {}
        self.damage: list[tuple[str, Damage]] = []
        self.bytes_read = 0

    def take(self, line: bytes, *, promised: bool) -> None:
        """Take the next line; what stands before a promised one was promised, too."""
        record = parse(line)
        self.doubt = False
        if record.k == "H":
            last = record.n - 1
            if self.head is None or self.head == (last, GENESIS) or (promised and last > self.head[0]):
                self.head = (last, record.p)
            self._lacks = self._lacks or last > self.head[0]
            return
        if promised and self.head is not None and record.n > self.head[0] + 1:
            self.head = (record.n - 1, record.p)
        self._reach(record.n, chain(line + b"\n"))
        if record.k == "R":
            return  # it revises a bill and stands for none
        if record.k == "S":
            self.settled.add(record.id)
            self.calls.pop(record.id, None)
            self.progress.pop(record.id, None)
        elif record.id in self.settled:
            return  # written again after a failed sync
        elif record.k == "I":
            self.calls.setdefault(record.id, bytes(record.d))
        elif record.id in self.calls and record.n > self.progress.get(record.id, (0, b""))[0]:
            self.progress[record.id] = (record.n, bytes(record.d))  # a copy of an older one may come later

    def seen_to(self) -> tuple[int, str] | None:
        """Return the head; one record more, of no known hash, where that was promised and is damaged."""
        number, digest = self.head or (0, GENESIS)
        if self.doubt:
            return number + 1, GENESIS
        said = number or self._lacks or any(bad.reason != "torn" for _, bad in self.damage)
        return (number, digest) if said else None

    def _reach(self, number: int, digest: str) -> None:
        """Move the head; what stands behind a gap waits: a later segment may write again what lacks."""
        if self.head is not None and number > self.head[0] + 1:
            self._beyond[number] = digest
            return
        if self.head is None or number == self.head[0] + 1:
            self.head = (number, digest)
        while self._beyond and (after := self._beyond.pop(self.head[0] + 1, None)) is not None:
            self.head = (self.head[0] + 1, after)


def living_writers(directory: Path, files: Files) -> frozenset[str]:
    """Return the writers whose process lives."""
    writers = [path.name for path in files.find(directory, f"{MARKS}/*") if path.suffix != ".new"]
    return frozenset(name for name in writers if files.held(mark_path(directory, name)) is not None)


def dead_writers(directory: Path, files: Files) -> tuple[str, ...]:
    """Return the writers whose process is gone and that are not retired; cheap enough for every second."""
    writers = [path.name for path in files.find(directory, f"{MARKS}/*") if path.suffix != ".new"]
    return tuple(name for name in writers if files.held(mark_path(directory, name)) is None)


def scan(directory: Path, files: Files) -> Findings:
    """Read what dead writers left; the caller has the turn to recover, or the folder for itself.

    Raises:
        OSError: a segment cannot be read or made durable; do not start without knowing what is in it.
    """
    dead = dead_writers(directory, files)
    if not dead:
        return Findings()
    lost = [_read(directory, writer, files) for writer in dead]
    settled = set().union(*[story.settled for story in lost])
    return Findings(
        dead=tuple(story.writer for story in sorted(lost, key=lambda story: not story.calls)),
        heads={story.writer: head for story in lost if (head := story.seen_to()) is not None},
        open_intents=tuple(
            OpenIntent(
                record_id=record_id,
                writer=story.writer,
                call=call,
                progress=story.progress.get(record_id, (0, None))[1],
            )
            for story in lost
            for record_id, call in story.calls.items()
            if record_id not in settled
        ),
        damage=tuple(found for story in lost for found in story.damage),
        bytes_read=sum(story.bytes_read for story in lost),
    )


def retire(directory: Path, writers: tuple[str, ...], files: Files) -> None:
    """Forget dead writers, in this order; call it once the bills of all their intents are durable.

    Raises:
        OSError: some are not forgotten; the next scan finds them with nothing open.
    """
    for writer in writers:
        files.remove(mark_path(directory, writer))


def _read(directory: Path, writer: str, files: Files) -> _Story:
    story = _Story(writer)
    paths = segments_in(directory, files, writer)
    mark = files.said(mark_path(directory, writer))
    to_read = _to_read(paths, files)
    passed_over = _passed_over(to_read, files)
    if to_read and header_at(to_read[0], files) is None:
        headers = (header_at(path, files) for path in to_read)
        durable = next((header.durable for header in headers if header is not None), None)
        story.head = None if durable is None else (durable, GENESIS)
    for path in to_read:
        files.sync_file(path)
        promised = 0 if _number(path) in passed_over else readable(name_of(path), mark, files.size(path))
        for found in items_in(path, files):
            if isinstance(found, Damage):
                story.doubt = story.doubt or (found.reason != "torn" and found.offset < promised)
                story.damage.append((str(path.relative_to(directory)), found))
            else:
                story.take(found[1], promised=found[0] < promised)
        story.bytes_read += files.size(path)
    return story


def _to_read(paths: list[Path], files: Files) -> list[Path]:
    """Return the segments from the oldest that may hold an open intent.

    Where its header cannot be read, nobody knows how far those before it came: then from one that has one.
    """
    oldest = _oldest_open(paths, files)
    first = next((index for index, path in enumerate(paths) if _number(path) >= oldest), len(paths))
    while first < len(paths):  # ends at the first segment, at the latest
        files.sync_file(paths[first])  # a header that a power loss could still take says nothing
        if first == 0 or header_at(paths[first], files) is not None:
            break
        first -= 1
    return paths[first:]


def _passed_over(paths: list[Path], files: Files) -> set[int]:
    """Return the numbers of segments that a later header passes over: nothing in them was ever promised.

    Their writer removed them, and a power loss can have brought them back.
    """
    numbers = [_number(path) for path in paths]
    found: set[int] = set()
    for path in paths:
        header = header_at(path, files)
        with contextlib.suppress(ValueError):  # a name that is none passes over nothing
            if header is not None and header.previous_segment is not None:
                last = name_of(Path(header.previous_segment)).number
                if header.segment > last + 1:
                    found.update([number for number in numbers if last < number < header.segment])
    return found


def _number(path: Path) -> int:
    return name_of(path).number


def _oldest_open(paths: list[Path], files: Files) -> int:
    """Return the number of the oldest segment that may hold an open intent, from the newest good header."""
    headers = (header_at(path, files) for path in reversed(paths))
    return next((header.oldest_open for header in headers if header is not None), 0)


def header_at(path: Path, files: Files) -> Header | None:
    """Return the header of a segment, None where it cannot be read.

    Raises:
        OSError: the segment cannot.
    """
    for found in lines_in(files.read(path, 0, HEADER_BYTES)):
        if isinstance(found, Damage) or kind_of(found[1]) != "H":
            return None
        try:
            return header_of(parse(found[1]))
        except ValueError:
            return None
    return None


def items_in(path: Path, files: Files) -> Iterator[tuple[int, bytes] | Damage]:
    """Yield the lines and damaged stretches of one segment, in reads of READ_BYTES."""
    size = files.size(path)
    start = 0
    while start < size:  # each turn reads at least one line, or the rest of the segment
        data = files.read(path, start, min(READ_BYTES, size - start))
        end = start
        for found in lines_in(data, start):
            if isinstance(found, Damage):
                if found.reason == "torn" and end > start and start + len(data) < size:
                    break  # the rest of the line is in the next read
                end = found.offset + found.length
            else:
                end = found[0] + len(found[1]) + 1
            yield found
        if end == start:
            return
        start = end
