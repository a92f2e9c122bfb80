"""Chat: the simulated provider in OpenAI's words.

The last message decides: after a user's message the first tool is called, after a tool's result text comes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from gateway.providers.simulated.answers import Answer, Ask, Segment, attachment, pieces
from gateway.providers.simulated.wire import RefusedError, limit, objects, text_of

ARGUMENT_CHARS: Final = 12
"""Characters of a tool's arguments in one chunk."""
TYPES: Final = {401: "invalid_request_error", 429: "requests", 500: "server_error"}
CODES: Final = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}


class Chat:
    """`POST /v1/chat/completions`."""

    streams = True

    def read(self, body: Mapping[str, object], headers: Mapping[bytes, bytes]) -> Ask:  # noqa: ARG002  # the interface
        """Take a request apart; raises RefusedError."""
        model = body.get("model")
        if not isinstance(model, str) or not model:
            raise RefusedError(400, "you must provide a model parameter")
        listed = body.get("messages")
        if listed is None:
            raise _missing("messages")
        messages = objects(listed)
        if not messages or not isinstance(listed, list) or len(messages) != len(listed):
            raise RefusedError(
                400,
                "Invalid 'messages': expected a non-empty array of objects.",
                code="invalid_type",
                param="messages",
            )
        for at, message in enumerate(messages):
            if not isinstance(message.get("role"), str):
                raise _missing(f"messages[{at}].role")
        options = body.get("stream_options")
        name = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
        users = [message for message in messages if message["role"] == "user"]
        tools = objects(body.get("tools"))
        prompt = [Segment(text_of(tools))] if tools else []
        prompt += [Segment(_text(message)) for message in messages]
        return Ask(
            model=model,
            stream=body.get("stream") is True,
            include_usage=isinstance(options, Mapping) and options.get("include_usage") is True,
            max_tokens=limit(body.get(name), name),
            prompt=tuple(prompt),
            messages=len(messages),
            last_text=_text(users[-1]) if users else "",
            tool=_tool(body, tools) if messages[-1]["role"] == "user" else None,
        )

    def whole(self, answer: Answer) -> bytes:
        """Return a `chat.completion` object."""
        message: dict[str, object] = {"role": "assistant", "content": answer.text or None, "refusal": None}
        if answer.tool is not None:
            message["tool_calls"] = [
                {
                    "id": f"call_{answer.id}",
                    "type": "function",
                    "function": {"name": answer.tool.name, "arguments": answer.tool.arguments},
                }
            ]
        reply: dict[str, object] = {
            "id": f"chatcmpl-{answer.id}",
            "object": "chat.completion",
            "created": answer.created,
            "model": answer.model,
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": _finish(answer)}],
        }
        if answer.form != "none":
            reply["usage"] = _usage(answer)
        reply["service_tier"] = "default"
        reply["system_fingerprint"] = "fp_simulated"
        return msgspec.json.encode(reply)

    def events(self, answer: Answer, *, include_usage: bool) -> list[bytes]:
        """Return `chat.completion.chunk` events and `[DONE]`; usage only if asked for, and null before."""
        head = (
            f'data: {{"id":"chatcmpl-{answer.id}","object":"chat.completion.chunk",'
            f'"created":{answer.created},"model":{_json(answer.model)},"service_tier":"default",'
            '"system_fingerprint":"fp_simulated","choices":'
        )
        with_usage = include_usage and answer.form != "none"
        tail = ',"usage":null}\n\n' if with_usage else "}\n\n"

        def chunk(delta: str, finish: str = "null") -> bytes:
            choice = f'[{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":{finish}}}]'
            return f"{head}{choice}{tail}".encode()

        if answer.tool is not None:
            events = [chunk(delta) for delta in _tool_deltas(answer)]
        else:
            events = [chunk('{"role":"assistant","content":"","refusal":null}')]
            events += [chunk(f'{{"content":{_json(piece)}}}') for piece in pieces(answer.text)]
        events.append(chunk("{}", f'"{_finish(answer)}"'))
        if with_usage:
            events.append(f'{head}[],"usage":{_json(_usage(answer))}}}\n\n'.encode())
        events.append(b"data: [DONE]\n\n")
        return events

    def error(self, refused: RefusedError, request_id: str) -> bytes:  # noqa: ARG002  # the interface; not in this body
        """Return OpenAI's envelope."""
        kind = "server_error" if refused.status >= 500 else "invalid_request_error"
        error = {
            "message": refused.message,
            "type": TYPES.get(refused.status, kind),
            "param": refused.param,
            "code": refused.code or CODES.get(refused.status),
        }
        return msgspec.json.encode({"error": error})

    def error_event(self) -> bytes:
        """Return an error in a stream, after which no `[DONE]` comes."""
        return (
            b'data: {"error":{"message":"The server had an error while processing your request.",'
            b'"type":"server_error","param":null,"code":null}}\n\n'
        )

    def id_header(self, request_id: str) -> tuple[bytes, bytes]:
        """Return `x-request-id`."""
        return (b"x-request-id", f"req_{request_id}".encode())


def _missing(name: str) -> RefusedError:
    return RefusedError(
        400, f"Missing required parameter: '{name}'.", code="missing_required_parameter", param=name
    )


def _text(message: Mapping[str, object]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        parts = [text_of(p["text"]) if "text" in p else attachment(p) for p in objects(content)]
        text = "".join(parts)
    else:
        text = text_of(content)
    calls = message.get("tool_calls")
    return text + text_of(calls) if calls else text


def _tool(body: Mapping[str, object], tools: list[Mapping[str, object]]) -> tuple[str, object] | None:
    choice = body.get("tool_choice")
    if choice == "none":
        return None
    functions = [tool["function"] for tool in tools if isinstance(tool.get("function"), Mapping)]
    known = {str(f.get("name")): f.get("parameters") for f in objects(functions)}
    if isinstance(choice, Mapping) and isinstance(choice.get("function"), Mapping):
        wanted = str(choice["function"].get("name"))
        if wanted not in known:
            raise RefusedError(400, f"Tool choice '{wanted}' is not in 'tools'.", param="tool_choice")
        return wanted, known[wanted]
    return next(iter(known.items()), None)


def _tool_deltas(answer: Answer) -> list[str]:
    assert answer.tool is not None  # the caller's branch
    arguments = answer.tool.arguments
    first = (
        '{"role":"assistant","content":null,"tool_calls":[{"index":0,'
        f'"id":"call_{answer.id}","type":"function",'
        f'"function":{{"name":{_json(answer.tool.name)},"arguments":""}}}}],"refusal":null}}'
    )
    parts = [arguments[at : at + ARGUMENT_CHARS] for at in range(0, len(arguments), ARGUMENT_CHARS)]
    return [
        first,
        *(f'{{"tool_calls":[{{"index":0,"function":{{"arguments":{_json(part)}}}}}]}}' for part in parts),
    ]


def _finish(answer: Answer) -> str:
    if answer.tool is not None:
        return "tool_calls"
    return "length" if answer.cut_by_limit else "stop"


def _usage(answer: Answer) -> dict[str, object]:
    counts = answer.counts
    usage: dict[str, object] = {
        "prompt_tokens": counts.input,
        "completion_tokens": counts.output,
        "total_tokens": counts.input + counts.output,
    }
    if answer.form == "cache":
        usage["prompt_tokens_details"] = {
            "cached_tokens": counts.cache_read,
            "cache_write_tokens": counts.cache_write,
        }
    elif answer.form == "zeros":
        usage["prompt_tokens_details"] = {"cached_tokens": 0, "audio_tokens": 0}
    if answer.form in ("zeros", "reasoning"):
        usage["completion_tokens_details"] = {
            "reasoning_tokens": counts.reasoning,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        }
    return usage


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
