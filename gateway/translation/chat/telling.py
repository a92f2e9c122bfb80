"""Requests of chat completions, written from a conversation.

A tool's result is a message of its own and holds text alone, so that its pictures and files go into the
user's message behind it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gateway.protocols.base import Dialect
from gateway.translation.attachments import to_url
from gateway.translation.effort import level_of
from gateway.translation.meaning import (
    Call,
    Choice,
    Conversation,
    File,
    Format,
    Image,
    Part,
    Result,
    Text,
    Thinking,
    Tool,
    Turn,
    joined,
    refused,
    short_user,
)


def write(meant: Conversation, model: str, dialect: Dialect) -> dict[str, Any]:
    """Return the request in the words of chat completions.

    Raises:
        CallerError: 400: the conversation says what they cannot.
    """
    if meant.top_k is not None:
        raise refused("top_k", "chat_completions", "it has no such member")
    body: dict[str, Any] = {"model": model}
    body["messages"] = [message for turn in meant.turns for message in _messages(turn, dialect)]
    if meant.max_tokens is not None:
        body[dialect.output_limit] = meant.max_tokens
    for name in ("temperature", "top_p"):
        if (value := getattr(meant, name)) is not None:
            body[name] = value
    if meant.stop:
        body["stop"] = list(meant.stop)
    if meant.tools:
        body["tools"] = [_written_tool(tool) for tool in meant.tools]
    if meant.choice is not None:
        body["tool_choice"] = _written_choice(meant.choice)
    if meant.parallel is not None and meant.tools:
        body["parallel_tool_calls"] = meant.parallel
    level = level_of(meant.effort)
    if level is not None:
        body["reasoning_effort"] = level
    if meant.format is not None:
        body["response_format"] = _written_format(meant.format)
    said = {"verbosity": meant.verbosity, "user": short_user(meant), "service_tier": meant.tier}
    body |= {name: value for name, value in said.items() if value is not None}
    if meant.stream:
        body["stream"] = True
        if dialect.stream_usage == "on_request":
            body["stream_options"] = {"include_usage": True}
    return body


def _messages(turn: Turn, dialect: Dialect) -> Iterator[dict[str, Any]]:
    if turn.role == "system":
        yield {"role": "system", "content": joined(turn.parts, "\n\n")}
    elif turn.role == "assistant":
        yield _assistant(turn, dialect)
    else:
        beside: list[Part] = []
        for part in turn.parts:
            if isinstance(part, Result):
                content = joined(part.parts, "\n\n")
                yield {"role": "tool", "tool_call_id": part.call_id, "content": content}
                beside += [shown for shown in part.parts if not isinstance(shown, Text)]
            else:
                beside.append(part)
        if beside:
            yield {"role": "user", "content": _written_content(beside)}


def _assistant(turn: Turn, dialect: Dialect) -> dict[str, Any]:
    spoken = joined(turn.parts, "")
    message: dict[str, Any] = {"role": "assistant", "content": spoken or None}
    calls = [part for part in turn.parts if isinstance(part, Call)]
    if calls:
        message["tool_calls"] = [written_call(call) for call in calls]
    elif not spoken:
        message["content"] = ""
    if dialect.reasoning_content:
        thought = "".join([part.text for part in turn.parts if isinstance(part, Thinking)])
        if thought:
            message["reasoning_content"] = thought
    return message


def written_call(call: Call) -> dict[str, Any]:
    """Return a call as an element of `tool_calls`."""
    if call.freeform:
        return {"id": call.id, "type": "custom", "custom": {"name": call.name, "input": call.arguments}}
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


def _written_content(parts: list[Part]) -> str | list[dict[str, Any]]:
    if all(isinstance(part, Text) for part in parts):
        return joined(parts, "\n\n")
    content: list[dict[str, Any]] = []
    for part in parts:
        match part:
            case Text():
                content.append({"type": "text", "text": part.text})
            case Image():
                image = {"url": to_url(part.url, part.media_type, part.data)}
                if part.detail is not None:
                    image["detail"] = part.detail
                content.append({"type": "image_url", "image_url": image})
            case File():
                if part.url is not None:
                    raise refused("document", "chat_completions", "a file must be sent, not named by a URL")
                file = {"file_data": to_url(part.url, part.media_type, part.data)}
                if part.name is not None:
                    file["filename"] = part.name
                content.append({"type": "file", "file": file})
            case _:
                pass  # a user's turn has no others: its results are written before
    return content


def _written_tool(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.schema is not None:
        function["parameters"] = tool.schema
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _written_choice(choice: Choice) -> Any:
    if choice.kind == "named":
        return {"type": "function", "function": {"name": choice.name}}
    return "required" if choice.kind == "any" else choice.kind


def _written_format(form: Format) -> dict[str, Any]:
    if form.schema is None:
        return {"type": "json_object"}
    schema: dict[str, Any] = {"name": form.name or "answer", "schema": form.schema}
    if form.description is not None:
        schema["description"] = form.description
    if form.strict is not None:
        schema["strict"] = form.strict
    return {"type": "json_schema", "json_schema": schema}
