"""Segments: what the journal's folder holds, by name.

    <directory>/lock                                 held by the gateway that owns the folder
    <directory>/recovering                           held by the one writer that recovers dead ones
    <directory>/removing                             held by the one process that removes old segments
    <directory>/rerating                             held by the one process that writes revisions
    <directory>/writers/<boot>-<worker>              a mark for each writer that is not yet retired
    <directory>/2026-11-21/<boot>-<worker>-<n>.jsonl
    <directory>/removed.jsonl                        what retention took away, and what it held

A segment is written by one process and never appended to after an error or by another boot. A writer's mark
is locked while its process lives and says how far its newest segment may be read; a writer whose mark is
free or gone is dead, and all of its segments are sealed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from otel.journal.files import EVERYTHING, Files

SUFFIX: Final = ".jsonl"
SEGMENTS: Final = f"[0-9]*-[0-9]*-[0-9]*/*{SUFFIX}"
MARKS: Final = "writers"
REVISER: Final = "r"
"""How the boot of a writer of revisions begins; that of a gateway is hex."""
_OFFSET_BITS: Final = 40


class JournalUnavailable(Exception):
    """The journal cannot keep its word now; no provider may be called.

    Args:
        owed: the record was numbered and will be written, byte for byte, as soon as the disk allows it.
    """

    def __init__(self, reason: str | None, *, owed: bool = False) -> None:
        super().__init__(reason)
        self.owed = owed


class JournalLocked(Exception):
    """Another gateway holds the folder; the message names it."""


class SegmentName(msgspec.Struct, frozen=True):
    """What a segment's file name says: `<boot>-<worker>-<number>.jsonl`."""

    writer: str
    number: int


def name_of(path: Path) -> SegmentName:
    """Return what the file name says.

    Raises:
        ValueError: it is no segment's.
    """
    return _name_of(path.name)


def _name_of(file: str) -> SegmentName:
    writer, _, number = file.removesuffix(SUFFIX).rpartition("-")
    if not writer or not number.isdecimal() or not file.isascii():
        raise ValueError(f"{file} is not the name of a segment")
    return SegmentName(writer, int(number))


def revises(writer: str) -> bool:
    """Say whether a writer writes revisions of bills, and nothing else."""
    return writer.startswith(REVISER)


def day_of(unix_ns: int) -> str:
    """Return the UTC day as the name of its folder."""
    return time.strftime("%Y-%m-%d", time.gmtime(unix_ns // 1_000_000_000))


def segment_path(directory: Path, unix_ns: int, writer: str, number: int) -> Path:
    """Return where a segment stands; numbers are padded so that names sort as they were written."""
    return directory / day_of(unix_ns) / f"{writer}-{number:06d}{SUFFIX}"


def mark_path(directory: Path, writer: str) -> Path:
    """Return where a writer's mark stands."""
    return directory / MARKS / writer


def mark_of(number: int, offset: int) -> int:
    """Return the mark that says: segments before `number` are whole, and that one up to `offset`."""
    return number << _OFFSET_BITS | offset


def readable(name: SegmentName, mark: int | None, size: int) -> int:
    """Return how far a segment of `size` bytes may be read, given its writer's mark (None: dead)."""
    if mark is None or mark == EVERYTHING:
        return size
    number, offset = mark >> _OFFSET_BITS, mark & ((1 << _OFFSET_BITS) - 1)
    if name.number < number:
        return size
    return offset if name.number == number else 0


def is_sealed(name: SegmentName, mark: int | None) -> bool:
    """Say whether nothing more will be written to a segment, given its writer's mark (None: dead)."""
    return mark is None or (mark != EVERYTHING and name.number < mark >> _OFFSET_BITS)


def segments_in(directory: Path, files: Files, writer: str | None = None) -> list[Path]:
    """Return the segments of all writers or of one, `in_order`."""
    found = in_order(files.names(directory, SEGMENTS))
    return [directory / name for name, segment in found if writer in (None, segment.writer)]


def in_order(names: Iterable[str]) -> list[tuple[str, SegmentName]]:
    """Return `<day>/<file>` names with what they say: the oldest writer first, each one's by their numbers.

    A clock that was set back puts a later segment into an earlier day's folder: only numbers tell the order.
    A file that is named otherwise is none of ours.
    """
    found: dict[str, list[tuple[int, str, SegmentName]]] = {}
    for name in sorted(names):
        with contextlib.suppress(ValueError):
            segment = _name_of(name.rpartition("/")[2])
            found.setdefault(segment.writer, []).append((segment.number, name, segment))
    return [
        (name, segment) for own in found.values() for _, name, segment in sorted(own, key=lambda o: o[:2])
    ]


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[int]:
    """Hold the folder for this process; the lock goes when the process does, however it ends.

    A process that is forked from it holds it, too, until it closes the descriptor that is given here.

    Raises:
        JournalLocked: naming the process that holds it.
        OSError: the folder cannot be made or written.
    """
    Files().make_directory(directory)
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as fault:
            holder = os.read(fd, 32).decode("ascii", "replace").strip() or "unknown"
            held = f"the journal in {directory} is held by the gateway with process id {holder}"
            if _gone(holder):
                raise JournalLocked(f"{held}, which is gone; its workers are ending, try again") from fault
            raise JournalLocked(
                f"{held}; stop it, or give this one a folder of its own (journal.directory)"
            ) from fault
        os.ftruncate(fd, 0)
        os.write(fd, f"{os.getpid()}\n".encode())
        yield fd
    finally:
        os.close(fd)


def _gone(process: str) -> bool:
    """Say whether there is no such process; what it started may still hold what it held."""
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except (ValueError, OverflowError, OSError):
        return False
    return False
