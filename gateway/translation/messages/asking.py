"""Requests of messages, read: what each member means; what means nothing elsewhere is refused."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from gateway.protocols.reading import invalid
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
    Text,
    Thinking,
    Tool,
    Turn,
    normal,
    unsealed,
)
from gateway.translation.members import Members

DROPPED: Final = {
    "cache_control": "a hint to the provider's cache",
}
DROPPED_OF_PARTS: Final = {
    "cache_control": "a hint to the provider's cache",
    "citations": "citations of an earlier answer; its text stays",
    "caller": "who called: the model itself, directly",
    "title": "a document's title",
    "context": "a document's context",
}
DROPPED_OF_TOOLS: Final = {
    "eager_input_streaming": "a hint on how arguments are streamed",
    "allowed_callers": "who may call: the model itself, directly",
    "input_examples": "examples beside the description",
}


def read(body: dict[str, Any], target: Language) -> Conversation:
    """Return what a request means.

    Raises:
        CallerError: 400: it says something that cannot be carried over.
    """
    top = Members(body, "", target)
    top.take("model")
    _edits(top)
    system = _parts(top, "system")
    turns = [Turn(role="system", parts=tuple(system))] if system else []
    turns += [_turn(message) for message in top.objects("messages")]
    choice, parallel = _choice(top)
    effort, form = _effort_and_format(top)
    metadata = top.inner("metadata")
    conversation = Conversation(
        turns=normal(turns),
        tools=tuple([_tool(tool) for tool in top.objects("tools")]),
        choice=choice,
        parallel=parallel,
        max_tokens=top.count("max_tokens"),
        temperature=top.number("temperature"),
        top_p=top.number("top_p"),
        top_k=top.count("top_k"),
        stop=top.texts("stop_sequences"),
        effort=effort,
        format=form,
        user=None if metadata is None else metadata.text("user_id"),
        tier={"standard_only": "default", None: None}.get(tier := top.text("service_tier"), tier),
        stream=top.flag("stream") is True,
    )
    if metadata is not None:
        metadata.done()
    top.only("speed", "standard")
    top.done(DROPPED)
    return conversation


def _edits(top: Members) -> None:
    """Take the edits of the context; to clear thinking there is nothing to be done elsewhere."""
    edits = top.inner("context_management")
    if edits is None:
        return
    for edit in edits.objects("edits"):
        kind = edit.needed_text("type")
        if not kind.startswith("clear_thinking_"):
            raise edit.refused("type", f"{kind[:64]!r} is done by Anthropic's servers alone")
    edits.done()


def _turn(message: Members) -> Turn:
    role = message.needed_text("role")
    if role not in ("user", "assistant", "system"):
        raise message.refused("role", f"{role[:32]!r} is no role that is known here")
    parts = _parts(message, "content")
    message.done()
    return Turn(role=role, parts=tuple(parts))  # type: ignore[arg-type]  # one of the three


def _parts(owner: Members, name: str) -> list[Part]:
    content = owner.take(name)
    if isinstance(content, str):
        return [Text(text=content)] if content else []
    if content is None:
        return []
    if not isinstance(content, list):
        raise invalid(owner.at(name), f"`{owner.at(name)}` must be text or a list")
    blocks = [Members(block, f"{owner.at(name)}[{at}]", owner.target) for at, block in enumerate(content)]
    return [_part(block) for block in blocks]


def _part(block: Members) -> Part:
    kind = block.needed_text("type")
    hint = block.cache()
    found: Part
    match kind:
        case "text":
            found = Text(text=block.needed_text("text"), cache=hint)
        case "image" | "document":
            found = _attachment(block, kind, hint)
        case "tool_use":
            arguments = block.take("input")
            if arguments is not None and not isinstance(arguments, dict):
                raise invalid(block.at("input"), f"`{block.at('input')}` must be an object")
            found = Call(
                id=block.needed_text("id"),
                name=block.needed_text("name"),
                arguments=msgspec.json.encode(arguments or {}).decode(),
            )
        case "tool_result":
            found = Result(
                call_id=block.needed_text("tool_use_id"),
                parts=tuple([_shown(part, block) for part in _parts(block, "content")]),
                failed=block.flag("is_error") is True,
                cache=hint,
            )
        case "thinking":
            seal, origin = unsealed(block.text("signature"), "messages")
            found = Thinking(text=block.text("thinking") or "", seal=seal, origin=origin)
        case "redacted_thinking":
            seal, origin = unsealed(block.text("data"), "messages-redacted")
            found = Thinking(text="", seal=seal, origin=origin)
        case _:
            raise block.refused("type", f"{kind[:64]!r} has no counterpart there")
    block.done(DROPPED_OF_PARTS)
    return found


def _shown(part: Part, block: Members) -> Text | Image | File:
    if isinstance(part, Text | Image | File):
        return part
    raise block.refused("content", "a result holds text, images and documents")


def _attachment(block: Members, kind: str, hint: CacheHint | None) -> Image | File | Text:
    source = block.inner("source")
    if source is None:
        raise invalid(block.at("source"), f"`{block.at('source')}` is missing")
    name = block.text("title") if kind == "document" else None
    media_type: str | None = None
    data: str | None = None
    url: str | None = None
    match source.text("type"):
        case "base64":
            media_type, data = source.text("media_type"), source.needed_text("data")
        case "url":
            url = source.needed_text("url")
        case "text":
            text = source.needed_text("data")
            source.done({"media_type"})
            return Text(text=text, cache=hint)
        case other:
            raise source.refused("type", f"{(other or '')[:32]!r} names what its provider keeps")
    source.done()
    if kind == "image":
        return Image(url=url, media_type=media_type, data=data, cache=hint)
    return File(url=url, media_type=media_type, data=data, name=name, cache=hint)


def _tool(tool: Members) -> Tool:
    kind = tool.text("type") or "custom"
    if kind != "custom":
        raise tool.refused(
            "type", f"{kind[:64]!r} is a tool of Anthropic's; offer one with an `input_schema`"
        )
    made = Tool(
        name=tool.needed_text("name"),
        description=tool.text("description"),
        schema=tool.schema("input_schema"),
        strict=tool.flag("strict"),
        cache=tool.cache(),
    )
    tool.only("defer_loading", False)
    tool.done(DROPPED_OF_TOOLS)
    return made


def _choice(top: Members) -> tuple[Choice | None, bool | None]:
    choice = top.inner("tool_choice")
    if choice is None:
        return None, None
    match kind := choice.text("type"):
        case "auto" | "none" | "any":
            found = Choice(kind=kind)
        case "tool":
            found = Choice(kind="named", name=choice.needed_text("name"))
        case _:
            raise choice.refused("type", f"{(kind or '')[:32]!r} is no choice that is known here")
    alone = choice.flag("disable_parallel_tool_use")
    choice.done()
    return found, None if alone is None else not alone


def _effort_and_format(top: Members) -> tuple[Effort | None, Format | None]:
    budget: int | None = None
    summary: str | None = None
    thinking = top.inner("thinking")
    if thinking is not None:
        kind = thinking.text("type")
        budget = thinking.count("budget_tokens")
        summary = None if kind == "disabled" else "auto"
        thinking.done({"display"})
    config = top.inner("output_config")
    form = top.inner("output_format")
    level = None
    if config is not None:
        level = level_named(config.text("effort"), "output_config.effort", top.target)
        form = config.inner("format") or form
        config.done()
    effort = None
    if level is not None or budget is not None or summary is not None:
        effort = Effort(level=level, budget=budget, summary=summary)
    return effort, None if form is None else _format(form)


def _format(form: Members) -> Format:
    if form.text("type") != "json_schema":
        raise form.refused("type", "only `json_schema` is known here")
    found = Format(schema=form.schema("schema") or {}, name=form.text("name"))
    form.done()
    return found
