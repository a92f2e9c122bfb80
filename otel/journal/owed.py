"""Owed: the records that a writer numbered and that no sync has covered yet, and who waits for them.

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
