"""Usage of messages: Anthropic counts plain input apart from cache reads and writes; here input is their sum.

In a stream `message_delta` is cumulative and overrides `message_start`, member by member, where it is not
null. The output count of `message_start` is a placeholder and is never billed.
"""

from __future__ import annotations

from typing import Any

from gateway.core.usage import Usage
from gateway.protocols.reading import Counts, text


def read_usage(usage: object, *, placeholder_output: bool = False) -> Usage | None:
    """Return what a (merged) usage object reports, or None if it is no object or reports nothing.

    Args:
        placeholder_output: the output count comes from `message_start` alone: it is dropped and flagged.
    """
    if not isinstance(usage, dict):
        return None
    counts = Counts()
    values = counts.values
    plain = counts.take("input", usage, "input_tokens")
    counts.take("cache_read", usage, "cache_read_input_tokens", "cache_hit")
    counts.take("cache_write", usage, "cache_creation_input_tokens", "cache_write")
    split = usage.get("cache_creation")
    counts.take("cache_write_5m", split, "ephemeral_5m_input_tokens")
    counts.take("cache_write_1h", split, "ephemeral_1h_input_tokens")
    if plain:
        counts.add("input", values.get("cache_read", 0) + values.get("cache_write", 0))
    if placeholder_output:
        counts.flag("output_not_reported")
    else:
        counts.take("output", usage, "output_tokens")
        counts.take("reasoning", usage.get("output_tokens_details"), "thinking_tokens")
    parts = [values[name] for name in ("cache_write_5m", "cache_write_1h") if name in values]
    if parts and "cache_write" in values and sum(parts) != values["cache_write"]:
        counts.flag("cache_write_split_stale")
    if usage.get("iterations"):
        counts.flag(_iterations(usage["iterations"], usage))
    counts.parts_within_wholes()
    if not values and not counts.anomalies:
        return None
    return Usage(
        counts=values,
        anomalies=tuple(word for word in counts.anomalies if word),
        service_tier=text(usage.get("service_tier")),
    )


def _iterations(iterations: object, usage: dict[str, Any]) -> str:
    """Return an anomaly if the iterations hold tokens that the top level does not."""
    if not isinstance(iterations, list):
        return "iterations_unusable"
    output = 0
    for iteration in iterations:
        units = iteration.get("output_tokens") if isinstance(iteration, dict) else None
        if type(units) is not int:
            return "iterations_unusable"
        output += units
    inputs = sum(i["input_tokens"] for i in iterations if type(i.get("input_tokens")) is int)
    apart = output != usage.get("output_tokens") or inputs != usage.get("input_tokens")
    return "iterations_exceed_top_level" if apart else ""


def merge(start: dict[str, Any] | None, delta: dict[str, Any]) -> dict[str, Any]:
    """Return `start` overridden by what `delta` reports."""
    merged = dict(start or {})
    merged.update({key: value for key, value in delta.items() if value is not None})
    return merged
