"""Whole replies, and the response object that both kinds of replies carry: one decode, never an error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from gateway.core.exchange import Reply, Said, Seen
from gateway.core.usage import COUNT_MAX
from gateway.protocols.base import Dialect
from gateway.protocols.reading import CODE_CHARS_MAX, decode, text, utf8_bytes
from gateway.protocols.responses.usage import read_usage, tool_called

_SAID: Final = ("text", "refusal", "name", "arguments", "input", "code")
"""Members that hold what the model said: of output items, and of the parts in their lists."""
_PARTS: Final = ("content", "summary")


def read_reply(status: int, body: bytes, dialect: Dialect) -> Reply:
    """Return the facts of a whole reply; never raises. An error body never has usage."""
    value = decode(body)
    summary = {"bytes": len(body)}
    if not isinstance(value, dict):
        return Reply(error_type=None if status >= 400 else "upstream_protocol", output_summary=summary)
    if status >= 400:
        return Reply(error_type=error_type(value), output_summary=summary)
    output = value.get("output")
    items = output if isinstance(output, list) else []
    words = said_in_items(items)
    if isinstance(output, list):
        summary["choices"] = len(items)
    if calls := sum([is_call(item) for item in items]):
        summary["tool_calls"] = calls
    return Reply(
        response_id=text(value.get("id")),
        response_model=text(value.get("model")),
        finish_reasons=finish_reasons(value),
        usage=read_usage(value, tools_in(items), dialect),
        complete=True,
        error_type=error_type(value) if failed(value) else None,
        output_summary=summary,
        seen=Seen(events=1, text_bytes=utf8_bytes(words)) if words else None,
    )


def finish_reasons(response: Mapping[str, Any]) -> tuple[str, ...]:
    """Return why generation ended: what made it incomplete, else its status."""
    details = response.get("incomplete_details")
    reason = text(details.get("reason"), 64) if isinstance(details, dict) else None
    reason = reason or text(response.get("status"), 64)
    return (reason,) if reason else ()


def failed(response: Mapping[str, Any]) -> bool:
    """Say whether a response object tells of its own failure; tokens may have been made all the same."""
    return (
        bool(response.get("error")) or response.get("status") == "failed" or response.get("type") == "error"
    )


def error_type(value: Mapping[str, Any]) -> str:
    """Return the provider's own word for its error: its code, else its type; flat or under `error`."""
    error = value.get("error")
    words = (error.get("code"), error.get("type")) if isinstance(error, dict) else (value.get("code"),)
    for word in words:
        if type(word) is int and 0 <= word <= COUNT_MAX:
            return str(word)
        found = text(word, CODE_CHARS_MAX)
        if found:
            return found
    return "upstream_error"


def tools_in(items: list[Any]) -> dict[str, int]:
    """Return how often each of the provider's own tools was called."""
    return dict(Counter(tool for item in items if (tool := tool_called(item)) is not None))


def is_call(item: object) -> bool:
    """Say whether an output item is a call of a tool, the provider's or the caller's."""
    kind = item.get("type") if isinstance(item, dict) else None
    return isinstance(kind, str) and kind.endswith("_call")


def said(body: bytes) -> Said | None:
    """Return the text of a whole reply."""
    value = decode(body)
    output = value.get("output") if isinstance(value, dict) else None
    text = said_in_items(output) if isinstance(output, list) else ""
    return Said(text=text, bytes=len(body), of=len(body)) if text else None


def said_in_items(items: list[Any]) -> str:
    """Return the text, reasoning and tool arguments of output items."""
    texts: list[object] = []
    for item in items:
        if isinstance(item, dict):
            inner = [part for key in _PARTS if isinstance(item.get(key), list) for part in item[key]]
            parts = [item, *[part for part in inner if isinstance(part, dict)]]
            texts += [part.get(key) for part in parts for key in _SAID]
    return "".join([text for text in texts if isinstance(text, str)])
