"""Whatever a caller or a provider sends: a typed error or an answer, and never a fault of ours."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.errors import CallerError, UpstreamError
from gateway.core.exchange import Reply
from gateway.protocols import PROTOCOLS
from gateway.protocols.base import Dialect, Request
from gateway.translation import STAND_INS, TRANSLATORS, Translated

NAMES = st.sampled_from(
    [
        *("messages", "input", "role", "content", "type", "text", "tools", "tool_choice", "function", "name"),
        *("arguments", "tool_calls", "system", "source", "thinking", "signature", "data", "choices", "delta"),
        *("message", "index", "id", "output", "output_index", "item", "response", "error", "reasoning"),
        *("reasoning_details", "content_block", "summary", "encrypted_content", "stop", "image_url", "url"),
        *("tool_use_id", "tool_call_id", "call_id", "stream", "response_format", "json_schema", "schema"),
    ]
)
WORDS = st.sampled_from(
    [
        *("user", "assistant", "tool", "system", "text", "image", "tool_use", "tool_result", "thinking"),
        *("function", "function_call", "function_call_output", "message", "input_text", "output_text"),
        *("reasoning", "message_start", "content_block_start", "content_block_delta", "text_delta", "error"),
        *("input_json_delta", "message_delta", "response.output_item.added", "response.output_text.delta"),
        *("response.output_item.done", "response.function_call_arguments.delta", "response.completed"),
        *("spanbill:messages:x", "spanbill:", "data:image/png;base64,aa", "{", "{}", "auto", "\u2028"),
    ]
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**30) | st.floats(allow_nan=False) | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=6),
    max_leaves=25,
)
OBJECTS = st.dictionaries(NAMES, VALUES, max_size=8)
DOORS = {door.name: door for door in PROTOCOLS.values()}
PAIRS = sorted(TRANSLATORS)
REQUEST = Request(model="m", stream=True)


def begun(door: str, spoken: str) -> Translated:
    asked: dict[str, Any] = {
        "model": "m",
        "max_tokens": 5,
        "messages": [{"role": "user", "content": "Hello"}],
    }
    if door == "responses":
        asked = {"model": "m", "input": "Hello"}
    return TRANSLATORS[door, spoken].begin(
        json.dumps(asked).encode(), REQUEST, model="m", dialect=Dialect(), at_unix_s=1
    )


@pytest.mark.parametrize(("door", "spoken"), PAIRS)
@settings(max_examples=40)
@given(body=OBJECTS)
def test_any_request_is_translated_or_refused(door: str, spoken: str, body: dict[str, Any]) -> None:
    try:
        told = TRANSLATORS[door, spoken].begin(
            json.dumps({**body, "model": "m"}).encode(), REQUEST, model="m", dialect=Dialect(), at_unix_s=1
        )
    except CallerError as error:
        refusal = error
        assert refusal.status == 400
        return
    written = told.upstream_body(b"", REQUEST, model="m", dialect=Dialect())
    assert DOORS[spoken].read_request(written).model == "m"


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b'{"model":"m","messages":["\\ud800"]}', b"[]", b'"x"', b"{"]
)
def test_a_request_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(CallerError) as caught:
        TRANSLATORS["messages", "chat_completions"].begin(
            body, REQUEST, model="m", dialect=Dialect(), at_unix_s=1
        )
    assert caught.value.status == 400


def test_a_request_of_any_depth_is_translated_or_refused() -> None:
    refused = 0
    for depth in range(900, 1100):  # around what the decoder takes
        schema = b'{"a":' * depth + b"1" + b"}" * depth
        body = b'{"model":"m","messages":[],"tools":[{"name":"f","input_schema":' + schema + b"}]}"
        try:
            TRANSLATORS["messages", "chat_completions"].begin(
                body, REQUEST, model="m", dialect=Dialect(), at_unix_s=1
            )
        except CallerError:
            refused += 1
    assert 0 < refused < 200


@pytest.mark.parametrize(("door", "spoken"), PAIRS)
@settings(max_examples=40)
@given(body=OBJECTS, status=st.sampled_from([200, 200, 400, 429, 500, 529]), streamed=st.booleans())
def test_any_reply_is_told_in_the_callers_words(
    door: str, spoken: str, body: dict[str, Any], status: int, streamed: bool
) -> None:
    data = json.dumps(body).encode()
    if streamed:
        data = b"data: " + data + b"\n\n"
    reply = DOORS[spoken].read_reply(status, data, Dialect())
    shown, told = begun(door, spoken).relayed(status, data, reply, streamed=streamed and status == 200)
    assert shown == status or (shown == 502 and status == 200)
    value = msgspec.json.decode(told)
    assert isinstance(value, dict)
    assert ("error" in value and value["error"] is not None) == (shown >= 400)


@pytest.mark.parametrize("body", [b"", b"<html>no</html>", b"null", b"\xff\xfe", b'{"a":1}{"b"'])
@pytest.mark.parametrize(("door", "spoken"), PAIRS)
def test_what_is_no_answer_is_said_to_be_none(door: str, spoken: str, body: bytes) -> None:
    exchange = begun(door, spoken)
    shown, told = exchange.relayed(200, body, exchange.read_reply(200, body, Dialect()), streamed=False)
    assert shown == 502
    assert "cannot be read" in msgspec.json.decode(told)["error"]["message"]
    shown, told = exchange.relayed(500, body, Reply(), streamed=False)
    assert shown == 500
    assert "500" in msgspec.json.decode(told)["error"]["message"]


@pytest.mark.parametrize(("door", "spoken"), PAIRS)
@settings(max_examples=40)
@given(events=st.lists(OBJECTS, max_size=8), ended=st.booleans())
def test_any_stream_is_told_in_the_callers_words(
    door: str, spoken: str, events: list[dict[str, Any]], ended: bool
) -> None:
    meter = begun(door, spoken).stream_meter(REQUEST, Dialect())
    end = {
        "chat_completions": b"data: [DONE]\n\n",
        "messages": b'data: {"type":"message_stop"}\n\n',
        "responses": b'data: {"type":"response.completed","response":{}}\n\n',
    }[spoken]
    data = b"".join([b"data: " + json.dumps(event).encode() + b"\n\n" for event in events])
    try:
        out = meter.feed(data + (end if ended else b""))
    except UpstreamError:
        return
    tail = meter.finish()
    for line in (out + tail.held).split(b"\n"):
        if line.startswith(b"data: {"):
            assert isinstance(msgspec.json.decode(line[6:]), dict)


def test_a_reply_of_any_depth_is_told_or_said_to_be_none() -> None:
    statuses = set()
    for depth in range(900, 1100):  # around what the decoder takes
        deep = b'{"a":' * depth + b"1" + b"}" * depth
        call = b'{"type":"tool_use","id":"t","name":"f","input":' + deep + b"}"
        exchange = begun("chat_completions", "messages")
        body = b'{"type":"message","content":[' + call + b"]}"
        statuses.add(exchange.relayed(200, body, Reply(), streamed=False)[0])
        meter = exchange.stream_meter(REQUEST, Dialect())
        event = b'data: {"type":"content_block_start","index":0,"content_block":' + call + b"}\n\n"
        with contextlib.suppress(UpstreamError):
            meter.feed(event)
        meter.finish()
    assert statuses == {200, 502}


@pytest.mark.parametrize("odd", [[], {}, "x", None, 1.5, True, -7, 10**30])
@pytest.mark.parametrize(("door", "spoken"), PAIRS)
def test_parts_may_be_numbered_oddly(door: str, spoken: str, odd: Any) -> None:
    call = {"index": odd, "id": odd, "function": {"name": odd, "arguments": odd}}
    block, delta = {"type": "tool_use", "id": odd, "name": odd}, {"type": "text_delta", "text": odd}
    item = {"type": "function_call", "call_id": odd, "name": odd, "arguments": odd}
    numbers = {"output_index": odd, "content_index": odd, "summary_index": odd}
    details = [{"index": odd, "text": odd, "signature": odd}]
    events: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": {"tool_calls": [call, odd], "reasoning_details": details}}]},
        {"choices": [{"index": odd, "delta": odd}]},
        {"type": "message_start", "message": odd},
        {"type": "content_block_start", "index": odd, "content_block": block},
        {"type": "content_block_delta", "index": odd, "delta": delta},
        {"type": "content_block_stop", "index": odd},
        {"type": "response.output_item.added", **numbers, "item": item},
        {"type": "response.output_text.delta", **numbers, "delta": "x"},
        {"type": "response.reasoning_summary_text.delta", **numbers, "delta": "x"},
        {"type": "response.output_item.done", **numbers, "item": item},
    ]
    meter = begun(door, spoken).stream_meter(REQUEST, Dialect())
    meter.feed(b"".join([b"data: " + json.dumps(event).encode() + b"\n\n" for event in events]))
    assert not meter.finish().reply.complete


def test_every_door_of_a_conversation_has_its_stand_ins() -> None:
    assert set(STAND_INS) == {"chat_completions", "messages", "responses"}
    assert set(TRANSLATORS) == {(door, other) for door, others in STAND_INS.items() for other in others}


@pytest.mark.parametrize(
    ("spoken", "body", "words"),
    [
        ("chat_completions", b'{"detail":"Invalid API Key"}', "Invalid API Key"),
        ("chat_completions", b'{"object":"error","message":"slow down","code":"1300"}', "slow down"),
        ("chat_completions", b'[{"error":{"code":400,"message":"bad key"}}]', "bad key"),
        ("chat_completions", b'{"code":"invalid-argument","error":"no model"}', "no model"),
        ("responses", b'{"code":"invalid-argument","error":"Incorrect API key"}', "Incorrect API key"),
        ("messages", b'{"detail":"not found"}', "not found"),
        ("chat_completions", b'[{"error":7},8]', "told no reason"),
        ("responses", b"", "told no reason"),
    ],
)
def test_an_error_in_a_providers_own_envelope_keeps_its_words(spoken: str, body: bytes, words: str) -> None:
    door = "messages" if spoken != "messages" else "chat_completions"
    translated = begun(door, spoken)
    status, told = translated.relayed(401, body, Reply(), streamed=False)
    assert status == 401
    assert words in json.loads(told)["error"]["message"]
