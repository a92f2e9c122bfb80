"""Usage of embeddings: input only; every choice is listed in `docs/doors.md`."""

from __future__ import annotations

from gateway.core.usage import Usage
from gateway.protocols.reading import Counts, reported_cost_usd, text


def read_usage(usage: object, meta: object) -> Usage | None:
    """Return what a reply reports, or None if it reports nothing.

    Args:
        usage: OpenAI's and most others' object. A total alone (Voyage) is the input: there is nothing else.
        meta: where Cohere says what it billed.
    """
    counts = Counts()
    billed = meta.get("billed_units") if isinstance(meta, dict) else None
    if isinstance(usage, dict):
        counts.take("input", usage, "prompt_tokens", "input_tokens", "total_tokens")
        counts.take("output", usage, "completion_tokens")
        details = usage.get("prompt_tokens_details")
        counts.take("cache_read", details, "cached_tokens")
        counts.take("input_audio", details, "audio_tokens")
        counts.take("input_image", details, "image_tokens")
    elif isinstance(billed, dict):
        counts.take("input", billed, "input_tokens")
        counts.take("input_image", billed, "image_tokens")
    counts.parts_within_wholes()
    if not counts.values and not counts.anomalies:
        return None
    return Usage(
        counts=counts.values,
        anomalies=tuple(counts.anomalies),
        service_tier=text(usage.get("service_tier")) if isinstance(usage, dict) else None,
        reported_cost_usd=reported_cost_usd(usage) if isinstance(usage, dict) else None,
    )
