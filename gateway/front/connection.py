"""Connection: how a connection is admitted, refused, timed out and closed.

One request never gets two answers, and nothing is served behind a refused one. A fault in a head is answered
here, after the answers to the requests before it; a fault in a body is answered by the application, which is
already reading it (`gateway.front.cycle`).

    head ──complete──▶ body ──complete──▶ head …        gateway.front.protocol
      │                  │
      │ fault            │ fault, deadline
      ▼                  ▼
    _answer           Cycle.fault ──▶ the application answers
      └───────▶ _finish ◀───┘   shut the writing side, read on for `linger_s`, close

Deadlines are kept by one timer for all connections (`gateway.front.watch`), which calls `check`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.api.correlation import Ids
from gateway.api.inference import Refusal
from gateway.core.errors import GatewayFault, SpanbillError
from gateway.front.answer import answer, new_correlation
from gateway.front.bounds import OVERFLOW_MAX, WRITE_PROGRESS_BYTES_MIN, FrontBounds
from gateway.front.cycle import Cycle, Flow
from gateway.front.head import bad, path_to_tell
from gateway.front.link import EXTENSION, Link, Wire
from gateway.front.watch import Watch

RETRY_AFTER_S: Final = 1


class Front(msgspec.Struct, frozen=True, kw_only=True):
    """What all connections of one server share."""

    bounds: FrontBounds
    watch: Watch
    ids: Ids
    refused: Callable[[Refusal], None]
    now_ns: Callable[[], int]


class Connection(HttpToolsProtocol):
    """One connection; what is read from it is the business of the subclass."""

    front: Front

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._bounds = self.front.bounds
        self._watch = self.front.watch
        self._link = Link()
        self._extensions = {EXTENSION: self._link}
        self._wire: Wire
        self._running: Cycle | None = None  # being answered; `self.cycle` is the latest one parsed
        self._pending: SpanbillError | None = None  # to be answered after the requests before it
        self._closing = False  # whatever else comes is thrown away
        self._lingering = False
        self._stopping = False
        self._head_open = True  # between requests or inside a head; else inside a body
        self._begun = False  # a head's first byte has come
        self._received = 0  # bytes
        # deadlines, in seconds of the watch's clock
        self._since = self._watch.now
        self._progress_since = 0.0
        self._progress_received = 0
        self._write_since: float | None = None
        self._flushed = 0

    # the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn
        """Begin, or refuse: there is room for `connections_max`."""
        super().connection_made(transport)
        self.flow = Flow(transport)
        self._wire = Wire(transport.write, transport.is_closing, self._finish)
        if not self._watch.ticking:
            self._watch.start(self.loop, self.connections)  # type: ignore[arg-type]  # all are of our class
        self._since = self._watch.now
        count = len(self.connections)
        if count > self._bounds.connections_max + OVERFLOW_MAX:
            self._closing = True
            transport.abort()
        elif count > self._bounds.connections_max:
            self._refuse(
                GatewayFault(
                    "too_many_connections",
                    f"{self._bounds.connections_max} connections are open already; try again",
                    status=503,
                    retry_after_s=RETRY_AFTER_S,
                )
            )

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the request being answered, which need not be the last one parsed."""
        self._link.end()
        running, self._running = self._running, None
        if running is not None:
            running.disconnected = not running.response_complete
            running.message_event.set()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """End at once if nothing is being answered, and after this answer otherwise."""
        self._stopping = True
        if self._running is None:
            self.transport.close()
        else:
            self._running.keep_alive = False

    def _finish(self) -> None:
        """Close; if there may be unread bytes, only after they were read for a while.

        Closing a socket with unread bytes sends a reset, which destroys the answer on its way.
        """
        if self._lingering or self.transport.is_closing():
            return
        unread = self._closing or not self._head_open
        self._closing = True
        self.pipeline.clear()
        if self._running is not None:
            self._running.disconnected = not self._running.response_complete
        if not unread or not self.transport.can_write_eof():
            self.transport.close()
            return
        self.transport.write_eof()
        self._lingering = True
        self._since = self._watch.now
        self._release_flow()

    def _release_flow(self) -> None:
        flow = self.flow
        if isinstance(flow, Flow):
            flow.held = False
        flow.resume_reading()

    # refusing

    def _refuse(self, error: SpanbillError) -> None:
        """Serve nothing more on this connection, and answer in turn; the first refusal counts."""
        if self._closing:
            return
        self._closing = True
        if not self._head_open:
            cycle: Cycle = self.cycle  # type: ignore[assignment]  # only ours are made
            if cycle.response_complete:
                self._finish()
                return
            cycle.fault = error
            cycle.keep_alive = False
            cycle.message_event.set()
        elif self._running is not None:
            self._pending = error
            self._hold_flow()
        else:
            self._answer(error)

    def _answer(self, error: SpanbillError) -> None:
        front = self.front
        correlation = new_correlation(front.ids)
        front.refused(
            Refusal(
                correlation=correlation,
                path=path_to_tell(self.url if self._begun else b""),
                status=error.status,
                code=error.code,
                started_unix_ns=front.now_ns(),
                latency_ns=max(0, round((self._watch.clock() - self._since) * 1e9)),
            )
        )
        self._closing = True
        self._wire.write(answer(error, correlation))
        self._finish()

    def _hold_flow(self) -> None:
        self.flow.pause_reading()
        if isinstance(self.flow, Flow):
            self.flow.held = True

    # deadlines

    def check(self, now: float, elapsed_s: float) -> None:
        """End whatever has taken too long. Stamps are up to one look old, so one is allowed for."""
        if self._write_stalled(now):
            self._link.stalled = True
            self.transport.abort()
            return
        passed_s = now - self._since - self._watch.every_s
        if self._lingering:
            if passed_s >= self._bounds.linger_s and self._write_since is None:
                self.transport.close()
        elif self._closing or self.transport.is_closing():
            return
        elif not self._head_open:
            self._check_body(now, elapsed_s, passed_s)
        elif self._running is None:
            self._check_head(passed_s)

    def _check_head(self, passed_s: float) -> None:
        bounds = self._bounds
        if self._begun:
            if passed_s >= bounds.head_s:
                self._refuse(bad("header_timeout", f"no complete head within {bounds.head_s:g} s", 408))
        elif passed_s >= (bounds.head_s if self.cycle is None else bounds.keep_alive_s):
            self.transport.close()

    def _check_body(self, now: float, elapsed_s: float, passed_s: float) -> None:
        bounds = self._bounds
        if self.flow.read_paused:  # it is we who do not read
            self._since += elapsed_s
            self._progress_since = now
            return
        if self._received != self._progress_received:
            self._progress_received = self._received
            self._progress_since = now
        idle_s = now - max(self._progress_since, self._since) - self._watch.every_s
        if idle_s >= bounds.body_idle_s:
            self._refuse(bad("body_timeout", f"no byte of the body for {bounds.body_idle_s:g} s", 408))
        elif passed_s >= bounds.body_total_s:
            self._refuse(bad("body_timeout", f"no complete body within {bounds.body_total_s:g} s", 408))

    def _write_stalled(self, now: float) -> bool:
        waiting = self.transport.get_write_buffer_size()
        if not waiting:
            if self._write_since is not None:
                self._write_since = None
                self._wire.uncount()
            return False
        if self._write_since is None:
            self._wire.count(waiting)
        flushed = self._wire.written - waiting
        if self._write_since is None or flushed - self._flushed >= WRITE_PROGRESS_BYTES_MIN:
            self._write_since = now
            self._flushed = flushed
            return False
        return now - self._write_since >= self._bounds.write_idle_s
