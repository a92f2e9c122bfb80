"""Anthropic's token counting: `POST /v1/messages/count_tokens`; an answer about tokens, not a use of them."""

from __future__ import annotations

import msgspec

from gateway.core.exchange import Reply
from gateway.protocols.base import Dialect, Request
from gateway.protocols.messages import Messages
from gateway.protocols.messages.reply import read_reply

__all__ = ["CountTokens"]


class CountTokens(Messages):
    """As messages, but free of charge and never streamed: its numbers are the answer."""

    name = "count_tokens"
    path = "/v1/messages/count_tokens"
    operation = "count_tokens"
    billable = False

    def read_request(self, body: bytes) -> Request:
        """Return the facts of a request."""
        return msgspec.structs.replace(super().read_request(body), stream=False)

    def read_reply(self, status: int, body: bytes, dialect: Dialect) -> Reply:
        """Return the facts of a reply, without usage: nothing was used."""
        return msgspec.structs.replace(read_reply(status, body), usage=None)
