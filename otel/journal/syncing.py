"""Syncing: fdatasync in a thread of its own, because one of them can take longer than a request may wait.

Jobs are done one at a time and in order, and each is answered in the event loop's thread.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Protocol

import msgspec

from otel.journal.files import Files


class SyncJob(msgspec.Struct, frozen=True, kw_only=True):
    """What to make durable.

    Args:
        fds: descriptors, oldest segment first.
        retired: how many of `fds`, from the front, are sealed: they are closed afterwards.
        upto: number of the newest record in them.
        mark: what may be read once the job is done.
    """

    fds: tuple[int, ...]
    retired: int
    upto: int
    mark: int


class Syncer(Protocol):
    """Does sync jobs; at most one is under way."""

    def submit(self, job: SyncJob) -> None:
        """Do the job some time; it is answered with None, or with what failed."""
        ...

    def soon(self, act: Callable[[], None]) -> None:
        """Call `act` once what runs now, and whatever is ready besides, has run."""
        ...

    def close(self) -> None:
        """Finish the job under way and stop."""
        ...


Done = Callable[[SyncJob, OSError | None], None]


def do(files: Files, job: SyncJob) -> OSError | None:
    """Do one job; a sealed descriptor is closed even if its sync failed: it is written again elsewhere."""
    failed: OSError | None = None
    for index, fd in enumerate(job.fds):
        try:
            files.sync(fd)
        except OSError as fault:
            failed = fault
        if index < job.retired:
            try:
                files.close(fd)
            except OSError as fault:
                failed = fault
    return failed


class SyncThread:
    """The syncer of a running gateway.

    Args:
        done: told of each job in `loop`'s thread.
    """

    def __init__(self, files: Files, loop: asyncio.AbstractEventLoop, done: Done) -> None:
        self._files = files
        self._loop = loop
        self._done = done
        self._jobs: queue.SimpleQueue[SyncJob | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="journal-sync", daemon=True)
        self._thread.start()

    def submit(self, job: SyncJob) -> None:
        """Queue a job: the writer has never more than one under way, or one per record at `strict`."""
        self._jobs.put(job)

    def soon(self, act: Callable[[], None]) -> None:
        """Call `act` in the loop's next turn."""
        self._loop.call_soon(act)

    def close(self) -> None:
        """Finish what is queued and stop."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:  # ends with the process or by close()
            failed = do(self._files, job)
            try:
                self._loop.call_soon_threadsafe(self._done, job, failed)
            except RuntimeError:  # the loop is closed: nobody waits any more
                return
