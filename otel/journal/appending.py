"""Appending: the one segment that a writer is writing; a write is whole, or the segment is done with.

Nothing is ever cut from a segment or written into its middle. Space behind its end can be set aside, so that
what was promised room finds it on a full disk.
"""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path
from typing import Final

from otel.journal.files import Files
from otel.journal.segments import name_of

RESERVE_STEP: Final = 4 * 1024 * 1024
"""How much more space is set aside at once: about every thousandth request."""


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
        """Write one line.

        Raises:
            OSError: none, some or all of it is in the file: seal the segment, and write the line elsewhere.
        """
        written = self._files.write(self.fd, line)
        self.size += written
        if written != len(line):
            raise OSError(errno.ENOSPC, "the write was cut short")

    def reserve(self, size: int) -> None:
        """Set space aside so that `size` bytes more fit; where a file system cannot, `free_bytes` must do.

        Raises:
            OSError: there is no such space; the segment stays usable.
        """
        more = self.size + size - self._reserved
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
        """Give back the space behind the end; return the descriptor, to be synced and closed."""
        with contextlib.suppress(OSError):  # what is not given back now is when the file is closed for good
            self._files.release(self.fd)
        return self.fd
