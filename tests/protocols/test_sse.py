"""Events wherever the wire cuts them: nothing is lost, nothing is rewritten, and no cut changes a result."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.core.errors import UpstreamError
from gateway.protocols import PROTOCOLS, sse
from gateway.protocols.base import Dialect, Protocol, Request
from gateway.protocols.sse import LEARNED_FROM, payload_of

CHAT = PROTOCOLS["/v1/chat/completions"]
MESSAGES = PROTOCOLS["/v1/messages"]
ASKED = Request(model="m", stream=True, usage_requested=True)
UNASKED = Request(model="m", stream=True)

CHUNK = (
    b'{"id":"c","model":"m",'
    b'"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}],"usage":null}'
)
MESSAGE_START = b'{"type":"message_start","message":{"id":"m","usage":{"input_tokens":3,"output_tokens":1}}}'
FRAGMENTS: list[bytes] = [
    b"data: " + CHUNK,
    b'data: {"id": "d", "choices": [{"index": 0, "delta": {"content": "usage"}, "finish_reason": "stop"}]}',
    b'data: {"choices":[{"delta":{"content":"data: [DONE]\\n\\n"},"finish_reason":"length"}]}',
    b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7}}',
    b'data: {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 4}}',
    b'data: {"choices":[{}],"usage":{"prompt_tokens":6,"completion_tokens":-2}}',
    b'data: {"choices":[],"service_tier":"flex"}',
    b'data: {"error":{"code":"overloaded"},"usage":{"prompt_tokens":1}}',
    b"data: [DONE]",
    b"data:[DONE]",
    b": ping",
    b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error"}}',
    b"event: message_start\ndata: " + MESSAGE_START,
    b'data: {"type":"message_delta",\ndata: "usage":{"output_tokens":8}}',
    b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"message_stop"}}',
    b'event: message_stop\ndata: {"type":"message_stop"}',
    b"retry: 3",
    b"id: 1",
    b"\xef\xbb\xbf",
    b"\xff\x00",
    b"\n",
    b"\r",
    b"\r\n",
    b"\n\n",
    b"\n\n\n",
    b"\r\n\r\n",
    b"\r\r",
]


def amount(door: Protocol, request: Request, pieces: list[bytes]) -> tuple[bytes, Any]:
    meter = door.stream_meter(request, Dialect())
    released = b"".join([meter.feed(piece) for piece in pieces])
    tail = meter.finish()
    return released + tail.held, tail.reply


def cut(body: bytes, edges: list[int]) -> list[bytes]:
    places = [0, *sorted({edge % (len(body) + 1) for edge in edges}), len(body)]
    return [body[a:b] for a, b in pairwise(places)]


streams = st.lists(st.sampled_from([*FRAGMENTS, *[b"\n\n"] * 16]) | st.binary(max_size=8), max_size=24).map(
    b"".join
)


@pytest.mark.parametrize("door", [CHAT, MESSAGES], ids=["chat", "messages"])
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=streams, edges=st.lists(st.integers(0, 4000), max_size=8), asked=st.booleans())
def test_no_cut_changes_anything(door: Protocol, body: bytes, edges: list[int], asked: bool) -> None:
    request = ASKED if asked else UNASKED
    whole = amount(door, request, [body])
    assert amount(door, request, cut(body, edges)) == whole
    assert amount(door, request, cut(body, list(range(len(body))))) == whole
    if asked:
        assert whole[0] == body


KNOWN = b"data: " + CHUNK + b"\n\n"
ONLY_USAGE = FRAGMENTS[3]
HARD: list[bytes] = [
    KNOWN + b"data: " + CHUNK + b"\r\n\r\n" + KNOWN,
    KNOWN + b"data: " + CHUNK + b"\n\n\n" + ONLY_USAGE + b"\n\n" + KNOWN,
    KNOWN + b"data: " + CHUNK + b"\n\n\n\n" + ONLY_USAGE + b"\n\n\n" + KNOWN,
    KNOWN + b"data: " + CHUNK + b"\r\r" + ONLY_USAGE + b"\r\r" + KNOWN,
    KNOWN + b"event: x\r\n" + ONLY_USAGE + b"\r\n\r\ndata: [DONE]\r\n\r\n" + KNOWN,
    KNOWN * 3 + ONLY_USAGE + b"\n\ndata: [DONE]\n\n",
    KNOWN + FRAGMENTS[6] + b"\n\n" + FRAGMENTS[1] + b"\n\n" + FRAGMENTS[4],
]


@pytest.mark.parametrize("body", HARD)
@pytest.mark.parametrize("request_", [ASKED, UNASKED], ids=["asked", "unasked"])
def test_no_cut_of_a_hard_stream_changes_anything(body: bytes, request_: Request) -> None:
    whole = amount(CHAT, request_, [body])
    assert amount(CHAT, request_, cut(body, list(range(len(body))))) == whole
    for at in range(1, len(body)):
        assert amount(CHAT, request_, [body[:at], body[at:]]) == whole
    assert (b"prompt_tokens" in whole[0]) == (request_ is ASKED and b"prompt_tokens" in body)


def test_usage_behind_the_end_event_is_counted_and_hidden_too() -> None:
    out, reply = amount(CHAT, UNASKED, [KNOWN + b"data: [DONE]\n\n" + ONLY_USAGE + b"\n\n: bye\n\n"])
    assert out == KNOWN + b"data: [DONE]\n\n: bye\n\n"
    assert reply.usage.counts == {"input": 5, "output": 2}
    assert reply.complete


def test_a_read_without_interest_passes_as_the_same_object() -> None:
    for door, first, event in (
        (CHAT, b"data: " + CHUNK + b"\n\n", b"data: " + CHUNK + b"\n\n"),
        (
            MESSAGES,
            b'event: message_start\ndata: {"type":"message_start","message":{}}\n\n',
            b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"usage"}}\n\n',
        ),
    ):
        meter = door.stream_meter(UNASKED, Dialect())
        for read in (first, *[event] * LEARNED_FROM):
            meter.feed(read)
        for read in (event, event * 32):
            assert meter.feed(read) is read


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n", b"\r\n\n"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_every_end_of_line_is_understood(end: bytes, bom: bytes) -> None:
    events = [b": ping", b"data: " + CHUNK, b"id: 7\ndata:" + FRAGMENTS[3][6:], b"data: [DONE]"]
    body = bom + end.join(events) + end
    out, reply = amount(CHAT, UNASKED, [body])
    assert out == bom + end.join([events[0], events[1], events[3]]) + end
    assert reply.usage.counts == {"input": 5, "output": 2}
    assert reply.complete


def test_the_end_event_is_never_released_by_feed() -> None:
    body = b"data: " + CHUNK + b"\n\ndata: [DONE]\n\n: more\n\n"
    meter = CHAT.stream_meter(ASKED, Dialect())
    released = b"".join(meter.feed(body[i : i + 1]) for i in range(len(body)))
    assert released == b"data: " + CHUNK + b"\n\n"
    assert meter.ended
    assert meter.finish().held == b"data: [DONE]\n\n: more\n\n"


def test_an_end_event_without_its_blank_line_ends_the_stream() -> None:
    out, reply = amount(CHAT, ASKED, [b"data: [DONE]"])
    assert (out, reply.complete) == (b"data: [DONE]", True)


def test_a_stream_cut_off_inside_an_event_is_incomplete_and_gives_its_bytes_back() -> None:
    body = b"data: " + CHUNK + b"\n\ndata: [DON"
    meter = CHAT.stream_meter(ASKED, Dialect())
    assert meter.feed(body) + meter.finish().held == body
    assert not meter.ended
    assert not meter.finish().reply.complete


def test_an_event_larger_than_the_bound_is_the_providers_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse.EventMeter, "event_bytes_max", 1000)
    for prefix in (b"data: ", b"data: [DONE]\n\n"):
        meter = CHAT.stream_meter(ASKED, Dialect())
        meter.feed(prefix)
        with pytest.raises(UpstreamError) as caught:
            b"".join(meter.feed(b"x" * 100) for _ in range(20))
        assert (caught.value.code, caught.value.retryable, caught.value.sent) == (
            "upstream_protocol",
            False,
            True,
        )
        meter.finish()


def test_a_large_event_in_small_reads_is_searched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    searched = 0

    class Counting:
        def search(self, data: bytes, start: int = 0) -> Any:
            nonlocal searched
            searched += len(data) - start
            return real.search(data, start)

    real = sse._BLANK_LINE
    monkeypatch.setattr(sse, "_BLANK_LINE", Counting())
    body = b'data: {"choices":[{"delta":{"content":"' + b"x" * 1_000_000 + b'"}}]}\n\n'
    meter = CHAT.stream_meter(ASKED, Dialect())
    out = b"".join(meter.feed(body[i : i + 1000]) for i in range(0, len(body), 1000))
    assert out == body
    assert 0 < searched < 4 * len(body)


@pytest.mark.parametrize(
    ("event", "payload"),
    [
        (b"data: x\n\n", b"x"),
        (b"data:x\n\n", b"x"),
        (b"data:  x\r\n\r\n", b" x"),
        (b"event: e\ndata: a\ndata: b\nid: 3\n\n", b"a\nb"),
        (b": ping\n\n", b""),
        (b"data: a\rdata: b\n\n", b"a\nb"),
        (b"\xef\xbb\xbfdata: x\n\n", b"x"),
    ],
)
def test_data_lines_are_joined(event: bytes, payload: bytes) -> None:
    assert payload_of(event) == payload
