"""Responses: the simulated provider in the words of OpenAI's responses.

The last item decides: after a user's message the first tool is called, after a tool's result text comes. A
wanted JSON schema gets a value that satisfies it.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import Final

import msgspec

from gateway.providers.simulated.answers import Answer, Ask, Segment, attachment, pieces
from gateway.providers.simulated.chat import Chat
from gateway.providers.simulated.wire import RefusedError, limit, objects, text_of

ARGUMENT_CHARS: Final = 12
"""Characters of a tool's arguments in one event."""


class Responses(Chat):
    """`POST /v1/responses`; refusals are those of chat completions."""

    def read(self, body: Mapping[str, object], headers: Mapping[bytes, bytes]) -> Ask:  # noqa: ARG002  # the interface
        """Take a request apart; raises RefusedError."""
        model = body.get("model")
        if not isinstance(model, str) or not model:
            raise _missing("model")
        items = _items(body.get("input"))
        tools = objects(body.get("tools"))
        prompt = [Segment(text_of(tools))] if tools else []
        if body.get("instructions"):
            prompt.append(Segment(text_of(body["instructions"])))
        prompt += [Segment(_text(item)) for item in items]
        users = [item for item in items if item.get("role") == "user"]
        return Ask(
            model=model,
            stream=body.get("stream") is True,
            include_usage=True,
            max_tokens=limit(body.get("max_output_tokens"), "max_output_tokens"),
            prompt=tuple(prompt),
            messages=len(items),
            last_text=_text(users[-1]) if users else "",
            tool=_tool(body, tools) if items[-1].get("role") == "user" else None,
            schema=_schema(body.get("text")),
        )

    def whole(self, answer: Answer) -> bytes:
        """Return a `response` object."""
        return msgspec.json.encode(_response(answer, _output(answer)))

    def events(self, answer: Answer, *, include_usage: bool) -> list[bytes]:  # noqa: ARG002  # always reported here
        """Return the events from `response.created` to the terminal one."""
        numbers = count()

        def event(kind: str, **members: object) -> bytes:
            data = msgspec.json.encode({"type": kind, **members, "sequence_number": next(numbers)})
            return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"

        begun = _response(answer, None)
        events = [event("response.created", response=begun), event("response.in_progress", response=begun)]
        output = _output(answer)
        for index, item in enumerate(output):
            place: dict[str, object] = {"output_index": index}
            events.append(event("response.output_item.added", **place, item=_begun(item)))
            place["item_id"] = item["id"]
            events += [event(kind, **place, **members) for kind, members in _item_events(item)]
            events.append(event("response.output_item.done", output_index=index, item=item))
        done = _response(answer, output)
        events.append(event(f"response.{done['status']}", response=done))
        return events

    def error_event(self) -> bytes:
        """Return an error in a stream, after which no terminal event comes."""
        return (
            b'event: error\ndata: {"type":"error","code":"server_error",'
            b'"message":"The server had an error while processing your request.",'
            b'"param":null,"sequence_number":3}\n\n'
        )


class Compact(Responses):
    """`POST /v1/responses/compact`: what was said so far, as one item that only the provider can read."""

    streams = False

    def whole(self, answer: Answer) -> bytes:
        """Return a `response.compaction` object."""
        item = {"id": f"cmp_{answer.id}", "type": "compaction", "encrypted_content": "c2ltdWxhdGVk"}
        reply: dict[str, object] = {
            "id": f"resp_{answer.id}",
            "object": "response.compaction",
            "created_at": answer.created,
            "output": [item],
        }
        if answer.form != "none":
            reply["usage"] = _usage(answer)
        return msgspec.json.encode(reply)


class InputTokens(Responses):
    """`POST /v1/responses/input_tokens`: the number is the answer, and nothing is consumed."""

    streams = False

    def whole(self, answer: Answer) -> bytes:
        """Return the count."""
        return msgspec.json.encode({"object": "response.input_tokens", "input_tokens": answer.counts.input})


def _missing(name: str) -> RefusedError:
    return RefusedError(
        400, f"Missing required parameter: '{name}'.", code="missing_required_parameter", param=name
    )


def _items(value: object) -> list[Mapping[str, object]]:
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if value is None:
        raise _missing("input")
    items = objects(value)
    if not items or not isinstance(value, list) or len(items) != len(value):
        raise RefusedError(
            400,
            "Invalid 'input': expected a string or a non-empty array of objects.",
            code="invalid_type",
            param="input",
        )
    return items


def _text(item: Mapping[str, object]) -> str:
    content = item.get("content")
    if isinstance(content, list):
        return "".join([text_of(p["text"]) if "text" in p else attachment(p) for p in objects(content)])
    if content is not None:
        return text_of(content)
    return "".join([text_of(item.get(name)) for name in ("name", "arguments", "output")])


def _tool(body: Mapping[str, object], tools: list[Mapping[str, object]]) -> tuple[str, object] | None:
    choice = body.get("tool_choice")
    if choice == "none":
        return None
    known = {str(tool.get("name")): tool.get("parameters") for tool in tools if "name" in tool}
    if isinstance(choice, Mapping) and "name" in choice:
        wanted = str(choice["name"])
        if wanted not in known:
            raise RefusedError(400, f"Tool choice '{wanted}' is not in 'tools'.", param="tool_choice")
        return wanted, known[wanted]
    return next(iter(known.items()), None)


def _schema(value: object) -> object:
    form = value.get("format") if isinstance(value, Mapping) else None
    return form.get("schema") if isinstance(form, Mapping) and form.get("type") == "json_schema" else None


def _response(answer: Answer, output: list[dict[str, object]] | None) -> dict[str, object]:
    """Return the response object; one that has only begun has no output."""
    cut = answer.cut_by_limit and output is not None
    ended = "incomplete" if cut else "completed"
    response: dict[str, object] = {
        "id": f"resp_{answer.id}",
        "object": "response",
        "created_at": answer.created,
        "status": "in_progress" if output is None else ended,
        "background": False,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "instructions": None,
        "metadata": {},
        "model": answer.model,
        "output": output or [],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "service_tier": "auto" if output is None else "default",
        "store": True,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
    }
    response["usage"] = None if output is None or answer.form == "none" else _usage(answer)
    return response


def _output(answer: Answer) -> list[dict[str, object]]:
    output: list[dict[str, object]] = []
    if answer.thinking is not None:
        summary = [{"type": "summary_text", "text": answer.thinking}]
        output.append({"id": f"rs_{answer.id}", "type": "reasoning", "summary": summary})
    status = "incomplete" if answer.cut_by_limit else "completed"
    if answer.tool is not None:
        call = {"call_id": f"call_{answer.id}", "name": answer.tool.name, "arguments": answer.tool.arguments}
        output.append({"id": f"fc_{answer.id}", "type": "function_call", "status": status, **call})
    else:
        part = {"type": "output_text", "annotations": [], "logprobs": [], "text": answer.text}
        message = {"type": "message", "status": status, "role": "assistant", "content": [part]}
        output.append({"id": f"msg_{answer.id}", **message})
    return output


def _begun(item: dict[str, object]) -> dict[str, object]:
    """Return an item as it stands before its deltas."""
    empty: dict[str, object] = {"summary": [], "content": [], "arguments": "", "status": "in_progress"}
    return {name: empty.get(name, value) for name, value in item.items()}


def _item_events(item: dict[str, object]) -> list[tuple[str, dict[str, object]]]:
    """Return (kind, members) of what stands between the item's first and last event."""
    if item["type"] == "function_call":
        text, kind = str(item["arguments"]), "response.function_call_arguments"
        cuts = [text[at : at + ARGUMENT_CHARS] for at in range(0, len(text), ARGUMENT_CHARS)]
        deltas: list[tuple[str, dict[str, object]]] = [(f"{kind}.delta", {"delta": cut}) for cut in cuts]
        return [*deltas, (f"{kind}.done", {"arguments": text})]
    thinks = item["type"] == "reasoning"
    (part,) = objects(item["summary" if thinks else "content"])
    kind = "response.reasoning_summary_text" if thinks else "response.output_text"
    around = "response.reasoning_summary_part" if thinks else "response.content_part"
    more: dict[str, object] = {} if thinks else {"logprobs": []}
    place: dict[str, object] = {"summary_index" if thinks else "content_index": 0}
    text = str(part["text"])
    return [
        (f"{around}.added", {**place, "part": {**part, "text": ""}}),
        *((f"{kind}.delta", {**place, "delta": piece, **more}) for piece in pieces(text)),
        (f"{kind}.done", {**place, "text": text, **more}),
        (f"{around}.done", {**place, "part": part}),
    ]


def _usage(answer: Answer) -> dict[str, object]:
    counts = answer.counts
    usage: dict[str, object] = {"input_tokens": counts.input}
    if answer.form == "cache":
        usage["input_tokens_details"] = {
            "cached_tokens": counts.cache_read,
            "cache_write_tokens": counts.cache_write,
        }
    elif answer.form == "zeros":
        usage["input_tokens_details"] = {"cached_tokens": 0}
    usage["output_tokens"] = counts.output
    if answer.form in ("zeros", "reasoning"):
        usage["output_tokens_details"] = {"reasoning_tokens": counts.reasoning}
    usage["total_tokens"] = counts.input + counts.output
    return usage
