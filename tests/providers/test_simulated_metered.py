"""What the simulated provider counts is what the gateway's own parsers read, streamed or whole."""

from __future__ import annotations

import json

import pytest

from gateway.core.exchange import Reply
from gateway.protocols import PROTOCOLS
from gateway.protocols.base import Dialect
from gateway.providers.simulated import State, simulate

CHAT, MESSAGES, COUNT = "/v1/chat/completions", "/v1/messages", "/v1/messages/count_tokens"
RESPONSES, EMBEDDINGS = "/v1/responses", "/v1/embeddings"
ANSWERING = pytest.mark.parametrize("path", [CHAT, MESSAGES, RESPONSES])
VERSION = [(b"anthropic-version", b"2023-06-01")]
CACHED = {
    "system": [
        {"type": "text", "text": "h" * 400, "cache_control": {"type": "ephemeral", "ttl": "1h"}},
        {"type": "text", "text": "m" * 200, "cache_control": {"type": "ephemeral"}},
    ]
}
PLAIN = {"input", "output"}


def ask(path: str, model: str, state: State, *, stream: bool, **more: object) -> Reply:
    """Ask the simulated provider through a protocol, as the story does."""
    protocol = PROTOCOLS[path]
    dialect = Dialect()
    body = json.dumps(
        {
            "model": model,
            "max_tokens": 90,
            "stream": stream,
            "messages": [{"role": "user", "content": "How long is this?"}],
            "input": "How long is this?",
            **more,
        }
    ).encode()
    request = protocol.read_request(body)
    sent = protocol.upstream_body(body, request, model=model, dialect=dialect)
    script = simulate(path, sent, VERSION, state)
    data = b"".join(piece.data for piece in script.pieces)
    if not stream or script.status != 200:
        return protocol.read_reply(script.status, data, dialect)
    meter = protocol.stream_meter(request, dialect)
    for at in range(0, len(data), 7):
        meter.feed(data[at : at + 7])
    return meter.finish().reply


@ANSWERING
@pytest.mark.parametrize(
    ("model", "reported"),
    [
        ("sim-small", PLAIN),
        ("sim-slow", PLAIN),
        ("sim-large", PLAIN | {"cache_read"}),
        ("sim-cache", PLAIN | {"cache_read", "cache_write"}),
        ("sim-reasoning", PLAIN | {"reasoning"}),
    ],
)
def test_streamed_and_whole_replies_report_the_same_fields_and_counts(
    path: str, model: str, reported: set[str]
) -> None:
    whole = ask(path, model, State(), stream=False)
    streamed = ask(path, model, State(), stream=True)
    assert whole.complete
    assert streamed.complete
    assert whole.usage is not None
    assert streamed.usage is not None
    assert whole.usage.counts == streamed.usage.counts
    assert whole.usage.anomalies == streamed.usage.anomalies == ()
    assert reported <= set(whole.usage.counts)
    absent = {"cache_read", "cache_write", "cache_write_5m", "cache_write_1h", "reasoning"} - reported
    if model in ("sim-small", "sim-slow"):
        assert not absent & set(whole.usage.counts)
    assert (whole.response_model, whole.finish_reasons) == (streamed.response_model, streamed.finish_reasons)


def test_cache_writes_and_reads_are_read_with_their_times_to_live() -> None:
    state = State()
    wrote = ask(MESSAGES, "sim-cache", state, stream=True, **CACHED).usage
    read = ask(MESSAGES, "sim-cache", state, stream=True, **CACHED).usage
    assert wrote is not None
    assert read is not None
    expected = {
        "cache_read": 0,
        "cache_write": 150,
        "cache_write_5m": 50,
        "cache_write_1h": 100,
        "input": 155,
    }
    assert {name: wrote.counts[name] for name in expected} == expected
    assert (read.counts["cache_read"], read.counts["cache_write"], read.counts["input"]) == (150, 0, 155)


@ANSWERING
@pytest.mark.parametrize("stream", [True, False])
def test_no_usage_is_read_where_none_was_sent(path: str, stream: bool) -> None:
    reply = ask(path, "sim-nousage", State(), stream=stream)
    assert reply.complete
    assert reply.usage is None


@ANSWERING
def test_broken_streams_are_incomplete_and_carry_no_output_count(path: str) -> None:
    for model, error in (("sim-cut", False), ("sim-midstream-error", True)):
        reply = ask(path, model, State(), stream=True)
        assert not reply.complete
        assert (reply.error_type is not None) == error
        assert reply.usage is None or "output" not in reply.usage.counts


def test_embeddings_report_their_input_and_nothing_else() -> None:
    usage = ask(EMBEDDINGS, "sim-large", State(), stream=False).usage
    assert usage is not None
    assert usage.counts == {"input": 5}
    assert ask(EMBEDDINGS, "sim-nousage", State(), stream=False).usage is None


def test_a_compaction_is_counted_and_a_count_is_not() -> None:
    compacted = ask("/v1/responses/compact", "sim-large", State(), stream=False)
    assert compacted.usage is not None
    assert compacted.complete
    counted = ask("/v1/responses/input_tokens", "sim-large", State(), stream=False)
    assert (counted.usage, counted.complete) == (None, True)


def test_errors_and_counted_tokens_are_understood() -> None:
    assert ask(CHAT, "sim-err-429", State(), stream=True).error_type
    assert ask(RESPONSES, "sim-err-429", State(), stream=True).error_type == "rate_limit_exceeded"
    assert ask(EMBEDDINGS, "sim-err-500", State(), stream=False).error_type == "server_error"
    assert ask(MESSAGES, "sim-err-529", State(), stream=False).error_type == "overloaded_error"
    assert not PROTOCOLS[COUNT].billable
