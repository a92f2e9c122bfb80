"""Real answers through the translator, whole and streamed: nothing said is lost, nothing is added."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import msgspec

from gateway.protocols import PROTOCOLS
from gateway.protocols.base import Dialect, Protocol, Request
from gateway.protocols.sse import events_in, payload_of
from gateway.translation.answering import Asked
from gateway.translation.languages import GRAMMARS
from gateway.translation.meaning import Answer, Language
from gateway.translation.streaming import collected
from gateway.translation.translated import Translated, TranslatedMeter, decoded
from tests.recorded import APART, body_of, recordings_of
from tests.translation.kept import kept_answer, merged

APIS: Final[dict[str, Language]] = {
    "chat.completions": "chat_completions",
    "messages": "messages",
    "responses": "responses",
}
DOORS: Final[dict[str, Protocol]] = {door.name: door for door in PROTOCOLS.values()}
ASKED: Final = Asked(model="m", at_unix_s=1_700_000_000)
REQUEST: Final = Request(model="m", stream=True)
TOLD: Final[dict[Language, tuple[str, ...]]] = {
    "chat_completions": ("input", "output", "cache_read", "cache_write", "reasoning"),
    "messages": (
        "input",
        "output",
        "cache_read",
        "cache_write",
        "cache_write_5m",
        "cache_write_1h",
        "reasoning",
    ),
    "responses": ("input", "output", "cache_read", "cache_write", "reasoning"),
}
"""Counts that a language can tell."""
PAGE: Final = (Path(__file__).resolve().parents[2] / "docs" / "translation.md").read_text(encoding="utf-8")
LOST: Final = PAGE.partition("### Left out of answers")[2].partition("## Streams")[0]


def exchanges(folder: Path, framing: str) -> Iterator[tuple[str, str, Language, bytes, int]]:
    for file, recording in recordings_of(folder, *APIS):
        if recording["response"]["framing"] == framing:
            status = recording.get("status") or 200
            yield file, recording["provider"], APIS[recording["api"]], body_of(recording), status


def dialect(provider: str) -> Dialect:
    return Dialect(reasoning_in_output=provider not in APART, stream_usage="always")


def told_counts(counts: dict[str, int], language: Language) -> dict[str, int]:
    """Return the counts that a caller must read, from those of the bill."""
    told = {name: counts[name] for name in TOLD[language] if name in counts}
    if language == "messages":
        if not {"cache_write_5m", "cache_write_1h"} <= told.keys():
            told = {name: units for name, units in told.items() if not name.startswith("cache_write_")}
        cached = told.get("cache_read", 0) + told.get("cache_write", 0)
        told["input"] = max(told.get("input", 0), cached)  # numbers there, and no negative ones
        told.setdefault("output", 0)
    if language == "responses" and told:
        told = {**dict.fromkeys(("input", "output", "cache_read", "reasoning"), 0), **told}  # all are needed
    return told


def read_counts(target: Language, body: bytes) -> dict[str, int]:
    usage = DOORS[target].read_reply(200, body, Dialect()).usage
    return {} if usage is None else dict(usage.counts)


def translated(source: Language, target: Language) -> Translated:
    return Translated(DOORS[target], DOORS[source], b"", ASKED)


def test_a_recorded_answer_says_the_same_in_another_language(recordings: Path) -> None:
    seen: Counter[tuple[str, str]] = Counter()
    refused = 0
    for file, provider, source, body, status in exchanges(recordings, "json"):
        reply = DOORS[source].read_reply(status, body, dialect(provider))
        counts = {} if reply.usage is None else reply.usage.counts
        for target, grammar in GRAMMARS.items():
            if target == source:
                continue
            shown, told = translated(source, target).relayed(status, body, reply, streamed=False)
            if status >= 400 or reply.error_type is not None:
                assert shown == (status if status >= 400 else 502), file
                failure = grammar.read_failure(json.loads(told))
                assert failure is not None
                assert failure.message, file
                refused += 1
                continue
            assert shown == 200, file
            wanted = kept_answer(GRAMMARS[source].read_answer(decoded(body)), target)
            back = grammar.read_answer(json.loads(told))
            assert said(back) == said(wanted), (file, target)
            assert read_counts(target, told) == told_counts(counts, target), (file, target)
            seen[source, target] += 1
    assert len(seen) == 6
    assert sum(seen.values()) > 2000
    assert refused > 50


CARRIED: Final[dict[Language, dict[str, frozenset[str]]]] = {
    "chat_completions": {
        "reply": frozenset({"id", "object", "created", "model", "choices", "usage", "error"}),
        "choice": frozenset({"index", "message", "finish_reason"}),
        "message": frozenset(
            {"role", "content", "refusal", "tool_calls", "function_call"}
            | {"reasoning_content", "reasoning", "reasoning_details"}
        ),
        "call": frozenset({"id", "index", "type", "function", "custom"}),
    },
    "messages": {
        "reply": frozenset(
            {"id", "type", "role", "model", "content", "stop_reason", "stop_sequence", "usage"}
        ),
        "block": frozenset({"type", "text", "thinking", "signature", "data", "id", "name", "input"}),
        "kind": frozenset({"text", "thinking", "redacted_thinking", "tool_use"}),
    },
    "responses": {
        "reply": frozenset(
            {
                "id",
                "object",
                "created_at",
                "model",
                "output",
                "status",
                "incomplete_details",
                "usage",
                "error",
            }
        ),
        "item": frozenset(
            {"type", "id", "status", "role", "content", "summary", "encrypted_content"}
            | {"call_id", "name", "arguments", "input"}
        ),
        "part": frozenset({"type", "text", "refusal"}),
        "kind": frozenset({"message", "function_call", "custom_tool_call", "reasoning"}),
    },
}
"""What of a reply is carried over; the page names everything else that was ever recorded."""


def members_of(language: Language, value: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (where, name) of each member that says something, and the kinds of parts."""
    yield from (("reply", name) for name in _saying(value))
    if language == "chat_completions":
        for choice in value.get("choices") or ():
            yield from (("choice", name) for name in _saying(choice))
            message = choice.get("message") or {}
            yield from (("message", name) for name in _saying(message))
            for call in message.get("tool_calls") or ():
                yield from (("call", name) for name in _saying(call))
        return
    inner, where = ("content", "block") if language == "messages" else ("output", "item")
    for part in value.get(inner) or ():
        yield "kind", part["type"]
        if part["type"] in CARRIED[language]["kind"]:
            yield from ((where, name) for name in _saying(part))
            if language == "responses" and isinstance(part.get("content"), list):
                yield from (("part", name) for one in part["content"] for name in _saying(one))


def _saying(value: dict[str, Any]) -> list[str]:
    return [name for name, said in value.items() if said not in (None, "", [], {})]


def test_what_an_answer_loses_is_named_on_the_page(recordings: Path) -> None:
    lost = set()
    for file, _, source, body, status in exchanges(recordings, "json"):
        if status < 400:
            for where, name in members_of(source, decoded(body)):
                if name not in CARRIED[source].get(where, ()):
                    lost.add((source, where, name))
                    assert re.search(rf"`(?:[\w.\[\]]+\.)?{re.escape(name)}`", LOST), (file, where, name)
    assert len(lost) > 60


def said(answer: Answer) -> Answer:
    """Return an answer as it is compared: ids and models that are missing get a stand-in when written."""
    return msgspec.structs.replace(merged(answer), id=None, model=None)


def stream(source: Language, target: Language, provider: str, pieces: list[bytes]) -> tuple[bytes, Any]:
    meter = TranslatedMeter(
        DOORS[source].stream_meter(msgspec.structs.replace(REQUEST, usage_requested=True), dialect(provider)),
        GRAMMARS[source].reader(),
        GRAMMARS[target].writer(ASKED),
        DOORS[target],
    )
    out = b"".join([meter.feed(piece) for piece in pieces])
    tail = meter.finish()
    return out + tail.held, tail.reply


def events(data: bytes) -> list[dict[str, Any]]:
    payloads = [payload_of(event) for event in events_in(data)]
    return [decoded(payload) for payload in payloads if payload and payload != b"[DONE]"]


def read_stream(language: Language, data: bytes) -> Answer:
    reader = GRAMMARS[language].reader()
    meant = [event for value in events(data) for event in reader.read(value)]
    return collected([*meant, *reader.finish()])


def test_a_recorded_stream_says_the_same_in_another_language_wherever_it_is_cut(recordings: Path) -> None:
    seen: Counter[tuple[str, str]] = Counter()
    broken = 0
    for file, provider, source, body, _ in exchanges(recordings, "sse"):
        for target in GRAMMARS:
            if target == source:
                continue
            out, reply = stream(source, target, provider, [body])
            chance = random.Random(file)
            for _ in range(2):
                edges = sorted({0, len(body), *[chance.randrange(len(body)) for _ in range(20)]})
                pieces = [body[a:b] for a, b in pairwise(edges)]
                assert stream(source, target, provider, pieces)[0] == out, file
            _well_formed(target, out, file)
            meter = DOORS[target].stream_meter(
                msgspec.structs.replace(REQUEST, usage_requested=True), Dialect()
            )
            meter.feed(out)
            read = meter.finish().reply
            if reply.error_type is not None or not reply.complete:
                assert not read.complete or read.error_type, file
                broken += 1
                continue
            assert read.complete, (file, target)
            counts = {} if reply.usage is None else reply.usage.counts
            assert dict(read.usage.counts if read.usage else {}) == told_counts(counts, target), (
                file,
                target,
            )
            wanted = kept_answer(read_stream(source, body), target)
            # A chat stream tells parts in the order in which they came; a whole message has none of them.
            assert said(kept_answer(read_stream(target, out), target)) == said(wanted), (file, target)
            seen[source, target] += 1
    assert len(seen) == 6
    assert sum(seen.values()) > 1100
    assert broken > 5


def _well_formed(target: Language, out: bytes, file: str) -> None:
    """Hold the events against the order that the target's protocol documents."""
    told = events(out)
    if target == "messages":
        _messages_order([event["type"] for event in told], told, file)
    elif target == "responses":
        numbered = [event["sequence_number"] for event in told if event["type"] != "error"]
        assert numbered == list(range(len(numbered))), file
        kinds = [event["type"] for event in told if event["type"] != "error"]
        assert kinds[:2] == ["response.created", "response.in_progress"] or not kinds, file
        added = [event["output_index"] for event in told if event["type"] == "response.output_item.added"]
        assert added == list(range(len(added))), file
        done = [event["item"] for event in told if event["type"] == "response.output_item.done"]
        last = told[-1] if told else {}
        if last.get("type") in ("response.completed", "response.incomplete"):
            assert last["response"]["output"] == done, file
    else:
        chunks = [event for event in told if "error" not in event]
        assert all(event["object"] == "chat.completion.chunk" for event in chunks), file
        reasons = [c["finish_reason"] for event in chunks for c in event["choices"] if c["finish_reason"]]
        assert len(reasons) <= 1, file
        calls = [
            call for event in chunks for c in event["choices"] for call in c["delta"].get("tool_calls", ())
        ]
        begun = [call["index"] for call in calls if "id" in call]
        assert begun == list(range(len(begun))), file


def _messages_order(kinds: list[str], told: list[dict[str, Any]], file: str) -> None:
    opened: int | None = None
    blocks = 0
    for at, event in enumerate(told):
        match event["type"]:
            case "message_start":
                assert at == 0, file
            case "content_block_start":
                assert opened is None, file
                assert event["index"] == blocks, file
                opened = blocks
                blocks += 1
            case "content_block_delta":
                assert event["index"] == opened, file
            case "content_block_stop":
                assert event["index"] == opened, file
                opened = None
            case "message_delta":
                assert opened is None, file
                assert kinds[at + 1 :] == ["message_stop"], file
            case "message_stop":
                assert at == len(told) - 1, file
            case kind:
                assert kind == "error", file
