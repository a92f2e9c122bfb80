"""A disk in memory that keeps only what it must: for tests that crash, fill and cut the power.

A byte is safe once a sync that began after its write has succeeded, a name once its folder was synced. A
failed sync may throw away what it should have kept, and the next sync succeeds all the same. When the power
goes, each unsafe byte and name may stay, go or be torn, as chance says.
"""

from __future__ import annotations

import errno
import fnmatch
import random
from pathlib import Path

from otel.journal.files import Files

SHORT = -1
"""Instead of an errno: the write takes only a part."""


class Killed(BaseException):
    """The process is gone: nothing that it still tries has any effect."""


class _File:
    def __init__(self) -> None:
        self.data = bytearray()
        self.platter = bytearray()
        self.dirty_from = 0  # what the next successful sync takes; what an earlier failed one dropped is gone
        self.dropped: list[tuple[int, int]] = []
        self.reserved = 0
        self.value = 0

    def used(self) -> int:
        return max(len(self.data), self.reserved)

    def sync(self) -> None:
        self.platter = self.platter.ljust(self.dirty_from, b"\0") + self.data[self.dirty_from :]
        self.dirty_from = len(self.data)

    def drop(self, *, evict: bool) -> None:
        self.dropped.append((self.dirty_from, len(self.data)))
        self.dirty_from = len(self.data)
        if evict:
            self.evict()

    def evict(self) -> None:
        """Give back the memory of what was dropped: reading finds what the platter has, nothing."""
        for start, end in self.dropped:
            self.data[start:end] = bytes(end - start)
        self.dropped = []


class MemoryFiles(Files):
    """See `otel.journal.files.Files`; paths are only names here.

    `broken[operation]` lists what its next calls meet: an errno, or SHORT. `fired` counts what was met.
    """

    def __init__(self, seed: int = 0, capacity: int = 1 << 40) -> None:
        self.capacity = capacity
        self.broken: dict[str, list[int]] = {}
        self.fired: dict[str, int] = {}
        self.evicts = False
        self.kill_in: int | None = None
        self._chance = random.Random(seed)
        self._names: dict[Path, _File] = {}
        self._safe_names: dict[Path, _File] = {}
        self._folders: set[Path] = set()
        self._fds: dict[int, _File] = {}
        self._next_fd = 3
        self._dead = False

    # the world's side

    @property
    def open_fds(self) -> int:
        return len(self._fds)

    @property
    def used(self) -> int:
        files = {id(file): file for file in (*self._names.values(), *self._fds.values())}
        return sum(file.used() for file in files.values())

    def paths(self) -> list[Path]:
        return sorted(self._names)

    def contents(self, path: Path) -> bytes:
        return bytes(self._names[path].data)

    def safe(self, needle: bytes) -> bool:
        """Say whether `needle` stands in a file that would survive a power loss, name and all."""
        return any(needle in file.platter for file in self._safe_names.values())

    def crash(self) -> None:
        """End the process: what it wrote stays in memory, its descriptors and locks go."""
        self._fds.clear()
        for file in self._names.values():
            file.reserved = 0
            file.evict()  # a later process cannot know of the failed sync: at the latest now it shows
        self._dead = False
        self.kill_in = None
        self.broken.clear()

    def cut_power(self) -> None:
        """End everything: of what is not safe, chance decides."""
        self.crash()
        names = dict(self._safe_names)
        for path in {*self._names, *self._safe_names}:
            now, safe = self._names.get(path), self._safe_names.get(path)
            if now is not safe and self._chance.random() < 0.5:
                if now is None:
                    del names[path]
                else:
                    names[path] = now
        self._names, self._safe_names = names, dict(names)
        for file in {id(file): file for file in names.values()}.values():
            dirty = bytes(file.data[file.dirty_from :])
            kept = dirty[: self._chance.randint(0, len(dirty))]
            if kept and self._chance.random() < 0.3:  # a sector that was being written
                torn = self._chance.randrange(len(kept))
                kept = kept[:torn] + bytes(len(kept) - torn)
            if kept:
                file.platter = file.platter.ljust(file.dirty_from, b"\0") + kept
            file.data = bytearray(file.platter)
            file.dirty_from = len(file.data)

    def _meet(self, operation: str) -> int | None:
        """Meet what is planned for this call: death, a fault to raise, or SHORT."""
        if self._dead:
            raise Killed
        if self.kill_in is not None:
            self.kill_in -= 1
            if self.kill_in < 0:
                self._dead = True
                if operation != "write":
                    raise Killed
                return SHORT
        planned = self.broken.get(operation)
        if not planned:
            return None
        code = planned.pop(0)
        self.fired[operation] = self.fired.get(operation, 0) + 1
        if code != SHORT:
            raise OSError(code, "planned")
        return SHORT

    # the process's side: segments

    def make_directory(self, path: Path) -> None:
        self._meet("make_directory")
        self._folders.add(path)

    def create(self, path: Path) -> int:
        self._meet("create")
        if path in self._names:
            raise FileExistsError(errno.EEXIST, "exists", str(path))
        file = self._names[path] = _File()
        return self._open(file)

    def _open(self, file: _File) -> int:
        self._next_fd += 1
        self._fds[self._next_fd] = file
        return self._next_fd

    def write(self, fd: int, data: bytes) -> int:
        file = self._fds.get(fd) or _File()
        short = self._meet("write")
        taken = len(data) if short is None else self._chance.randrange(len(data))
        room = self.capacity - self.used + max(0, file.reserved - len(file.data))
        taken = min(taken, max(0, room))
        file.data += data[:taken]
        if self._dead:
            raise Killed
        if not taken and short is None:
            raise OSError(errno.ENOSPC, "full")
        return taken

    def reserve(self, fd: int, offset: int, length: int) -> bool:
        self._meet("reserve")
        file = self._fds[fd]
        more = max(0, offset + length - file.used())
        if more > self.capacity - self.used:
            raise OSError(errno.ENOSPC, "full")
        file.reserved = max(file.reserved, offset + length)
        return True

    def release(self, fd: int) -> None:
        self._meet("release")
        self._fds[fd].reserved = 0

    def sync(self, fd: int) -> None:
        file = self._fds.get(fd)
        try:
            self._meet("sync")
        except OSError:
            assert file is not None
            file.drop(evict=self.evicts)
            raise
        assert file is not None, "a closed descriptor was synced"
        file.sync()

    def close(self, fd: int) -> None:
        self._meet("close")
        file = self._fds.pop(fd, None)
        if file is None:
            raise OSError(errno.EBADF, "closed already")
        if file not in self._fds.values():
            file.reserved = 0

    def sync_directory(self, path: Path) -> None:
        self._meet("sync_directory")
        for name in {*self._names, *self._safe_names}:
            if name.parent == path:
                if name in self._names:
                    self._safe_names[name] = self._names[name]
                else:
                    del self._safe_names[name]

    # reading

    def find(self, directory: Path, pattern: str) -> list[Path]:
        self._meet("find")
        wanted = pattern.split("/")
        found = []
        for path in self._names:
            parts = path.relative_to(directory).parts if path.is_relative_to(directory) else ()
            if len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted)):
                found.append(path)
        return sorted(found)

    def names(self, directory: Path, pattern: str) -> list[str]:
        return [str(path.relative_to(directory)) for path in self.find(directory, pattern)]

    def _at(self, path: Path) -> _File:
        if path not in self._names:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        return self._names[path]

    def size(self, path: Path) -> int:
        self._meet("size")
        return len(self._at(path).data)

    def read(self, path: Path, offset: int, length: int) -> bytes:
        self._meet("read")
        return bytes(self._at(path).data[offset : offset + length])

    def sync_file(self, path: Path) -> None:
        self._meet("sync_file")
        self._at(path).sync()

    def free_bytes(self, path: Path) -> int:
        self._meet("free_bytes")
        return max(0, self.capacity - self.used)

    # small files

    def replace(self, path: Path, data: bytes) -> None:
        self._meet("replace")
        if len(data) > self.capacity - self.used:
            raise OSError(errno.ENOSPC, "full")
        file = self._names[path] = self._safe_names[path] = _File()
        file.data += data
        file.sync()

    def append(self, path: Path, data: bytes) -> None:
        self._meet("append")
        if len(data) > self.capacity - self.used:
            raise OSError(errno.ENOSPC, "full")
        file = self._names.setdefault(path, _File())
        self._safe_names[path] = file
        file.data += data
        file.sync()

    def rename(self, path: Path, to: Path) -> None:
        self._meet("rename")
        if path in self._names:
            self._names[to] = self._names.pop(path)

    def remove(self, path: Path) -> None:
        self._meet("remove")
        self._names.pop(path, None)

    # marks

    def hold(self, path: Path) -> int:
        self._meet("hold")
        file = self._names[path] = _File()
        fd = self._open(file)
        try:
            self.sync_directory(path.parent)
        except OSError:
            self._fds.pop(fd)
            raise
        return fd

    def mark(self, fd: int, value: int) -> None:
        self._meet("mark")
        self._fds[fd].value = value

    def said(self, path: Path) -> int:
        self._meet("said")
        return self._names[path].value

    def held(self, path: Path) -> int | None:
        self._meet("held")
        file = self._names.get(path)
        if file is None or file not in self._fds.values():
            return None
        return file.value
