"""Whole replies: one decode, and whatever cannot be read is absent."""

from __future__ import annotations

from typing import Any, Final

from gateway.core.exchange import Reply, Seen
from gateway.core.usage import COUNT_MAX, Usage
from gateway.protocols.base import Dialect
from gateway.protocols.chat_completions.usage import read_usage
from gateway.protocols.reading import CODE_CHARS_MAX, decode, text

FINISH_REASONS_MAX: Final = 16
_SAID: Final = ("content", "reasoning_content", "reasoning", "refusal")


def read_reply(status: int, body: bytes, dialect: Dialect) -> Reply:
    """Return the facts of a whole reply; never raises. An error body never has usage."""
    value = decode(body)
    if not isinstance(value, dict):
        error = None if status >= 400 else "upstream_protocol"
        return Reply(error_type=error, output_summary={"bytes": len(body)})
    if status >= 400 or (value.get("error") and not value.get("choices")):
        return Reply(error_type=error_type(value.get("error")), output_summary={"bytes": len(body)})
    summary = {"bytes": len(body)}
    finish: list[str] = []
    said = 0
    choices = value.get("choices")
    if isinstance(choices, list):
        summary["choices"] = len(choices)
        said = sum(said_bytes(choice.get("message")) for choice in choices if isinstance(choice, dict))
        tool_calls = sum(_tool_calls(choice) for choice in choices)
        if tool_calls:
            summary["tool_calls"] = tool_calls
        finish = [
            r
            for choice in choices
            if isinstance(choice, dict) and (r := text(choice.get("finish_reason"), 64))
        ]
    return Reply(
        response_id=text(value.get("id")),
        response_model=text(value.get("model")),
        finish_reasons=tuple(finish[:FINISH_REASONS_MAX]),
        usage=usage_of(value, dialect),
        complete=True,
        output_summary=summary,
        seen=Seen(events=1, text_bytes=said) if said else None,
    )


def usage_of(value: dict[str, Any], dialect: Dialect) -> Usage | None:
    """Return the usage of a reply or chunk, wherever the provider puts it."""
    usage = value.get("usage")
    if usage is None and isinstance(value.get("x_groq"), dict):
        usage = value["x_groq"].get("usage")
    return read_usage(usage, dialect, service_tier=value.get("service_tier"))


def error_type(error: object) -> str:
    """Return the provider's own word for its error: its code, else its type."""
    if isinstance(error, dict):
        for key in ("code", "type"):
            word = error.get(key)
            if type(word) is int and 0 <= word <= COUNT_MAX:
                return str(word)
            found = text(word, CODE_CHARS_MAX)
            if found:
                return found
    return "upstream_error"


def said_bytes(said: object) -> int:
    """Return how many UTF-8 bytes of text, reasoning and tool arguments a message or a delta holds."""
    if not isinstance(said, dict):
        return 0
    total = sum([_text_bytes(said.get(key)) for key in _SAID])
    calls = said.get("tool_calls")
    for call in (*(calls if isinstance(calls, list) else ()), {"function": said.get("function_call")}):
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            total += _text_bytes(function.get("name")) + _text_bytes(function.get("arguments"))
    return total


def _text_bytes(value: object) -> int:
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, list):  # content in parts
        return sum([_text_bytes(part.get("text")) for part in value if isinstance(part, dict)])
    return 0


def _tool_calls(choice: object) -> int:
    message = choice.get("message") if isinstance(choice, dict) else None
    calls = message.get("tool_calls") if isinstance(message, dict) else None
    return len(calls) if isinstance(calls, list) else 0
