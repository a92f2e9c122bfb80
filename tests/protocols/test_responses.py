"""The doors of responses: the caller's bytes, the provider's numbers, OpenAI's errors."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import openai
import pytest

from gateway.core.errors import CallerError, GatewayFault, SpanbillError, UpstreamError
from gateway.core.exchange import Call, Identity, Reply, Seen
from gateway.core.usage import COUNT_MAX
from gateway.metering.estimate import with_estimate
from gateway.protocols import PROTOCOLS
from gateway.protocols.base import EVENT_BYTES_MAX, Dialect
from gateway.protocols.responses.stream import TERMINAL_BYTES_MAX
from gateway.protocols.sse import SAMPLE_BYTES

DOOR = PROTOCOLS["/v1/responses"]
COMPACT = PROTOCOLS["/v1/responses/compact"]
COUNTING = PROTOCOLS["/v1/responses/input_tokens"]
TERMINAL = ("response.completed", "response.incomplete", "response.failed")
USAGE = {"input_tokens": 11, "output_tokens": 7, "total_tokens": 18}


def reply_of(**response: object) -> Any:
    return DOOR.read_reply(200, json.dumps(response).encode(), Dialect())


def usage_of(usage: object, **response: object) -> Any:
    return reply_of(usage=usage, **response).usage


def event(kind: str, *, named: bool = True, **members: object) -> bytes:
    data = json.dumps({"type": kind, **members}, separators=(",", ":")).encode()
    return (b"event: " + kind.encode() + b"\n" if named else b"") + b"data: " + data + b"\n\n"


def text(said: str, *, named: bool = True) -> bytes:
    return event("response.output_text.delta", named=named, item_id="msg_1", delta=said)


def end(kind: str = "response.completed", *, named: bool = True, **response: object) -> bytes:
    whole = {"id": "resp_1", "model": "gpt", "status": kind.partition(".")[2], "usage": USAGE, **response}
    return event(kind, named=named, response=whole)


CREATED = event("response.created", response={"id": "resp_1", "model": "gpt", "service_tier": "auto"})
TEXT = text("response.completed error [DONE]")
SEARCH = {"id": "ws_1", "type": "web_search_call", "status": "completed", "action": {"type": "search"}}


def read(*events: bytes, pieces: int = 0) -> tuple[bytes, Any]:
    """Return what was released before the end, and the tail."""
    meter = DOOR.stream_meter(DOOR.read_request(b'{"model":"m","stream":true}'), Dialect())
    data = b"".join(events)
    parts = [data[at : at + pieces] for at in range(0, len(data), pieces)] if pieces else events
    released = b"".join(meter.feed(part) for part in parts)
    tail = meter.finish()
    assert released + tail.held == data
    return released, tail


# requests


def test_a_request_is_read_in_counts_and_claims() -> None:
    request = DOOR.read_request(
        b'{"model":"m","stream":true,"max_output_tokens":9,"user":"u","tools":[{},{}],'
        b'"input":[{"role":"user","content":[{"type":"input_image"},{"type": "input_image"}]}]}'
    )
    assert (request.model, request.stream, request.max_tokens, request.user) == ("m", True, 9, "u")
    assert (request.summary["messages"], request.summary["tools"], request.summary["images"]) == (1, 2, 2)


def test_input_that_is_stored_elsewhere_bounds_no_estimate() -> None:
    for member, references in (
        (b"", None),
        (b',"previous_response_id":"r"', 1),
        (b',"conversation":null', None),
    ):
        request = DOOR.read_request(b'{"model":"m","input":"hello"' + member + b"}")
        assert request.summary.get("references") == references
    call = Call(
        record_id="r", trace_id="t", span_id="s", server_span_id="p", protocol="responses", operation="chat",
        model="m", stream=False, identity=Identity(key_id="k", user_id="u", source="key"), started_unix_ns=1,
        input_summary={"bytes": 40, "references": 1},
    )  # fmt: skip
    for window, bound in ((None, None), (128_000, (1, 128_000))):
        usage = with_estimate(call, Reply(seen=Seen(events=1, text_bytes=4)), window).usage
        assert usage is not None
        assert usage.estimate is not None
        assert (usage.counts["input"], usage.estimate.bounds.get("input")) == (10, bound)


@pytest.mark.parametrize(("body", "messages"), [(b'"hello"', 1), (b"[{},{}]", 2), (b"null", None)])
def test_an_input_counts_by_its_items(body: bytes, messages: int | None) -> None:
    request = DOOR.read_request(b'{"model":"m","input":' + body + b"}")
    assert request.summary.get("messages") == messages


def test_the_body_passes_as_it_is_but_for_another_name_of_the_model() -> None:
    body = (
        b'{ "model" : "m", "stream":true,"previous_response_id":"resp_x","conversation":"c","store":false }'
    )
    request = DOOR.read_request(body)
    assert DOOR.upstream_body(body, request, model="m", dialect=Dialect()) is body
    other = DOOR.upstream_body(body, request, model="n", dialect=Dialect())
    assert json.loads(other) == {**json.loads(body), "model": "n"}


@pytest.mark.parametrize(
    "member", [b'"background":true', b'"b\\u0061ckground":true', b'"background" : true, "stream":true']
)
@pytest.mark.parametrize("door", [DOOR, COMPACT, COUNTING])
def test_what_would_end_where_nobody_sees_its_usage_is_refused(door: Any, member: bytes) -> None:
    with pytest.raises(CallerError, match="stream") as caught:
        door.read_request(b'{"model":"m",' + member + b"}")
    assert (caught.value.status, caught.value.code) == (400, "background_not_supported")
    assert caught.value.param == "background"


@pytest.mark.parametrize("member", [b'"background":false', b'"background":null', b'"store":true'])
def test_what_ends_with_its_request_is_not_refused(member: bytes) -> None:
    assert DOOR.read_request(b'{"model":"m",' + member + b"}").model == "m"


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"{}", b'{"model":1}', b'{"model":""}', b'{"model":"m","background":"yes"}',
        b'{"model":"m","max_output_tokens":-1}', b'{"model":"m","max_output_tokens":"9"}',
        b'{"model":"m","model":"n"}', b'{"model":"m","stream":false,"stream":true}',
        b'{"model":"m","background":true,"background":false}', b'{"model":"m","input":7}',
    ],
)  # fmt: skip
def test_a_body_that_two_readers_may_read_differently_is_refused(body: bytes) -> None:
    with pytest.raises(CallerError) as caught:
        DOOR.read_request(body)
    assert caught.value.status == 400


# usage


def test_every_count_has_its_place() -> None:
    usage = usage_of(
        {
            "input_tokens": 100,
            "input_tokens_details": {
                "cached_tokens": 30,
                "cache_write_tokens": 20,
                "audio_tokens": 5,
                "image_tokens": 6,
            },
            "output_tokens": 50,
            "output_tokens_details": {"reasoning_tokens": 40, "audio_tokens": 1, "image_tokens": 2},
            "total_tokens": 150,
        },
        service_tier="priority",
    )
    assert usage.counts == {
        "input": 100, "cache_read": 30, "cache_write": 20, "input_audio": 5, "input_image": 6,
        "output": 50, "reasoning": 40, "output_audio": 1, "output_image": 2,
    }  # fmt: skip
    assert (usage.anomalies, usage.service_tier, usage.source) == ((), "priority", "provider")


def test_absent_is_absent_and_zero_is_zero() -> None:
    assert usage_of({"input_tokens": 0, "output_tokens": 0}).counts == {"input": 0, "output": 0}
    assert usage_of({"input_tokens": 1, "input_tokens_details": None}).counts == {"input": 1}
    for nothing in (None, {}, [], "x", 7):
        assert usage_of(nothing) is None


@pytest.mark.parametrize("odd", [-1, 1.5, "7", True, COUNT_MAX + 1, [], {}])
def test_what_is_no_count_is_absent_and_said_so(odd: object) -> None:
    usage = usage_of({"input_tokens": odd, "output_tokens": 7})
    assert (usage.counts, usage.anomalies) == ({"output": 7}, ("input_unusable",))


def test_literal_cache_fields_count_as_reported() -> None:
    usage = usage_of({"input_tokens": 9, "output_tokens": 1, "cache_hit": 3, "cache_write": 2})
    assert usage.counts == {"input": 9, "output": 1, "cache_read": 3, "cache_write": 2}
    said = usage_of({"input_tokens": 9, "output_tokens": 1, "cache_hit": True, "cache_write": False})
    assert (said.counts, said.anomalies) == ({"input": 9, "output": 1}, ())
    assert said.qualifiers == {"cache_hit": "true", "cache_write": "false"}


def test_reasoning_that_was_counted_apart_is_output_too() -> None:
    details = {"output_tokens_details": {"reasoning_tokens": 30}}
    apart = usage_of({"input_tokens": 10, "output_tokens": 5, "total_tokens": 45, **details})
    assert apart.counts["output"] == 35
    within = usage_of({"input_tokens": 10, "output_tokens": 35, "total_tokens": 45, **details})
    assert within.counts["output"] == 35
    odd = usage_of({"input_tokens": 10, "output_tokens": 5, "total_tokens": 15, **details})
    assert (odd.counts["output"], odd.anomalies) == (5, ("reasoning_exceeds_output",))


@pytest.mark.parametrize(
    ("usage", "cost"),
    [({"cost": 0.0000058}, "0.0000058"), ({"cost_in_usd_ticks": 5814500}, "0.00058145"), ({}, None)],
)
def test_the_providers_own_cost_is_kept(usage: dict[str, object], cost: str | None) -> None:
    assert usage_of({**USAGE, **usage}).reported_cost_usd == cost


# tools of the provider


def test_calls_of_the_providers_tools_are_counted_from_the_output() -> None:
    output = [
        {"type": "reasoning"}, SEARCH, SEARCH, {**SEARCH, "action": {"type": "open_page"}},
        {**SEARCH, "action": {"type": "find_in_page"}}, {**SEARCH, "status": "failed"},
        {"type": "web_search_call", "status": "completed"}, {"type": "file_search_call"},
        {"type": "code_interpreter_call"}, {"type": "image_generation_call"}, {"type": "x_search_call"},
        {"type": "mcp_call"}, {"type": "function_call"}, {"type": "computer_call"}, {"type": 7}, "odd", None,
    ]  # fmt: skip
    reply = reply_of(usage=USAGE, output=output)
    tools = {name: units for name, units in reply.usage.counts.items() if name not in ("input", "output")}
    assert tools == {
        "web_search": 3, "file_search": 1, "code_interpreter": 1, "image_generation": 1, "social_search": 1,
    }  # fmt: skip
    assert reply.output_summary["tool_calls"] == 13


def test_the_providers_own_count_of_calls_goes_before_the_items() -> None:
    ours = usage_of(USAGE, output=[SEARCH, SEARCH], tool_usage={"web_search": {"num_requests": 1}})
    assert ours.counts["web_search"] == 1
    details = {"web_search_calls": 2, "x_search_calls": 0, "mcp_calls": 4}
    theirs = usage_of({**USAGE, "server_side_tool_usage_details": details}, output=[SEARCH])
    assert {k: v for k, v in theirs.counts.items() if k not in ("input", "output")} == {
        "web_search": 2,
        "social_search": 0,
    }
    odd = usage_of(USAGE, output=[SEARCH], tool_usage={"web_search": {"num_requests": -1}})
    assert (odd.counts["web_search"], odd.anomalies) == (1, ("web_search_unusable",))


IMAGE_GEN = {
    "input_tokens": 50,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 50},
    "output_tokens": 1056,
    "output_tokens_details": {"image_tokens": 1056, "text_tokens": 0},
}
PAINTED: dict[str, Any] = {
    "output": [{"type": "image_generation_call", "status": "completed", "result": "AAAA"}],
    "tools": [{"type": "function"}, {"type": "image_generation", "model": "gpt-image-1"}],
    "tool_usage": {"image_gen": IMAGE_GEN, "web_search": {"num_requests": 0}},
}


def test_the_tokens_of_the_model_that_made_an_image_are_kept_apart_and_replace_its_calls() -> None:
    streamed = read(CREATED, end(**PAINTED))[1].reply.usage
    for usage in (usage_of(USAGE, **PAINTED), streamed):
        assert usage.counts == {"input": 11, "output": 7, "web_search": 0}
        ((model, reason, counts),) = [(o.model, o.reason, o.counts) for o in usage.others]
        assert (model, reason) == ("gpt-image-1", "image_generation")
        assert counts == {"input": 50, "input_image": 0, "output": 1056, "output_image": 1056}


@pytest.mark.parametrize(
    "change",
    [
        {"tools": []},
        {"tools": [{"type": "image_generation"}]},
        {"tool_usage": {"image_gen": {"input_tokens": 0}}},
    ],
)
def test_an_image_without_tokens_or_a_model_is_counted_by_its_call(change: dict[str, Any]) -> None:
    usage = usage_of(USAGE, **{**PAINTED, **change})
    assert (usage.counts["image_generation"], usage.others) == (1, ())


def test_no_tool_no_count() -> None:
    assert set(usage_of(USAGE, output=[{"type": "message"}]).counts) == {"input", "output"}


# whole replies


def test_a_whole_reply_is_read() -> None:
    reply = reply_of(
        id="resp_1",
        model="gpt",
        status="completed",
        error=None,
        usage=USAGE,
        output=[
            {"type": "reasoning", "summary": [{"text": "abc"}]},
            {"type": "function_call", "name": "f", "arguments": "{}"},
            {"type": "message", "content": [{"type": "output_text", "text": "é"}, {"refusal": "no"}]},
        ],
    )
    assert (reply.response_id, reply.response_model, reply.finish_reasons) == (
        "resp_1",
        "gpt",
        ("completed",),
    )
    assert (reply.complete, reply.error_type) == (True, None)
    assert (reply.output_summary["choices"], reply.output_summary["tool_calls"]) == (3, 1)
    assert (reply.seen.events, reply.seen.text_bytes) == (1, 3 + 3 + 2 + 2)


def test_an_incomplete_reply_says_why() -> None:
    reply = reply_of(status="incomplete", incomplete_details={"reason": "max_output_tokens"}, usage=USAGE)
    assert (reply.finish_reasons, reply.complete, reply.error_type) == (("max_output_tokens",), True, None)


def test_a_response_that_failed_is_an_error_with_its_usage() -> None:
    reply = reply_of(status="failed", error={"code": "server_error", "message": "m"}, usage=USAGE)
    assert (reply.error_type, reply.usage.counts) == ("server_error", {"input": 11, "output": 7})
    assert reply_of(status="failed", error=None).error_type == "upstream_error"


def test_a_response_that_goes_on_elsewhere_has_no_usage() -> None:
    assert reply_of(status="queued", output=[], usage=None).usage is None


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b'{"error":{"code":"model_not_found","type":"invalid_request_error"}}', "model_not_found"),
        (b'{"error":{"code":null,"type":"invalid_request_error"}}', "invalid_request_error"),
        (b'{"code":"invalid-argument","error":"Incorrect API key"}', "invalid-argument"),
        (b'{"error":{"code":429}}', "429"),
        (b"{}", "upstream_error"),
        (b"not json", None),
    ],
)
def test_an_error_body_is_never_billed(body: bytes, word: str | None) -> None:
    reply = DOOR.read_reply(400, body, Dialect())
    assert (reply.error_type, reply.usage) == (word, None)
    assert DOOR.read_reply(500, json.dumps({"usage": USAGE}).encode(), Dialect()).usage is None


def test_compacting_is_billed_and_counting_is_not() -> None:
    body = json.dumps({"object": "response.compaction", "usage": USAGE, "input_tokens": 5}).encode()
    assert COMPACT.read_reply(200, body, Dialect()).usage is not None
    assert COUNTING.read_reply(200, body, Dialect()).usage is None
    assert (COMPACT.billable, COUNTING.billable) == (True, False)
    for door in (COMPACT, COUNTING):
        assert not door.read_request(b'{"model":"m","stream":true}').stream


# streams


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("kind", TERMINAL)
@pytest.mark.parametrize("pieces", [0, 1, 7, 10_000])
def test_the_terminal_event_is_held_and_read(kind: str, named: bool, pieces: int) -> None:
    terminal = end(kind, named=named, output=[SEARCH], service_tier="flex")
    before = [CREATED, *[text(str(at), named=named) for at in range(20)], text(TEXT.decode(), named=named)]
    released, tail = read(*before, terminal, pieces=pieces)
    assert released == b"".join(before)
    assert tail.held == terminal
    reply = tail.reply
    assert reply.usage.counts == {"input": 11, "output": 7, "web_search": 1}
    assert reply.usage.service_tier == "flex"
    assert (reply.complete, reply.response_id, reply.response_model) == (True, "resp_1", "gpt")
    assert reply.error_type == ("upstream_error" if kind == "response.failed" else None)
    assert reply.output_summary["events"] == len(before) + 1


@pytest.mark.parametrize(
    "error",
    [
        event("error", code="server_error", message="m", param=None, sequence_number=3),
        event("error", error={"type": "x", "code": "server_error", "message": "m"}),
        event("error", named=False, code="server_error", message="m"),
        b'data: {"error":{"code":"server_error"}}\n\n',
        b'event: error\ndata: {"code":"server_error"}\n\n',
    ],
)
def test_an_error_event_ends_the_stream_and_is_held(error: bytes) -> None:
    released, tail = read(CREATED, TEXT, error)
    assert (released, tail.held) == (CREATED + TEXT, error)
    assert (tail.reply.error_type, tail.reply.complete) == ("server_error", False)
    failed = end("response.failed", error={"code": "rate_limit_exceeded"}, usage=None)
    _, tail = read(CREATED, TEXT, error, failed)
    assert (tail.reply.error_type, tail.reply.usage) == ("rate_limit_exceeded", None)


def test_done_alone_ends_a_stream_that_is_not_complete() -> None:
    done = b"data: [DONE]\n\n"
    released, tail = read(CREATED, TEXT, done)
    assert (released, tail.held, tail.reply.complete) == (CREATED + TEXT, done, False)
    _, tail = read(CREATED, TEXT, end(), done)
    assert (tail.held, tail.reply.complete) == (end() + done, True)


def test_a_stream_that_is_cut_off_has_no_usage_but_what_was_called() -> None:
    item = event("response.output_item.done", item=SEARCH)
    _, tail = read(CREATED, item, TEXT)
    reply = tail.reply
    assert (reply.complete, reply.usage.counts) == (False, {"web_search": 1})
    assert (reply.output_summary["tool_calls"], reply.response_model) == (1, "gpt")
    assert read(CREATED, TEXT)[1].reply.usage is None


def test_the_output_of_the_end_goes_before_the_items_and_an_empty_one_does_not() -> None:
    item = event("response.output_item.done", item=SEARCH)
    assert read(item, item, end(output=[SEARCH]))[1].reply.usage.counts["web_search"] == 1
    assert read(item, item, end(output=[]))[1].reply.usage.counts["web_search"] == 2


@pytest.mark.parametrize("pieces", [0, 5, 10_000])
@pytest.mark.parametrize("named", [True, False])
def test_what_repeats_the_text_is_not_seen_as_content(pieces: int, named: bool) -> None:
    said = "word " * 60
    deltas = [text(said[at : at + 5], named=named) for at in range(0, 300, 5)]
    repeats = [
        event("response.output_text.done", text=said, named=named),
        event("response.content_part.done", part={"text": said}, named=named),
        event(
            "response.output_item.done", item={"type": "message", "content": [{"text": said}]}, named=named
        ),
    ]
    _, tail = read(CREATED, *deltas, *repeats, end(usage=None), pieces=pieces)
    seen = tail.reply.seen
    assert (seen.events, seen.text_bytes) == (60, 300)


def test_deltas_of_other_kinds_are_content_too() -> None:
    kinds = ("reasoning_summary_text", "function_call_arguments", "refusal", "custom_tool_call_input")
    events = [event(f"response.{kind}.delta", delta="abcd") for kind in kinds for _ in range(3)]
    odd = event("response.shell_call_output_content.delta", delta={"stdout": "much"})
    seen = read(*events, odd)[1].reply.seen
    assert seen.events == 12
    assert 48 <= seen.text_bytes <= 48 + 12 * 30


def test_comments_and_unknown_events_pass() -> None:
    half = event("response.output_text.delta", delta="x").replace(b'"type":"', b'"type":"\\ud800')
    others = (
        b": PROCESSING\n\n",
        half,
        b"data: {}\n\n",
        event("keepalive", sequence_number=3),
        b"data: not json\n\n",
        b"\n\n",
    )
    released, tail = read(CREATED, *others, TEXT, *others, end())
    assert released == b"".join((CREATED, *others, TEXT, *others))
    assert tail.reply.complete


def test_an_image_in_the_terminal_event_does_not_end_the_stream() -> None:
    image = {"type": "image_generation_call", "result": "A" * (EVENT_BYTES_MAX + 1)}
    data = end(output=[image])
    meter = DOOR.stream_meter(DOOR.read_request(b'{"model":"m","stream":true}'), Dialect())
    for at in range(0, len(data), 1 << 20):
        assert meter.feed(data[at : at + (1 << 20)]) == b""
    assert meter.finish().reply.usage.counts["image_generation"] == 1  # type: ignore[union-attr]
    with pytest.raises(UpstreamError, match="more than"):
        meter.feed(b"x" * TERMINAL_BYTES_MAX)


# errors


def error_of(error: SpanbillError) -> openai.APIStatusError:
    response = httpx2.Response(
        error.status,
        content=DOOR.error_body(error),
        request=httpx2.Request("POST", "http://x"),
        headers={"content-type": "application/json"},
    )
    with openai.OpenAI(api_key="x", base_url="http://x") as client:
        return client._make_status_error_from_response(response)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (CallerError("invalid_key", "m", status=401), openai.AuthenticationError),
        (
            CallerError("background_not_supported", "m", status=400, param="background"),
            openai.BadRequestError,
        ),
        (GatewayFault("journal_unavailable", "m", status=503), openai.InternalServerError),
    ],
)
def test_errors_are_the_sdks_own(error: SpanbillError, kind: type[openai.APIStatusError]) -> None:
    raised = error_of(error)
    assert isinstance(raised, kind)
    assert (raised.code, raised.param) == (error.code, error.param)


def test_the_last_event_of_a_broken_stream_has_both_forms() -> None:
    told = DOOR.error_event(UpstreamError("upstream_incomplete", "m", retryable=False, sent=True))
    name, data, *rest = told.split(b"\n")
    assert (name, rest) == (b"event: error", [b"", b""])
    value = json.loads(data.removeprefix(b"data: "))
    assert (value["type"], value["code"], value["error"]["message"]) == ("error", "upstream_incomplete", "m")


# text, for a tokenizer


def test_the_text_of_a_reply_is_at_hand_for_a_tokenizer() -> None:
    output = [{"type": "message", "content": [{"text": "Hello"}]}, {"name": "f", "arguments": "{}"}, "odd"]
    body = json.dumps({"output": output}).encode()
    said = DOOR.said(body)
    assert said is not None
    assert (said.text, said.bytes, said.of) == ("Hellof{}", len(body), len(body))
    assert DOOR.said(b"not json") is None
    assert DOOR.said(b"{}") is None


def sampled(*events: bytes) -> Any:
    meter = DOOR.stream_meter(DOOR.read_request(b'{"model":"m","stream":true}'), Dialect())
    for one in events:
        meter.feed(one)
    return meter.said()


def padded(said: str) -> bytes:
    return event("response.output_text.delta", delta=said, obfuscation="x" * (16 - len(said)))


def test_a_short_stream_is_told_in_full_without_its_padding_and_repetitions() -> None:
    repeated = event("response.output_text.done", text="Hello world")
    said = sampled(
        CREATED, padded("Hello"), padded(" world"), repeated, end(output=[{"text": "Hello world"}])
    )
    assert (said.text, said.bytes) == ("Hello world", said.of)
    assert sampled(CREATED) is None


def test_a_long_stream_is_told_by_its_beginning() -> None:
    large = event("response.created", response={"id": "r", "tools": ["t" * 40_000]})
    words = [padded(f"w{at:04}") for at in range(2000)]
    for first in (CREATED, large):
        said = sampled(first, *words)
        told = len(said.text) * said.of / said.bytes
        assert SAMPLE_BYTES / 300 * 5 < len(said.text) < 2000 * 5 / 4
        assert 0.9 < told / (2000 * 5) < 1.1
