"""Native bodies: usage of the wire languages that are no doors of ours yet.

A provider that speaks one of them is metered by naming it in `NATIVE`: whole replies and streams go through
the same fold, so that the same numbers give the same usage. Nothing here raises, whatever the bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final
from typing import Protocol as Interface

import msgspec

from gateway.core.usage import Usage
from gateway.protocols.base import Dialect
from gateway.protocols.native.batches import BatchItem, read_batch
from gateway.protocols.native.bedrock import Converse, Invoke
from gateway.protocols.native.frames import frames_of
from gateway.protocols.native.gemini import GenerateContent, Interactions, Predict
from gateway.protocols.native.others import Cohere, Ollama, OpenAiLike, Pages, Rerank
from gateway.protocols.reading import decode


class Fold(Interface):
    """Takes the decoded events of one reply in order; a whole reply is one event."""

    def take(self, event: dict[str, Any]) -> None:
        """Take one event."""
        ...

    def usage(self) -> Usage | None:
        """Return the usage so far, None if nothing was reported."""
        ...


NATIVE: Final[dict[str, Callable[[Dialect, Mapping[str, str]], Fold]]] = {
    "generate_content": lambda dialect, headers: GenerateContent(),
    "embed_content": lambda dialect, headers: GenerateContent(),
    "interactions": lambda dialect, headers: Interactions(),
    "predict": lambda dialect, headers: Predict(),
    "converse": lambda dialect, headers: Converse(),
    "invoke": Invoke,
    "cohere": lambda dialect, headers: Cohere(dialect),
    "ollama": lambda dialect, headers: Ollama(),
    "completions": lambda dialect, headers: OpenAiLike(dialect),
    "audio": lambda dialect, headers: OpenAiLike(dialect),
    "images": lambda dialect, headers: OpenAiLike(dialect, pieces="data"),
    "ocr": lambda dialect, headers: Pages(),
    "rerank": lambda dialect, headers: Rerank(),
}
"""Native wire languages by name: what makes the fold of one reply from dialect and response headers."""


class NativeMeter:
    """Reads the usage of one native stream as it passes; the bytes themselves are the caller's affair."""

    def __init__(
        self, name: str, content_type: str | None, headers: Mapping[str, str], dialect: Dialect
    ) -> None:
        self._fold = NATIVE[name](dialect, headers)
        self._frames = frames_of(content_type)

    def feed(self, data: bytes) -> None:
        """Read what has come."""
        self._take(self._frames.feed(data))

    def finish(self) -> Usage | None:
        """Return what the stream reported; call once, whenever the stream ends."""
        self._take(self._frames.finish())
        usage, broken = self._fold.usage(), self._frames.broken
        if broken is None:
            return usage
        usage = usage or Usage(counts={})
        return msgspec.structs.replace(usage, anomalies=(*usage.anomalies, broken))

    def _take(self, events: list[bytes]) -> None:
        for event in events:
            value = decode(event)
            if isinstance(value, dict):
                self._fold.take(value)


def read_usage(
    name: str, status: int, body: bytes, headers: Mapping[str, str], dialect: Dialect
) -> Usage | None:
    """Return what a whole reply reports; an error never has usage."""
    if status >= 400:
        return None
    fold = NATIVE[name](dialect, headers)
    value = decode(body)
    for event in value if isinstance(value, list) else (value,):
        if isinstance(event, dict):
            fold.take(event)
    return fold.usage()


__all__ = ["NATIVE", "BatchItem", "Fold", "NativeMeter", "read_batch", "read_usage"]
