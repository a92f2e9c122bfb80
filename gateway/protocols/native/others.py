"""Usage of the smaller native bodies: Cohere, Ollama, legacy completions, audio, images, pages, reranking.

Cohere counts twice: `tokens` is what went through the model, `billed_units` is what money follows, and so do
we.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.core.usage import Usage
from gateway.protocols.base import Dialect
from gateway.protocols.chat_completions.reply import usage_of
from gateway.protocols.reading import Counts, reported_cost_usd


class Cohere:
    """Folds a Cohere body or stream, v1 and v2; Writer speaks OpenAI's usage at the same path."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._usage: Usage | None = None

    def take(self, event: dict[str, Any]) -> None:
        """Take the body or one event."""
        for holder in (event, event.get("delta"), event.get("response")):
            for key in ("usage", "meta"):
                said = holder.get(key) if isinstance(holder, dict) else None
                if not isinstance(said, dict):
                    continue
                if "billed_units" in said or isinstance(said.get("tokens"), dict):
                    self._usage = _read_cohere(said) or self._usage
                elif key == "usage":
                    self._usage = usage_of(like_chat(event), self._dialect) or self._usage

    def usage(self) -> Usage | None:
        """Return the usage so far."""
        return self._usage


def _read_cohere(said: dict[str, Any]) -> Usage | None:
    counts = Counts()
    billed, tokens = said.get("billed_units"), said.get("tokens")
    tokens = tokens if isinstance(tokens, dict) else {}
    if not isinstance(billed, dict):
        billed = tokens
        counts.flag("billed_units_absent")
    counts.whole("input", billed.get("input_tokens"))
    counts.whole("output", billed.get("output_tokens"))
    counts.whole("input_image", billed.get("image_tokens"))
    counts.whole("rerank_search", billed.get("search_units"))
    counts.whole("reasoning", tokens.get("reasoning_tokens"))
    counts.whole("cache_read", said.get("cached_tokens"))
    counts.parts_within_wholes()
    return counts.usage() if counts.values else None


class Ollama:
    """Folds Ollama's chat and generate; the last line has the counts, and none for a prompt it had cached."""

    def __init__(self) -> None:
        self._counts = Counts()

    def take(self, event: dict[str, Any]) -> None:
        """Take the body or one line."""
        self._counts.put("input", event.get("prompt_eval_count"))
        self._counts.put("output", event.get("eval_count"))

    def usage(self) -> Usage | None:
        """Return the usage so far."""
        return self._counts.usage()


class OpenAiLike:
    """Folds what carries OpenAI's usage object beside chat: completions, transcriptions, images.

    Args:
        pieces: the list whose items are images made, None where there is none.
    """

    def __init__(self, dialect: Dialect, *, pieces: str | None = None) -> None:
        self._dialect = dialect
        self._pieces = pieces
        self._images: int | None = None
        self._tier: object = None
        self._usage: Usage | None = None

    def take(self, event: dict[str, Any]) -> None:
        """Take the body or one event; the last usage wins."""
        self._tier = event.get("service_tier") or self._tier
        event = like_chat({**event, "service_tier": self._tier})
        self._usage = usage_of(event, self._dialect) or self._usage
        made = event.get(self._pieces) if self._pieces else None
        if isinstance(made, list):
            self._images = len(made)

    def usage(self) -> Usage | None:
        """Return the usage so far."""
        if self._images is None:
            return self._usage
        if self._usage is None:
            return Usage(counts={"image": self._images})
        return msgspec.structs.replace(self._usage, counts={**self._usage.counts, "image": self._images})


def like_chat(event: dict[str, Any]) -> dict[str, Any]:
    """Return the event with its usage under the names of chat completions; seconds and all else stay."""
    usage = event.get("usage")
    if not isinstance(usage, dict):
        return event
    said = dict(usage)
    for ours, theirs in (
        ("prompt_tokens_details", ("input_tokens_details", "input_token_details")),
        ("completion_tokens_details", ("output_tokens_details", "output_token_details")),
    ):
        for name in theirs:
            if said.get(ours) is None and isinstance(said.get(name), dict):
                said[ours] = said[name]
    if said.get("prompt_audio_seconds") is None and "seconds" in said:
        said["prompt_audio_seconds"] = said["seconds"]
    return {**event, "usage": said}


class Pages:
    """Reads Mistral's OCR, which is charged by the page."""

    def __init__(self) -> None:
        self._counts = Counts()

    def take(self, event: dict[str, Any]) -> None:
        """Take the body."""
        said = event.get("usage_info")
        if isinstance(said, dict):
            self._counts.put("page", said.get("pages_processed"))

    def usage(self) -> Usage | None:
        """Return the usage."""
        return self._counts.usage()


class Rerank:
    """Reads a reranking: search units, or tokens of which only the total is said, and all of it is input."""

    def __init__(self) -> None:
        self._usage: Usage | None = None

    def take(self, event: dict[str, Any]) -> None:
        """Take the body."""
        meta, usage = event.get("meta"), event.get("usage")
        billed = meta.get("billed_units") if isinstance(meta, dict) else None
        said = {**(billed if isinstance(billed, dict) else {}), **(usage if isinstance(usage, dict) else {})}
        counts = Counts()
        counts.whole("rerank_search", said.get("search_units"))
        counts.take("input", said, "prompt_tokens", "input_tokens", "total_tokens")
        self._usage = counts.usage(cost=reported_cost_usd(said)) or self._usage

    def usage(self) -> Usage | None:
        """Return the usage."""
        return self._usage
