"""The doors of messages: the caller's bytes, the provider's numbers, Anthropic's errors."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import httpx2
import pytest

from gateway.core.errors import CallerError, GatewayFault, SpanbillError, UpstreamError
from gateway.core.usage import COUNT_MAX
from gateway.protocols import PROTOCOLS
from gateway.protocols.base import Dialect

DOOR = PROTOCOLS["/v1/messages"]
COUNTING = PROTOCOLS["/v1/messages/count_tokens"]


def usage_of(usage: object) -> Any:
    return DOOR.read_reply(200, json.dumps({"type": "message", "usage": usage}).encode(), Dialect()).usage


def event(kind: str, **members: object) -> bytes:
    data = json.dumps({"type": kind, **members}, separators=(",", ":")).encode()
    return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"


def start(**usage: object) -> bytes:
    return event("message_start", message={"id": "msg_1", "model": "claude", "usage": usage})


TEXT = event(
    "content_block_delta", index=0, delta={"type": "text_delta", "text": "message_stop error tool_use"}
)
STOP = event("message_stop")


def delta(**usage: object) -> bytes:
    return event("message_delta", delta={"stop_reason": "end_turn"}, usage=usage)


def stream(*events: bytes) -> Any:
    meter = DOOR.stream_meter(DOOR.read_request(b'{"model":"m","stream":true}'), Dialect())
    released = b"".join(meter.feed(e) for e in events)
    tail = meter.finish()
    assert released + tail.held == b"".join(events)
    assert b"event: message_stop" not in released
    return tail.reply


def test_a_request_is_read_in_counts_and_claims() -> None:
    request = DOOR.read_request(
        b'{"model":"c","stream":true,"max_tokens":9,"metadata":{"user_id":"u"},"tools":[{}],'
        b'"messages":[{"content":[{"type":"image"},{"type": "image"}]}]}'
    )
    assert (request.model, request.stream, request.max_tokens, request.user) == ("c", True, 9, "u")
    assert (request.summary["messages"], request.summary["tools"], request.summary["images"]) == (1, 1, 2)


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"null", "invalid_json", None),
        (b'{"messages":[]}', "invalid_request", "model"),
        (b'{"model":7}', "invalid_request", "model"),
        (b'{"model":"m","stream":"yes"}', "invalid_request", "stream"),
        (b'{"model":"m","metadata":7}', "invalid_request", "metadata"),
        (b'{"model":"m","max_tokens":-1}', "invalid_request", "max_tokens"),
        (b'{"model":"m","max_tokens":1,"max_tokens":2}', "duplicate_member", "max_tokens"),
        (b'{"model":"m","system":"\xff"}', "invalid_json", None),
    ],
)
@pytest.mark.parametrize("door", [DOOR, COUNTING], ids=["messages", "count_tokens"])
def test_a_body_that_cannot_be_billed_is_refused(
    door: Any, body: bytes, code: str, param: str | None
) -> None:
    with pytest.raises(CallerError) as caught:
        door.read_request(body)
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, code, param)


def test_the_body_is_the_caller_s_but_for_the_model() -> None:
    body = b'{"n":1.10,"model":"m","stream":true}'
    request = DOOR.read_request(body)
    assert DOOR.upstream_body(body, request, model="m", dialect=Dialect()) is body
    assert (
        DOOR.upstream_body(body, request, model="x", dialect=Dialect())
        == b'{"n":1.10,"model":"x","stream":true}'
    )


def test_input_includes_what_was_cached() -> None:
    usage = usage_of(
        {
            "input_tokens": 2,
            "cache_read_input_tokens": 30,
            "cache_creation_input_tokens": 400,
            "cache_creation": {"ephemeral_5m_input_tokens": 150, "ephemeral_1h_input_tokens": 250},
            "output_tokens": 7,
            "service_tier": "priority",
        }
    )
    assert usage.counts == {
        "input": 432,
        "cache_read": 30,
        "cache_write": 400,
        "cache_write_5m": 150,
        "cache_write_1h": 250,
        "output": 7,
    }
    assert (usage.anomalies, usage.service_tier) == ((), "priority")


def test_absent_stays_absent_and_zero_stays_zero() -> None:
    assert usage_of({"input_tokens": 0, "output_tokens": 0}).counts == {"input": 0, "output": 0}
    assert usage_of({"output_tokens": 3}).counts == {"output": 3}
    assert usage_of({"input_tokens": 3, "cache_read_input_tokens": None}).counts == {"input": 3}
    assert usage_of(None) is None
    assert usage_of({}) is None


@pytest.mark.parametrize(
    ("usage", "word"),
    [
        ({"input_tokens": -1}, "input_unusable"),
        ({"input_tokens": True}, "input_unusable"),
        ({"input_tokens": 1, "output_tokens": "3"}, "output_unusable"),
        ({"input_tokens": COUNT_MAX, "cache_read_input_tokens": COUNT_MAX}, "input_unusable"),
        (
            {"cache_creation_input_tokens": 5, "cache_creation": {"ephemeral_5m_input_tokens": 4}},
            "cache_write_split_stale",
        ),
        (
            {"input_tokens": 1, "output_tokens": 1, "iterations": [{"input_tokens": 9, "output_tokens": 1}]},
            "iterations_exceed_top_level",
        ),
        ({"input_tokens": 1, "iterations": [{"output_tokens": 1}] * 1025}, "iterations_unusable"),
        ({"input_tokens": 1, "iterations": [3]}, "iterations_unusable"),
        ({"input_tokens": 1, "iterations": 3}, "iterations_unusable"),
    ],
)
def test_what_does_not_add_up_is_said(usage: dict[str, object], word: str) -> None:
    found = usage_of(usage)
    assert word in found.anomalies
    assert "" not in found.anomalies


@pytest.mark.parametrize(
    ("written", "short", "long", "repaired"),
    [
        (3337, 3068, 0, (3337, 0)),  # the delta raised the total, the split stayed at the start
        (2070, 14, 2056, (14, 2056)),
        (100, 90, 40, (60, 40)),
        (100, 0, 140, (0, 100)),
        (100, 60, None, (100, None)),
        (100, None, 60, (None, 60)),
        (100, None, 160, (None, 100)),
        (0, 0, 0, (0, 0)),
    ],
)
def test_a_stale_split_is_made_to_sum_to_all_writes(
    written: int, short: int | None, long: int | None, repaired: tuple[int | None, int | None]
) -> None:
    """T-B4: the rest of the writes is charged as the lifetime that needs no asking."""
    split = {"ephemeral_5m_input_tokens": short, "ephemeral_1h_input_tokens": long}
    usage = usage_of({"cache_creation_input_tokens": written, "cache_creation": split})
    assert (usage.counts.get("cache_write_5m"), usage.counts.get("cache_write_1h")) == repaired
    assert usage.counts["cache_write"] == written
    assert ("cache_write_split_stale" in usage.anomalies) is ((short or 0) + (long or 0) != written)


def iteration(kind: str, units: int, output: int, model: str | None = None) -> dict[str, object]:
    named = {} if model is None else {"model": model}
    return {"type": kind, "input_tokens": units, "output_tokens": output, **named}


def billed(top: tuple[int, int], *iterations: dict[str, object]) -> Any:
    body = {
        "type": "message",
        "model": "claude-a-20260101",
        "usage": {"input_tokens": top[0], "output_tokens": top[1], "iterations": list(iterations)},
    }
    usage = DOOR.read_reply(200, json.dumps(body).encode(), Dialect()).usage
    assert usage.counts == {"input": top[0], "output": top[1]}
    return [(o.model, o.reason, o.counts["input"], o.counts["output"]) for o in usage.others], usage.anomalies


def test_what_the_top_level_leaves_out_is_charged_at_its_own_model_s_rates() -> None:
    own = iteration("message", 5, 6)
    assert billed((5, 6), own) == ([], ())
    assert billed((9, 9), own, iteration("message", 4, 3, "claude-a")) == ([], ())
    assert billed((5, 6), iteration("compaction", 900, 70), own) == (
        [("claude-a-20260101", "compaction", 900, 70)],
        (),
    )
    assert billed((5, 6), iteration("advisor_message", 7, 8, "claude-b"), own) == (
        [("claude-b", "advisor_message", 7, 8)],
        (),
    )


def test_a_model_that_declines_before_it_writes_is_not_charged() -> None:
    served = iteration("fallback_message", 5, 6, "claude-a")
    assert billed((5, 6), iteration("message", 4, 0, "claude-b"), served) == ([], ("declined_attempt_free",))
    assert billed((5, 6), iteration("message", 4, 2, "claude-b"), served) == (
        [("claude-b", "message", 4, 2)],
        (),
    )


def test_a_top_level_that_holds_all_iterations_is_billed_once() -> None:
    passes = (iteration("message", 5, 6), iteration("advisor_message", 7, 8, "claude-b"))
    assert billed((12, 14), *passes) == ([], ("iterations_in_top_level",))


def test_very_many_passes_are_summed_by_model_and_reason() -> None:
    many = [iteration("advisor_message", 1, 2, f"claude-{n % 2}") for n in range(100)]
    assert billed((5, 6), iteration("message", 5, 6), *many) == (
        [("claude-0", "advisor_message", 50, 100), ("claude-1", "advisor_message", 50, 100)],
        (),
    )


def test_an_earlier_message_of_the_same_stream_is_charged_beside_the_last() -> None:
    def message(name: str) -> bytes:
        usage = {"input_tokens": 3, "output_tokens": 1}
        return event("message_start", message={"id": name, "model": "claude", "usage": usage})

    def read(*events: bytes) -> Any:
        meter = DOOR.stream_meter(DOOR.read_request(b'{"model":"m","stream":true}'), Dialect())
        for each in events:
            meter.feed(each)
        return meter.finish().reply.usage

    usage = read(message("a"), delta(output_tokens=9), STOP, message("b"), delta(output_tokens=4), STOP)
    assert usage.counts == {"input": 3, "output": 4}
    assert [(o.model, o.reason, o.counts) for o in usage.others] == [
        ("claude", "earlier_message", {"input": 3, "output": 9})
    ]
    assert usage.anomalies == ("second_message_start",)
    bare = event("message_start", message={"id": "b", "model": "claude"})
    kept = read(message("a"), delta(output_tokens=9), STOP, bare, STOP)
    assert (kept.counts, kept.others) == ({"input": 3, "output": 9}, ())
    again = read(message("a"), delta(output_tokens=9), message("a"), delta(output_tokens=9), STOP)
    assert (again.others, again.anomalies) == ((), ())
    many = read(*[e for n in range(50) for e in (message(str(n)), delta(output_tokens=2), STOP)])
    assert len(many.others) <= 32
    assert sum(o.counts["output"] for o in many.others) == 49 * 2


def test_tools_tier_speed_and_place_are_said() -> None:
    usage = usage_of(
        {
            "input_tokens": 1,
            "output_tokens": 2,
            "server_tool_use": {"web_search_requests": 3, "web_fetch_requests": 0},
            "speed": "fast",
            "inference_geo": "us",
            "fallback_credit": {"status": {"type": "redeemed"}},
            "cost": 0.25,
        }
    )
    assert usage.counts == {"input": 1, "output": 2, "web_search": 3, "web_fetch": 0}
    assert usage.qualifiers == {"speed": "fast", "inference_geo": "us", "fallback_credit": "redeemed"}
    assert usage.reported_cost_usd == "0.25"


def test_literal_cache_fields_count_as_reported() -> None:
    usage = usage_of({"input_tokens": 1, "cache_hit": 20, "cache_write": 300})
    assert usage.counts == {"input": 321, "cache_read": 20, "cache_write": 300}
    usage = usage_of({"input_tokens": 1, "cache_hit": True, "cache_write": False})
    assert (usage.counts, usage.anomalies) == ({"input": 1}, ())
    assert usage.qualifiers == {"cache_hit": "true", "cache_write": "false"}


def test_the_delta_overrides_the_start_where_it_says_something() -> None:
    reply = stream(
        start(input_tokens=2, cache_creation_input_tokens=3068, cache_read_input_tokens=5, output_tokens=1),
        TEXT,
        delta(input_tokens=6, cache_read_input_tokens=0, cache_creation_input_tokens=None, output_tokens=9),
        STOP,
    )
    assert reply.usage.counts == {"input": 3074, "cache_read": 0, "cache_write": 3068, "output": 9}
    assert (reply.complete, reply.finish_reasons) == (True, ("end_turn",))
    assert (reply.response_id, reply.response_model) == ("msg_1", "claude")


def test_usage_only_in_the_delta_is_enough() -> None:
    reply = stream(event("message_start", message={"id": "m"}), delta(input_tokens=4, output_tokens=9), STOP)
    assert reply.usage.counts == {"input": 4, "output": 9}


def test_the_placeholder_of_the_start_is_never_the_output() -> None:
    """T-A3: a stream that breaks before its message_delta has no output count."""
    reply = stream(start(input_tokens=12, output_tokens=511), TEXT)
    assert reply.usage.counts == {"input": 12}
    assert reply.usage.anomalies == ("output_not_reported",)
    assert not reply.complete
    assert (
        "output"
        not in stream(start(input_tokens=12, output_tokens=1), delta(output_tokens=None), STOP).usage.counts
    )


def test_a_stream_without_usage_has_none() -> None:
    assert stream(TEXT, STOP).usage is None


def test_an_error_inside_a_stream_is_named_and_its_usage_kept() -> None:
    reply = stream(start(input_tokens=3, output_tokens=1), event("error", error={"type": "overloaded_error"}))
    assert (reply.error_type, reply.complete) == ("overloaded_error", False)
    assert reply.usage.counts == {"input": 3}


@pytest.mark.parametrize(
    "end", [b"event: message_stop\ndata: {}\n\n", b"data: {}\r\nevent:message_stop\r\n\r\n"]
)
def test_the_name_of_an_event_counts_where_its_data_names_no_type(end: bytes) -> None:
    meter = DOOR.stream_meter(DOOR.read_request(b'{"model":"m","stream":true}'), Dialect())
    assert meter.feed(TEXT + end) == TEXT
    assert meter.finish().reply.complete


def test_words_inside_content_end_nothing() -> None:
    reply = stream(start(input_tokens=3, output_tokens=1), TEXT, TEXT)
    assert (reply.complete, reply.error_type) == (False, None)
    assert "tool_calls" not in reply.output_summary


@pytest.mark.parametrize("value", [None, 1, "x", [], [1], {"x": 1}, True])
def test_no_shape_raises(value: object) -> None:
    for member in ("usage", "content", "id", "model", "error", "stop_reason", "type"):
        DOOR.read_reply(200, json.dumps({"content": [{}], member: value}).encode(), Dialect())
    for kind in ("message_start", "message_delta", "error", "content_block_start"):
        for member in ("message", "usage", "delta", "error", "content_block"):
            meter = DOOR.stream_meter(DOOR.read_request(b'{"model":"m"}'), Dialect())
            meter.feed(event(kind, **{member: value}) + event("message_start", message={"usage": value}))
            meter.finish()


@pytest.mark.parametrize(
    ("status", "body", "error_type"),
    [
        (500, b"", None),
        (
            529,
            b'{"type":"error","error":{"type":"overloaded_error"},"usage":{"input_tokens":1}}',
            "overloaded_error",
        ),
        (200, b'{"type":"error","error":{"type":"api_error"}}', "api_error"),
        (400, b'{"error":7}', "upstream_error"),
        (200, b"no", "upstream_protocol"),
    ],
)
def test_an_error_body_has_a_word_and_never_usage(status: int, body: bytes, error_type: str | None) -> None:
    reply = DOOR.read_reply(status, body, Dialect())
    assert (reply.error_type, reply.usage, reply.complete) == (error_type, None, False)


def test_counting_tokens_is_free_and_never_a_stream() -> None:
    assert (COUNTING.operation, COUNTING.billable) == ("count_tokens", False)
    assert not COUNTING.read_request(b'{"model":"m","stream":true}').stream
    reply = COUNTING.read_reply(200, b'{"input_tokens":7,"usage":{"input_tokens":7}}', Dialect())
    assert (reply.usage, reply.complete) == (None, True)


KINDS: list[tuple[SpanbillError, type[anthropic.APIStatusError], str]] = [
    (CallerError("invalid_json", "no", status=400), anthropic.BadRequestError, "invalid_request_error"),
    (CallerError("invalid_key", "no", status=401), anthropic.AuthenticationError, "authentication_error"),
    (CallerError("forbidden", "no", status=403), anthropic.PermissionDeniedError, "permission_error"),
    (CallerError("model_not_found", "no", status=404), anthropic.NotFoundError, "not_found_error"),
    (CallerError("too_large", "no", status=413), anthropic.APIStatusError, "request_too_large"),
    (CallerError("budget_exceeded", "no", status=429), anthropic.RateLimitError, "rate_limit_error"),
    (
        UpstreamError("upstream_timeout", "no", retryable=True, sent=True),
        anthropic.InternalServerError,
        "api_error",
    ),
    (GatewayFault("journal_full", "no", status=503), anthropic.InternalServerError, "overloaded_error"),
]


@pytest.mark.parametrize(("error", "kind", "word"), KINDS, ids=lambda value: getattr(value, "code", ""))
def test_the_official_sdk_raises_its_typed_exception(
    error: SpanbillError, kind: type[Exception], word: str
) -> None:
    transport = httpx2.MockTransport(lambda _: httpx2.Response(error.status, content=DOOR.error_body(error)))
    with httpx2.Client(transport=transport) as http:
        client = anthropic.Anthropic(api_key="k", base_url="http://gateway", http_client=http, max_retries=0)
        with pytest.raises(kind) as caught:
            client.messages.create(model="m", max_tokens=1, messages=[])
    assert isinstance(caught.value, anthropic.APIStatusError)
    assert caught.value.body == {"type": "error", "error": {"type": word, "message": "no"}}


def test_the_official_sdk_raises_on_an_error_event() -> None:
    broken = UpstreamError("upstream_incomplete", "cut off", retryable=False, sent=True)
    body = TEXT + DOOR.error_event(broken)
    transport = httpx2.MockTransport(
        lambda _: httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=body)
    )
    with httpx2.Client(transport=transport) as http:
        client = anthropic.Anthropic(api_key="k", base_url="http://gateway", http_client=http, max_retries=0)
        with client.messages.create(model="m", max_tokens=1, messages=[], stream=True) as events:
            assert next(events).type == "content_block_delta"
            with pytest.raises(anthropic.APIStatusError, match="cut off"):
                next(events)


def test_a_tools_input_that_no_json_can_hold_loses_no_usage() -> None:
    body = b'{"content":[{"type":"tool_use","name":"f","input":{"a":"\\ud800"}}],"usage":%s}' % (
        b'{"input_tokens":3,"output_tokens":2}'
    )
    reply = PROTOCOLS["/v1/messages"].read_reply(200, body, Dialect())
    assert reply.usage is not None
    assert reply.usage.counts == {"input": 3, "output": 2}
