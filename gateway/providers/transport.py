"""Transport: the fast way to a provider, HTTP/1.1 over asyncio with a pool that finds a connection in O(1).

The newest idle connection is taken first, so that the rest may age and close. Every exchange ends with its
connection either recycled, after a complete reply, or dropped: a half-read connection is never used again.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from gateway.core.errors import UpstreamError
from gateway.providers.connection import Connection
from gateway.providers.upstream import Endpoint, Header, Timeouts, UpstreamReply

CONNECTIONS_MAX: Final = 2_000
"""Connections to one origin; a further request waits for one, at most its connect timeout."""
IDLE_S_MAX: Final = 15.0
"""Idle connections older than this are closed: providers close theirs after 20 s and more."""

TARGET: Final = re.compile(rb"[\x21-\x7e\x80-\xff]+")
"""What a request target may hold: a blank or a line break would end it early."""

Key = tuple[str, str, int]


class _Origin:
    """The pool of one origin."""

    __slots__ = ("count", "idle", "waiters")

    def __init__(self) -> None:
        self.idle: list[Connection] = []
        self.count = 0
        self.waiters: deque[asyncio.Future[None]] = deque()


class FastReply:
    """A reply over a pooled connection."""

    __slots__ = ("_connection", "_give_back", "headers", "read", "status")

    def __init__(self, connection: Connection, give_back: Callable[[Connection], None]) -> None:
        self._connection: Connection | None = connection
        self._give_back = give_back
        self.status = connection.status
        self.headers: Sequence[Header] = connection.reply_headers
        self.read = connection.read

    def close(self) -> None:
        """Give the connection back, or drop it if the body was not read to its end."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._give_back(connection)


class FastTransport:
    """The transport; one per process and event loop.

    Args:
        tls: context for https; made from the system's trust (and `SSL_CERT_FILE`) when first needed.
    """

    def __init__(self, tls: ssl.SSLContext | None = None, connections_max: int = CONNECTIONS_MAX) -> None:
        self._tls = tls
        self._connections_max = connections_max
        self._origins: dict[Key, _Origin] = {}
        self._owners: dict[Connection, _Origin] = {}

    async def send(
        self,
        method: bytes,
        endpoint: Endpoint,
        headers: Sequence[Header],
        body: bytes,
        timeouts: Timeouts,
    ) -> UpstreamReply:
        """Send one request; see `gateway.providers.upstream.Transport`."""
        request = encode_request(method, endpoint, headers, body)
        key = (endpoint.scheme, endpoint.host, endpoint.port)
        origin = self._origins.get(key)
        if origin is None:
            origin = self._origins.setdefault(key, _Origin())
        connection = self._idle(origin) or await self._connect(origin, endpoint, timeouts)
        try:
            await connection.exchange(request, timeouts)
        except BaseException:
            connection.abort()
            raise
        return FastReply(connection, self._give_back)

    async def aclose(self) -> None:
        """Close all connections."""
        for connection in list(self._owners):
            connection.abort()

    def _idle(self, origin: _Origin) -> Connection | None:
        oldest = asyncio.get_running_loop().time() - IDLE_S_MAX
        while origin.idle:  # each turn takes one away
            connection = origin.idle.pop()
            if connection.usable and connection.idle_since >= oldest:
                return connection
            connection.abort()
        return None

    async def _connect(self, origin: _Origin, endpoint: Endpoint, timeouts: Timeouts) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeouts.connect_s):
                while origin.count >= self._connections_max:  # bounded by connect_s
                    waiter: asyncio.Future[None] = loop.create_future()
                    origin.waiters.append(waiter)
                    try:
                        await waiter
                    except asyncio.CancelledError:
                        if waiter.done() and not waiter.cancelled():
                            self._wake_one(origin)  # woken and cancelled in one turn: the next one's turn
                        raise
                    finally:
                        if waiter in origin.waiters:
                            origin.waiters.remove(waiter)
                    ready = self._idle(origin)
                    if ready is not None:
                        return ready
                origin.count += 1
                try:
                    _, connection = await loop.create_connection(
                        lambda: Connection(loop, self._lost),
                        endpoint.host,
                        endpoint.port,
                        ssl=self._context() if endpoint.scheme == "https" else None,
                        server_hostname=endpoint.host if endpoint.scheme == "https" else None,
                    )
                except BaseException:
                    self._freed(origin)
                    raise
        except TimeoutError as fault:
            raise unreachable(
                endpoint, "no connection in time; see upstream.connect_timeout_s", 504
            ) from fault
        except ssl.SSLError as fault:
            raise unreachable(endpoint, f"TLS failed ({fault.reason or 'handshake'})") from fault
        except OSError as fault:
            raise unreachable(endpoint, fault.strerror or type(fault).__name__) from fault
        except UnicodeError as fault:
            raise unreachable(endpoint, "its name is not a host name") from fault
        self._owners[connection] = origin
        if not connection.usable:
            self._lost(connection)
        return connection

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
            self._tls.set_alpn_protocols(["http/1.1"])
        return self._tls

    def _give_back(self, connection: Connection) -> None:
        if connection.recycle():
            origin = self._owners[connection]
            origin.idle.append(connection)
            self._wake_one(origin)

    def _lost(self, connection: Connection) -> None:
        origin = self._owners.pop(connection, None)
        if origin is not None:
            if connection in origin.idle:
                origin.idle.remove(connection)
            self._freed(origin)

    def _freed(self, origin: _Origin) -> None:
        origin.count -= 1
        self._wake_one(origin)

    def _wake_one(self, origin: _Origin) -> None:
        while origin.waiters:  # each turn takes one away
            waiter = origin.waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return


def encode_request(method: bytes, endpoint: Endpoint, headers: Sequence[Header], body: bytes) -> bytes:
    """Return the request as bytes.

    Raises:
        UpstreamError: a header or the target holds a line break: it would be read as another header.
    """
    lines = b"".join([b"%b: %b\r\n" % header for header in headers])
    if lines.count(b"\n") != len(headers) or lines.count(b"\r") != len(headers):
        raise UpstreamError(
            "invalid_header", "a header holds a line break", status=400, retryable=False, sent=False
        )
    if not TARGET.fullmatch(endpoint.target):
        raise UpstreamError(
            "invalid_target",
            "the request target holds a blank or a control character",
            status=400,
            retryable=False,
            sent=False,
        )
    default = 443 if endpoint.scheme == "https" else 80
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    if endpoint.port != default:
        host = f"{host}:{endpoint.port}"
    return b"%b %b HTTP/1.1\r\nhost: %b\r\n%baccept-encoding: identity\r\ncontent-length: %d\r\n\r\n%b" % (
        method,
        endpoint.target,
        host.encode("idna" if not host.isascii() else "ascii"),
        lines,
        len(body),
        body,
    )


def unreachable(endpoint: Endpoint, why: str, status: int = 502) -> UpstreamError:
    """Return the error of a provider to which nothing was sent."""
    return UpstreamError(
        "upstream_unreachable",
        f"{endpoint.host}:{endpoint.port} cannot be reached: {why}",
        status=status,
        retryable=True,
        sent=False,
    )
