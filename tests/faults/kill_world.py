"""The world around a real gateway that is killed: a provider, a Collector and callers, in the test's process.

All of them live in one event loop. The provider speaks both protocols, paces its pieces, and counts its
calls; the Collector takes bills; what a caller received is known byte by byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import httpx

from tests.faults.kill_audit import Call, Facts, Got, canonical, read_journal
from tests.faults.killing import CHAT, INPUT_TOKENS, MESSAGES, MODELS, Ask, answer, content_events
from tests.gateway_process import KEYS, spans_in

PACE_S: Final = 0.002
"""Between two pieces: so a kill lands in the middle of an answer."""
CALLERS: Final = 8
REQUESTS_MAX: Final = 5000
"""A caller sends no more than so many between two kills."""


class World:
    """A provider and a Collector on loopback, and what everybody saw."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.got: dict[str, Got] = {}
        self.accepted: list[str] = []
        self.pieces = 0
        self.moved = asyncio.Condition()
        self.port = 0
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> World:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()
        for connection in self._connections:  # whose end was not heard of yet
            connection.close()

    def environment(self) -> dict[str, str]:
        """Return what points a gateway at this world."""
        url = f"http://127.0.0.1:{self.port}"
        return {
            "SPANBILL_PROVIDERS": json.dumps(
                {
                    "openai": {"base_url": f"{url}/v1", "api_key": "sk-x"},
                    "anthropic": {"base_url": url, "api_key": "sk-x"},
                }
            ),
            "SPANBILL_LOGGING__REQUESTS": "false",
            "OTEL_EXPORTER_OTLP_ENDPOINT": url,
            "OTEL_TRACES_SAMPLER": "always_off",
        }

    def facts(self, journal: Path) -> Facts:
        """Return what everybody saw; call it once the last gateway has ended well."""
        read = read_journal(journal)
        return Facts(
            journal=read,
            calls=[
                Call(id=read.trace_ids.get(trace, f"trace {trace}"), input=INPUT_TOKENS, output=tokens)
                for trace, tokens in self.calls
            ],
            got=self.got,
            accepted=self.accepted,
        )

    async def moment(self, pieces: int) -> None:
        """Wait until the provider has sent so many more pieces."""
        until = self.pieces + pieces
        async with self.moved:
            await self.moved.wait_for(lambda: self.pieces >= until)

    # the provider and the Collector

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):  # ends with the connection
                headers = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:] if line)
                body = await reader.readexactly(int(headers.get(b"content-length", 0)))
                if head.startswith(b"POST /v1/traces"):
                    self._collect(body, headers)
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                else:
                    await self._answer(head.split(b" ", 2)[1].decode(), headers, json.loads(body), writer)
                await writer.drain()
        writer.close()
        self._connections.discard(writer)

    def _collect(self, body: bytes, headers: dict[bytes, bytes]) -> None:
        if headers[b"content-type"] == b"application/json":
            self.accepted += [canonical(span) for span in spans_in(json.loads(body))]

    async def _answer(
        self, path: str, headers: dict[bytes, bytes], body: dict[str, Any], writer: asyncio.StreamWriter
    ) -> None:
        trace = headers[b"traceparent"].split(b"-")[1].decode()
        ask = Ask(path=path, stream=body["stream"], tokens=body["max_tokens"])
        self.calls.append((trace, ask.tokens))
        kind = b"text/event-stream" if ask.stream else b"application/json"
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ntransfer-encoding: chunked\r\n\r\n" % kind)
        for piece in (*answer(path, trace, ask), b""):
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
            self.pieces += 1
            async with self.moved:
                self.moved.notify_all()
            if piece:
                await asyncio.sleep(PACE_S)

    # callers

    @contextlib.asynccontextmanager
    async def traffic(self, url: str, seed: int) -> AsyncIterator[None]:
        """Keep CALLERS busy until the gateway is gone; their errors after that are theirs."""
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            tasks = [
                asyncio.create_task(self._caller(client, random.Random(f"{seed} {number}")))
                for number in range(CALLERS)
            ]
            try:
                yield
            finally:
                await asyncio.gather(*tasks)

    async def _caller(self, client: httpx.AsyncClient, draw: random.Random) -> None:
        for _ in range(REQUESTS_MAX):
            try:
                await self.ask(client, draw)
            except httpx.TransportError:
                return

    async def ask(self, client: httpx.AsyncClient, draw: random.Random) -> None:
        """Send one request drawn from `draw`, and note what comes back."""
        path, stream = draw.choice((CHAT, MESSAGES)), draw.random() < 0.7
        tokens = draw.choice((1, 10, 40, 80, 160))
        leaves_after = draw.choice((None, None, None, None, 1, 5, 20))
        key = {"authorization": f"Bearer {KEYS['alice']}"} if path == CHAT else {"x-api-key": KEYS["bob"]}
        body = {
            "model": MODELS[path][1],
            "stream": stream,
            "max_tokens": tokens,
            "messages": [{"role": "user", "content": "Count."}],
        }
        async with client.stream("POST", path, json=body, headers=key) as response:
            assert response.status_code == 200, await response.aread()
            got = self.got.setdefault(response.headers["x-request-id"], Got())
            received = b""
            pieces = 0
            try:
                async for piece in response.aiter_raw():
                    received += piece
                    pieces += 1
                    if pieces == leaves_after:
                        return
                got.ends = int(not stream or b"[DONE]" in received or b"message_stop" in received)
            finally:
                got.bytes = len(received)
                got.tokens = content_events(received) if stream else tokens * got.ends
