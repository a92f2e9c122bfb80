"""Every recorded exchange of all doors through the whole gateway, from a provider that replays it.

The caller's bytes are the provider's bytes, wherever the provider cut them, and the tokens on the span are
those that the provider reported; what it did not report is absent.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from gateway.api.inference import Doors
from gateway.app import create_app
from gateway.core.dimensions import DIMENSIONS
from gateway.providers.upstream import Endpoint, Header, Timeouts, UpstreamReply
from gateway.settings import (
    JournalSettings,
    LoggingSettings,
    ProviderSettings,
    RetriesSettings,
    RoutingSettings,
    Settings,
)
from tests.gateway_process import bills_in_journal
from tests.lifespan import lifespan_of
from tests.recorded import COUNTED, expected_counts

PATHS = {
    "chat.completions": "/v1/chat/completions",
    "messages": "/v1/messages",
    "responses": "/v1/responses",
    "responses.compact": "/v1/responses/compact",
    "responses.input_tokens": "/v1/responses/input_tokens",
    "embeddings": "/v1/embeddings",
}
KEY = "sk-replay"
SMALL_BYTES = 1500
APART = "vercel-gateway"
"""The one recorded provider whose card says that reasoning is not in the output count."""


class Replay:
    """A transport that serves one recorded body, cut as told."""

    def __init__(self) -> None:
        self.status, self.headers, self.pieces = 200, [(b"content-type", b"")], [b""]

    async def send(
        self, method: bytes, endpoint: Endpoint, headers: Sequence[Header], body: bytes, timeouts: Timeouts
    ) -> UpstreamReply:
        return self

    def serve(self, status: int, content_type: bytes, pieces: list[bytes]) -> None:
        self.status, self.headers, self.pieces = status, [(b"content-type", content_type)], pieces

    async def read(self) -> bytes:
        return self.pieces.pop(0) if self.pieces else b""

    def close(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


async def ask(app: Doors, path: str, body: bytes) -> tuple[int, str, bytes]:
    """Send one request to the application; return status, request id and body."""
    head: dict[str, Any] = {}
    sent: list[bytes] = []

    async def receive() -> dict[str, Any]:
        if not head.get("asked"):
            head["asked"] = True
            return {"type": "http.request", "body": body, "more_body": False}
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            head.update(message)
        else:
            sent.append(message["body"])

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "headers": [(b"authorization", f"Bearer {KEY}".encode())],
        "client": ("127.0.0.1", 1),
    }
    await app(scope, receive, send)
    return head["status"], dict(head["headers"])[b"x-request-id"].decode(), b"".join(sent)


def cuttings(body: bytes, chance: random.Random, *, stream: bool) -> list[list[bytes]]:
    """Return the body whole, cut at random, and, where it is small, at every byte."""
    edges = (
        [[], sorted(chance.sample(range(1, len(body)), min(len(body) - 1, 12)))] if len(body) > 2 else [[]]
    )
    if stream and len(body) < SMALL_BYTES:
        edges += [[at] for at in range(1, len(body))]
        edges.append(list(range(1, len(body))))
    return [[body[a:b] for a, b in zip([0, *e], [*e, len(body)], strict=True)] for e in edges]


EITHER_SIDE = {"gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"}


def expected(file: str, recording: dict[str, Any]) -> dict[str, int]:
    return {DIMENSIONS[name].attribute: units for name, units in expected_counts(file, recording).items()}


def settings_for(folder: Path) -> Settings:
    def provider(**options: Any) -> ProviderSettings:
        return ProviderSettings(
            base_url="http://replay.invalid",
            api_key=SecretStr("sk-x"),
            protocols=(
                *("chat_completions", "messages", "embeddings"),
                *("responses", "responses_compact", "responses_input_tokens"),
            ),
            **options,
        )

    return Settings(
        api_keys=SecretStr(KEY),
        journal=JournalSettings(directory=folder, durability="process"),
        logging=LoggingSettings(requests=False),
        routing=RoutingSettings(retries=RetriesSettings(attempts_max=1)),  # each recording is one reply
        providers={
            "replay": provider(models=("m",)),
            "apart": provider(models=("apart",), reasoning_in_output=False),
        },
    )


async def replay(recordings: Path, app: Doors, transport: Replay) -> dict[str, tuple[str, dict[str, int]]]:
    """Serve everything; return what each bill must say, by its id."""
    told: dict[str, tuple[str, dict[str, int]]] = {}
    whole = cut_off = every_byte = no_document = 0
    for line in (recordings / "index.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["api"] not in PATHS:
            continue
        recording = json.loads((recordings / row["file"]).read_text())
        body = recording["response"]["body"].encode()
        stream = recording["response"]["framing"] == "sse"
        request = {
            "model": "apart" if row["provider"] == APART else "m",
            "max_tokens": 9,
            "messages": [],
            "stream": stream,
        }
        if stream and row["api"] == "chat.completions":
            request["stream_options"] = {"include_usage": True}
        every_byte += stream and len(body) < SMALL_BYTES
        for pieces in cuttings(body, random.Random(row["file"]), stream=stream):
            pieces = [piece for piece in pieces if piece]
            kind = b"text/event-stream" if stream else b"application/json"
            transport.serve(recording["status"], kind, pieces)
            status, request_id, sent = await ask(app, PATHS[row["api"]], json.dumps(request).encode())
            told[request_id] = (row["file"], expected(row["file"], recording))
            if recording["status"] == 200 and not stream and not body.lstrip().startswith(b"{"):
                assert (status, json.loads(sent)["error"]["code"]) == (502, "upstream_protocol"), row["file"]
                no_document += 1
                continue
            assert status == recording["status"], row["file"]
            if sent == body:
                whole += 1
            else:
                # No end event was recorded: the caller is told that the answer is not whole.
                assert stream, row["file"]
                chat = row["api"] == "chat.completions"
                told_so = sent.rindex(b'data: {"error"' if chat else b"event: error\n")
                assert body.startswith(sent[:told_so]), row["file"]
                cut_off += 1
    assert whole > 3800
    assert every_byte > 10
    assert no_document == 2, "one recording, whole and cut"
    assert cut_off < whole / 20
    return told


def test_every_recorded_exchange_passes_and_is_billed_as_reported(recordings: Path, tmp_path: Path) -> None:
    transport = Replay()
    app = create_app(settings_for(tmp_path), environ={}, transport=transport)

    async def run() -> dict[str, tuple[str, dict[str, int]]]:
        async with lifespan_of(app):
            return await replay(recordings, app, transport)

    told = asyncio.run(run())
    bills = bills_in_journal(tmp_path)
    assert set(bills) == set(told)
    counted = {DIMENSIONS[name].attribute for name in COUNTED}
    wrong = []
    estimates = 0
    for request_id, (file, want) in told.items():
        bill = bills[request_id]
        estimated = bill.get("billing.usage.source") == "estimated"
        estimates += estimated
        found = {k: v for k, v in bill.items() if k in counted and not (estimated and k in EITHER_SIDE)}
        if found != {k: v for k, v in want.items() if not (estimated and k in EITHER_SIDE)}:
            wrong.append(f"{file}: {found} instead of {want}")
        if estimated and set(want) >= EITHER_SIDE:
            wrong.append(f"{file}: estimated, though its provider reported")
    assert not wrong, "\n".join(wrong[:20])
    assert 0 < estimates < len(told) / 20
