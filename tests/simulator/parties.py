"""Who stands around the gateway in a simulated world: a provider, callers and a Collector.

What they know is kept in `Ledger`: it is outside of the gateway, outlives every crash and is never lost.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx

from gateway.core.errors import UpstreamError
from gateway.providers.upstream import Endpoint, Header, Timeouts
from tests.simulator.disk import Faults, SimDisk

PATHS = ("/v1/chat/completions", "/v1/messages")
CONTENT = {
    PATHS[0]: b'data: {"id":"c","model":"m","choices":[{"delta":{"content":"%b"}}]}\n\n',
    PATHS[1]: b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
    b'"delta":{"type":"text_delta","text":"%b"}}\n\n',
}
TOKEN = b"word"
"""The simulated provider counts four bytes as one token, and says only this one."""
TOKENS_A_PIECE = 40
PIECE = TOKEN * TOKENS_A_PIECE
ENDS = (b"data: [DONE]\n\n", b'{"type":"message_stop"}\n\n', b"}}")
"""What the last piece of a whole answer ends with: the terminal event, or the usage of a JSON body."""


class Ledger:
    """What provider, callers and Collector know: it is outside of the gateway and never lost."""

    def __init__(self) -> None:
        self.called: Counter[str] = Counter()
        self.lost_power_after: dict[str, int] = {}
        self.reported: dict[str, int] = {}
        self.released: Counter[str] = Counter()
        self.ended: set[str] = set()
        self.accepted: list[bytes] = []
        self.requests = 0
        self.crashes = 0
        self.power_losses = 0
        self.stalls = 0
        self.broken: list[str] = []
        self.joined = 0
        self.clock_jumps = 0


class Surroundings:
    """What all of them share: chance, the disk, and what is known outside of the gateway.

    Args:
        seed: decides everything.
    """

    disk_type: type[SimDisk] = SimDisk

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.faults = Faults(self.rng, 0.0)
        self.disk = self.disk_type(self.faults)
        self.ledger = Ledger()
        self.faulty = True
        self.promises = True
        """What the gateway calls durable survives a power loss: not so without syncs."""

    async def pause(self) -> None:
        """Let others run for some turns; the process may die here, too."""
        for _ in range(self.rng.randrange(3)):
            await asyncio.sleep(0)
        self.disk.step("pause")


class Provider:
    """The simulated provider: counts each call, and sends what the request's plan says."""

    def __init__(self, world: Surroundings) -> None:
        self._world = world

    async def send(
        self, method: bytes, endpoint: Endpoint, headers: Sequence[Header], body: bytes, timeouts: Timeouts
    ) -> ProviderReply:
        request_id = dict(headers)[b"x-id"].decode()
        self._world.ledger.called[request_id] += 1
        await self._world.pause()
        if self._world.rng.random() < 0.03:
            raise UpstreamError("upstream_timeout", "late", status=504, retryable=True, sent=True)
        return ProviderReply(self._world, request_id, json.loads(body)["stream"], endpoint.target.decode())

    async def aclose(self) -> None:
        pass


class ProviderReply:
    def __init__(self, world: Surroundings, request_id: str, stream: bool, path: str) -> None:
        self._world = world
        rng = world.rng
        pieces = rng.randrange(1, 60) if rng.random() < 0.2 else rng.randrange(1, 6)
        tokens = pieces * TOKENS_A_PIECE
        self.status = 200
        self.headers = [(b"content-type", b"text/event-stream" if stream else b"application/json")]
        self._reads = list(_stream(path, pieces, tokens) if stream else [_whole(path, pieces, tokens)])
        if rng.random() < 0.05:
            self._reads = self._reads[: rng.randrange(len(self._reads) + 1)]
        elif rng.random() < 0.3:  # many events in one read
            self._reads = [b"".join(self._reads)]
        world.ledger.reported[request_id] = tokens

    async def read(self) -> bytes:
        await self._world.pause()
        return self._reads.pop(0) if self._reads else b""

    def close(self) -> None:
        pass


def _stream(path: str, pieces: int, tokens: int) -> Iterator[bytes]:
    if path == PATHS[1]:
        yield (
            b'event: message_start\ndata: {"type":"message_start","message":{"id":"x","model":"m",'
            b'"usage":{"input_tokens":7,"output_tokens":1}}}\n\n'
        )
    for _ in range(pieces):
        yield CONTENT[path] % PIECE
    if path == PATHS[1]:
        yield (
            b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},'
            b'"usage":{"output_tokens":%d}}\n\n' % tokens
        )
        yield b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
    else:
        usage = {"prompt_tokens": 7, "completion_tokens": tokens}
        yield b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n"
        yield b"data: [DONE]\n\n"


def _whole(path: str, pieces: int, tokens: int) -> bytes:
    text = (PIECE * pieces).decode()
    if path == PATHS[1]:
        content = [{"type": "text", "text": text}]
        usage = {"input_tokens": 7, "output_tokens": tokens}
        return json.dumps({"id": "x", "model": "m", "content": content, "usage": usage}).encode()
    choices = [{"message": {"content": text}, "finish_reason": "stop"}]
    usage = {"prompt_tokens": 7, "completion_tokens": tokens}
    return json.dumps({"id": "c", "model": "m", "choices": choices, "usage": usage}).encode()


class Client:
    """One caller: counts the text that it got, and whether it saw the end."""

    def __init__(self, world: Surroundings, request_id: str, *, patience: int) -> None:
        self._world = world
        self._id = request_id
        self._patience = patience
        self._status = 0

    async def receive(self) -> dict[str, Any]:
        if self._patience <= 0:
            return {"type": "http.disconnect"}
        await _Forever()
        raise AssertionError

    async def send(self, message: dict[str, Any]) -> None:
        await self._world.pause()
        if message["type"] == "http.response.start":
            self._status = message["status"]
            return
        if self._patience <= 0:
            return
        self._patience -= 1
        body: bytes = message["body"]
        ledger = self._world.ledger
        if self._status == 200 and body.count(TOKEN) and not ledger.released[self._id]:
            self._check(b"IS", "content went out before the intent or the bill was durable")
        ledger.released[self._id] += body.count(TOKEN)
        if self._status == 200 and not message["more_body"] and body.endswith(ENDS):
            ledger.ended.add(self._id)
            self._check(b"S", "the end went out before the bill was durable")

    def _check(self, kinds: bytes, wrong: str) -> None:
        """Hold the gateway to what it promised at this very moment."""
        starts = [b'{"j":{"k":"%c","id":"%b"' % (kind, self._id.encode()) for kind in kinds]
        if self._world.promises and not any(map(self._world.disk.holds, starts)):
            self._world.ledger.broken.append(f"{self._id}: {wrong}")


class _Forever:
    def __await__(self) -> Any:
        yield None


class Collector:
    """The simulated Collector, as the client that the shipper posts with."""

    def __init__(self, world: Surroundings) -> None:
        self._world = world

    @contextmanager
    def stream(self, method: str, url: str, *, content: bytes, headers: dict[str, str]) -> Iterator[Any]:
        self._world.disk.step("post")
        rng, ledger = self._world.rng, self._world.ledger
        chance = rng.random() if self._world.faulty else 1.0
        if chance < 0.1:
            raise httpx.ConnectError("away")
        if chance < 0.2:
            yield httpx.Response(503, headers={"retry-after": "1"}, content=b"")
            return
        spans = [item["scopeSpans"][0]["spans"][0] for item in json.loads(content)["resourceSpans"]]
        ledger.accepted += [json.dumps(span).encode() for span in spans]
        if chance < 0.3:
            raise httpx.ReadError("the answer was lost")
        self._world.disk.step("accepted")
        yield httpx.Response(200, content=b"{}")
