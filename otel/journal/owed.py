"""Owed: what a writer still has to do: records that no sync has covered yet, and intents without a bill.

A record stays here, byte for byte, until it is durable: whatever fails in between, the same line is written
again and never another one in its place. An intent stays open until its bill is durable.
"""

from __future__ import annotations

import asyncio
from collections import deque

from otel.journal.policy import SETTLE_BYTES
from otel.journal.segments import JournalUnavailable

Head = tuple[int, str]
"""Number and hash of a writer's newest record."""


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
    """The intents that wait for their bill, each with the number of the segment that it began in."""

    def __init__(self) -> None:
        self.pinned: int | None = None
        self._open: dict[str, int] = {}
        self._closing: deque[tuple[int, int]] = deque()

    def __len__(self) -> int:
        return len(self._open)

    def room(self, more: int = 0) -> int:
        """Return how many bytes their bills may take, and those of `more` intents."""
        return (len(self._open) + more) * SETTLE_BYTES

    def begin(self, record_id: str, segment: int) -> None:
        """Note an intent in `segment`, or in a later one: too low a number costs recovery a look."""
        self._open[record_id] = segment

    def settle(self, record_id: str, number: int) -> None:
        """Note that the bill is written, as record `number`."""
        segment = self._open.pop(record_id, None)
        if segment is not None:
            self._closing.append((number, segment))

    def oldest(self, newest: int, durable_number: int) -> int:
        """Return the number of the oldest segment that recovery would have to read.

        An intent whose bill is not durable is as good as open: a power loss can take the bill and leave it.

        Args:
            newest: the number to return where nothing is open.
        """
        closing = self._closing  # bounded by the bills of one segment: asked with every new one
        while closing and closing[0][0] <= durable_number:
            closing.popleft()
        found = [next(iter(self._open.values()), newest), *[segment for _, segment in closing]]
        return min(found) if self.pinned is None else min(*found, self.pinned)
