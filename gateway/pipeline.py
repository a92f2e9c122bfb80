"""The story of one request: admit -> route -> call -> meter -> price -> record -> release.

The intent stands in the journal before a provider is called and is durable before the first byte is
released; the settled bill is durable before the caller can know that its answer is complete. Every ending
of `serve` settles exactly one bill.

    caller                gateway                                   provider
      │   request           │ admit, route                              │
      │ ───────────────────▶│ record: intent ─▶ journal                 │
      │                     │ call ────────────────────────────────────▶│
      │◀─────── content ────│◀──────────────── bytes, metered ──────────│
      │                     │ meter, price, record: bill ─▶ journal     │
      │◀─ terminal event ───│ release (after the bill is durable)       │
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol as Interface

import msgspec

from gateway.core.charge import Charge
from gateway.core.errors import UpstreamError
from gateway.core.exchange import Attempt, Call, Exchange, Reply
from gateway.metering.settle import (
    FREE,
    Ending,
    bill_status,
    drained,
    ending_of_fault,
    ending_of_reply,
    metered,
)
from gateway.protocols.base import Dialect, Protocol, Request, StreamMeter
from gateway.providers.upstream import Endpoint, Header, Timeouts, Transport, UpstreamReply
from gateway.release.headers import reply_headers
from gateway.release.relay import Caller, DrainBounds

LINGER_S = 0.25
"""How long the end of the body is awaited behind a terminal event: it nearly always comes along with it."""


class Lane(msgspec.Struct, frozen=True, kw_only=True):
    """One target made callable: a provider, the model's name there, and how to speak to it.

    Args:
        prices: section of the price catalogue.
        headers: (the caller's headers, traceparent) -> headers for the provider: its key, and of the
            caller's only the listed ones.
    """

    provider: str
    model: str
    prices: str
    endpoint: Endpoint
    dialect: Dialect
    headers: Callable[[Sequence[Header], bytes], list[Header]]


class Recorder(Interface):
    """The journal, in the words of the story; a method that cannot keep its word raises GatewayFault."""

    def intent(self, call: Call) -> int:
        """Write the intent; return its sequence number."""
        ...

    def settle(self, exchange: Exchange) -> int:
        """Write the bill; return its sequence number."""
        ...

    async def durable(self, sequence: int) -> None:
        """Wait until the record with that number would survive a power loss (at `journal.durability`)."""
        ...


class Stages(msgspec.Struct, frozen=True, kw_only=True):
    """What the story needs from the world.

    Args:
        price: charge of a reply, None where there is no rate: (lane, reply, Unix seconds) -> Charge.
        observe: told of each settled exchange (metrics, log line, spans), beside the sync; must not raise.
        now_ns, monotonic_ns: wall clock and duration clock, in nanoseconds.
    """

    transport: Transport
    recorder: Recorder
    price: Callable[[Lane, Reply, int], Charge | None]
    observe: Callable[[Exchange, int], None]
    span_id: Callable[[], str]
    now_ns: Callable[[], int]
    monotonic_ns: Callable[[], int]
    timeouts: Timeouts
    drain: DrainBounds
    reply_bytes_max: int


class Admitted(msgspec.Struct, frozen=True, kw_only=True):
    """An admitted request on its way: everything that is known before a provider is called.

    Args:
        ids: response headers with the correlation ids.
        started_ns: monotonic time of admission.
        traceparent: makes the header for an attempt's span id.
    """

    call: Call
    request: Request
    protocol: Protocol
    lanes: tuple[Lane, ...]
    body: bytes
    headers: Sequence[Header]
    ids: list[Header]
    started_ns: int
    traceparent: Callable[[str], bytes]


class Serving:
    """One request being served; `serve` is the story."""

    def __init__(self, stages: Stages, admitted: Admitted, caller: Caller) -> None:
        self._stages = stages
        self._admitted = admitted
        self._caller = caller
        self._attempts: list[Attempt] = []
        self._first_chunk_ns: int | None = None
        self._status = 0
        self.settled = False

    async def serve(self) -> None:
        """Tell the story once.

        Raises:
            UpstreamError, GatewayFault: nothing was released yet; the door answers in its envelope.
        """
        intent = self._stages.recorder.intent(self._admitted.call)
        lane = self._admitted.lanes[0]
        try:
            upstream = await self._call(lane)
        except UpstreamError as fault:
            self._status = fault.status
            await self._record_fault(lane, fault, Reply())
            raise
        try:
            if (
                self._admitted.request.stream
                and upstream.status == 200
                and _is_event_stream(upstream.headers)
            ):
                await self._serve_stream(lane, upstream, intent)
            else:
                await self._serve_whole(lane, upstream)
        finally:
            upstream.close()

    def abandon(self, outcome: Ending) -> None:
        """Settle a request that could not be served to its end (shutdown, a fault of ours); at most once."""
        if not self.settled:
            self._status = self._status or 500
            self._settle(self._admitted.lanes[0], outcome, Reply())

    # call

    async def _call(self, lane: Lane) -> UpstreamReply:
        stages, admitted = self._stages, self._admitted
        span_id = stages.span_id()
        body = admitted.protocol.upstream_body(
            admitted.body, admitted.request, model=lane.model, dialect=lane.dialect
        )
        started_unix_ns = stages.now_ns()
        try:
            reply = await stages.transport.send(
                b"POST",
                lane.endpoint,
                lane.headers(admitted.headers, admitted.traceparent(span_id)),
                body,
                stages.timeouts,
            )
        except UpstreamError as fault:
            self._note_attempt(lane, span_id, started_unix_ns, None, fault.code)
            raise
        self._note_attempt(lane, span_id, started_unix_ns, reply, None)
        self._status = reply.status
        return reply

    def _note_attempt(
        self,
        lane: Lane,
        span_id: str,
        started_unix_ns: int,
        reply: UpstreamReply | None,
        error_type: str | None,
    ) -> None:
        status = None if reply is None else reply.status
        self._attempts.append(
            Attempt(
                span_id=span_id,
                provider=lane.provider,
                model=lane.model,
                host=lane.endpoint.host,
                port=lane.endpoint.port,
                path=self._admitted.protocol.path,
                started_unix_ns=started_unix_ns,
                ended_unix_ns=self._stages.now_ns(),
                status=status,
                error_type=error_type if status is None or status < 400 else str(status),
                provider_request_id=None if reply is None else _provider_request_id(reply.headers),
            )
        )

    # a whole reply

    async def _serve_whole(self, lane: Lane, upstream: UpstreamReply) -> None:
        admitted, caller = self._admitted, self._caller
        try:
            body = await self._read_whole(upstream)
        except UpstreamError as fault:
            self._status = fault.status
            await self._record_fault(lane, fault, Reply())
            raise
        reply = admitted.protocol.read_reply(upstream.status, body, lane.dialect)
        gone = caller.left()
        if gone:
            reply = drained(reply)
        ending = ending_of_reply(
            upstream.status, reply, billable=admitted.protocol.billable, client_gone=gone
        )
        exchange, sequence = self._settle(lane, ending, reply)
        await self._stages.recorder.durable(sequence)
        await caller.start(
            upstream.status,
            reply_headers(upstream.headers, admitted.ids, exchange, content_length=len(body)),
        )
        await caller.body(body, more=False)

    async def _read_whole(self, upstream: UpstreamReply) -> bytes:
        first = await upstream.read()
        if not first:
            return b""
        pieces = [first]
        size = len(first)
        while piece := await upstream.read():
            size += len(piece)
            if size > self._stages.reply_bytes_max:
                raise UpstreamError(
                    "upstream_too_large",
                    f"the provider's reply is larger than {self._stages.reply_bytes_max} bytes; "
                    "raise upstream.max_reply_bytes if such replies are wanted",
                    retryable=False,
                    sent=True,
                )
            pieces.append(piece)
        return first if len(pieces) == 1 else b"".join(pieces)

    # a streamed reply

    async def _serve_stream(self, lane: Lane, upstream: UpstreamReply, intent: int) -> None:
        stages, admitted, caller = self._stages, self._admitted, self._caller
        await stages.recorder.durable(intent)
        await caller.start(
            200, reply_headers(upstream.headers, admitted.ids, None, lane=(lane.provider, lane.model))
        )
        meter = admitted.protocol.stream_meter(admitted.request, lane.dialect)
        fault: UpstreamError | None = None
        try:
            await self._relay(upstream, meter)
        except UpstreamError as broken:
            fault = broken
        tail = meter.finish()
        reply = tail.reply
        gone = caller.left()
        if gone:
            reply = drained(reply)
        if fault is not None and not reply.complete:
            ending = ending_of_fault(fault)
        else:
            ending = ending_of_reply(200, reply, billable=admitted.protocol.billable, client_gone=gone)
        _, sequence = self._settle(lane, ending, reply)
        await stages.recorder.durable(sequence)
        if ending.outcome in ("ok", "client_disconnected") or (
            reply.error_type is not None and fault is None
        ):
            await caller.body(tail.held, more=False)
        else:
            await caller.body(admitted.protocol.error_event(fault or _cut_off()), more=False)

    async def _relay(self, upstream: UpstreamReply, meter: StreamMeter) -> None:
        """Pass the stream on as it comes, until its end."""
        stages, caller = self._stages, self._caller
        drain_from_ns: int | None = None
        drained_bytes = 0
        while data := await upstream.read():  # bounded by upstream.total_timeout_s
            now = stages.monotonic_ns()
            if self._first_chunk_ns is None:
                self._first_chunk_ns = now - self._admitted.started_ns
            released = meter.feed(data)
            if released:
                await caller.body(released, more=True)
            if meter.ended:
                await _read_out(upstream, meter)
                return
            if caller.left_lately(now):
                if drain_from_ns is None:
                    drain_from_ns = now
                drained_bytes += len(data)
                if now - drain_from_ns > stages.drain.duration_ns or drained_bytes > stages.drain.bytes_max:
                    raise UpstreamError(
                        "client_disconnected",
                        "the caller left, and the provider did not end within upstream.drain_*",
                        retryable=False,
                        sent=True,
                    )

    # price and record

    async def _record_fault(self, lane: Lane, fault: UpstreamError, reply: Reply) -> None:
        _, sequence = self._settle(lane, ending_of_fault(fault), reply)
        await self._stages.recorder.durable(sequence)

    def _settle(self, lane: Lane, ending: Ending, reply: Reply) -> tuple[Exchange, int]:
        stages, admitted = self._stages, self._admitted
        ended_unix_ns = max(stages.now_ns(), admitted.call.started_unix_ns)
        charge: Charge | None = None
        if ending.free:
            charge = FREE
        elif metered(reply.usage):
            charge = stages.price(lane, reply, ended_unix_ns // 1_000_000_000)
        exchange = Exchange(
            call=admitted.call,
            attempts=tuple(self._attempts),
            reply=reply,
            outcome=ending.outcome,
            status=bill_status(ending, reply.usage, charge),
            error_type=ending.error_type,
            charge=charge,
            ended_unix_ns=ended_unix_ns,
            latency_ns=stages.monotonic_ns() - admitted.started_ns,
            time_to_first_chunk_ns=self._first_chunk_ns,
        )
        sequence = stages.recorder.settle(exchange)
        self.settled = True
        stages.observe(exchange, self._status)
        return exchange, sequence


def _is_event_stream(headers: Sequence[Header]) -> bool:
    return any(
        name == b"content-type" and value.lower().startswith(b"text/event-stream") for name, value in headers
    )


def _provider_request_id(headers: Sequence[Header]) -> str | None:
    for name, value in headers:
        if name in (b"x-request-id", b"request-id"):
            return value[:128].decode("ascii", "replace")
    return None


def _cut_off() -> UpstreamError:
    return UpstreamError(
        "upstream_incomplete",
        "the provider's stream ended before its end event; send the request again",
        retryable=False,
        sent=True,
    )


async def _read_out(upstream: UpstreamReply, meter: StreamMeter) -> None:
    """Read what follows a terminal event: the end of the body, so that its connection can be used again."""
    try:
        async with asyncio.timeout(LINGER_S):
            while data := await upstream.read():  # bounded by LINGER_S
                meter.feed(data)
    except (TimeoutError, UpstreamError):
        return  # the answer is whole; how its connection ended does not matter
