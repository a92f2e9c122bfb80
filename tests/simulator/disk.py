"""A disk in memory that fails to order: torn and short writes, errors, a full disk, power loss.

What is written is in the file at once and survives a kill. It survives a power loss only up to the last good
sync, and only if the file's name was made durable; beyond that a random piece may survive, whole or torn.
After a failed sync the bytes that it was about are never made durable by a later one: that is what file
systems do.
"""

from __future__ import annotations

import errno
import random
from pathlib import Path

from otel.journal.files import EVERYTHING, Files


class Crash(BaseException):  # it must pass every `except Exception`, as a real one does
    """The process is gone."""


class SimFile:
    """One file: its bytes, and how many of them a power loss leaves."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.synced = 0
        self.lost_from: int | None = None
        self.named = False

    @property
    def safe(self) -> int:
        """How many bytes are on the disk for good."""
        return self.synced if self.lost_from is None else min(self.synced, self.lost_from)

    def sync(self) -> None:
        self.synced = len(self.data) if self.lost_from is None else min(len(self.data), self.lost_from)


class Faults:
    """How often what fails; all of it from one seeded source.

    Args:
        error_rate: of every write, sync, creation, and of a folder's sync.
    """

    def __init__(self, rng: random.Random, error_rate: float) -> None:
        self.rng = rng
        self.error_rate = error_rate
        self.full_for = 0
        self.dooms = True
        """A failed sync may lose the bytes that it was about. Nothing is promised of it without syncs."""
        self.fired: dict[str, int] = {}

    def fill(self, operations: int) -> None:
        """Let the disk be full for so many operations."""
        self.full_for = operations
        self.fired["full disk"] = self.fired.get("full disk", 0) + 1

    def strikes(self, what: str) -> bool:
        if self.rng.random() >= self.error_rate:
            return False
        self.fired[what] = self.fired.get(what, 0) + 1
        return True


class SimDisk(Files):
    """See the module; one per world, over all lives of the gateway.

    Args:
        crash_at: operations until the process dies, set for each life.
    """

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.files: dict[Path, SimFile] = {}
        self.open_files: dict[int, SimFile] = {}
        self.marks: dict[int, Path] = {}
        self.values: dict[Path, int] = {}
        self.life = 0
        self.owners: dict[Path, int] = {}
        self.next_fd = 1000
        self.operations = 0
        self.crash_at: int | None = None
        self.dead = False
        self.dropped = bytearray()
        """What was never on the disk, though a process that died before it could repeat it had written it."""
        self.overrun: list[str] = []
        """Writers whose mark said more than was durable at that moment."""
        self.cut: set[str] = set()
        """Writers that lost power, alive or dead: what they had not synced may be gone, in any order."""

    # the life of a process

    def begin_life(self, crash_at: int | None) -> None:
        self.life += 1
        self.open_files, self.marks = {}, {}
        self.crash_at = None if crash_at is None else self.operations + crash_at
        self.dead = False

    def lose_power(self) -> None:
        """Leave what was durable, and by chance some of the rest."""
        rng = self.faults.rng
        self.cut |= {path.name for path in self.owners}
        self.values = {path: rng.choice((0, value)) for path, value in self.values.items()}
        for path, file in list(self.files.items()):
            if not file.named and rng.random() < 0.5:
                del self.files[path]
                self.owners.pop(path, None)
                continue
            keep = file.synced
            if len(file.data) > keep and rng.random() < 0.7:
                keep += rng.randrange(len(file.data) - keep + 1)
                if file.lost_from is not None:
                    keep = min(keep, max(file.lost_from, file.synced))
            tail = (
                bytearray(rng.randbytes(rng.randrange(40)))
                if keep < len(file.data) and rng.random() < 0.2
                else b""
            )
            if keep < len(file.data):  # also of a writer that had died before, and was not recovered yet
                self.cut.add(path.name.rpartition("-")[0])
            file.data = file.data[:keep] + tail.replace(b"\n", b"x")
            file.synced, file.lost_from, file.named = len(file.data), None, True

    def holds(self, start: bytes) -> bool:
        """Say whether a line that begins like this would survive a power loss now."""
        files = reversed(self.files.values())  # it is nearly always in the newest
        return any(file.named and file.data.find(start, 0, file.safe) >= 0 for file in files)

    def _is_durable(self, writer: str, mark: int) -> bool:
        """Say whether the segment that a mark names is on the disk up to there."""
        name = f"{writer}-{mark >> 40:06d}.jsonl"
        file = next((file for path, file in reversed(self.files.items()) if path.name == name), None)
        return file is not None and file.safe >= mark & ((1 << 40) - 1)

    def step(self, what: str, file: SimFile | None = None, data: bytes = b"") -> None:
        """Count an operation; die before it, or in its middle, when it is time."""
        if self.dead:
            raise Crash
        self.operations += 1
        self.faults.full_for -= self.faults.full_for > 0
        if self.crash_at is not None and self.operations >= self.crash_at:
            self.dead = True
            if file is not None and data:  # killed in the middle of the write
                file.data += data[: self.faults.rng.randrange(len(data) + 1)]
            raise Crash(what)

    # segments

    def make_directory(self, path: Path) -> None:
        self.step("make_directory")

    def create(self, path: Path) -> int:
        self.step("create")
        if self._full() or self.faults.strikes("create"):
            raise OSError(errno.ENOSPC, "full")
        assert path not in self.files, "a segment is never made twice"
        self.files[path] = SimFile()
        return self._descriptor(self.files[path])

    def _descriptor(self, file: SimFile) -> int:
        self.next_fd += 1
        self.open_files[self.next_fd] = file
        return self.next_fd

    def _full(self) -> bool:
        return self.faults.full_for > 0

    def write(self, fd: int, data: bytes) -> int:
        file = self.open_files[fd]
        self.step("write", file, data)
        rng = self.faults.rng
        if self._full() or self.faults.strikes("short write"):
            taken = rng.randrange(len(data))
            file.data += data[:taken]
            if taken == 0:
                raise OSError(errno.ENOSPC, "full")
            return taken
        if self.faults.strikes("failed write"):
            file.data += data[: rng.choice((0, rng.randrange(len(data)), len(data)))]
            raise OSError(errno.EIO, "bad disk")
        file.data += data
        return len(data)

    def reserve(self, fd: int, offset: int, length: int) -> bool:
        self.step("reserve")
        if self._full():
            raise OSError(errno.ENOSPC, "full")
        return True

    def release(self, fd: int) -> None:
        self.step("release")

    def sync(self, fd: int) -> None:
        file = self.open_files[fd]
        self.step("sync")
        if self.faults.strikes("failed sync"):
            if self.faults.dooms and self.faults.rng.random() < 0.5 and file.lost_from is None:
                file.lost_from = file.synced
            raise OSError(errno.EIO, "bad disk")
        file.sync()

    def close(self, fd: int) -> None:
        if fd in self.marks:
            if not self.dead:
                self.owners.pop(self.marks.pop(fd), None)
            return
        self.step("close")
        del self.open_files[fd]

    def sync_directory(self, path: Path) -> None:
        self.step("sync_directory")
        if self.faults.strikes("failed sync of a folder"):
            raise OSError(errno.EIO, "bad disk")
        for name, file in self.files.items():
            if name.parent == path:
                file.named = True

    # reading

    def find(self, directory: Path, pattern: str) -> list[Path]:
        self.step("find")
        depth = len(directory.parts) + pattern.count("/") + 1
        return sorted(p for p in self.files if len(p.parts) == depth and p.match(pattern))

    def names(self, directory: Path, pattern: str) -> list[str]:
        return [str(path.relative_to(directory)) for path in self.find(directory, pattern)]

    def size(self, path: Path) -> int:
        self.step("size")
        return len(self._file(path).data)

    def read(self, path: Path, offset: int, length: int) -> bytes:
        self.step("read")
        return bytes(self._file(path).data[offset : offset + length])

    def _file(self, path: Path) -> SimFile:
        try:
            return self.files[path]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path)) from None

    def sync_file(self, path: Path) -> None:
        self.step("sync_file")
        if self.faults.strikes("failed sync"):
            raise OSError(errno.EIO, "bad disk")
        file = self._file(path)
        if file.lost_from is not None:  # what is read from now on is what the disk has
            self.dropped += file.data[file.lost_from :]
            self.cut.add(path.name.rpartition("-")[0])
            lost = len(file.data) - file.lost_from
            file.data[file.lost_from :] = bytes(self.faults.rng.choice((0, lost)))
            file.lost_from = None
        file.sync()

    def free_bytes(self, path: Path) -> int:
        return 0 if self._full() else 1 << 40

    # small files

    def replace(self, path: Path, data: bytes) -> None:
        self.step("replace")
        if self._full() or self.faults.strikes("failed replace"):
            raise OSError(errno.ENOSPC, "full")
        file = SimFile()
        file.data = bytearray(data)
        file.synced, file.named = len(data), True
        self.files[path] = file

    def append(self, path: Path, data: bytes) -> None:
        self.step("append")
        file = self.files.setdefault(path, SimFile())
        file.data += data
        file.synced, file.named = len(file.data), True

    def rename(self, path: Path, to: Path) -> None:
        self.step("rename")
        if path in self.files:
            self.files[to] = self.files.pop(path)

    def remove(self, path: Path) -> None:
        self.step("remove")
        self.files.pop(path, None)
        self.owners.pop(path, None)

    # marks

    def hold(self, path: Path) -> int:
        self.step("hold")
        if self._full() or self.faults.strikes("failed mark"):
            raise OSError(errno.ENOSPC, "full")
        file = self.files[path] = SimFile()
        file.data, file.synced, file.named = bytearray(16), 16, True
        self.owners[path], self.values[path] = self.life, 0
        self.next_fd += 1
        self.marks[self.next_fd] = path
        return self.next_fd

    def mark(self, fd: int, value: int) -> None:
        self.step("mark")
        path = self.marks[fd]
        assert value >= self.values[path], "a mark never goes back"
        self.values[path] = value
        if value != EVERYTHING and not self._is_durable(path.name, value):
            self.overrun.append(path.name)

    def said(self, path: Path) -> int:
        self.step("said")
        return self.values[path]

    def held(self, path: Path) -> int | None:
        self.step("held")
        return self.values[path] if self.owners.get(path) == self.life else None
