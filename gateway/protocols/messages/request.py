"""Requests: a typed decode of the few members that matter; the body itself stays the caller's bytes."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from gateway.protocols.base import Request
from gateway.protocols.reading import (
    check_max_tokens,
    check_model,
    read_facts,
    replace_members,
    summary_of,
    text,
)

_ONCE: Final = (b'"model"', b'"stream"', b'"max_tokens"')


class _Metadata(msgspec.Struct):
    user_id: Any = None


class _Body(msgspec.Struct):
    model: str
    stream: bool | None = None
    max_tokens: int | None = None
    metadata: _Metadata | None = None
    messages: list[msgspec.Raw] | None = None
    tools: list[msgspec.Raw] | None = None


_decoder: Final = msgspec.json.Decoder(_Body)


def read(body: bytes) -> Request:
    """Return the facts of a request.

    Raises:
        CallerError: 400: not JSON, no model, a member of the wrong type, a member twice.
    """
    facts = read_facts(body, _decoder, _ONCE)
    images = body.count(b'"type":"image"') + body.count(b'"type": "image"')
    return Request(
        model=check_model(facts.model),
        stream=facts.stream is True,
        usage_requested=True,
        max_tokens=check_max_tokens(facts.max_tokens, "max_tokens"),
        user=text(facts.metadata.user_id) if facts.metadata is not None else None,
        summary=summary_of(body, messages=facts.messages, tools=facts.tools, images=images),
    )


def upstream_body(body: bytes, request: Request, model: str) -> bytes:
    """Return the body for the provider: the same object where the model's name is the same."""
    if model == request.model:
        return body
    return replace_members(body, {"model": msgspec.json.encode(model)})
