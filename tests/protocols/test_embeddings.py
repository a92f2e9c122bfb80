"""The door of embeddings: input alone makes a whole bill, and no vector is looked at."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from gateway.core.errors import CallerError
from gateway.core.exchange import Call, Identity, Reply
from gateway.metering.estimate import with_estimate
from gateway.metering.settle import Ending, bill_status, metered
from gateway.protocols import PROTOCOLS
from gateway.protocols.base import Dialect
from gateway.protocols.embeddings.reply import LENIENT_BYTES_MAX
from gateway.protocols.reading import decode

DOOR = PROTOCOLS["/v1/embeddings"]
CHAT = PROTOCOLS["/v1/chat/completions"]
DATA = [{"object": "embedding", "index": 0, "embedding": [0.1, -2e-5]}]


def reply_of(**reply: object) -> Reply:
    return DOOR.read_reply(200, json.dumps({"data": DATA, **reply}).encode(), Dialect())


def counts_of(**reply: object) -> dict[str, int]:
    usage = reply_of(**reply).usage
    return {} if usage is None else usage.counts


def call(body: bytes, door: Any = DOOR) -> Call:
    request = door.read_request(body)
    return Call(
        record_id="r", trace_id="t", span_id="s", server_span_id="p", protocol=door.name, operation="x",
        model=request.model, stream=False, identity=Identity(key_id="k", user_id="u", source="key"),
        started_unix_ns=1, sides=door.sides, input_summary=request.summary,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("reply", "counts"),
    [
        ({"usage": {"prompt_tokens": 8, "total_tokens": 8}}, {"input": 8}),
        ({"usage": {"prompt_tokens": 8, "completion_tokens": 0}}, {"input": 8, "output": 0}),
        ({"usage": {"total_tokens": 3}}, {"input": 3}),
        ({"usage": {"prompt_tokens": 9, "prompt_tokens_details": {"image_tokens": 4}}},
         {"input": 9, "input_image": 4}),
        ({"meta": {"billed_units": {"input_tokens": 4, "image_tokens": 0}}}, {"input": 4, "input_image": 0}),
        ({"usage": None}, {}),
        ({"usage": {}}, {}),
        ({}, {}),
    ],
)  # fmt: skip
def test_only_what_was_reported_is_counted(reply: dict[str, object], counts: dict[str, int]) -> None:
    assert counts_of(**reply) == counts


@pytest.mark.parametrize(("cost", "usd"), [(6e-08, "0.00000006"), ({"total_cost": 2.8e-08}, "0.000000028")])
def test_the_providers_own_cost_is_kept(cost: object, usd: str) -> None:
    usage = reply_of(usage={"prompt_tokens": 3, "cost": cost}).usage
    assert usage is not None
    assert usage.reported_cost_usd == usd


def test_input_alone_is_a_whole_usage_here_and_not_elsewhere() -> None:
    usage = reply_of(usage={"prompt_tokens": 8}).usage
    body = b'{"model":"m","input":"hello"}'
    assert metered(call(body), usage)
    assert not metered(call(body, CHAT), usage)
    assert bill_status(call(body), Ending(outcome="ok"), usage, None) == "unpriced"
    assert bill_status(call(body, CHAT), Ending(outcome="ok"), usage, None) == "unmetered"


def test_a_reply_without_usage_is_estimated_from_what_was_sent() -> None:
    body = b'{"model":"m","input":"' + b"hello " * 100 + b'"}'
    estimated = with_estimate(call(body), reply_of(), None).usage
    assert estimated is not None
    assert estimated.source == "estimated"
    assert estimated.counts == {"input": -(-len(body) // 4)}
    assert estimated.estimate is not None
    assert estimated.estimate.bounds == {"input": (1, len(body))}
    assert with_estimate(call(body), reply_of(data=[]), None).usage is None
    assert with_estimate(call(body), Reply(), None).usage is None


def test_a_request_is_read_and_passes_as_it_is() -> None:
    body = b'{ "model" : "m", "input":[[1,2],[3]],"encoding_format":"base64","user":"u" }'
    request = DOOR.read_request(body)
    assert (request.model, request.stream, request.user) == ("m", False, "u")
    assert DOOR.upstream_body(body, request, model="m", dialect=Dialect()) is body
    other = json.loads(DOOR.upstream_body(body, request, model="n", dialect=Dialect()))
    assert other == {**json.loads(body), "model": "n"}


@pytest.mark.parametrize("body", [b"", b"[]", b'{"input":"x"}', b'{"model":"m","input":"x","input":"y"}'])
def test_a_bad_body_is_refused(body: bytes) -> None:
    with pytest.raises(CallerError):
        DOOR.read_request(body)


@pytest.mark.parametrize(
    ("status", "body", "word"),
    [
        (404, b'{"error":{"code":"model_not_found"}}', "model_not_found"),
        (400, b'{"detail":"no such model"}', "upstream_error"),
        (200, b'{"error":{"type":"overloaded"}}', "overloaded"),
        (200, b"<html>", "upstream_protocol"),
    ],
)
def test_an_error_is_named_and_never_billed(status: int, body: bytes, word: str) -> None:
    reply = DOOR.read_reply(status, body, Dialect())
    assert (reply.error_type, reply.usage) == (word, None)


def test_what_strict_json_refuses_is_read_leniently_up_to_a_bound() -> None:
    small = b'{"data":[{"embedding":[NaN]}],"model":"m","usage":{"prompt_tokens":5}}'
    reply = DOOR.read_reply(200, small, Dialect())
    assert (reply.response_model, reply.output_summary["choices"]) == ("m", 1)
    assert reply.usage is not None
    large = small.replace(b"NaN", b"NaN," * (LENIENT_BYTES_MAX // 4) + b"1")
    assert DOOR.read_reply(200, large, Dialect()).usage is None


@pytest.mark.parametrize(
    ("vector", "factor"), [(b"[" + b"-0.0123456789," * 3071 + b"1]", 0.3), (b'"' + b"A" * 16384 + b'"', 1.5)]
)
def test_a_large_reply_costs_a_fraction_of_reading_its_numbers(vector: bytes, factor: float) -> None:
    one = b'{"object":"embedding","index":0,"embedding":' + vector + b"},"
    body = b'{"data":[' + one * 100 + one[:-1] + b'],"model":"m","usage":{"prompt_tokens":5}}'
    reply = DOOR.read_reply(200, body, Dialect())
    assert reply.usage is not None
    assert reply.output_summary["choices"] == 101
    ours, all_of_it = least_s(lambda: DOOR.read_reply(200, body, Dialect())), least_s(lambda: decode(body))
    assert ours < all_of_it * factor, f"{ours:.4f} s against {all_of_it:.4f} s for {len(body)} bytes"


def least_s(work: Callable[[], object]) -> float:
    """Return the least CPU time of a few runs."""
    took = []
    for _ in range(5):
        started = time.thread_time()
        work()
        took.append(time.thread_time() - started)
    return min(took)
