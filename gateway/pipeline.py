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
import contextlib
from collections.abc import Callable

import msgspec

from gateway.attempts import Answer, Attempts
from gateway.billing import Target, bill
from gateway.core.errors import GatewayFault, UpstreamError
from gateway.core.exchange import Exchange, Progress, Reply, Said
from gateway.metering.estimate import counted
from gateway.metering.settle import (
    INTERRUPTED,
    NEVER_CALLED,
    NOT_KEPT,
    Ending,
    drained,
    ending_after,
    ending_of_fault,
    ending_of_reply,
)
from gateway.protocols.base import StreamMeter
from gateway.providers.upstream import UpstreamReply
from gateway.release.headers import reply_headers
from gateway.release.relay import Caller, Patience
from gateway.stages import Admitted, Stages

LINGER_S = 0.25
"""How long the end of the body is awaited behind a terminal event: it nearly always comes along with it."""
PROGRESS_BYTES = 4096
PROGRESS_NS = 250_000_000
"""A stream's progress is noted before a release that goes this far, or this long, beyond the last note."""


class Serving:
    """One request being served; `serve` is the story."""

    def __init__(self, stages: Stages, admitted: Admitted, caller: Caller) -> None:
        self._stages = stages
        self._admitted = admitted
        self._caller = caller
        self._attempts = Attempts(stages, admitted, caller)
        self._first_chunk_ns: int | None = None
        self._meter: StreamMeter | None = None
        self._noted_bytes = 0
        self._noted_ns: int | None = None
        self._not_kept = False
        self._with_end = b""
        self._status = 0
        self.settled = False

    async def serve(self) -> None:
        """Tell the story once.

        Raises:
            UpstreamError, GatewayFault: nothing was released yet; the door answers in its envelope.
        """
        try:
            intent = self._stages.recorder.intent(self._admitted.call)
        except GatewayFault as fault:
            if fault.owed:  # it may be on the disk already: it must not stay open
                self._status = fault.status
                self._settle(NEVER_CALLED, Reply())
            raise
        try:
            answer = await self._attempts.answer()
        except UpstreamError as fault:
            self._status = fault.status
            _, sequence = self._settle(ending_of_fault(fault), Reply())
            await self._stages.recorder.durable(sequence)
            raise
        self._status = answer.status
        if answer.upstream is None:
            await self._serve_whole(answer)
            return
        try:
            await self._serve_stream(answer.upstream, answer.first, intent)
        finally:
            answer.upstream.close()

    @property
    def streaming(self) -> bool:
        """Whether the answer is a stream that has begun."""
        return self._meter is not None

    def abandon(self, ending: Ending, *, blank: bool = False) -> None:
        """Settle a request that could not be served to its end (shutdown, a fault of ours); at most once.

        Args:
            blank: without what the reply amounted to so far: to find that out is what failed.
        """
        if not self.settled:
            self._status = self._status or (503 if ending.outcome == "interrupted" else 500)
            if ending is INTERRUPTED and self._attempts.over:  # in the pause before another attempt
                ending = msgspec.structs.replace(ending, free=True)
            if blank or self._meter is None:
                self._settle(ending, Reply())
            else:
                self._settle(ending, self._meter.reply(), self._meter.said)

    # a whole reply

    async def _serve_whole(self, answer: Answer) -> None:
        admitted, caller = self._admitted, self._caller
        body = answer.body or b""
        reply, said = self._read_reply(answer, body)
        gone = caller.why if caller.left() else None
        if gone is not None:
            reply = drained(reply)
        ending = ending_of_reply(answer.status, reply, billable=admitted.protocol.billable, gone=gone)
        exchange, sequence = self._settle(ending, reply, said)
        status, headers, body = self._attempts.lane.relayed(
            answer.status, answer.headers, body, reply, streamed=answer.events
        )
        await self._stages.recorder.durable(sequence)
        await caller.start(status, reply_headers(headers, admitted.ids, exchange, content_length=len(body)))
        await caller.body(body, more=False)

    def _read_reply(self, answer: Answer, body: bytes) -> tuple[Reply, Callable[[], Said | None]]:
        """Read a whole reply; a provider that streams unasked is read as it wrote."""
        lane = self._attempts.lane
        protocol, dialect = lane.spoken(self._admitted.protocol), lane.dialect
        if not answer.events:
            return protocol.read_reply(answer.status, body, dialect), lambda: protocol.said(body)
        meter = protocol.stream_meter(self._admitted.request, dialect)
        with contextlib.suppress(UpstreamError):  # an event that is too large: what came before it counts
            meter.feed(body)
        return meter.finish().reply, meter.said

    # a streamed reply

    async def _serve_stream(self, upstream: UpstreamReply, first: bytes, intent: int) -> None:
        stages, admitted, caller, lane = self._stages, self._admitted, self._caller, self._attempts.lane
        meter = self._meter = lane.spoken(admitted.protocol).stream_meter(admitted.request, lane.dialect)
        fault: UpstreamError | None = None
        try:
            await self._relay(upstream, first, meter, intent)
        except UpstreamError as broken:
            fault = broken
        tail = meter.finish()
        reply = tail.reply
        gone = caller.why if caller.left() else None
        if gone is not None:
            reply = drained(reply)
        if self._not_kept:
            ending = NOT_KEPT
        elif fault is not None and not reply.complete:
            ending = ending_of_fault(fault)
        else:
            ending = ending_of_reply(200, reply, billable=admitted.protocol.billable, gone=gone)
        _, sequence = self._settle(ending, reply, meter.said)
        await stages.recorder.durable(sequence)
        if not caller.started:  # it all came at once: its bill is durable, and so is the intent before it
            await self._start(upstream)
        if ending.outcome in ("ok", "client_disconnected") or (
            reply.error_type is not None and fault is None
        ):
            await caller.body(self._with_end + tail.held, more=False)
        else:
            await caller.body(admitted.protocol.error_event(fault or _cut_off()), more=False)

    async def _start(self, upstream: UpstreamReply) -> None:
        made = self._attempts.made
        await self._caller.start(200, reply_headers(upstream.headers, self._admitted.ids, None, made=made))

    async def _start_behind(self, intent: int, upstream: UpstreamReply) -> None:
        try:
            await self._stages.recorder.durable(intent)
        except GatewayFault as refused:  # the provider was called, and may charge
            self._status = refused.status
            self._settle(NOT_KEPT, Reply())
            raise
        await self._start(upstream)

    async def _relay(self, upstream: UpstreamReply, data: bytes, meter: StreamMeter, intent: int) -> None:
        """Pass the stream on as it comes, until its end, or as far as patience goes without a caller."""
        stages, caller = self._stages, self._caller
        async with Patience(caller, self._attempts.drains, stages.monotonic_ns) as patience:
            while data:  # bounded by upstream.total_timeout_s
                now = stages.monotonic_ns()
                if self._first_chunk_ns is None:
                    self._first_chunk_ns = now - self._admitted.started_ns
                released = meter.feed(data)
                if meter.ended and (not caller.started or self._owes_note(meter, now)):
                    self._with_end = released  # the bill comes at once, and has more to say than a note
                elif released:
                    if not caller.started:
                        await self._start_behind(intent, upstream)
                    if await self._noted(meter, now):
                        await caller.body(released, more=True)
                if meter.ended:
                    await _read_out(upstream, meter)
                    return
                patience.take(len(data), now)
                data = await upstream.read()

    def _owes_note(self, meter: StreamMeter, now_ns: int) -> bool:
        if self._noted_ns is None:
            self._noted_ns = now_ns
        return meter.fed - self._noted_bytes > PROGRESS_BYTES or now_ns - self._noted_ns > PROGRESS_NS

    async def _noted(self, meter: StreamMeter, now_ns: int) -> bool:
        """Note the progress if it is time to; False if it could not be kept, so that nothing may go out."""
        if not self._owes_note(meter, now_ns):
            return True
        stages, admitted = self._stages, self._admitted
        progress = Progress(
            at_unix_ns=stages.now_ns(),
            prices=self._attempts.lane.prices,
            attempt=self._attempts.made[-1],
            reply=meter.reply(),
            time_to_first_chunk_ns=self._first_chunk_ns,
        )
        try:
            stages.recorder.progress(admitted.call, progress)
        except GatewayFault as fault:
            if not self._not_kept:
                self._not_kept = True
                await self._caller.cut(admitted.protocol.error_event(fault))
            return False
        self._noted_bytes, self._noted_ns = meter.fed, now_ns
        return True

    # price and record

    def _settle(
        self, ending: Ending, reply: Reply, said: Callable[[], Said | None] = lambda: None
    ) -> tuple[Exchange, int]:
        stages, admitted, attempts = self._stages, self._admitted, self._attempts
        lane = attempts.lane
        exchange = bill(
            stages.prices,
            admitted.call,
            Target(
                provider=lane.provider,
                prices=lane.prices,
                model=lane.model,
                key_id=admitted.call.identity.key_id,
                team=admitted.call.identity.team,
            ),
            ending_after(attempts.made, ending),
            reply,
            attempts=tuple(attempts.made),
            ended_unix_ns=stages.now_ns(),
            latency_ns=stages.monotonic_ns() - admitted.started_ns,
            time_to_first_chunk_ns=self._first_chunk_ns,
            output=lambda: counted(said(), stages.tokenizer, stages.count),
        )
        sequence = stages.recorder.settle(exchange)
        self.settled = True
        attempts.settled(exchange)
        admitted.hold.settle(exchange)
        stages.observe(exchange, self._status)
        return exchange, sequence


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
