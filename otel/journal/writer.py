"""Writer: an intent is in the file when `append` returns, and any record is durable when `durable` returns.

    append ──write(2)──▶ segment          the loop's thread: about 3 us
    durable ──▶ wait ◀── fdatasync ◀──    a thread of its own: one sync for all records before it

A bill, which nobody may be told of before it is durable, waits for the write of the next intent or for the
end of the loop's turn. A sync begins there too, and while it runs, waiters gather for the next: group commit
without a timer. A record that was numbered is owed: after a failed write or sync the segment is sealed as it
is and everything not yet durable is written again, byte for byte, to a new one; when that fails too the
writer admits no intent until the disk takes it. Space for the bill of every open intent is set aside on the
disk before the intent is written, so that a full disk refuses new work and loses none.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from otel.journal import policy
from otel.journal.appending import Room, Segment
from otel.journal.files import EVERYTHING, Files, reason_of
from otel.journal.lines import GENESIS, Header, Kind, chain, encode_header, encode_line, previous_of
from otel.journal.owed import Head, OpenIntents, Owed
from otel.journal.policy import LINE_BYTES, TRIES_MAX, UNDURABLE_MAX, Bounds, Durability
from otel.journal.segments import JournalUnavailable, mark_of, mark_path, segment_path
from otel.journal.syncing import Done, Syncer, SyncJob, SyncThread, do


class JournalWriter:
    """One writer of one process. All methods belong to the event loop's thread.

    Args:
        directory: of the journal; the caller holds its lock.
        boot: id of this boot, lower-case hex, behind `REVISER` if it writes revisions; part of every
            segment's name.
        now_ns: wall clock in Unix nanoseconds.
        segment_id: makes a random id for a new segment.
        syncer: makes what does the syncs; a thread where none is given.
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
        bounds: Bounds | None = None,
        files: Files | None = None,
        syncer: Callable[[Files, Done], Syncer] | None = None,
    ) -> None:
        self.name: Final = f"{boot}-{worker}"
        self._directory = directory
        self._boot = boot
        self._worker = worker
        self._now_ns = now_ns
        self._segment_id = segment_id
        self._durability = durability
        self._bounds = bounds or Bounds()
        self._files = files or Files()
        self._make_syncer = syncer
        self._mark_fd = -1
        self._segments = self._stays = 0
        self._segment: Segment | None = None
        self._last_segment: str | None = None
        self._seal_at_ns = self._retry_at_ns = 0
        self._number = self._trusted_from = 0
        self._previous = GENESIS
        self._open = OpenIntents()
        self._owed = Owed()
        self._retired: list[int] = []
        self._syncing = self._soon = False
        self._sync_failures = self._breaks = 0
        self._fault: str | None = None
        self._room = Room(self._files, directory, self._bounds.free_bytes_min)
        self._last_reason = ""
        self._syncer: Syncer | None = None
        self.syncs = self.bytes_written = 0

    @property
    def fault(self) -> str | None:
        """Why no intent is admitted now; None while all is well."""
        return self._fault or self._room.lacks

    @property
    def number(self) -> int:
        """The number of the newest record."""
        return self._number

    def open(self, sealed: Mapping[str, Head] | None = None) -> None:
        """Make the mark, start the first segment and the syncer, inside a running event loop.

        Args:
            sealed: heads of dead writers, kept in the header: a removed tail of theirs can be proved.

        Raises:
            OSError: the folder cannot be written; refuse to start.
        """
        self._mark_fd = self._files.hold(mark_path(self._directory, self.name))
        self._start_segment(owed=(), sealed=sealed or {})
        if sealed:  # its caller forgets the dead: what it saw of them is durable before that, and stays
            self._files.sync(self._segment_now().fd)
            self._stays = self._segments
        if self._durability == "process":
            self._files.mark(self._mark_fd, EVERYTHING)
        if self._make_syncer is None:
            self._syncer = SyncThread(self._files, asyncio.get_running_loop(), self._synced)
        else:
            self._syncer = self._make_syncer(self._files, self._synced)

    def take_over(self, sealed: Mapping[str, Head]) -> None:
        """Start a segment whose header keeps, durably, the heads of writers that died meanwhile.

        Raises:
            JournalUnavailable: there is no such segment now; nobody may be forgotten.
        """
        if self._fault is not None or not self._rotate(sealed):
            raise JournalUnavailable(self.fault)
        try:
            self._files.sync(self._segment_now().fd)
        except OSError as fault:
            self._sync_failed(reason_of(fault))
            raise JournalUnavailable(self._last_reason) from fault
        self._stays = self._segments

    def append(self, kind: Kind, record_id: str, body: str) -> int:
        """Write one record and return its number.

        A bill is always taken: where the disk refuses, it is owed and `durable` says so.

        Raises:
            JournalUnavailable: an intent, progress or a revision was refused, or (`owed`) not written yet.
        """
        if kind != "S":
            self._admit(kind, len(body) + LINE_BYTES)
        line = encode_line(kind, record_id, self._number + 1, self._previous, body)
        self._number += 1
        self._previous = chain(line)
        self._owed.add(self._number, line)
        if kind == "I":
            self._open.begin(record_id, self._segment_now().number)
        elif kind == "S":
            self._open.settle(record_id, self._number)
        self._put(line, kind)
        if kind != "S" and self._durability == "process":
            self._flush()
        elif kind != "S" and self._durability == "group" and not self._syncing:
            self._write_soon()  # nobody waits for it yet: it runs beside the provider's work
        return self._number

    async def durable(self, number: int) -> None:
        """Wait until record `number` would survive a power loss (at durability `process`: it was written).

        Raises:
            JournalUnavailable: it may or may not; the caller must not report success.
        """
        if number <= self._owed.durable_number:
            return
        if self._fault is not None:
            raise JournalUnavailable(self._fault, owed=True)
        waiter = self._owed.waiter(number)
        if self._durability == "strict":
            self._request_sync(number)
        elif not self._syncing or self._durability == "process":
            self._write_soon()
        await waiter

    def tend(self) -> None:
        """Do what no request brings about: try a bad disk again, watch its space, seal an aged segment."""
        now_ns = self._now_ns()
        if self._fault is not None:
            self._try_again()
        elif now_ns >= self._seal_at_ns and self._segment is not None and self._segment.has_records:
            self._rotate()
        self._room.look(self._segment, LINE_BYTES + self._open.room(1))

    def pin(self) -> None:
        """Keep what is written from now on in sight of recovery, until `unpin`."""
        self._open.pinned = self._segment_now().number

    def unpin(self) -> None:
        """Let recovery forget what was pinned."""
        self._open.pinned = None

    def close(self) -> None:
        """Sync, seal and stop; safe to call twice. The mark stays for recovery to retire."""
        if self._fault is not None:
            self._replace_segment()
        self._flush()
        if self._syncer is not None:
            self._syncer.close()
            self._syncer = None
        if self._segment is not None:
            self._retired.append(self._segment.seal())
            self._segment = None
        fds, self._retired = tuple(self._retired), []
        failed = do(self._files, SyncJob(fds=fds, retired=len(fds), upto=self._number, mark=0))
        self._fault = self._fault if failed is None else reason_of(failed)
        if self._mark_fd >= 0:
            self._files.close(self._mark_fd)
            self._mark_fd = -1
        self._owed.fail("the gateway is stopping")

    def _admit(self, kind: Kind, size: int) -> None:
        if self._fault is not None and not self._try_again():
            raise JournalUnavailable(self._fault)
        if self._room.lacks is not None and kind in ("I", "R"):
            raise JournalUnavailable(self._room.lacks)
        if len(self._owed) >= UNDURABLE_MAX:
            raise JournalUnavailable(f"{UNDURABLE_MAX} records wait for the disk")
        segment = self._segment_now()
        full = segment.size + segment.held_bytes + size > self._bounds.segment_bytes_max
        if ((full and segment.has_records) or self._now_ns() >= self._seal_at_ns) and not self._rotate():
            raise JournalUnavailable(self.fault)
        if not self._room.take(self._segment_now(), size + self._open.room(1 if kind == "I" else 0)):
            raise JournalUnavailable(self._room.lacks)

    def _put(self, line: bytes, kind: Kind) -> None:
        if self._fault is not None:
            self._try_again()
            return
        self.bytes_written += len(line)
        try:
            if kind == "S" and self._durability != "strict":
                self._segment_now().hold(line)
                self._write_soon()
            else:
                self._segment_now().append(line)
        except OSError as fault:
            if not self._write_again(fault) and kind != "S":
                raise JournalUnavailable(self._fault, owed=True) from fault

    def _flush(self) -> None:
        """Write what is held back; at `process` nothing else is waited for."""
        if self._fault is None and self._segment is not None:
            try:
                self._segment.flush()
            except OSError as fault:
                self._write_again(fault)
        if self._durability == "process" and self._fault is None:
            self._owed.done(self._number)

    def _write_again(self, fault: OSError) -> bool:
        self._last_reason = reason_of(fault)
        written = self._replace_segment()
        if self._durability != "process":
            self._request_sync(self._number)
        return written

    # segments

    def _segment_now(self) -> Segment:
        if self._segment is None:
            raise JournalUnavailable("the gateway is stopping")
        return self._segment

    def _rotate(self, sealed: Mapping[str, Head] | None = None) -> bool:
        """Seal the segment and start the next; False where the disk has no room for one."""
        self._flush()
        if self._fault is not None:
            return False
        old = self._segment_now()
        try:
            self._start_segment(owed=(), sealed=sealed or {})
        except OSError as fault:
            self._room.lacks = reason_of(fault)
            return False
        self._retired.append(old.seal())
        if self._durability == "process":
            self._request_sync(self._number)  # nobody else asks for one, and the descriptor is to be closed
        return True

    def _start_segment(self, *, owed: Sequence[tuple[int, bytes]], sealed: Mapping[str, Head]) -> None:
        """Make the next segment, with `owed` records in it; its name is durable before they are written.

        Raises:
            OSError: the segment is not to be used.
        """
        now_ns = self._now_ns()
        first, previous = self._number + 1, self._previous
        if owed:
            first, oldest = owed[0]
            previous = previous_of(oldest)
        self._segments += 1
        header = Header(
            boot=self._boot,
            worker=self._worker,
            segment=self._segments,
            previous_segment=self._last_segment,
            created_unix_ns=str(now_ns),
            oldest_open=self._open.oldest(self._segments, self._owed.durable_number),
            durable=self._owed.durable_number,
            sealed=dict(sealed),
        )
        path = segment_path(self._directory, now_ns, self.name, self._segments)
        room = sum([len(line) for _, line in owed]) + self._open.room()
        start = encode_header(self._segment_id(), first, previous, header)
        segment = Segment(self._files, path, start, room, first=first, previous=self._last_segment)
        try:
            for _, line in owed:
                segment.append(line)
        except OSError:
            segment.discard()
            raise
        self._segment = segment
        self._last_segment = path.name
        self._seal_at_ns = policy.seal_at_ns(now_ns)

    def _replace_segment(self) -> bool:
        """Seal the segment and write all that is owed to the next; False after TRIES_MAX: it stays owed."""
        useless, old, self._segment = None, self._segment, None
        if old is not None:
            self._retired.append(old.seal())
            stays = old.first <= self._owed.durable_number or old.number == self._stays
            if not stays:  # no sync that is under way may count for it
                useless, self._last_segment = old, old.previous
                self._trusted_from = mark_of(self._segments + 1, 0)
        for _ in range(TRIES_MAX):
            try:
                self._start_segment(owed=self._owed.lines, sealed={})
            except OSError as fault:
                self._last_reason = reason_of(fault)
                continue
            self._fault = None
            if useless is not None:  # the new one has all of it: a bad disk must not fill with such
                useless.forget()
            return True
        self._broken(self._last_reason)
        return False

    def _broken(self, reason: str) -> None:
        self._fault = reason
        self._breaks += 1
        self._retry_at_ns = self._now_ns() + policy.retry_after_ns(self._breaks)
        self._owed.fail(reason)

    def _try_again(self) -> bool:
        """Write all that is owed to a new segment; False if it is not time to, or the disk still refuses."""
        if self._now_ns() < self._retry_at_ns or not self._replace_segment():
            return False
        self._flush()
        if self._durability != "process":
            self._request_sync(self._number)
        return True

    # syncs

    def _write_soon(self) -> None:
        """Write what is held back at the end of the loop's turn, and sync unless that is under way."""
        if self._syncer is not None and not self._soon:
            self._soon = True
            self._syncer.soon(self._write_now)

    def _write_now(self) -> None:
        self._soon = False
        self._flush()
        if not self._syncing and self._fault is None and self._durability != "process":
            self._request_sync(self._number)

    def _request_sync(self, upto: int) -> None:
        if self._syncer is None or self._segment is None:
            return  # closing: `close` syncs
        self._syncing = True
        retired, self._retired = self._retired, []
        mark = mark_of(self._segment.number, self._segment.size)
        fds = (*retired, self._segment.fd)
        self._syncer.submit(SyncJob(fds=fds, retired=len(retired), upto=upto, mark=mark))

    def _synced(self, job: SyncJob, failed: OSError | None) -> None:
        if self._syncer is None or job.mark < self._trusted_from:
            return  # closed, or written again since: a sync after a failed one proves nothing
        self._syncing = False
        self.syncs += 1
        if failed is not None:
            self._sync_failed(reason_of(failed))
            return
        self._sync_failures = self._breaks = 0
        if self._mark_fd >= 0 and self._durability != "process":
            with contextlib.suppress(OSError):  # readers then wait for the next sync
                self._files.mark(self._mark_fd, job.mark)
        self._owed.done(job.upto)
        if len(self._owed) and self._fault is None and self._durability == "group":
            self._write_soon()

    def _sync_failed(self, reason: str) -> None:
        """What was written may or may not be durable: write it again, the same, and sync that."""
        self._trusted_from = mark_of(self._segments + 1, 0)
        self._sync_failures += 1
        self._last_reason = reason
        if self._sync_failures >= TRIES_MAX:
            self._sync_failures = 0
            self._broken(reason)
            return
        if self._replace_segment():
            self._request_sync(self._number)
