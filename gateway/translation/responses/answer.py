"""Whole replies of responses: read into an answer, and written from one.

A written reply names its items after the reply, so that the same answer has the same bytes; what the request
said stands in it again, as clients expect.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from gateway.translation.answering import Asked, responses_usage
from gateway.translation.freeform import input_of
from gateway.translation.meaning import Answer, Call, Failure, Stop, Text, Thinking, sealed_for, unsealed
from gateway.translation.responses.asking import thought_of
from gateway.translation.streaming import dict_of, list_of, text_of

INCOMPLETE: Final[dict[str, Stop]] = {
    "max_output_tokens": "length",
    "max_tokens": "length",
    "content_filter": "filtered",
}
"""Why a response is incomplete; one that is complete ended, or calls a tool."""
_REASONS: Final[dict[Stop, str]] = {"length": "max_output_tokens", "filtered": "content_filter"}
ECHOED: Final[dict[str, Any]] = {
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "reasoning": {"effort": None, "summary": None},
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": None,
    "truncation": "disabled",
    "user": None,
}
"""What a reply repeats of its request, and what it says where the request said nothing."""


def read(value: dict[str, Any]) -> Answer:
    """Return what a reply says; what cannot be read is not there."""
    parts = [part for item in list_of(value.get("output")) for part in parts_of(dict_of(item))]
    return Answer(
        id=text_of(value.get("id")) or None,
        model=text_of(value.get("model")) or None,
        parts=tuple(parts),
        stop=stop_of(value, called=any(isinstance(part, Call) for part in parts), parts=parts),
    )


def stop_of(value: dict[str, Any], *, called: bool, parts: list[Text | Thinking | Call]) -> Stop:
    """Return why the model stopped."""
    reason = text_of(dict_of(value.get("incomplete_details")).get("reason"))
    if reason in INCOMPLETE:
        return INCOMPLETE[reason]
    if called:
        return "tool"
    refused = any(isinstance(part, Text) and part.refusal for part in parts)
    return "filtered" if refused else "end"


def parts_of(item: dict[str, Any]) -> list[Text | Thinking | Call]:
    """Return what one item of the output says."""
    match item.get("type"):
        case "message":
            texts = [_text(dict_of(part)) for part in list_of(item.get("content"))]
            return [text for text in texts if text is not None]
        case "function_call" | "custom_tool_call":
            freeform = item["type"] == "custom_tool_call"
            return [
                Call(
                    id=text_of(item.get("call_id")) or text_of(item.get("id")),
                    name=text_of(item.get("name")),
                    arguments=text_of(item.get("input" if freeform else "arguments")),
                    freeform=freeform,
                )
            ]
        case "reasoning":
            seal, origin = unsealed(text_of(item.get("encrypted_content")), "responses")
            text = thought_of(item.get("summary")) or thought_of(item.get("content"))
            return [Thinking(text=text, seal=seal, origin=origin)] if text or seal else []
        case _:
            return []  # calls of the provider's own tools, which no translated request can offer


def _text(part: dict[str, Any]) -> Text | None:
    refusal = text_of(part.get("refusal"))
    text = refusal or text_of(part.get("text"))
    return Text(text=text, refusal=bool(refusal)) if text else None


def read_failure(value: dict[str, Any]) -> Failure | None:
    """Return the provider's error, flat or under `error`; None where the value is none."""
    error = value.get("error")
    if not isinstance(error, dict):
        error = value if value.get("type") == "error" else None
    if error is None:
        return None
    words = [error.get(name) for name in ("code", "type")]
    code = next((str(word) for word in words if isinstance(word, str | int) and word), "upstream_error")
    return Failure(
        message=text_of(error.get("message")) or "the provider told no reason",
        code="upstream_error" if code == "error" else code,
        param=text_of(error.get("param")) or None,
    )


# write


def write(answer: Answer, asked: Asked, counts: Mapping[str, int]) -> dict[str, Any]:
    """Return the reply in the words of responses."""
    reason = _REASONS.get(answer.stop)
    response = shell(answer.id, answer.model, asked)
    response["status"] = "completed" if reason is None else "incomplete"
    response["incomplete_details"] = None if reason is None else {"reason": reason}
    response["output"] = [
        item_of(part, at, response["id"], asked) for at, part in enumerate(_worth_telling(answer))
    ]
    response["usage"] = responses_usage(counts)
    return response


def _worth_telling(answer: Answer) -> list[Text | Thinking | Call]:
    return [part for part in answer.parts if not isinstance(part, Thinking) or part.text or part.seal]


def shell(identity: str | None, model: str | None, asked: Asked) -> dict[str, Any]:
    """Return a response that has begun."""
    return {
        "id": identity or "resp",
        "object": "response",
        "created_at": asked.at_unix_s,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "model": model or asked.model,
        "output": [],
        "store": False,
        "usage": None,
        **ECHOED,
        **{name: value for name, value in asked.echo.items() if value is not None},
    }


def item_of(part: Text | Thinking | Call, at: int, reply_id: str, asked: Asked) -> dict[str, Any]:
    """Return a part as a whole item."""
    match part:
        case Text():
            content = text_part(part.text, refusal=part.refusal)
            return {**begun_message(at, reply_id), "status": "completed", "content": [content]}
        case Call() if part.name in asked.freeform or part.freeform:
            text = part.arguments if part.freeform else input_of(part.arguments)
            return {
                **begun_call(part.id, part.name, at, reply_id, freeform=True),
                "status": "completed",
                "input": text,
            }
        case Call():
            call = begun_call(part.id, part.name, at, reply_id, freeform=False)
            return {**call, "status": "completed", "arguments": part.arguments}
        case Thinking():
            item = begun_thought(at, reply_id)
            if part.text:
                item["summary"] = [{"type": "summary_text", "text": part.text}]
            seal = sealed_for(part, "responses")
            if seal is not None:
                item["encrypted_content"] = seal
            return item


def begun_message(at: int, reply_id: str) -> dict[str, Any]:
    """Return a message that has begun."""
    return {
        "id": f"msg_{reply_id}_{at}",
        "type": "message",
        "status": "in_progress",
        "role": "assistant",
        "content": [],
    }


def begun_call(call_id: str, name: str, at: int, reply_id: str, *, freeform: bool) -> dict[str, Any]:
    """Return a call that has begun."""
    kind, prefix, member = (
        ("custom_tool_call", "ctc", "input") if freeform else ("function_call", "fc", "arguments")
    )
    return {
        "id": f"{prefix}_{reply_id}_{at}",
        "type": kind,
        "status": "in_progress",
        "call_id": call_id,
        "name": name,
        member: "",
    }


def begun_thought(at: int, reply_id: str) -> dict[str, Any]:
    """Return a thought that has begun."""
    return {"id": f"rs_{reply_id}_{at}", "type": "reasoning", "summary": []}


def text_part(text: str, *, refusal: bool) -> dict[str, Any]:
    """Return a text as a part of a message."""
    if refusal:
        return {"type": "refusal", "refusal": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
