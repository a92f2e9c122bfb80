"""One suite for every transport: each fault is made on a real socket and becomes the right UpstreamError."""

from __future__ import annotations

import asyncio
import gzip
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx
import pytest

from gateway.core.errors import UpstreamError
from gateway.providers.httpx_transport import FastHTTPXTransport, HTTPXTransport
from gateway.providers.transport import FastTransport, encode_request
from gateway.providers.upstream import Endpoint, Timeouts, Transport

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nx-a: b\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"
FAST = Timeouts(connect_s=2, first_byte_s=0.3, idle_s=0.3, total_s=1.0)
KINDS: dict[str, Callable[[], Transport]] = {
    "fast": FastTransport,
    "fast behind httpx": lambda: HTTPXTransport(FastHTTPXTransport(FastTransport())),
    "httpx": lambda: HTTPXTransport(httpx.AsyncHTTPTransport()),
}


@pytest.fixture(params=list(KINDS))
async def transport(request: pytest.FixtureRequest) -> AsyncIterator[Transport]:
    made = KINDS[request.param]()
    yield made
    await made.aclose()
    await asyncio.sleep(0)


class Provider:
    """A raw server; each request gets the next answer."""

    def __init__(self, *answers: bytes | Answer) -> None:
        self.answers = list(answers)
        self.connections = 0
        self.requests: list[bytes] = []
        self.asked = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(size))
                self.asked.set()
                answer = self.answers.pop(0)
                if callable(answer):
                    await answer(reader, writer)
                    return
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, IndexError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def running(provider: Provider) -> AsyncIterator[Endpoint]:
    server = await asyncio.start_server(provider, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield Endpoint(scheme="http", host="127.0.0.1", port=port, target=b"/v1/x?y=1")
    finally:
        server.close()


async def fetch(transport: Transport, endpoint: Endpoint, timeouts: Timeouts = FAST) -> tuple[int, bytes]:
    reply = await transport.send(b"POST", endpoint, [(b"x-key", b"v")], b'{"a":1}', timeouts)
    try:
        body = b""
        while piece := await reply.read():
            body += piece
        return reply.status, body
    finally:
        reply.close()
        for _ in range(20):  # httpx closes in a task of its own: let it have its turns
            await asyncio.sleep(0)


def sends(*pieces: bytes, then_wait: bool = False) -> Answer:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        if then_wait:
            await reader.read()

    return answer


@pytest.mark.parametrize("reply", [OK, CHUNKED], ids=["sized", "chunked"])
async def test_a_reply_comes_whole_and_its_connection_is_used_again(
    transport: Transport, reply: bytes
) -> None:
    provider = Provider(reply, reply, reply)
    async with running(provider) as endpoint:
        for _ in range(3):
            assert await fetch(transport, endpoint) == (200, b"hello")
    assert provider.connections == 1
    assert provider.requests[0].startswith(b"POST /v1/x?y=1 HTTP/1.1\r\n")
    assert provider.requests[0].endswith(b'{"a":1}')
    assert b"accept-encoding: identity" in provider.requests[0].lower()


@pytest.mark.parametrize("reply", [OK, CHUNKED], ids=["sized", "chunked"])
async def test_a_reply_in_single_bytes_is_the_same(reply: bytes) -> None:
    transport = FastTransport()

    async def crumbs(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for byte in reply:
            writer.write(bytes([byte]))
            await asyncio.sleep(0)

    async with running(Provider(crumbs)) as endpoint:
        assert await fetch(transport, endpoint) == (200, b"hello")
    await transport.aclose()


async def test_nobody_there_is_unreachable_and_nothing_was_sent(transport: Transport) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        endpoint = Endpoint(scheme="http", host="127.0.0.1", port=holder.getsockname()[1], target=b"/")
        with pytest.raises(UpstreamError) as caught:
            await fetch(transport, endpoint)
    assert (caught.value.code, caught.value.sent, caught.value.retryable) == (
        "upstream_unreachable",
        False,
        True,
    )


async def test_a_name_that_does_not_exist_is_unreachable(transport: Transport) -> None:
    endpoint = Endpoint(scheme="http", host="nowhere.invalid", port=80, target=b"/")
    with pytest.raises(UpstreamError) as caught:
        await fetch(transport, endpoint, Timeouts())
    assert (caught.value.code, caught.value.sent) == ("upstream_unreachable", False)


async def test_a_provider_that_never_answers_times_out(transport: Transport) -> None:
    provider = Provider(sends(then_wait=True))
    async with running(provider) as endpoint:
        with pytest.raises(UpstreamError) as caught:
            await fetch(transport, endpoint)
    assert provider.requests, "the fault did not fire"
    assert (caught.value.code, caught.value.status, caught.value.sent) == ("upstream_timeout", 504, True)


async def test_a_stall_in_the_body_times_out(transport: Transport) -> None:
    provider = Provider(sends(OK[:-2], then_wait=True))
    async with running(provider) as endpoint:
        with pytest.raises(UpstreamError) as caught:
            await fetch(transport, endpoint)
    assert provider.requests, "the fault did not fire"
    assert caught.value.code == "upstream_timeout"


@pytest.mark.parametrize("cut", [OK[:-2], CHUNKED[:-9]], ids=["sized", "chunked"])
async def test_a_cut_body_is_incomplete(transport: Transport, cut: bytes) -> None:
    provider = Provider(sends(cut))
    async with running(provider) as endpoint:
        with pytest.raises(UpstreamError) as caught:
            await fetch(transport, endpoint)
    assert provider.requests, "the fault did not fire"
    assert caught.value.code == "upstream_incomplete"


async def test_garbage_is_not_http() -> None:
    transport = FastTransport()
    provider = Provider(sends(b"220 smtp.example ESMTP\r\n\r\n"))
    async with running(provider) as endpoint:
        with pytest.raises(UpstreamError) as caught:
            await fetch(transport, endpoint)
    assert provider.requests, "the fault did not fire"
    assert caught.value.code == "upstream_protocol"


@pytest.mark.parametrize(
    "flood",
    [
        b"HTTP/1.1 200 OK\r\n" + b"x-pad: " + b"a" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\n\r\n" * 20,
    ],
    ids=["giant head", "1xx flood"],
)
async def test_a_flood_of_headers_is_bounded(flood: bytes) -> None:
    transport = FastTransport()
    async with running(Provider(sends(flood, then_wait=True))) as endpoint:
        with pytest.raises(UpstreamError) as caught:
            await fetch(transport, endpoint)
    assert caught.value.code == "upstream_protocol"


async def test_a_compressed_reply_is_expanded_within_bounds() -> None:
    transport = FastTransport()
    small, bomb = gzip.compress(b"hello" * 10), gzip.compress(b"\0" * (65 * 1024 * 1024))
    head = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n"
    provider = Provider(head % len(small) + small, head % len(bomb) + bomb)
    async with running(provider) as endpoint:
        assert await fetch(transport, endpoint) == (200, b"hello" * 10)
        with pytest.raises(UpstreamError) as caught:
            await fetch(transport, endpoint, Timeouts())
    assert caught.value.code == "upstream_too_large"
    await transport.aclose()


async def test_a_connection_that_was_left_half_read_is_not_used_again() -> None:
    transport = FastTransport()
    provider = Provider(sends(OK[:-2], then_wait=True), OK)
    async with running(provider) as endpoint:
        reply = await transport.send(b"POST", endpoint, [], b"", FAST)
        reply.close()
        assert await fetch(transport, endpoint) == (200, b"hello")
    assert provider.connections == 2
    await transport.aclose()


async def test_a_cancelled_request_leaves_no_connection_behind() -> None:
    transport = FastTransport()
    provider = Provider(sends(then_wait=True), OK)
    async with running(provider) as endpoint:
        task = asyncio.ensure_future(fetch(transport, endpoint, Timeouts()))
        await provider.asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await fetch(transport, endpoint) == (200, b"hello")
    assert provider.connections == 2
    await transport.aclose()


async def test_connections_are_bounded_and_a_waiting_request_gets_its_turn() -> None:
    transport = FastTransport(connections_max=2)
    provider = Provider(*[OK] * 20)
    async with running(provider) as endpoint:
        replies = await asyncio.gather(*(fetch(transport, endpoint, Timeouts()) for _ in range(20)))
    assert replies == [(200, b"hello")] * 20
    assert provider.connections <= 2
    await transport.aclose()


def test_a_header_with_a_line_break_is_refused_before_anything_is_sent() -> None:
    endpoint = Endpoint(scheme="http", host="h", port=80, target=b"/")
    for value in (b"a\r\nx: y", b"a\nb", b"a\rb"):
        with pytest.raises(UpstreamError, match="line break"):
            encode_request(b"POST", endpoint, [(b"x", value)], b"")
