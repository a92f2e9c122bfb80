"""OpenAI's responses: `POST /v1/responses`, and what belongs to it: `/compact` and `/input_tokens`."""

from gateway.protocols.responses.door import Compact, InputTokens, Responses

__all__ = ["Compact", "InputTokens", "Responses"]
