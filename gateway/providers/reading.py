"""Reading: how much of a reply is read before anything of it is passed on.

A whole reply is read to its end, within a bound. Of a stream the first event is: up to there nothing is with
the caller, and another attempt can stand in for one that broke off.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gateway.core.errors import UpstreamError
from gateway.providers.upstream import Header, UpstreamReply

FIRST_EVENT_BYTES: Final = 65_536
"""A first event that is longer begins its stream unfinished: what is held back must not grow with it."""
BLANK_LINES: Final = (b"\n\n", b"\r\n\r\n", b"\n\r\n", b"\r\r")


async def first_event(upstream: UpstreamReply) -> bytes:
    """Read a stream until its first event is whole: up to there another attempt can stand in for it.

    Raises:
        UpstreamError: it ended or broke off before.
    """
    begun = bytearray()
    while piece := await upstream.read():  # bounded by FIRST_EVENT_BYTES, and by upstream.total_timeout_s
        since = max(0, len(begun) - 3)
        begun += piece
        if len(begun) >= FIRST_EVENT_BYTES or any(begun.find(line, since) >= 0 for line in BLANK_LINES):
            return bytes(begun)
    raise UpstreamError(
        "upstream_incomplete",
        "the provider's stream ended before its first event; send the request again",
        retryable=True,
        sent=True,
    )


async def read_whole(upstream: UpstreamReply, bytes_max: int) -> bytes:
    """Read a whole body.

    Raises:
        UpstreamError: it broke off, or is larger than `bytes_max`.
    """
    first = await upstream.read()
    if not first:
        return b""
    pieces = [first]
    size = len(first)
    while piece := await upstream.read():
        size += len(piece)
        if size > bytes_max:
            raise UpstreamError(
                "upstream_too_large",
                f"the provider's reply is larger than {bytes_max} bytes; "
                "raise upstream.max_reply_bytes if such replies are wanted",
                retryable=False,
                sent=True,
            )
        pieces.append(piece)
    return first if len(pieces) == 1 else b"".join(pieces)


def is_event_stream(headers: Sequence[Header]) -> bool:
    """Say whether a reply is a stream of events."""
    return any(
        name == b"content-type" and value.lower().startswith(b"text/event-stream") for name, value in headers
    )
