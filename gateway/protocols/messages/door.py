"""The door: ties request, stream, usage and failures of the protocol together."""

from __future__ import annotations

from gateway.core.dimensions import BOTH_SIDES
from gateway.core.errors import SpanbillError
from gateway.core.exchange import Reply, Said
from gateway.protocols.base import Dialect, Request
from gateway.protocols.messages import failures, request
from gateway.protocols.messages.reply import read_reply, said
from gateway.protocols.messages.stream import MessagesMeter


class Messages:
    """See `gateway.protocols.base.Protocol`."""

    name = "messages"
    path = "/v1/messages"
    operation = "chat"
    sides = BOTH_SIDES
    billable = True

    def read_request(self, body: bytes) -> Request:
        """Return the facts of a request."""
        return request.read(body)

    def upstream_body(self, body: bytes, request_: Request, *, model: str, dialect: Dialect) -> bytes:
        """Return the body for the provider; usage comes without being asked for."""
        return request.upstream_body(body, request_, model)

    def read_reply(self, status: int, body: bytes, dialect: Dialect) -> Reply:
        """Return the facts of a whole reply."""
        return read_reply(status, body)

    def said(self, body: bytes) -> Said | None:
        """Return the text of a whole reply."""
        return said(body)

    def stream_meter(self, request_: Request, dialect: Dialect) -> MessagesMeter:
        """Return a meter for one stream."""
        return MessagesMeter()

    def error_body(self, error: SpanbillError) -> bytes:
        """Return an error of ours as a body."""
        return failures.body(error)

    def error_event(self, error: SpanbillError) -> bytes:
        """Return an error of ours as an event."""
        return failures.event(error)
