"""Failures in OpenAI's envelope; in a stream with what both readers of error events look for.

The event's own form has code and message at its top, and SDKs hand it on as an event like any other. Only
an `error` object makes them raise, and a stream that broke must never pass for an answer.
"""

from __future__ import annotations

import msgspec

from gateway.core.errors import SpanbillError
from gateway.protocols.chat_completions import failures


def body(error: SpanbillError) -> bytes:
    """Return the error as a body."""
    return failures.body(error)


def event(error: SpanbillError) -> bytes:
    """Return the error as the last event of a broken stream; no `response.completed` comes after it."""
    told = {
        "type": "error",
        "code": error.code,
        "message": error.message,
        "param": error.param,
        "sequence_number": 0,
        "error": failures.envelope(error),
    }
    return b"event: error\ndata: " + msgspec.json.encode(told) + b"\n\n"
