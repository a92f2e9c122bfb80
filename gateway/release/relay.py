"""Relay: the caller's end of an exchange, and the one place that knows whether the caller is still there.

Bytes go out as they came in. A caller that left never stops a bill: sending to it becomes a no-op, and the
reading goes on for as long as `DrainBounds` allow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any
from typing import Protocol as Interface

import msgspec

from gateway.core.errors import UpstreamError

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
    on_gone: Callable[[], None] | None


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

    def watch(self, seen: Callable[[dict[str, Any]], None]) -> None:
        """Have `seen` told of each message before it is sent; it must neither raise nor change anything."""
        send = self._send

        async def watched(message: dict[str, Any]) -> None:
            seen(message)
            await send(message)

        self._send = watched

    @property
    def why(self) -> str:
        """Why nothing reaches the caller any more: it went, or it stopped reading and was cut off."""
        stalled = self._link is not None and self._link.stalled
        return "client_stalled" if stalled else "client_disconnected"

    def when_it_leaves(self, act: Callable[[], None] | None) -> None:
        """Have `act` called as soon as the caller has left, at once if it has; None calls it off.

        Without a link nobody tells, and `left_lately` must do.
        """
        if self._link is not None:
            self._link.on_gone = act
            if act is not None and self._link.gone:
                act()

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


class Patience:
    """How long a stream is read: without end while its caller is there, within DrainBounds once it left.

    A provider that is silent keeps nobody longer than one that talks: the time runs from the leaving, and not
    from the next bytes.

    Args:
        drains: None where a stream is not to be read without its caller at all.
        now_ns: monotonic.
    """

    __slots__ = ("_caller", "_drain", "_drains", "_now_ns", "_timeout", "left")

    def __init__(self, caller: Caller, drains: Drains | None, now_ns: Callable[[], int]) -> None:
        self._caller = caller
        self._drains = drains
        self._now_ns = now_ns
        self._drain: Drain | None = None
        self._timeout = asyncio.timeout(None)
        self.left = False

    async def __aenter__(self) -> Patience:
        await self._timeout.__aenter__()
        self._caller.when_it_leaves(self._leave)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the drain back.

        Raises:
            UpstreamError: the caller left, and the bounds are reached.
        """
        self._caller.when_it_leaves(None)
        if self._drain is not None:
            self._drain.end()
        try:
            await self._timeout.__aexit__(kind, fault, trace)
        except TimeoutError:
            raise self._exhausted() from None

    def take(self, size: int, now_ns: int) -> None:
        """Count what was read.

        Raises:
            UpstreamError: the caller left, and the bounds are reached.
        """
        if not self.left and self._caller.left_lately(now_ns):
            self._leave()
        if self.left and (self._drain is None or self._drain.take(size, now_ns)):
            raise self._exhausted()

    def _leave(self) -> None:
        if self.left:
            return
        self.left = True
        if self._drains is not None:
            self._drain = self._drains.begin(self._now_ns())
        more_ns = 0 if self._drain is None or self._drains is None else self._drains.bounds.duration_ns
        self._timeout.reschedule(asyncio.get_running_loop().time() + more_ns / 1e9)

    def _exhausted(self) -> UpstreamError:
        return UpstreamError(
            self._caller.why,
            "the caller left, and the provider did not end within upstream.drain_*",
            retryable=False,
            sent=True,
        )
