"""Messages: the simulated provider in Anthropic's words.

`message_start` carries the whole input side and a placeholder of 1 output token; `message_delta` the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from gateway.providers.simulated.answers import Answer, Ask, Segment, Ttl, attachment, pieces
from gateway.providers.simulated.wire import RefusedError, limit, objects, text_of

ARGUMENT_CHARS: Final = 12
"""Characters of a tool's input in one event."""
TYPES: Final = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
SIGNATURE: Final = "c2ltdWxhdGVk"


class Messages:
    """`POST /v1/messages`."""

    streams = True
    limit_needed = True

    def read(self, body: Mapping[str, object], headers: Mapping[bytes, bytes]) -> Ask:
        """Take a request apart; raises RefusedError."""
        if b"anthropic-version" not in headers:
            raise RefusedError(400, "anthropic-version: header is required")
        model = body.get("model")
        if not isinstance(model, str) or not model:
            raise RefusedError(400, "model: Field required")
        listed = body.get("messages")
        if listed is None:
            raise RefusedError(400, "messages: Field required")
        messages = objects(listed)
        if not isinstance(listed, list) or len(messages) != len(listed):
            raise RefusedError(400, "messages: Input should be a valid list of objects")
        if not messages:
            raise RefusedError(400, "messages: at least one message is required")
        for at, message in enumerate(messages):
            if message.get("role") not in ("user", "assistant", "system"):
                raise RefusedError(400, f"messages.{at}.role: Input should be 'user' or 'assistant'")
        if self.limit_needed and body.get("max_tokens") is None:
            raise RefusedError(400, "max_tokens: Field required")
        last = messages[-1]
        answers_tool = any(part.get("type") == "tool_result" for part in objects(last.get("content")))
        users = [message for message in messages if message["role"] == "user"]
        return Ask(
            model=model,
            stream=body.get("stream") is True,
            include_usage=True,
            max_tokens=limit(body.get("max_tokens"), "max_tokens"),
            prompt=tuple(_prompt(body, messages)),
            messages=len(messages),
            last_text="".join(part.text for part in _segments(users[-1].get("content"))) if users else "",
            tool=_tool(body) if last["role"] == "user" and not answers_tool else None,
        )

    def whole(self, answer: Answer) -> bytes:
        """Return a `message` object."""
        return msgspec.json.encode(
            _message(answer, _content(answer), _stop_reason(answer), _usage(answer, answer.counts.output))
        )

    def events(self, answer: Answer, *, include_usage: bool) -> list[bytes]:  # noqa: ARG002  # always reported here
        """Return the events from `message_start` to `message_stop`."""
        start = _message(answer, [], None, _usage(answer, 1, start=True))
        events = [_event("message_start", {"message": start})]
        for index, block in enumerate(_content(answer)):
            events += _block_events(index, block, ping=index == 0)
        delta: dict[str, object] = {"delta": {"stop_reason": _stop_reason(answer), "stop_sequence": None}}
        usage = _usage(answer, answer.counts.output)
        if usage is not None:
            usage.pop("cache_creation", None)  # as the real one does: the split stands at the start only
            usage.pop("service_tier", None)
            if answer.form == "plain":
                usage.pop("input_tokens")
            delta["usage"] = usage
        return [*events, _event("message_delta", delta), _event("message_stop", {})]

    def error(self, refused: RefusedError, request_id: str) -> bytes:
        """Return Anthropic's envelope."""
        kind = "api_error" if refused.status >= 500 else "invalid_request_error"
        error = {"type": TYPES.get(refused.status, kind), "message": refused.message}
        return msgspec.json.encode({"type": "error", "error": error, "request_id": f"req_{request_id}"})

    def error_event(self) -> bytes:
        """Return an error in a stream, after which no `message_stop` comes."""
        return _event("error", {"error": {"type": "overloaded_error", "message": "Overloaded"}})

    def id_header(self, request_id: str) -> tuple[bytes, bytes]:
        """Return `request-id`."""
        return (b"request-id", f"req_{request_id}".encode())


class CountTokens(Messages):
    """`POST /v1/messages/count_tokens`: the number is the answer, and nothing is consumed."""

    streams = False
    limit_needed = False

    def whole(self, answer: Answer) -> bytes:
        """Return the count."""
        return msgspec.json.encode({"input_tokens": answer.counts.input})


def _prompt(body: Mapping[str, object], messages: list[Mapping[str, object]]) -> list[Segment]:
    prompt = [Segment(text_of(tool), _ttl(tool)) for tool in objects(body.get("tools"))]
    for content in (body.get("system"), *(message.get("content") for message in messages)):
        prompt += _segments(content)
    return prompt


def _segments(content: object) -> list[Segment]:
    if not isinstance(content, list):
        return [Segment(text_of(content))] if content else []
    return [Segment(_part_text(part), _ttl(part)) for part in objects(content)]


def _part_text(part: Mapping[str, object]) -> str:
    match part.get("type"):
        case "text":
            return text_of(part.get("text"))
        case "tool_result":
            return "".join(segment.text for segment in _segments(part.get("content")))
        case "tool_use":
            return text_of(part.get("name")) + text_of(part.get("input"))
        case "thinking" | "redacted_thinking":
            return ""  # earlier turns' thinking is not counted again
        case _:
            return attachment(part)


def _ttl(part: Mapping[str, object]) -> Ttl | None:
    control = part.get("cache_control")
    if not isinstance(control, Mapping):
        return None
    return "1h" if control.get("ttl") == "1h" else "5m"


def _tool(body: Mapping[str, object]) -> tuple[str, object] | None:
    choice = body.get("tool_choice")
    kind = choice.get("type") if isinstance(choice, Mapping) else None
    if kind == "none":
        return None
    known = {str(tool.get("name")): tool.get("input_schema") for tool in objects(body.get("tools"))}
    if isinstance(choice, Mapping) and kind == "tool":
        wanted = str(choice.get("name"))
        if wanted not in known:
            raise RefusedError(400, f"tool_choice: Tool '{wanted}' not found in provided tools")
        return wanted, known[wanted]
    return next(iter(known.items()), None)


def _message(
    answer: Answer, content: list[dict[str, object]], stop_reason: str | None, usage: dict[str, object] | None
) -> dict[str, object]:
    message: dict[str, object] = {
        "model": answer.model,
        "id": f"msg_{answer.id}",
        "type": "message",
        "role": "assistant",
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": None,
    }
    if usage is not None:
        message["usage"] = usage
    return message


def _content(answer: Answer) -> list[dict[str, object]]:
    content: list[dict[str, object]] = []
    if answer.thinking is not None:
        content.append({"type": "thinking", "thinking": answer.thinking, "signature": SIGNATURE})
    if answer.tool is not None:
        arguments = msgspec.Raw(answer.tool.arguments.encode())
        content.append(
            {"type": "tool_use", "id": f"toolu_{answer.id}", "name": answer.tool.name, "input": arguments}
        )
    else:
        content.append({"type": "text", "text": answer.text})
    return content


def _block_events(index: int, block: dict[str, object], *, ping: bool) -> list[bytes]:
    """Return the events of one block: it starts empty, and its content follows in deltas."""
    deltas: list[dict[str, object]]
    match block["type"]:
        case "text":
            empty = {**block, "text": ""}
            deltas = [{"type": "text_delta", "text": piece} for piece in pieces(str(block["text"]))]
        case "thinking":
            empty = {**block, "thinking": "", "signature": ""}
            deltas = [
                {"type": "thinking_delta", "thinking": piece} for piece in pieces(str(block["thinking"]))
            ]
            deltas.append({"type": "signature_delta", "signature": block["signature"]})
        case _:
            empty = {**block, "input": {}}
            text = bytes(msgspec.json.encode(block["input"])).decode()
            parts = ["", *(text[at : at + ARGUMENT_CHARS] for at in range(0, len(text), ARGUMENT_CHARS))]
            deltas = [{"type": "input_json_delta", "partial_json": part} for part in parts]
    events = [_event("content_block_start", {"index": index, "content_block": empty})]
    if ping:
        events.append(b'event: ping\ndata: {"type": "ping"}\n\n')
    events += [_event("content_block_delta", {"index": index, "delta": delta}) for delta in deltas]
    return [*events, _event("content_block_stop", {"index": index})]


def _stop_reason(answer: Answer) -> str:
    if answer.tool is not None:
        return "tool_use"
    return "max_tokens" if answer.cut_by_limit else "end_turn"


def _usage(answer: Answer, output: int, *, start: bool = False) -> dict[str, object] | None:
    """Return the usage; its `input_tokens` are those neither read from the cache nor written to it."""
    counts = answer.counts
    if answer.form == "none":
        return None
    usage: dict[str, object] = {"input_tokens": counts.input - counts.cache_read - counts.cache_write}
    if answer.form in ("zeros", "cache"):
        usage |= {
            "cache_creation_input_tokens": counts.cache_write,
            "cache_read_input_tokens": counts.cache_read,
            "cache_creation": {
                "ephemeral_5m_input_tokens": counts.cache_write_5m,
                "ephemeral_1h_input_tokens": counts.cache_write_1h,
            },
        }
    usage["output_tokens"] = output
    if answer.form == "reasoning" and not start:
        usage["output_tokens_details"] = {"thinking_tokens": counts.reasoning}
    if answer.form != "plain":
        usage["service_tier"] = "standard"
    return usage


def _event(name: str, payload: dict[str, object]) -> bytes:
    data = msgspec.json.encode({"type": name, **payload})
    return b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"
