"""Upstream: the only way out to a provider, and the interface that every transport keeps.

A transport sends one request and hands back the head of the reply and its body as an iterator of reads:
bytes as they came, many chunks in one read. It maps every foreign exception to `UpstreamError` once, here
at the edge, and it never follows a redirect: a provider's key goes to the provider's host and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol as Interface

import msgspec

from gateway.core.errors import UpstreamError

HEADERS_MAX = 256
"""Header fields of one reply; providers send 20 to 40, and common clients refuse more than a few hundred."""

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


def check_head(status: int, headers: Sequence[Header]) -> None:
    """Refuse a head that must not reach the caller.

    A redirect is not relayed either: a client that follows it would take the caller's key to another host.

    Raises:
        UpstreamError: a redirect, a status that HTTP does not have, or more than HEADERS_MAX headers.
    """
    if 300 <= status < 400:
        raise _refused(
            f"the provider answered with a redirect ({status}), which is never followed; see base_url"
        )
    if not 200 <= status < 600:
        raise _refused(f"the provider answered with status {status}, which HTTP does not have")
    if len(headers) > HEADERS_MAX:
        raise _refused(f"the provider's reply has more than {HEADERS_MAX} headers")


def _refused(message: str) -> UpstreamError:
    return UpstreamError("upstream_protocol", message, retryable=False, sent=True)
