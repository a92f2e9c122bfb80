"""httpx on both sides of the transport interface, so that transports can be exchanged by configuration.

`HTTPXTransport` lets any `httpx.AsyncBaseTransport` serve requests (the stock one knows proxies and HTTP/2);
`FastHTTPXTransport` puts ours behind httpx's interface for code that holds an `httpx.AsyncClient`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final
from urllib.request import getproxies, proxy_bypass

import httpx

from gateway.core.errors import UpstreamError
from gateway.providers.decoding import Decoder, decoded_headers, decoder_for
from gateway.providers.transport import FastTransport, unreachable
from gateway.providers.upstream import Endpoint, Header, Timeouts, Transport, UpstreamReply, check_head

DECODED_BY_NOBODY: Final = b"identity"


class _HTTPXReply:
    def __init__(
        self,
        response: httpx.Response,
        headers: Sequence[Header],
        decoder: Decoder | None,
        deadline: float,
        idle_s: float,
    ) -> None:
        self.status = response.status_code
        self.headers = headers if decoder is None else decoded_headers(headers)
        self._decoder = decoder
        self._response = response
        assert isinstance(response.stream, httpx.AsyncByteStream)
        self._pieces = aiter(response.stream)
        self._deadline = deadline
        self._idle_s = idle_s
        self._closing: asyncio.Task[None] | None = None

    async def read(self) -> bytes:
        now = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(min(self._deadline, now + self._idle_s)):
                async for piece in self._pieces:
                    data = piece if self._decoder is None else self._decoder.feed(piece)
                    if data:
                        return data
                if self._decoder is not None:
                    self._decoder.finish()
                return b""
        except (TimeoutError, httpx.TimeoutException) as fault:
            raise _timeout(retryable=False) from fault
        except httpx.HTTPError as fault:
            raise UpstreamError(
                "upstream_incomplete",
                "the provider closed the connection before the end of its reply",
                retryable=False,
                sent=True,
            ) from fault

    def close(self) -> None:
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._response.aclose())


class HTTPXTransport:
    """Any httpx transport as a transport of ours."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner

    async def send(
        self,
        method: bytes,
        endpoint: Endpoint,
        headers: Sequence[Header],
        body: bytes,
        timeouts: Timeouts,
    ) -> UpstreamReply:
        """Send one request; see `gateway.providers.upstream.Transport`."""
        url = httpx.URL(
            scheme=endpoint.scheme, host=endpoint.host, port=endpoint.port, raw_path=endpoint.target
        )
        request = httpx.Request(
            method.decode(),
            url,
            headers=[*headers, (b"accept-encoding", DECODED_BY_NOBODY)],
            content=body,
            extensions={
                "timeout": {
                    "connect": timeouts.connect_s,
                    "pool": timeouts.connect_s,
                    "write": timeouts.first_byte_s,
                    # httpx has one bound for head and body; the exact ones are kept here
                    "read": max(timeouts.first_byte_s, timeouts.idle_s),
                }
            },
        )
        now = asyncio.get_running_loop().time()
        deadline = now + timeouts.total_s
        head_at = min(deadline, now + timeouts.connect_s + timeouts.first_byte_s)
        try:
            async with asyncio.timeout_at(head_at):
                response = await self._inner.handle_async_request(request)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError) as fault:
            raise unreachable(endpoint, type(fault).__name__) from fault
        except (TimeoutError, httpx.TimeoutException) as fault:
            raise _timeout(retryable=True) from fault
        except httpx.NetworkError as fault:
            raise UpstreamError(
                "upstream_incomplete",
                "the provider closed the connection before the end of its reply",
                retryable=True,
                sent=True,
            ) from fault
        except httpx.HTTPError as fault:
            raise UpstreamError(
                "upstream_protocol",
                f"the provider did not answer in HTTP ({type(fault).__name__})",
                retryable=False,
                sent=True,
            ) from fault
        received = [(name.lower(), value) for name, value in response.headers.raw]
        try:
            check_head(response.status_code, received)
            decoder = decoder_for(received)
        except UpstreamError:
            await response.aclose()
            raise
        return _HTTPXReply(response, received, decoder, deadline, timeouts.idle_s)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._inner.aclose()


def _timeout(*, retryable: bool) -> UpstreamError:
    return UpstreamError(
        "upstream_timeout",
        "the provider did not send its reply in time; see upstream.*_timeout_s",
        status=504,
        retryable=retryable,
        sent=True,
    )


class _Stream(httpx.AsyncByteStream):
    def __init__(self, reply: UpstreamReply) -> None:
        self._reply = reply

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            while data := await self._reply.read():  # bounded by the transport's own deadlines
                yield data
        except UpstreamError as fault:
            kind = httpx.ReadTimeout if fault.code == "upstream_timeout" else httpx.ReadError
            raise kind(fault.message) from fault

    async def aclose(self) -> None:
        self._reply.close()


class FastHTTPXTransport(httpx.AsyncBaseTransport):
    """Our transport behind httpx's interface."""

    def __init__(self, inner: FastTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request of httpx's."""
        timeout: dict[str, float | None] = request.extensions.get("timeout", {})
        stock = Timeouts()
        read_s = timeout.get("read") or stock.idle_s
        timeouts = Timeouts(
            connect_s=timeout.get("connect") or stock.connect_s, first_byte_s=read_s, idle_s=read_s
        )
        owned = (b"host", b"content-length", b"accept-encoding", b"connection", b"transfer-encoding")
        headers = [(n.lower(), v) for n, v in request.headers.raw if n.lower() not in owned]
        url = request.url
        endpoint = Endpoint(
            scheme=url.scheme,
            host=url.host,
            port=url.port or (443 if url.scheme == "https" else 80),
            target=url.raw_path,
        )
        try:
            reply = await self._inner.send(
                request.method.encode(), endpoint, headers, await request.aread(), timeouts
            )
        except UpstreamError as fault:
            kind = httpx.ReadTimeout if fault.code == "upstream_timeout" else httpx.ReadError
            raise (kind if fault.sent else httpx.ConnectError)(fault.message, request=request) from fault
        return httpx.Response(reply.status, headers=list(reply.headers), stream=_Stream(reply))

    async def aclose(self) -> None:
        """Close all connections."""
        await self._inner.aclose()


class ByHost:
    """Our transport where a host is reached directly, the stock one where a proxy stands in between."""

    def __init__(self, direct: Transport, proxies: Mapping[str, str]) -> None:
        self._direct = direct
        self._proxies = dict(proxies)
        self._proxied: dict[str, HTTPXTransport] = {}

    async def send(
        self,
        method: bytes,
        endpoint: Endpoint,
        headers: Sequence[Header],
        body: bytes,
        timeouts: Timeouts,
    ) -> UpstreamReply:
        """Send one request; see `gateway.providers.upstream.Transport`."""
        proxy = self._proxies.get(endpoint.scheme) or self._proxies.get("all")
        if not proxy or proxy_bypass(f"{endpoint.host}:{endpoint.port}"):
            return await self._direct.send(method, endpoint, headers, body, timeouts)
        transport = self._proxied.get(proxy)
        if transport is None:
            transport = HTTPXTransport(httpx.AsyncHTTPTransport(proxy=proxy))
            self._proxied[proxy] = transport
        return await transport.send(method, endpoint, headers, body, timeouts)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._direct.aclose()
        for transport in self._proxied.values():
            await transport.aclose()


def transport_for(choice: str) -> Transport:
    """Return the transport that `upstream.transport` names: `auto`, `fast` or `httpx`."""
    if choice == "httpx":
        return HTTPXTransport(httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=1000)))
    proxies = getproxies() if choice == "auto" else {}
    return ByHost(FastTransport(), proxies) if proxies else FastTransport()
