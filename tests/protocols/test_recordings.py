"""Real provider traffic through the doors: every stream passes byte for byte, however it is cut."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from gateway.core.usage import Usage
from gateway.protocols import PROTOCOLS
from gateway.protocols.base import Dialect, Protocol, Request
from gateway.protocols.sse import payload_of
from tests.recorded import APART, recordings_of

DOORS: dict[str, Protocol] = {
    "chat.completions": PROTOCOLS["/v1/chat/completions"],
    "messages": PROTOCOLS["/v1/messages"],
    "count_tokens": PROTOCOLS["/v1/messages/count_tokens"],
    "responses": PROTOCOLS["/v1/responses"],
    "responses.compact": PROTOCOLS["/v1/responses/compact"],
    "responses.input_tokens": PROTOCOLS["/v1/responses/input_tokens"],
    "embeddings": PROTOCOLS["/v1/embeddings"],
}
SMALL_BYTES = 3000
CUT_STEP = 1
"""Every byte is an edge when a small stream comes byte by byte; cuts in two are a seeded sixth of all."""


def dialect(provider: str) -> Dialect:
    return Dialect(reasoning_in_output=provider not in APART, stream_usage="always")


def exchanges(folder: Path, *apis: str) -> Iterator[tuple[str, dict[str, Any], Protocol]]:
    for file, recording in recordings_of(folder, *apis):
        yield file, recording, DOORS[recording["api"]]


def counts_of(usage: Usage | None) -> dict[str, int]:
    return {} if usage is None else usage.counts


def run_stream(
    door: Protocol, request: Request, provider: str, pieces: list[bytes]
) -> tuple[bytes, bytes, Any]:
    meter = door.stream_meter(request, dialect(provider))
    released = b"".join(meter.feed(piece) for piece in pieces)
    tail = meter.finish()
    return released, tail.held, tail.reply


def is_stream(recording: dict[str, Any]) -> bool:
    return recording["response"]["framing"] == "sse"


def test_a_stream_passes_byte_for_byte_wherever_it_is_cut(recordings: Path) -> None:
    request = Request(model="m", stream=True, usage_requested=True)
    streams = every = 0
    for file, recording, door in exchanges(recordings, "chat.completions", "messages", "responses"):
        if not is_stream(recording):
            continue
        body = recording["response"]["body"].encode()
        provider = recording["provider"]
        whole = run_stream(door, request, provider, [body])
        chance = random.Random(file)
        cuttings = [[chance.randrange(len(body)) for _ in range(chance.randrange(1, 40))] for _ in range(3)]
        if len(body) < SMALL_BYTES:
            cuttings += [[at] for at in range(1 + chance.randrange(CUT_STEP), len(body), CUT_STEP)]
            cuttings.append(list(range(1, len(body))))
            every += 1
        for cuts in cuttings:
            edges = [0, *sorted(set(cuts)), len(body)]
            pieces = [body[a:b] for a, b in pairwise(edges) if a < b]
            released, held, reply = run_stream(door, request, provider, pieces)
            assert released + held == body, file
            assert (released, held, reply) == whole, (file, cuts)
        streams += 1
    assert streams > 570
    assert every > 20


def test_what_was_not_asked_for_is_removed_and_nothing_else(recordings: Path) -> None:
    """A caller that did not ask for usage gets every event but the usage-only ones, byte for byte."""
    request = Request(model="m", stream=True)
    removed = 0
    for file, recording, door in exchanges(recordings, "chat.completions"):
        if not is_stream(recording):
            continue
        body = recording["response"]["body"].encode()
        told = run_stream(
            door, Request(model="m", stream=True, usage_requested=True), recording["provider"], [body]
        )[2]
        meter = door.stream_meter(request, Dialect(stream_usage="on_request"))
        out = b"".join(meter.feed(body[i : i + 97]) for i in range(0, len(body), 97))
        tail = meter.finish()
        events = [e for e in _events(body) if not _usage_only(e)]
        assert out + tail.held == b"".join(events), file
        assert counts_of(tail.reply.usage).get("input") == counts_of(told.usage).get("input"), file
        removed += len(_events(body)) - len(events)
    assert removed > 100


def _events(body: bytes) -> list[bytes]:
    events, start = [], 0
    text = body
    while start < len(text):
        ends = [(text.find(s, start), len(s)) for s in (b"\n\n", b"\r\n\r\n")]
        ends = [(at, n) for at, n in ends if at >= 0]
        if not ends:
            events.append(text[start:])
            break
        at, n = min(ends)
        events.append(text[start : at + n])
        start = at + n
    return events


def _usage_only(event: bytes) -> bool:
    try:
        chunk = json.loads(payload_of(event))
    except ValueError:
        return False
    return isinstance(chunk, dict) and bool(chunk.get("usage")) and not chunk.get("choices")
