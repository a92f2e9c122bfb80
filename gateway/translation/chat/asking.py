"""Requests of chat completions, read: what each member means; what means nothing elsewhere is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from gateway.protocols.reading import invalid
from gateway.translation.attachments import from_url
from gateway.translation.chat import thoughts
from gateway.translation.effort import level_named
from gateway.translation.meaning import (
    CacheHint,
    Call,
    Choice,
    Conversation,
    Effort,
    File,
    Format,
    Image,
    Language,
    Part,
    Result,
    Role,
    Text,
    Tool,
    Turn,
    normal,
)
from gateway.translation.members import Members

DROPPED: Final = {
    "metadata": "labels for the provider's own store",
    "store": "nothing is stored elsewhere",
    "prompt_cache_key": "a hint to the provider's cache",
    "prompt_cache_retention": "a hint to the provider's cache",
    "prompt_cache_options": "a hint to the provider's cache",
    "prediction": "a hint that makes answers faster",
    "usage": "asks OpenRouter for its cost, which the gateway reports itself",
}
DROPPED_OF_MESSAGES: Final = {
    "annotations": "citations of an earlier answer",
    "audio": "an earlier spoken answer, whose words are its content",
}
_ROLES: Final[dict[str, Role]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "user",
}
_OTHERS_ONLY: Final = "no other protocol has it"


def read(body: dict[str, Any], target: Language) -> Conversation:
    """Return what a request means.

    Raises:
        CallerError: 400: it says something that cannot be carried over.
    """
    top = Members(body, "", target)
    for name in ("model", "stream_options"):
        top.take(name)  # the door's own matter
    _nothing_special(top)
    limit = top.count("max_completion_tokens")
    older = top.count("max_tokens")
    conversation = Conversation(
        turns=normal(_turn(message) for message in top.objects("messages")),
        tools=tuple([_tool(tool) for tool in top.objects("tools")]),
        choice=_choice(top),
        parallel=top.flag("parallel_tool_calls"),
        max_tokens=older if limit is None else limit,
        temperature=top.number("temperature"),
        top_p=top.number("top_p"),
        top_k=top.count("top_k"),
        stop=top.texts("stop"),
        effort=_effort(top),
        format=_format(top),
        verbosity=top.text("verbosity"),
        user=top.text("safety_identifier") or top.text("user"),
        tier=top.text("service_tier"),
        stream=top.flag("stream") is True,
    )
    top.take("user")
    top.done(DROPPED)
    return conversation


def _nothing_special(top: Members) -> None:
    """Take what is fine as long as it says what holds anyway."""
    top.only("n", 1, why="another protocol gives one answer to a request")
    for name in ("frequency_penalty", "presence_penalty"):
        top.only(name, 0, 0.0, why=_OTHERS_ONLY)
    top.only("logprobs", False, why=_OTHERS_ONLY)
    top.only("top_logprobs", 0, why=_OTHERS_ONLY)
    top.only("logit_bias", {}, why=_OTHERS_ONLY)
    top.only("modalities", ["text"], why="answers are carried over as text alone")


def _turn(message: Members) -> Turn:
    role = message.needed_text("role")
    if role not in _ROLES:
        raise message.refused("role", f"{role[:32]!r} is no role that is known here")
    hint = message.cache()
    parts: list[Part]
    if role == "tool":
        message.take("name")  # of the function: its call says it
        content = [part for part in _content(message) if isinstance(part, Text | Image | File)]
        parts = [Result(call_id=message.needed_text("tool_call_id"), parts=tuple(content), cache=hint)]
    elif role == "assistant":
        parts = [*_thoughts(message), *_content(message), *_refusal(message), *_calls(message)]
        message.only("prefix", False, why="an answer cannot be begun for the model")
    else:
        parts = _content(message)
    if hint is not None and parts and isinstance(last := parts[-1], Text):
        parts[-1] = Text(text=last.text, cache=hint)
    message.only("tool_calls", [])
    message.done(DROPPED_OF_MESSAGES if role == "assistant" else ())
    return Turn(role=_ROLES[role], parts=tuple(parts))


def _content(message: Members) -> list[Part]:
    content = message.take("content")
    if content is None:
        return []
    if isinstance(content, str):
        return [Text(text=content)] if content else []
    if not isinstance(content, list):
        raise invalid(message.at("content"), f"`{message.at('content')}` must be text or a list")
    return [
        _part(Members(part, f"{message.at('content')}[{at}]", message.target))
        for at, part in enumerate(content)
    ]


def _part(part: Members) -> Part:
    kind = part.needed_text("type")
    hint = part.cache()
    found: Part
    match kind:
        case "text":
            found = Text(text=part.needed_text("text"), cache=hint)
        case "refusal":
            found = Text(text=part.needed_text("refusal"), refusal=True)
        case "image_url":
            found = _image(part, hint)
        case "file":
            inner = part.inner("file")
            if inner is None:
                raise invalid(part.at("file"), f"`{part.at('file')}` is missing")
            if inner.take("file_id") is not None:
                raise inner.refused("file_id", "another provider does not have the file")
            url, media_type, data = from_url(inner.needed_text("file_data"))
            found = File(url=url, media_type=media_type, data=data, name=inner.text("filename"), cache=hint)
            inner.done()
        case _:
            raise part.refused("type", f"{kind[:64]!r} has no counterpart there")
    part.done({"prompt_cache_breakpoint"})
    return found


def _image(part: Members, hint: CacheHint | None) -> Image:
    given = part.take("image_url")
    inner = Members({"url": given} if isinstance(given, str) else given, part.at("image_url"), part.target)
    url, media_type, data = from_url(inner.needed_text("url"))
    detail = inner.text("detail")
    inner.done({"format"})
    return Image(url=url, media_type=media_type, data=data, detail=detail, cache=hint)


def _thoughts(message: Members) -> list[Part]:
    names = (*thoughts.NAMES, "reasoning_details")
    return list(thoughts.read({name: message.take(name) for name in names}))


def _refusal(message: Members) -> list[Part]:
    refusal = message.text("refusal")
    return [Text(text=refusal, refusal=True)] if refusal else []


def _calls(message: Members) -> Iterator[Part]:
    for call in message.objects("tool_calls"):
        kind = call.text("type") or "function"
        call.take("index")
        identity = call.needed_text("id")
        inner = call.inner(kind) if kind in ("function", "custom") else None
        if inner is None:
            raise call.refused("type", "calls are carried over of functions and custom tools")
        freeform = kind == "custom"
        arguments = inner.text("input" if freeform else "arguments") or ""
        yield Call(id=identity, name=inner.needed_text("name"), arguments=arguments, freeform=freeform)
        inner.done()
        call.done({"cache_control"})


def _tool(tool: Members) -> Tool:
    kind = tool.text("type") or "function"
    hint = tool.cache()
    inner = tool.inner(kind) if kind in ("function", "custom") else None
    if inner is None:
        raise tool.refused("type", "only functions and custom tools can be; this is a provider's own tool")
    if kind == "custom":
        grammar = _grammar(inner)
        made = Tool(
            name=inner.needed_text("name"),
            description=inner.text("description"),
            freeform=True,
            grammar=grammar,
        )
    else:
        made = Tool(
            name=inner.needed_text("name"),
            description=inner.text("description"),
            schema=inner.schema("parameters"),
            strict=inner.flag("strict"),
            cache=hint,
        )
    inner.done()
    tool.done()
    return made


def _grammar(tool: Members) -> str | None:
    """Return the grammar of a custom tool's input, None for plain text."""
    form = tool.inner("format")
    if form is None:
        return None
    inner = form.inner("grammar") or form
    kind = form.text("type")
    if kind == "text":
        form.done()
        return None
    definition = inner.needed_text("definition")
    inner.take("syntax")
    inner.done({"type"})
    return definition


def _choice(top: Members) -> Choice | None:
    value = top.take("tool_choice")
    match value:
        case None:
            return None
        case "auto" | "none":
            return Choice(kind=value)
        case "required" | "any":
            return Choice(kind="any")
        case {"type": "function", "function": {"name": str(name)}} | {
            "type": "custom",
            "custom": {"name": str(name)},
        }:
            return Choice(kind="named", name=name)
        case _:
            raise top.refused("tool_choice", "it is none of auto, none, required and the name of a function")


def _effort(top: Members) -> Effort | None:
    """Return the effort, in OpenAI's word or in OpenRouter's or Anthropic's object."""
    level = level_named(top.text("reasoning_effort"), "reasoning_effort", top.target)
    budget: int | None = None
    reasoning = top.inner("reasoning")
    if reasoning is not None:
        level = level or level_named(reasoning.text("effort"), "reasoning.effort", top.target)
        budget = reasoning.count("max_tokens")
        if reasoning.flag("enabled") is True and level is None and budget is None:
            level = "medium"  # OpenRouter's default
        reasoning.done({"exclude"})
    thinking = top.inner("thinking")
    if thinking is not None:
        thinking.take("type")
        budget = thinking.count("budget_tokens") or budget
        thinking.done()
    return None if level is None and budget is None else Effort(level=level, budget=budget)


def _format(top: Members) -> Format | None:
    form = top.inner("response_format")
    if form is None:
        return None
    match kind := form.text("type"):
        case "text":
            found = None
        case "json_object":
            found = Format()
        case "json_schema":
            inner = form.inner("json_schema")
            if inner is None:
                raise invalid(form.at("json_schema"), f"`{form.at('json_schema')}` is missing")
            found = Format(
                schema=inner.schema("schema") or {},
                name=inner.text("name"),
                description=inner.text("description"),
                strict=inner.flag("strict"),
            )
            inner.done()
        case _:
            raise form.refused("type", f"{(kind or '')[:32]!r} is no format that is known here")
    form.done()
    return found
