"""Requests: a typed decode of the few members that matter; the body itself stays the caller's bytes."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from gateway.protocols.base import Dialect, Request
from gateway.protocols.reading import (
    check_max_tokens,
    check_model,
    may_escape_a_name,
    read_facts,
    replace_members,
    summary_of,
    text,
)

_ONCE: Final = (
    b'"model"', b'"stream"', b'"stream_options"', b'"max_tokens"', b'"max_completion_tokens"', b'"n"',
)  # fmt: skip
CHOICES_MAX: Final = 10_000
"""No provider makes so many answers to one request; a larger or odd `n` is left to it to refuse."""
_ASK: Final = b'"stream_options":{"include_usage":true},'


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Body(msgspec.Struct):
    model: str
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: Any = None
    safety_identifier: Any = None
    user: Any = None
    messages: list[msgspec.Raw] | None = None
    tools: list[msgspec.Raw] | None = None


_decoder: Final = msgspec.json.Decoder(_Body)


def read(body: bytes) -> Request:
    """Return the facts of a request.

    Raises:
        CallerError: 400: not JSON, no model, a member of the wrong type, a member twice.
    """
    facts = read_facts(body, _decoder, _ONCE)
    names = body.count(b'"image_url"')
    images = -(-names // 2)  # each part names it as its type and as its member
    max_tokens = check_max_tokens(facts.max_tokens, "max_tokens")
    if facts.max_completion_tokens is not None:
        max_tokens = check_max_tokens(facts.max_completion_tokens, "max_completion_tokens")
    return Request(
        model=check_model(facts.model),
        stream=facts.stream is True,
        usage_requested=facts.stream_options is not None and facts.stream_options.include_usage is True,
        max_tokens=max_tokens,
        user=text(facts.safety_identifier) or text(facts.user),
        choices=_choices(facts.n),
        summary=summary_of(body, messages=facts.messages, tools=facts.tools, images=images),
    )


def _choices(n: object) -> int:
    """Return how many answers are asked for; what a lenient provider may read as many counts as many."""
    if n is None:
        return 1
    return n if type(n) is int and 0 < n <= CHOICES_MAX else CHOICES_MAX


def asks_for_usage(request: Request, dialect: Dialect) -> bool:
    """Say whether the gateway itself asks for usage, and so hides the usage-only chunk again."""
    return request.stream and not request.usage_requested and dialect.stream_usage == "on_request"


def upstream_body(body: bytes, request: Request, *, model: str, dialect: Dialect) -> bytes:
    """Return the body for the provider: the same object where nothing differs."""
    changes: dict[str, bytes] = {}
    if model != request.model:
        changes["model"] = msgspec.json.encode(model)
    if asks_for_usage(request, dialect):
        if not changes and b"stream_options" not in body and not may_escape_a_name(body):
            at = body.index(b"{") + 1
            return body[:at] + _ASK + body[at:]
        changes["stream_options"] = _with_usage(body)
    return replace_members(body, changes) if changes else body


def _with_usage(body: bytes) -> bytes:
    given = msgspec.json.decode(body, type=_AnyOptions).stream_options or {}
    options = {name: value for name, value in given.items() if name.casefold() != "include_usage"}
    return msgspec.json.encode({**options, "include_usage": msgspec.Raw(b"true")})


class _AnyOptions(msgspec.Struct):
    stream_options: dict[str, msgspec.Raw] | None = None  # whose members keep their bytes
