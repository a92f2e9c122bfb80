"""Watch: one timer for the deadlines of all connections, so that a request sets and cancels none.

Connections stamp their states with `now`, which is as old as the last look. A deadline is therefore taken as
passed one look later than the stamp says, never earlier.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Protocol as Interface


class Watched(Interface):
    """A connection."""

    def check(self, now: float, elapsed_s: float) -> None:
        """Look whether a deadline has passed; `elapsed_s` since the last look."""
        ...


class Watch:
    """Looks at every connection each `every_s`; sleeps while there is none.

    Args:
        clock: seconds, monotonic.
    """

    __slots__ = ("_clock", "_connections", "_loop", "every_s", "now", "ticking")

    def __init__(self, every_s: float, clock: Callable[[], float]) -> None:
        self.every_s = every_s
        self.now = clock()
        self.ticking = False
        self._clock = clock
        self._connections: Collection[Watched] = ()
        self._loop: asyncio.AbstractEventLoop | None = None

    def clock(self) -> float:
        """Return the time as it is, in seconds."""
        return self._clock()

    def start(self, loop: asyncio.AbstractEventLoop, connections: Collection[Watched]) -> None:
        """Begin to look at whatever is in `connections`, for as long as there is something."""
        self.ticking = True
        self.now = self._clock()
        self._loop = loop
        self._connections = connections
        loop.call_later(self.every_s, self._tick)

    def look(self) -> None:
        """Look at every connection once; half a microsecond each."""
        now = self._clock()
        elapsed_s = now - self.now
        self.now = now
        for connection in tuple(self._connections):
            connection.check(now, elapsed_s)

    def _tick(self) -> None:
        self.look()
        if self._connections and self._loop is not None:
            self._loop.call_later(self.every_s, self._tick)
        else:
            self.ticking = False
