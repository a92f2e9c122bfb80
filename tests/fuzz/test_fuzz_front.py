"""Fuzzed HTTP: whatever comes on a connection, nobody is served a request that could be read in two ways.

Two oracles: how the bytes were cut changes nothing, and a reader of our own, which knows only the strictest
form of a request, must find in the bytes every request that was served, in order, with its body.
"""

from __future__ import annotations

import asyncio
import random
import re

from tests.front.raw_http import Responses
from tests.front.test_front_protocol import BOUNDS, Bench
from tests.fuzz.mutation import INPUTS, cut, fuzz, mutated

POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a.test\r\n"
GET = b"GET /x HTTP/1.1\r\nHost: a.test\r\n\r\n"
SIZED = POST + b"Content-Length: 5\r\n\r\nhello"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n"
UPGRADE = POST + b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nhi"
SEEDS = [
    SIZED, CHUNKED, GET, UPGRADE, SIZED + CHUNKED + GET, GET * 3 + SIZED, UPGRADE + GET + CHUNKED,
    POST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\nhi" + GET,
    POST + b"Connection: close\r\nContent-Length: 0\r\n\r\n" + GET,
    SIZED.replace(b"1.1", b"1.0"), b"\r\n" + GET,
]  # fmt: skip
TOKENS = [
    b"\r\n", b"\n", b"\r", b" ", b"\t", b"\x00", b"\x0b", b":", b" :", b"Host: b\r\n",
    b"Content-Length: 5\r\n", b"Content-Length: 50\r\n", b"Content-Length : 5\r\n", b"content-length: +5\r\n",
    b"content-length: 5, 5\r\n", b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: chunked, identity\r\n", b"Transfer-Encoding:\tchunked\r\n",
    b"Transfer_Encoding: chunked\r\n", b" folded\r\n", b"0\r\n\r\n", b"5\r\nhello\r\n", b"0x5\r\n", b"-1\r\n",
    b"ffffffffffffffffff\r\n", b"x: y\r\n" * 120, b"http://evil/", b"/..%2f", b"CONNECT a:1 HTTP/1.1\r\n",
    b"HTTP/0.9", b"HTTP/1.2", b"HTTP/2.0", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"Upgrade: x\r\n", b"\xe9",
    b"\xff",    b"Connection: keep-alive\r\n", b"Trailer: x\r\n", b"0\r\nx: y\r\n\r\n", b";" * 50, GET, SIZED,
]  # fmt: skip

Served = tuple[str, bytes, bytes]
"""Method, raw path and body of one request."""


async def played(bench: Bench, pieces: list[bytes]) -> tuple[list[Served], list[int], bool]:
    """Return what was served, the answers' statuses, and whether the connection was ended."""
    for kept in (bench.app.scopes, bench.app.bodies, bench.app.faults, bench.refused):
        kept.clear()
    protocol, transport = bench.connect()
    for piece in pieces:
        protocol.data_received(piece)
        await asyncio.sleep(0)
    for _ in range(4 * len(bench.app.scopes) + 8):
        await asyncio.sleep(0)
    served = [
        (scope["method"], scope["raw_path"], body)
        for scope, body in zip(bench.app.scopes, bench.app.bodies, strict=False)
    ]
    for scope in bench.app.scopes:
        names = [name for name, _ in scope["headers"]]
        assert names.count(b"host") == 1
        assert names.count(b"content-length") + names.count(b"transfer-encoding") <= 1
        assert len(names) <= BOUNDS.headers_max
        assert scope["raw_path"].startswith(b"/")
        assert all(b"\n" not in value and b"\r" not in value for _, value in scope["headers"])
    responses = Responses()
    responses.feed(bytes(transport.out).replace(b"HTTP/1.1 100 Continue\r\n\r\n", b""))
    assert all(response.complete for response in responses.all)
    assert len(bench.refused) <= 1, "a second refusal on one connection"
    result = served, [response.status for response in responses.all], transport.ended
    if not transport.closing:
        transport.close()
    await asyncio.sleep(0)  # the end of the connection comes through
    await asyncio.gather(*bench.state.tasks)
    return result


_HEAD = re.compile(
    rb"([A-Z]+) +(/[!-\"$-~]*) +HTTP/1\.[01]\r\n((?:[!#-'*+.0-9A-Z^-z|~-]+:[^\r\n\x00]*\r\n)*)\r\n"
)
_CHUNK = re.compile(rb"([0-9a-fA-F]{1,15})(?:[ \t]*;[^\r\n]*)?\r\n")


def read_strictly(data: bytes, count: int) -> list[Served]:
    """Return up to `count` requests that stand in `data` in the strictest form; stop at the first doubt."""
    found: list[Served] = []
    at = 0
    while len(found) < count:
        at += len(data[at:]) - len(data[at:].lstrip(b"\r\n"))
        head = _HEAD.match(data, at)
        if head is None:
            return found
        at = head.end()
        lines = [line.partition(b":") for line in head[3].split(b"\r\n")[:-1]]
        headers = [(name.lower(), value.strip(b" \t")) for name, _, value in lines]
        body, at = _strict_body(data, at, headers)
        if at < 0:
            return found
        path = head[2].partition(b"?")[0]
        found.append((head[1].decode(), path, body))
    return found


def _strict_body(data: bytes, at: int, headers: list[tuple[bytes, bytes]]) -> tuple[bytes, int]:
    lengths = [value for name, value in headers if name == b"content-length"]
    codings = [value for name, value in headers if name == b"transfer-encoding"]
    if len(lengths) + len(codings) > 1 or (codings and codings[0] != b"chunked"):
        return b"", -1
    if lengths:
        if not lengths[0].isdigit() or at + int(lengths[0]) > len(data):
            return b"", -1
        return data[at : at + int(lengths[0])], at + int(lengths[0])
    body = b""
    while codings:
        chunk = _CHUNK.match(data, at)
        if chunk is None:
            return b"", -1
        size = int(chunk[1], 16)
        at = chunk.end() + size + 2
        if data[at - 2 : at] != b"\r\n":
            return b"", -1
        if not size:
            return body, at
        body += data[chunk.end() : at - 2]
    return body, at


def test_no_bytes_on_a_connection_are_served_in_two_ways() -> None:
    answered = refused = 0

    bench = Bench()

    async def one(chance: random.Random) -> None:
        nonlocal answered, refused
        data = mutated(chance, SEEDS, TOKENS)
        served, statuses, ended = await played(bench, [data])
        whole = [request for request, status in zip(served, statuses, strict=False) if status == 200]
        answered += bool(whole)
        refused += any(status >= 400 for status in statuses)
        assert whole == read_strictly(data, len(whole)), data
        again = await played(bench, cut(chance, data))
        assert again[1] == statuses, data
        assert [r for r, s in zip(again[0], again[1], strict=False) if s == 200] == whole, data
        assert again[2] == ended, data
        if any(status >= 400 for status in statuses):
            assert ended
            assert all(status == 200 for status in statuses[:-1]), "something was served behind a refusal"

    with asyncio.Runner() as runner:
        assert fuzz(lambda chance: runner.run(one(chance))) >= INPUTS
    assert answered > INPUTS / 10
    assert refused > INPUTS / 10
