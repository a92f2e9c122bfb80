"""The SERVER and attempt spans of an inference request, in the words of the stock instrumentation.

The doors in front of FastAPI make by hand the span that the FastAPI instrumentation makes for every other
door; a test holds the two to the same name and attributes. Stable HTTP semantic conventions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote_plus

from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanKind
from opentelemetry.util.types import AttributeValue

from otel.traces import Traces

SCOPE: Final = InstrumentationScope("spanbill")
CREDENTIALS: Final = ("key", "token", "secret", "auth", "pass", "sig", "cred")
"""A query parameter whose name holds one of these may be a credential."""
QUERY_CHARS_MAX: Final = 2048
_KEY: Final = re.compile(r"sk-[A-Za-z0-9_-]{8,}")


def path_without_secrets(path: str) -> str:
    """Return a path with what looks like a key, which a caller put where an id belongs, as `sk-REDACTED`."""
    return _KEY.sub("sk-REDACTED", path)


def query_without_secrets(raw: bytes) -> str:
    """Return the query string with the values of what may be credentials as `REDACTED`.

    Source: the semantic conventions of `url.query`. Keys do not belong there, but callers put them there.
    """
    shown = []
    for part in raw[:QUERY_CHARS_MAX].decode("latin-1").split("&"):
        name, equals, _ = part.partition("=")
        secret = any(word in unquote_plus(name).lower() for word in CREDENTIALS)
        shown.append(f"{name}=REDACTED" if equals and secret else part)
    return path_without_secrets("&".join(shown))


def server_attributes(scope: Mapping[str, Any], status: int) -> dict[str, AttributeValue]:
    """Return what the stock ASGI instrumentation would put on the span of this request.

    Args:
        scope: the ASGI scope; its path is one of the doors, so it is also the route.
        status: of the response; 0 if none was sent.
    """
    host, port = scope.get("server") or ("0.0.0.0", 80)  # noqa: S104  # what the stock one says
    path = scope["path"]
    attributes: dict[str, AttributeValue] = {
        "url.scheme": scope.get("scheme", "http"),
        "server.address": host if port == 80 else f"{host}:{port}",
        "server.port": port,
        "network.protocol.version": scope.get("http_version", "1.1"),
        "url.path": path,
        "http.request.method": scope["method"],
        "http.route": path,
    }
    if scope.get("query_string"):
        attributes["url.query"] = query_without_secrets(scope["query_string"])
    for name, value in scope["headers"]:
        if name == b"user-agent":
            attributes["user_agent.original"] = value.decode("latin-1")
            break
    client = scope.get("client")
    if client:
        attributes["client.address"], attributes["client.port"] = client[0], client[1]
    if status:
        attributes["http.response.status_code"] = status
        if status >= 500:
            attributes["error.type"] = str(status)
    return attributes


def record_server_span(
    traces: Traces,
    scope: Mapping[str, Any],
    *,
    trace_id: str,
    span_id: str,
    parent_span_id: str | None,
    status: int,
    started_unix_ns: int,
    ended_unix_ns: int,
) -> None:
    """Hand the finished SERVER span of one inference request to the trace pipeline."""
    traces.record(
        scope=SCOPE,
        name=f"{scope['method']} {scope['path']}",
        kind=SpanKind.SERVER,
        trace_id=trace_id,
        span_id=span_id,
        parent_span_id=parent_span_id,
        parent_is_remote=True,
        started_unix_ns=started_unix_ns,
        ended_unix_ns=ended_unix_ns,
        attributes=server_attributes(scope, status),
        error=status >= 500,
    )


def record_attempt_span(
    traces: Traces,
    *,
    trace_id: str,
    span_id: str,
    parent_span_id: str,
    started_unix_ns: int,
    ended_unix_ns: int,
    host: str,
    port: int,
    path: str,
    number: int,
    provider: str,
    status: int | None,
    error_type: str | None,
) -> None:
    """Hand one attempt's CLIENT span over; it never carries usage or cost."""
    attributes: dict[str, AttributeValue] = {
        "http.request.method": "POST",
        "server.address": host,
        "server.port": port,
        "url.path": path,
        "billing.attempt.number": number,
        "billing.attempt.provider": provider,
    }
    if status is not None:
        attributes["http.response.status_code"] = status
    if error_type is not None:
        attributes["error.type"] = error_type
    traces.record(
        scope=SCOPE,
        name="POST",
        kind=SpanKind.CLIENT,
        trace_id=trace_id,
        span_id=span_id,
        parent_span_id=parent_span_id,
        started_unix_ns=started_unix_ns,
        ended_unix_ns=ended_unix_ns,
        attributes=attributes,
        error=error_type is not None,
    )
