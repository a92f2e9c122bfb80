"""Native bodies: whole and streamed are one usage, no cut and no junk changes or breaks a reading."""

from __future__ import annotations

import base64
import json
import random
import struct
import time
import zlib
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.usage import COUNT_MAX, Usage
from gateway.protocols.base import EVENT_BYTES_MAX, Dialect
from gateway.protocols.native import NATIVE, NativeMeter, read_batch, read_usage
from gateway.protocols.native.frames import FRAMES, frames_of

SSE, LINES = "text/event-stream", "application/x-ndjson"
ARRAY, AWS = "application/json", "application/vnd.amazon.eventstream"


def j(value: object) -> bytes:
    return json.dumps(value).encode()


def aws(payload: bytes) -> bytes:
    headers = b"\x0b:event-type\x07\x00\x05chunk"
    total = 12 + len(headers) + len(payload) + 4
    prelude = struct.pack(">II", total, len(headers))
    message = prelude + struct.pack(">I", zlib.crc32(prelude)) + headers + payload
    return message + struct.pack(">I", zlib.crc32(message))


def framed(kind: str, events: list[object]) -> bytes:
    if kind == SSE:
        return b"".join([b"event: x\r\ndata: " + j(event) + b"\r\n\r\n" for event in events])
    if kind == LINES:
        return b"".join([j(event) + b"\n" for event in events])
    if kind == AWS:
        return b"".join([aws(j(event)) for event in events])
    return b"[" + b",\r\n".join([j(event) for event in events]) + b"]"


def streamed(
    name: str, kind: str, data: bytes, cuts: list[int] | None = None, **headers: str
) -> Usage | None:
    meter = NativeMeter(name, kind, headers, Dialect())
    for a, b in pairwise([0, *(cuts or []), len(data)]):
        meter.feed(data[a:b])
    return meter.finish()


def wrapped(event: object) -> dict[str, str]:
    return {"bytes": base64.b64encode(j(event)).decode()}


def shapes(i: int, o: int, c: int) -> dict[str, tuple[str, list[Any], Any]]:
    """Return for each language (media type, events of a stream, whole body) that say the same numbers."""
    gemini = {"promptTokenCount": i + c, "cachedContentTokenCount": c, "candidatesTokenCount": o}
    converse = {"inputTokens": i, "cacheReadInputTokens": c, "outputTokens": o}
    claude = {"input_tokens": i, "cache_read_input_tokens": c, "output_tokens": o}
    cohere = {"billed_units": {"input_tokens": i, "output_tokens": o}, "cached_tokens": c}
    openai = {"prompt_tokens": i, "completion_tokens": o, "prompt_tokens_details": {"cached_tokens": c}}
    interaction = {"total_input_tokens": i, "total_output_tokens": o, "total_cached_tokens": c}
    return {
        "generate_content": (
            ARRAY,
            [
                {"usageMetadata": {"promptTokenCount": i + c + 9}},
                {"usageMetadata": gemini},
                {"usageMetadata": {}},
            ],
            {"usageMetadata": gemini},
        ),
        "interactions": (
            SSE,
            [{"metadata": {"usage": {"total_input_tokens": 1}}}, {"interaction": {"usage": interaction}}],
            {"usage": interaction},
        ),
        "converse": (
            AWS,
            [{"delta": {"text": "a"}}, {"usage": converse, "metrics": {}}],
            {"usage": converse},
        ),
        "invoke": (
            AWS,
            [
                wrapped({"type": "message_start", "message": {"usage": {**claude, "output_tokens": 1}}}),
                wrapped({"type": "message_delta", "usage": {"output_tokens": o}}),
                wrapped({"type": "message_stop"}),
            ],
            {"type": "message", "usage": claude},
        ),
        "cohere": (SSE, [{"delta": {"message": {}}}, {"delta": {"usage": cohere}}], {"usage": cohere}),
        "ollama": (
            LINES,
            [{"done": False}, {"done": True, "prompt_eval_count": i, "eval_count": o}],
            {"done": True, "prompt_eval_count": i, "eval_count": o},
        ),
        "completions": (SSE, [{"usage": None}, {"choices": [], "usage": openai}], {"usage": openai}),
    }


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6), st.randoms())
def test_streamed_and_whole_are_one_usage_wherever_the_stream_is_cut(
    i: int, o: int, c: int, chance: random.Random
) -> None:
    for name, (kind, events, body) in shapes(i, o, c).items():
        whole = read_usage(name, 200, j(body), {}, Dialect())
        data = framed(kind, events)
        cuts = sorted(chance.sample(range(1, len(data)), min(12, len(data) - 1)))
        assert whole is not None
        assert streamed(name, kind, data) == whole, name
        assert streamed(name, kind, data, cuts) == whole, (name, cuts)
        assert whole.counts["output"] == o, name


WORDS = [
    "usage",
    "usageMetadata",
    "promptTokenCount",
    "candidatesTokenCount",
    "promptTokensDetails",
    "tokenCount",
    "modality",
    "meta",
    "billed_units",
    "tokens",
    "input_tokens",
    "output_tokens",
    "inputTokens",
    "outputTokens",
    "cacheDetails",
    "ttl",
    "metadata",
    "interaction",
    "delta",
    "response",
    "message",
    "type",
    "bytes",
    "results",
    "inputTextTokenCount",
    "predictions",
    "embeddings",
    "statistics",
    "token_count",
    "usage_info",
    "pages_processed",
    "data",
    "search_units",
    "total_tokens",
    "iterations",
    "cache_creation",
    "candidates",
    "groundingMetadata",
    "webSearchQueries",
    "groundingChunks",
    "prompt_eval_count",
    "eval_count",
    "seconds",
    "custom_id",
    "body",
    "result",
    "inlinedResponses",
    "output",
    "service_tier",
]

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 2**60) | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(WORDS),
            inner,
            max_size=5,
        )
    ),
    max_leaves=30,
)


def assert_sane(usage: Usage | None) -> None:
    assert usage is None or all(0 <= units <= COUNT_MAX for units in usage.counts.values())


@given(st.lists(JSON, max_size=4))
def test_no_shape_of_json_raises(events: list[Any]) -> None:
    for name in NATIVE:
        assert_sane(read_usage(name, 200, j(events), {}, Dialect()))
        assert_sane(read_usage(name, 200, j(events[:1]), {}, Dialect()))
        for kind in (SSE, LINES, ARRAY, AWS):
            assert_sane(streamed(name, kind, framed(kind, events)))
    for event in events:
        if isinstance(event, dict):
            for item in read_batch(event, Dialect()):
                assert_sane(item.usage)


@given(st.binary(max_size=300), st.randoms())
def test_no_bytes_raise_and_no_cut_of_them_changes_what_is_read(data: bytes, chance: random.Random) -> None:
    for kind in FRAMES:
        whole = frames_of(kind)
        events = whole.feed(data) + whole.finish()
        cut = frames_of(kind)
        pieces = []
        for a, b in pairwise([0, *sorted(chance.choices(range(len(data) + 1), k=5)), len(data)]):
            pieces += cut.feed(data[a:b])
        assert pieces + cut.finish() == events
        assert cut.broken == whole.broken


ODD_EVENTS: list[object] = [
    {"a": '}"]{[\\"\\\\', "b": [[{}], {"c": "\\"}], 'd"': "{"},
    {"e": "\u2028\r\n"},
    {},
    {"f": {"g": [1, {"h": "]}"}]}},
]
"""Brackets, quotes and backslashes where a careless reader takes them for structure."""


def two_lines(text: bytes, end: bytes) -> bytes:
    return end.join([b"id: 1", b"data:" + text[:1], b"data: " + text[1:], b"", b""])


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("kind", FRAMES)
def test_every_event_is_found_wherever_it_is_cut(kind: str, end: bytes) -> None:
    texts = [json.dumps(event) for event in ODD_EVENTS]
    data = {
        SSE: b": hello" + end * 2 + b"".join([two_lines(text.encode(), end) for text in texts]),
        ARRAY: b" [" + (b"," + end).join([t.encode() for t in texts]) + b"]" + end,
        AWS: b"".join([aws(t.encode()) for t in texts]),
    }.get(kind, b"".join([t.encode() + b"\n" for t in texts]))
    for at in range(len(data) + 1):
        for pieces in ([data[:at], data[at:]], [data[:at], data[at : at + 1], data[at + 1 :]]):
            frames = frames_of(kind)
            found = [event for piece in pieces for event in frames.feed(piece)]
            assert [json.loads(event) for event in found + frames.finish()] == ODD_EVENTS, at
            assert frames.broken is None


def test_a_bare_object_and_a_last_event_without_its_end_are_found() -> None:
    assert frames_of(None).feed(b' {"a": 1}') == [b'{"a": 1}']
    for kind, data in ((SSE, b'data: {"a": 1}'), (SSE, b'data: {"a": 1}\r'), (LINES, b'\n{"a": 1}')):
        frames = frames_of(kind)
        assert frames.feed(data) + frames.finish() == [b'{"a": 1}'], data
    assert frames_of("text/event-stream; charset=utf-8").feed(b"data: {\ndata: }\n\n") == [b"{\n}"]


def test_a_frame_that_cannot_be_read_ends_the_reading_and_is_named() -> None:
    first, second = aws(j({"usage": {"inputTokens": 3, "outputTokens": 4}})), bytearray(aws(j({"usage": {}})))
    for at in (3, 9, len(second) - 1):  # a length, the prelude's checksum, the message's checksum
        broken = bytearray(second)
        broken[at] ^= 0x41
        usage = streamed("converse", AWS, first + bytes(broken) + first)
        assert usage is not None
        assert usage.counts == {"input": 3, "output": 4}
        assert usage.anomalies == ("frame_unreadable",)


@pytest.mark.parametrize("kind", [SSE, LINES, ARRAY])
def test_an_event_past_its_bound_ends_the_reading_and_keeps_nothing(kind: str) -> None:
    meter = NativeMeter("ollama", kind, {}, Dialect())
    meter.feed(framed(kind, [{"prompt_eval_count": 3, "eval_count": 4}]).rstrip(b"]"))
    opening = {SSE: b"data: ", LINES: b"", ARRAY: b","}[kind]
    meter.feed(opening + b'{"a":"')
    for _ in range(EVENT_BYTES_MAX // 2**20 + 1):
        meter.feed(b"x" * 2**20)
    usage = meter.finish()
    assert usage is not None
    assert (usage.counts, usage.anomalies) == ({"input": 3, "output": 4}, ("event_too_large",))


def test_an_event_of_many_lines_is_bounded_too() -> None:
    frames = frames_of(SSE)
    lines = (b"data: " + b"x" * 2**16 + b"\n") * 160
    assert frames.feed(b'data: {"a": 1}\n\n' + lines + b"\n") == [b'{"a": 1}']
    assert frames.broken == "event_too_large"
    assert frames.feed(b"data: {}\n\n") + frames.finish() == []


@pytest.mark.parametrize("kind", FRAMES)
def test_a_large_event_in_small_reads_is_read_once_and_not_over_and_over(kind: str) -> None:
    """Four megabytes in 1 KiB reads: from the start each time, that is eight gigabytes to look at."""
    text = j({"a": "x" * 2**22})
    data = {SSE: b"data: " + text + b"\n\n", AWS: aws(text)}.get(kind, text + b"\n")
    frames = frames_of(kind)
    found: list[bytes] = []
    started = time.thread_time()
    for at in range(0, len(data), 1024):
        found += frames.feed(data[at : at + 1024])
    spent = time.thread_time() - started
    assert found + frames.finish() == [text]
    assert spent < 0.3, "seconds of this thread's processor"


def test_a_native_error_has_no_usage() -> None:
    body = j({"usage": {"inputTokens": 3, "outputTokens": 4}})
    assert read_usage("converse", 400, body, {}, Dialect()) is None
    assert read_usage("converse", 200, body, {}, Dialect()) is not None


def test_gemini_counts_thoughts_and_tools_into_the_wholes_and_searches_apart() -> None:
    body = {
        "candidates": [
            {
                "groundingMetadata": {
                    "webSearchQueries": ["a", "b"],
                    "groundingChunks": [{"web": {}}, {"maps": {}}],
                }
            }
        ],
        "usageMetadata": {
            "promptTokenCount": 100,
            "promptTokensDetails": [
                {"modality": "TEXT", "tokenCount": 40},
                {"modality": "AUDIO", "tokenCount": 20},
                {"modality": 4, "tokenCount": 10},
                {"modality": "video", "tokenCount": 30},
            ],
            "cachedContentTokenCount": 50,
            "cacheTokensDetails": [{"modality": "AUDIO", "tokenCount": 5}],
            "toolUsePromptTokenCount": 7,
            "candidatesTokenCount": 9,
            "thoughtsTokenCount": 3,
            "totalTokenCount": 119,
            "trafficType": "ON_DEMAND_FLEX",
        },
    }
    usage = read_usage("generate_content", 200, j(body), {}, Dialect())
    assert usage is not None
    assert usage.counts == {
        "input": 107,
        "input_tool": 7,
        "input_audio": 30,
        "input_video": 30,
        "cache_read": 50,
        "cache_read_audio": 5,
        "output": 12,
        "reasoning": 3,
        "web_search": 2,
        "map_search": 1,
    }
    assert (usage.anomalies, usage.service_tier) == ((), "flex")
    assert usage.qualifiers == {"traffic_type": "ON_DEMAND_FLEX"}


def test_converse_sums_its_input_and_splits_its_writes_by_lifetime() -> None:
    body = {
        "usage": {
            "inputTokens": 1,
            "cacheReadInputTokens": 20,
            "cacheWriteInputTokens": 300,
            "cacheDetails": [{"ttl": "5m", "inputTokens": 100}, {"ttl": "1h", "inputTokens": 200}],
            "outputTokens": 4,
            "totalTokens": 325,
        },
        "serviceTier": {"type": "flex"},
        "performanceConfig": {"latency": "optimized"},
    }
    usage = read_usage("converse", 200, j(body), {}, Dialect())
    assert usage is not None
    assert usage.counts == {
        "input": 321,
        "cache_read": 20,
        "cache_write": 300,
        "cache_write_5m": 100,
        "cache_write_1h": 200,
        "output": 4,
    }
    assert (usage.service_tier, usage.qualifiers) == ("flex", {"latency": "optimized"})


def test_invoke_takes_a_missing_side_from_metrics_then_headers() -> None:
    headers = {"X-Amzn-Bedrock-Input-Token-Count": "18", "x-amzn-bedrock-output-token-count": "50"}
    for body, counts in (
        ({"outputText": "x"}, {"input": 18, "output": 50}),
        ({"inputTextTokenCount": 18.0}, {"input": 18, "output": 50}),
        ({"usage": {"inputTokens": 18, "outputTokens": 50}}, {"input": 18, "output": 50}),
        (
            {"inputTextTokenCount": 18, "results": [{"tokenCount": 20.0}, {"tokenCount": 30}]},
            {"input": 18, "output": 50},
        ),
    ):
        usage = read_usage("invoke", 200, j(body), headers, Dialect())
        assert usage is not None
        assert (usage.counts, usage.anomalies) == (counts, ()), body
    differs = read_usage(
        "invoke", 200, j({"usage": {"inputTokens": 9, "outputTokens": 50}}), headers, Dialect()
    )
    assert differs is not None
    assert (differs.counts, differs.anomalies) == ({"input": 9, "output": 50}, ("places_differ",))
    metrics = {"amazon-bedrock-invocationMetrics": {"inputTokenCount": 5, "outputTokenCount": 6}}
    late = streamed("invoke", AWS, framed(AWS, [wrapped({"generation": "x"}), wrapped(metrics)]))
    assert late is not None
    assert late.counts == {"input": 5, "output": 6}


@pytest.mark.parametrize(
    ("name", "body", "counts"),
    [
        ("audio", {"usage": {"type": "duration", "seconds": 7}}, {"audio_second": 7}),
        ("audio", {"usage": {"type": "duration", "seconds": 6.2}}, {"audio_second": 7}),
        ("images", {"data": [{}, {}]}, {"image": 2}),
        (
            "images",
            {
                "data": [{}],
                "usage": {"input_tokens": 5, "output_tokens": 9, "input_tokens_details": {"image_tokens": 2}},
            },
            {"input": 5, "input_image": 2, "output": 9, "image": 1},
        ),
        ("ocr", {"usage_info": {"pages_processed": 3}}, {"page": 3}),
        ("rerank", {"meta": {"billed_units": {"search_units": 1}}}, {"rerank_search": 1}),
        ("cohere", {"usage": {"tokens": {"input_tokens": 4, "output_tokens": 5}}}, {"input": 4, "output": 5}),
        ("predict", {"metadata": {"billableCharacterCount": 12}}, {"character": 12}),
    ],
)
def test_pieces_are_counted(name: str, body: object, counts: dict[str, int]) -> None:
    usage = read_usage(name, 200, j(body), {}, Dialect())
    assert usage is not None
    assert usage.counts == counts


def test_a_cost_without_any_count_is_kept() -> None:
    usage = read_usage("images", 200, j({"usage": {"cost_in_usd_ticks": 700000000}}), {}, Dialect())
    assert usage is not None
    assert (usage.counts, usage.reported_cost_usd) == ({}, "0.07")


def test_what_a_batch_lists_twice_is_one_item() -> None:
    reply = {"modelVersion": "g", "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 4}}
    listed = {"inlinedResponses": {"inlinedResponses": [{"response": reply, "metadata": {"key": "a"}}]}}
    items = list(read_batch({"response": listed, "metadata": {"output": listed}}, Dialect()))
    assert [(i.id, i.model, i.usage.counts, i.usage.service_tier) for i in items] == [
        ("a", "g", {"input": 3, "output": 4}, "batch")
    ]
    line = {
        "custom_id": "b",
        "response": {"body": {"model": "o", "usage": {"input_tokens": 1, "output_tokens": 2}}},
    }
    (item,) = read_batch(line, Dialect())
    assert (item.id, item.model, item.usage.counts) == ("b", "o", {"input": 1, "output": 2})
    assert list(read_batch({"status": "validating", "usage": {"input_tokens": 0}}, Dialect())) == []
