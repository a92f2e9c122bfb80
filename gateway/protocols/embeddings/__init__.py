"""OpenAI-style embeddings: `POST /v1/embeddings`."""

from gateway.protocols.embeddings.door import Embeddings

__all__ = ["Embeddings"]
