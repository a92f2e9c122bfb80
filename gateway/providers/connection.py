"""Connection: one HTTP/1.1 connection to a provider, at most one exchange at a time.

    idle ──start──▶ head ──on_headers_complete──▶ body ──on_message_complete──▶ done ──recycle──▶ idle
      └──────────────┴──── any fault, timeout or surprise ──▶ broken (never used again)

Bytes are kept as read and handed over all at once, so a burst of a hundred chunks costs one wake-up. One
timer serves all deadlines: it is re-armed when it fires, not when a deadline moves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, cast

import httptools

from gateway.core.errors import UpstreamError
from gateway.providers.decoding import Decoder, decoded_headers, decoder_for
from gateway.providers.upstream import HEADERS_MAX, Header, Timeouts, check_head

HEAD_BYTES_MAX: Final = 64 * 1024
"""Of a head, of trailers, and of what lies between two pieces of a body."""
BUFFER_BYTES_MAX: Final = 256 * 1024
"""Reading from the provider pauses while this much waits for a slower caller."""
INFORMATIONAL_MAX: Final = 8
"""1xx replies before the real one; more is a flood."""


class Connection(asyncio.Protocol):
    """The protocol object of one socket.

    Args:
        loop: the running loop.
        lost: called once when the connection can no longer be used.
    """

    __slots__ = (
        "_buffer",
        "_buffered",
        "_complete",
        "_deadline",
        "_decoder",
        "_fault",
        "_head_bytes",
        "_headers",
        "_idle_s",
        "_in_head",
        "_informational",
        "_keep_alive",
        "_loop",
        "_lost",
        "_moved",
        "_parser",
        "_paused",
        "_phase",
        "_sized",
        "_timer",
        "_total_at",
        "_transport",
        "_unfinished_bytes",
        "_waiter",
        "delimited",
        "idle_since",
        "reply_headers",
        "status",
        "usable",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, lost: Callable[[Connection], None]) -> None:
        self._loop = loop
        self._lost = lost
        self._transport: asyncio.Transport | None = None
        self._parser: Any = httptools.HttpResponseParser(self)
        self._timer: asyncio.TimerHandle | None = None
        self._deadline = 0.0
        self._total_at = 0.0
        self._idle_s = 0.0
        self._phase = "idle"
        self._waiter: asyncio.Future[None] | None = None
        self.usable = True
        self.idle_since = 0.0
        self._reset()

    def _reset(self) -> None:
        self._buffer: list[bytes] = []
        self._buffered = 0
        self._complete = False
        self._decoder: Decoder | None = None
        self._fault: UpstreamError | None = None
        self._head_bytes = 0
        self._headers: list[Header] = []
        self._informational = 0
        self._in_head = True
        self._keep_alive = False
        self._moved = False
        self._paused = False
        self._sized = False
        self._unfinished_bytes = 0
        self.delimited = True
        self.reply_headers: list[Header] = []
        self.status = 0

    # the exchange

    async def exchange(self, request: bytes, timeouts: Timeouts) -> None:
        """Send one request and wait for the head of its reply.

        Raises:
            UpstreamError: the connection is broken then.
        """
        assert self._transport is not None
        if not self.usable or self._transport.is_closing():
            # Nothing would wake us: the end of this connection has been told already.
            raise UpstreamError(
                "upstream_unreachable",
                "the provider closed the connection before the request was sent",
                retryable=True,
                sent=False,
            )
        self._reset()
        now = self._loop.time()
        self._phase = "head"
        self._idle_s = timeouts.idle_s
        self._total_at = now + timeouts.total_s
        self._arm(min(now + timeouts.first_byte_s, self._total_at))
        self._transport.write(request)
        while self._in_head:  # bounded by the deadline
            if self._fault is not None:
                raise self._fault
            await self._wait()

    async def read(self) -> bytes:
        """Return all bytes of the body that have arrived, or b"" at its end.

        Raises:
            UpstreamError: cut, stalled, too long, or not HTTP.
        """
        while True:  # bounded by the deadline
            if self._buffer:
                data = self._buffer[0] if len(self._buffer) == 1 else b"".join(self._buffer)
                self._buffer.clear()
                self._buffered = 0
                if self._paused and self._transport is not None:
                    self._paused = False
                    self._deadline = min(self._loop.time() + self._idle_s, self._total_at)
                    self._transport.resume_reading()
                return data
            if self._complete:
                return b""
            if self._fault is not None:
                raise self._fault
            await self._wait()

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def recycle(self) -> bool:
        """Make ready for the next exchange; False (and closed) if that is not possible."""
        transport = self._transport
        if (
            self.usable
            and self._complete
            and self._keep_alive
            and transport is not None
            and not transport.is_closing()
            and transport.get_write_buffer_size() == 0
        ):
            self._phase = "idle"
            self._deadline = 0.0
            self.idle_since = self._loop.time()
            self._buffer.clear()
            if self._paused:
                self._paused = False
                transport.resume_reading()
            return True
        self.abort()
        return False

    def abort(self) -> None:
        """Drop the connection at once."""
        self._retire()
        if self._transport is not None:
            self._transport.abort()

    def _retire(self) -> None:
        if self.usable:
            self.usable = False
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._lost(self)

    def _break(self, fault: UpstreamError) -> None:
        if self._fault is None and not self._complete:
            self._fault = fault
        self.abort()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # deadlines

    def _arm(self, at: float) -> None:
        self._deadline = at
        if self._timer is None or self._timer.when() > at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(at, self._ring)

    def _ring(self) -> None:
        self._timer = None
        if self._phase == "idle" or not self.usable:
            return
        now = self._loop.time()
        if now < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._ring)
            return
        if (self._paused or self._buffer) and now < self._total_at:
            # The caller is the slow one; the provider's silence is our own doing.
            self._arm(min(now + self._idle_s, self._total_at))
            return
        what = (
            "its first byte" if self._in_head else "more of its reply" if now < self._total_at else "its end"
        )
        self._break(
            UpstreamError(
                "upstream_timeout",
                f"the provider did not send {what} in time; see upstream.*_timeout_s",
                status=504,
                retryable=self._in_head,
                sent=True,
            )
        )

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        # uvloop's transports keep the interface without inheriting it.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Parse what came; wake whoever waits."""
        if self._phase == "idle" or self._complete:
            self.abort()  # nobody asked for this
            return
        self._moved = False
        pieces = len(self._buffer)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as fault:
            cause = fault.__context__
            self._break(cause if isinstance(cause, UpstreamError) else _not_http())
            return
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._break(_not_http())
            return
        kept = len(self._buffer) > pieces
        if kept and self._decoder is None:
            self._buffered += len(data)  # and what frames it; only what is kept may count, or nobody reads on
        if kept or self._moved:
            self._unfinished_bytes = 0
        else:
            # A field or trailer that does not end is told by no callback, and the parser keeps all of it.
            self._unfinished_bytes += len(data)
            if self._unfinished_bytes > HEAD_BYTES_MAX:
                self._break(_head_too_large())
                return
        if not self._in_head:
            self._deadline = min(self._loop.time() + self._idle_s, self._total_at)
            if self._buffered > BUFFER_BYTES_MAX and not self._paused and self._transport is not None:
                self._paused = True
                self._transport.pause_reading()
            waiter = self._waiter
            if waiter is not None and not waiter.done():
                waiter.set_result(None)

    def eof_received(self) -> bool:
        """Let the transport close; an idle connection leaves the pool before anything is written to it."""
        if self._phase == "idle":
            self.abort()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell an end of the body from a cut: only a body that has neither length nor chunks may end so."""
        self._retire()
        if self._phase != "idle" and not self._complete and self._fault is None:
            if not self._in_head and not self._sized and exc is None:
                self._end_at_close()
            else:
                self._fault = UpstreamError(
                    "upstream_incomplete",
                    "the provider closed the connection before the end of its reply",
                    retryable=self._in_head,
                    sent=True,
                )
        self._wake()

    def _end_at_close(self) -> None:
        try:
            if self._decoder is not None:
                self._decoder.finish()
        except UpstreamError as fault:
            self._fault = fault
        else:
            self._complete = True
            self.delimited = False

    # httptools callbacks

    def on_message_begin(self) -> None:
        """Refuse a second reply behind the first: its bytes must reach neither this caller nor the next."""
        if self._complete:
            raise _not_http()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect one header, within HEAD_BYTES_MAX; a trailer is bounded too, and dropped."""
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > HEAD_BYTES_MAX:
            raise _head_too_large()
        if self._in_head and len(self._headers) <= HEADERS_MAX:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Take the head, unless it is an informational one."""
        status = self._parser.get_status_code()
        if 100 <= status < 200:
            self._informational += 1
            if self._informational > INFORMATIONAL_MAX or status == 101:
                raise UpstreamError(
                    "upstream_protocol", "the provider sent no final reply", retryable=False, sent=True
                )
            self._headers = []
            return
        check_head(status, self._headers)
        self.status = status
        for name, value in self._headers:
            if name == b"content-length" or (name == b"transfer-encoding" and b"chunked" in value.lower()):
                self._sized = True
        self._decoder = decoder_for(self._headers)
        self.reply_headers = self._headers if self._decoder is None else decoded_headers(self._headers)
        self._in_head = False
        self._moved = True
        self._phase = "body"

    def on_body(self, data: bytes) -> None:
        """Keep bytes of the body for the next read; it runs for each chunk, `data_received` for each read."""
        if self._decoder is not None:
            self._moved = True
            data = self._decoder.feed(data)
            if not data:
                return  # an empty piece would read as the end of the body
            self._buffered += len(data)
        self._buffer.append(data)

    def on_message_complete(self) -> None:
        """Note the end of the body."""
        if not self._in_head:
            if self._decoder is not None:
                self._decoder.finish()
            self._complete = True
            self._keep_alive = self._parser.should_keep_alive()


def _head_too_large() -> UpstreamError:
    return UpstreamError(
        "upstream_protocol",
        f"the provider's headers are larger than {HEAD_BYTES_MAX} bytes",
        retryable=False,
        sent=True,
    )


def _not_http() -> UpstreamError:
    return UpstreamError(
        "upstream_protocol", "the provider's reply is not valid HTTP/1.1", retryable=False, sent=True
    )
