"""Requests: a typed decode of the few members that matter; the body itself stays the caller's bytes."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from gateway.protocols.base import Request
from gateway.protocols.reading import check_model, read_facts, replace_members, summary_of, text

_ONCE: Final = (b'"model"', b'"input"')


class _Body(msgspec.Struct):
    model: str
    safety_identifier: Any = None
    user: Any = None


_decoder: Final = msgspec.json.Decoder(_Body)


def read(body: bytes) -> Request:
    """Return the facts of a request.

    Raises:
        CallerError: 400: not JSON, no model, a member of the wrong type, a member twice.
    """
    facts = read_facts(body, _decoder, _ONCE)
    return Request(
        model=check_model(facts.model),
        user=text(facts.safety_identifier) or text(facts.user),
        summary=summary_of(body, messages=None, tools=None, images=0),
    )


def upstream_body(body: bytes, request: Request, model: str) -> bytes:
    """Return the body for the provider: the same object where the model's name is the same."""
    if model == request.model:
        return body
    return replace_members(body, {"model": msgspec.json.encode(model)})
