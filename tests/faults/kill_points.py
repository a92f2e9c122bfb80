"""Named crash points: where a gateway can be killed, and a disk, a provider and a caller that pass them.

A point is passed by name; the chosen one, at its n-th passing, ends the process with a real SIGKILL. Nothing
of it is in the product: every operation on a disk goes through `Files`, every word to a provider through a
transport, and every byte to a caller through `send`, and those are what the points stand in.

On the way the promises of the moment are checked: no call without an intent, no release that goes further
than the notes, no end of an answer and no delivery before the bill is synced. `BrokenPromise` fails the life
at once.
"""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Final

from gateway.pipeline import PROGRESS_BYTES
from otel.journal import Durability
from otel.journal.files import Files
from otel.journal.lines import kind_of
from otel.journal.segments import MARKS

SERVING: Final = (
    "intent.before_write",
    "intent.half_written",
    "intent.written",
    "upstream.before",
    "upstream.called",
    "upstream.head",
    "stream.mid",
    "progress.before_write",
    "progress.half_written",
    "progress.written",
    "release.before",
    "release.after",
    "upstream.after_last_byte_before_settle_write",
    "settle.before_write",
    "settle.half_written",
    "settle.written",
    "settle.synced_before_release",
    "after_release",
)
WRITING: Final = (
    "sync.before",
    "sync.after",
    "segment.before_create",
    "segment.created",
    "segment.header_half_written",
    "segment.header_written",
    "rotation.before_create",
    "rotation.created",
    "rotation.header_half_written",
    "rotation.header_written",
    "rotation.sealed",
    "mark.before",
    "mark.before_rename",
    "mark.made",
    "mark.before_move",
    "mark.moved",
    "close.before",
    "close.after",
)
SHIPPING: Final = (
    "ship.before",
    "ship.sent_before_answer",
    "ship.accepted_before_cursor",
    "cursor.half_written",
    "cursor.written_before_rename",
    "cursor.renamed",
)
RECOVERING: Final = (
    "recovery.scanned",
    "recovery.before_write",
    "recovery.half_written",
    "recovery.written",
    "recovery.mid",
    "recovery.before_retire",
    "recovery.after_retire",
)
"""Passed only by a life that finds a dead one; `recovery.mid` only where that one left two intents open."""
POINTS: Final = (*SERVING, *WRITING, *SHIPPING, *RECOVERING)
TORN: Final = frozenset(name for name in POINTS if "half" in name) - {"cursor.half_written"}
"""The points that leave a torn line in the journal."""

RESERVED_MAX: Final = 64 * 1024
_KINDS: Final = {"I": "intent", "P": "progress", "S": "settle"}


class BrokenPromise(Exception):
    """The gateway did something before it was allowed to."""


class Points:
    """Counts passings, and ends the process at the chosen one.

    Args:
        point: where to die, None to live.
        nth: at which passing of it, from 1.
    """

    def __init__(self, point: str | None, nth: int) -> None:
        if point is not None and point not in POINTS:
            raise ValueError(f"{point} is not a crash point")
        self.passed: Counter[str] = Counter()
        self._point = point
        self._nth = nth

    def reached(self, name: str) -> bool:
        """Count a passing; say whether it is the last one. Then `die` is to be called."""
        self.passed[name] += 1
        return name == self._point and self.passed[name] == self._nth

    def hit(self, name: str) -> None:
        """Pass a point; this may not return."""
        if self.reached(name):
            self.die()

    def die(self) -> None:
        """End this process as the kernel does it: nothing is flushed, closed or said."""
        os.kill(os.getpid(), signal.SIGKILL)


class _Opened:
    """A file that is being appended to: how much of it was written, and how much a sync has covered."""

    def __init__(self) -> None:
        self.size = 0
        self.synced = 0


class Watch:
    """What is on the disk by now, as the promises of the gateway need it."""

    def __init__(self, durability: Durability) -> None:
        self._durability = durability
        self._at: dict[tuple[str, str], tuple[_Opened, int]] = {}
        self._noted: dict[str, int] = {}

    def wrote(self, line: bytes, file: _Opened) -> None:
        """Remember where a whole line stands."""
        kind = kind_of(line)
        if kind == "H":
            return
        record = json.loads(line)["j"]
        self._at[kind, record["id"]] = (file, file.size)
        if kind == "P":
            self._noted[record["id"]] = record["d"]["reply"]["output_summary"]["bytes"]

    def calling(self, record_id: str) -> None:
        """Check that a provider may be called."""
        if ("I", record_id) not in self._at:
            raise BrokenPromise(f"{record_id}: a provider is called, and there is no intent")

    def releasing(self, record_id: str, released_bytes: int) -> None:
        """Check that so much of a stream may have gone out."""
        self._durable("I", record_id)
        if released_bytes > self._noted.get(record_id, 0) + PROGRESS_BYTES:
            raise BrokenPromise(f"{record_id}: {released_bytes} bytes go out, beyond what was noted")

    def ending(self, record_id: str) -> None:
        """Check that a caller may be shown the end of its answer."""
        self._durable("S", record_id)

    def shipping(self, record_id: str) -> None:
        """Check that a bill may be delivered; those of dead gateways are synced by whoever reads them."""
        if ("S", record_id) in self._at:
            self._durable("S", record_id)

    def retiring(self) -> None:
        """Check that dead gateways may be forgotten."""
        for kind, record_id in self._at:
            self._durable(kind, record_id)

    def _durable(self, kind: str, record_id: str) -> None:
        file, end = self._at.get((kind, record_id), (None, 0))
        if file is None:
            raise BrokenPromise(f"{record_id} is promised, and no {kind} is written")
        if self._durability != "process" and file.synced < end:
            raise BrokenPromise(f"{record_id} is promised, and its {kind} is not synced")


class PointFiles(Files):
    """A real disk with the points in it; `recovering` and `closing` say what the gateway is about."""

    def __init__(self, points: Points, watch: Watch) -> None:
        self._points = points
        self._watch = watch
        self._opened: dict[int, _Opened] = {}
        self._segments = 0
        self._recovered = 0
        self.recovering = False
        self.closing = False

    def create(self, path: Path) -> int:
        points = self._points
        points.hit("rotation.before_create" if self._segments else "segment.before_create")
        fd = super().create(path)
        self._opened[fd] = _Opened()
        self._segments += 1
        points.hit("rotation.created" if self._segments > 1 else "segment.created")
        return fd

    def write(self, fd: int, data: bytes) -> int:
        """Write some lines at once; a kill may come before each of them, within it, and behind it."""
        points, file = self._points, self._opened[fd]
        lines = data.splitlines(keepends=True)
        names = [self._name(kind_of(line)) for line in lines]
        at = 0
        for line, name in zip(lines, names, strict=True):
            for point, more in (*self._before(name), (f"{name}half_written", len(line) // 2)):
                if points.reached(point):
                    super().write(fd, data[: at + more])
                    points.die()
            at += len(line)
        written = super().write(fd, data)
        for line, name in zip(lines, names, strict=True):
            file.size += len(line)
            if written == len(data):
                self._watch.wrote(line, file)
            points.hit(f"{name}written")
        return written

    def _name(self, kind: str) -> str:
        if kind == "H":
            return "rotation.header_" if self._segments > 1 else "segment.header_"
        return "recovery." if self.recovering else f"{_KINDS[kind]}."

    def _before(self, name: str) -> list[tuple[str, int]]:
        if name.endswith("_"):
            return []
        if name == "recovery.":
            self._recovered += 1
            if self._recovered > 1:
                return [("recovery.mid", 0), ("recovery.before_write", 0)]
        return [(f"{name}before_write", 0)]

    def reserve(self, fd: int, offset: int, length: int) -> bool:
        # A folder in memory takes a millisecond for each MiB, and no kill runs out of space.
        return super().reserve(fd, offset, min(length, RESERVED_MAX))

    def release(self, fd: int) -> None:
        super().release(fd)
        if not self.closing:
            self._points.hit("rotation.sealed")

    def sync(self, fd: int) -> None:
        file = self._opened[fd]
        size = file.size
        self._points.hit("sync.before")
        super().sync(fd)
        file.synced = max(file.synced, size)
        self._points.hit("sync.after")

    def replace(self, path: Path, data: bytes) -> None:
        points, new = self._points, path.with_suffix(".new")
        if points.reached("cursor.half_written"):
            new.write_bytes(data[: len(data) // 2])
            points.die()
        if points.reached("cursor.written_before_rename"):
            new.write_bytes(data)
            points.die()
        super().replace(path, data)
        points.hit("cursor.renamed")

    def remove(self, path: Path) -> None:
        retiring = path.parent.name == MARKS
        if retiring:
            self._watch.retiring()
            self._points.hit("recovery.before_retire")
        super().remove(path)
        if retiring:
            self._points.hit("recovery.after_retire")

    def hold(self, path: Path) -> int:
        points = self._points
        points.hit("mark.before")
        if points.reached("mark.before_rename"):
            self.make_directory(path.parent)
            path.with_suffix(".new").write_bytes(bytes(16))
            points.die()
        fd = super().hold(path)
        points.hit("mark.made")
        return fd

    def mark(self, fd: int, value: int) -> None:
        self._points.hit("mark.before_move")
        super().mark(fd, value)
        self._points.hit("mark.moved")
