"""Owed: what a writer still has to do: records that no sync has covered yet, and intents without a bill.

A record stays here, byte for byte, until it is durable: whatever fails in between, the same line is written
again and never another one in its place.
"""

from __future__ import annotations

import asyncio
from collections import deque

from otel.journal.segments import JournalUnavailable


class Owed:
    """Lines by number, oldest first; bounded by the writer, which refuses new work beyond its bound."""

    def __init__(self) -> None:
        self.lines: deque[tuple[int, bytes]] = deque()
        self.durable_number = 0
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()

    def __len__(self) -> int:
        return len(self.lines)

    def add(self, number: int, line: bytes) -> None:
        """Owe a line."""
        self.lines.append((number, line))

    def done(self, upto: int) -> None:
        """Strike what is durable, and wake who waits for it."""
        self.durable_number = max(self.durable_number, upto)
        lines = self.lines
        while lines and lines[0][0] <= upto:
            lines.popleft()
        waiters = self._waiters
        while waiters and waiters[0][0] <= upto:
            _, waiter = waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)

    def waiter(self, number: int) -> asyncio.Future[None]:
        """Return a future for a record that is not durable yet."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((number, waiter))
        return waiter

    def fail(self, reason: str) -> None:
        """Tell all who wait that the disk does not keep up its word; the lines stay owed."""
        waiters, self._waiters = self._waiters, deque()
        for _, waiter in waiters:
            if not waiter.done():
                waiter.set_exception(JournalUnavailable(reason, owed=True))


class OpenIntents:
    """Intents without a durable bill, and the segments in which they were written."""

    def __init__(self) -> None:
        self._open: dict[str, int] = {}
        self._settling: deque[tuple[int, int]] = deque()

    def __len__(self) -> int:
        """Return how many have no bill yet."""
        return len(self._open)

    def open(self, record_id: str, segment: int) -> None:
        """Note an intent."""
        self._open[record_id] = segment

    def settle(self, record_id: str, number: int) -> None:
        """Note its bill, the record `number`; until it is durable, a power loss may open the intent again."""
        segment = self._open.pop(record_id, None)
        if segment is not None:
            self._settling.append((number, segment))

    def forget(self, upto: int) -> None:
        """Forget the intents whose bills are durable: those up to record `upto`."""
        while self._settling and self._settling[0][0] <= upto:
            self._settling.popleft()

    def oldest_segment(self, newest: int) -> int:
        """Return the number of the oldest segment with an intent that recovery may have to bill."""
        return min([next(iter(self._open.values()), newest), *[segment for _, segment in self._settling]])
