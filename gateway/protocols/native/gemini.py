"""Usage of Google's own bodies: `generateContent`, `embedContent`, `predict` and `interactions`.

Counts of a stream are cumulative and the last chunk that has any wins, even where it is lower: the prompt's
count has been seen to fall. Thoughts and what tools read are counted apart from candidates and prompt; here
the wholes include them.
"""

from __future__ import annotations

from typing import Any, Final

from gateway.core.usage import Usage
from gateway.protocols.reading import Counts, text

_MODALITY: Final = {
    "AUDIO": "audio", "IMAGE": "image", "VIDEO": "video",
    2: "image", 3: "video", 4: "audio",
}  # fmt: skip
"""Text and documents cost what the rest of the input costs; some clients write numbers for the names."""
_TRAFFIC_TIER: Final = {"ON_DEMAND_FLEX": "flex", "ON_DEMAND_PRIORITY": "priority"}


class GenerateContent:
    """Folds the chunks of `generateContent`, streamed or whole, and of `embedContent`."""

    def __init__(self) -> None:
        self._metadata: dict[str, Any] | None = None
        self._queries: int | None = None
        self._maps = False

    def take(self, event: dict[str, Any]) -> None:
        """Take one chunk."""
        metadata = event.get("usageMetadata")
        if isinstance(metadata, dict) and any(key.endswith("TokenCount") for key in metadata):
            self._metadata = metadata
        candidates = event.get("candidates")
        for candidate in candidates if isinstance(candidates, list) else ():
            grounding = candidate.get("groundingMetadata") if isinstance(candidate, dict) else None
            if isinstance(grounding, dict):
                self._ground(grounding)

    def _ground(self, grounding: dict[str, Any]) -> None:
        queries, chunks = grounding.get("webSearchQueries"), grounding.get("groundingChunks")
        if isinstance(queries, list):
            self._queries = len([query for query in queries if query])
        if isinstance(chunks, list):
            self._maps = self._maps or any(isinstance(chunk, dict) and "maps" in chunk for chunk in chunks)

    def usage(self) -> Usage | None:
        """Return the usage so far."""
        counts, said = Counts(), self._metadata or {}
        counts.put("input", said.get("promptTokenCount"))
        counts.put("cache_read", said.get("cachedContentTokenCount"))
        counts.put("output", said.get("candidatesTokenCount"))
        counts.put("reasoning", said.get("thoughtsTokenCount"))
        counts.put("input_tool", said.get("toolUsePromptTokenCount"))
        _modalities(counts, "input", said.get("promptTokensDetails"), "tokenCount")
        _modalities(counts, "cache_read", said.get("cacheTokensDetails"), "tokenCount")
        _modalities(counts, "output", said.get("candidatesTokensDetails"), "tokenCount")
        include_parts(counts, said.get("totalTokenCount"))
        counts.put("web_search", self._queries)
        if self._maps:
            counts.put("map_search", 1)
        traffic, tier = text(said.get("trafficType")), text(said.get("serviceTier"))
        return counts.usage(
            tier=tier or _TRAFFIC_TIER.get(traffic or ""),
            qualifiers={"traffic_type": traffic} if traffic else None,
        )


class Interactions:
    """Folds the events of the interactions API; their usage stands in one of three places, the last wins."""

    def __init__(self) -> None:
        self._usage: dict[str, Any] | None = None
        self._tier: str | None = None

    def take(self, event: dict[str, Any]) -> None:
        """Take a body or an event."""
        for holder in (event.get("metadata"), event.get("interaction"), event):
            if isinstance(holder, dict):
                if isinstance(holder.get("usage"), dict):
                    self._usage = holder["usage"]
                self._tier = text(holder.get("service_tier")) or self._tier

    def usage(self) -> Usage | None:
        """Return the usage so far."""
        if self._usage is None:
            return None
        counts, said = Counts(), self._usage
        counts.put("input", said.get("total_input_tokens"))
        counts.put("cache_read", said.get("total_cached_tokens"))
        counts.put("output", said.get("total_output_tokens"))
        counts.put("reasoning", said.get("total_thought_tokens"))
        counts.put("input_tool", said.get("total_tool_use_tokens"))
        _modalities(counts, "input", said.get("input_tokens_by_modality"), "tokens")
        _modalities(counts, "cache_read", said.get("cached_tokens_by_modality"), "tokens")
        _modalities(counts, "output", said.get("output_tokens_by_modality"), "tokens")
        include_parts(counts, said.get("total_tokens"))
        return counts.usage(tier=self._tier)


class Predict:
    """Reads the embeddings of Vertex's `predict`, which reports tokens text by text."""

    def __init__(self) -> None:
        self._counts = Counts()

    def take(self, event: dict[str, Any]) -> None:
        """Take the body."""
        predictions, metadata = event.get("predictions"), event.get("metadata")
        for prediction in predictions if isinstance(predictions, list) else ():
            embeddings = prediction.get("embeddings") if isinstance(prediction, dict) else None
            said = embeddings.get("statistics") if isinstance(embeddings, dict) else None
            if isinstance(said, dict):
                self._counts.sum("input", said.get("token_count"))
        if isinstance(metadata, dict):
            self._counts.put("character", metadata.get("billableCharacterCount"))

    def usage(self) -> Usage | None:
        """Return the usage."""
        return self._counts.usage()


def include_parts(counts: Counts, total: object) -> None:
    """Make input include what tools read and output include thoughts, then hold the total against both."""
    values = counts.values
    if "input" in values and "input_tool" in values:
        counts.add("input", values["input_tool"])
    if "reasoning" in values and "output_unusable" not in counts.anomalies:
        values.setdefault("output", 0)
        counts.add("output", values["reasoning"])
    counts.parts_within_wholes()
    if type(total) is int and "input" in values and total > values["input"] + values.get("output", 0):
        counts.flag("total_exceeds_sum")


def _modalities(counts: Counts, whole: str, details: object, key: str) -> None:
    for detail in details if isinstance(details, list) else ():
        if not isinstance(detail, dict):
            continue
        named = detail.get("modality")
        part = _MODALITY.get(named.upper() if isinstance(named, str) else named) if _plain(named) else None
        if part is not None and not (whole == "cache_read" and part == "video"):
            counts.sum(f"{whole}_{part}", detail.get(key))


def _plain(named: object) -> bool:
    return isinstance(named, str | int)
