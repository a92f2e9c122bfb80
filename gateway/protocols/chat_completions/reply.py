"""Whole replies: one decode, and whatever cannot be read is absent."""

from __future__ import annotations

from typing import Any, Final

from gateway.core.exchange import Reply, Said, Seen
from gateway.core.usage import COUNT_MAX, Usage
from gateway.protocols.base import Dialect
from gateway.protocols.chat_completions.usage import read_usage
from gateway.protocols.reading import CODE_CHARS_MAX, decode, text, utf8_bytes

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
    words = said_in_choices(value, "message")
    choices = value.get("choices")
    if isinstance(choices, list):
        summary["choices"] = len(choices)
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
        seen=Seen(events=1, text_bytes=utf8_bytes(words)) if words else None,
    )


def usage_of(value: dict[str, Any], dialect: Dialect, tier: object = None) -> Usage | None:
    """Return the usage of a reply or chunk, wherever the provider puts it.

    Args:
        tier: the service tier, if an earlier chunk has told it.
    """
    usage = value.get("usage")
    if usage is None:
        usage = _usage_elsewhere(value)
    elif isinstance(usage, dict) and ("cache_hit" in value or "cache_write" in value):
        said = {key: value[key] for key in ("cache_hit", "cache_write") if key in value}
        usage = {**said, **usage}
    if usage is None:
        return None
    return read_usage(usage, dialect, service_tier=value.get("service_tier") if tier is None else tier)


def _usage_elsewhere(value: dict[str, Any]) -> object:
    """Return the usage that stands under `x_groq` (Groq) or in the first choice (Moonshot)."""
    groq, choices = value.get("x_groq"), value.get("choices")
    if isinstance(groq, dict):
        return groq.get("usage")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        return choices[0].get("usage")
    return None


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


def said(body: bytes) -> Said | None:
    """Return the text of a whole reply."""
    value = decode(body)
    text = said_in_choices(value, "message") if isinstance(value, dict) else ""
    return Said(text=text, bytes=len(body), of=len(body)) if text else None


def said_in_choices(value: dict[str, Any], key: str) -> str:
    """Return the text of all choices: of their `message`, or of their `delta`."""
    choices = value.get("choices")
    if not isinstance(choices, list):
        return ""
    return "".join([said_in(choice.get(key)) for choice in choices if isinstance(choice, dict)])


def said_in(part: object) -> str:
    """Return the text, reasoning and tool arguments of a message or a delta."""
    if not isinstance(part, dict):
        return ""
    texts = [_text_of(part.get(key)) for key in _SAID]
    calls = part.get("tool_calls")
    for call in (*(calls if isinstance(calls, list) else ()), {"function": part.get("function_call")}):
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            texts += [_text_of(function.get("name")), _text_of(function.get("arguments"))]
    return "".join(texts)


def _text_of(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):  # content in parts
        parts = [part for part in value if isinstance(part, dict)]
        thoughts = [part["thinking"] for part in parts if isinstance(part.get("thinking"), list)]
        parts += [part for thought in thoughts for part in thought if isinstance(part, dict)]  # Mistral
        return "".join([text for part in parts if isinstance(text := part.get("text"), str)])
    return ""


def _tool_calls(choice: object) -> int:
    message = choice.get("message") if isinstance(choice, dict) else None
    calls = message.get("tool_calls") if isinstance(message, dict) else None
    return len(calls) if isinstance(calls, list) else 0
