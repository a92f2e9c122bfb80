"""Requests of responses, read: what each member means; what means nothing elsewhere is refused.

A conversation is a flat list of items there, and a turn is what follows one another: thoughts, words and
calls of the model are its turn; messages and what tools answered are the user's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from gateway.protocols.reading import invalid
from gateway.translation.attachments import from_url
from gateway.translation.effort import level_named
from gateway.translation.meaning import (
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
    Thinking,
    Tool,
    Turn,
    normal,
    unsealed,
)
from gateway.translation.members import Members
from gateway.translation.responses.telling import SEALED

DROPPED: Final = {
    "metadata": "labels for the provider's own store",
    "client_metadata": "labels for the provider's own store",
    "store": "nothing is stored elsewhere",
    "prompt_cache_key": "a hint to the provider's cache",
    "prompt_cache_retention": "a hint to the provider's cache",
    "prompt_cache_options": "a hint to the provider's cache",
    "max_tool_calls": "bounds calls of the provider's own tools, of which there are none",
    "stream_options": "asks for padding of the stream, or for none",
}
DROPPED_OF_ITEMS: Final = {
    "id": "the provider's own name for the item",
    "status": "an item that is sent back is complete",
    "phase": "whether a text was a preamble",
}
DROPPED_OF_PARTS: Final = {
    "annotations": "citations of an earlier answer; its text stays",
    "logprobs": "of an earlier answer",
    "prompt_cache_breakpoint": "a hint to the provider's cache",
}
_ROLES: Final[dict[str, Role]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}


def read(body: dict[str, Any], target: Language) -> Conversation:
    """Return what a request means.

    Raises:
        CallerError: 400: it says something that cannot be carried over.
    """
    top = Members(body, "", target)
    top.take("model")
    top.only("include", [], [SEALED], why="it asks for parts of a provider's own tools")
    top.only("top_logprobs", 0)
    top.only("truncation", "disabled")
    top.only("background", False)
    instructions = top.text("instructions")
    turns = [Turn(role="system", parts=(Text(text=instructions),))] if instructions else []
    form, verbosity = _text(top)
    conversation = Conversation(
        turns=normal([*turns, *_turns(top)]),
        tools=tuple([_tool(tool) for tool in top.objects("tools")]),
        choice=_choice(top),
        parallel=top.flag("parallel_tool_calls"),
        max_tokens=top.count("max_output_tokens"),
        temperature=top.number("temperature"),
        top_p=top.number("top_p"),
        effort=_effort(top),
        format=form,
        verbosity=verbosity,
        user=top.text("safety_identifier") or top.text("user"),
        tier=top.text("service_tier"),
        stream=top.flag("stream") is True,
    )
    top.take("user")
    top.done(DROPPED)
    return conversation


def _turns(top: Members) -> Iterator[Turn]:
    given = top.take("input")
    if isinstance(given, str):
        yield Turn(role="user", parts=(Text(text=given),))
        return
    if given is not None and not isinstance(given, list):
        raise invalid("input", "`input` must be text or a list")
    for at, item in enumerate(given or ()):
        yield _turn(Members(item, f"input[{at}]", top.target))


def _turn(item: Members) -> Turn:
    kind = item.text("type") or "message"
    part: Part
    role: Role
    match kind:
        case "message":
            named = item.needed_text("role")
            if named not in _ROLES:
                raise item.refused("role", f"{named[:32]!r} is no role that is known here")
            turn = Turn(role=_ROLES[named], parts=tuple(_parts(item, "content")))
            item.done(DROPPED_OF_ITEMS)
            return turn
        case "function_call" | "custom_tool_call":
            freeform = kind == "custom_tool_call"
            arguments = item.text("input" if freeform else "arguments") or ""
            call_id, name = item.needed_text("call_id"), item.needed_text("name")
            role, part = "assistant", Call(id=call_id, name=name, arguments=arguments, freeform=freeform)
        case "function_call_output" | "custom_tool_call_output":
            shown = [one for one in _parts(item, "output") if isinstance(one, Text | Image | File)]
            call_id = item.needed_text("call_id")
            freeform = kind == "custom_tool_call_output"
            role, part = "user", Result(call_id=call_id, parts=tuple(shown), freeform=freeform)
        case "reasoning":
            role, part = "assistant", _thought(item)
        case _:
            raise item.refused("type", f"{kind[:64]!r} has no counterpart there")
    item.done(DROPPED_OF_ITEMS)
    return Turn(role=role, parts=(part,))


def _thought(item: Members) -> Thinking:
    seal, origin = unsealed(item.text("encrypted_content"), "responses")
    summary, content = item.take("summary"), item.take("content")
    return Thinking(text=thought_of(summary) or thought_of(content), seal=seal, origin=origin)


def thought_of(parts: object) -> str:
    """Return the text of a summary or of a thought itself."""
    listed = parts if isinstance(parts, list) else ()
    texts = [part.get("text") for part in listed if isinstance(part, dict)]
    return "\n\n".join([text for text in texts if isinstance(text, str)])


def _parts(item: Members, name: str) -> list[Part]:
    content = item.take(name)
    if isinstance(content, str):
        return [Text(text=content)] if content else []
    if content is not None and not isinstance(content, list):
        raise invalid(item.at(name), f"`{item.at(name)}` must be text or a list")
    return [
        _part(Members(part, f"{item.at(name)}[{at}]", item.target)) for at, part in enumerate(content or ())
    ]


def _part(part: Members) -> Part:
    kind = part.needed_text("type")
    found: Part
    match kind:
        case "input_text" | "output_text" | "text":
            found = Text(text=part.needed_text("text"))
        case "refusal":
            found = Text(text=part.needed_text("refusal"), refusal=True)
        case "input_image" | "input_file" if part.take("file_id") is not None:
            raise part.refused("file_id", "another provider does not have the file")
        case "input_image":
            url, media_type, data = from_url(part.needed_text("image_url"))
            found = Image(url=url, media_type=media_type, data=data, detail=part.text("detail"))
        case "input_file":
            name = part.text("filename")
            address = part.text("file_url") or part.needed_text("file_data")
            url, media_type, data = from_url(address)
            found = File(url=url, media_type=media_type, data=data, name=name)
        case _:
            raise part.refused("type", f"{kind[:64]!r} has no counterpart there")
    part.done(DROPPED_OF_PARTS)
    return found


def _tool(tool: Members) -> Tool:
    kind = tool.text("type") or "function"
    if kind == "custom":
        form = tool.inner("format")
        grammar = None
        if form is not None:
            grammar = form.text("definition")
            form.done({"type", "syntax"})
        made = Tool(
            name=tool.needed_text("name"),
            description=tool.text("description"),
            freeform=True,
            grammar=grammar,
        )
    elif kind == "function":
        made = Tool(
            name=tool.needed_text("name"),
            description=tool.text("description"),
            schema=tool.schema("parameters"),
            strict=tool.flag("strict"),
        )
        tool.only("defer_loading", False)
    else:
        raise tool.refused("type", f"{kind[:64]!r} is a provider's own tool; offer a function instead")
    tool.done()
    return made


def _choice(top: Members) -> Choice | None:
    match top.take("tool_choice"):
        case None:
            return None
        case "auto":
            return Choice(kind="auto")
        case "none":
            return Choice(kind="none")
        case "required":
            return Choice(kind="any")
        case {"type": "function" | "custom", "name": str(name)}:
            return Choice(kind="named", name=name)
        case _:
            raise top.refused("tool_choice", "it is none of auto, none, required and the name of a function")


def _effort(top: Members) -> Effort | None:
    reasoning = top.inner("reasoning")
    if reasoning is None:
        return None
    level = level_named(reasoning.text("effort"), "reasoning.effort", top.target)
    summary = reasoning.text("summary") or reasoning.text("generate_summary")
    reasoning.done({"context", "generate_summary"})
    return None if level is None and summary is None else Effort(level=level, summary=summary)


def _text(top: Members) -> tuple[Format | None, str | None]:
    text = top.inner("text")
    if text is None:
        return None, None
    verbosity = text.text("verbosity")
    form = text.inner("format")
    text.done()
    if form is None:
        return None, verbosity
    found: Format | None
    match kind := form.text("type"):
        case "text":
            found = None
        case "json_object":
            found = Format()
        case "json_schema":
            found = Format(
                schema=form.schema("schema") or {},
                name=form.text("name"),
                description=form.text("description"),
                strict=form.flag("strict"),
            )
        case _:
            raise form.refused("type", f"{(kind or '')[:32]!r} is no format that is known here")
    form.done()
    return found, verbosity
