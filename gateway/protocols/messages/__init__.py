"""Anthropic's messages: `POST /v1/messages`."""

from gateway.protocols.messages.door import Messages

__all__ = ["Messages"]
