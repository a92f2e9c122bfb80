"""Cards against recorded traffic: addresses, usage by the card's own facts, reported costs, errors of each.

`docs/providers.md` says how each card is proven; its table is held to what is counted here.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from gateway.cli.trial import words_of
from gateway.core.usage import Usage
from gateway.protocols import PROTOCOLS
from gateway.protocols.base import Dialect, Request
from gateway.providers.cards import Card, Origin, load_cards
from gateway.providers.places import Door, resolve
from tests.recorded import COUNTED, ROOT, body_of, expected_counts, recordings_of

PAGE: Final = (ROOT / "docs" / "providers.md").read_text(encoding="utf-8")
DOORS: Final = {
    "chat.completions": "chat_completions",
    "messages": "messages",
    "count_tokens": "count_tokens",
    "responses": "responses",
    "responses.compact": "responses_compact",
    "responses.input_tokens": "responses_input_tokens",
    "embeddings": "embeddings",
}
NAMES: Final = {"bedrock-openai": "bedrock"}
"""Recorded provider -> card, where they differ."""
DOCUMENTED_ONLY: Final = {"fireworks", "gemini", "vllm"}
"""Cards of which nothing was recorded at the card's door; Gemini's own protocol has no card."""
PROTOCOL_OF: Final = {protocol.name: protocol for protocol in PROTOCOLS.values()}


def recorded(folder: Path) -> Iterator[tuple[Card, str, str, dict[str, Any]]]:
    """Yield (card, door, file, recording) of each exchange that a card's door would have had."""
    cards = load_cards()
    for file, recording in recordings_of(folder, *DOORS):
        card = cards.get(NAMES.get(recording["provider"], recording["provider"]))
        door = DOORS[recording["api"]]
        if card is not None and door in card.doors:
            yield card, door, file, recording


def usage_of(card: Card, door: str, recording: dict[str, Any]) -> Usage | None:
    """Read a reply as it is read for the card."""
    place: Door = resolve(card, {}).doors[door]
    dialect = Dialect(
        reasoning_in_output=place.reasoning_in_output,
        hidden_output=place.hidden_output,
        stream_usage=place.stream_usage,
    )
    protocol, body = PROTOCOL_OF[door], body_of(recording)
    if recording["response"]["framing"] != "sse":
        return protocol.read_reply(recording["status"], body, dialect).usage
    meter = protocol.stream_meter(Request(model="m", stream=True, usage_requested=True), dialect)
    meter.feed(body)
    return meter.finish().reply.usage


@pytest.fixture(scope="module")
def counted(recordings: Path) -> dict[str, Counter[str]]:
    """Return what was recorded of each card: exchanges, those at its own address, costs."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    wrong: list[str] = []
    for card, door, file, recording in recorded(recordings):
        count = found[card.name]
        endpoint = Origin.of(card.base_url).endpoint(card.doors[door].path)
        path = recording.get("endpoint", "").partition("?")[0]
        count["all"] += 1
        count["addressed"] += (recording.get("host"), path) == (endpoint.host, endpoint.target.decode())
        count["same path"] += path == endpoint.target.decode()
        usage = usage_of(card, door, recording)
        counts = {} if usage is None else {k: v for k, v in usage.counts.items() if k in COUNTED}
        if counts != expected_counts(file, recording):
            wrong.append(f"{file}: {counts}")
        count["costs"] += usage is not None and usage.reported_cost_usd is not None
    assert not wrong, "\n".join(wrong)
    return found


def test_each_card_reads_its_own_recorded_usage(counted: dict[str, Counter[str]]) -> None:
    assert set(counted) == set(load_cards()) - DOCUMENTED_ONLY - {"simulated"}
    assert sum(count["all"] for count in counted.values()) > 1500


def test_recorded_calls_went_to_where_the_cards_lead(counted: dict[str, Counter[str]]) -> None:
    elsewhere = {name for name, count in counted.items() if count["same path"] == 0}
    assert elsewhere == set()
    for name in ("anthropic", "groq", "mistral", "openai", "xai"):
        # OpenAI: one was a question about usage.
        assert counted[name]["all"] - counted[name]["addressed"] <= (name == "openai"), name


def test_the_page_says_how_each_card_is_proven(counted: dict[str, Counter[str]]) -> None:
    rows = {row[0]: row[1] for row in re.findall(r"^\| `(\w+)` \|.*\| ([^|]+) \|$", PAGE, re.M)}
    assert set(rows) == set(load_cards())
    for name, proof in rows.items():
        if name == "azure":
            here = counted[name]["same path"]
            assert proof == f"{counted[name]['all']} recorded exchanges, {here} of them at this door"
        elif name in counted:
            assert proof.startswith(f"{counted[name]['all']} recorded exchanges"), (name, counted[name])
        else:
            assert "recorded exchanges" not in proof, name


def test_the_page_names_what_each_card_wants() -> None:
    table = PAGE.partition("## Try one")[0]
    rows = {row.split("`")[1]: row for row in table.splitlines() if row.startswith("| `")}
    for name, card in load_cards().items():
        for variable in resolve(card, {}).wants:
            assert f"`{variable}`" in rows[name], (name, variable)


def test_streams_tell_their_usage_as_the_cards_say(recordings: Path) -> None:
    """Unasked where a card says `always`; asked, at every provider that was recorded being asked."""
    told: dict[str, Counter[str]] = defaultdict(Counter)
    for card, door, _, recording in recorded(recordings):
        if door != "chat_completions" or recording["response"]["framing"] != "sse":
            continue
        request = recording["request"]["body"]
        options = request.get("stream_options") if isinstance(request, dict) else None
        if isinstance(request, str) and request:
            options = json.loads(request).get("stream_options")
        whole = "[DONE]" in recording["response"]["body"]
        if whole:
            asked = "asked" if options else "unasked"
            told[card.name][f"{asked}, {'told' if usage_of(card, door, recording) else 'silent'}"] += 1
    for name, count in told.items():
        assert count["asked, silent"] == 0, (name, count)
    always = {name for name, card in load_cards().items() if card.stream_usage == "always"} & set(told)
    assert always == {"mistral"}
    assert told["mistral"] == {"unasked, told": 20}
    assert told["azure"]["unasked, silent"] > 5  # so it must be asked


def test_costs_that_providers_report_are_kept_as_they_stand(counted: dict[str, Counter[str]]) -> None:
    costs = {name: count["costs"] for name, count in counted.items() if count["costs"]}
    assert costs["openrouter"] > 180
    assert costs["xai"] > 60
    assert set(costs) == {"openrouter", "xai", "azure", "huggingface"}


def test_each_recorded_error_is_free_and_says_why_in_any_envelope(recordings: Path) -> None:
    seen: Counter[str] = Counter()
    for card, door, file, recording in recorded(recordings):
        if recording["status"] < 400:
            continue
        body = body_of(recording)
        reply = PROTOCOL_OF[door].read_reply(recording["status"], body, Dialect())
        assert reply.usage is None, file
        assert bool(reply.error_type) == bool(body), file
        assert bool(words_of(body)) == bool(body), file
        seen[card.name] += 1
    assert set(seen) >= {"azure", "deepseek", "groq", "mistral", "ollama", "openrouter", "xai"}
