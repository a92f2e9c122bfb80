"""Tokens of one Anthropic usage object, top level or iteration: the same words mean the same in both."""

from __future__ import annotations

from typing import Any

from gateway.protocols.reading import Counts


def take_tokens(counts: Counts, usage: dict[str, Any]) -> None:
    """Take the token counts of `usage`; a stale 5-minute / 1-hour split is repaired and flagged."""
    values = counts.values
    plain = counts.put("input", usage.get("input_tokens"))
    if not counts.put("cache_read", usage.get("cache_read_input_tokens")) and "cache_hit" in usage:
        counts.literal("cache_read", "cache_hit", usage["cache_hit"])
    if not counts.put("cache_write", usage.get("cache_creation_input_tokens")) and "cache_write" in usage:
        counts.literal("cache_write", "cache_write", usage["cache_write"])
    split = usage.get("cache_creation")
    if isinstance(split, dict):
        counts.put("cache_write_5m", split.get("ephemeral_5m_input_tokens"))
        counts.put("cache_write_1h", split.get("ephemeral_1h_input_tokens"))
        repair_split(counts)
    if plain:
        counts.add("input", values.get("cache_read", 0) + values.get("cache_write", 0))
    counts.put("output", usage.get("output_tokens"))
    details = usage.get("output_tokens_details")
    if isinstance(details, dict):
        counts.put("reasoning", details.get("thinking_tokens"))


def repair_split(counts: Counts) -> None:
    """Make the 5-minute and 1-hour writes sum to all writes, which are the newer count.

    A stream's `message_delta` raises the writes and leaves the split as it was at the start. What is missing
    was written for 5 minutes, the lifetime that needs no asking; what is too much was not.
    """
    values = counts.values
    written, short, long = (
        values.get("cache_write"),
        values.get("cache_write_5m"),
        values.get("cache_write_1h"),
    )
    if written is None or (short is None and long is None):
        return
    if (short or 0) + (long or 0) == written:
        return
    counts.flag("cache_write_split_stale")
    if long is not None and long > written:
        long = values["cache_write_1h"] = written
    if short is not None:
        values["cache_write_5m"] = written - (long or 0)
