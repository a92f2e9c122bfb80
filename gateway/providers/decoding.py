"""Decoding: a reply that came compressed although identity was asked for, expanded within bounds.

A compressed body has an end of its own: one that stops before it was cut, even if its length is right.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, Final

from gateway.core.errors import UpstreamError
from gateway.providers.upstream import Header

DECODED_BYTES_MAX: Final = 64 * 1024 * 1024
"""A compressed reply is expanded up to here."""
WINDOW_BITS: Final = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}
"""Encodings that can be undone, and what zlib calls them."""


class Decoder:
    """Undoes one content-encoding, piece by piece."""

    __slots__ = ("_bytes_out", "_inflate", "_started")

    def __init__(self, window_bits: int) -> None:
        self._inflate: Any = zlib.decompressobj(window_bits)
        self._bytes_out = 0
        self._started = False

    def feed(self, data: bytes) -> bytes:
        """Return what the piece expands to; often b"" for a first piece, which is no end of the body.

        Raises:
            UpstreamError: not the encoding that the head promised, or more than DECODED_BYTES_MAX.
        """
        self._started = True
        if self._inflate.eof:
            raise _broken()
        try:
            decoded: bytes = self._inflate.decompress(data, DECODED_BYTES_MAX - self._bytes_out + 1)
        except zlib.error as fault:
            raise _broken() from fault
        self._bytes_out += len(decoded)
        if self._bytes_out > DECODED_BYTES_MAX:
            raise UpstreamError(
                "upstream_too_large",
                f"the provider's compressed reply expands to more than {DECODED_BYTES_MAX} bytes",
                retryable=False,
                sent=True,
            )
        if self._inflate.unused_data:  # a second member: refused, as dropping it would look like an end
            raise _broken()
        return decoded

    def finish(self) -> None:
        """Check that the compressed body reached its own end.

        Raises:
            UpstreamError: it was cut.
        """
        if self._started and not self._inflate.eof:
            raise UpstreamError(
                "upstream_incomplete",
                "the provider's compressed reply stops before its end",
                retryable=False,
                sent=True,
            )


def decoder_for(headers: Sequence[Header]) -> Decoder | None:
    """Return the decoder that the head asks for, if any.

    Raises:
        UpstreamError: an encoding that was not asked for and cannot be undone.
    """
    encoding = b",".join([value for name, value in headers if name == b"content-encoding"]).strip().lower()
    if encoding in (b"", b"identity"):
        return None
    window_bits = WINDOW_BITS.get(encoding)
    if window_bits is None:
        raise UpstreamError(
            "upstream_protocol",
            "the provider's reply is in a content-encoding that was not asked for",
            retryable=False,
            sent=True,
        )
    return Decoder(window_bits)


def decoded_headers(headers: Sequence[Header]) -> list[Header]:
    """Return the headers as they are true of the decoded body."""
    return [header for header in headers if header[0] not in (b"content-encoding", b"content-length")]


def _broken() -> UpstreamError:
    return UpstreamError(
        "upstream_protocol",
        "the provider's reply is not in the content-encoding it names",
        retryable=False,
        sent=True,
    )
