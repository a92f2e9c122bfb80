"""What of a meaning a language can hold: the losses that docs/translation.md names, as functions.

A request or an answer that was written in a language and read back must equal what `kept` or `kept_answer`
says, and nothing less.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import msgspec

from gateway.translation.effort import budget_of, level_of
from gateway.translation.freeform import as_functions
from gateway.translation.meaning import (
    Answer,
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
    joined,
    normal,
)
from gateway.translation.messages.telling import MAX_TOKENS

replace = msgspec.structs.replace


def kept(meant: Conversation, language: Language) -> Conversation:
    """Return what a request still means when it was written in a language."""
    meant = as_functions(meant)
    turns = {"chat_completions": _chat_turns, "messages": _messages_turns, "responses": _responses_turns}
    tools = tuple([_tool(tool, language) for tool in meant.tools])
    held = replace(
        meant, turns=normal(turns[language](meant.turns)), tools=tools, effort=_effort(meant, language)
    )
    if not tools:
        held = replace(held, parallel=None)
    if language == "messages":
        tier = "default" if meant.tier == "standard" else meant.tier
        held = replace(held, max_tokens=_limit(meant), tier=tier, verbosity=None)
        if not tools:
            held = replace(held, choice=None)
        elif meant.parallel is False and meant.choice is None:
            held = replace(held, choice=Choice(kind="auto"))
        elif meant.choice is None or meant.choice.kind == "none":
            held = replace(held, parallel=None)
        if meant.format is not None:
            held = replace(held, format=Format(schema=meant.format.schema))
        return held
    if meant.user is not None and len(meant.user) > 64:
        held = replace(held, user=None)
    form = meant.format
    if form is not None and form.schema is not None:
        strict = form.strict is True if language == "responses" else form.strict
        held = replace(held, format=replace(form, name=form.name or "answer", strict=strict))
    return held


def _limit(meant: Conversation) -> int:
    return MAX_TOKENS if meant.max_tokens is None else meant.max_tokens


def _effort(meant: Conversation, language: Language) -> Effort | None:
    if language == "messages":
        turns = normal(turn for turn in meant.turns if turn.role != "system")
        if len(turns) > 1 and any(isinstance(part, Result) for part in turns[-1].parts):
            thoughts = [part for part in turns[-2].parts if isinstance(part, Thinking)]
            if not any(_messages_own(thought) for thought in thoughts):
                return None
        budget = budget_of(meant.effort, _limit(meant), "max_tokens")
        return None if budget is None else Effort(budget=budget, summary="auto")
    level = level_of(meant.effort)
    if meant.effort is None or level is None:
        return None
    return Effort(level=level, summary=meant.effort.summary if language == "responses" else None)


def _tool(tool: Tool, language: Language) -> Tool:
    if language == "messages":
        return replace(tool, schema=tool.schema or {"type": "object", "properties": {}})
    strict = tool.strict is True if language == "responses" else tool.strict
    return replace(tool, cache=None, strict=strict)


def _text(text: str, **marks: Any) -> list[Part]:
    return [Text(text=text, **marks)] if text else []


def _chat_turns(turns: Iterable[Turn]) -> Iterable[Turn]:
    for turn in turns:
        if turn.role == "system":
            yield Turn(role="system", parts=tuple(_text(joined(turn.parts, "\n\n"))))
        elif turn.role == "assistant":
            calls = [plain(part) for part in turn.parts if isinstance(part, Call)]
            yield Turn(role="assistant", parts=(*_text(joined(turn.parts, "")), *calls))
        else:
            results: list[Part] = []
            beside: list[Part] = []
            for part in turn.parts:
                if isinstance(part, Result):
                    words = tuple(_text(joined(part.parts, "\n\n")))
                    results.append(Result(call_id=part.call_id, parts=words))  # type: ignore[arg-type]
                    beside += [bare(shown) for shown in part.parts if not isinstance(shown, Text)]
                else:
                    beside.append(bare(part))
            if all(isinstance(part, Text) for part in beside):
                beside = _text(joined(beside, "\n\n"))
            yield Turn(role="user", parts=(*results, *beside))


def _messages_turns(turns: tuple[Turn, ...]) -> Iterable[Turn]:
    system = [part for turn in turns if turn.role == "system" for part in turn.parts]
    yield Turn(role="system", parts=tuple(_messages_parts(system)))
    for turn in turns:
        if turn.role != "system":
            yield Turn(role=turn.role, parts=tuple(_messages_parts(turn.parts)))


def _messages_parts(parts: Iterable[Part]) -> Iterable[Part]:
    for part in parts:
        match part:
            case Text():
                yield from _text(part.text, cache=part.cache)
            case Image():
                yield replace(part, detail=None, media_type=_kind(part, "image/png"))
            case File():
                yield replace(part, media_type=_kind(part, "application/pdf"))
            case Call():
                yield replace(plain(part), id=_letters(part.id))
            case Result():
                shown = tuple(_messages_parts(part.parts))
                yield replace(part, call_id=_letters(part.call_id), parts=shown, freeform=False)  # type: ignore[arg-type]
            case Thinking() if _messages_own(part):
                redacted = part.origin == "messages-redacted"
                yield replace(part, text="") if redacted else part
            case _:
                pass


def _kind(part: Image | File, default: str) -> str | None:
    return None if part.url is not None else part.media_type or default


def _messages_own(thought: Thinking) -> bool:
    return thought.seal is not None and thought.origin in ("messages", "messages-redacted")


def _letters(identity: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_-]", "_", identity)


def _responses_turns(turns: tuple[Turn, ...]) -> Iterable[Turn]:
    if turns and turns[0].role == "system":
        yield Turn(role="system", parts=tuple(_text(joined(turns[0].parts, "\n\n"))))
        turns = turns[1:]
    for turn in turns:
        yield Turn(role=turn.role, parts=tuple(_responses_parts(turn)))


def _responses_parts(turn: Turn) -> Iterable[Part]:
    for part in turn.parts:
        match part:
            case Text():
                yield Text(text=part.text, refusal=part.refusal and turn.role == "assistant")
            case Image() | File():
                yield _responses_file(part)
            case Call():
                yield plain(part)
            case Result() if all(isinstance(one, Text) for one in part.parts):
                words = tuple(_text(joined(part.parts, "\n\n")))
                yield Result(call_id=part.call_id, parts=words)  # type: ignore[arg-type]
            case Result():
                shown = tuple([_responses_file(one) for one in part.parts])
                yield Result(call_id=part.call_id, parts=shown)
            case Thinking() if part.origin == "responses" and part.seal is not None:
                yield part
            case _:
                pass


def _responses_file(part: Any) -> Any:
    shown = bare(part)
    if isinstance(shown, File):
        return replace(shown, name=None if shown.url is not None else shown.name or "document")
    return shown


def bare(part: Part) -> Part:
    """Return a part without the hint to a cache, its data under the media type that it is sent with."""
    if isinstance(part, Text):
        return Text(text=part.text)
    if isinstance(part, Image | File):
        kind = None if part.url is not None else part.media_type or "application/octet-stream"
        return replace(part, cache=None, media_type=kind)
    return part


def plain(call: Call) -> Call:
    """Return a call with its arguments written in one way."""
    try:
        arguments = json.dumps(json.loads(call.arguments or "{}"), sort_keys=True)
    except ValueError:
        arguments = call.arguments
    return Call(id=call.id, name=call.name, arguments=arguments)


def flat(meant: Conversation) -> Conversation:
    """Return a conversation whose calls have their arguments written in one way."""
    return replace(
        meant,
        turns=tuple(
            [
                Turn(
                    role=turn.role,
                    parts=tuple([plain(part) if isinstance(part, Call) else part for part in turn.parts]),
                )
                for turn in meant.turns
            ]
        ),
    )


# answers


def kept_answer(answer: Answer, language: Language) -> Answer:
    """Return what an answer still says when it was written in a language."""
    parts = [plain(part) if isinstance(part, Call) else part for part in answer.parts]
    calls = [part for part in parts if isinstance(part, Call)]
    thoughts = [part for part in parts if isinstance(part, Thinking) and (part.text or part.seal)]
    if language == "chat_completions":
        if not any(thought.seal for thought in thoughts):
            thoughts = [Thinking(text=text)] if (text := "".join([one.text for one in thoughts])) else []
        texts = [part for part in parts if isinstance(part, Text)]
        said = _text("".join([text.text for text in texts if not text.refusal]))
        refusal = _text("".join([text.text for text in texts if text.refusal]), refusal=True)
        parts = [*thoughts, *said, *refusal, *calls]  # type: ignore[list-item]
    elif language == "messages":
        parts = [_in_blocks(part) for part in parts]
    parts = [part for part in parts if isinstance(part, Call) or part.text or getattr(part, "seal", None)]
    stop = answer.stop
    if language != "messages" and stop == "stop_sequence":
        stop = "end"
    if language == "chat_completions" and stop in ("end", "tool"):
        stop = "tool" if calls else "end"
    if language == "responses" and stop in ("end", "tool"):
        refused = any(isinstance(part, Text) and part.refusal for part in parts)
        stop = "tool" if calls else "filtered" if refused else "end"
    sequence = answer.stop_sequence if language == "messages" else None
    return replace(answer, parts=tuple(parts), stop=stop, stop_sequence=sequence)


def _in_blocks(part: Any) -> Any:
    if isinstance(part, Text):
        return Text(text=part.text)
    if isinstance(part, Call):
        try:
            whole = isinstance(json.loads(part.arguments or "{}"), dict)
        except ValueError:
            whole = False
        return part if whole else replace(part, arguments=json.dumps({"arguments": part.arguments}))
    return part


def merged(answer: Answer) -> Answer:
    """Return an answer whose neighbouring texts of one kind are one: where they are cut means nothing."""
    parts: list[Any] = []
    for part in answer.parts:
        part = plain(part) if isinstance(part, Call) else part
        last = parts[-1] if parts else None
        if isinstance(part, Text) and isinstance(last, Text) and part.refusal == last.refusal:
            parts[-1] = Text(text=last.text + part.text, refusal=part.refusal)
        else:
            parts.append(part)
    return replace(answer, parts=tuple(parts))
