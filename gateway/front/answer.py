"""Answers of the front itself: an error in the OpenAI envelope, with ids of its own, then the end.

They say what was wrong with the form of a request and never repeat any of it.
"""

from __future__ import annotations

from http import HTTPStatus

from gateway.api.correlation import Correlation, Ids
from gateway.core.errors import SpanbillError
from gateway.protocols.chat_completions import failures


def new_correlation(ids: Ids) -> Correlation:
    """Return ids for a request whose head cannot be trusted, so that it continues no trace."""
    return Correlation(
        record_id=ids.record_id(),
        trace_id=ids.trace_id(),
        server_span_id=ids.span_id(),
        parent=None,
        sampled=False,
        client_request_id=None,
    )


def answer(error: SpanbillError, correlation: Correlation) -> bytes:
    """Return the whole response, after which the connection closes."""
    body = failures.body(error)
    head = [
        b"HTTP/1.1 %d %s" % (error.status, HTTPStatus(error.status).phrase.encode()),
        b"content-type: application/json",
        b"content-length: %d" % len(body),
        b"connection: close",
        *(name + b": " + value for name, value in correlation.headers()),
    ]
    if error.retry_after_s is not None:
        head.append(b"retry-after: %d" % error.retry_after_s)
    return b"\r\n".join(head) + b"\r\n\r\n" + body
