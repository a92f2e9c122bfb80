"""Requests of responses, written from a conversation.

Nothing is stored, and thoughts come sealed, so that a caller can bring them back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from gateway.protocols.base import Dialect
from gateway.translation.attachments import to_url
from gateway.translation.effort import level_of
from gateway.translation.meaning import (
    Call,
    Choice,
    Conversation,
    File,
    Image,
    Result,
    Role,
    Text,
    Thinking,
    Tool,
    Turn,
    joined,
    refused,
    sealed_for,
    short_user,
)

SEALED: Final = "reasoning.encrypted_content"


def write(meant: Conversation, model: str, dialect: Dialect) -> dict[str, Any]:
    """Return the request in the words of responses; nothing is stored, and thoughts come sealed.

    Raises:
        CallerError: 400: the conversation says what they cannot.
    """
    if meant.stop:
        raise refused("stop", "responses", "it has no stop sequences")
    if meant.top_k is not None:
        raise refused("top_k", "responses", "it has no such member")
    body: dict[str, Any] = {"model": model}
    turns = meant.turns
    if turns and turns[0].role == "system":
        body["instructions"] = joined(turns[0].parts, "\n\n")
        turns = turns[1:]
    body["input"] = [item for turn in turns for item in _items(turn)]
    body["store"] = False
    said = {
        "max_output_tokens": meant.max_tokens,
        "temperature": meant.temperature,
        "top_p": meant.top_p,
        "user": short_user(meant),
        "service_tier": meant.tier,
    }
    body |= {name: value for name, value in said.items() if value is not None}
    if meant.tools:
        body["tools"] = [_written_tool(tool) for tool in meant.tools]
        if meant.parallel is not None:
            body["parallel_tool_calls"] = meant.parallel
    if meant.choice is not None:
        body["tool_choice"] = _written_choice(meant.choice)
    level = level_of(meant.effort)
    if meant.effort is not None and level is not None:
        body["reasoning"] = {"effort": level}
        if meant.effort.summary is not None:
            body["reasoning"]["summary"] = meant.effort.summary
        if level != "none":
            body["include"] = [SEALED]
    if text := _written_text(meant):
        body["text"] = text
    if meant.stream:
        body["stream"] = True
    return body


def _items(turn: Turn) -> Iterator[dict[str, Any]]:
    spoken: list[dict[str, Any]] = []
    for part in turn.parts:
        if isinstance(part, Text | Image | File):
            spoken.append(_written_part(part, turn.role))
            continue
        if spoken:
            yield {"type": "message", "role": turn.role, "content": spoken}
            spoken = []
        match part:
            case Call():
                yield {
                    "type": "function_call",
                    "call_id": part.id,
                    "name": part.name,
                    "arguments": part.arguments,
                }
            case Result():
                yield {
                    "type": "function_call_output",
                    "call_id": part.call_id,
                    "output": _written_output(part),
                }
            case Thinking():
                if part.origin == "responses" and part.seal is not None:
                    yield written_thought(part)
    if spoken:
        yield {"type": "message", "role": turn.role, "content": spoken}


def written_thought(thought: Thinking) -> dict[str, Any]:
    """Return a thought as an item, without an id."""
    summary = [{"type": "summary_text", "text": thought.text}] if thought.text else []
    item: dict[str, Any] = {"type": "reasoning", "summary": summary}
    seal = sealed_for(thought, "responses")
    if seal is not None:
        item["encrypted_content"] = seal
    return item


def _written_output(result: Result) -> Any:
    if all(isinstance(part, Text) for part in result.parts):
        return joined(result.parts, "\n\n")
    return [_written_part(part, "user") for part in result.parts]


def _written_part(part: Text | Image | File, role: Role) -> dict[str, Any]:
    match part:
        case Text():
            if part.refusal and role == "assistant":
                return {"type": "refusal", "refusal": part.text}
            return {"type": "output_text" if role == "assistant" else "input_text", "text": part.text}
        case Image():
            image: dict[str, Any] = {"type": "input_image"}
            image["image_url"] = to_url(part.url, part.media_type, part.data)
            if part.detail is not None:
                image["detail"] = part.detail
            return image
        case File():
            if part.url is not None:
                return {"type": "input_file", "file_url": part.url}
            file = {"type": "input_file", "file_data": to_url(None, part.media_type, part.data)}
            return {**file, "filename": part.name or "document"}


def _written_tool(tool: Tool) -> dict[str, Any]:
    written: dict[str, Any] = {"type": "function", "name": tool.name}
    if tool.description is not None:
        written["description"] = tool.description
    written["parameters"] = tool.schema
    written["strict"] = tool.strict is True  # absent means true there, and false elsewhere
    return written


def _written_choice(choice: Choice) -> Any:
    if choice.kind == "named":
        return {"type": "function", "name": choice.name}
    return "required" if choice.kind == "any" else choice.kind


def _written_text(meant: Conversation) -> dict[str, Any]:
    text: dict[str, Any] = {}
    form = meant.format
    if form is not None and form.schema is None:
        text["format"] = {"type": "json_object"}
    elif form is not None:
        schema: dict[str, Any] = {"type": "json_schema", "name": form.name or "answer", "schema": form.schema}
        if form.description is not None:
            schema["description"] = form.description
        schema["strict"] = form.strict is True  # absent means true there, and false elsewhere
        text["format"] = schema
    if meant.verbosity is not None:
        text["verbosity"] = meant.verbosity
    return text
