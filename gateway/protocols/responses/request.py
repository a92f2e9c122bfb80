"""Requests: a typed decode of the few members that matter; the body itself stays the caller's bytes.

A response in the background ends after its request, where no gateway sees its usage: it is refused. What a
request refers to (`previous_response_id`, `conversation`, a stored prompt) passes; it is the provider's.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from gateway.core.errors import CallerError
from gateway.protocols.base import Request
from gateway.protocols.reading import (
    check_max_tokens,
    check_model,
    read_facts,
    replace_members,
    summary_of,
    text,
)

_ONCE: Final = (b'"model"', b'"stream"', b'"max_output_tokens"', b'"background"')


class _Body(msgspec.Struct):
    model: str
    stream: bool | None = None
    background: bool | None = None
    max_output_tokens: int | None = None
    safety_identifier: Any = None
    user: Any = None
    previous_response_id: Any = None
    conversation: Any = None
    prompt: Any = None
    input: list[msgspec.Raw] | str | None = None
    tools: list[msgspec.Raw] | None = None


_decoder: Final = msgspec.json.Decoder(_Body)


def read(body: bytes) -> Request:
    """Return the facts of a request.

    Raises:
        CallerError: 400: not JSON, no model, a member of the wrong type, a member twice, background.
    """
    facts = read_facts(body, _decoder, _ONCE)
    if facts.background:
        raise CallerError(
            "background_not_supported",
            "`background` responses end after their request, where the gateway can not bill them: send the "
            "request without it, with `stream` for one that takes long",
            status=400,
            param="background",
        )
    items = [msgspec.Raw()] if isinstance(facts.input, str) else facts.input
    summary = summary_of(body, messages=items, tools=facts.tools, images=body.count(b'"input_image"'))
    referred = (facts.previous_response_id, facts.conversation, facts.prompt)
    if any(referred):
        summary["references"] = sum([bool(what) for what in referred])
    return Request(
        model=check_model(facts.model),
        stream=facts.stream is True,
        usage_requested=True,
        max_tokens=check_max_tokens(facts.max_output_tokens, "max_output_tokens"),
        user=text(facts.safety_identifier) or text(facts.user),
        summary=summary,
    )


def upstream_body(body: bytes, request: Request, model: str) -> bytes:
    """Return the body for the provider: the same object where the model's name is the same."""
    if model == request.model:
        return body
    return replace_members(body, {"model": msgspec.json.encode(model)})
