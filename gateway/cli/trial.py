"""Trial: one smallest call of one provider, told as the story tells every request, and journaled nowhere.

It goes the way of all requests (the card's door, the request as it is sent, metering, rating), so that what
works here works there; only admission and the journal are left out. The provider charges for it as for any
call.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from gateway.assembly import prices_of
from gateway.assembly_routing import chooser_of, routes_of
from gateway.capture.redaction import redacted, secrets_in
from gateway.core.errors import UpstreamError
from gateway.core.exchange import Call, Exchange, Identity, Progress
from gateway.pipeline import Serving
from gateway.pricing.selling import Book
from gateway.protocols import PROTOCOLS
from gateway.protocols.base import Protocol
from gateway.providers.cards import Origin
from gateway.providers.httpx_transport import transport_for
from gateway.providers.places import Provider
from gateway.providers.simulated import SimulatedTransport
from gateway.providers.upstream import Endpoint, Timeouts
from gateway.release.relay import Caller, DrainBounds, Drains
from gateway.routing.targets import Place, Router
from gateway.settings import Settings
from gateway.stages import Admitted, Stages

OUTPUT_TOKENS: Final = 16
"""Of the answer: the least that every provider accepts (OpenAI's Responses takes no fewer)."""
WORDS_CHARS: Final = 300
"""How much of what a provider says of an error is shown."""
TRIED: Final = ("chat_completions", "messages", "responses")
"""Doors that can be tried, the first of a card before its others."""


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """What one call showed.

    Args:
        exchange: what would be billed.
        fault: why there was no answer; None if there was one, an error status among them.
        words: what the provider said of its error, without anything that looks like a key.
    """

    exchange: Exchange
    url: str
    fault: UpstreamError | None
    words: str | None

    @property
    def status(self) -> int | None:
        """The status of the provider's reply, None where none came."""
        return self.exchange.attempts[-1].status

    @property
    def served(self) -> bool:
        """Whether there is an answer whose usage the provider itself reported."""
        usage = self.exchange.reply.usage
        return self.exchange.outcome == "ok" and usage is not None and usage.source == "provider"


class _Recorder:
    """Keeps the bill here, and nowhere else."""

    def __init__(self) -> None:
        self.bill: Exchange | None = None

    def intent(self, call: Call) -> int:  # noqa: ARG002  # see `gateway.stages.Recorder`
        return 0

    def progress(self, call: Call, progress: Progress) -> None: ...

    def settle(self, exchange: Exchange) -> int:
        self.bill = exchange
        return 0

    async def durable(self, sequence: int) -> None: ...


class _Answered:
    """The caller's side of the connection."""

    def __init__(self) -> None:
        self.body = b""

    async def receive(self) -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(self, message: dict[str, Any]) -> None:
        self.body += message.get("body", b"")


def door_of(provider: Provider) -> str | None:
    """Return the door that is tried; None where a provider has none for text."""
    return next((name for name in provider.doors if name in TRIED), None)


async def try_provider(
    settings: Settings, provider: Provider, book: Book, door: str, model: str, *, stream: bool
) -> Trial:
    """Call a provider once, with the operator's key and as small a request as there can be.

    Raises:
        SpanbillError: the model cannot be asked for there.
    """
    protocol = next(one for one in PROTOCOLS.values() if one.name == door)
    endpoint = provider.doors[door].endpoint
    recorder, answered = _Recorder(), _Answered()
    network = SimulatedTransport() if provider.card.in_process else transport_for(settings.upstream.transport)
    stages = Stages(
        transport=network,
        recorder=recorder,
        prices=prices_of(book),
        observe=lambda exchange, status: None,  # noqa: ARG005
        span_id=lambda: "1" * 16,
        now_ns=time.time_ns,
        monotonic_ns=time.monotonic_ns,
        timeouts=_timeouts(settings),
        drains=Drains(DrainBounds(duration_ns=0, bytes_max=0, count_max=0)),
        reply_bytes_max=settings.upstream.max_reply_bytes,
        chooser=chooser_of(settings, random.random),
        toss=random.random,
        pause=_never,
    )
    admitted = _admitted(settings, provider, protocol, model, stream=stream)
    fault: UpstreamError | None = None
    try:
        await Serving(stages, admitted, Caller(answered.receive, answered.send)).serve()
    except UpstreamError as raised:
        fault = raised
    finally:
        await network.aclose()
    if recorder.bill is None:
        raise AssertionError("every ending settles a bill")
    return Trial(
        exchange=recorder.bill,
        url=f"{address_of(endpoint)}{endpoint.target.decode()}",
        fault=fault,
        words=None
        if recorder.bill.outcome == "ok"
        else words_of(answered.body, secrets_in(provider.doors[door].headers([], b""))),
    )


def address_of(place: Endpoint | Origin) -> str:
    """Return where a provider is, without a path; a port only where it is not the usual one."""
    usual = {"http": 80, "https": 443}.get(place.scheme) == place.port
    host = f"[{place.host}]" if ":" in place.host else place.host
    return f"{place.scheme}://{host}{'' if usual else f':{place.port}'}"


def words_of(body: bytes, secrets: Sequence[bytes] = ()) -> str | None:
    """Return what an error says of itself, whatever envelope it has; None where it says nothing readable.

    Args:
        secrets: what must not be shown, beside whatever looks like a key.
    """
    try:
        value = msgspec.json.decode(body.rpartition(b"data: ")[2])
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    for _ in range(3):  # [{"error": {"message": "…"}}] is the deepest that was seen
        if isinstance(value, list) and value:
            value = value[0]
        if isinstance(value, Mapping):
            value = next((value[name] for name in ("error", "message", "detail") if value.get(name)), None)
    if not isinstance(value, str):
        return None
    shown = redacted(value[: 2 * WORDS_CHARS].encode("utf-8", "replace"), secrets).decode("utf-8", "replace")
    return "".join([sign if sign.isprintable() else " " for sign in shown])[:WORDS_CHARS]


def _admitted(
    settings: Settings, provider: Provider, protocol: Protocol, model: str, *, stream: bool
) -> Admitted:
    body = msgspec.json.encode(_asked(provider, protocol.name, model, stream=stream))
    request = protocol.read_request(body)
    card = provider.card
    place = Place(provider=provider.name, protocols=tuple(card.doors), models=(), ready=True)
    alone = settings.model_copy(update={"routing": settings.routing.model_copy(update={"aliases": {}})})
    routes = routes_of(alone, Router([place]), {provider.name: provider})
    call = Call(
        record_id="trial",
        trace_id="1" * 32,
        span_id="1" * 16,
        server_span_id="1" * 16,
        protocol=protocol.name,
        operation=protocol.operation,
        model=model,
        stream=stream,
        identity=Identity(key_id="trial", user_id="operator", source="key"),
        started_unix_ns=time.time_ns(),
        max_tokens=request.max_tokens,
        sides=protocol.sides,
        input_summary=request.summary,
    )
    return Admitted(
        call=call,
        request=request,
        protocol=protocol,
        lanes=routes.route(f"{provider.name}/{model}", protocol.name).lanes,
        body=body,
        headers=[],
        ids=[],
        started_ns=time.monotonic_ns(),
        traceparent=lambda span_id: f"00-{'1' * 32}-{span_id}-00".encode(),
    )


def _asked(provider: Provider, door: str, model: str, *, stream: bool) -> dict[str, object]:
    text = "Say OK."
    body: dict[str, object] = {"model": model}
    if stream:
        body["stream"] = True
    if door == "responses":
        return body | {"input": text, "max_output_tokens": OUTPUT_TOKENS, "store": False}
    limit = "max_tokens" if door == "messages" else provider.card.output_limit
    return body | {"messages": [{"role": "user", "content": text}], limit: OUTPUT_TOKENS}


def _timeouts(settings: Settings) -> Timeouts:
    return Timeouts(
        connect_s=settings.upstream.connect_timeout_s,
        first_byte_s=settings.upstream.first_byte_timeout_s,
        idle_s=settings.upstream.idle_timeout_s,
        total_s=settings.upstream.total_timeout_s,
    )


async def _never(_: float) -> None:
    """Pause: one attempt has none."""
