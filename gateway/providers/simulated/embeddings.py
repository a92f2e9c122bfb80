"""Embeddings: the simulated provider in the words of OpenAI's embeddings.

A vector follows from the text alone: the same text has the same one, whatever the form it is asked in.
"""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Mapping
from typing import Final

import msgspec

from gateway.providers.simulated.answers import BYTES_PER_TOKEN, Answer, Ask, Segment, Vectors
from gateway.providers.simulated.chat import Chat
from gateway.providers.simulated.wire import RefusedError, limit

LENGTH: Final = 64
LENGTH_MAX: Final = 4096
INPUTS_MAX: Final = 2048


class Embeddings(Chat):
    """`POST /v1/embeddings`; refusals are those of chat completions."""

    streams = False

    def read(self, body: Mapping[str, object], headers: Mapping[bytes, bytes]) -> Ask:  # noqa: ARG002  # the interface
        """Take a request apart; raises RefusedError."""
        model = body.get("model")
        if not isinstance(model, str) or not model:
            raise RefusedError(400, "you must provide a model parameter")
        texts = _texts(body.get("input"))
        length = limit(body.get("dimensions"), "dimensions") or LENGTH
        if length > LENGTH_MAX:
            raise RefusedError(400, f"dimensions: must be at most {LENGTH_MAX}", param="dimensions")
        encoded = body.get("encoding_format") == "base64"
        return Ask(
            model=model,
            stream=False,
            include_usage=True,
            max_tokens=None,
            prompt=tuple(Segment(text) for text in texts),
            messages=len(texts),
            last_text="",
            tool=None,
            vectors=Vectors(texts=texts, length=length, encoded=encoded),
        )

    def whole(self, answer: Answer) -> bytes:
        """Return a list of embeddings."""
        vectors = answer.vectors
        assert vectors is not None  # `read` has set it
        data = [
            {"object": "embedding", "index": index, "embedding": _vector(text, vectors)}
            for index, text in enumerate(vectors.texts)
        ]
        reply: dict[str, object] = {"object": "list", "data": data, "model": answer.model}
        if answer.form != "none":
            reply["usage"] = {"prompt_tokens": answer.counts.input, "total_tokens": answer.counts.input}
        return msgspec.json.encode(reply)


def _texts(value: object) -> tuple[str, ...]:
    """Return the inputs as texts; tokens as a text that counts as many."""
    listed = value if isinstance(value, list) else [value]
    if listed and all(type(item) is int for item in listed):
        listed = [listed]
    texts = [_text(item) for item in listed]
    if not texts or len(texts) > INPUTS_MAX or not all(texts):
        raise RefusedError(
            400,
            f"'input' must be a non-empty string, or an array of 1 to {INPUTS_MAX} texts or token arrays.",
            param="input",
        )
    return tuple(texts)


def _text(item: object) -> str:
    if isinstance(item, list) and all(type(token) is int for token in item):
        return "".join([str(token)[:BYTES_PER_TOKEN].rjust(BYTES_PER_TOKEN) for token in item])
    return item if isinstance(item, str) else ""


def _vector(text: str, vectors: Vectors) -> str | list[float]:
    digest = hashlib.shake_128(text.encode("utf-8", "surrogatepass")).digest(vectors.length)
    numbers = [(byte - 128) / 128 for byte in digest]
    if not vectors.encoded:
        return numbers
    return base64.b64encode(struct.pack(f"<{vectors.length}f", *numbers)).decode()
