"""Turn: of all processes on one journal folder, one at a time does what two must not do at once.

A `Lock` goes with its process, however that ends. `turn_to_recover` is the lock on what dead writers left,
and one thing more: whoever writes their bills leaves its name there until they are durable and the dead are
retired. A dying process gives up its locks one after the other, not all at once; while the mark of the one
that is named is still held, what it wrote is not yet to be read as a dead writer's, and nobody has the turn.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from otel.journal.files import Files
from otel.journal.segments import mark_path

RECOVERING: Final = "recovering"
NAME_BYTES_MAX: Final = 256
WRITER: Final = re.compile(rb"[0-9a-z]{1,16}-[0-9]{1,4}")


class Lock:
    """A lock that one process has at a time.

    Args:
        path: the lock's file; it is made if it is not there, and stays.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.fd = -1

    def take(self) -> bool:
        """Take it if nobody has it; does not wait.

        Raises:
            OSError: the file cannot be made.
        """
        if self.fd >= 0:
            return True
        Files().make_directory(self._path.parent)
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as fault:
            os.close(fd)
            if isinstance(fault, BlockingIOError):
                return False
            raise
        self.fd = fd
        return True

    def release(self) -> None:
        """Give it up; safe to call without having it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Turn:
    """The turn to recover, while it lasts."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def begin(self, writer: str) -> None:
        """Say which writer is about to write the bills of dead ones."""
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, writer.encode(), 0)

    def end(self) -> None:
        """Say that they are durable, and the dead retired."""
        os.ftruncate(self._fd, 0)


@contextlib.contextmanager
def turn_to_recover(directory: Path, files: Files) -> Iterator[Turn | None]:
    """Have the turn to recover what dead writers left, or None while somebody else has it; does not wait.

    Raises:
        OSError: the folder cannot be written.
    """
    lock = Lock(directory / RECOVERING)
    try:
        if not lock.take():
            yield None
            return
        name = os.pread(lock.fd, NAME_BYTES_MAX, 0)  # a power loss can leave anything there
        dying = WRITER.fullmatch(name) and files.held(mark_path(directory, name.decode())) is not None
        yield None if dying else Turn(lock.fd)
    finally:
        lock.release()
