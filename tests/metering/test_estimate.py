"""Estimates: never below what was seen because a caller said so, never final where more may have come.

The recordings judge them: where a provider reported its tokens, they are put aside and estimated.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.core.exchange import Call, Identity, Reply, Said, Seen
from gateway.core.usage import Usage
from gateway.metering.estimate import METHOD, counted, with_estimate
from gateway.metering.settle import INTERRUPTED, bill_status, metered
from gateway.metering.tokenizer import NAME as TOKENIZER
from gateway.metering.tokenizer import load
from gateway.protocols import PROTOCOLS
from gateway.protocols.base import Dialect, Request

CHAT = PROTOCOLS["/v1/chat/completions"]
MESSAGES = PROTOCOLS["/v1/messages"]
DOORS = {"chat.completions": CHAT, "messages": MESSAGES}
TEXT = b'data: {"choices":[{"index":0,"delta":{"content":"hello world"}}]}\n\n'


def call(body: bytes = b'{"model":"m"}', **facts: Any) -> Call:
    request = CHAT.read_request(body)
    return Call(
        record_id="r",
        trace_id="a" * 32,
        span_id="b" * 16,
        server_span_id="c" * 16,
        protocol="chat_completions",
        operation="chat",
        model="m",
        stream=True,
        identity=Identity(key_id="k", user_id="u", source="key"),
        started_unix_ns=1,
        **{
            "max_tokens": request.max_tokens,
            "choices": request.choices,
            "input_summary": request.summary,
            **facts,
        },
    )


def output_of(call_: Call, reply: Reply, context_window: int | None = None) -> tuple[int, tuple[int, int]]:
    usage = with_estimate(call_, reply, context_window).usage
    assert usage is not None
    assert usage.estimate is not None
    assert (usage.source, usage.estimate.method) == ("estimated", METHOD)
    least, most = usage.estimate.bounds["output"]
    assert least <= usage.counts["output"] <= most
    return usage.counts["output"], (least, most)


# the caller's word


def test_a_caller_that_asks_for_one_token_is_billed_for_all_that_came() -> None:
    asked = b'{"model":"m","max_tokens":900,"max_completion_tokens":1}'
    assert output_of(call(asked), Reply(seen=Seen(events=50, text_bytes=400)))[0] == 100
    assert output_of(call(asked), Reply(seen=Seen(events=1, text_bytes=4000)))[0] == 1000


@pytest.mark.parametrize("odd", [b"8.0", b'"8"', b"99999999", b"[8]"])
def test_an_odd_number_of_choices_makes_no_bill_smaller(odd: bytes) -> None:
    asked = b'{"model":"m","max_tokens":10,"n":' + odd + b"}"
    assert output_of(call(asked), Reply(seen=Seen(events=9, text_bytes=320)))[0] == 80


def test_what_was_asked_for_bounds_the_estimate_where_nothing_speaks_against_it() -> None:
    assert output_of(call(max_tokens=7), Reply(seen=Seen(events=3, text_bytes=100))) == (7, (1, 7))
    assert output_of(call(max_tokens=7, choices=2), Reply(seen=Seen(events=3, text_bytes=100)))[0] == 14


def test_attachments_are_within_the_bounds_of_the_input() -> None:
    pdf = (
        b'{"model":"m","messages":[{"type":"file","data":"data:application/pdf;base64,'
        + b"A" * 4000
        + b'"}]}'
    )
    usage = with_estimate(call(pdf), Reply(seen=Seen(events=1, text_bytes=4)), None).usage
    assert usage is not None
    assert usage.estimate is not None
    assert usage.counts["input"] < 100
    assert usage.estimate.bounds["input"][1] >= 4000


# usage of a part


def usage_chunk(output: int, *, text: bytes = b'"delta":{"content":"hello world"}') -> bytes:
    return (
        b'data: {"choices":[{"index":0,'
        + text
        + b'}],"usage":{"prompt_tokens":5,"completion_tokens":%d}}\n\n'
    ) % output


def chat_reply(*events: bytes, choices: int = 1) -> Reply:
    meter = CHAT.stream_meter(
        Request(model="m", stream=True, usage_requested=True, choices=choices), Dialect()
    )
    for event in events:
        meter.feed(event)
    return meter.finish().reply


FINISH = b'"delta":{},"finish_reason":"stop"'
ONLY_USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":1}}\n\n'
RUNNING = {
    "usage beside content": [TEXT, usage_chunk(1), usage_chunk(2)],
    "content behind the usage": [TEXT, ONLY_USAGE, TEXT * 40],
    "content behind a finish": [TEXT, usage_chunk(2, text=FINISH), TEXT * 3],
}


@pytest.mark.parametrize("name", RUNNING)
def test_usage_of_a_stream_that_was_cut_is_not_final_while_it_went_on(name: str) -> None:
    reply = chat_reply(*RUNNING[name])
    assert reply.usage is not None
    assert reply.usage.running
    assert not metered(call(), reply.usage)
    pieces = b"".join(RUNNING[name]).count(b"hello")
    units, (least, most) = output_of(call(), reply)
    assert units >= max(pieces, reply.usage.counts["output"])
    assert least >= reply.usage.counts["output"]
    assert most >= units
    settled = with_estimate(call(), reply, None)
    assert settled.usage is not None
    assert settled.usage.counts["input"] == 5
    assert bill_status(call(), INTERRUPTED, settled.usage, None) == "unpriced", (
        "metered, though only estimated"
    )


@pytest.mark.parametrize(
    "events",
    [
        [TEXT, ONLY_USAGE], [TEXT, usage_chunk(2, text=FINISH)], [TEXT, usage_chunk(1), b"data: [DONE]\n\n"],
        [TEXT, TEXT.replace(b'{"content":"hello world"}', b'{},"finish_reason":"stop"'), ONLY_USAGE],
    ],
    ids=["usage alone", "usage with the finish", "the end came", "finish, then usage"],
)  # fmt: skip
def test_usage_that_closes_a_stream_is_the_providers_figure_though_the_end_is_missing(
    events: list[bytes],
) -> None:
    usage = chat_reply(*events).usage
    assert usage is not None
    assert not usage.running
    assert metered(call(), usage)


def test_of_several_choices_one_finish_is_not_the_end() -> None:
    events = [TEXT, usage_chunk(2, text=FINISH)]
    first, both = chat_reply(*events, choices=2).usage, chat_reply(*events, events[1], choices=2).usage
    assert first is not None
    assert both is not None
    assert (first.running, both.running) == (True, False)


def test_a_running_count_is_the_least_there_was_though_nothing_of_it_was_seen() -> None:
    """Reasoning that is counted and not sent."""
    reply = Reply(usage=Usage(counts={"input": 5, "output": 700, "reasoning": 700}, running=True))
    assert output_of(call(max_tokens=50), reply) == (700, (700, 700))


@pytest.mark.parametrize(("stop", "more", "running"), [(True, 0, False), (True, 30, True), (False, 0, True)])
def test_usage_of_a_message_that_was_cut_is_final_only_at_its_stop(
    stop: bool, more: int, running: bool
) -> None:
    piece = (
        b"event: content_block_delta\n"
        b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"hello"}}\n\n'
    )
    delta = b'"stop_reason":"end_turn"' if stop else b""
    meter = MESSAGES.stream_meter(Request(model="m", stream=True), Dialect())
    meter.feed(
        b'event: message_start\ndata: {"type":"message_start","message":{"usage":{"input_tokens":3}}}\n\n'
        + piece * 2
        + b'event: message_delta\ndata: {"type":"message_delta","delta":{'
        + delta
        + b'},"usage":{"output_tokens":2}}\n\n'
        + piece * more
    )
    usage = meter.finish().reply.usage
    assert usage is not None
    assert usage.running is running


def test_a_running_usage_survives_the_journal() -> None:
    usage = Usage(counts={"input": 1, "output": 1}, running=True)
    assert msgspec.json.decode(msgspec.json.encode(usage), type=Usage) == usage


# the recordings


def judged(folder: Path) -> Iterator[tuple[dict[str, Any], Reply, Said | None]]:
    """Yield each recorded reply that has content and a reported output, its usage put aside."""
    for line in (folder / "index.jsonl").read_text().splitlines():
        row = json.loads(line)
        door = DOORS.get(row["api"])
        if door is None or row["status"] != 200:
            continue
        recording = json.loads((folder / row["file"]).read_text())
        tokens = recording["expected"].get("tokens") or {}
        if not recording["expected"]["billable"] or not tokens.get("output_total"):
            continue
        body = recording["response"]["body"].encode()
        if recording["response"]["framing"] == "sse":
            meter = door.stream_meter(Request(model="m", stream=True, usage_requested=True), Dialect())
            meter.feed(body)
            reply, said = meter.finish().reply, meter.said()
        else:
            reply, said = door.read_reply(200, body, Dialect()), door.said(body)
        if reply.seen is not None:
            yield tokens, msgspec.structs.replace(reply, usage=None), said


def no_tokenizer(text: str) -> None:
    return None


@pytest.mark.parametrize("name", [METHOD, TOKENIZER])
def test_the_bounds_contain_what_providers_counted_and_the_estimate_is_near_it(
    name: str, recordings: Path
) -> None:
    """The figures of docs/estimates.md; `-s` prints them."""
    count = no_tokenizer if name == METHOD else load()
    ratios: list[float] = []
    text: list[float] = []
    inside = hidden = estimated = summed = 0
    for tokens, reply, said in judged(recordings):
        usage = with_estimate(call(), reply, None, counted(said, TOKENIZER, count)).usage
        assert usage is not None
        assert usage.estimate is not None
        units, (least, most) = usage.counts["output"], usage.estimate.bounds["output"]
        told, reasoning = tokens["output_total"], tokens.get("reasoning", 0)
        estimated, summed = estimated + units, summed + told
        if reasoning and least <= told - reasoning <= most < told:
            hidden += 1  # reasoning that was counted and not sent
            continue
        inside += least <= told <= most
        ratios.append(units / told)
        if not reasoning and told >= 100 and "tool_calls" not in reply.output_summary:
            text.append(units / told)
    share = inside / len(ratios)
    lines = [
        f"{name}: bounds hold for {share:.1%}, {hidden} more hide reasoning; sums {estimated / summed:.2f}"
    ]
    for what, found in (("all", ratios), ("text of 100 tokens and more", text)):
        found.sort()
        parts = " ".join(f"p{part}0 {found[len(found) * part // 10]:.2f}" for part in (1, 5, 9))
        lines.append(f"{what}: {len(found)} replies, estimated/counted {parts}")
    print("\n".join(lines))  # noqa: T201  # the figures of the page
    assert len(ratios) > 1000
    assert len(text) > 150
    assert share > 0.99
    assert 0.85 < text[len(text) // 2] < 1.15
    assert 0.75 < ratios[len(ratios) // 2] < 1.25
    assert 0.6 < estimated / summed < 1.2
