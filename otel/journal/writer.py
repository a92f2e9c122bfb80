"""Writer: a record is in the file when `append` returns, and durable when `durable` does.

    append ──write(2)──▶ segment          the loop's thread: about 3 us
    durable ──▶ wait ◀── fdatasync ◀──    a thread of its own: one sync for all records before it

While one sync runs, waiters gather for the next: group commit without a timer. After a failed write or sync
the segment is sealed as it is and everything not yet durable is written again, byte for byte, to a new one;
when that fails too the writer is `unavailable` until a later append succeeds.
"""

from __future__ import annotations

import asyncio
import errno
import os
import queue
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import msgspec

from otel.journal.lines import FORMAT_VERSION, GENESIS, Kind, chain, encode_line, previous_of
from otel.journal.segments import Files, JournalUnavailable, day_of, segment_path

Durability = Literal["group", "process", "strict"]

TRIES_MAX: Final = 3
"""New segments tried in a row before the writer gives up for RETRY_NS."""
RETRY_NS: Final = 250_000_000
"""How long an unavailable writer refuses at once before it tries the disk again."""
UNDURABLE_MAX: Final = 65_536
"""Records that may wait for a sync; one more and the disk is not keeping up: refuse."""
AGE_NS_MAX: Final = 3600 * 1_000_000_000
"""A segment is sealed after an hour, so that day folders close and retention can work."""


class Position(msgspec.Struct, frozen=True):
    """Up to where a segment may be read: everything before it is durable."""

    segment: Path
    offset: int


class _SyncJob(msgspec.Struct):
    fds: list[int]
    retired: int
    """How many of `fds`, from the front, are sealed segments to close after the sync."""
    upto: int
    position: Position


class JournalWriter:
    """One writer of one process. All methods belong to the event loop's thread but `durable_position`.

    Args:
        directory: of the journal; the caller holds its lock.
        boot: id of this boot, lower-case hex; part of every segment's name.
        now_ns: wall clock in Unix nanoseconds.
        segment_id: makes a random id for a new segment.
    """

    def __init__(
        self,
        directory: Path,
        *,
        boot: str,
        now_ns: Callable[[], int],
        segment_id: Callable[[], str],
        worker: int = 0,
        durability: Durability = "group",
        segment_bytes_max: int = 64 * 1024 * 1024,
        files: Files | None = None,
    ) -> None:
        self._directory = directory
        self._boot = boot
        self._worker = worker
        self._now_ns = now_ns
        self._segment_id = segment_id
        self._durability = durability
        self._segment_bytes_max = segment_bytes_max
        self._files = files or Files()
        self._segments = 0
        self._segment: Path | None = None
        self._fd = -1
        self._size = 0
        self._seal_at_ns = 0
        self._number = 0
        self._previous = GENESIS
        self._durable_number = 0
        self._undurable: deque[tuple[int, bytes]] = deque()
        self._retired: list[int] = []
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._syncing = False
        self._sync_failures = 0
        self._fault: str | None = None
        self._last_reason = ""
        self._retry_at_ns = 0
        self._jobs: queue.SimpleQueue[_SyncJob | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.durable_position: Position | None = None
        """Read by the shipper's thread; replaced whole."""
        self.syncs = 0
        self.bytes_written = 0

    @property
    def fault(self) -> str | None:
        """Why the journal cannot be written now; None while it can."""
        return self._fault

    @property
    def number(self) -> int:
        """The number of the newest record."""
        return self._number

    def open(self) -> None:
        """Start the first segment and the sync thread, inside a running event loop.

        Raises:
            OSError: the folder cannot be written; refuse to start.
        """
        self._loop = asyncio.get_running_loop()
        self._start_segment()
        self._thread = threading.Thread(target=self._sync_forever, name="journal-sync", daemon=True)
        self._thread.start()

    def append(self, kind: Kind, record_id: str, body: str) -> int:
        """Write one record and return its number.

        Raises:
            JournalUnavailable: it is in no segment, and was not numbered.
        """
        if self._fault is not None:
            self._try_again()
        if len(self._undurable) >= UNDURABLE_MAX:
            raise JournalUnavailable(f"{UNDURABLE_MAX} records wait for the disk")
        number = self._number + 1
        line = encode_line(kind, record_id, number, self._previous, body)
        now_ns = self._now_ns()
        if self._size + len(line) > self._segment_bytes_max or now_ns >= self._seal_at_ns:
            self._replace_segment(rewrite=False)
        if not self._write(line):
            self._replace_segment(rewrite=True, extra=line)
        self._number = number
        self._previous = chain(line)
        if self._durability == "process":
            self._durable_number = number
            assert self._segment is not None
            self.durable_position = Position(self._segment, self._size)
        else:
            self._undurable.append((number, line))
        return number

    async def durable(self, number: int) -> None:
        """Wait until record `number` would survive a power loss (at durability `process`: it was written).

        Raises:
            JournalUnavailable: it may or may not; the caller must not report success.
        """
        if number <= self._durable_number:
            return
        assert self._loop is not None
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append((number, waiter))
        if self._durability == "strict":
            self._request_sync(number)
        elif not self._syncing:
            self._request_sync(self._number)
        await waiter

    def close(self) -> None:
        """Sync, seal and stop; safe to call twice."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None
        for fd in (*self._retired, self._fd):
            if fd >= 0:
                try:
                    self._files.sync(fd)
                    self._files.close(fd)
                except OSError as fault:
                    self._fault = _reason(fault)
        if self._segment is not None and self._fault is None:
            self.durable_position = Position(self._segment, self._size)
        self._retired, self._fd = [], -1
        self._fail_waiters("the gateway is stopping")

    # segments

    def _start_segment(self, *, rewrite: bool = False) -> None:
        """Make the next segment and write its header; the name is durable before anything else is."""
        now_ns = self._now_ns()
        path = segment_path(self._directory, now_ns, self._boot, self._worker, self._segments + 1)
        self._files.make_directory(path.parent)
        fd = self._files.create(path)
        self._segments += 1
        first, previous = self._number + 1, self._previous
        if rewrite and self._undurable:
            first, oldest = self._undurable[0]
            previous = previous_of(oldest)
        facts = msgspec.json.encode(
            {
                "v": FORMAT_VERSION,
                "boot": self._boot,
                "worker": self._worker,
                "segment": self._segments,
                "previous_segment": self._segment.name if self._segment else None,
                "created_unix_ns": str(now_ns),
            }
        ).decode()
        line = encode_line("H", self._segment_id(), first, previous, facts)
        try:
            written = self._files.write(fd, line)
            if written != len(line):
                raise OSError(errno.ENOSPC, "short write of a segment's header")
            self._files.sync_directory(path.parent)
        except OSError:
            self._files.close(fd)
            raise
        self._segment, self._fd, self._size = path, fd, len(line)
        self._seal_at_ns = min(now_ns + AGE_NS_MAX, _end_of_day_ns(now_ns))

    def _write(self, line: bytes) -> bool:
        try:
            written = self._files.write(self._fd, line)
        except OSError as fault:
            self._last_reason = _reason(fault)
            return False
        self._size += written
        self.bytes_written += written
        if written != len(line):
            self._last_reason = "short write: the disk is full"
            return False
        return True

    def _replace_segment(self, *, rewrite: bool, extra: bytes | None = None) -> None:
        """Seal the segment and start the next; with `rewrite`, everything not durable goes along.

        Raises:
            JournalUnavailable: after TRIES_MAX new segments.
        """
        for _ in range(TRIES_MAX):
            if self._fd >= 0:
                self._retired.append(self._fd)
                self._fd = -1
            try:
                self._start_segment(rewrite=rewrite)
            except OSError as fault:
                self._last_reason = _reason(fault)
                continue
            again = [line for _, line in self._undurable] if rewrite else []
            if extra is not None:
                again.append(extra)
            if all(self._write(line) for line in again):
                self._fault = None
                return
        self._fault = self._last_reason
        self._retry_at_ns = self._now_ns() + RETRY_NS
        self._fail_waiters(self._fault)
        raise JournalUnavailable(self._fault)

    def _try_again(self) -> None:
        if self._now_ns() < self._retry_at_ns:
            raise JournalUnavailable(self._fault)
        self._replace_segment(rewrite=True)

    # syncs

    def _request_sync(self, upto: int) -> None:
        assert self._segment is not None
        self._syncing = True
        job = _SyncJob(
            fds=[*self._retired, self._fd],
            retired=len(self._retired),
            upto=upto,
            position=Position(self._segment, self._size),
        )
        self._retired = []
        self._jobs.put(job)

    def _sync_forever(self) -> None:
        """The thread: one job at a time, in order; told to stop by None."""
        while (job := self._jobs.get()) is not None:  # ends with the process or by close()
            reason = None
            for index, fd in enumerate(job.fds):
                if fd < 0:
                    continue
                try:
                    self._files.sync(fd)
                    if index < job.retired:
                        self._files.close(fd)
                except OSError as fault:
                    reason = _reason(fault)
            assert self._loop is not None
            try:
                self._loop.call_soon_threadsafe(self._synced, job, reason)
            except RuntimeError:  # the loop is closed: nobody waits any more
                return

    def _synced(self, job: _SyncJob, reason: str | None) -> None:
        self._syncing = False
        self.syncs += 1
        if reason is not None:
            self._sync_failed(reason)
            return
        self._sync_failures = 0
        self._durable_number = max(self._durable_number, job.upto)
        self.durable_position = job.position
        undurable = self._undurable
        while undurable and undurable[0][0] <= job.upto:
            undurable.popleft()
        waiters = self._waiters
        while waiters and waiters[0][0] <= job.upto:
            _, waiter = waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
        if waiters and self._durability != "strict":
            self._request_sync(self._number)

    def _sync_failed(self, reason: str) -> None:
        """What was written may or may not be durable: write it again, the same, and sync that."""
        self._sync_failures += 1
        self._last_reason = reason
        if self._sync_failures >= TRIES_MAX:
            self._sync_failures = 0
            self._fault = reason
            self._retry_at_ns = self._now_ns() + RETRY_NS
            self._fail_waiters(reason)
            return
        try:
            self._replace_segment(rewrite=True)
        except JournalUnavailable:
            return
        self._request_sync(self._number)

    def _fail_waiters(self, reason: str) -> None:
        waiters, self._waiters = self._waiters, deque()
        for _, waiter in waiters:
            if not waiter.done():
                waiter.set_exception(JournalUnavailable(reason))


def _reason(fault: OSError) -> str:
    if fault.errno is None:
        return str(fault)
    return f"{errno.errorcode.get(fault.errno, fault.errno)}: {os.strerror(fault.errno)}"


def _end_of_day_ns(unix_ns: int) -> int:
    """Return the first nanosecond of the next UTC day; day folders follow `day_of`."""
    day_ns = 86_400 * 1_000_000_000
    end = unix_ns - unix_ns % day_ns + day_ns
    assert day_of(end) != day_of(unix_ns)
    return end
