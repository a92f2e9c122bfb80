"""Failures in OpenAI's envelope: the SDKs choose their exception by status, people read the message."""

from __future__ import annotations

from typing import Final

import msgspec

from gateway.core.errors import SpanbillError

_TYPES: Final = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def body(error: SpanbillError) -> bytes:
    """Return the error as a body."""
    return msgspec.json.encode({"error": envelope(error)})


def event(error: SpanbillError) -> bytes:
    """Return the error as the last event of a broken stream; there is no `[DONE]` after it."""
    return b"data: " + msgspec.json.encode({"error": envelope(error)}) + b"\n\n"


def envelope(error: SpanbillError) -> dict[str, object]:
    """Return what stands under `error`."""
    by_status = _TYPES.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
    kind = error.kind or by_status
    return {"message": error.message, "type": kind, "param": error.param, "code": error.code}
