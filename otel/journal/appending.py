"""Appending: the one segment that a writer is writing; a write is whole, or the segment is done with.

Nothing is ever cut from a segment or written into its middle. Space behind its end can be set aside, so that
what was promised room finds it on a full disk. A line may be held back for the next write: it is not in the
file, and must not count for it, before `append` or `flush` returns.
"""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path
from typing import Final

from otel.journal.files import Files, reason_of
from otel.journal.segments import name_of

RESERVE_STEP: Final = 4 * 1024 * 1024
"""How much more space is set aside at once: about every thousandth request."""
HELD_BYTES_MAX: Final = 256 * 1024
"""Lines held back for the next write; with more they are written at once."""


class Segment:
    """A segment open for appending.

    Args:
        room: how much must fit behind the header, in bytes.
        first: number of its first record.
        previous: file name of the writer's segment before it.

    Raises:
        OSError: there is no such segment.
    """

    def __init__(
        self, files: Files, path: Path, header: bytes, room: int, *, first: int, previous: str | None
    ) -> None:
        self._files = files
        self.path = path
        self.number = name_of(path).number
        self.first = first
        self.previous = previous
        self.header_bytes = len(header)
        self.size = 0
        self.held_bytes = 0
        self._held: list[bytes] = []
        self._reserved = 0
        files.make_directory(path.parent)
        self.fd = files.create(path)
        try:
            self.reserve(len(header) + room)
            self.append(header)
            files.sync_directory(path.parent)
        except OSError:
            self.discard()
            raise

    @property
    def has_records(self) -> bool:
        """Say whether anything stands behind the header."""
        return self.size > self.header_bytes

    def append(self, line: bytes) -> None:
        """Write one line, and before it those that were held back.

        Raises:
            OSError: none, some or all of it is in the file: seal the segment, and write the lines elsewhere.
        """
        if self._held:
            line = b"".join([*self._held, line])
            self._held.clear()
            self.held_bytes = 0
        written = self._files.write(self.fd, line)
        self.size += written
        if written != len(line):
            raise OSError(errno.ENOSPC, "the write was cut short")

    def hold(self, line: bytes) -> None:
        """Have one line written with the next write.

        Raises:
            OSError: as `append`, of more than HELD_BYTES_MAX.
        """
        self._held.append(line)
        self.held_bytes += len(line)
        if self.held_bytes > HELD_BYTES_MAX:
            self.flush()

    def flush(self) -> None:
        """Write what was held back.

        Raises:
            OSError: as `append`.
        """
        if self._held:
            self.append(b"")

    def reserve(self, size: int) -> None:
        """Set space aside so that `size` bytes more fit; where a file system cannot, `free_bytes` must do.

        Raises:
            OSError: there is no such space; the segment stays usable.
        """
        more = self.size + self.held_bytes + size - self._reserved
        if more <= 0:
            return
        try:
            self._files.reserve(self.fd, self._reserved, more + RESERVE_STEP)
            self._reserved += more + RESERVE_STEP
        except OSError:
            self._files.reserve(self.fd, self._reserved, more)
            self._reserved += more

    def discard(self) -> None:
        """Close and remove it: nothing was promised of it, and a bad disk must not fill with such."""
        with contextlib.suppress(OSError):
            self._files.close(self.fd)
        self.forget()

    def forget(self) -> None:
        """Remove its name; the descriptor stays."""
        with contextlib.suppress(OSError):
            self._files.remove(self.path)

    def seal(self) -> int:
        """Give back the space behind the end; return the descriptor, to be synced and closed.

        Lines that are held back are given up: flush them before, or write them elsewhere.
        """
        with contextlib.suppress(OSError):  # what is not given back now is when the file is closed for good
            self._files.release(self.fd)
        return self.fd


class Room:
    """Whether the disk has room for more work.

    Args:
        free_bytes_min: below this much free space there is none.
    """

    def __init__(self, files: Files, directory: Path, free_bytes_min: int) -> None:
        self._files = files
        self._directory = directory
        self._least = free_bytes_min
        self.lacks: str | None = None

    def take(self, segment: Segment, size: int) -> bool:
        """Set space aside in a segment; say whether there was any."""
        try:
            segment.reserve(size)
        except OSError as fault:
            self.lacks = reason_of(fault)
            return False
        return True

    def look(self, segment: Segment | None, size: int) -> None:
        """See how much is free; where something lacked, `size` must be free, and to be had in the segment.

        What is left of the space that was set aside does not count: the next intent would use it up again.
        """
        try:
            free = self._files.free_bytes(self._directory)
        except OSError as fault:
            self.lacks = reason_of(fault)
            return
        lacked = self.lacks is not None
        if lacked and (free < size or (segment is not None and not self.take(segment, size))):
            return  # free is not yet to be had
        least = self._least
        self.lacks = f"only {free} bytes of the disk are free; {least} must be" if free < least else None
