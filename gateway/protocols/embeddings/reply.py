"""Replies: millions of numbers, of which none is read: only what stands beside the vectors is decoded."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Final

import msgspec

from gateway.core.exchange import Reply, Seen
from gateway.protocols.chat_completions.reply import error_type
from gateway.protocols.embeddings.usage import read_usage
from gateway.protocols.reading import decode, text

LENIENT_BYTES_MAX: Final = 1024 * 1024
"""A body that strict JSON refuses is read once more, every number of it, up to this size."""


class _Body(msgspec.Struct):
    id: Any = None
    model: Any = None
    data: list[msgspec.Raw] | None = None
    usage: Any = None
    meta: Any = None
    error: Any = None


_decoder: Final = msgspec.json.Decoder(_Body, float_hook=Decimal)


def read_reply(status: int, body: bytes) -> Reply:
    """Return the facts of a reply; never raises. An error body never has usage."""
    value = _decoded(body)
    summary = {"bytes": len(body)}
    if value is None:
        return Reply(error_type=None if status >= 400 else "upstream_protocol", output_summary=summary)
    if status >= 400 or (value.error and value.data is None):
        return Reply(error_type=error_type(value.error), output_summary=summary)
    if value.data is not None:
        summary["choices"] = len(value.data)
    return Reply(
        response_id=text(value.id),
        response_model=text(value.model),
        usage=read_usage(value.usage, value.meta),
        complete=True,
        output_summary=summary,
        # No text, but proof that the input was worked on, which its estimate needs.
        seen=Seen(events=1, text_bytes=0) if value.data else None,
    )


def _decoded(body: bytes) -> _Body | None:
    """Return the members that matter; None for what is no JSON object."""
    try:
        return _decoder.decode(body)
    except (msgspec.MsgspecError, ValueError, ArithmeticError, RecursionError):
        pass
    value = decode(body) if len(body) <= LENIENT_BYTES_MAX else None
    if not isinstance(value, dict):
        return None
    members = {name: value.get(name) for name in ("id", "model", "usage", "meta", "error")}
    vectors = value.get("data")
    return _Body(**members, data=[msgspec.Raw()] * len(vectors) if isinstance(vectors, list) else None)
