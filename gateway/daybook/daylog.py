"""Day log: a bounded queue of lines, and the file of the day that they are appended to.

A line goes to the file of the day on which it is written. Several processes may write one file: each write
appends whole lines. The file is opened by name for each batch, so that one that was moved away is made anew.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import orjson

from gateway.daybook.keeping import Found, Naming, Policy, plan
from gateway.daybook.packing import pack
from gateway.logs import timestamp
from otel.journal.segments import day_of
from otel.journal.turn import Lock

log = logging.getLogger("spanbill.logs")

LINES_MAX: Final = 50_000
"""Lines waiting for the disk; further ones are counted and dropped."""
WRITE_BYTES_MAX: Final = 1024 * 1024
DAY_NS: Final = 86_400 * 1_000_000_000
PACK_AFTER_NS: Final = 600 * 1_000_000_000
"""How long a day is over before its file is packed: no writer has it in hand any more."""


class DayLog:
    """One log by days; see `gateway.daybook`.

    Args:
        days: files of so many days besides today's are kept.
        bytes_max: what all files may take.
        now_ns: wall clock in Unix nanoseconds.
    """

    def __init__(
        self, naming: Naming, *, days: int, bytes_max: int, now_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self.dropped = 0
        self._naming = naming
        self._days = days
        self._bytes_max = bytes_max
        self._now_ns = now_ns
        self._lines: deque[bytes] = deque()
        self._lead = Lock(naming.folder / f".{naming.stem}.lock")
        self._others = 0
        self._short = 0
        self._told = 0
        self._torn = False
        self._fault: str | None = None

    def write(self, line: bytes) -> None:
        """Queue one line, a JSON object without its newline; never blocks."""
        if len(self._lines) >= LINES_MAX:
            self.dropped += 1
            return
        self._lines.append(line)

    def flush(self) -> None:
        """Append what is queued to the file of the day; what cannot be is dropped and counted."""
        lines = [self._lines.popleft() for _ in range(len(self._lines))]
        if not lines:
            return
        now_ns = self._now_ns()
        left = len(lines)
        try:
            with _appending(self._naming.file(day_of(now_ns))) as fd:
                self._note(fd, now_ns)
                for piece, count in _pieces(lines):
                    self._write(fd, piece)
                    left -= count
            self._fault = None
        except OSError as fault:
            self._tell(fault)
        self.dropped += left

    def tend(self) -> None:
        """Pack and remove what is due, if no other process does; look how much there is."""
        try:
            self._naming.folder.mkdir(parents=True, exist_ok=True)
            found = plan(self._found(), self._policy())
            self._others = found.others
            if not (found.remove or found.pack) or not self._lead.take():
                return
            for file in found.remove:
                (self._naming.folder / file.name).unlink(missing_ok=True)
            for file in found.pack:
                pack(self._naming.folder / file.name)
            self._others = plan(self._found(), self._policy()).others
            self._short = 0
        except OSError as fault:
            self._tell(fault)

    def close(self) -> None:
        """Give up the lock, after the last flush."""
        self._lead.release()

    def _note(self, fd: int, now_ns: int) -> None:
        """Say in the file how many lines are missing from it, once."""
        dropped = self.dropped
        if dropped == self._told:
            return
        note = {
            "time": timestamp(now_ns),
            "level": "warning",
            "message": "lines were dropped",
            "dropped": dropped - self._told,
        }
        self._write(fd, orjson.dumps(note) + b"\n")
        self._told = dropped

    def _write(self, fd: int, piece: bytes) -> None:
        """Append whole lines.

        Raises:
            OSError: some or none of it was written.
        """
        data = b"\n" + piece if self._torn else piece
        if os.fstat(fd).st_size + self._others + len(data) > self._bytes_max:
            self._short = len(data)
            raise OSError(errno.EDQUOT, "its files hold as much as they may")
        written = 0
        try:
            while written < len(data):  # each write takes at least one byte or raises
                written += os.write(fd, data[written:])
        finally:
            self._torn = 0 < written < len(data) or (self._torn and not written)

    def _found(self) -> list[Found]:
        found = []
        with os.scandir(self._naming.folder) as entries:
            for entry in entries:
                day = self._naming.day_of(entry.name)
                if day is not None and entry.is_file(follow_symlinks=False):
                    found.append(Found(entry.name, day, entry.stat(follow_symlinks=False).st_size))
        return found

    def _policy(self) -> Policy:
        """Return what is kept; room is made before there is none, and for what did not fit."""
        now_ns = self._now_ns()
        return Policy(
            today=day_of(now_ns),
            keep_from=day_of(now_ns - self._days * DAY_NS),
            pack_before=day_of(now_ns - PACK_AFTER_NS),
            bytes_max=max(0, self._bytes_max - max(self._bytes_max // 10, self._short)),
        )

    def _tell(self, fault: OSError) -> None:
        """Log a fault when it begins; it may go on for long."""
        reason = fault.strerror or type(fault).__name__
        if reason != self._fault:
            log.error("a log's files cannot be kept", extra={"path": str(self._naming.folder), "why": reason})
        self._fault = reason


def _pieces(lines: Sequence[bytes]) -> Iterator[tuple[bytes, int]]:
    """Yield lines put together, as many as one write may have, with their number."""
    piece: list[bytes] = []
    size = 0
    for line in lines:
        if piece and size + len(line) > WRITE_BYTES_MAX:
            yield b"\n".join(piece) + b"\n", len(piece)
            piece, size = [], 0
        piece.append(line)
        size += len(line) + 1
    yield b"\n".join(piece) + b"\n", len(piece)


@contextlib.contextmanager
def _appending(path: Path) -> Iterator[int]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, 0o640)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, flags, 0o640)
    try:
        yield fd
    finally:
        os.close(fd)
