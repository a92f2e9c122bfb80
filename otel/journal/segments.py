"""Segments: the files of the journal, one folder a day, and the few operations that touch a disk.

    <directory>/lock                                 held by the gateway that owns the folder
    <directory>/2026-11-21/<boot>-<worker>-<n>.jsonl

A segment is written by one process and never appended to after an error or by another boot. Everything
that the journal does to a disk is in `Files`, so that tests can break each operation.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

SUFFIX: Final = ".jsonl"


class JournalUnavailable(Exception):
    """The journal cannot keep its word now; no provider may be called."""


class JournalLocked(Exception):
    """Another gateway holds the folder; the message names it."""


class Files:
    """The operations that the journal needs of a file system; each raises OSError."""

    def make_directory(self, path: Path) -> None:
        """Make a folder and make its name durable."""
        if not path.is_dir():
            path.mkdir(parents=True, exist_ok=True)
            self.sync_directory(path.parent)

    def create(self, path: Path) -> int:
        """Open a new file for appending and return its descriptor; it must not exist yet."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o640)

    def write(self, fd: int, data: bytes) -> int:
        """Append and return how many bytes were taken: a full disk first shows as too few."""
        return os.write(fd, data)

    def sync(self, fd: int) -> None:
        """Make what was written durable."""
        os.fdatasync(fd)

    def sync_directory(self, path: Path) -> None:
        """Make the names in a folder durable."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def close(self, fd: int) -> None:
        """Close a descriptor."""
        os.close(fd)


def day_of(unix_ns: int) -> str:
    """Return the UTC day as the name of its folder."""
    return time.strftime("%Y-%m-%d", time.gmtime(unix_ns // 1_000_000_000))


def segment_path(directory: Path, unix_ns: int, boot: str, worker: int, number: int) -> Path:
    """Return where a segment stands; numbers are padded so that names sort as they were written."""
    return directory / day_of(unix_ns) / f"{boot}-{worker}-{number:06d}{SUFFIX}"


def segments_in(directory: Path) -> list[Path]:
    """Return all segments, oldest day first."""
    return sorted(directory.glob(f"[0-9]*-[0-9]*-[0-9]*/*{SUFFIX}"))


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the folder for this process; the lock goes when the process does, however it ends.

    Raises:
        JournalLocked: naming the process that holds it.
        OSError: the folder cannot be made or written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as fault:
            holder = os.read(fd, 32).decode("ascii", "replace").strip() or "unknown"
            raise JournalLocked(
                f"the journal in {directory} is held by the gateway with process id {holder}; "
                "stop it, or give this one a folder of its own (journal.directory)"
            ) from fault
        os.ftruncate(fd, 0)
        os.write(fd, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(fd)
