"""Failures in Anthropic's envelope: the SDKs choose their exception by status, people read the message."""

from __future__ import annotations

from typing import Final

import msgspec

from gateway.core.errors import SpanbillError

_TYPES: Final = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def body(error: SpanbillError) -> bytes:
    """Return the error as a body."""
    return msgspec.json.encode(_envelope(error))


def event(error: SpanbillError) -> bytes:
    """Return the error as the last event of a broken stream; there is no `message_stop` after it."""
    return b"event: error\ndata: " + msgspec.json.encode(_envelope(error)) + b"\n\n"


def _envelope(error: SpanbillError) -> dict[str, object]:
    kind = _TYPES.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}}
