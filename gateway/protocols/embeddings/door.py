"""The door: ties request and reply of the protocol together."""

from __future__ import annotations

from gateway.core.dimensions import Side
from gateway.core.exchange import Reply, Said
from gateway.protocols.base import Dialect, Request
from gateway.protocols.chat_completions import ChatCompletions
from gateway.protocols.embeddings import request
from gateway.protocols.embeddings.reply import read_reply


class Embeddings(ChatCompletions):
    """As chat completions in its errors; never streamed, and a vector is no output token."""

    name = "embeddings"
    path = "/v1/embeddings"
    operation = "embeddings"
    sides: tuple[Side, ...] = ("input",)

    def read_request(self, body: bytes) -> Request:
        """Return the facts of a request."""
        return request.read(body)

    def upstream_body(self, body: bytes, request_: Request, *, model: str, dialect: Dialect) -> bytes:
        """Return the body for the provider."""
        return request.upstream_body(body, request_, model)

    def read_reply(self, status: int, body: bytes, dialect: Dialect) -> Reply:
        """Return the facts of a reply."""
        return read_reply(status, body)

    def said(self, body: bytes) -> Said | None:
        """Return None: a vector has no text."""
        return None
