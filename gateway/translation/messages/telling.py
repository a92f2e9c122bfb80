"""Requests of messages, written from a conversation.

The system prompt stands apart and before all turns, so that system turns further down move up to it. A limit
must be named: where the caller names none it is `MAX_TOKENS`.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from gateway.protocols.base import Dialect
from gateway.translation.effort import adaptive_level_of, budget_of
from gateway.translation.meaning import (
    CacheHint,
    Call,
    Conversation,
    File,
    Image,
    Part,
    Result,
    Text,
    Thinking,
    Tool,
    Turn,
    normal,
    refused,
)

MAX_TOKENS: Final = 32_000
"""The limit where the caller names none: current models of Anthropic's allow it; others say so themselves."""
_ID: Final = re.compile(r"[^a-zA-Z0-9_-]")
_object: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def write(meant: Conversation, model: str, dialect: Dialect) -> dict[str, Any]:
    """Return the request in the words of messages.

    Raises:
        CallerError: 400: the conversation says what they cannot.
    """
    body: dict[str, Any] = {"model": model}
    limit = body["max_tokens"] = MAX_TOKENS if meant.max_tokens is None else meant.max_tokens
    system = [part for turn in meant.turns if turn.role == "system" for part in turn.parts]
    if system:
        body["system"] = _content(system)
    turns = normal(turn for turn in meant.turns if turn.role != "system")
    body["messages"] = [{"role": turn.role, "content": _content(turn.parts)} for turn in turns]
    body["messages"] = [message for message in body["messages"] if message["content"]]
    _write_sampling(meant, body)
    if meant.tools:
        body["tools"] = [_written_tool(tool) for tool in meant.tools]
    if meant.tools and (choice := _written_choice(meant)) is not None:
        body["tool_choice"] = choice
    config: dict[str, Any] = {}
    if dialect.adaptive_thinking:
        if (level := adaptive_level_of(meant.effort)) is not None:
            body["thinking"] = {"type": "adaptive", "display": "summarized"}
            config["effort"] = level
    elif not _goes_on_unthought(turns):
        budget = budget_of(meant.effort, limit, "max_tokens")
        if budget is not None:
            body["thinking"] = {"type": "enabled", "budget_tokens": budget}
    if meant.format is not None:
        if meant.format.schema is None:
            raise refused("response_format", "messages", "it wants the schema that the JSON must have")
        config["format"] = {"type": "json_schema", "schema": meant.format.schema}
    if config:
        body["output_config"] = config
    if meant.user is not None:
        body["metadata"] = {"user_id": meant.user}
    if meant.stream:
        body["stream"] = True
    return body


def _write_sampling(meant: Conversation, body: dict[str, Any]) -> None:
    if meant.temperature is not None:
        if meant.temperature > 1:
            raise refused("temperature", "messages", "it ends at 1 there")
        body["temperature"] = meant.temperature
    if meant.top_p is not None:
        body["top_p"] = meant.top_p
    if meant.top_k is not None:
        body["top_k"] = meant.top_k
    if meant.stop:
        body["stop_sequences"] = list(meant.stop)
    if meant.verbosity not in (None, "medium"):
        raise refused("verbosity", "messages", "it has no such member")
    match meant.tier:
        case None:
            pass
        case "auto":
            body["service_tier"] = "auto"
        case "default" | "standard":
            body["service_tier"] = "standard_only"
        case _:
            raise refused("service_tier", "messages", "it has no such tier")


def _goes_on_unthought(turns: tuple[Turn, ...]) -> bool:
    """Say whether a model goes on behind calls whose thinking is not at hand: it may not think then.

    Anthropic takes `thinking` behind a tool's result only with the sealed thoughts of the turn that called.
    """
    if len(turns) < 2 or not any(isinstance(part, Result) for part in turns[-1].parts):
        return False
    called = turns[-2].parts
    thoughts = [part for part in called if isinstance(part, Thinking)]
    return not any(_own(thought) for thought in thoughts)


def _own(thought: Thinking) -> bool:
    return thought.seal is not None and thought.origin in ("messages", "messages-redacted")


def _content(parts: tuple[Part, ...] | list[Part]) -> list[dict[str, Any]]:
    return [block for part in parts if (block := _block(part)) is not None]


def _block(part: Part) -> dict[str, Any] | None:
    block: dict[str, Any]
    match part:
        case Text():
            if not part.text:
                return None  # an empty block is refused there
            block = {"type": "text", "text": part.text}
        case Image():
            block = {"type": "image", "source": _source(part)}
        case File():
            block = {"type": "document", "source": _source(part)}
            if part.name is not None:
                block["title"] = part.name
        case Call():
            block = {"type": "tool_use", "id": _id(part.id), "name": part.name, "input": _input(part)}
        case Result():
            block = {"type": "tool_result", "tool_use_id": _id(part.call_id), "content": _content(part.parts)}
            if part.failed:
                block["is_error"] = True
        case Thinking():
            if not _own(part):
                return None
            return written_thought(part)
    hint = None if isinstance(part, Call) else part.cache
    if hint is not None:
        block["cache_control"] = _written_hint(hint)
    return block


def written_thought(thought: Thinking) -> dict[str, Any]:
    """Return a thought of a messages provider as the block that it came as."""
    if thought.origin == "messages-redacted":
        return {"type": "redacted_thinking", "data": thought.seal}
    return {"type": "thinking", "thinking": thought.text, "signature": thought.seal or ""}


def _written_hint(hint: CacheHint) -> dict[str, str]:
    return {"type": "ephemeral", "ttl": hint} if hint else {"type": "ephemeral"}


def _source(part: Image | File) -> dict[str, Any]:
    if part.url is not None:
        return {"type": "url", "url": part.url}
    kind = part.media_type or ("application/pdf" if isinstance(part, File) else "image/png")
    return {"type": "base64", "media_type": kind, "data": part.data}


def _id(identity: str) -> str:
    """Return a call's id in the letters that Anthropic allows."""
    return _ID.sub("_", identity)


def _input(call: Call) -> msgspec.Raw:
    """Return the arguments as the object that they are."""
    try:
        _object.decode(call.arguments or "{}")
    except msgspec.MsgspecError as fault:
        raise refused(
            "tool_calls", "messages", f"the arguments of the call {call.id[:64]!r} are no JSON object"
        ) from fault
    return msgspec.Raw(call.arguments.encode() or b"{}")


def _written_tool(tool: Tool) -> dict[str, Any]:
    written: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        written["description"] = tool.description
    written["input_schema"] = tool.schema or {"type": "object", "properties": {}}
    if tool.strict is not None:
        written["strict"] = tool.strict
    if tool.cache is not None:
        written["cache_control"] = _written_hint(tool.cache)
    return written


def _written_choice(meant: Conversation) -> dict[str, Any] | None:
    choice = meant.choice
    if choice is None and meant.parallel is not False:
        return None
    kind = "auto" if choice is None else choice.kind
    if kind == "named":
        written: dict[str, Any] = {"type": "tool", "name": choice.name if choice else None}
    else:
        written = {"type": kind}
    if meant.parallel is not None and kind != "none":
        written["disable_parallel_tool_use"] = not meant.parallel
    return written
