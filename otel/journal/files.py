"""Files: every operation that the journal does to a disk, in one place, so that tests can break each one.

No rule of the journal is decided here. An operation raises OSError or keeps its word: what `sync` returned
for survives a power loss, a name is durable after `sync_directory`, a lock goes with its process.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import fnmatch
import os
import stat
import struct
from pathlib import Path
from typing import Final

_KEEP_SIZE: Final = 1
"""FALLOC_FL_KEEP_SIZE of fallocate(2): space is set aside, and the file's size stays honest."""
_MARK: Final = struct.Struct("<QQ")

MARK_READS_MAX: Final = 100
"""Tries to read a mark between two writes of it; then nothing is taken for durable this time."""
EVERYTHING: Final = (1 << 64) - 1
"""A mark that says: all that is written may be read."""


def _fallocate() -> ctypes._NamedFuncPointer | None:
    libc = ctypes.CDLL(None, use_errno=True)
    function = getattr(libc, "fallocate", None)
    if function is not None:
        function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return function


_FALLOCATE: Final = _fallocate()


class Files:
    """The operations that the journal needs of a file system; each raises OSError."""

    # segments

    def make_directory(self, path: Path) -> None:
        """Make a folder, and the folders above it, with durable names."""
        if path.is_dir():
            return
        self.make_directory(path.parent)
        path.mkdir(exist_ok=True)
        self.sync_directory(path.parent)

    def create(self, path: Path) -> int:
        """Open a new file for appending and return its descriptor; it must not exist yet."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o640)

    def write(self, fd: int, data: bytes) -> int:
        """Append and return how many bytes were taken: a full disk first shows as too few."""
        return os.write(fd, data)

    def reserve(self, fd: int, offset: int, length: int) -> bool:
        """Set disk space aside behind the file's end; False where the file system cannot do that."""
        if _FALLOCATE is None:
            return False
        if _FALLOCATE(fd, _KEEP_SIZE, offset, length) == 0:
            return True
        code = ctypes.get_errno()
        if code in (errno.EOPNOTSUPP, errno.ENOSYS):
            return False
        raise OSError(code, os.strerror(code))

    def release(self, fd: int) -> None:
        """Give back what was set aside behind the file's end."""
        os.ftruncate(fd, os.fstat(fd).st_size)

    def sync(self, fd: int) -> None:
        """Make what was written durable."""
        os.fdatasync(fd)

    def close(self, fd: int) -> None:
        """Close a descriptor."""
        os.close(fd)

    def sync_directory(self, path: Path) -> None:
        """Make the names in a folder durable."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    # reading

    def find(self, directory: Path, pattern: str) -> list[Path]:
        """Return the files below `directory` that match a glob, sorted by name."""
        return sorted(directory.glob(pattern))

    def names(self, directory: Path, pattern: str) -> list[str]:
        """Return the files that match a glob of two parts, as `<folder>/<file>`, in no order.

        It is asked five times a second, of thousands of files: a tenth of what `find` costs.
        """
        folders, files = pattern.split("/")
        return [
            f"{folder}/{file}"
            for folder in fnmatch.filter(_entries(directory), folders)
            for file in fnmatch.filter(_entries(directory / folder), files)
        ]

    def size(self, path: Path) -> int:
        """Return a file's size in bytes."""
        return path.stat().st_size

    def read(self, path: Path, offset: int, length: int) -> bytes:
        """Return at most `length` bytes from `offset`."""
        with path.open("rb", buffering=0) as file:
            return os.pread(file.fileno(), length, offset)

    def sync_file(self, path: Path) -> None:
        """Make durable what another process, which may be gone, has written, and forget what is cached of it.

        Where that process's own sync failed, the cache may hold bytes that are on no disk, and a second sync
        says nothing of them. What is read after this comes from the disk.
        """
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)

    def free_bytes(self, path: Path) -> int:
        """Return how much space an unprivileged process may still fill."""
        facts = os.statvfs(path)
        return facts.f_bavail * facts.f_frsize

    # small files that are replaced whole, and removal

    def replace(self, path: Path, data: bytes) -> None:
        """Put `data` at `path`, durably: whoever reads finds the old content or the new, whole."""
        new = path.with_suffix(".new")
        _write_whole(new, os.O_TRUNC, data)
        os.replace(new, path)
        self.sync_directory(path.parent)

    def place(self, path: Path, data: bytes, own: str) -> None:
        """Put `data` at `path`, durably, unless something is there: of several that try one does.

        Args:
            own: a part of a name that nobody else uses.
        """
        new = path.with_name(f"{path.name}.{own}.new")
        _write_whole(new, os.O_TRUNC, data)
        try:
            os.link(new, path)
        except FileExistsError:
            pass
        finally:
            self.remove(new)
        self.sync_directory(path.parent)

    def append(self, path: Path, data: bytes) -> None:
        """Add `data` to the end of a file, durably; the file is made if it is not there."""
        _write_whole(path, os.O_APPEND, data)
        self.sync_directory(path.parent)

    def rename(self, path: Path, to: Path) -> None:
        """Give a file another name; a file that is not there stays away."""
        with contextlib.suppress(FileNotFoundError):
            os.replace(path, to)

    def remove(self, path: Path) -> None:
        """Remove a file; a file that is not there is removed."""
        path.unlink(missing_ok=True)

    def remove_directory(self, path: Path) -> None:
        """Remove a folder, unless something is in it."""
        with contextlib.suppress(OSError):
            path.rmdir()

    def is_plain(self, path: Path) -> bool:
        """Say whether a name is that of a file in a folder, and neither is a link."""
        try:
            file, folder = path.lstat(), path.parent.lstat()
        except FileNotFoundError:
            return False
        return stat.S_ISREG(file.st_mode) and stat.S_ISDIR(folder.st_mode)

    # marks: a lock for as long as a process lives, and one number that others may read meanwhile

    def hold(self, path: Path) -> int:
        """Make the mark `path`, locked before its name is seen; return its descriptor."""
        self.make_directory(path.parent)
        new = path.with_suffix(".new")
        fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.pwrite(fd, _MARK.pack(0, 0), 0)
            os.fsync(fd)
            os.rename(new, path)
            self.sync_directory(path.parent)
        except OSError:
            os.close(fd)
            raise
        return fd

    def mark(self, fd: int, value: int) -> None:
        """Say `value` to whoever reads the mark; written twice, so that no half of it is believed."""
        os.pwrite(fd, _MARK.pack(value, value), 0)

    def held(self, path: Path) -> int | None:
        """Return the value of a mark whose process lives, and None where it is gone."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return None
            return _value(fd)
        finally:
            os.close(fd)

    def said(self, path: Path) -> int:
        """Return the value of a mark, dead or alive; a power loss can leave an older one."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return _value(fd)
        finally:
            os.close(fd)


def _value(fd: int) -> int:
    for _ in range(MARK_READS_MAX):
        first, second = _MARK.unpack(os.pread(fd, _MARK.size, 0).ljust(_MARK.size, b"\0"))
        if first == second:
            return int(first)
    return 0


def _entries(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []


def reason_of(fault: OSError) -> str:
    """Return what failed, for people: `ENOSPC: No space left on device`."""
    if fault.errno is None:
        return str(fault)
    return f"{errno.errorcode.get(fault.errno, fault.errno)}: {os.strerror(fault.errno)}"


def _write_whole(path: Path, how: int, data: bytes) -> None:
    """Write `data` to a file and sync it; `how` is O_TRUNC or O_APPEND."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | how, 0o640)
    try:
        if os.write(fd, data) != len(data):
            raise OSError(errno.ENOSPC, "short write")
        os.fsync(fd)
    finally:
        os.close(fd)
