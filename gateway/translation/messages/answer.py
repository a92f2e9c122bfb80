"""Whole replies of messages: read into an answer, and written from one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from gateway.translation.answering import Asked, messages_usage
from gateway.translation.meaning import Answer, Call, Failure, Stop, Text, Thinking, sealed_for, unsealed
from gateway.translation.streaming import dict_of, list_of, text_of

STOPS: Final[dict[str, Stop]] = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "stop_sequence": "stop_sequence",
    "tool_use": "tool",
    "refusal": "filtered",
}
"""Any other reason, and none, is a plain end."""
REASONS: Final[dict[Stop, str]] = {
    "end": "end_turn",
    "length": "max_tokens",
    "stop_sequence": "stop_sequence",
    "tool": "tool_use",
    "filtered": "refusal",
}
_object: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def read(value: dict[str, Any]) -> Answer:
    """Return what a reply says; what cannot be read is not there."""
    parts = [part for block in list_of(value.get("content")) if (part := _part(dict_of(block))) is not None]
    return Answer(
        id=text_of(value.get("id")) or None,
        model=text_of(value.get("model")) or None,
        parts=tuple(parts),
        stop=STOPS.get(text_of(value.get("stop_reason")), "end"),
        stop_sequence=text_of(value.get("stop_sequence")) or None,
    )


def _part(block: dict[str, Any]) -> Text | Thinking | Call | None:
    match block.get("type"):
        case "text":
            text = text_of(block.get("text"))
            return Text(text=text) if text else None
        case "tool_use":
            arguments = msgspec.json.encode(block.get("input") or {}).decode()
            return Call(id=text_of(block.get("id")), name=text_of(block.get("name")), arguments=arguments)
        case "thinking":
            seal, origin = unsealed(text_of(block.get("signature")), "messages")
            return Thinking(text=text_of(block.get("thinking")), seal=seal, origin=origin)
        case "redacted_thinking":
            seal, origin = unsealed(text_of(block.get("data")), "messages-redacted")
            return Thinking(text="", seal=seal, origin=origin)
        case _:
            return None  # blocks of Anthropic's own tools, which no translated request can ask for


def read_failure(value: dict[str, Any]) -> Failure | None:
    """Return the provider's error, None where the value is none."""
    error = value.get("error")
    if not isinstance(error, dict):
        return None
    return Failure(
        message=text_of(error.get("message")) or "the provider told no reason",
        code=text_of(error.get("type")) or "upstream_error",
    )


# write


def write(answer: Answer, asked: Asked, counts: Mapping[str, int]) -> dict[str, Any]:
    """Return the reply in the words of messages."""
    return {
        **started(answer.id, answer.model or asked.model),
        "content": [block for part in answer.parts if (block := _written(part)) is not None],
        "stop_reason": REASONS[answer.stop],
        "stop_sequence": answer.stop_sequence,
        "usage": messages_usage(counts),
    }


def started(identity: str | None, model: str) -> dict[str, Any]:
    """Return the members of a message that are known when it begins."""
    return {"id": identity or "msg", "type": "message", "role": "assistant", "model": model}


def _written(part: Text | Thinking | Call) -> dict[str, Any] | None:
    match part:
        case Text():
            return {"type": "text", "text": part.text} if part.text else None
        case Call():
            return {"type": "tool_use", "id": part.id, "name": part.name, "input": _input(part.arguments)}
        case Thinking():
            seal = sealed_for(part, "messages")
            if part.origin == "messages-redacted" or (seal is not None and not part.text):
                return _redacted(part, seal)
            return {"type": "thinking", "thinking": part.text, "signature": seal or ""}


def _redacted(thought: Thinking, seal: str | None) -> dict[str, Any]:
    """Return a thought without words: Anthropic's own ones as they came."""
    if thought.origin == "messages":
        return {"type": "thinking", "thinking": "", "signature": thought.seal}
    return {
        "type": "redacted_thinking",
        "data": thought.seal if thought.origin == "messages-redacted" else seal,
    }


def _input(arguments: str) -> object:
    """Return the arguments as an object; what a model wrote wrong is kept in one."""
    try:
        _object.decode(arguments or "{}")
    except msgspec.MsgspecError:
        return {"arguments": arguments}
    return msgspec.Raw(arguments.encode() or b"{}")
