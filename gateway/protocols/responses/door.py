"""The doors: tie request, stream, usage and failures of the protocol together."""

from __future__ import annotations

import msgspec

from gateway.core.dimensions import BOTH_SIDES
from gateway.core.errors import SpanbillError
from gateway.core.exchange import Reply, Said
from gateway.protocols.base import Dialect, Request
from gateway.protocols.responses import failures, request
from gateway.protocols.responses.reply import read_reply, said
from gateway.protocols.responses.stream import ResponsesMeter


class Responses:
    """See `gateway.protocols.base.Protocol`."""

    name = "responses"
    path = "/v1/responses"
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
        return read_reply(status, body, dialect)

    def said(self, body: bytes) -> Said | None:
        """Return the text of a whole reply."""
        return said(body)

    def stream_meter(self, request_: Request, dialect: Dialect) -> ResponsesMeter:
        """Return a meter for one stream."""
        return ResponsesMeter(dialect)

    def error_body(self, error: SpanbillError) -> bytes:
        """Return an error of ours as a body."""
        return failures.body(error)

    def error_event(self, error: SpanbillError) -> bytes:
        """Return an error of ours as an event."""
        return failures.event(error)


class Compact(Responses):
    """A conversation made shorter by the model: billed like any answer, and never streamed."""

    name = "responses_compact"
    path = "/v1/responses/compact"

    def read_request(self, body: bytes) -> Request:
        """Return the facts of a request."""
        return msgspec.structs.replace(super().read_request(body), stream=False)


class InputTokens(Compact):
    """Counting is free of charge: its number is the answer."""

    name = "responses_input_tokens"
    path = "/v1/responses/input_tokens"
    operation = "count_tokens"
    billable = False

    def read_reply(self, status: int, body: bytes, dialect: Dialect) -> Reply:
        """Return the facts of a reply, without usage: nothing was used."""
        return msgspec.structs.replace(super().read_reply(status, body, dialect), usage=None)
