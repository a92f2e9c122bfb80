"""The front's connection on a transport and a clock of our own: deadlines to the look, answers in order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from gateway.api.correlation import Ids
from gateway.api.inference import Refusal
from gateway.front import FrontBounds, FrontProtocol, front_protocol
from gateway.front.bounds import DISCARD_BYTES_MAX
from tests.front.raw_http import Response, Responses, assert_own_answer

BOUNDS = FrontBounds(connections_max=3)
LOOK_S = BOUNDS.timer_s
HEAD = b"POST /x HTTP/1.1\r\nHost: a\r\n"
GET = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"


class FakeTransport(asyncio.Transport):
    """Takes what is written; `reads` says whether the peer does."""

    def __init__(self) -> None:
        super().__init__()
        self.protocol: FrontProtocol | None = None
        self.out = bytearray()
        self.reads = True
        self.unread = 0
        self.eof = self.closing = self.aborted = False
        self.reading = True

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def write(self, data: Any) -> None:
        assert not self.eof
        assert not self.closing
        self.out += data
        if not self.reads:
            self.unread += len(data)
            if self.unread > 65536 and self.protocol is not None:
                self.protocol.pause_writing()

    def get_write_buffer_size(self) -> int:
        return self.unread

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.eof = True

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            if not self.unread:
                self._lose()

    def abort(self) -> None:
        self.closing = self.aborted = True
        self._lose()

    def _lose(self) -> None:
        assert self.protocol is not None
        protocol, self.protocol = self.protocol, None
        asyncio.get_running_loop().call_soon(protocol.connection_lost, None)

    @property
    def ended(self) -> bool:
        """The client knows that nothing more comes."""
        return self.eof or self.closing


class App:
    """Reads the body, then answers; what it does meanwhile is up to the test."""

    def __init__(self) -> None:
        self.scopes: list[dict[str, Any]] = []
        self.bodies: list[bytes] = []
        self.faults: list[Any] = []
        self.go = asyncio.Event()
        self.go.set()
        self.reads_body = True
        self.answer = b"ok"
        self.headers: list[tuple[bytes, bytes]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        body = b""
        status = 200
        while self.reads_body:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.faults.append(message.get("fault"))
                status = 400
                break
            body += message["body"]
            if not message["more_body"]:
                break
        self.bodies.append(body)
        await self.go.wait()
        length = (b"content-length", b"%d" % len(self.answer))
        await send({"type": "http.response.start", "status": status, "headers": [length, *self.headers]})
        await send({"type": "http.response.body", "body": self.answer, "more_body": False})


class Bench:
    """A server without sockets: connections are made by hand, time passes by hand."""

    def __init__(self, bounds: FrontBounds = BOUNDS) -> None:
        self.app = App()
        self.now = 1000.0
        self.refused: list[Refusal] = []
        self._class = front_protocol(
            bounds, ids=Ids(), refused=self.refused.append, clock=lambda: self.now, now_ns=lambda: 7
        )
        self.config = uvicorn.Config(self.app, http=self._class, lifespan="off", log_config=None)
        self.config.load()
        self.state = ServerState()

    def connect(self) -> tuple[FrontProtocol, FakeTransport]:
        protocol = self._class(
            config=self.config, server_state=self.state, app_state={}, _loop=asyncio.get_running_loop()
        )
        transport = FakeTransport()
        transport.protocol = protocol
        protocol.connection_made(transport)
        return protocol, transport

    async def turn(self) -> None:
        """Let everything run that can."""
        for _ in range(20):
            await asyncio.sleep(0)

    async def wait(self, seconds: float) -> None:
        """Let time pass, with a look each LOOK_S."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + LOOK_S)
            self._class.front.watch.look()
            await self.turn()


def answers(transport: FakeTransport) -> list[Response]:
    responses = Responses()
    responses.feed(bytes(transport.out))
    return responses.all


def statuses(transport: FakeTransport) -> list[int]:
    return [answer.status for answer in answers(transport)]


Setup = Callable[[FrontProtocol], None]

DEADLINES: dict[str, tuple[Setup, float, int | None]] = {
    "nothing sent": (lambda p: None, BOUNDS.head_s, None),
    "empty lines only": (lambda p: p.data_received(b"\r\n\r\n"), BOUNDS.head_s, None),
    "half a head": (lambda p: p.data_received(HEAD), BOUNDS.head_s, 408),
    "half a body": (
        lambda p: p.data_received(HEAD + b"Content-Length: 9\r\n\r\nabc"),
        BOUNDS.body_idle_s,
        400,
    ),
    "half a chunk": (
        lambda p: p.data_received(HEAD + b"Transfer-Encoding: chunked\r\n\r\n9\r\nabc"),
        BOUNDS.body_idle_s,
        400,
    ),
    "served, then nothing": (lambda p: p.data_received(GET), BOUNDS.keep_alive_s, 200),
    "served, then half a head": (lambda p: p.data_received(GET + HEAD), BOUNDS.head_s, 200),
}


@pytest.mark.parametrize("name", DEADLINES)
async def test_each_wait_ends_at_its_deadline_and_not_before(name: str) -> None:
    setup, deadline_s, status = DEADLINES[name]
    bench = Bench()
    protocol, transport = bench.connect()
    setup(protocol)
    await bench.turn()
    await bench.wait(deadline_s - 2 * LOOK_S)
    assert not transport.ended
    await bench.wait(5 * LOOK_S)
    assert transport.ended
    assert statuses(transport)[:1] == ([] if status is None else [status])
    if name == "half a head":
        assert_own_answer(answers(transport)[0], "header_timeout")
        assert [(r.status, r.code, r.path) for r in bench.refused] == [(408, "header_timeout", "/x")]
    if name.startswith("half a ") and name != "half a head":
        (fault,) = bench.app.faults
        assert (fault.code, fault.status) == ("body_timeout", 408)
        assert answers(transport)[0].headers["connection"] == "close"
        assert not bench.refused  # the application answers, and counts
    if name == "served, then half a head":
        assert statuses(transport) == [200, 408]
    await bench.wait(BOUNDS.linger_s + 3 * LOOK_S)
    assert transport.closing
    assert not bench.state.connections


async def test_a_head_of_a_byte_now_and_then_gets_no_more_time() -> None:
    bench = Bench()
    protocol, transport = bench.connect()
    for byte in HEAD:
        if not transport.ended:
            protocol.data_received(bytes([byte]))
            await bench.wait(1)
    assert statuses(transport) == [408]
    assert bench.now < 1000 + len(HEAD)  # else the deadline was none


async def test_a_head_has_the_rest_of_the_time_that_its_connection_waited() -> None:
    bench = Bench()
    protocol, transport = bench.connect()
    await bench.wait(BOUNDS.head_s - 1)
    protocol.data_received(HEAD)
    await bench.wait(1 + 3 * LOOK_S)
    assert statuses(transport) == [408]


async def test_what_begins_between_two_looks_has_its_whole_time() -> None:
    bench = Bench()
    bench.connect()
    bench.now += 0.9 * LOOK_S
    _, transport = bench.connect()  # stamped with the look before
    began = bench.now
    bench.now += 0.1 * LOOK_S  # the looks go on at their own pace
    for _ in range(1000):
        bench._class.front.watch.look()
        await bench.turn()
        if transport.ended:
            break
        bench.now += LOOK_S
    assert BOUNDS.head_s <= bench.now - began <= BOUNDS.head_s + 2 * LOOK_S


async def test_a_body_that_the_application_does_not_take_is_nobodys_delay() -> None:
    bench = Bench()
    bench.app.reads_body = False
    bench.app.go.clear()
    protocol, transport = bench.connect()
    protocol.data_received(HEAD + b"Content-Length: 200000\r\n\r\n" + b"x" * 100_000)
    await bench.turn()
    assert not transport.reading
    await bench.wait(2 * BOUNDS.body_total_s)
    assert not transport.ended
    bench.app.go.set()
    await bench.turn()
    assert statuses(transport) == [200]
    assert transport.reading
    protocol.data_received(b"x" * 100_000 + GET)
    await bench.turn()
    assert statuses(transport) == [200, 200]


async def test_a_body_of_a_byte_now_and_then_ends_with_the_total() -> None:
    bench = Bench()
    protocol, transport = bench.connect()
    protocol.data_received(HEAD + b"Content-Length: 99\r\n\r\n")
    for _ in range(99):
        if transport.ended:
            break
        protocol.data_received(b"x")
        await bench.wait(BOUNDS.body_idle_s - 1)
    assert bench.app.faults[0].code == "body_timeout"
    assert BOUNDS.body_total_s <= bench.now - 1000 <= BOUNDS.body_total_s + BOUNDS.body_idle_s


async def test_a_body_that_moves_is_not_cut_off() -> None:
    bench = Bench()
    protocol, transport = bench.connect()
    protocol.data_received(HEAD + b"Content-Length: 5\r\n\r\n")
    for byte in b"abcde":
        await bench.wait(BOUNDS.body_idle_s - 1)
        protocol.data_received(bytes([byte]))
        await bench.turn()
    assert bench.app.bodies == [b"abcde"]
    assert statuses(transport) == [200]
    assert not transport.ended


async def test_time_that_the_application_takes_is_nobodys_deadline() -> None:
    bench = Bench()
    bench.app.go.clear()
    protocol, transport = bench.connect()
    protocol.data_received(GET)
    await bench.wait(1000)
    assert not transport.ended
    bench.app.go.set()
    await bench.turn()
    assert statuses(transport) == [200]


async def test_a_client_that_does_not_read_is_cut_off_and_the_application_learns_why() -> None:
    bench = Bench()
    bench.app.answer = b"x" * 100_000
    protocol, transport = bench.connect()
    transport.reads = False
    protocol.data_received(GET)
    await bench.turn()
    link = bench.app.scopes[0]["extensions"]["spanbill"]
    await bench.wait(BOUNDS.write_idle_s - LOOK_S)
    assert not transport.aborted
    assert not link.stalled
    assert not link.gone
    await bench.wait(3 * LOOK_S)
    assert transport.aborted
    assert link.stalled
    assert link.gone


async def test_a_client_that_reads_slowly_is_left_alone_and_one_that_reads_a_byte_is_not() -> None:
    for step, alive in ((10_000, True), (1, False)):
        bench = Bench()
        bench.app.answer = b"x" * 100_000
        protocol, transport = bench.connect()
        transport.reads = False
        protocol.data_received(GET)
        for _ in range(5):
            await bench.wait(BOUNDS.write_idle_s / 2)
            if not transport.aborted:
                transport.unread -= step
        assert transport.aborted is not alive


async def test_a_client_as_slow_as_its_stream_is_left_alone() -> None:
    bench = Bench()
    bench.app.go.clear()
    protocol, transport = bench.connect()
    transport.reads = False
    protocol.data_received(GET)
    protocol._wire.write(b"x" * 50_000)  # as a stream does
    for _ in range(10):
        await bench.wait(BOUNDS.write_idle_s / 2)
        transport.unread -= 10_000  # it reads,
        protocol._wire.write(b"x" * 10_000)  # and as much is written
    assert not transport.aborted
    await bench.wait(BOUNDS.write_idle_s + 3 * LOOK_S)
    assert transport.aborted


async def test_a_client_that_leaves_is_gone_and_not_stalled() -> None:
    bench = Bench()
    bench.app.go.clear()
    protocol, transport = bench.connect()
    protocol.data_received(GET)
    await bench.turn()
    transport.abort()
    await bench.turn()
    link = bench.app.scopes[0]["extensions"]["spanbill"]
    assert link.gone
    assert not link.stalled


async def test_the_first_of_pipelined_requests_learns_that_its_client_left() -> None:
    bench = Bench()
    bench.app.go.clear()
    protocol, transport = bench.connect()
    protocol.data_received(GET + GET + GET)
    await bench.turn()
    running = protocol._running
    assert running is not None
    transport.abort()
    await bench.turn()
    assert running.disconnected
    bench.app.go.set()
    await bench.turn()
    assert len(bench.app.scopes) == 1  # nobody is there for the others
    assert not transport.out


async def test_requests_wait_for_the_answers_before_them_and_reading_stops_meanwhile() -> None:
    bench = Bench()
    bench.app.go.clear()
    protocol, transport = bench.connect()
    protocol.data_received(GET + GET)
    await bench.turn()
    assert not transport.reading
    protocol.flow.resume_reading()  # as a response does that looks for a disconnect
    assert not transport.reading
    assert len(bench.app.scopes) == 1
    bench.app.go.set()
    await bench.turn()
    assert statuses(transport) == [200, 200]
    assert transport.reading


async def test_a_refusal_waits_for_the_answers_before_it() -> None:
    bench = Bench()
    bench.app.go.clear()
    protocol, transport = bench.connect()
    protocol.data_received(GET + b"GET /x HTTP/1.1\r\n\r\n" + GET)
    await bench.turn()
    assert not transport.out
    bench.app.go.set()
    await bench.turn()
    assert statuses(transport) == [200, 400]
    assert transport.eof
    protocol.data_received(GET)
    await bench.turn()
    assert len(bench.app.scopes) == 1
    assert statuses(transport) == [200, 400]


@pytest.mark.parametrize("cut", [1, 2, 3, 5, 8, 13])
async def test_the_cuts_of_a_request_change_nothing(cut: int) -> None:
    payload = (
        HEAD
        + b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\nabc"
        + HEAD
        + b"Transfer-Encoding: chunked\r\n\r\n2\r\nde\r\n1\r\nf\r\n0\r\n\r\n"
        + GET
        + HEAD
        + b"Connection: upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n\r\n1\r\ng\r\n0\r\n\r\n"
        + GET
    )
    bench = Bench()
    protocol, transport = bench.connect()
    for at in range(0, len(payload), cut):
        protocol.data_received(payload[at : at + cut])
        await bench.turn()
    assert bench.app.bodies == [b"abc", b"def", b"", b"g", b""]
    assert statuses(transport) == [200] * 5


async def test_a_body_after_an_offered_upgrade_is_no_request() -> None:
    bench = Bench()
    protocol, transport = bench.connect()
    head = HEAD + b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: %d\r\n\r\n" % len(GET)
    protocol.data_received(head)
    protocol.data_received(GET)
    await bench.turn()
    assert bench.app.bodies == [GET]
    assert statuses(transport) == [200]


async def test_no_more_connections_than_there_is_room_for() -> None:
    bench = Bench()
    kept = [bench.connect() for _ in range(BOUNDS.connections_max)]
    _, beyond = bench.connect()
    (answer,) = answers(beyond)
    assert answer.status == 503
    assert_own_answer(answer, "too_many_connections")
    assert answer.headers["retry-after"] == "1"
    assert beyond.eof
    await bench.wait(BOUNDS.linger_s + 3 * LOOK_S)
    assert beyond.closing
    kept[0][1].close()
    await bench.turn()
    protocol, transport = bench.connect()
    protocol.data_received(GET)
    await bench.turn()
    assert statuses(transport) == [200]


async def test_a_flood_of_connections_is_not_even_answered() -> None:
    bench = Bench(FrontBounds(connections_max=1))
    made = [bench.connect()[1] for _ in range(400)]
    assert sum(bool(transport.out) for transport in made) == 256
    assert sum(transport.aborted for transport in made) == 143


async def test_a_body_that_nobody_reads_is_thrown_away_up_to_a_bound() -> None:
    bench = Bench()
    bench.app.reads_body = False
    protocol, transport = bench.connect()
    protocol.data_received(HEAD + b"Content-Length: 300000000\r\n\r\n")
    await bench.turn()
    assert statuses(transport) == [200]
    for _ in range(DISCARD_BYTES_MAX // 65536 + 1):
        assert not transport.ended
        protocol.data_received(b"x" * 65536)
    assert transport.eof
    await bench.wait(BOUNDS.linger_s + 3 * LOOK_S)
    assert transport.closing


async def test_a_small_body_that_nobody_reads_costs_no_connection() -> None:
    bench = Bench()
    bench.app.reads_body = False
    protocol, transport = bench.connect()
    protocol.data_received(HEAD + b"Content-Length: 3\r\n\r\n")
    await bench.turn()
    protocol.data_received(b"abc" + GET)
    await bench.turn()
    assert statuses(transport) == [200, 200]


async def test_an_answer_without_the_expected_continue_ends_the_connection() -> None:
    bench = Bench()
    bench.app.reads_body = False
    protocol, transport = bench.connect()
    protocol.data_received(HEAD + b"Expect: 100-continue\r\nContent-Length: 60\r\n\r\n")
    await bench.turn()
    assert statuses(transport) == [200]
    assert transport.eof


async def test_an_answer_that_closes_lets_the_rest_of_the_body_come_first() -> None:
    bench = Bench()
    bench.app.reads_body = False
    bench.app.headers = [(b"connection", b"close")]
    protocol, transport = bench.connect()
    protocol.data_received(HEAD + b"Content-Length: 300\r\n\r\nabc")
    await bench.turn()
    assert transport.eof
    assert not transport.closing
    protocol.data_received(b"x" * 297 + GET)
    await bench.turn()
    assert statuses(transport) == [200]
    await bench.wait(BOUNDS.linger_s + 3 * LOOK_S)
    assert transport.closing


async def test_chunks_of_nothing_but_framing_are_refused() -> None:
    bench = Bench()
    protocol, transport = bench.connect()
    protocol.data_received(HEAD + b"Transfer-Encoding: chunked\r\n\r\n3;")
    for _ in range(20):
        protocol.data_received(b"x" * 4096)
    await bench.turn()
    assert bench.app.faults[0].code == "invalid_chunks"
    assert statuses(transport) == [400]


async def test_stopping_ends_what_waits_and_lets_one_answer_finish() -> None:
    bench = Bench(FrontBounds())
    idle, half, busy = bench.connect(), bench.connect(), bench.connect()
    half[0].data_received(HEAD)
    bench.app.go.clear()
    busy[0].data_received(GET + GET)
    await bench.turn()
    for protocol, _ in (idle, half, busy):
        protocol.shutdown()
    await bench.turn()
    assert idle[1].closing
    assert half[1].closing
    assert not busy[1].closing
    bench.app.go.set()
    await bench.turn()
    assert statuses(busy[1]) == [200]
    assert answers(busy[1])[0].headers["connection"] == "close"
    assert busy[1].closing
    assert not bench.state.connections


async def test_connect_is_refused_also_for_a_target_that_was_served() -> None:
    bench = Bench()
    protocol, transport = bench.connect()
    protocol.data_received(GET + b"CONNECT /x HTTP/1.1\r\nHost: a\r\n\r\n" + GET)
    await bench.turn()
    assert statuses(transport) == [200, 400]


async def test_a_refusal_tells_no_query_and_no_user_of_a_url() -> None:
    bench = Bench()
    for target, path in ((b"/v1/x?key=secret", "/v1/x"), (b"http://user:secret@host/x", "")):
        protocol, _ = bench.connect()
        protocol.data_received(b"GET " + target + b" HTTP/1.1\r\n\r\n")
        assert bench.refused[-1].path == path
    assert "secret" not in repr(bench.refused)
