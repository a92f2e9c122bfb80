"""Attempts: the story with several providers, each doing what a script says, and one bill of it all."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import pytest

from gateway.billing import Prices, Target
from gateway.core.charge import Charge, Line
from gateway.core.errors import UpstreamError
from gateway.core.exchange import Call, Exchange, Identity, Progress, Reply
from gateway.metering.settle import INTERRUPTED
from gateway.pipeline import Serving
from gateway.protocols import PROTOCOLS
from gateway.protocols.base import Dialect
from gateway.providers.upstream import Endpoint, Header, Timeouts
from gateway.release.relay import Caller, DrainBounds, Drains
from gateway.routing.choosing import Chooser
from gateway.routing.cooldown import Rules
from gateway.routing.retry import Policy
from gateway.routing.targets import Target as Place
from gateway.stages import Admitted, Lane, Stages

CONTENT = b'data: {"id":"x","model":"m","choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'
USAGE = b'data: {"id":"x","model":"m","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"
STREAM = CONTENT + USAGE + DONE


def whole(provider: str) -> bytes:
    choice = {"index": 0, "finish_reason": "stop", "message": {"content": provider}}
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    return json.dumps({"id": "x", "model": "m", "choices": [choice], "usage": usage}).encode()


class Answers:
    """A reply of a script; closed exactly once."""

    def __init__(
        self,
        status: int,
        body: bytes | UpstreamError | list[bytes | UpstreamError],
        headers: Sequence[Header] = (),
        *,
        stream: bool = False,
    ) -> None:
        kind = b"text/event-stream" if stream else b"application/json"
        self.status = status
        self.headers: Sequence[Header] = [(b"content-type", kind), *headers]
        self._reads = list(body) if isinstance(body, list) else [body]
        self.closed = 0

    async def read(self) -> bytes:
        read = self._reads.pop(0) if self._reads else b""
        if isinstance(read, UpstreamError):
            raise read
        return read

    def close(self) -> None:
        self.closed += 1


def ok(provider: str) -> Answers:
    return Answers(200, whole(provider))


def error(status: int, *headers: Header) -> Answers:
    return Answers(status, b'{"error":{"message":"no","type":"t","code":"c"}}', headers)


def fault(code: str, *, sent: bool) -> UpstreamError:
    return UpstreamError(code, code, retryable=True, sent=sent)


UNREACHABLE = fault("upstream_unreachable", sent=False)
TIMEOUT = fault("upstream_timeout", sent=True)
CUT = fault("upstream_incomplete", sent=True)


class World:
    """Providers `a`, `b`, `c`, each with a script of what it does, call by call."""

    def __init__(self, *scripts: list[Answers | UpstreamError], stream: bool = False, **policy: Any) -> None:
        self.scripts = {"abc"[place]: list(script) for place, script in enumerate(scripts)}
        self.given: list[Answers] = []
        self.stream = stream
        self.policy = Policy(**policy)
        self.called: list[str] = []
        self.pauses: list[float] = []
        self.bills: list[Exchange] = []
        self.records: list[str] = []
        self.sent = b""
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.leaves_after: int | None = None
        self.clock = 10**15
        self.refused: list[tuple[Hashable, int]] = []
        self.chooser = Chooser(
            Rules(), 300.0, lambda: 0.5, refused=lambda target, status: self.refused.append((target, status))
        )

    async def send(
        self, method: bytes, endpoint: Endpoint, headers: Sequence[Header], body: bytes, timeouts: Timeouts
    ) -> Answers:
        self.called.append(endpoint.host)
        self.clock += 10**7
        step = self.scripts[endpoint.host].pop(0)
        if isinstance(step, UpstreamError):
            raise step
        self.given.append(step)
        return step

    async def aclose(self) -> None: ...

    def intent(self, call: Call) -> int:
        self.records.append("intent")
        return 1

    def progress(self, call: Call, progress: Progress) -> None:
        self.records.append("progress")

    def settle(self, exchange: Exchange) -> int:
        self.records.append("bill")
        self.bills.append(exchange)
        return 2

    async def durable(self, sequence: int) -> None: ...

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.clock += round(seconds * 1e9)

    async def receive(self) -> dict[str, Any]:
        if self.leaves_after is not None and len(self.called) >= self.leaves_after:
            return {"type": "http.disconnect"}
        await Forever()
        return {}

    async def out(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = dict(message["headers"])
        else:
            self.sent += message["body"]

    def price(self, target: Target, reply: Reply, at: int) -> Charge:
        cost = {"a": 1, "b": 2, "c": 3}[target.provider]
        line = Line(dimension="input", units=3, rate_atto_per_million=10**18, cost_pico_usd=cost)
        return Charge(lines=(line,), price_id=target.provider, catalog="y")

    async def serve(self) -> Exchange:
        """Serve one request; return its one bill."""
        before = len(self.bills)
        try:
            await self.served()
        finally:
            assert self.records[-1] == "bill"
            assert len(self.bills) == before + 1
            assert all(reply.closed == 1 for reply in self.given)
        return self.bills[-1]

    async def interrupted(self) -> Exchange:
        """Serve one request that is told to stop; return its one bill."""
        serving = self.serving()
        with pytest.raises(asyncio.CancelledError):
            await serving.serve()
        serving.abandon(INTERRUPTED)
        (bill,) = self.bills
        return bill

    async def served(self) -> None:
        """Serve one request."""
        await self.serving().serve()

    def serving(self) -> Serving:
        """Return the story of one request."""
        protocol = PROTOCOLS["/v1/chat/completions"]
        body = json.dumps({"model": "m", "messages": [], "stream": self.stream}).encode()
        request = protocol.read_request(body)
        stages = Stages(
            transport=self,
            recorder=self,
            prices=Prices(charge=self.price, context_window=lambda target, reply, at: None),
            observe=lambda exchange, status: None,
            span_id=lambda: "d" * 16,
            now_ns=lambda: self.clock,
            monotonic_ns=lambda: self.clock,
            timeouts=Timeouts(),
            drains=Drains(DrainBounds(duration_ns=30 * 10**9, bytes_max=10_000, count_max=9)),
            reply_bytes_max=10_000,
            chooser=self.chooser,
            toss=lambda: 0.5,
            pause=self.pause,
        )
        admitted = Admitted(
            call=Call(
                record_id="r",
                trace_id="a" * 32,
                span_id="b" * 16,
                server_span_id="c" * 16,
                protocol=protocol.name,
                operation="chat",
                model="m",
                stream=self.stream,
                identity=Identity(key_id="k", user_id="alice", source="key"),
                started_unix_ns=self.clock,
                input_summary=request.summary,
            ),
            request=request,
            protocol=protocol,
            lanes=tuple(
                Lane(
                    provider=name,
                    model=f"m-{name}",
                    prices=name,
                    endpoint=Endpoint(scheme="http", host=name, port=1, target=b"/"),
                    dialect=Dialect(),
                    headers=lambda headers, traceparent: [],
                )
                for name in self.scripts
            ),
            body=body,
            headers=[],
            ids=[],
            started_ns=self.clock,
            traceparent=lambda span_id: span_id.encode(),
            policy=self.policy,
        )
        return Serving(stages, admitted, Caller(self.receive, self.out))


class Forever:
    """An awaitable that never completes."""

    def __await__(self) -> Any:
        yield None


FAILURES: dict[str, Callable[[], Answers | UpstreamError]] = {
    **{str(status): functools.partial(error, status) for status in (408, 429, 500, 502, 503, 504, 529)},
    "unreachable": lambda: UNREACHABLE,
    "timeout": lambda: TIMEOUT,
    "cut head": lambda: CUT,
    "cut body": lambda: Answers(200, CUT),
}


@pytest.mark.parametrize("kind", FAILURES)
async def test_the_next_target_serves_and_its_price_is_on_the_one_bill(kind: str) -> None:
    failure = FAILURES[kind]()
    world = World([failure], [ok("b")])
    bill = await world.serve()
    assert world.called == ["a", "b"]
    assert world.pauses == []
    assert (world.status, world.sent) == (200, whole("b"))
    assert (bill.outcome, bill.status) == ("ok", "final")
    assert bill.charge is not None
    assert bill.charge.price_id == "b"
    assert [(one.provider, one.model) for one in bill.attempts] == [("a", "m-a"), ("b", "m-b")]
    assert bill.attempts[0].error_type is not None
    assert bill.attempts[1].error_type is None
    assert world.headers[b"x-spanbill-attempts"] == b"2; a,b"
    assert world.headers[b"x-spanbill-provider"] == b"b"
    uncertain = failure.status == 200 if isinstance(failure, Answers) else failure.sent
    assert bill.attempts[0].unsettled == uncertain


async def test_the_third_target_serves_after_two_failed() -> None:
    world = World([error(500)], [TIMEOUT], [ok("c")])
    bill = await world.serve()
    assert world.called == ["a", "b", "c"]
    assert bill.charge is not None
    assert bill.charge.price_id == "c"


async def test_the_only_target_is_asked_again_and_billed_once() -> None:
    world = World([error(503), error(503), ok("a")])
    bill = await world.serve()
    assert world.called == ["a", "a", "a"]
    assert len(world.pauses) == 2
    assert (bill.outcome, len(bill.attempts)) == ("ok", 3)


async def test_retry_after_is_waited_for_where_it_is_a_signal() -> None:
    world = World([error(429, (b"retry-after", b"3")), ok("a")])
    await world.serve()
    assert world.pauses == [3.0]
    world = World([error(500, (b"retry-after", b"3")), ok("a")])
    await world.serve()
    assert world.pauses != [3.0]


async def test_an_error_of_the_request_is_passed_on_and_asked_nowhere_else() -> None:
    world = World([error(400)], [ok("b")])
    bill = await world.serve()
    assert world.called == ["a"]
    assert world.status == 400
    assert (bill.outcome, bill.status) == ("upstream_error", "final")


async def test_where_all_fail_the_last_failure_is_the_answer_and_it_is_free_of_charge() -> None:
    world = World([error(500)], [error(503)])
    world.policy = Policy(attempts_max=2)
    bill = await world.serve()
    assert (world.status, bill.status, bill.charge is not None) == (503, "final", True)
    assert bill.charge is not None
    assert bill.charge.cost_pico_usd == 0


async def test_what_may_have_been_charged_before_keeps_a_failure_from_being_free() -> None:
    world = World([TIMEOUT], [error(503)], attempts_max=2)
    bill = await world.serve()
    assert world.status == 503
    assert (bill.outcome, bill.status, bill.charge) == ("upstream_error", "unmetered", None)


async def test_a_fault_of_the_last_one_is_told_with_all_attempts_on_the_bill() -> None:
    world = World([error(500)], [UNREACHABLE], attempts_max=2)
    with pytest.raises(UpstreamError, match="unreachable"):
        await world.serve()
    (bill,) = world.bills
    assert [one.error_type for one in bill.attempts] == ["500", "upstream_unreachable"]
    assert (bill.outcome, bill.status) == ("upstream_unreachable", "final")


async def test_a_stream_is_tried_elsewhere_before_it_begins_and_never_after() -> None:
    world = World([error(529)], [Answers(200, STREAM, stream=True)], stream=True)
    bill = await world.serve()
    assert world.called == ["a", "b"]
    assert world.sent == CONTENT + DONE
    assert world.headers[b"x-spanbill-attempts"] == b"2; a,b"
    assert bill.attempts[-1].provider == "b"
    world = World([Answers(200, [CONTENT, CUT], stream=True)], [ok("b")], stream=True)
    bill = await world.serve()
    assert world.called == ["a"]
    assert bill.outcome == "upstream_incomplete"


async def test_a_caller_that_left_gets_no_further_attempt() -> None:
    world = World([error(503)], [ok("b")])
    world.leaves_after = 1
    bill = await world.serve()
    assert world.called == ["a"]
    assert (bill.outcome, bill.status) == ("upstream_error", "final")


async def test_a_target_that_keeps_failing_is_passed_over() -> None:
    world = World([], [])
    for _ in range(Rules().attempts_min):
        world.scripts = {"a": [error(500)], "b": [ok("b")]}
        await world.serve()
    assert world.called == ["a", "b"] * 5
    assert world.chooser.callable([Place("a", "m-a"), Place("b", "m-b")], world.clock) == [False, True]


async def test_how_targets_did_is_measured() -> None:
    world = World([error(500)], [ok("b")])
    await world.serve()
    found = world.chooser.standings(world.clock)
    standings = {name: found[Place(name, f"m-{name}")][0] for name in "ab"}
    assert (standings["a"].requests, standings["a"].failures) == (1, 1)
    assert (standings["b"].requests, standings["b"].failures) == (1, 0)
    assert standings["b"].latency_p50_s is not None
    assert standings["b"].usd_per_million is not None
    assert all(one[3] == 0 for one in world.chooser.standings(world.clock).values())
