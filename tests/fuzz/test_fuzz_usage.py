"""Fuzzed usage: no count is made up, none that was reported is lost, and what is odd is said.

The oracle is a table of where each protocol may report what; it knows nothing of the mappers' order or sums.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import pytest

from gateway.core.usage import COUNT_MAX, Usage
from gateway.protocols.base import Dialect
from gateway.protocols.chat_completions.usage import read_usage as read_chat
from gateway.protocols.embeddings.usage import read_usage as read_embeddings
from gateway.protocols.messages.usage import merge
from gateway.protocols.messages.usage import read_usage as read_messages
from gateway.protocols.responses.usage import read_usage as read_response
from tests.fuzz.mutation import INPUTS, fuzz

Places = Mapping[str, tuple[str, ...]]

ODD: tuple[Any, ...] = (
    None, -1, -(10**400), 10**400, COUNT_MAX + 1, 1.5, Decimal("7"), Decimal("NaN"), Decimal("1E30"), "7", "",
    True, False, [], {}, [7], {"tokens": 7}, "\ud800", float("inf"),
)  # fmt: skip
CHAT: Places = {
    "input": ("prompt_tokens", "input_tokens"),
    "cache_read": (
        "prompt_tokens_details.cached_tokens", "prompt_cache_hit_tokens", "cached_tokens",
        "num_cached_tokens", "cache_read_input_tokens", "cache_hit", "prompt_tokens_details.cache_hit",
    ),
    "cache_write": (
        "prompt_tokens_details.cache_write_tokens", "prompt_tokens_details.cache_creation_tokens",
        "cache_creation_input_tokens", "cache_write", "prompt_tokens_details.cache_write",
    ),
    "input_audio": ("prompt_tokens_details.audio_tokens",),
    "input_image": ("prompt_tokens_details.image_tokens",),
    "input_video": ("prompt_tokens_details.video_tokens",),
    "web_search": ("server_tool_use_details.web_search_requests", "num_search_queries"),
    "search_source": ("num_sources_used",),
    "citation": ("citation_tokens",),
    "request": ("request_count",),
    "output": ("completion_tokens", "output_tokens"),
    "reasoning": ("completion_tokens_details.reasoning_tokens", "reasoning_tokens"),
    "output_audio": ("completion_tokens_details.audio_tokens",),
    "output_image": ("completion_tokens_details.image_tokens",),
}  # fmt: skip
MESSAGES: Places = {
    "input": ("input_tokens",),
    "cache_read": ("cache_read_input_tokens", "cache_hit"),
    "cache_write": ("cache_creation_input_tokens", "cache_write"),
    "cache_write_5m": ("cache_creation.ephemeral_5m_input_tokens",),
    "cache_write_1h": ("cache_creation.ephemeral_1h_input_tokens",),
    "output": ("output_tokens",),
    "reasoning": ("output_tokens_details.thinking_tokens",),
    "web_search": ("server_tool_use.web_search_requests",),
    "web_fetch": ("server_tool_use.web_fetch_requests",),
}
LITERAL = ("cache_hit", "cache_write")
"""What may be said with yes or no, without a number."""
RESPONSES: Places = {
    "input": ("input_tokens", "prompt_tokens"),
    "cache_read": ("input_tokens_details.cached_tokens", "cached_tokens", "cache_hit"),
    "cache_write": (
        "input_tokens_details.cache_write_tokens", "input_tokens_details.cache_creation_tokens",
        "cache_write",
    ),
    "input_audio": ("input_tokens_details.audio_tokens",),
    "input_image": ("input_tokens_details.image_tokens",),
    "output": ("output_tokens", "completion_tokens"),
    "reasoning": ("output_tokens_details.reasoning_tokens",),
    "output_audio": ("output_tokens_details.audio_tokens",),
    "output_image": ("output_tokens_details.image_tokens",),
    "web_search": ("server_side_tool_usage_details.web_search_calls",),
    "social_search": ("server_side_tool_usage_details.x_search_calls",),
    "code_interpreter": ("server_side_tool_usage_details.code_interpreter_calls",),
}  # fmt: skip
EMBEDDINGS: Places = {
    "input": ("prompt_tokens", "input_tokens", "total_tokens"),
    "output": ("completion_tokens",),
    "cache_read": ("prompt_tokens_details.cached_tokens",),
    "input_audio": ("prompt_tokens_details.audio_tokens",),
    "input_image": ("prompt_tokens_details.image_tokens",),
}
EXTRA = ("total_tokens", "cost", "iterations", "service_tier", "prompt_tokens_details", "cache_creation")


def random_usage(chance: random.Random, places: Places) -> dict[str, Any]:
    """Return a usage object: any member may be there, and any may be odd."""
    usage: dict[str, Any] = {}
    for path in [path for paths in places.values() for path in paths]:
        if chance.random() < 0.6:
            continue
        kind = chance.random()
        value = (
            chance.choice(ODD) if kind < 0.3 else chance.choice((0, 1, COUNT_MAX, chance.randrange(10**6)))
        )
        outer, _, inner = path.partition(".")
        if inner and isinstance(usage.setdefault(outer, {}), dict):
            usage[outer][inner] = value
        elif not inner:
            usage[outer] = value
    if chance.random() < 0.3:
        usage[chance.choice(EXTRA)] = chance.choice((*ODD, 5, [{"output_tokens": 5}, 3], {"total_cost": 1}))
    return usage


def reported(usage: Mapping[str, Any], path: str) -> Any:
    outer, _, inner = path.partition(".")
    value = usage.get(outer)
    return (value.get(inner) if isinstance(value, dict) else None) if inner else value


def said_only(usage: Mapping[str, Any], path: str) -> bool:
    return path.rpartition(".")[2] in LITERAL and isinstance(reported(usage, path), bool)


def usable(value: Any) -> bool:
    return type(value) is int and 0 <= value <= COUNT_MAX


def assert_told(
    usage: dict[str, Any], places: Places, found: Usage | None, sums: dict[str, set[int]]
) -> None:
    counts = {} if found is None else found.counts
    anomalies = () if found is None else found.anomalies
    for name, paths in places.items():
        values = [reported(usage, path) for path in paths if not said_only(usage, path)]
        said = {value for value in values if usable(value)}
        if not said:
            assert name not in counts, f"{name} was made up"
        elif name in counts:
            assert counts[name] in said | sums.get(name, set()), f"{name} is nobody's figure"
        else:
            assert name in sums, f"{name} was lost"
            assert f"{name}_unusable" in anomalies, f"{name} was lost without a word"
        first = next((value for value in values if value is not None), None)
        if first is not None and not usable(first) and not said:
            assert f"{name}_unusable" in anomalies, f"{name} was odd, and nobody says so"
    assert found is None or found.counts or found.anomalies or found.reported_cost_usd is not None
    assert all(usable(units) for units in counts.values())


def sums_of(usage: dict[str, Any], places: Places, whole: str, parts: tuple[str, ...]) -> dict[str, set[int]]:
    """Return what `whole` may be where the protocol counts parts apart from it: any sum of one each."""
    totals = {value for path in places[whole] if usable(value := reported(usage, path))}
    for part in parts:
        said = {value for path in places[part] if usable(value := reported(usage, path))}
        totals |= {total + units for total in totals for units in said}
    return {whole: totals}


def repaired(usage: dict[str, Any], places: Places) -> dict[str, set[int]]:
    """Return what a split may be: what is left of the writes beside the other half, or none."""
    written = {value for path in places["cache_write"] if usable(value := reported(usage, path))}
    long = {0, *[value for path in places["cache_write_1h"] if usable(value := reported(usage, path))]}
    short = {max(total - units, 0) for total in written for units in long}
    return {"cache_write_5m": short, "cache_write_1h": written}


def read_any_chat(chance: random.Random, usage: dict[str, Any]) -> Usage | None:
    return read_chat(usage, Dialect(reasoning_in_output=chance.random() < 0.5))


def read_merged(chance: random.Random, usage: dict[str, Any]) -> Usage | None:
    """Read it as a stream reports it: a start, and a delta that overrides member by member."""
    names = list(usage)
    start = {name: usage[name] for name in names if chance.random() < 0.5}
    delta = {name: value for name, value in usage.items() if name not in start}
    return read_messages(merge(start, {**delta, **dict.fromkeys(start)}))


def read_any_response(chance: random.Random, usage: dict[str, Any]) -> Usage | None:
    return read_response({"usage": usage}, {}, Dialect(reasoning_in_output=chance.random() < 0.5))


def read_embedded(chance: random.Random, usage: dict[str, Any]) -> Usage | None:
    return read_embeddings(usage, None)


@pytest.mark.parametrize(
    ("read", "places", "wholes"),
    [
        (read_any_chat, CHAT, {"output": ("reasoning",), "input": ("input_audio",)}),
        (read_merged, MESSAGES, {"input": ("cache_read", "cache_write")}),
        (read_any_response, RESPONSES, {"output": ("reasoning",)}),
        (read_embedded, EMBEDDINGS, {}),
    ],
    ids=["chat_completions", "messages", "responses", "embeddings"],
)
def test_no_count_is_made_up_and_none_is_lost(
    read: Callable[[random.Random, dict[str, Any]], Usage | None],
    places: Places,
    wholes: dict[str, tuple[str, ...]],
) -> None:
    with_counts = 0

    def check(chance: random.Random) -> None:
        nonlocal with_counts
        usage = random_usage(chance, places)
        found = read(chance, usage)
        with_counts += found is not None and len(found.counts) > 1
        sums = repaired(usage, places) if places is MESSAGES else {}
        for whole, parts in wholes.items():
            sums |= sums_of(usage, places, whole, parts)
        assert_told(usage, places, found, sums)

    assert fuzz(check) >= INPUTS
    assert with_counts > INPUTS / 4
