"""Meaning: a conversation and its answer in no provider's words; every wire language reads and writes these.

Normal form: neighbouring turns of one role are one turn, and in a user's turn the results of tools come
first. What two languages say differently but mean alike is the same value here; what a value cannot hold
its reader refuses, so that nothing is lost between reading and writing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

import msgspec

from gateway.core.errors import CallerError

Language = Literal["chat_completions", "messages", "responses"]
Role = Literal["system", "user", "assistant"]
Level = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
Origin = Literal["messages", "messages-redacted", "responses"]
Stop = Literal["end", "length", "stop_sequence", "tool", "filtered"]
CacheHint = Literal["", "5m", "1h"]
"""`""` is a hint without a lifetime: the provider's own default."""

SEAL: Final = "spanbill:"
"""Begins a seal that stands in another language than the one that made it: `spanbill:ORIGIN:SEAL`."""
USER_CHARS_MAX: Final = 64
"""OpenAI refuses a longer `user`."""
ORIGINS: Final[tuple[Origin, ...]] = ("messages", "messages-redacted", "responses")


class Text(msgspec.Struct, frozen=True, kw_only=True):
    """Words; `refusal` marks those with which a model declines."""

    text: str
    refusal: bool = False
    cache: CacheHint | None = None


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """A picture: at `url`, or `data` in base64 with its media type."""

    url: str | None = None
    media_type: str | None = None
    data: str | None = None
    detail: str | None = None
    cache: CacheHint | None = None


class File(msgspec.Struct, frozen=True, kw_only=True):
    """A document: at `url`, or `data` in base64 with its media type."""

    url: str | None = None
    media_type: str | None = None
    data: str | None = None
    name: str | None = None
    cache: CacheHint | None = None


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A model's call of one of the caller's tools.

    Args:
        arguments: the JSON text as the model wrote it; of a free-form tool the text itself.
    """

    id: str
    name: str
    arguments: str
    freeform: bool = False


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What a tool answered."""

    call_id: str
    parts: tuple[Text | Image | File, ...]
    failed: bool = False
    freeform: bool = False
    cache: CacheHint | None = None


class Thinking(msgspec.Struct, frozen=True, kw_only=True):
    """What a model thought.

    Args:
        seal: what its provider wants back with it: a signature, or the whole thought encrypted.
        origin: whose seal it is; no other provider can use it.
    """

    text: str
    seal: str | None = None
    origin: Origin | None = None


Part = Text | Image | File | Call | Result | Thinking


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """What one party says at once."""

    role: Role
    parts: tuple[Part, ...]


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """A tool of the caller's.

    Args:
        schema: JSON schema of its arguments, None where there is none.
        grammar: of a free-form tool, what its input must look like.
    """

    name: str
    description: str | None = None
    schema: dict[str, object] | None = None
    strict: bool | None = None
    freeform: bool = False
    grammar: str | None = None
    cache: CacheHint | None = None


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """Which tools may or must be called; `name` where it is `named`."""

    kind: Literal["auto", "none", "any", "named"]
    name: str | None = None


class Effort(msgspec.Struct, frozen=True, kw_only=True):
    """How much is to be thought: a level, or a budget in tokens, and whether a summary is wanted."""

    level: Level | None = None
    budget: int | None = None
    summary: str | None = None


class Format(msgspec.Struct, frozen=True, kw_only=True):
    """What the answer must look like: any JSON object, or one of a schema."""

    schema: dict[str, object] | None = None
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """One request."""

    turns: tuple[Turn, ...]
    tools: tuple[Tool, ...] = ()
    choice: Choice | None = None
    parallel: bool | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop: tuple[str, ...] = ()
    effort: Effort | None = None
    format: Format | None = None
    verbosity: str | None = None
    user: str | None = None
    tier: str | None = None
    stream: bool = False


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One whole reply; its usage is the meter's to tell."""

    id: str | None
    model: str | None
    parts: tuple[Text | Thinking | Call, ...]
    stop: Stop
    stop_sequence: str | None = None


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """A provider's error in its own words."""

    message: str
    code: str
    param: str | None = None


def normal(turns: Iterable[Turn]) -> tuple[Turn, ...]:
    """Return the turns in normal form; empty ones are gone."""
    merged: list[tuple[Role, list[Part]]] = []
    for turn in turns:
        if not turn.parts:
            continue
        if merged and merged[-1][0] == turn.role:
            merged[-1][1].extend(turn.parts)
        else:
            merged.append((turn.role, list(turn.parts)))
    return tuple([Turn(role=role, parts=_results_first(parts)) for role, parts in merged])


def _results_first(parts: list[Part]) -> tuple[Part, ...]:
    results = [part for part in parts if isinstance(part, Result)]
    return (*results, *[part for part in parts if not isinstance(part, Result)]) if results else tuple(parts)


def joined(parts: Iterable[object], between: str) -> str:
    """Return the texts among the parts as one."""
    return between.join([part.text for part in parts if isinstance(part, Text)])


def sealed_for(thought: Thinking, language: Language) -> str | None:
    """Return the seal as it stands in a language: as it is in its own, else marked with its origin."""
    if thought.seal is None or thought.origin is None:
        return None
    own = thought.origin == language
    return thought.seal if own else f"{SEAL}{thought.origin}:{thought.seal}"


def unsealed(value: str | None, own: Origin | None) -> tuple[str | None, Origin | None]:
    """Return the seal and whose it is; one without a mark is of the language that it stands in."""
    if not value:
        return None, None
    if value.startswith(SEAL):
        origin, _, seal = value[len(SEAL) :].partition(":")
        for known in ORIGINS:
            if origin == known and seal:
                return seal, known
        return None, None
    return (value, own) if own is not None else (None, None)


def short_user(meant: Conversation) -> str | None:
    """Return the end user if OpenAI's protocols can say it."""
    return meant.user if meant.user is not None and len(meant.user) <= USER_CHARS_MAX else None


def refused(param: str, target: Language, why: str = "") -> CallerError:
    """Return the error for what another language cannot say."""
    return CallerError(
        "not_translatable",
        f"`{param}` cannot be carried over to {target}, which this model's provider speaks"
        f"{': ' + why if why else ''}; leave it out, or name a model whose provider speaks your protocol",
        status=400,
        param=param,
    )
