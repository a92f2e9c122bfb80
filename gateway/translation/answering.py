"""Answering: what a writer of replies must know of the request, and the counts that it tells.

Counts are the meter's own, so that the caller reads what the bill says: `input` is all input, cached
included. A count that nobody reported is left out where the caller's protocol lets it be.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """The request, as far as its answer depends on it.

    Args:
        model: the model that was asked of the provider, for replies that name none.
        at_unix_s: when; OpenAI's replies tell it.
        usage: a streaming chat client wants usage.
        freeform: names of free-form tools: their calls are told as such.
        echo: members of a responses request that its reply repeats.
    """

    model: str
    at_unix_s: int
    usage: bool = True
    freeform: frozenset[str] = frozenset()
    echo: dict[str, Any] = {}


def chat_usage(counts: Mapping[str, int]) -> dict[str, Any] | None:
    """Return usage in the words of chat completions, None where nothing is known."""
    usage: dict[str, Any] = {}
    _put(usage, "prompt_tokens", counts.get("input"))
    _put(usage, "completion_tokens", counts.get("output"))
    if "input" in counts and "output" in counts:
        usage["total_tokens"] = counts["input"] + counts["output"]
    _put_details(usage, "prompt_tokens_details", _cached(counts))
    _put_details(usage, "completion_tokens_details", _reasoned(counts))
    return usage or None


def responses_usage(counts: Mapping[str, int]) -> dict[str, Any] | None:
    """Return usage in the words of responses, None where neither side is known.

    Where there is a usage, clients read all of it: what nobody reported is 0.
    """
    if "input" not in counts and "output" not in counts:
        return None
    spent, made = counts.get("input", 0), counts.get("output", 0)
    return {
        "input_tokens": spent,
        "input_tokens_details": {"cached_tokens": 0, **_cached(counts)},
        "output_tokens": made,
        "output_tokens_details": {"reasoning_tokens": 0, **_reasoned(counts)},
        "total_tokens": spent + made,
    }


def messages_usage(counts: Mapping[str, int]) -> dict[str, Any]:
    """Return usage in the words of messages, where input excludes what was cached.

    Both sides must be numbers there: one that nobody reported is 0.
    """
    read, written = counts.get("cache_read"), counts.get("cache_write")
    plain = counts.get("input", 0) - (read or 0) - (written or 0)
    usage: dict[str, Any] = {"input_tokens": max(plain, 0)}
    _put(usage, "cache_creation_input_tokens", written)
    _put(usage, "cache_read_input_tokens", read)
    lifetimes = {
        f"ephemeral_{ttl}_input_tokens": counts[f"cache_write_{ttl}"]
        for ttl in ("5m", "1h")
        if f"cache_write_{ttl}" in counts
    }
    if len(lifetimes) == 2:
        usage["cache_creation"] = lifetimes
    usage["output_tokens"] = counts.get("output", 0)
    if "reasoning" in counts:
        usage["output_tokens_details"] = {"thinking_tokens": counts["reasoning"]}
    return usage


def _cached(counts: Mapping[str, int]) -> dict[str, int]:
    details: dict[str, int] = {}
    _put(details, "cached_tokens", counts.get("cache_read"))
    _put(details, "cache_write_tokens", counts.get("cache_write"))
    return details


def _reasoned(counts: Mapping[str, int]) -> dict[str, int]:
    details: dict[str, int] = {}
    _put(details, "reasoning_tokens", counts.get("reasoning"))
    return details


def _put(usage: dict[str, Any], name: str, value: int | None) -> None:
    if value is not None:
        usage[name] = value


def _put_details(usage: dict[str, Any], name: str, details: dict[str, int]) -> None:
    if details:
        usage[name] = details
