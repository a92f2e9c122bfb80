"""Attempts: one call of a provider after another, until one brings an answer or no further one may help.

Each attempt becomes a CLIENT span. What decides is pure and stands in `gateway.routing`; here it is done.
Nothing is released while this runs: the caller sees one answer, of whichever attempt.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Final

import msgspec

from gateway.core.errors import UpstreamError
from gateway.core.exchange import Attempt, Exchange
from gateway.metering.settle import INTERRUPTED, ending_of_fault
from gateway.providers.reading import first_event, is_event_stream, read_whole
from gateway.providers.upstream import Header, UpstreamReply
from gateway.release.relay import Caller, Drains, Patience
from gateway.routing.choosing import Attempted
from gateway.routing.retry import (
    FORBIDDEN,
    REFUSED,
    SIGNALS,
    Again,
    Failure,
    blamed,
    cause_of_fault,
    cause_of_status,
    next_attempt,
    retry_after,
)
from gateway.routing.rolling import Sample
from gateway.stages import Admitted, Lane, Stages

BLANKS: Final = b" \t\r\n\xef\xbb\xbf"
"""What may stand around a document: some providers keep a connection alive by blank lines, in any number."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the attempts came to.

    Args:
        body: a whole reply's; None where a stream is to be relayed as it comes.
        events: it is a stream of events, asked for or not.
        upstream: the stream, to be closed once; None of a whole reply.
        first: what was read of the stream already: its first event at least.
    """

    status: int
    headers: Sequence[Header]
    events: bool
    body: bytes | None = None
    upstream: UpstreamReply | None = None
    first: bytes = b""


class Attempts:
    """The attempts of one request.

    Attributes:
        made: each call so far, in order.
        lane: where the last one went, or the first one will go.
    """

    __slots__ = ("_admitted", "_asked_s", "_caller", "_failures", "_stages", "_waited_s", "lane", "made")

    def __init__(self, stages: Stages, admitted: Admitted, caller: Caller) -> None:
        self._stages = stages
        self._admitted = admitted
        self._caller = caller
        self._failures: list[Failure] = []
        self._asked_s: float | None = None  # by the last reply, to be left alone for
        self._waited_s = 0.0
        self.made: list[Attempt] = []
        self.lane: Lane = admitted.lanes[0]

    @property
    def over(self) -> bool:
        """Whether each call so far has failed, and none of them may be charged for."""
        failed = len(self._failures) == len(self.made)
        return failed and not any(attempt.unsettled for attempt in self.made)

    @property
    def drains(self) -> Drains | None:
        """Where a stream is read on without its caller; None where it is not."""
        cancels = self._admitted.call.identity.on_disconnect == "cancel"
        return None if cancels else self._stages.drains

    async def answer(self) -> Answer:
        """Call until there is an answer; an error status is one, if it comes last.

        Raises:
            UpstreamError: the last attempt brought nothing that could be passed on.
        """
        place = self._first()
        while True:  # bounded by retries.attempts_max
            self.lane = self._admitted.lanes[place]
            try:
                upstream = await self._call(place)
                again = self._after_head(place, upstream)
                if again is None:
                    answer = await self._taken(upstream)
                    again = self._after_body(place, answer)
                    if again is None:
                        return answer
                else:
                    upstream.close()
            except UpstreamError as fault:
                again = self._after_fault(place, fault)
                if again is None:
                    raise
            await self._pause(again)
            place = again.target

    def settled(self, exchange: Exchange) -> None:
        """Take from the bill how the target did that served."""
        if not self.made:
            return
        ok = self._showed(exchange)
        if ok is None:
            return
        usage = exchange.reply.usage
        counts = {} if usage is None or usage.source == "estimated" else usage.counts
        output = counts.get("output")
        sides = [counts[side] for side in exchange.call.sides if side in counts]
        began_ns = self.made[-1].started_unix_ns
        ended_ns = max(began_ns, exchange.ended_unix_ns)
        first_ns = exchange.time_to_first_chunk_ns
        self._stages.chooser.measured(
            self.lane.target,
            Sample(
                ok=ok,
                latency_ns=ended_ns - began_ns,
                first_chunk_ns=None
                if first_ns is None
                else max(0, first_ns - (began_ns - exchange.call.started_unix_ns)),
                output_tokens=output,
                tokens=sum(sides) if len(sides) == len(exchange.call.sides) else None,
                cost_pico_usd=None if exchange.charge is None else exchange.charge.cost_pico_usd,
            ),
            self._stages.monotonic_ns(),
        )

    def _showed(self, exchange: Exchange) -> bool | None:
        """Say whether the last attempt brought an answer; None where it says nothing of its target.

        What the caller got wrong, or did not wait for, and what ended here, is not the provider's doing.
        """
        status = self.made[-1].status
        if exchange.outcome == "ok":
            return True
        if exchange.outcome == "client_disconnected":
            return True if exchange.reply.complete else None
        if exchange.outcome in ("interrupted", "internal_error"):
            return None
        if status is None or status >= 400:
            return None if status is not None and not blamed(status) else False
        if len(self._failures) < len(self.made):  # a stream's; of a whole reply `_after_fault` noted it
            self._stages.chooser.broke(self.lane.target, self._stages.monotonic_ns())
        return False

    # one call

    def _first(self) -> int:
        """Return the place to begin with: what was chosen may have had its probe meanwhile."""
        if len(self._admitted.lanes) == 1:
            return 0
        chooser, targets = self._stages.chooser, [lane.target for lane in self._admitted.lanes]
        callables = chooser.callable(targets, self._stages.monotonic_ns())
        return callables.index(True) if True in callables else 0

    async def _call(self, place: int) -> UpstreamReply:
        stages, admitted, lane = self._stages, self._admitted, self.lane
        span_id = stages.span_id()
        body = lane.spoken(admitted.protocol).upstream_body(
            admitted.body, admitted.request, model=lane.model, dialect=lane.dialect
        )
        headers = lane.headers(admitted.headers, admitted.traceparent(span_id))
        again = any(failure.target == place for failure in self._failures)
        attempted = stages.chooser.began(lane.target, stages.monotonic_ns(), again=again)
        started_unix_ns = stages.now_ns()
        try:
            async with self._waiting():
                reply = await stages.transport.send(
                    b"POST", lane.endpoint, headers, body, lane.timeouts or stages.timeouts
                )
        except UpstreamError as fault:
            self._note(span_id, started_unix_ns, None, fault)
            if cause_of_fault(fault) is None:  # the caller left; that says nothing of the provider
                stages.chooser.given_up(attempted)
            else:
                self._tell(attempted, True, None)
            raise
        except BaseException:  # told to stop; the provider may be at work on it
            self._note(span_id, started_unix_ns, None, None)
            stages.chooser.given_up(attempted)
            raise
        self._note(span_id, started_unix_ns, reply, None)
        self._asked_s = self._wait_s(reply)
        self._tell(attempted, blamed(reply.status), self._asked_s)
        if reply.status in REFUSED:
            stages.chooser.refused(lane.target, reply.status, stages.monotonic_ns())
        return reply

    async def _taken(self, upstream: UpstreamReply) -> Answer:
        """Take a reply: a stream as it is once its first event is there, anything else wholly."""
        events = upstream.status == 200 and is_event_stream(upstream.headers)
        if events and self._admitted.request.stream:
            try:
                async with Patience(self._caller, self.drains, self._stages.monotonic_ns):
                    first = await first_event(upstream)
            except BaseException:
                upstream.close()
                raise
            return Answer(status=200, headers=upstream.headers, events=True, upstream=upstream, first=first)
        try:
            body = await read_whole(upstream, self._stages.reply_bytes_max)
        finally:
            upstream.close()
        return Answer(status=upstream.status, headers=upstream.headers, events=events, body=body)

    def _waiting(self) -> contextlib.AbstractAsyncContextManager[object]:
        """Bound the wait for a head: a stream that is not to be drained is not waited for either."""
        if self._admitted.request.stream and self.drains is None:
            return Patience(self._caller, None, self._stages.monotonic_ns)
        return contextlib.nullcontext()

    def _note(
        self, span_id: str, started_unix_ns: int, reply: UpstreamReply | None, fault: UpstreamError | None
    ) -> None:
        lane = self.lane
        error_type = None if fault is None else fault.code
        if reply is None and fault is None:
            error_type = INTERRUPTED.error_type
        elif reply is not None and reply.status >= 400:
            error_type = str(reply.status)
        self.made.append(
            Attempt(
                span_id=span_id,
                provider=lane.provider,
                model=lane.model,
                host=lane.endpoint.host,
                port=lane.endpoint.port,
                path=lane.spoken(self._admitted.protocol).path,
                started_unix_ns=started_unix_ns,
                ended_unix_ns=self._stages.now_ns(),
                status=None if reply is None else reply.status,
                error_type=error_type,
                provider_request_id=None if reply is None else _provider_request_id(reply.headers),
                unsettled=fault is not None and not ending_of_fault(fault).free,
            )
        )

    def _tell(self, attempted: Attempted, failed: bool, wait_s: float | None) -> None:
        self._stages.chooser.answered(attempted, not failed, self._stages.monotonic_ns(), wait_s)

    def _wait_s(self, reply: UpstreamReply) -> float | None:
        if reply.status not in SIGNALS:
            return None
        value = next((value for name, value in reply.headers if name == b"retry-after"), None)
        return retry_after(value, self._stages.now_ns() / 1e9)

    # what comes next

    def _after_head(self, place: int, upstream: UpstreamReply) -> Again | None:
        cause = cause_of_status(upstream.status)
        if cause is None:
            return None
        return self._next(Failure(place, cause, self._asked_s))

    def _after_body(self, place: int, answer: Answer) -> Again | None:
        """Return what follows a whole 200 that is no document: a proxy's page, or nothing at all.

        Raises:
            UpstreamError: nothing does, and the caller is told so in the envelope that it can read.
        """
        if answer.status != 200 or answer.body is None or answer.events:
            return None
        document = answer.body.strip(BLANKS)
        if document[:1] == b"{" and document[-1:] == b"}":
            return None
        self._stages.chooser.broke(self.lane.target, self._stages.monotonic_ns())
        self.made[-1] = msgspec.structs.replace(self.made[-1], error_type="upstream_protocol", unsettled=True)
        again = self._next(Failure(place, "connection"))
        if again is None:
            raise UpstreamError(
                "upstream_protocol",
                "the provider answered 200 with what is no JSON object; it, or a proxy in between, is broken",
                retryable=False,
                sent=True,
            )
        return again

    def _after_fault(self, place: int, fault: UpstreamError) -> Again | None:
        if len(self._failures) == len(self.made):
            return None  # the body of an error that was to be passed on
        last = self.made[-1]
        if last.status is not None:  # its reply broke off, of which nothing was released
            self.made[-1] = msgspec.structs.replace(last, error_type=fault.code, unsettled=last.status < 400)
            if last.status < 400 and cause_of_fault(fault) is not None:
                self._stages.chooser.broke(self.lane.target, self._stages.monotonic_ns())
        return self._next(Failure(place, cause_of_fault(fault)))

    def _next(self, failure: Failure) -> Again | None:
        stages = self._stages
        self._failures.append(failure)
        targets = [lane.target for lane in self._admitted.lanes]
        again = next_attempt(
            self._admitted.policy,
            self._failures,
            targets=stages.chooser.callable(targets, stages.monotonic_ns()),
            released=False,
            waited_s=self._waited_s,
            affordable=stages.chooser.affordable(targets),
            jitter=stages.toss(),
        )
        if again is None or self._caller.left():
            return None
        if any(earlier.target == again.target for earlier in self._failures):
            stages.chooser.retried(targets[again.target])
        last = self.made[-1]
        if last.status != FORBIDDEN:
            stages.chooser.measured(
                self.lane.target,
                Sample(ok=False, latency_ns=max(0, last.ended_unix_ns - last.started_unix_ns)),
                stages.monotonic_ns(),
            )
        return again

    async def _pause(self, again: Again) -> None:
        """Wait before the next attempt.

        Raises:
            UpstreamError: the caller left meanwhile; nobody waits for another attempt.
        """
        if again.pause_s <= 0:
            return
        self._waited_s += again.pause_s
        with contextlib.suppress(UpstreamError):
            async with Patience(self._caller, None, self._stages.monotonic_ns):
                await self._stages.pause(again.pause_s)
        if self._caller.left():
            raise UpstreamError(
                self._caller.why,
                "the caller left before another attempt",
                retryable=False,
                sent=any(attempt.unsettled for attempt in self.made),
            )


def _provider_request_id(headers: Sequence[Header]) -> str | None:
    for name, value in headers:
        if name in (b"x-request-id", b"request-id"):
            return value[:128].decode("ascii", "replace")
    return None
