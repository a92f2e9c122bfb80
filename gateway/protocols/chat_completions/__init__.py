"""OpenAI-style chat completions: `POST /v1/chat/completions`."""

from gateway.protocols.chat_completions.door import ChatCompletions

__all__ = ["ChatCompletions"]
