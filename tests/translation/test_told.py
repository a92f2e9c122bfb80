"""Streams as callers see them, event by event; what ends them is held, and what fails in them is told."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.core.errors import UpstreamError
from gateway.protocols import PROTOCOLS
from gateway.protocols.base import Dialect, Request
from gateway.protocols.sse import events_in, payload_of
from gateway.translation import TRANSLATORS
from gateway.translation.responses import events as responses_events
from gateway.translation.translated import TranslatedMeter, decoded

ASKED: dict[str, dict[str, Any]] = {
    "chat_completions": {"model": "m", "messages": [{"role": "user", "content": "Hello"}]},
    "messages": {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "Hello"}]},
    "responses": {"model": "m", "input": "Hello"},
}


def meter_of(door: str, spoken: str, *, usage: bool = True) -> TranslatedMeter:
    request = Request(model="m", stream=True, usage_requested=usage)
    body = json.dumps(ASKED[door]).encode()
    exchange = TRANSLATORS[door, spoken].begin(body, request, model="m", dialect=Dialect(), at_unix_s=7)
    return exchange.stream_meter(request, Dialect())


def chunk(delta: dict[str, Any] | None = None, **members: Any) -> bytes:
    choices = (
        [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": members.pop("finish", None)}]
    )
    return (
        b"data: " + json.dumps({"id": "c1", "model": "x", "choices": choices, **members}).encode() + b"\n\n"
    )


def call(index: int, arguments: str, **members: str) -> dict[str, Any]:
    function = {"arguments": arguments, **({"name": members["name"]} if "name" in members else {})}
    return {"index": index, "function": function, **({"id": members["id"]} if "id" in members else {})}


CHAT = [
    chunk({"role": "assistant", "content": ""}),
    chunk({"reasoning_content": "Hm."}),
    chunk({"content": "Hi"}),
    chunk({"tool_calls": [call(0, '{"a":', id="call_0", name="f")]}),
    chunk({"tool_calls": [call(1, '{"b"', id="call_1", name="g")]}),
    chunk({"tool_calls": [call(0, "1}"), call(1, ":2}")]}),
    chunk({}, finish="tool_calls"),
    chunk(usage={"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4}}),
]
DONE = b"data: [DONE]\n\n"


def told(data: bytes) -> list[dict[str, Any]]:
    return [decoded(payload) for event in events_in(data) if (payload := payload_of(event)) != b"[DONE]"]


def test_a_messages_caller_sees_blocks_one_after_another_and_the_end_when_it_may() -> None:
    meter = meter_of("messages", "chat_completions")
    out = b"".join([meter.feed(piece) for piece in CHAT])
    assert meter.feed(DONE) == b""
    assert meter.ended
    tail = meter.finish()
    seen = [(event["type"], event.get("index"), event.get("delta")) for event in told(out)]
    assert seen == [
        ("message_start", None, None),
        ("content_block_start", 0, None),
        ("content_block_delta", 0, {"type": "thinking_delta", "thinking": "Hm."}),
        ("content_block_stop", 0, None),
        ("content_block_start", 1, None),
        ("content_block_delta", 1, {"type": "text_delta", "text": "Hi"}),
        ("content_block_stop", 1, None),
        ("content_block_start", 2, None),
        ("content_block_delta", 2, {"type": "input_json_delta", "partial_json": '{"a":'}),
        ("content_block_delta", 2, {"type": "input_json_delta", "partial_json": "1}"}),
    ]
    rest = told(tail.held)
    assert [(event["type"], event.get("index")) for event in rest] == [
        ("content_block_stop", 2),
        ("content_block_start", 3),
        ("content_block_delta", 3),
        ("content_block_delta", 3),
        ("content_block_stop", 3),
        ("message_delta", None),
        ("message_stop", None),
    ]
    assert rest[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert rest[-2]["usage"] == {"input_tokens": 6, "cache_read_input_tokens": 4, "output_tokens": 5}
    assert tail.reply.usage is not None
    assert tail.reply.usage.counts == {"input": 10, "cache_read": 4, "output": 5}


@pytest.mark.parametrize("usage", [True, False])
def test_a_chat_caller_has_its_usage_chunk_only_if_it_asked(usage: bool) -> None:
    meter = meter_of("chat_completions", "messages", usage=usage)
    start = {"type": "message_start", "message": {"id": "msg_1", "model": "c", "usage": {"input_tokens": 3}}}
    events = [
        start,
        {"type": "ping"},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "max_tokens"}, "usage": {"output_tokens": 2}},
        {"type": "message_stop"},
    ]
    data = [b"data: " + json.dumps(event).encode() + b"\n\n" for event in events]
    out = b"".join([meter.feed(piece) for piece in data])
    held = meter.finish().held
    assert [event["choices"][0]["delta"] for event in told(out)] == [
        {"role": "assistant", "content": ""},
        {"content": "Hi"},
    ]
    assert {(event["id"], event["model"], event["created"]) for event in told(out)} == {("msg_1", "c", 7)}
    last = told(held)
    assert last[0]["choices"] == [{"index": 0, "delta": {}, "finish_reason": "length"}]
    assert [event.get("usage") for event in last[1:]] == [
        {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    ] * usage
    assert held.endswith(DONE)


def test_a_responses_caller_sees_numbered_events_and_the_whole_at_the_end() -> None:
    meter = meter_of("responses", "chat_completions")
    out = b"".join([meter.feed(piece) for piece in [*CHAT, DONE]])
    events = told(out + meter.finish().held)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds[:8] == [
        *("created", "in_progress", "output_item.added", "reasoning_summary_part.added"),
        *("reasoning_summary_text.delta", "reasoning_summary_text.done", "reasoning_summary_part.done"),
        "output_item.done",
    ]
    assert kinds[8:14] == [
        *("output_item.added", "content_part.added", "output_text.delta", "output_text.done"),
        *("content_part.done", "output_item.done"),
    ]
    assert kinds[-1] == "completed"
    final = events[-1]["response"]
    assert [item["type"] for item in final["output"]] == [
        *("reasoning", "message", "function_call", "function_call")
    ]
    assert [item["arguments"] for item in final["output"][2:]] == ['{"a":1}', '{"b":2}']
    assert final["usage"]["input_tokens_details"] == {"cached_tokens": 4}
    assert final["usage"]["total_tokens"] == 15


ERRORS = {
    "chat_completions": b'data: {"error":{"message":"Overloaded","code":"overloaded"}}\n\n',
    "messages": b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error",'
    b'"message":"Overloaded"}}\n\n',
    "responses": b'data: {"type":"response.failed","response":{"status":"failed","error":'
    b'{"code":"overloaded","message":"Overloaded"}}}\n\n',
}


@pytest.mark.parametrize(("door", "spoken"), sorted(TRANSLATORS))
def test_an_error_in_a_stream_is_told_in_the_callers_words_and_nothing_after_it(
    door: str, spoken: str
) -> None:
    meter = meter_of(door, spoken)
    tail_of = {"chat_completions": DONE, "messages": b'data: {"type":"message_stop"}\n\n', "responses": b""}
    out = meter.feed(ERRORS[spoken] + tail_of[spoken])
    tail = meter.finish()
    assert tail.reply.error_type is not None
    (error,) = told(out + tail.held)
    assert error["error"]["message"] == "Overloaded"
    own = next(protocol for protocol in PROTOCOLS.values() if protocol.name == door)
    read = own.stream_meter(Request(model="m", stream=True), Dialect())
    read.feed(out + tail.held)
    assert read.finish().reply.error_type is not None


def test_a_cut_stream_has_no_end() -> None:
    meter = meter_of("messages", "chat_completions")
    out = b"".join([meter.feed(piece) for piece in CHAT[:-1]])
    tail = meter.finish()
    assert not tail.reply.complete
    assert b"message_stop" not in out + tail.held
    assert b"message_delta" not in out + tail.held


def test_calls_without_an_id_get_one_and_arguments_may_be_objects() -> None:
    meter = meter_of("messages", "chat_completions")
    bare = {"tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}
    out = meter.feed(chunk(bare) + chunk({}, finish="stop") + DONE)
    events = told(out + meter.finish().held)
    block = next(event["content_block"] for event in events if event["type"] == "content_block_start")
    assert block == {"type": "tool_use", "id": "call_c1_0", "name": "f", "input": {}}
    assert '{"a":1}' in [event["delta"].get("partial_json") for event in events if "delta" in event]
    assert events[-2]["delta"]["stop_reason"] == "tool_use", "what was called is to be answered"


@pytest.mark.parametrize("index", [{}, {"index": 0}])
def test_calls_that_are_not_numbered_are_told_apart_by_their_ids(index: dict[str, int]) -> None:
    def numbered(**members: Any) -> bytes:
        return chunk({"tool_calls": [{**index, **members}]})

    meter = meter_of("messages", "chat_completions")
    first = numbered(id="a", function={"name": "f", "arguments": '{"a":'})
    rest = numbered(function={"arguments": "1}"})
    second = numbered(id="b", function={"name": "f", "arguments": '{"a":2}'})
    out = meter.feed(first + rest + second + DONE)
    events = told(out + meter.finish().held)
    begun = [event["content_block"]["id"] for event in events if event["type"] == "content_block_start"]
    assert begun == ["a", "b"]
    pieces = [event["delta"]["partial_json"] for event in events if event["type"] == "content_block_delta"]
    assert pieces == ['{"a":', "1}", '{"a":2}']


def test_what_waits_and_what_is_repeated_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses_events, "OUTPUT_CHARS_MAX", 100)
    meter = meter_of("responses", "chat_completions")
    pieces = chunk({"content": "four"}) * 60
    with pytest.raises(UpstreamError) as caught:
        meter.feed(pieces)
    assert caught.value.code == "upstream_too_large"


def test_calls_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.translation.streaming.WAITING_CHARS_MAX", 100)
    meter = meter_of("messages", "chat_completions")
    meter.feed(chunk({"tool_calls": [call(0, '{"a":', id="call_0", name="f")]}))
    meter.feed(chunk({"tool_calls": [call(1, "", id="call_1", name="g")]}))
    pieces = chunk({"tool_calls": [call(1, "four")]}) * 60
    with pytest.raises(UpstreamError) as caught:
        meter.feed(pieces)
    assert caught.value.code == "upstream_protocol"
