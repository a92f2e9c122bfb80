"""Upstream: the only way out to a provider, and the interface that every transport keeps.

A transport sends one request and hands back the head of the reply and its body as an iterator of reads:
bytes as they came, many chunks in one read. It maps every foreign exception to `UpstreamError` once, here
at the edge, and it never follows a redirect: a provider's key goes to the provider's host and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol as Interface

import msgspec

Header = tuple[bytes, bytes]
"""Name in lower case, and value."""


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where one request goes: origin and the exact request target."""

    scheme: str
    host: str
    port: int
    target: bytes


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds on one attempt, in seconds.

    Args:
        connect_s: to a connected (and TLS-ready) socket.
        first_byte_s: from the request being sent to the reply's status line.
        idle_s: between two reads of the body.
        total_s: from start to the last byte.
    """

    connect_s: float = 30.0
    first_byte_s: float = 30.0
    idle_s: float = 120.0
    total_s: float = 3600.0


class UpstreamReply(Interface):
    """A reply whose head has arrived. Close it exactly once, whatever happened."""

    status: int
    headers: Sequence[Header]

    async def read(self) -> bytes:
        """Return all bytes that have arrived (at least one), or b"" at the end of the body.

        Raises:
            UpstreamError: cut (`upstream_incomplete`), idle or total timeout (`upstream_timeout`).
        """
        ...

    def close(self) -> None:
        """Give the connection back if the body was read to its end, or drop it."""
        ...


class Transport(Interface):
    """Sends requests; shared by all requests of a process."""

    async def send(
        self, method: bytes, endpoint: Endpoint, headers: Sequence[Header], body: bytes, timeouts: Timeouts
    ) -> UpstreamReply:
        """Send and wait for the head of the reply.

        Args:
            headers: without host, content-length, connection: the transport owns the framing.

        Raises:
            UpstreamError: `upstream_unreachable` (nothing was sent), `upstream_timeout`, `upstream_protocol`.
        """
        ...

    async def aclose(self) -> None:
        """Close all connections."""
        ...
