"""The story with plain fakes: what stands where, and when, whatever happens."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Sequence
from typing import Any, Literal

import pytest

from gateway.billing import Prices, Target
from gateway.core.charge import Charge, Line
from gateway.core.errors import GatewayFault, UpstreamError
from gateway.core.exchange import Call, Exchange, Identity, Progress, Reply
from gateway.metering.settle import INTERRUPTED, Ending
from gateway.pipeline import PROGRESS_BYTES, Serving
from gateway.protocols import PROTOCOLS
from gateway.protocols.base import Dialect
from gateway.providers.upstream import Endpoint, Header, Timeouts
from gateway.release.relay import Caller, DrainBounds, Drains
from gateway.routing.choosing import Chooser
from gateway.routing.cooldown import Rules
from gateway.stages import Admitted, Lane, Stages

WHOLE = json.dumps(
    {
        "id": "c1",
        "model": "served",
        "choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }
).encode()
CONTENT = b'data: {"id":"c1","model":"served","choices":[{"delta":{"content":"hi"}}],"usage":null}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"


class World:
    """Fakes for everything around the story; `events` is what happened, in order."""

    def __init__(self, *reads: bytes | BaseException, stream: bool = False, status: int = 200) -> None:
        self.events: list[str] = []
        self.bills: list[Exchange] = []
        self.reads = list(reads)
        self.status = status
        self.stream = stream
        self.refuse_intent = self.refuse_settle = self.refuse_durable = self.refuse_progress = False
        self.refuse_begin = False
        self.owed = False
        self.noted: list[Progress] = []
        self.context_window: int | None = None
        self.drains_max = 1
        self.tick_ns = 10**9
        self.on_disconnect: Literal["drain", "cancel"] = "drain"
        self.max_tokens: int | None = None
        self.unreachable: BaseException | None = None
        self.gone_after: int | None = None
        self.sent = b""
        self.completed = False
        self.upstream_body = b""

    # the provider
    async def send(self, m: bytes, e: Endpoint, h: Sequence[Header], body: bytes, t: Timeouts) -> World:
        self.events.append("call")
        self.upstream_body = body
        if self.unreachable is not None:
            raise self.unreachable
        return self

    @property
    def headers(self) -> list[Header]:
        return [(b"content-type", b"text/event-stream" if self.stream else b"application/json")]

    async def read(self) -> bytes:
        if not self.reads:
            return b""
        piece = self.reads.pop(0)
        if isinstance(piece, BaseException):
            raise piece
        return piece

    def close(self) -> None:
        self.events.append("close")

    async def aclose(self) -> None:
        pass

    # the journal
    def intent(self, call: Call) -> int:
        if self.refuse_intent:
            raise GatewayFault("journal_unavailable", "full", status=503, owed=self.owed)
        self.events.append("intent")
        return 1

    def progress(self, call: Call, progress: Progress) -> None:
        if self.refuse_progress:
            raise GatewayFault("journal_unavailable", "full", status=503)
        self.events.append("progress")
        self.noted.append(progress)

    def settle(self, exchange: Exchange) -> int:
        if self.refuse_settle:
            raise GatewayFault("journal_unavailable", "full", status=503)
        self.events.append("bill")
        self.bills.append(exchange)
        return 2

    async def durable(self, sequence: int) -> None:
        if (self.refuse_durable and sequence == 2) or (self.refuse_begin and sequence == 1):
            raise GatewayFault("journal_unavailable", "bad disk", status=503)
        self.events.append(f"durable {sequence}")

    # the caller
    async def receive(self) -> dict[str, Any]:
        assert self.gone(), "the story must not wait for the caller"
        return {"type": "http.disconnect"}

    def gone(self) -> bool:
        return self.gone_after is not None and self.events.count("out") >= self.gone_after

    async def out(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.events.append(f"start {message['status']}")
            return
        self.sent += message["body"]
        self.completed = not message["more_body"]
        self.events.append("end" if self.completed else "out")

    def serving(self) -> Serving:
        protocol = PROTOCOLS["/v1/chat/completions"]
        body = json.dumps({"model": "m", "messages": [], "stream": self.stream}).encode()
        request = protocol.read_request(body)
        identity = Identity(key_id="k", user_id="alice", source="key", on_disconnect=self.on_disconnect)
        call = Call(
            record_id="r",
            trace_id="a" * 32,
            span_id="b" * 16,
            server_span_id="c" * 16,
            protocol=protocol.name,
            operation="chat",
            model="m",
            stream=self.stream,
            identity=identity,
            started_unix_ns=1,
            max_tokens=self.max_tokens,
            input_summary=request.summary,
        )
        lane = Lane(
            provider="p",
            model="m",
            prices="p",
            endpoint=Endpoint(scheme="http", host="h", port=1, target=b"/"),
            dialect=Dialect(),
            headers=lambda headers, traceparent: [(b"traceparent", traceparent)],
        )
        ticks = itertools.count(10**9, self.tick_ns)
        stages = Stages(
            transport=self,
            recorder=self,
            prices=Prices(charge=self.price, context_window=lambda target, reply, at: self.context_window),
            observe=lambda exchange, status: None,
            span_id=lambda: "d" * 16,
            now_ns=lambda: 2,
            monotonic_ns=lambda: next(ticks),
            timeouts=Timeouts(),
            drains=Drains(DrainBounds(duration_ns=30 * 10**9, bytes_max=10_000, count_max=self.drains_max)),
            reply_bytes_max=10_000,
            chooser=Chooser(Rules(), 300.0, lambda: 0.5),
            toss=lambda: 0.5,
            pause=asyncio.sleep,
        )
        admitted = Admitted(
            call=call,
            request=request,
            protocol=protocol,
            lanes=(lane,),
            body=body,
            headers=[],
            ids=[(b"x-request-id", b"r")],
            started_ns=0,
            traceparent=lambda span_id: span_id.encode(),
        )
        return Serving(stages, admitted, Caller(self._receive, self.out))

    async def _receive(self) -> dict[str, Any]:
        if self.gone():
            return {"type": "http.disconnect"}
        await Forever()
        raise AssertionError

    def price(self, target: Target, reply: Reply, at: int) -> Charge | None:
        line = Line(dimension="input", units=3, rate_atto_per_million=10**18, cost_pico_usd=3_000_000)
        return Charge(lines=(line,), price_id="x", catalog="y")


class Forever:
    """An awaitable that never completes: what `receive` does while the caller is there."""

    def __await__(self) -> Any:
        yield None


def cut() -> UpstreamError:
    return UpstreamError("upstream_incomplete", "cut", retryable=False, sent=True)


async def test_a_whole_reply_is_released_only_after_its_bill_is_durable() -> None:
    world = World(WHOLE)
    await world.serving().serve()
    assert world.events == ["intent", "call", "close", "bill", "durable 2", "start 200", "end"]
    assert world.sent == WHOLE
    assert (world.bills[0].status, world.bills[0].outcome) == ("final", "ok")


async def test_of_a_stream_only_the_terminal_event_waits_for_the_bill() -> None:
    world = progressing(2)
    await world.serving().serve()
    assert world.events == [
        "intent",
        "call",
        "durable 1",
        "start 200",
        "out",
        "out",
        "bill",
        "durable 2",
        "end",
        "close",
    ]
    assert world.sent == CONTENT + CONTENT + DONE
    assert b'"include_usage":true' in world.upstream_body
    assert world.bills[0].reply.usage is not None
    assert world.bills[0].reply.usage.counts == {"input": 3, "output": 2}


async def test_a_stream_that_comes_all_at_once_waits_once_for_its_bill_and_so_for_its_intent() -> None:
    world = World(CONTENT + CONTENT + USAGE + DONE, stream=True)
    await world.serving().serve()
    assert world.events == ["intent", "call", "bill", "durable 2", "start 200", "end", "close"]
    assert world.sent == CONTENT + CONTENT + DONE


@pytest.mark.parametrize("fault", ["refuse_settle", "refuse_durable"])
async def test_a_stream_that_comes_all_at_once_and_whose_bill_is_not_kept_is_not_begun(fault: str) -> None:
    world = World(CONTENT + USAGE + DONE, stream=True)
    setattr(world, fault, True)
    with pytest.raises(GatewayFault):
        await world.serving().serve()
    assert world.sent == b""
    assert not [event for event in world.events if event.startswith(("start", "out", "end"))]


async def test_no_provider_is_called_when_the_intent_cannot_be_written() -> None:
    world = World(WHOLE)
    world.refuse_intent = True
    with pytest.raises(GatewayFault):
        await world.serving().serve()
    assert world.events == []


@pytest.mark.parametrize("fault", ["refuse_settle", "refuse_durable"])
async def test_a_whole_reply_whose_bill_is_not_kept_is_not_released(fault: str) -> None:
    world = World(WHOLE)
    setattr(world, fault, True)
    with pytest.raises(GatewayFault):
        await world.serving().serve()
    assert world.sent == b""
    assert not world.completed


async def test_a_stream_whose_intent_is_not_durable_is_billed_and_not_begun() -> None:
    """Its provider was called: without a bill the intent would stay open for as long as the gateway runs."""
    world = World(CONTENT, USAGE + DONE, stream=True)
    world.refuse_begin = True
    with pytest.raises(GatewayFault):
        await world.serving().serve()
    assert world.events == ["intent", "call", "bill", "close"]
    assert (world.bills[0].outcome, world.bills[0].status) == ("internal_error", "unmetered")


@pytest.mark.parametrize("fault", ["refuse_settle", "refuse_durable"])
async def test_a_stream_whose_bill_is_not_kept_never_ends(fault: str) -> None:
    world = World(CONTENT, USAGE + DONE, stream=True)
    setattr(world, fault, True)
    with pytest.raises(GatewayFault):
        await world.serving().serve()
    assert world.sent == CONTENT
    assert not world.completed


async def test_a_caller_that_leaves_is_billed_with_the_providers_own_figure() -> None:
    world = World(CONTENT, CONTENT, USAGE + DONE, stream=True)
    world.gone_after = 1
    await world.serving().serve()
    (bill,) = world.bills
    assert (bill.outcome, bill.status) == ("client_disconnected", "final")
    assert bill.reply.usage is not None
    assert (bill.reply.usage.source, bill.reply.usage.counts["output"]) == ("drained", 2)
    assert world.sent == CONTENT


async def test_a_drain_is_bounded() -> None:
    world = World(*[CONTENT] * 1000, stream=True)
    world.gone_after = 1
    await world.serving().serve()
    (bill,) = world.bills
    assert len(world.reads) > 800
    assert (bill.outcome, bill.status) == ("client_disconnected", "estimated")
    read = 1000 - len(world.reads)
    assert bill.reply.usage is not None
    assert bill.reply.usage.counts["output"] == read  # each piece holds the two bytes of "hi"


@pytest.mark.parametrize("ending", [[cut()], []], ids=["cut", "closed without an end event"])
async def test_a_stream_without_its_end_is_told_as_broken(ending: list[UpstreamError]) -> None:
    world = World(CONTENT, CONTENT[:40], *ending, stream=True)
    await world.serving().serve()
    (bill,) = world.bills
    assert (bill.outcome, bill.status) == ("upstream_incomplete", "estimated")
    assert world.sent.startswith(CONTENT + b'data: {"error"')
    assert b"[DONE]" not in world.sent


async def test_an_error_reply_is_free_and_says_so() -> None:
    body = b'{"error":{"message":"slow down","type":"rate_limit","code":"rate_limit_exceeded"}}'
    world = World(body, status=429)
    await world.serving().serve()
    (bill,) = world.bills
    assert (bill.outcome, bill.status, bill.error_type) == ("upstream_error", "final", "rate_limit_exceeded")
    assert bill.charge is not None
    assert bill.charge.cost_pico_usd == 0
    assert world.sent == body


async def test_an_unreachable_provider_is_billed_once_as_free() -> None:
    world = World()
    world.unreachable = UpstreamError("upstream_unreachable", "no", retryable=True, sent=False)
    serving = world.serving()
    with pytest.raises(UpstreamError):
        await serving.serve()
    serving.abandon(Ending(outcome="internal_error"))
    (bill,) = world.bills
    assert (bill.outcome, bill.status) == ("upstream_unreachable", "final")


@pytest.mark.parametrize("fault", ["unreachable", "cut"])
async def test_what_went_wrong_is_told_only_after_its_bill_is_durable(fault: str) -> None:
    def broken() -> World:
        world = World(cut())
        world.unreachable = cut() if fault == "unreachable" else None
        return world

    world = broken()
    with pytest.raises(UpstreamError):
        await world.serving().serve()
    story = [event for event in world.events if event != "close"]
    assert story[:4] == ["intent", "call", "bill", "durable 2"]
    world = broken()
    world.refuse_durable = True
    with pytest.raises(GatewayFault, match="bad disk"):
        await world.serving().serve()
    assert len(world.bills) == 1
    assert world.sent == b""


async def test_a_timeout_after_sending_is_not_called_free() -> None:
    world = World()
    world.unreachable = UpstreamError("upstream_timeout", "late", status=504, retryable=True, sent=True)
    with pytest.raises(UpstreamError):
        await world.serving().serve()
    assert (world.bills[0].outcome, world.bills[0].status) == ("upstream_timeout", "unmetered")


async def test_a_reply_without_usage_and_content_is_unmetered_and_has_no_cost() -> None:
    world = World(b'{"id":"c","model":"m","choices":[]}')
    await world.serving().serve()
    assert (world.bills[0].status, world.bills[0].charge) == ("unmetered", None)


async def test_a_reply_that_is_too_large_is_refused_and_billed() -> None:
    world = World(b"x" * 6000, b"x" * 6000)
    with pytest.raises(UpstreamError, match="larger than"):
        await world.serving().serve()
    assert len(world.bills) == 1
    assert world.sent == b""


def progressing(count: int) -> World:
    world = World(*[CONTENT] * count, USAGE + DONE, stream=True)
    world.tick_ns = 1000
    return world


async def test_progress_is_noted_before_what_it_covers_is_released() -> None:
    world = progressing(200)
    await world.serving().serve()
    released = noted = 0
    notes = iter(world.noted)
    for event in world.events:
        if event == "out":
            released += len(CONTENT)
            assert released <= noted + PROGRESS_BYTES
        elif event == "progress":
            noted = next(notes).reply.output_summary["bytes"]
            assert noted >= released
    events_a_note = PROGRESS_BYTES // len(CONTENT) + 1
    assert len(world.noted) == 200 // events_a_note


async def test_progress_of_a_slow_stream_is_noted_by_time() -> None:
    world = progressing(20)
    world.tick_ns = 130_000_000
    await world.serving().serve()
    assert len(world.noted) == 9  # every second read: 260 ms after the last note


async def test_what_comes_with_the_end_is_released_behind_the_bill_and_needs_no_note() -> None:
    world = World(CONTENT, CONTENT * 200 + USAGE + DONE, stream=True)
    world.refuse_progress = True
    await world.serving().serve()
    assert world.sent == CONTENT * 201 + DONE
    assert world.events[-4:] == ["bill", "durable 2", "end", "close"]
    assert (world.events.count("out"), world.bills[0].outcome) == (1, "ok")


async def test_what_cannot_be_noted_is_not_released_and_the_rest_is_read_for_the_bill() -> None:
    world = progressing(100)
    world.refuse_progress = True
    await world.serving().serve()
    assert not world.reads
    assert world.sent.startswith(CONTENT)
    assert world.sent.count(CONTENT) <= PROGRESS_BYTES // len(CONTENT)
    assert world.sent.endswith(b'"code":"journal_unavailable"}}\n\n')
    (bill,) = world.bills
    assert (bill.outcome, bill.error_type, bill.status) == ("internal_error", "journal_unavailable", "final")


async def test_an_intent_that_may_be_on_the_disk_gets_its_bill_though_no_provider_was_called() -> None:
    world = World(WHOLE)
    world.refuse_intent = world.owed = True
    with pytest.raises(GatewayFault):
        await world.serving().serve()
    (bill,) = world.bills
    assert "call" not in world.events
    assert (bill.outcome, bill.status, bill.attempts) == ("internal_error", "final", ())


@pytest.mark.parametrize("why", ["the key says cancel", "too many drains"])
async def test_a_stream_that_is_not_drained_is_billed_with_what_came(why: str) -> None:
    world = World(*[CONTENT] * 50, USAGE + DONE, stream=True)
    world.gone_after = 3
    if why == "too many drains":
        world.drains_max = 0
    else:
        world.on_disconnect = "cancel"
    await world.serving().serve()
    (bill,) = world.bills
    assert (bill.outcome, bill.status) == ("client_disconnected", "estimated")
    assert bill.reply.usage is not None
    assert bill.reply.usage.counts["output"] == 3
    assert len(world.reads) == 51 - 3
    assert world.events[-1] == "close"


@pytest.mark.parametrize(("max_tokens", "context_window"), [(7, None), (None, 7), (7, 100)])
async def test_no_estimate_is_above_what_the_model_can_do(
    max_tokens: int | None, context_window: int | None
) -> None:
    world = World(*[CONTENT.replace(b"hi", b"a long word " * 10)] * 5, stream=True)
    world.max_tokens, world.context_window = max_tokens, context_window
    await world.serving().serve()
    usage = world.bills[0].reply.usage
    assert usage is not None
    assert usage.estimate is not None
    assert usage.counts["output"] == 7
    assert usage.estimate.bounds["output"][1] == 7


async def test_a_stream_told_to_stop_in_the_middle_is_billed_with_what_came() -> None:
    world = World(CONTENT, asyncio.CancelledError(), stream=True)
    serving = world.serving()
    with pytest.raises(asyncio.CancelledError):
        await serving.serve()
    serving.abandon(INTERRUPTED)
    (bill,) = world.bills
    assert (bill.outcome, bill.status) == ("interrupted", "estimated")
    assert not world.completed


async def test_a_call_told_to_stop_before_its_answer_is_billed_as_an_attempt() -> None:
    world = World()
    world.unreachable = asyncio.CancelledError()
    serving = world.serving()
    with pytest.raises(asyncio.CancelledError):
        await serving.serve()
    serving.abandon(INTERRUPTED)
    (bill,) = world.bills
    assert (bill.outcome, bill.status) == ("interrupted", "unmetered")
    assert [attempt.error_type for attempt in bill.attempts] == ["interrupted"]
