"""Stages: what the story needs from the world, as values and interfaces; `gateway.app` fills them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol as Interface

import msgspec

from gateway.admission.guards import NOTHING_HELD, Hold
from gateway.billing import Prices
from gateway.core.errors import CallerError
from gateway.core.exchange import Call, Exchange, Progress, Reply
from gateway.protocols.base import Dialect, Protocol, Request
from gateway.providers.upstream import Endpoint, Header, Timeouts, Transport
from gateway.release.relay import Drains
from gateway.routing.choosing import Chooser
from gateway.routing.retry import ONCE, Policy
from gateway.routing.targets import Target
from gateway.translation import Translated, Translator


class Lane(msgspec.Struct, frozen=True, kw_only=True):
    """One target made callable: a provider, the model's name there, and how to speak to it.

    Args:
        prices: section of the price catalogue.
        headers: (the caller's headers, traceparent) -> headers for the provider: its key, and of the
            caller's only the listed ones.
        timeouts: instead of those that hold for all.
        translator: what stands between the door and this provider, None where both speak the same.
        instead: the same target spoken to in other protocols, for what cannot be said in this one.
        translated: the request in the provider's words, once it was translated.
    """

    provider: str
    model: str
    prices: str
    endpoint: Endpoint
    dialect: Dialect
    headers: Callable[[Sequence[Header], bytes], list[Header]]
    timeouts: Timeouts | None = None
    translator: Translator | None = None
    instead: tuple[Lane, ...] = ()
    translated: Translated | None = None

    def spoken(self, door: Protocol) -> Protocol:
        """Return the protocol in which the provider is spoken to."""
        return self.translated or door

    def relayed(
        self, status: int, headers: Sequence[Header], body: bytes, reply: Reply, *, streamed: bool
    ) -> tuple[int, Sequence[Header], bytes]:
        """Return a whole reply as the caller gets it: the provider's bytes, or what they mean to it."""
        if self.translated is None:
            return status, headers, body
        status, body = self.translated.relayed(status, body, reply, streamed=streamed)
        kept = [header for header in headers if header[0] != b"content-type"]
        return status, [*kept, (b"content-type", b"application/json")], body

    @property
    def target(self) -> Target:
        """What is measured and cooled down: a model at a provider."""
        return Target(self.provider, self.model)


def translated(lanes: tuple[Lane, ...], body: bytes, request: Request, at_unix_s: int) -> tuple[Lane, ...]:
    """Return the lanes that can have this request, each with it in its provider's words.

    Raises:
        CallerError: 400: it says something that no provider's protocol can; what the first one lacks.
    """
    if all(lane.translator is None for lane in lanes):
        return lanes
    able: list[Lane] = []
    refused: CallerError | None = None
    for lane in lanes:
        for way in (lane, *lane.instead):
            try:
                able.append(_begun(way, body, request, at_unix_s))
                break
            except CallerError as error:
                refused = refused or error
    if refused is not None and not able:
        raise refused
    return tuple(able)


def _begun(lane: Lane, body: bytes, request: Request, at_unix_s: int) -> Lane:
    if lane.translator is None:
        return lane
    told = lane.translator.begin(body, request, model=lane.model, dialect=lane.dialect, at_unix_s=at_unix_s)
    return msgspec.structs.replace(lane, translated=told)


class Recorder(Interface):
    """The journal, in the words of the story; a method that cannot keep its word raises GatewayFault."""

    def intent(self, call: Call) -> int:
        """Write the intent; return its sequence number."""
        ...

    def progress(self, call: Call, progress: Progress) -> None:
        """Write how far a stream has got, before that much of it is released."""
        ...

    def settle(self, exchange: Exchange) -> int:
        """Write the bill; return its number. What the disk refuses is owed, and `durable` says so."""
        ...

    async def durable(self, sequence: int) -> None:
        """Wait until the record with that number would survive a power loss (at `journal.durability`)."""
        ...


class Stages(msgspec.Struct, frozen=True, kw_only=True):
    """What the story needs from the world.

    Args:
        observe: told of each settled exchange (metrics, log line, spans), beside the sync; must not raise.
        now_ns, monotonic_ns: wall clock and duration clock, in nanoseconds.
        count: tokens of a text by the tokenizer of that name, None where it cannot say.
        chooser: what is known of targets.
        toss: chance, from 0 up to 1.
        pause: waits for so many seconds.
    """

    transport: Transport
    recorder: Recorder
    prices: Prices
    observe: Callable[[Exchange, int], None]
    span_id: Callable[[], str]
    now_ns: Callable[[], int]
    monotonic_ns: Callable[[], int]
    timeouts: Timeouts
    drains: Drains
    reply_bytes_max: int
    tokenizer: str = "none"
    count: Callable[[str], int | None] = lambda _: None
    chooser: Chooser
    toss: Callable[[], float]
    pause: Callable[[float], Awaitable[None]]


class Admitted(msgspec.Struct, frozen=True, kw_only=True):
    """An admitted request on its way: everything that is known before a provider is called.

    Args:
        ids: response headers with the correlation ids.
        started_ns: monotonic time of admission.
        traceparent: makes the header for an attempt's span id.
        hold: what it occupies until its bill is known.
        policy: when another attempt follows a failed one.
    """

    call: Call
    request: Request
    protocol: Protocol
    lanes: tuple[Lane, ...]
    body: bytes
    headers: Sequence[Header]
    ids: list[Header]
    started_ns: int
    traceparent: Callable[[str], bytes]
    hold: Hold = NOTHING_HELD
    policy: Policy = ONCE
