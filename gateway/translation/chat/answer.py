"""Whole replies of chat completions: read into an answer, and written from one; of choices the first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from gateway.translation.answering import Asked, chat_usage
from gateway.translation.chat import thoughts
from gateway.translation.chat.telling import written_call
from gateway.translation.freeform import input_of
from gateway.translation.meaning import Answer, Call, Failure, Stop, Text, Thinking
from gateway.translation.streaming import arguments_of, dict_of, list_of, text_of

STOPS: Final[dict[str, Stop]] = {
    "length": "length",
    "tool_calls": "tool",
    "function_call": "tool",
    "content_filter": "filtered",
}
"""Any other reason, and none, is a plain end."""
FINISH: Final[dict[Stop, str]] = {
    "end": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "tool": "tool_calls",
    "filtered": "content_filter",
}


def read(value: dict[str, Any]) -> Answer:
    """Return what a reply says; what cannot be read is not there."""
    choices = list_of(value.get("choices"))
    choice = dict_of(choices[0]) if choices else {}
    message = dict_of(choice.get("message"))
    identity = text_of(value.get("id")) or None
    parts: list[Text | Thinking | Call] = [*thoughts.read(message), *_texts(message)]
    calls = list(_calls(message, identity))
    return Answer(
        id=identity,
        model=text_of(value.get("model")) or None,
        parts=(*parts, *calls),
        stop=stop_of(choice.get("finish_reason"), called=bool(calls)),
    )


def stop_of(reason: object, *, called: bool) -> Stop:
    """Return why the model stopped; providers say `stop` behind calls too, and calls are to be answered."""
    stop = STOPS.get(text_of(reason), "end")
    if stop in ("end", "tool"):
        return "tool" if called else "end"
    return stop


def texts_in(content: object) -> str:
    """Return the text of a content, in one piece or in parts."""
    if isinstance(content, str):
        return content
    return "".join([text_of(dict_of(part).get("text")) for part in list_of(content)])


def _texts(message: dict[str, Any]) -> Iterator[Text]:
    if content := texts_in(message.get("content")):
        yield Text(text=content)
    if refusal := text_of(message.get("refusal")):
        yield Text(text=refusal, refusal=True)


def _calls(message: dict[str, Any], identity: str | None) -> Iterator[Call]:
    listed = list_of(message.get("tool_calls"))
    if isinstance(message.get("function_call"), dict):
        listed = [*listed, {"function": message["function_call"]}]
    for at, call in enumerate(listed):
        call = dict_of(call)
        inner = dict_of(call.get("function") or call.get("custom"))
        yield Call(
            id=text_of(call.get("id")) or minted(identity, at),
            name=text_of(inner.get("name")),
            arguments=arguments_of(inner.get("arguments")) or text_of(inner.get("input")),
            freeform=call.get("type") == "custom",
        )


def minted(identity: str | None, at: int) -> str:
    """Return an id for a call that its provider gave none."""
    return f"call_{identity or 'reply'}_{at}"


def read_failure(value: dict[str, Any]) -> Failure | None:
    """Return the provider's error, None where the value is none."""
    error = value.get("error")
    if isinstance(error, str) and error:
        return Failure(message=error, code="upstream_error")
    if not isinstance(error, dict):
        return None
    words = [error.get(name) for name in ("code", "type")]
    code = next((str(word) for word in words if isinstance(word, str | int) and word), "upstream_error")
    return Failure(
        message=text_of(error.get("message")) or "the provider told no reason",
        code=code,
        param=text_of(error.get("param")) or None,
    )


# write


def write(answer: Answer, asked: Asked, counts: Mapping[str, int]) -> dict[str, Any]:
    """Return the reply in the words of chat completions."""
    texts = [part for part in answer.parts if isinstance(part, Text)]
    message: dict[str, Any] = {
        "role": "assistant",
        "content": "".join([part.text for part in texts if not part.refusal]) or None,
        "refusal": "".join([part.text for part in texts if part.refusal]) or None,
    }
    calls = [part for part in answer.parts if isinstance(part, Call)]
    if calls:
        message["tool_calls"] = [written_call(_as_offered(call, asked)) for call in calls]
    elif message["content"] is None and message["refusal"] is None:
        message["content"] = ""
    message |= thoughts.written([part for part in answer.parts if isinstance(part, Thinking)])
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": FINISH[answer.stop]}
    reply: dict[str, Any] = {
        "id": answer.id or "chatcmpl",
        "object": "chat.completion",
        "created": asked.at_unix_s,
        "model": answer.model or asked.model,
        "choices": [choice],
    }
    usage = chat_usage(counts)
    if usage is not None:
        reply["usage"] = usage
    return reply


def _as_offered(call: Call, asked: Asked) -> Call:
    if call.name not in asked.freeform:
        return call
    return Call(id=call.id, name=call.name, arguments=input_of(call.arguments), freeform=True)
