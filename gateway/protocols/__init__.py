"""The wire languages, one folder a door; the API mounts what is registered here."""

from __future__ import annotations

from typing import Final

from gateway.protocols.base import Protocol
from gateway.protocols.chat_completions import ChatCompletions
from gateway.protocols.count_tokens import CountTokens
from gateway.protocols.embeddings import Embeddings
from gateway.protocols.messages import Messages
from gateway.protocols.responses import Compact, InputTokens, Responses

PROTOCOLS: Final[dict[str, Protocol]] = {
    protocol.path: protocol
    for protocol in (
        ChatCompletions(),
        Messages(),
        CountTokens(),
        Responses(),
        Compact(),
        InputTokens(),
        Embeddings(),
    )
}
"""The doors by path."""

__all__ = ["PROTOCOLS"]
