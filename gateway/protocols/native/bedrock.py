"""Usage of Bedrock's own bodies: Converse, and InvokeModel, whose body is whatever the model speaks.

Input is counted apart from cache reads and writes; here it includes them. InvokeModel says it in up to three
places: the model's own body, `amazon-bedrock-invocationMetrics` at the end of a stream, and the headers. The
body is believed first; a side that it leaves out is taken from the metrics, then from the headers.
"""

from __future__ import annotations

import binascii
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from gateway.core.usage import Usage
from gateway.protocols.base import Dialect
from gateway.protocols.chat_completions.usage import read_usage as read_chat
from gateway.protocols.messages.tokens import repair_split
from gateway.protocols.messages.usage import MessagesUsage
from gateway.protocols.messages.usage import read_usage as read_messages
from gateway.protocols.reading import Counts, decode, text

_HEADER: Final = "x-amzn-bedrock-"
_METRICS: Final = "amazon-bedrock-invocationMetrics"
_NATIVE_KEYS: Final = (
    "inputTextTokenCount",
    "totalOutputTextTokenCount",
    "prompt_token_count",
    "generation_token_count",
)
_TTL: Final = {"5m": "cache_write_5m", "1h": "cache_write_1h"}


class Converse:
    """Folds a Converse body or the events of its stream; `metadata` has the usage."""

    def __init__(self) -> None:
        self._usage: Usage | None = None

    def take(self, event: dict[str, Any]) -> None:
        """Take the body or one event."""
        said = event.get("usage")
        if isinstance(said, dict):
            self._usage = read_converse(said, event) or self._usage

    def usage(self) -> Usage | None:
        """Return the usage so far."""
        return self._usage


def read_converse(said: dict[str, Any], event: dict[str, Any]) -> Usage | None:
    """Return what a Converse usage object says, with the tier that the event around it names."""
    counts = Counts()
    values = counts.values
    counts.take("input", said, "inputTokens", "inputTokenCount")
    counts.take("cache_read", said, "cacheReadInputTokens", "cacheReadInputTokenCount")
    counts.take("cache_write", said, "cacheWriteInputTokens", "cacheWriteInputTokenCount")
    details = said.get("cacheDetails")
    for detail in details if isinstance(details, list) else ():
        lifetime = detail.get("ttl") if isinstance(detail, dict) else None
        if isinstance(lifetime, str) and lifetime in _TTL:
            counts.sum(_TTL[lifetime], detail.get("inputTokens"))
    repair_split(counts)
    if "input" in values:
        counts.add("input", values.get("cache_read", 0) + values.get("cache_write", 0))
    counts.take("output", said, "outputTokens", "outputTokenCount")
    total = said.get("totalTokens")
    if type(total) is int and "output" in values and total > values.get("input", 0) + values["output"]:
        counts.flag("total_exceeds_sum")
    tier, speed = event.get("serviceTier"), event.get("performanceConfig")
    latency = text(speed.get("latency")) if isinstance(speed, dict) else None
    return counts.usage(
        tier=text(tier.get("type")) if isinstance(tier, dict) else None,
        qualifiers={"latency": latency} if latency else None,
    )


class Invoke:
    """Folds an InvokeModel body or the chunks of its stream, in any of the models' languages."""

    def __init__(self, dialect: Dialect, headers: Mapping[str, str]) -> None:
        self._dialect = dialect
        self._messages = MessagesUsage()
        self._native: dict[str, Any] = {}  # what Titan and Llama say, chunk over chunk
        self._usage: Usage | None = None
        self._metrics: Usage | None = None
        self._headers = _read_headers(headers)

    def take(self, event: dict[str, Any]) -> None:
        """Take the body or one chunk, which may be wrapped in base64."""
        if isinstance(event.get("bytes"), str):
            try:
                inner = decode(binascii.a2b_base64(event["bytes"]))
            except ValueError:  # not base64
                inner = None
            if not isinstance(inner, dict):
                return
            event = inner
        metrics = event.get(_METRICS)
        if isinstance(metrics, dict):
            self._metrics = read_converse(metrics, {})
        kind, message = event.get("type"), event.get("message")
        if kind == "message_start" and isinstance(message, dict):
            self._messages.on_start(message)
        elif kind == "message_delta":
            if isinstance(event.get("usage"), dict):
                self._messages.on_delta(event["usage"])
        else:
            self._usage = self._read(event) or self._usage

    def _read(self, event: dict[str, Any]) -> Usage | None:
        metadata = event.get("metadata")
        said = event.get("usage") or (metadata.get("usage") if isinstance(metadata, dict) else None)
        if isinstance(said, dict):
            if "input_tokens" in said:
                return read_messages(said, model=text(event.get("model")))
            if "inputTokens" in said or "outputTokens" in said:
                return read_converse(said, event)
            return read_chat(said, self._dialect)
        return self._read_native(event)

    def _read_native(self, event: dict[str, Any]) -> Usage | None:
        keys = (
            "inputTextTokenCount",
            "totalOutputTextTokenCount",
            "prompt_token_count",
            "generation_token_count",
        )
        self._native.update({key: event[key] for key in keys if event.get(key) is not None})
        counts = Counts()
        counts.whole("input", self._native.get("inputTextTokenCount", self._native.get("prompt_token_count")))
        results = event.get("results")
        for result in results if isinstance(results, list) else ():
            if isinstance(result, dict):
                counts.sum("output", result.get("tokenCount"))
        counts.whole("output", self._native.get("totalOutputTextTokenCount"))
        counts.whole("output", self._native.get("generation_token_count"))
        return counts.usage()

    def usage(self) -> Usage | None:
        """Return the usage so far."""
        found = self._messages.usage() or self._usage
        for other in (self._metrics, self._headers):
            found = other if found is None else _filled(found, other)
        return found


def _filled(usage: Usage, other: Usage | None) -> Usage:
    """Return the usage with a side that it leaves out as the other place has it."""
    if other is None:
        return usage
    counts, anomalies = dict(usage.counts), list(usage.anomalies)
    if "input" not in counts:
        for name in ("input", "cache_read", "cache_write"):
            if name in other.counts:
                counts.setdefault(name, other.counts[name])
    if "output" not in counts and "output" in other.counts:
        counts["output"] = other.counts["output"]
        anomalies = [word for word in anomalies if word != "output_not_reported"]
    if any(counts.get(name, units) != units for name, units in other.counts.items()):
        anomalies.append("places_differ")
    return msgspec.structs.replace(usage, counts=counts, anomalies=tuple(dict.fromkeys(anomalies)))


def _read_headers(headers: Mapping[str, str]) -> Usage | None:
    said = {
        name.lower().removeprefix(_HEADER): int(value)
        for name, value in headers.items()
        if name.lower().startswith(_HEADER) and value.isascii() and value.isdigit() and len(value) < 20
    }
    return read_converse(
        {
            "inputTokens": said.get("input-token-count"),
            "outputTokens": said.get("output-token-count"),
            "cacheReadInputTokens": said.get("cache-read-input-token-count"),
            "cacheWriteInputTokens": said.get("cache-write-input-token-count"),
        },
        {},
    )
