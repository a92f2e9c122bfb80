"""Correlation: every response, errors and streams included, carries the ids that find its bill and trace.

The gateway mints the id; a caller's own is kept as a fact and never used as *the* id, so replaying it
changes nothing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec
from opentelemetry import trace
from uuid_utils import uuid7

from otel.server_span import path_without_secrets
from otel.traces import Parent, Traces, parse_traceparent

log = logging.getLogger("spanbill.doors")

Header = tuple[bytes, bytes]
ASGIApp = Callable[..., Any]

POOL_BYTES: Final = 4096
"""How much randomness is fetched at once: 170 requests."""
CLIENT_ID_CHARS_MAX: Final = 128
PATH_CHARS_MAX: Final = 200
PROBES: Final = frozenset({"/health", "/ready", "/metrics"})


class Ids:
    """Where ids come from: random bytes as lower-case hex, fetched in pools.

    Args:
        entropy: returns n random bytes; injected so that tests can make ids to order.
    """

    def __init__(self, entropy: Callable[[int], bytes] = os.urandom) -> None:
        self._entropy = entropy
        self._pool = ""
        self._at = 0

    def record_id(self) -> str:
        """Return a new UUIDv7: sorts by time, unique without it."""
        return str(uuid7())

    def trace_id(self) -> str:
        """Return 32 hex digits, not all zero."""
        return self._hex(32)

    def span_id(self) -> str:
        """Return 16 hex digits, not all zero."""
        return self._hex(16)

    def _hex(self, digits: int) -> str:
        if self._at + digits > len(self._pool):
            self._pool = self._entropy(POOL_BYTES).hex()
            self._at = 0
        start = self._at
        self._at = start + digits
        text = self._pool[start : self._at]
        return text if text.strip("0") else "1" * digits


class Correlation(msgspec.Struct, frozen=True, kw_only=True):
    """The ids of one request."""

    record_id: str
    trace_id: str
    server_span_id: str
    parent: Parent | None
    sampled: bool
    client_request_id: str | None
    session_id: str | None = None

    def headers(self) -> list[Header]:
        """Return the response headers that carry the ids."""
        return correlation_headers(self.record_id, self.trace_id, self.server_span_id, self.sampled)

    def traceparent(self, span_id: str) -> bytes:
        """Return the header that makes `span_id` the parent of what the provider does."""
        return f"00-{self.trace_id}-{span_id}-{'01' if self.sampled else '00'}".encode()


def correlation_headers(record_id: str, trace_id: str, span_id: str, sampled: bool) -> list[Header]:
    """Return `x-request-id`, `request-id`, `x-trace-id` (pastes into Jaeger) and `traceresponse`."""
    record = record_id.encode()
    return [
        (b"x-request-id", record),
        (b"request-id", record),
        (b"x-trace-id", trace_id.encode()),
        (b"traceresponse", f"00-{trace_id}-{span_id}-{'01' if sampled else '00'}".encode()),
    ]


def begin(headers: Iterable[Header], ids: Ids, traces: Traces, name: str) -> Correlation:
    """Mint the ids of one request and continue the caller's trace if it sent a valid one."""
    parent: Parent | None = None
    client_id: str | None = None
    session_id: str | None = None
    for key, value in headers:
        if key == b"traceparent":
            parent = parse_traceparent(value)
        elif key == b"x-request-id":
            client_id = printable(value, CLIENT_ID_CHARS_MAX)
        elif key == b"x-session-id":
            session_id = printable(value, CLIENT_ID_CHARS_MAX)
    trace_id = parent.trace_id if parent is not None else ids.trace_id()
    return Correlation(
        record_id=ids.record_id(),
        trace_id=trace_id,
        server_span_id=ids.span_id(),
        parent=parent,
        sampled=traces.sampled(trace_id, parent, name),
        client_request_id=client_id,
        session_id=session_id,
    )


def printable(value: bytes, chars_max: int) -> str | None:
    """Return the header value as bounded printable ASCII, or None if nothing is left."""
    text = "".join(chr(byte) for byte in value[:chars_max] if 0x20 <= byte < 0x7F).strip()
    return text or None


class CorrelationMiddleware:
    """Puts the ids on every response of the doors that FastAPI serves; pure ASGI.

    It stands inside the FastAPI instrumentation, so that `x-trace-id` is the trace of the SERVER span. Each
    request is one log line; those of probes and scrapers only at level debug.
    """

    def __init__(self, app: ASGIApp, ids: Ids) -> None:
        self._app = app
        self._ids = ids

    async def __call__(self, scope: dict[str, Any], receive: ASGIApp, send: ASGIApp) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record_id = self._ids.record_id()
        context = trace.get_current_span().get_span_context()
        extra = correlation_headers(
            record_id,
            format(context.trace_id, "032x"),
            format(context.span_id, "016x"),
            context.trace_flags.sampled,
        )
        scope.setdefault("state", {})["record_id"] = record_id

        async def send_with_ids(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                log.log(
                    logging.DEBUG if scope["path"] in PROBES else logging.INFO,
                    "request served",
                    extra={
                        "request_id": record_id,
                        "trace_id": format(context.trace_id, "032x"),
                        "method": scope["method"],
                        "path": path_without_secrets(scope["path"][:PATH_CHARS_MAX]),
                        "status": message["status"],
                    },
                )
                message = {**message, "headers": with_ids(message.get("headers", ()), extra)}
            await send(message)

        await self._app(scope, receive, send_with_ids)


def with_ids(headers: Sequence[Header], extra: list[Header]) -> list[Header]:
    """Return `headers` with ours in place of any of the same name."""
    ours = {name for name, _ in extra}
    return [*(header for header in headers if header[0].lower() not in ours), *extra]
