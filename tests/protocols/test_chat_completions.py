"""The door of chat completions: the caller's bytes, the provider's numbers, OpenAI's errors."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

from gateway.core.errors import CallerError, GatewayFault, SpanbillError, UpstreamError
from gateway.core.usage import COUNT_MAX
from gateway.protocols import PROTOCOLS
from gateway.protocols.base import Dialect

DOOR = PROTOCOLS["/v1/chat/completions"]
PLAIN = Dialect()
ON_REQUEST = Dialect(stream_usage="on_request")


def usage_of(usage: object, dialect: Dialect = PLAIN, **members: object) -> Any:
    return DOOR.read_reply(
        200, json.dumps({"choices": [], "usage": usage, **members}).encode(), dialect
    ).usage


def stream(*chunks: object, dialect: Dialect = PLAIN, asked: bool = True) -> tuple[bytes, Any]:
    events = [b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n" for chunk in chunks]
    request = DOOR.read_request(
        b'{"model":"m","stream":true' + (b',"stream_options":{"include_usage":true}}' if asked else b"}")
    )
    meter = DOOR.stream_meter(request, dialect)
    released = b"".join(meter.feed(event) for event in [*events, b"data: [DONE]\n\n"])
    tail = meter.finish()
    return released + tail.held, tail.reply


# requests


def test_a_request_is_read_in_counts_and_claims() -> None:
    request = DOOR.read_request(
        json.dumps(
            {
                "model": "gpt",
                "stream": True,
                "stream_options": {"include_usage": True},
                "max_tokens": 5,
                "max_completion_tokens": 7,
                "user": "u" * 300,
                "tools": [{}, {}],
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]},
                    {"role": "user", "content": "é"},
                ],
            }
        ).encode()
    )
    assert (request.model, request.stream, request.usage_requested, request.max_tokens) == (
        "gpt",
        True,
        True,
        7,
    )
    assert request.user == "u" * 256
    assert {name: request.summary[name] for name in ("messages", "tools", "images")} == {
        "messages": 2,
        "tools": 2,
        "images": 1,
    }


def test_the_safety_identifier_goes_before_the_user() -> None:
    assert DOOR.read_request(b'{"model":"m","user":"b","safety_identifier":"a"}').user == "a"
    assert DOOR.read_request(b'{"model":"m","user":"b","safety_identifier":{}}').user == "b"


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"", "invalid_json", None),
        (b"[]", "invalid_json", None),
        (b"{", "invalid_json", None),
        (b'{"model":"m"} x', "invalid_json", None),
        (b'{"model":"m","messages":[{"content":"\xff"}]}', "invalid_json", None),
        (b'{"model":"m","\\ud800":1}', "invalid_json", None),
        (b'{"model":"m","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "invalid_json", None),
        (b'{"model":"m","x":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001, "invalid_json", None),
        (b"{}", "invalid_request", "model"),
        (b'{"model":""}', "invalid_request", "model"),
        (b'{"model":null}', "invalid_request", "model"),
        (b'{"model":["m"]}', "invalid_request", "model"),
        (b'{"model":"a\\nb"}', "invalid_request", "model"),
        (b'{"model":"' + b"m" * 257 + b'"}', "invalid_request", "model"),
        (b'{"model":"m","stream":"true"}', "invalid_request", "stream"),
        (b'{"model":"m","stream":1}', "invalid_request", "stream"),
        (b'{"model":"m","stream_options":[]}', "invalid_request", "stream_options"),
        (
            b'{"model":"m","stream_options":{"include_usage":1}}',
            "invalid_request",
            "stream_options.include_usage",
        ),
        (b'{"model":"m","max_tokens":-1}', "invalid_request", "max_tokens"),
        (b'{"model":"m","max_tokens":1.5}', "invalid_request", "max_tokens"),
        (b'{"model":"m","max_completion_tokens":1e99}', "invalid_request", "max_completion_tokens"),
        (b'{"model":"m","messages":{}}', "invalid_request", "messages"),
        (b'{"model":"m","model":"n"}', "duplicate_member", "model"),
        (b'{"model":"m","stream":false,"str\\u0065am":true}', "duplicate_member", "stream"),
        (b'{"model":"m","stream_options":{},"stream_options":{}}', "duplicate_member", "stream_options"),
    ],
)
def test_a_body_that_cannot_be_billed_is_refused(body: bytes, code: str, param: str | None) -> None:
    with pytest.raises(CallerError) as caught:
        DOOR.read_request(body)
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, code, param)
    assert len(caught.value.message) < 200


# what the provider gets


def upstream(body: bytes, model: str = "m", dialect: Dialect = ON_REQUEST) -> bytes:
    return DOOR.upstream_body(body, DOOR.read_request(body), model=model, dialect=dialect)


@pytest.mark.parametrize(
    ("body", "dialect"),
    [
        (b'{"model":"m"}', ON_REQUEST),
        (b'{"model":"m","stream":false}', ON_REQUEST),
        (b'{"model":"m","stream":true,"stream_options":{"include_usage":true}}', ON_REQUEST),
        (b'{"model":"m","stream":true}', Dialect(stream_usage="always")),
    ],
)
def test_without_a_difference_the_caller_s_bytes_are_sent(body: bytes, dialect: Dialect) -> None:
    assert upstream(body, dialect=dialect) is body


def test_usage_is_asked_for_without_touching_another_byte() -> None:
    body = b' {"model":"m",  "stream":true, "temperature":1.10}'
    asked = upstream(body)
    assert (
        asked == b' {"stream_options":{"include_usage":true},"model":"m",  "stream":true, "temperature":1.10}'
    )
    assert json.loads(asked)["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    "options",
    [b"null", b"{}", b'{"include_usage":false}', b'{"include_usage":null,"include_obfuscation":false}'],
)
def test_other_stream_options_are_kept_when_usage_is_asked_for(options: bytes) -> None:
    sent = json.loads(upstream(b'{"model":"m","stream":true,"stream_options":' + options + b',"n":1.10}'))
    expected = {**(json.loads(options) or {}), "include_usage": True}
    assert sent == {"model": "m", "stream": True, "stream_options": expected, "n": 1.10}


def test_stream_options_hidden_by_escapes_are_not_written_twice() -> None:
    sent = upstream(b'{"model":"m","stream":true,"stream\\u005foptions":{"include_obfuscation":false}}')
    assert sent.count(b"options") == 1
    assert json.loads(sent)["stream_options"] == {"include_obfuscation": False, "include_usage": True}


def test_stream_options_inside_a_message_do_not_count() -> None:
    sent = json.loads(upstream(b'{"model":"m","stream":true,"messages":[{"stream_options":1}]}'))
    assert sent["stream_options"] == {"include_usage": True}
    assert sent["messages"] == [{"stream_options": 1}]


def test_another_model_s_name_is_the_only_change() -> None:
    body = b'{"n":1.10,"model":"m","messages":[{"content":"\\u00e9 \xc3\xa9"}]}'
    assert upstream(body, model='x"y') == body.replace(b'"m"', b'"x\\"y"', 1)


# replies


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({"prompt_tokens": 0, "completion_tokens": 0}, {"input": 0, "output": 0}),
        (
            {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 2}},
            {"input": 9, "cache_read": 4, "cache_write": 2},
        ),
        ({"prompt_tokens": 9, "cached_tokens": 3}, {"input": 9, "cache_read": 3}),
        ({"prompt_tokens": 9, "num_cached_tokens": 3}, {"input": 9, "cache_read": 3}),
        ({"prompt_tokens": 9, "prompt_cache_hit_tokens": 0}, {"input": 9, "cache_read": 0}),
        ({"prompt_tokens": 9, "prompt_tokens_details": None}, {"input": 9}),
        (
            {"prompt_tokens": 9, "cache_hit": 3, "cache_write": 1},
            {"input": 9, "cache_read": 3, "cache_write": 1},
        ),
        (
            {"completion_tokens": 5, "completion_tokens_details": {"reasoning_tokens": 2}},
            {"output": 5, "reasoning": 2},
        ),
    ],
)
def test_only_what_was_reported_is_counted(usage: dict[str, object], counts: dict[str, int]) -> None:
    assert usage_of(usage).counts == counts


def test_reasoning_counted_apart_is_added_when_the_total_or_the_card_says_so() -> None:
    reported = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "completion_tokens_details": {"reasoning_tokens": 7},
    }
    assert usage_of({**reported, "total_tokens": 22}).counts["output"] == 12
    assert usage_of({**reported, "total_tokens": 15}).counts["output"] == 5
    assert (
        usage_of({**reported, "total_tokens": 15}, Dialect(reasoning_in_output=False)).counts["output"] == 12
    )


def test_audio_counted_apart_is_added_when_the_total_says_so() -> None:
    reported = {"prompt_tokens": 9, "completion_tokens": 20, "prompt_tokens_details": {"audio_tokens": 375}}
    apart = usage_of({**reported, "total_tokens": 404})
    assert (apart.counts["input"], apart.counts["input_audio"], apart.anomalies) == (384, 375, ())
    unclear = usage_of({**reported, "total_tokens": 405})
    assert unclear.counts["input"] == 9
    assert set(unclear.anomalies) == {"media_exceeds_input", "total_exceeds_sum"}


def test_hidden_thinking_is_output_where_the_card_says_so() -> None:
    reported = {"prompt_tokens": 7, "completion_tokens": 12, "total_tokens": 402}
    assert usage_of(reported).counts == {"input": 7, "output": 12}
    hidden = usage_of(reported, Dialect(hidden_output=True))
    assert hidden.counts == {"input": 7, "output": 395, "reasoning": 383}
    assert hidden.anomalies == usage_of(reported).anomalies == ("total_exceeds_sum",)


def test_what_is_counted_beside_tokens_is_taken_and_so_is_what_decides_rates() -> None:
    usage = usage_of(
        {
            "prompt_tokens": 1,
            "completion_tokens": 2,
            "prompt_tokens_details": {"video_tokens": 1},
            "server_tool_use_details": {"web_search_requests": 3},
            "num_search_queries": 9,
            "num_sources_used": 4,
            "citation_tokens": 5,
            "prompt_audio_seconds": 6,
            "request_count": 1,
            "search_context_size": "low",
            "is_byok": True,
            "service_tier": "standard",
        }
    )
    assert usage.counts == {
        "input": 1,
        "output": 2,
        "input_video": 1,
        "web_search": 3,
        "search_source": 4,
        "citation": 5,
        "audio_second": 6,
        "request": 1,
    }
    assert usage.qualifiers == {"search_context_size": "low", "is_byok": "true"}
    assert usage.service_tier == "standard"


@pytest.mark.parametrize("place", ["usage", "details", "reply"])
def test_literal_cache_fields_count_wherever_they_stand(place: str) -> None:
    for said, counts, qualifiers in (
        ({"cache_hit": 20, "cache_write": 30}, {"cache_read": 20, "cache_write": 30}, {}),
        ({"cache_hit": True, "cache_write": False}, {}, {"cache_hit": "true", "cache_write": "false"}),
    ):
        usage = {"prompt_tokens": 50, **(said if place == "usage" else {})}
        if place == "details":
            usage["prompt_tokens_details"] = said
        body = {"choices": [{}], "usage": usage, **(said if place == "reply" else {})}
        found = DOOR.read_reply(200, json.dumps(body).encode(), Dialect()).usage
        assert found.counts == {"input": 50, **counts}
        assert (found.qualifiers, found.anomalies) == (qualifiers, ())


def test_usage_inside_a_choice_is_found() -> None:
    body = {"choices": [{"usage": {"prompt_tokens": 3, "completion_tokens": 4}}]}
    found = DOOR.read_reply(200, json.dumps(body).encode(), Dialect()).usage
    assert found.counts == {"input": 3, "output": 4}


@pytest.mark.parametrize(
    ("usage", "cost"),
    [
        ({"cost": 0.1}, "0.1"),
        ({"cost": {"total_cost": 0.2, "request_cost": 0.1}}, "0.2"),
        ({"cost_in_usd_ticks": 2488500}, "0.00024885"),
        ({"estimated_cost": 3.7999999999999996e-07}, "0.00000037999999999999996"),
        ({"pydantic_ai_gateway": {"cost_estimate": 3.11e-05}}, "0.0000311"),
        ({"cost": -1, "cost_in_usd_ticks": 10**10}, "1"),
    ],
)
def test_a_provider_s_own_cost_is_exact_wherever_it_stands(usage: dict[str, object], cost: str) -> None:
    assert usage_of(usage).reported_cost_usd == cost


@pytest.mark.parametrize(
    ("usage", "word"),
    [
        ({"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}, "cache_exceeds_input"),
        (
            {"completion_tokens": 3, "completion_tokens_details": {"reasoning_tokens": 4}},
            "reasoning_exceeds_output",
        ),
        ({"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 9}, "total_exceeds_sum"),
        ({"prompt_tokens": 9, "prompt_tokens_details": {"audio_tokens": 375}}, "media_exceeds_input"),
        ({"completion_tokens": 9, "completion_tokens_details": {"image_tokens": 10}}, "media_exceeds_output"),
        ({"prompt_tokens": -3}, "input_unusable"),
        ({"prompt_tokens": COUNT_MAX + 1}, "input_unusable"),
    ],
)
def test_what_does_not_add_up_is_said(usage: dict[str, object], word: str) -> None:
    found = usage_of(usage)
    assert word in found.anomalies
    assert all(units >= 0 for units in found.counts.values())


def test_numbers_at_the_limit_never_raise() -> None:
    usage = usage_of(
        {"completion_tokens": COUNT_MAX, "completion_tokens_details": {"reasoning_tokens": COUNT_MAX}},
        Dialect(reasoning_in_output=False),
    )
    assert "output" not in usage.counts
    assert "output_unusable" in usage.anomalies


def test_the_provider_s_own_cost_and_tier_are_kept() -> None:
    usage = DOOR.read_reply(
        200, b'{"choices":[],"service_tier":"flex","usage":{"prompt_tokens":1,"cost":0.000012340}}', Dialect()
    ).usage
    assert usage is not None
    assert (usage.reported_cost_usd, usage.service_tier) == ("0.000012340", "flex")
    assert usage_of({"prompt_tokens": 1, "cost_in_usd_ticks": 12_345}).reported_cost_usd == "0.0000012345"
    assert usage_of({"prompt_tokens": 1, "cost": {"total_cost": 1.5}}).reported_cost_usd == "1.5"
    assert usage_of({"prompt_tokens": 1, "cost": 0}).reported_cost_usd == "0"
    assert usage_of({"prompt_tokens": 1}).reported_cost_usd is None


@pytest.mark.parametrize(
    ("status", "body", "error_type"),
    [
        (500, b"", None),
        (502, b"<html>", None),
        (
            429,
            b'{"error":{"code":"rate_limit_exceeded","type":"x"},"usage":{"prompt_tokens":5}}',
            "rate_limit_exceeded",
        ),
        (400, b'{"error":{"code":400}}', "400"),
        (400, b'{"error":"bad"}', "upstream_error"),
        (400, b'{"error":{"code":"' + b"x\\n" * 99 + b'"}}', "x?" * 32),
        (400, b'{"error":{"code":' + b"9" * 4000 + b"}}", "upstream_error"),
        (200, b'{"error":{"type":"overloaded"}}', "overloaded"),
        (200, b"", "upstream_protocol"),
        (200, b"[]", "upstream_protocol"),
    ],
)
def test_an_error_body_has_a_word_and_never_usage(status: int, body: bytes, error_type: str | None) -> None:
    reply = DOOR.read_reply(status, body, Dialect())
    assert (reply.error_type, reply.usage, reply.complete) == (error_type, None, False)


@pytest.mark.parametrize("value", [None, 1, "x", [], [1], {"x": 1}, [[]], [{"message": 1}], [None], True])
def test_no_shape_of_a_reply_raises(value: object) -> None:
    for member in ("choices", "usage", "id", "model", "error", "x_groq", "service_tier"):
        DOOR.read_reply(200, json.dumps({"choices": [{}], member: value}).encode(), Dialect())
        stream({"choices": [], member: value}, {member: value}, {"usage": value, member: value})


# streams

TEXT = {
    "id": "c",
    "model": "gpt-x",
    "choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}],
}
STOP = {"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": None}
USAGE = {"id": "c", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}}


def test_the_facts_of_a_stream() -> None:
    out, reply = stream(TEXT, TEXT, STOP, {**USAGE, "service_tier": "default"})
    assert (reply.response_id, reply.response_model, reply.finish_reasons) == ("c", "gpt-x", ("stop",))
    assert reply.usage.counts == {"input": 3, "output": 4}
    assert reply.usage.service_tier == "default"
    assert reply.complete
    assert reply.output_summary == {"events": 5, "bytes": len(out)}


def test_the_usage_chunk_that_the_gateway_asked_for_is_removed() -> None:
    out, reply = stream(TEXT, STOP, USAGE, asked=False)
    assert b"prompt_tokens" not in out
    assert out.endswith(b'"usage":null}\n\ndata: [DONE]\n\n')
    assert reply.usage.counts == {"input": 3, "output": 4}


def test_usage_passes_where_it_was_asked_for_or_always_comes() -> None:
    assert b"prompt_tokens" in stream(TEXT, USAGE, asked=True)[0]
    assert b"prompt_tokens" in stream(TEXT, USAGE, asked=False, dialect=Dialect(stream_usage="always"))[0]


def test_content_and_errors_pass_even_with_usage_on_them() -> None:
    for chunk in ({**TEXT, "usage": USAGE["usage"]}, {"error": {"code": "x"}, "usage": USAGE["usage"]}):
        assert b"prompt_tokens" in stream(TEXT, chunk, asked=False)[0]


def test_the_last_usage_wins_and_is_not_summed() -> None:
    reply = stream(
        TEXT, {**TEXT, "usage": {"prompt_tokens": 145}}, {**TEXT, "usage": {"prompt_tokens": 85}}, STOP
    )[1]
    assert reply.usage.counts == {"input": 85}


def test_the_tier_of_an_earlier_chunk_survives_a_null() -> None:
    reply = stream({**TEXT, "service_tier": "flex"}, {**USAGE, "service_tier": None})[1]
    assert reply.usage.service_tier == "flex"


def test_the_end_written_inside_content_is_content() -> None:
    spoof = {"choices": [{"delta": {"content": 'data: [DONE]\n\n{"usage":{"prompt_tokens":999}}'}}]}
    out, reply = stream(TEXT, spoof, USAGE, asked=False)
    assert b"999" in out
    assert reply.usage.counts == {"input": 3, "output": 4}


def test_an_error_inside_a_stream_is_named_and_its_usage_kept() -> None:
    meter = DOOR.stream_meter(DOOR.read_request(b'{"model":"m","stream":true}'), ON_REQUEST)
    body = (
        b'data: {"choices":[{}],"usage":{"prompt_tokens":3}}\n\ndata: {"error":{"type":"server_error"}}\n\n'
    )
    assert meter.feed(body) == body
    reply = meter.finish().reply
    assert (reply.error_type, reply.complete) == ("server_error", False)
    assert reply.usage is not None
    assert reply.usage.counts == {"input": 3}


def test_usage_of_groq_and_tool_calls_are_found() -> None:
    call = {
        "choices": [{"delta": {"tool_calls": [{"index": 0, "id": "t", "type": "function", "function": {}}]}}]
    }
    more = {"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}}]}
    reply = stream(TEXT, call, more, {"choices": [{}], "x_groq": {"usage": {"prompt_tokens": 2}}})[1]
    assert reply.usage.counts == {"input": 2}
    assert reply.output_summary["tool_calls"] == 1


# errors of ours

KINDS: list[tuple[SpanbillError, type[openai.APIStatusError]]] = [
    (CallerError("invalid_json", "no", status=400, param="model"), openai.BadRequestError),
    (CallerError("invalid_key", "no", status=401), openai.AuthenticationError),
    (CallerError("model_not_allowed", "no", status=403), openai.PermissionDeniedError),
    (CallerError("model_not_found", "no", status=404), openai.NotFoundError),
    (CallerError("budget_exceeded", "no", status=429), openai.RateLimitError),
    (UpstreamError("upstream_timeout", "no", retryable=True, sent=True), openai.InternalServerError),
    (GatewayFault("journal_full", "no", status=503), openai.InternalServerError),
]


@pytest.mark.parametrize(("error", "kind"), KINDS, ids=lambda value: getattr(value, "code", ""))
def test_the_official_sdk_raises_its_typed_exception(error: SpanbillError, kind: type[Exception]) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(error.status, content=DOOR.error_body(error)))
    with httpx.Client(transport=transport) as http:
        client = openai.OpenAI(api_key="k", base_url="http://gateway/v1", http_client=http, max_retries=0)
        with pytest.raises(kind) as caught:
            client.chat.completions.create(model="m", messages=[])
    assert isinstance(caught.value, openai.APIStatusError)
    assert (caught.value.code, caught.value.param) == (error.code, error.param)


def test_the_official_sdk_raises_on_an_error_event() -> None:
    broken = UpstreamError("upstream_incomplete", "cut off", retryable=False, sent=True)
    body = b"data: " + json.dumps(TEXT).encode() + b"\n\n" + DOOR.error_event(broken)
    transport = httpx.MockTransport(
        lambda _: httpx.Response(200, headers={"content-type": "text/event-stream"}, content=body)
    )
    with httpx.Client(transport=transport) as http:
        client = openai.OpenAI(api_key="k", base_url="http://gateway/v1", http_client=http, max_retries=0)
        with client.chat.completions.create(model="m", messages=[], stream=True) as chunks:
            assert next(chunks).id == "c"
            with pytest.raises(openai.APIError, match="cut off"):
                next(chunks)
