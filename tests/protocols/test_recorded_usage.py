"""Every recorded exchange of every provider: tokens as reported, exceptions only by a named choice."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from gateway.core.usage import Usage
from gateway.protocols import PROTOCOLS
from gateway.protocols.base import Dialect, Request
from gateway.protocols.native import NativeMeter, read_batch, read_usage
from gateway.protocols.reading import decode
from tests.recorded import (
    AMBIGUOUS,
    APART,
    CHOSEN,
    COUNTED,
    body_of,
    choice_of,
    documented,
    expected_counts,
    recordings_of,
)

DOORS = {
    "chat.completions": "/v1/chat/completions",
    "messages": "/v1/messages",
    "count_tokens": "/v1/messages/count_tokens",
    "responses": "/v1/responses",
    "responses.get": "/v1/responses",
    "responses.compact": "/v1/responses/compact",
    "responses.input_tokens": "/v1/responses/input_tokens",
    "embeddings": "/v1/embeddings",
}
NATIVE = {
    "generateContent": "generate_content",
    "streamGenerateContent": "generate_content",
    "embedContent": "embed_content",
    "interactions": "interactions",
    "predict": "predict",
    "converse": "converse",
    "converse-stream": "converse",
    "invoke": "invoke",
    "invoke-stream": "invoke",
    "cohere.chat": "cohere",
    "generate": "cohere",
    "ollama.chat": "ollama",
    "ollama.generate": "ollama",
    "completions": "completions",
    "audio": "audio",
    "images": "images",
    "ocr": "ocr",
    "rerank": "rerank",
}
NO_USAGE = {"batches", "complete", "models", "moderations", "countTokens", "bedrock.count-tokens"}
"""APIs of which no recorded reply has usage of its own; what a batch holds has a test of its own."""
MEDIA_TYPE = {
    "sse": "text/event-stream",
    "ndjson": "application/x-ndjson",
    "json-array-stream": "application/json",
    "aws-eventstream": "application/vnd.amazon.eventstream",
}


def native_of(file: str, api: str) -> str | None:
    return "cohere" if file.startswith("cohere/embeddings") else NATIVE.get(api)


def door_of(file: str, api: str) -> Any:
    return None if native_of(file, api) else PROTOCOLS.get(DOORS.get(api, ""))


def usage_of(file: str, recording: dict[str, Any], pieces: list[bytes]) -> Usage | None:
    """Read the reply in these pieces, by the door or the native reader of its API."""
    framing, headers = recording["response"]["framing"], recording["response"]["headers"]
    name = native_of(file, recording["api"])
    dialect = Dialect(reasoning_in_output=recording["provider"] not in APART, stream_usage="always")
    if name is not None:
        if framing not in MEDIA_TYPE or recording["status"] >= 400:
            return read_usage(name, recording["status"], b"".join(pieces), headers, dialect)
        native = NativeMeter(name, MEDIA_TYPE[framing], headers, dialect)
        for piece in pieces:
            native.feed(piece)
        return native.finish()
    door = PROTOCOLS[DOORS[recording["api"]]]
    if framing != "sse":
        return door.read_reply(recording["status"], b"".join(pieces), dialect).usage
    meter = door.stream_meter(Request(model="m", stream=True, usage_requested=True), dialect)
    for piece in pieces:
        meter.feed(piece)
    return meter.finish().reply.usage


def counts_of(usage: Usage | None) -> dict[str, int]:
    """Return the counts that the recordings tell as well."""
    return {} if usage is None else {k: units for k, units in usage.counts.items() if k in COUNTED}


def readable(file: str, api: str) -> bool:
    return native_of(file, api) is not None or door_of(file, api) is not None


def test_tokens_equal_what_every_provider_reported(
    recordings: Path, record_testsuite_property: Callable[[str, object], None]
) -> None:
    """`pytest --junit-xml` says how many exchanges of which provider and API were compared."""
    wrong: list[str] = []
    compared: Counter[str] = Counter()
    for file, recording in recordings_of(recordings):
        if not readable(file, recording["api"]):
            continue
        found = counts_of(usage_of(file, recording, [body_of(recording)]))
        expected = expected_counts(file, recording)
        if found != expected:
            wrong.append(f"{file}: {found} instead of {expected}")
        compared[f"{recording['provider']}/{recording['api']}"] += 1
    assert not wrong, "\n".join(wrong)
    for name, count in sorted(compared.items()):
        record_testsuite_property(name, count)
    assert sum(compared.values()) > 2000
    assert len(compared) > 50


def test_no_api_with_recorded_usage_lacks_a_reader(recordings: Path) -> None:
    unread: set[str] = set()
    for file, recording in recordings_of(recordings):
        if not readable(file, recording["api"]) and recording["api"] in NO_USAGE:
            assert not expected_counts(file, recording), file
        elif not readable(file, recording["api"]):
            unread.add(recording["api"])
    assert unread <= {api for api, path in DOORS.items() if path not in PROTOCOLS}, unread


def test_every_exception_and_every_ambiguity_has_its_choice_in_the_docs(recordings: Path) -> None:
    settled: Counter[str] = Counter()
    exceptions: set[str] = set()
    for file, recording in recordings_of(recordings):
        expected = recording["expected"]
        for ambiguity in expected.get("ambiguous") or ():
            choice = choice_of(ambiguity)
            assert choice, f"{file}: {ambiguity}"
            assert documented(choice), choice
            settled[choice] += 1
        if file in CHOSEN:
            choice, counts = CHOSEN[file]
            assert documented(choice), choice
            reported = {} if expected.get("tokens") is None else expected["tokens"]
            names = {"input": "input_total", "output": "output_total"}
            assert any(reported.get(names.get(k, k)) != units for k, units in counts.items()), file
            exceptions.add(file)
    assert exceptions == set(CHOSEN)
    assert set(settled) == {choice for _, choice in AMBIGUOUS}
    assert sum(settled.values()) > 200


def test_cutting_a_stream_anywhere_changes_nothing(recordings: Path) -> None:
    """Small streams at every byte, all streams at random; doors have a test of their own for the bytes."""
    streams = every = 0
    for file, recording in recordings_of(recordings, *NATIVE):
        if recording["response"]["framing"] not in MEDIA_TYPE or recording["status"] >= 400:
            continue
        body, chance = body_of(recording), random.Random(file)
        whole = usage_of(file, recording, [body])
        cuttings = [sorted(chance.sample(range(1, len(body)), min(20, len(body) - 1))) for _ in range(2)]
        if len(body) < 1500:
            cuttings += [[at] for at in range(1, len(body))]
            cuttings.append(list(range(1, len(body))))
            every += 1
        for cuts in cuttings:
            pieces = [body[a:b] for a, b in pairwise([0, *cuts, len(body)])]
            assert usage_of(file, recording, pieces) == whole, (file, cuts)
        streams += 1
    assert streams > 200
    assert every > 20


def test_a_provider_s_own_cost_is_read_without_rounding(recordings: Path) -> None:
    seen = 0
    for file, recording in recordings_of(recordings):
        cost = recording["expected"].get("provider_cost")
        if cost is None or not readable(file, recording["api"]):
            continue
        usage = usage_of(file, recording, [body_of(recording)])
        assert usage is not None, file
        assert usage.reported_cost_usd is not None, file
        assert Decimal(usage.reported_cost_usd) == Decimal(repr(cost["amount"])), file
        seen += 1
    assert seen > 240


def test_iterations_and_earlier_messages_are_charged_beside_the_top_level(recordings: Path) -> None:
    """GOTCHAS 2 to 5: the compaction, the adviser's model, the model that declined, the earlier message."""
    cases = {
        "anthropic/messages/3639110973de.json": [("claude-opus-4-6", "compaction", 60385, 592)],
        "anthropic/messages/97afadb562ea.json": [("claude-opus-4-7", "advisor_message", 2728, 3880)],
        "anthropic/messages/5a33dc3b2b33.json": [],
        "anthropic/messages/3de6311581bd.json": [
            ("claude-sonnet-4-5-20250929", "earlier_message", 3369, 725)
        ],
        "anthropic/messages/948994f21fb8.json": [
            ("claude-sonnet-4-5-20250929", "earlier_message", 1681, 163)
        ],
    }
    words = {
        "anthropic/messages/5a33dc3b2b33.json": ("declined_attempt_free",),
        "anthropic/messages/3de6311581bd.json": ("second_message_start",),
        "anthropic/messages/948994f21fb8.json": ("second_message_start",),
    }
    found = 0
    for file, recording in recordings_of(recordings, "messages"):
        usage = usage_of(file, recording, [body_of(recording)])
        if file not in cases:
            body = recording["response"]["body"]
            several = "iterations" in body or body.count("event: message_start") > 1
            assert usage is None or not usage.others or several, file
            continue
        assert usage is not None
        others = [(o.model, o.reason, o.counts["input"], o.counts["output"]) for o in usage.others]
        assert others == cases[file], file
        assert usage.anomalies == words.get(file, ()), file
        found += 1
    assert found == len(cases)


def test_items_of_a_batch_are_replies_of_their_own_at_the_batch_tier(recordings: Path) -> None:
    items: list[tuple[str, str | None, str | None, int, int]] = []
    for file, recording in recordings_of(recordings, "batches"):
        values = [decode(line) for line in body_of(recording).splitlines()]
        if not all(isinstance(value, dict) for value in values):
            values = [decode(body_of(recording))]
        for value in values:
            for item in read_batch(value, Dialect()):
                assert item.usage.service_tier == "batch"
                counts = item.usage.counts
                items.append((file.split("/")[0], item.id, item.model, counts["input"], counts["output"]))
    assert items == [
        ("anthropic", "0", "claude-haiku-4-5-20251001", 20, 5),
        ("anthropic", "1", "claude-haiku-4-5-20251001", 19, 4),
        ("gemini", "0", "gemini-2.5-flash", 13, 44),
        ("gemini", "1", "gemini-2.5-flash", 13, 54),
    ]


@pytest.mark.parametrize("name", sorted(set(NATIVE.values())))
def test_an_empty_or_broken_body_has_no_usage(name: str) -> None:
    assert read_usage(name, 200, b"{}", {}, Dialect()) is None
    assert read_usage(name, 200, b"\xff", {}, Dialect()) is None
