"""Usage of chat completions: input includes what was cached, output includes reasoning.

Where a provider's own arithmetic differs it is put right here: if the total proves that completion and
reasoning tokens were counted apart (xAI), or the provider's card says so (Vercel's gateway), output is
their sum. Every choice is listed in `docs/usage-choices.md`.
"""

from __future__ import annotations

from typing import Any

from gateway.core.usage import Usage
from gateway.protocols.base import Dialect
from gateway.protocols.reading import Counts, reported_cost_usd, text


def read_usage(usage: object, dialect: Dialect, *, service_tier: object = None) -> Usage | None:
    """Return what one usage object reports, or None if it is no object or reports nothing."""
    if not isinstance(usage, dict):
        return None
    counts = Counts()
    counts.take("input", usage, "prompt_tokens", "input_tokens")
    details = usage.get("prompt_tokens_details")
    (
        counts.take("cache_read", details, "cached_tokens")
        or counts.take(
            "cache_read", usage, "prompt_cache_hit_tokens", "cached_tokens", "num_cached_tokens", "cache_hit"
        )
    )
    (
        counts.take("cache_write", details, "cache_write_tokens", "cache_creation_tokens")
        or counts.take("cache_write", usage, "cache_creation_input_tokens", "cache_write")
    )
    counts.take("input_audio", details, "audio_tokens")
    counts.take("input_image", details, "image_tokens")
    _output(counts, usage, dialect)
    counts.parts_within_wholes()
    if not counts.values and not counts.anomalies:
        return None
    return Usage(
        counts=counts.values,
        anomalies=tuple(counts.anomalies),
        service_tier=text(service_tier),
        reported_cost_usd=reported_cost_usd(usage),
    )


def _output(counts: Counts, usage: dict[str, Any], dialect: Dialect) -> None:
    found = counts.take("output", usage, "completion_tokens", "output_tokens")
    details = usage.get("completion_tokens_details")
    counts.take("reasoning", details, "reasoning_tokens") or counts.take(
        "reasoning", usage, "reasoning_tokens"
    )
    counts.take("output_audio", details, "audio_tokens")
    counts.take("output_image", details, "image_tokens")
    reasoning = counts.values.get("reasoning")
    total = usage.get("total_tokens")
    if not found:
        return
    known_total = total if type(total) is int and "input" in counts.values else None
    if reasoning:
        apart = known_total == counts.values.get("input", 0) + counts.values["output"] + reasoning
        if apart or not dialect.reasoning_in_output:
            counts.add("output", reasoning)
    parts = counts.values.get("input", 0) + counts.values.get("output", 0)
    if known_total is not None and "output" in counts.values and known_total > parts:
        counts.flag("total_exceeds_sum")
