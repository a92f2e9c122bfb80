"""Shells: play a script, in the process or on a socket; they decide nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from gateway.core.errors import UpstreamError
from gateway.providers.simulated.script import Piece, Script, simulate
from gateway.providers.simulated.state import State
from gateway.providers.upstream import Endpoint, Header, Timeouts

READ_BYTES_MAX: Final = 64 * 1024
"""What one read returns at most, like a socket's buffer; a longer piece comes alone."""
BODY_PARTS_MAX: Final = 1_000_000
TIMEOUT_STATUS: Final = 504


class SimulatedTransport:
    """The simulated provider as a transport: no socket, and the same faults as one.

    Args:
        pace: factor on every delay; 0 plays at once.
    """

    def __init__(self, state: State | None = None, *, pace: float = 1.0) -> None:
        self.state = state or State()
        self._pace = pace

    async def send(
        self,
        method: bytes,  # noqa: ARG002  # the interface; every door is a POST
        endpoint: Endpoint,
        headers: Sequence[Header],
        body: bytes,
        timeouts: Timeouts,
    ) -> SimulatedReply:
        """Answer; raises UpstreamError `upstream_timeout` if the script's head comes too late."""
        path = endpoint.target.partition(b"?")[0].decode("ascii", "replace")
        script = simulate(path, body, headers, self.state)
        delay_s = script.head_delay_s * self._pace
        await _wait(delay_s, min(timeouts.first_byte_s, timeouts.total_s), "its first byte")
        return SimulatedReply(script, timeouts, self._pace, delay_s)

    async def aclose(self) -> None:
        """Nothing is open."""


class SimulatedReply:
    """A reply that is played piece by piece."""

    def __init__(self, script: Script, timeouts: Timeouts, pace: float, spent_s: float) -> None:
        self.status = script.status
        self.headers: Sequence[Header] = script.headers
        self._script = script
        self._timeouts = timeouts
        self._pace = pace
        self._spent_s = spent_s
        self._at = 0

    async def read(self) -> bytes:
        """Return what has arrived by the next piece's time, or b"" at the end.

        Raises:
            UpstreamError: `upstream_incomplete` where the script is cut, `upstream_timeout`.
        """
        pieces = self._script.pieces
        if self._at >= len(pieces):
            if self._script.ending == "cut":
                raise UpstreamError(
                    "upstream_incomplete",
                    "the provider closed the connection in the middle of its reply; send the request again",
                    retryable=False,
                    sent=True,
                )
            return b""
        delay_s = pieces[self._at].delay_s * self._pace
        timeouts = self._timeouts
        await _wait(delay_s, min(timeouts.idle_s, timeouts.total_s - self._spent_s), "more of its reply")
        self._spent_s += delay_s
        end = _arrived(pieces, self._at, self._pace)
        data = b"".join([piece.data for piece in pieces[self._at : end]])
        self._at = end
        return data

    def close(self) -> None:
        """Nothing is open."""


def _arrived(pieces: Sequence[Piece], start: int, pace: float) -> int:
    """Return the end of the pieces that come together: those without a delay, up to READ_BYTES_MAX."""
    end, size = start + 1, len(pieces[start].data)
    while end < len(pieces) and not pieces[end].delay_s * pace:
        size += len(pieces[end].data)
        if size > READ_BYTES_MAX:
            break
        end += 1
    return end


async def _wait(delay_s: float, bound_s: float, what: str) -> None:
    if delay_s <= 0:
        return
    await asyncio.sleep(min(delay_s, max(bound_s, 0.0)))
    if delay_s > bound_s:
        raise UpstreamError(
            "upstream_timeout",
            f"the provider did not send {what} in time; see upstream.*_timeout_s",
            status=TIMEOUT_STATUS,
            retryable=False,
            sent=True,
        )


class ConnectionCutError(Exception):
    """Raised out of the ASGI application to make the server drop the connection inside a body."""


class SimulatedApp:
    """The simulated provider as a pure ASGI application, to be served on a real socket."""

    def __init__(self, state: State | None = None, *, pace: float = 1.0) -> None:
        self.state = state or State()
        self._pace = pace

    async def __call__(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[dict[str, Any]]],
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        """Serve one request; lifespan and websockets are left to the server."""
        if scope["type"] != "http":
            return
        body = await _body(receive)
        if scope["method"] != "POST":
            await send({"type": "http.response.start", "status": 405, "headers": [(b"allow", b"POST")]})
            await send({"type": "http.response.body", "body": b""})
            return
        await self._play(simulate(scope["path"], body, scope["headers"], self.state), send)

    async def _play(self, script: Script, send: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
        if script.head_delay_s * self._pace:
            await asyncio.sleep(script.head_delay_s * self._pace)
        headers = list(script.headers)
        if script.content_length is not None:
            headers.append((b"content-length", b"%d" % script.content_length))
        await send({"type": "http.response.start", "status": script.status, "headers": headers})
        for piece in script.pieces:
            if piece.delay_s * self._pace:
                await asyncio.sleep(piece.delay_s * self._pace)
            await send({"type": "http.response.body", "body": piece.data, "more_body": True})
        if script.ending == "cut":
            raise ConnectionCutError("as the model is told to do")
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _body(receive: Callable[[], Awaitable[dict[str, Any]]]) -> bytes:
    parts: list[bytes] = []
    for _ in range(BODY_PARTS_MAX):
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            break
    return b"".join(parts)


def simulated_app(state: State | None = None, *, pace: float = 1.0) -> SimulatedApp:
    """Return a new simulated provider as an ASGI application."""
    return SimulatedApp(state, pace=pace)
