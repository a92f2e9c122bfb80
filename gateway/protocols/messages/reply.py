"""Whole replies: one decode, and whatever cannot be read is absent."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from gateway.core.exchange import Reply, Said, Seen
from gateway.protocols.messages.usage import read_usage
from gateway.protocols.reading import CODE_CHARS_MAX, decode, text, utf8_bytes

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
    words = _said_in_blocks(value)
    content = value.get("content")
    if isinstance(content, list):
        summary["choices"] = len(content)
        tools = sum(1 for block in content if isinstance(block, dict) and block.get("type") == "tool_use")
        if tools:
            summary["tool_calls"] = tools
    stop = text(value.get("stop_reason"), 64)
    model = text(value.get("model"))
    return Reply(
        response_id=text(value.get("id")),
        response_model=model,
        finish_reasons=(stop,) if stop else (),
        usage=read_usage(value.get("usage"), model=model),
        complete=True,
        output_summary=summary,
        seen=Seen(events=1, text_bytes=utf8_bytes(words)) if words else None,
    )


def said(body: bytes) -> Said | None:
    """Return the text of a whole reply."""
    value = decode(body)
    text = _said_in_blocks(value) if isinstance(value, dict) else ""
    return Said(text=text, bytes=len(body), of=len(body)) if text else None


def _said_in_blocks(value: dict[str, Any]) -> str:
    content = value.get("content")
    return "".join([said_in(block) for block in content]) if isinstance(content, list) else ""


def said_in(part: object) -> str:
    """Return the text, thinking and tool input of a block or a delta."""
    if not isinstance(part, dict):
        return ""
    texts = [value for key in _SAID if isinstance(value := part.get(key), str)]
    if part.get("input"):
        texts.append(_as_json(part["input"]))
    return "".join(texts)


def _as_json(value: object) -> str:
    """Return a tool's input as text; what no JSON can hold, such as half a surrogate pair, is not counted."""
    try:
        return msgspec.json.encode(value).decode()
    except (ValueError, ArithmeticError, RecursionError):
        return ""


def error_type(error: object) -> str:
    """Return the provider's own word for its error."""
    word = text(error.get("type"), CODE_CHARS_MAX) if isinstance(error, dict) else None
    return word or "upstream_error"
