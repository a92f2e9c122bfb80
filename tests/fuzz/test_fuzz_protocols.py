"""Fuzzed protocols: streams, requests and replies; only documented errors come out, no number is made up."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import msgspec
import pytest

from gateway.core.dimensions import DIMENSIONS
from gateway.core.errors import CallerError
from gateway.core.exchange import Reply
from gateway.core.usage import COUNT_MAX
from gateway.protocols import PROTOCOLS
from gateway.protocols.base import Dialect, Protocol, Request
from gateway.protocols.chat_completions.reply import usage_of
from gateway.protocols.reading import decode
from gateway.protocols.sse import payload_of
from tests.attacks.wires import CHAT, EMBEDDINGS, RESPONSES, WIRES, Wire
from tests.fuzz.mutation import INPUTS, cut, fuzz, mutated

DIALECTS = [
    Dialect(),
    Dialect(stream_usage="always"),
    Dialect(reasoning_in_output=False),
]
EVERY = pytest.mark.parametrize("wire", [*WIRES, EMBEDDINGS], ids=lambda wire: wire.name)
ENDS = {
    "chat_completions": (CHAT.end.strip()[-6:],),
    "messages": (b"message_stop",),
    "responses": (b"response.completed", b"response.incomplete", b"response.failed"),
}
CALLS = (
    b',"tool_usage":{"web_search":{"num_requests":2}},"output":[{"type":"web_search_call","action":'
    b'{"type":"search"}},{"type":"function_call","name":"f","arguments":"{}"}],"incomplete_details":{}}'
)
_BLANK = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")


TOOL_USE = b'{"type":"tool_use","name":"f","input":{"a":["b",1.5,7]}},'


def streams(wire: Wire) -> list[bytes]:
    base = [
        wire.stream(), wire.stream(None), wire.stream() * 2, wire.stream().replace(b"\n", b"\r\n"),
        wire.stream().replace(b"\n", b"\r"), wire.stream() + wire.error, wire.opening() + wire.error,
        wire.opening() + wire.usage_event(wire.usage_of()) * 3 + wire.content() + wire.end,
        b"\xef\xbb\xbf" + wire.stream(), b": ping\n\n" + wire.stream() + b": bye\n\n",
    ]  # fmt: skip
    if wire is CHAT:
        base.append(b'data: {"choices":[],"x_groq":{"usage":{"prompt_tokens":1,"completion_tokens":2}}}\n\n')
        base.append(b'data: {"error":{"code":"x"},"choices":[],"usage":{"prompt_tokens":1}}\n\n' + wire.end)
        base.append(wire.stream().replace(b'":', b'": ').replace(b',"', b', "'))
    if wire is RESPONSES:
        base += [
            wire.opening() + wire.content() * 5 + wire.closing() + wire.end + b"data: [DONE]\n\n",
            wire.stream().replace(b"completed", b"incomplete"), wire.stream().replace(b'": ', b'":'),
            wire.opening() + wire.content() * 3 + wire.content().replace(b"output_text", b"refusal") * 3,
            b"".join(line + b"\n" for line in wire.stream().split(b"\n") if not line.startswith(b"event")),
        ]  # fmt: skip
    return base


def requests(wire: Wire) -> list[bytes]:
    plain = wire.request("m", stream=True, user="u", metadata={"user_id": "u"})
    return [
        plain,
        plain[:-1] + b',"stream_options":{"include_usage":false,"x":[1,{"y":2.50}]}}',
        plain.replace(b" ", b""),
        b" \n" + plain + b"\t",
        wire.request("m", stream=False, tools=[{"a": 1}], max_completion_tokens=4, safety_identifier="s"),
        plain.replace(b"model", b"mod\\u0065l"),
        plain[:-1] + b',"background":false,"previous_response_id":"r","input":"text"}',
    ]


def assert_reply(reply: Reply) -> None:
    """Check what holds of every reply, whatever its bytes."""
    assert msgspec.json.encode(reply)
    assert len(reply.finish_reasons) <= 16
    for word in (reply.response_id, reply.response_model, reply.error_type, *reply.finish_reasons):
        assert word is None or (len(word) <= 256 and word.isprintable() and word)
    for count in reply.output_summary.values():
        assert type(count) is int
        assert count >= 0
    usage = reply.usage
    if usage is None:
        return
    for name, units in usage.counts.items():
        assert name in DIMENSIONS
        assert type(units) is int
        assert 0 <= units <= COUNT_MAX
    assert all(re.fullmatch(r"[a-z0-9_]+", word) for word in usage.anomalies)
    assert usage.source == "provider"
    assert usage.service_tier is None or usage.service_tier.isprintable()
    if usage.reported_cost_usd is not None:
        assert re.fullmatch(r"\d{1,13}(\.\d{1,40})?", usage.reported_cost_usd), usage.reported_cost_usd


def metered(
    door: Protocol, request: Request, dialect: Dialect, pieces: list[bytes]
) -> tuple[bytes, bytes, Reply]:
    meter = door.stream_meter(request, dialect)
    released = b"".join([meter.feed(piece) for piece in pieces])
    tail = meter.finish()
    said = meter.said()
    assert said is None or (said.text and 0 < said.bytes <= said.of)
    return released, tail.held, tail.reply


def shown(data: bytes, dialect: Dialect) -> bytes:
    """Return the stream without the usage-only chunks, by splitting it whole: the oracle of the meter."""
    kept, start, tier = [], 0, None
    while start < len(data):
        found = _BLANK.search(data, start)
        end = len(data) if found is None else found.end()
        event = data[start:end]
        start = end
        chunk = decode(payload_of(event)) if b'"usage"' in event else None
        hidden = (
            isinstance(chunk, dict)
            and payload_of(event).strip() != b"[DONE]"
            and usage_of({**chunk, "service_tier": tier}, dialect) is not None
            and not chunk.get("choices")
            and not chunk.get("error")
        )
        if not hidden:
            kept.append(event)
    return b"".join(kept)


@pytest.mark.parametrize("wire", WIRES, ids=[wire.name for wire in WIRES])
@pytest.mark.parametrize("asked", [True, False], ids=["usage asked for", "usage hidden"])
def test_no_stream_breaks_a_meter_and_no_cut_changes_its_result(wire: Wire, asked: bool) -> None:
    door = PROTOCOLS[wire.path]
    request = Request(model="m", stream=True, usage_requested=asked)
    seeds = streams(wire)

    def check(chance: random.Random) -> None:
        data, dialect = mutated(chance, seeds), chance.choice(DIALECTS)
        released, held, reply = metered(door, request, dialect, [data])
        assert_reply(reply)
        hides = wire is CHAT and not asked and dialect.stream_usage == "on_request"
        assert released + held == (shown(data, dialect) if hides else data)
        for _ in range(2):
            pieces = cut(chance, data)
            again_released, again_held, again = metered(door, request, dialect, pieces)
            assert again_released + again_held == released + held, pieces
            assert again == reply, pieces
        assert not reply.complete or any(mark in data for mark in ENDS[wire.name])

    assert fuzz(check) >= INPUTS


def same_but_for_ours(before: Any, after: Any) -> bool:
    """Say whether a body for the provider is the caller's, but for what the gateway may change."""
    rest = {k: v for k, v in before.items() if k not in ("model", "stream_options")}
    return bool(rest == {k: v for k, v in after.items() if k not in ("model", "stream_options")})


@EVERY
def test_no_request_breaks_a_reader_and_none_is_forwarded_changed(wire: Wire) -> None:
    door = PROTOCOLS[wire.path]
    seeds = requests(wire)
    accepted = 0

    def check(chance: random.Random) -> None:
        nonlocal accepted
        body, dialect = mutated(chance, seeds), chance.choice(DIALECTS)
        try:
            request = door.read_request(body)
        except CallerError as fault:
            refusal = fault
        else:
            refusal = None
        if refusal is not None:
            assert refusal.status == 400
            assert json.loads(door.error_body(refusal))
            return
        accepted += 1
        assert 0 < len(request.model) <= 256
        assert request.model.isprintable()
        assert request.user is None or (len(request.user) <= 256 and request.user.isprintable())
        assert request.max_tokens is None or 0 <= request.max_tokens <= COUNT_MAX
        same = door.upstream_body(body, request, model=request.model, dialect=dialect)
        other = door.upstream_body(body, request, model="other", dialect=dialect)
        try:
            said = json.loads(body)
        except (RecursionError, ValueError):
            assert b"9" * 400 in body or b"[[[" in body or b'{"a":' in body, "accepted, and no JSON"
            return
        assert said["model"] == request.model
        assert same_but_for_ours(said, json.loads(same))
        assert same_but_for_ours(said, json.loads(other))
        assert json.loads(other)["model"] == "other"
        if wire is CHAT and request.stream and dialect.stream_usage == "on_request":
            assert json.loads(same)["stream_options"]["include_usage"] is True

    assert fuzz(check) >= INPUTS
    assert accepted > INPUTS / 10, "nearly everything was refused: the fuzzer tests the refusal only"


@EVERY
def test_no_reply_breaks_a_reader(wire: Wire) -> None:
    door = PROTOCOLS[wire.path]
    usage = wire.usage_of()[:-1]
    seeds = [
        wire.whole(), wire.whole(None), wire.whole(wire.usage_of(output="1e30")), wire.error,
        wire.error.split(b"data: ")[1].strip(), wire.whole()[:-1] + CALLS,
        wire.whole(usage + ',"total_tokens":99,"completion_tokens_details":{"reasoning_tokens":5}}'),
        wire.whole(usage + ',"cost":0.25,"cost_in_usd_ticks":7,"service_tier":"flex"}'),
        wire.whole(usage + ',"cache_creation":{"ephemeral_5m_input_tokens":1}}'),
        wire.whole(usage + ',"iterations":[{"input_tokens":1,"output_tokens":2}]}'),
        wire.whole().replace(b'{"type":"text",', TOOL_USE + b'{"type":"text",'),
        wire.whole().replace(b'"content":"hi"', b'"content":[{"text":"a"},{"thinking":[{"text":"b"}]}],'
                             b'"tool_calls":[{"function":{"name":"f","arguments":"{}"}}]'),
    ]  # fmt: skip
    with_usage = 0

    def check(chance: random.Random) -> None:
        nonlocal with_usage
        body = mutated(chance, seeds)
        for status in (200, 429):
            reply = door.read_reply(status, body, chance.choice(DIALECTS))
            assert_reply(reply)
            assert status == 200 or reply.usage is None, "an error body is never billed"
        said = door.said(body)
        assert said is None or (said.text and said.bytes == said.of == len(body))
        with_usage += door.read_reply(200, body, Dialect()).usage is not None

    assert fuzz(check) >= INPUTS
    assert with_usage > INPUTS / 10


def test_every_wire_is_fuzzed() -> None:
    apart = {"/v1/messages/count_tokens", "/v1/responses/compact", "/v1/responses/input_tokens"}
    assert {wire.path for wire in (*WIRES, EMBEDDINGS)} == set(PROTOCOLS) - apart
