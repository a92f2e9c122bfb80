"""Where usage is missing, a tokenizer counts what was said, and the estimate says so."""

from __future__ import annotations

import json

import pytest

from gateway.core.exchange import Call, Identity, Reply, Said, Seen
from gateway.metering.estimate import FORM_TOKENS_MAX, Counted, counted, with_estimate
from gateway.protocols import PROTOCOLS
from gateway.protocols.base import Dialect, Request
from gateway.protocols.sse import SAMPLE_BYTES

CHAT = PROTOCOLS["/v1/chat/completions"]
MESSAGES = PROTOCOLS["/v1/messages"]


def a_call(**facts: object) -> Call:
    identity = Identity(key_id="k", user_id="u", source="key")
    plain = {
        "record_id": "r",
        "trace_id": "a" * 32,
        "span_id": "b" * 16,
        "server_span_id": "c" * 16,
        "protocol": "chat_completions",
        "operation": "chat",
        "model": "m",
        "stream": False,
        "identity": identity,
        "started_unix_ns": 1,
        "input_summary": {"bytes": 400},
    }
    return Call(**{**plain, **facts})  # type: ignore[arg-type]


def words(text: str) -> int:
    return len(text.split())


def test_a_whole_text_is_counted_and_a_beginning_is_scaled() -> None:
    assert counted(Said(text="a b c", bytes=10, of=10), "t", words) == Counted(tokens=3, method="t")
    assert counted(Said(text="a b c", bytes=10, of=95), "t", words) == Counted(tokens=29, method="t_sample")


@pytest.mark.parametrize("said", [None, Said(text="", bytes=0, of=0), Said(text="", bytes=5, of=5)])
def test_nothing_said_is_nothing_counted(said: Said | None) -> None:
    assert counted(said, "t", words) is None


def test_a_tokenizer_that_cannot_say_yet_leaves_the_other_method() -> None:
    assert counted(Said(text="a", bytes=1, of=1), "t", lambda _: None) is None


def test_the_estimate_names_the_method_and_stays_within_what_was_asked_for() -> None:
    reply = Reply(seen=Seen(events=1, text_bytes=1000))
    found = with_estimate(a_call(), reply, None, Counted(tokens=300, method="t")).usage
    assert found is not None
    assert found.estimate is not None
    assert (found.counts["output"], found.estimate.method) == (300, "t")
    assert found.estimate.bounds["output"] == (1, 1000 + FORM_TOKENS_MAX)
    bounded = with_estimate(a_call(max_tokens=50), reply, None, Counted(tokens=300, method="t")).usage
    assert bounded is not None
    assert bounded.counts["output"] == 50


def test_what_a_whole_reply_says_is_found_in_all_its_places() -> None:
    message = {
        "content": "one ",
        "reasoning_content": "two ",
        "tool_calls": [{"function": {"name": "three", "arguments": "{}"}}],
    }
    said = CHAT.said(json.dumps({"choices": [{"message": message}]}).encode())
    assert said is not None
    assert said.text == "one two three{}"
    blocks = [{"type": "text", "text": "one "}, {"type": "tool_use", "name": "two", "input": {"a": 1}}]
    said = MESSAGES.said(json.dumps({"content": blocks}).encode())
    assert said is not None
    assert said.text == 'one two{"a":1}'


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"choices":3}', b'{"content":3}'])
def test_a_body_without_text_says_nothing(body: bytes) -> None:
    assert CHAT.said(body) is None
    assert MESSAGES.said(body) is None


@pytest.mark.parametrize("step", [7, 100, 4096])
def test_of_a_stream_only_the_beginning_is_kept(step: int) -> None:
    event = b'data: {"id":"1","choices":[{"index":0,"delta":{"content":"word "}}]}\n\n'
    stream = event * 1000
    meter = CHAT.stream_meter(Request(model="m", stream=True), Dialect())
    for at in range(0, len(stream), step):
        meter.feed(stream[at : at + step])
    said = meter.said()
    assert said is not None
    assert said.of == len(stream)
    assert SAMPLE_BYTES <= said.bytes < SAMPLE_BYTES + step
    assert said.text == "word " * (said.bytes // len(event))
    found = counted(said, "t", words)
    assert found is not None
    assert found.tokens == pytest.approx(1000, rel=0.01)
