"""Whole replies: one decode, and whatever cannot be read is absent."""

from __future__ import annotations

from typing import Final

import msgspec

from gateway.core.exchange import Reply, Seen
from gateway.protocols.messages.usage import read_usage
from gateway.protocols.reading import CODE_CHARS_MAX, decode, text

_SAID: Final = ("text", "thinking", "partial_json", "name")


def read_reply(status: int, body: bytes) -> Reply:
    """Return the facts of a whole reply; never raises. An error body never has usage."""
    value = decode(body)
    if not isinstance(value, dict):
        error = None if status >= 400 else "upstream_protocol"
        return Reply(error_type=error, output_summary={"bytes": len(body)})
    if status >= 400 or value.get("type") == "error":
        return Reply(error_type=error_type(value.get("error")), output_summary={"bytes": len(body)})
    summary = {"bytes": len(body)}
    content = value.get("content")
    said = 0
    if isinstance(content, list):
        said = sum(said_bytes(block) for block in content)
        summary["choices"] = len(content)
        tools = sum(1 for block in content if isinstance(block, dict) and block.get("type") == "tool_use")
        if tools:
            summary["tool_calls"] = tools
    stop = text(value.get("stop_reason"), 64)
    return Reply(
        response_id=text(value.get("id")),
        response_model=text(value.get("model")),
        finish_reasons=(stop,) if stop else (),
        usage=read_usage(value.get("usage")),
        complete=True,
        output_summary=summary,
        seen=Seen(events=1, text_bytes=said) if said else None,
    )


def said_bytes(said: object) -> int:
    """Return how many UTF-8 bytes of text, thinking and tool input a block or a delta holds."""
    if not isinstance(said, dict):
        return 0
    texts = [value for key in _SAID if isinstance(value := said.get(key), str)]
    total = sum([len(text.encode("utf-8", "surrogatepass")) for text in texts])
    return total + (len(msgspec.json.encode(said["input"])) if said.get("input") else 0)


def error_type(error: object) -> str:
    """Return the provider's own word for its error."""
    word = text(error.get("type"), CODE_CHARS_MAX) if isinstance(error, dict) else None
    return word or "upstream_error"
