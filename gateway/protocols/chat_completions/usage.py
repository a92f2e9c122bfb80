"""Usage of chat completions: input includes what was cached, output includes reasoning.

Where a provider's own arithmetic differs it is put right here: if the total proves that reasoning or audio
was counted apart (xAI, Mistral), or the provider's card says so (Vercel's gateway, Google's compatible door),
the whole is made to include it. Every choice is listed in `docs/usage.md`.
"""

from __future__ import annotations

from typing import Any, Final

from gateway.core.usage import Usage
from gateway.protocols.base import Dialect
from gateway.protocols.reading import Counts, reported_cost_usd, text

_CACHE_READ: Final = (
    "prompt_cache_hit_tokens",
    "cached_tokens",
    "num_cached_tokens",
    "cache_read_input_tokens",
)
_INPUT_MEDIA: Final = (
    ("audio_tokens", "input_audio"),
    ("image_tokens", "input_image"),
    ("video_tokens", "input_video"),
)
_OUTPUT_PARTS: Final = (
    ("reasoning_tokens", "reasoning"),
    ("audio_tokens", "output_audio"),
    ("image_tokens", "output_image"),
)
_TOOLS: Final = ("server_tool_use_details", "server_tool_use")
_BESIDE: Final = (
    ("num_search_queries", "web_search"),
    ("num_sources_used", "search_source"),
    ("citation_tokens", "citation"),
    ("request_count", "request"),
)


def read_usage(usage: object, dialect: Dialect, *, service_tier: object = None) -> Usage | None:
    """Return what one usage object reports, or None if it is no object or reports nothing."""
    if not isinstance(usage, dict):
        return None
    counts = Counts()
    counts.put("input", usage.get("prompt_tokens")) or counts.put("input", usage.get("input_tokens"))
    details = usage.get("prompt_tokens_details") or usage.get("prompt_token_details")
    _cached(counts, usage, details if isinstance(details, dict) else {})
    _output(counts, usage)
    _beside(counts, usage)
    if counts.values:
        _sum(counts, usage.get("total_tokens"), dialect)
        counts.parts_within_wholes()
    cost = reported_cost_usd(usage)
    if not counts.values and not counts.anomalies and cost is None:
        return None
    return Usage(
        counts=counts.values,
        anomalies=tuple(counts.anomalies),
        service_tier=text(service_tier) or text(usage.get("service_tier")),
        reported_cost_usd=cost,
        qualifiers=_qualifiers(counts, usage),
    )


def _cached(counts: Counts, usage: dict[str, Any], details: dict[str, Any]) -> None:
    """Take what was read from and written to a cache, under the names that providers give it, and media."""
    counts.put("cache_read", details.get("cached_tokens")) or counts.take("cache_read", usage, *_CACHE_READ)
    (
        counts.take("cache_write", details, "cache_write_tokens", "cache_creation_tokens")
        or counts.take("cache_write", usage, "cache_creation_input_tokens")
    )
    for key, name in (("cache_hit", "cache_read"), ("cache_write", "cache_write")):
        for place in (usage, details):
            if key in place and name not in counts.values:
                counts.literal(name, key, place[key])
    for key, name in _INPUT_MEDIA:
        if key in details:
            counts.put(name, details[key])


def _output(counts: Counts, usage: dict[str, Any]) -> None:
    counts.put("output", usage.get("completion_tokens")) or counts.put("output", usage.get("output_tokens"))
    details = usage.get("completion_tokens_details") or usage.get("completion_token_details")
    if isinstance(details, dict):
        for key, name in _OUTPUT_PARTS:
            if key in details:
                counts.put(name, details[key])
    if "reasoning_tokens" in usage and "reasoning" not in counts.values:
        counts.put("reasoning", usage["reasoning_tokens"])


def _beside(counts: Counts, usage: dict[str, Any]) -> None:
    """Take what is counted beside input and output: searches, sources, citations, seconds."""
    for key in _TOOLS:
        if key in usage:
            counts.take("web_search", usage[key], "web_search_requests")
    for key, name in _BESIDE:
        if key in usage and name not in counts.values:
            counts.put(name, usage[key])
    if "prompt_audio_seconds" in usage:
        counts.seconds("audio_second", usage["prompt_audio_seconds"])


def _sum(counts: Counts, total: object, dialect: Dialect) -> None:
    """Make the wholes include their parts where the total or the card says that they do not."""
    values = counts.values
    reasoning, hidden = values.get("reasoning"), _hidden(values, total)
    if reasoning and "output" in values and (hidden == reasoning or not dialect.reasoning_in_output):
        counts.add("output", reasoning)
        hidden = _hidden(values, total)
    audio = values.get("input_audio")
    if audio and hidden == audio:
        counts.add("input", audio)
        hidden = 0
    if hidden is not None and hidden > 0:
        counts.flag("total_exceeds_sum")
        if dialect.hidden_output:
            counts.add("output", hidden)
            values.setdefault("reasoning", hidden)


def _hidden(values: dict[str, int], total: object) -> int | None:
    """Return how much of the total is neither input nor output; None where one of the three is unknown."""
    if type(total) is not int or "input" not in values or "output" not in values:
        return None
    return total - values["input"] - values["output"]


def _qualifiers(counts: Counts, usage: dict[str, Any]) -> dict[str, str]:
    found = counts.said
    if "search_context_size" in usage and (size := text(usage["search_context_size"])):
        found["search_context_size"] = size  # Perplexity's fee per request depends on it
    if usage.get("is_byok") is True:
        found["is_byok"] = "true"  # OpenRouter charges a caller's own key nothing for tokens
    return found
