"""One connection, attacked: no byte crosses from one reply into another, and nobody waits in vain."""

from __future__ import annotations

import asyncio
import gzip
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.errors import UpstreamError
from gateway.providers.connection import Connection
from gateway.providers.httpx_transport import FastHTTPXTransport, HTTPXTransport
from gateway.providers.transport import FastTransport, encode_request
from gateway.providers.upstream import Endpoint, Timeouts, Transport

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n"
HINTED = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" + OK
GZIP_HEAD = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n"
PATIENT = Timeouts(connect_s=5, first_byte_s=5, idle_s=5, total_s=10)
TRANSPORTS: dict[str, Callable[[], Transport]] = {
    "fast": FastTransport,
    "fast behind httpx": lambda: HTTPXTransport(FastHTTPXTransport(FastTransport())),
    "httpx": lambda: HTTPXTransport(httpx.AsyncHTTPTransport()),
}

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def ask(reader: asyncio.StreamReader) -> None:
    """Read one request (the tests send `{}`)."""
    await reader.readuntil(b"\r\n\r\n")
    await reader.readexactly(2)


@asynccontextmanager
async def serving(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[Endpoint]:
    async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(guarded, "127.0.0.1", 0, ssl=tls, backlog=1024)
    port = server.sockets[0].getsockname()[1]
    try:
        yield Endpoint(scheme="https" if tls else "http", host="127.0.0.1", port=port, target=b"/v1")
    finally:
        server.close()


async def fetch(transport: Transport, endpoint: Endpoint, timeouts: Timeouts = PATIENT) -> tuple[int, bytes]:
    reply = await transport.send(b"POST", endpoint, [], b"{}", timeouts)
    try:
        body = b""
        while piece := await reply.read():
            body += piece
        return reply.status, body
    finally:
        reply.close()
        for _ in range(20):  # httpx closes in a task of its own: let it have its turns
            await asyncio.sleep(0)


@pytest.mark.parametrize(
    "surplus",
    [b"HTTP/1.1 299 Evil\r\ncontent-length: 4\r\n\r\nevil", b"HTTP/1.1 299 Evil\r\nx-evil: 1\r\nx: ", b"H"],
    ids=["a whole reply", "half a head", "one byte"],
)
async def test_bytes_behind_a_reply_reach_neither_its_caller_nor_the_next(surplus: bytes) -> None:
    connections = 0

    async def twice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while True:
            await ask(reader)
            writer.write(OK + surplus)  # one segment

    transport = FastTransport()
    async with serving(twice) as endpoint:
        assert [await fetch(transport, endpoint) for _ in range(3)] == [(200, b"hello")] * 3
        await transport.aclose()
    assert connections == 3, "a connection with bytes left over was used again"


async def test_a_compressed_reply_whose_first_piece_expands_to_nothing_is_not_empty() -> None:
    packed = gzip.compress(b"hello" * 10)
    fired = False

    async def header_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal fired
        await ask(reader)
        writer.write(GZIP_HEAD % len(packed) + packed[:10])
        await writer.drain()
        fired = True
        await head_seen.wait()
        writer.write(packed[10:])

    head_seen = asyncio.Event()
    transport = FastTransport()
    async with serving(header_first) as endpoint:
        reply = await transport.send(b"POST", endpoint, [], b"{}", PATIENT)
        first = asyncio.ensure_future(reply.read())
        head_seen.set()
        assert await first == b"hello" * 10
        assert fired
        reply.close()
        await transport.aclose()


@pytest.mark.parametrize("kind", TRANSPORTS)
async def test_a_reply_compressed_unasked_is_handed_over_as_identity(kind: str) -> None:
    packed = gzip.compress(b"hello" * 10)

    async def zipped(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await ask(reader)
        writer.write(GZIP_HEAD % len(packed) + packed)

    transport = TRANSPORTS[kind]()
    async with serving(zipped) as endpoint:
        reply = await transport.send(b"POST", endpoint, [], b"{}", PATIENT)
        names = [name for name, _ in reply.headers]
        body = b""
        while piece := await reply.read():
            body += piece
        reply.close()
        await transport.aclose()
    assert body == b"hello" * 10
    assert b"content-encoding" not in names


@pytest.mark.parametrize("kind", TRANSPORTS)
async def test_a_compressed_reply_that_stops_early_is_incomplete_though_its_length_is_right(
    kind: str,
) -> None:
    cut = gzip.compress(b"hello" * 10)[:-12]
    fired = False

    async def short(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal fired
        await ask(reader)
        writer.write(GZIP_HEAD % len(cut) + cut)
        fired = True

    transport = TRANSPORTS[kind]()
    async with serving(short) as endpoint:
        with pytest.raises(UpstreamError) as caught:
            await fetch(transport, endpoint)
        await transport.aclose()
    assert fired, "the fault did not fire"
    assert caught.value.code == "upstream_incomplete"


async def test_a_connection_closed_while_idle_leaves_the_pool_before_the_next_request() -> None:
    closed = 0

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal closed
        await ask(reader)
        writer.write(OK)
        closed += 1

    transport = FastTransport()
    async with serving(once) as endpoint:
        for _ in range(5):
            assert await fetch(transport, endpoint) == (200, b"hello")
        await transport.aclose()
    assert closed == 5, "the fault did not fire"


async def test_a_request_on_a_lost_connection_fails_at_once_and_was_not_sent() -> None:
    lost: list[Connection] = []

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    loop = asyncio.get_running_loop()
    async with serving(silent) as endpoint:
        _, connection = await loop.create_connection(
            lambda: Connection(loop, lost.append), endpoint.host, endpoint.port
        )
        connection.abort()
        assert lost == [connection], "the fault did not fire"
        async with asyncio.timeout(2):
            with pytest.raises(UpstreamError) as caught:
                await connection.exchange(b"", PATIENT)
    assert (caught.value.code, caught.value.sent) == ("upstream_unreachable", False)


async def test_a_turn_given_to_a_cancelled_request_passes_to_the_next() -> None:
    release = asyncio.Event()
    asked = asyncio.Event()

    async def held(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await ask(reader)
            asked.set()
            await release.wait()
            writer.write(OK)

    transport = FastTransport(connections_max=1)
    async with serving(held) as endpoint:
        reply = asyncio.ensure_future(transport.send(b"POST", endpoint, [], b"{}", PATIENT))
        await asked.wait()
        second = asyncio.ensure_future(fetch(transport, endpoint))
        third = asyncio.ensure_future(fetch(transport, endpoint, Timeouts(connect_s=1.0)))
        await asyncio.sleep(0)  # both are in the queue now
        release.set()
        first = await reply
        while await first.read():
            pass
        first.close()  # wakes the second ...
        second.cancel()  # ... which is cancelled in the same turn
        with pytest.raises(asyncio.CancelledError):
            await second
        assert await third == (200, b"hello")
        await transport.aclose()


@pytest.mark.parametrize("kind", TRANSPORTS)
async def test_a_pause_in_the_body_is_bounded_by_the_idle_timeout_alone(kind: str) -> None:
    paused = False

    async def pauses(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal paused
        await ask(reader)
        writer.write(OK[:-3])
        await asyncio.sleep(0.5)  # the fault itself: longer than first_byte_s
        paused = True
        writer.write(OK[-3:])

    transport = TRANSPORTS[kind]()
    async with serving(pauses) as endpoint:
        assert await fetch(transport, endpoint, Timeouts(first_byte_s=0.25, idle_s=5)) == (200, b"hello")
        await transport.aclose()
    assert paused, "the fault did not fire"


@pytest.mark.parametrize("kind", TRANSPORTS)
async def test_a_head_that_drips_is_ended_by_the_timeout(kind: str) -> None:
    drops = 0

    async def drips(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal drops
        await ask(reader)
        for byte in b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 50:
            writer.write(bytes([byte]))
            await writer.drain()
            drops += 1
            await asyncio.sleep(0.05)  # the fault itself

    transport = TRANSPORTS[kind]()
    async with serving(drips) as endpoint:
        async with asyncio.timeout(3):
            with pytest.raises(UpstreamError) as caught:
                await fetch(transport, endpoint, Timeouts(connect_s=0.2, first_byte_s=0.3, total_s=0.6))
        await transport.aclose()
    assert drops > 2, "the fault did not fire"
    assert (caught.value.code, caught.value.status) == ("upstream_timeout", 504)


@pytest.mark.parametrize("whole", [OK, CHUNKED, HINTED], ids=["sized", "chunked", "after 103"])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_cutting_a_reply_anywhere_changes_nothing(whole: bytes, data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(1, len(whole) - 1), max_size=6, unique=True).map(sorted))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]

    async def run() -> tuple[int, bytes]:
        loop = asyncio.get_running_loop()
        connection = Connection(loop, lambda _: None)
        transport = _Sink()
        connection.connection_made(transport)
        waiting = asyncio.ensure_future(connection.exchange(b"request", PATIENT))
        await asyncio.sleep(0)
        for piece in pieces:
            connection.data_received(piece)
        await waiting
        body = b""
        while piece := await connection.read():
            body += piece
        assert connection.recycle()
        connection.abort()
        return connection.status, body

    assert asyncio.run(run()) == (200, b"hello")


class _Sink(asyncio.Transport):
    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        pass


async def test_a_thousand_requests_at_once_are_all_answered() -> None:
    async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await ask(reader)
            writer.write(OK)

    transport = FastTransport(connections_max=100)
    async with serving(answers) as endpoint:
        replies = await asyncio.gather(*(fetch(transport, endpoint) for _ in range(1_000)))
        await transport.aclose()
    assert replies == [(200, b"hello")] * 1_000


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a fresh self-signed certificate for 127.0.0.1, its key behind it in one file."""
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    made = subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-nodes", "-days", "2", "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(path), "-out", str(path.with_suffix(".crt"))),
        ],
        capture_output=True,
        check=True,
    )
    assert made.returncode == 0
    path.write_bytes(path.read_bytes() + path.with_suffix(".crt").read_bytes())
    return path


@pytest.mark.parametrize("trusted", [True, False], ids=["trusted", "untrusted"])
async def test_tls_reaches_a_trusted_provider_and_no_other(certificate: Path, trusted: bool) -> None:
    handshakes = 0

    async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal handshakes
        handshakes += 1
        while True:
            await ask(reader)
            writer.write(OK)

    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate)
    client = ssl.create_default_context(cafile=str(certificate) if trusted else None)
    transport = FastTransport(client)
    async with serving(answers, server) as endpoint:
        if trusted:
            assert [await fetch(transport, endpoint) for _ in range(3)] == [(200, b"hello")] * 3
            assert handshakes == 1
        else:
            with pytest.raises(UpstreamError, match="TLS failed") as caught:
                await fetch(transport, endpoint)
            assert (caught.value.code, caught.value.sent) == ("upstream_unreachable", False)
        await transport.aclose()


def test_a_target_that_would_end_early_is_refused() -> None:
    for target in (b"/a b", b"/a\r\nx: y", b"/\0", b""):
        with pytest.raises(UpstreamError, match="target"):
            encode_request(b"POST", Endpoint(scheme="http", host="h", port=80, target=target), [], b"")


def test_an_ipv6_host_stands_in_brackets() -> None:
    endpoint = Endpoint(scheme="http", host="::1", port=8080, target=b"/")
    assert b"\r\nhost: [::1]:8080\r\n" in encode_request(b"POST", endpoint, [], b"")
