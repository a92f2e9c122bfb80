"""Relay: the caller's end of an exchange, and the one place that knows whether the caller is still there.

Bytes go out as they came in. A caller that left never stops a bill: sending to it becomes a no-op, and the
reading goes on for as long as `DrainBounds` allow.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from typing import Protocol as Interface

import msgspec

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Header = tuple[bytes, bytes]

CHECK_EVERY_NS = 20_000_000
"""How often a busy stream looks whether its caller left: 20 ms."""


class DrainBounds(msgspec.Struct, frozen=True, kw_only=True):
    """How far a reply is read on after its caller left, and how many are at a time."""

    duration_ns: int
    bytes_max: int
    count_max: int


class Drains:
    """The streams that are read to their end without their caller; shared by all requests of a process."""

    def __init__(self, bounds: DrainBounds) -> None:
        self.bounds = bounds
        self.count = 0

    def begin(self, now_ns: int) -> Drain | None:
        """Return a drain, or None where there are `count_max` already."""
        if self.count >= self.bounds.count_max:
            return None
        self.count += 1
        return Drain(self, now_ns)


class Drain:
    """One stream that is read on without its caller; end it exactly once."""

    __slots__ = ("_bytes", "_drains", "_until_ns")

    def __init__(self, drains: Drains, now_ns: int) -> None:
        self._drains = drains
        self._until_ns = now_ns + drains.bounds.duration_ns
        self._bytes = 0

    def take(self, size: int, now_ns: int) -> bool:
        """Count what was read; say whether that is enough."""
        self._bytes += size
        return now_ns > self._until_ns or self._bytes > self._drains.bounds.bytes_max

    def end(self) -> None:
        """Make room for another one."""
        self._drains.count -= 1


class Link(Interface):
    """What a server of ours knows of the connection, as plain attributes; see `gateway.front.link`."""

    gone: bool
    stalled: bool


class Caller:
    """One caller's side of the ASGI connection.

    Args:
        receive, send: the ASGI pair, after the request body was read.
        link: None under a server that has none.
    """

    __slots__ = ("_checked_ns", "_link", "_receive", "_send", "gone", "status")

    def __init__(self, receive: Receive, send: Send, link: Link | None = None) -> None:
        self._receive = receive
        self._send = send
        self._link = link
        self._checked_ns = 0
        self.gone = False
        self.status = 0

    @property
    def started(self) -> bool:
        """The head of the response has been sent."""
        return self.status != 0

    def left(self) -> bool:
        """Say whether the caller has disconnected, without waiting.

        Without a link, one step of `receive()` answers at once if a disconnect is pending; otherwise it would
        wait, and is closed instead. That costs 2 us, where a task that waits for the disconnect costs 30.
        """
        if self._link is not None:
            self.gone = self.gone or self._link.gone
        elif not self.gone:
            step: Any = self._receive()
            try:
                step.send(None)
            except StopIteration as stop:
                self.gone = stop.value["type"] == "http.disconnect"
            else:
                step.close()
        return self.gone

    @property
    def why(self) -> str:
        """Why nothing reaches the caller any more: it went, or it stopped reading and was cut off."""
        stalled = self._link is not None and self._link.stalled
        return "client_stalled" if stalled else "client_disconnected"

    def left_lately(self, now_ns: int) -> bool:
        """As `left`, but look at most every CHECK_EVERY_NS."""
        if self.gone or now_ns - self._checked_ns < CHECK_EVERY_NS:
            return self.gone
        self._checked_ns = now_ns
        return self.left()

    async def start(self, status: int, headers: Sequence[Header]) -> None:
        """Send the head of the response."""
        self.status = status
        await self._out({"type": "http.response.start", "status": status, "headers": headers})

    async def body(self, data: bytes, *, more: bool) -> None:
        """Send bytes of the body; waits while the caller is slower than the provider."""
        await self._out({"type": "http.response.body", "body": data, "more_body": more})

    async def cut(self, data: bytes) -> None:
        """Send a last piece of the body; whatever comes after it stays here, as if the caller had left."""
        await self.body(data, more=False)
        self.gone = True

    async def _out(self, message: dict[str, Any]) -> None:
        if self.gone:
            return
        try:
            await self._send(message)
        except OSError:  # the ASGI specification lets a server raise this once the caller is gone
            self.gone = True
