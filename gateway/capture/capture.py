"""Captures: which requests are captured, and what passes of one of them, noted beside it.

What is noted is what the caller sent, what the provider was asked and answered (heads only), and what was
released to the caller, up to a bound. Nothing is read, changed or waited for: a piece is kept by reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec

from gateway.capture.redaction import redacted
from gateway.capture.store import Body, CaptureStore, Tried
from gateway.core.errors import UpstreamError
from gateway.providers.upstream import Endpoint, Header, Timeouts, Transport, UpstreamReply
from gateway.release.relay import Caller
from gateway.stages import Admitted, Stages

ASKS: Final = b"x-spanbill-debug"
TRIED_MAX: Final = 32
"""Attempts that are noted."""


class Captures:
    """Chooses requests.

    Args:
        keys: ids of keys whose requests are all captured.
        header_keys: ids of keys that may ask for it by a header.
        operator: whether a request shows the operator's key, which may ask for any.
        bytes_max: how much of each body is noted.
    """

    def __init__(
        self,
        store: CaptureStore,
        *,
        keys: Iterable[str],
        header_keys: Iterable[str],
        operator: Callable[[Sequence[Header]], bool],
        bytes_max: int,
    ) -> None:
        self._store = store
        self._keys = frozenset(keys)
        self._header_keys = frozenset(header_keys)
        self._operator = operator
        self._bytes_max = bytes_max

    def begin(self, admitted: Admitted, caller: Caller) -> Capture | None:
        """Return the capture of a request, to be ended once; None where it is not to be captured.

        Where the bounds are reached it is not captured either, which the store counts.
        """
        if not self._chosen(admitted.call.identity.key_id, admitted.headers):
            return None
        name = self._store.reserve(admitted.call.started_unix_ns, admitted.call.record_id)
        if name is None:
            return None
        capture = Capture(name, admitted, self._bytes_max, self._store.add)
        caller.watch(capture.sent)
        return capture

    def _chosen(self, key_id: str, headers: Sequence[Header]) -> bool:
        if key_id in self._keys:
            return True
        return _asked(headers) and (key_id in self._header_keys or self._operator(headers))


class Capture:
    """One request that is captured; `gateway.capture.store` writes it."""

    def __init__(self, name: str, admitted: Admitted, bytes_max: int, end: Callable[[Capture], None]) -> None:
        call = admitted.call
        self.name = name
        self.facts: dict[str, object] = {
            "record_id": call.record_id,
            "trace_id": call.trace_id,
            "started_unix_ns": str(call.started_unix_ns),
            "key": call.identity.key_id,
            "user": call.identity.user_id,
            "path": admitted.protocol.path,
            "model": redacted(call.model.encode(), ()).decode("utf-8", "replace"),
            "stream": call.stream,
        }
        self.request_headers = admitted.headers
        self.request = Body(bytes_max)
        self.request.take(admitted.body)
        self.tried: list[Tried] = []
        self.status: int | None = None
        self.reply_headers: Sequence[Header] = ()
        self.reply = Body(bytes_max)
        self.ended = False
        self._end = end

    def over(self, stages: Stages, admitted: Admitted) -> tuple[Stages, Admitted]:
        """Return what the story is to be told with, so that it is noted here and named on the bill."""
        call = msgspec.structs.replace(admitted.call, capture=self.name)
        return (
            msgspec.structs.replace(stages, transport=NotingTransport(stages.transport, self.tried)),
            msgspec.structs.replace(admitted, call=call),
        )

    def sent(self, message: dict[str, Any]) -> None:
        """Note what goes out to the caller."""
        if message["type"] == "http.response.start":
            self.status, self.reply_headers = message["status"], message["headers"]
            return
        self.reply.take(message["body"])
        self.ended = not message["more_body"]

    def end(self) -> None:
        """Hand it over to be written."""
        self._end(self)


class NotingTransport:
    """A transport that notes the heads of what it is given and gives."""

    def __init__(self, network: Transport, tried: list[Tried]) -> None:
        self._network = network
        self._tried = tried

    async def send(
        self, method: bytes, endpoint: Endpoint, headers: Sequence[Header], body: bytes, timeouts: Timeouts
    ) -> UpstreamReply:
        """Send one request; see `gateway.providers.upstream.Transport`."""
        tried = Tried(endpoint.host, endpoint.port, endpoint.target.partition(b"?")[0], headers, len(body))
        if len(self._tried) < TRIED_MAX:
            self._tried.append(tried)
        try:
            reply = await self._network.send(method, endpoint, headers, body, timeouts)
        except UpstreamError as fault:
            tried.error = fault.code
            raise
        tried.status, tried.reply_headers = reply.status, reply.headers
        return reply

    async def aclose(self) -> None:
        """Close nothing: the network is everybody's."""


def _asked(headers: Sequence[Header]) -> bool:
    return any(name == ASKS and value.strip() == b"1" for name, value in headers)
