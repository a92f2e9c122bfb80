"""The door: ties request, stream, usage and failures of the protocol together."""

from __future__ import annotations

from gateway.core.dimensions import BOTH_SIDES
from gateway.core.errors import SpanbillError
from gateway.core.exchange import Reply, Said
from gateway.protocols.base import Dialect, Request
from gateway.protocols.chat_completions import failures, request
from gateway.protocols.chat_completions.reply import read_reply, said
from gateway.protocols.chat_completions.stream import ChatMeter


class ChatCompletions:
    """See `gateway.protocols.base.Protocol`."""

    name = "chat_completions"
    path = "/v1/chat/completions"
    operation = "chat"
    sides = BOTH_SIDES
    billable = True

    def read_request(self, body: bytes) -> Request:
        """Return the facts of a request."""
        return request.read(body)

    def upstream_body(self, body: bytes, request_: Request, *, model: str, dialect: Dialect) -> bytes:
        """Return the body for the provider."""
        return request.upstream_body(body, request_, model=model, dialect=dialect)

    def read_reply(self, status: int, body: bytes, dialect: Dialect) -> Reply:
        """Return the facts of a whole reply."""
        return read_reply(status, body, dialect)

    def said(self, body: bytes) -> Said | None:
        """Return the text of a whole reply."""
        return said(body)

    def stream_meter(self, request_: Request, dialect: Dialect) -> ChatMeter:
        """Return a meter for one stream."""
        return ChatMeter(
            dialect, hide_usage=request.asks_for_usage(request_, dialect), choices=request_.choices
        )

    def error_body(self, error: SpanbillError) -> bytes:
        """Return an error of ours as a body."""
        return failures.body(error)

    def error_event(self, error: SpanbillError) -> bytes:
        """Return an error of ours as an event."""
        return failures.event(error)
