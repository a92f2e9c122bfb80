"""Usage of batches: each finished item is a reply of its own, at the tier that batches are charged at.

A batch that lists its replies twice (Google: as `response` and again under `metadata.output`) is read once.
What a batch object sums up while it runs is not a bill.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from gateway.core.usage import Usage
from gateway.protocols.base import Dialect
from gateway.protocols.chat_completions.reply import usage_of
from gateway.protocols.messages.usage import read_usage as read_messages
from gateway.protocols.native.gemini import GenerateContent
from gateway.protocols.native.others import like_chat
from gateway.protocols.reading import text

TIER: Final = "batch"
"""Where an item names no tier of its own; Google's say `standard` and are charged as a batch all the same."""


class BatchItem(msgspec.Struct, frozen=True, kw_only=True):
    """One finished item of a batch.

    Args:
        id: the caller's id of it, None if it gave none.
        model: the model that served.
    """

    id: str | None
    model: str | None
    usage: Usage


def read_batch(event: dict[str, Any], dialect: Dialect) -> Iterator[BatchItem]:
    """Return the items of one line of results, or of a batch object that holds them."""
    for entry in _entries(event):
        identity = entry.get("custom_id") or entry.get("key")
        metadata = entry.get("metadata")
        if identity is None and isinstance(metadata, dict):
            identity = metadata.get("custom_id") or metadata.get("key")
        for reply in _replies(entry):
            model, usage = _read(reply, dialect)
            if usage is not None:
                yield BatchItem(
                    id=text(identity), model=model, usage=msgspec.structs.replace(usage, service_tier=TIER)
                )


def _entries(event: dict[str, Any]) -> list[dict[str, Any]]:
    metadata = event.get("metadata")
    for holder in (event.get("response"), metadata.get("output") if isinstance(metadata, dict) else None):
        inlined = holder.get("inlinedResponses") if isinstance(holder, dict) else None
        entries = inlined.get("inlinedResponses") if isinstance(inlined, dict) else inlined
        if isinstance(entries, list):
            return [entry for entry in entries if isinstance(entry, dict)]
    return [event]


def _replies(entry: dict[str, Any]) -> Iterator[dict[str, Any]]:
    result, response = entry.get("result"), entry.get("response")
    if isinstance(result, dict) and isinstance(result.get("message"), dict):
        yield result["message"]
    elif isinstance(response, dict):
        body = response.get("body")
        yield body if isinstance(body, dict) else response


def _read(reply: dict[str, Any], dialect: Dialect) -> tuple[str | None, Usage | None]:
    if "usageMetadata" in reply:
        fold = GenerateContent()
        fold.take(reply)
        return text(reply.get("modelVersion")), fold.usage()
    model = text(reply.get("model"))
    if reply.get("type") == "message":
        return model, read_messages(reply.get("usage"), model=model)
    return model, usage_of(like_chat(reply), dialect)
