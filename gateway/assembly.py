"""Assembly: the parts that the composition root puts together, made from settings and environment.

Nothing here decides anything about a request; it turns configuration into the values that stages take.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from gateway import __version__
from gateway.admission.virtual_keys import KeyEntry, env_keys
from gateway.api.doors import ModelEntry
from gateway.core.charge import Charge
from gateway.core.errors import GatewayFault
from gateway.core.exchange import Call, Exchange, Identity, Reply
from gateway.pipeline import Lane
from gateway.pricing.catalogue import Catalogue
from gateway.pricing.rating import charge
from gateway.protocols.base import Dialect
from gateway.providers.cards import CardError, Override, load_cards
from gateway.providers.places import Provider, Secret, resolve
from gateway.providers.upstream import Endpoint, Header, Timeouts, Transport, UpstreamReply
from gateway.recording.span import billing_span
from gateway.routing.targets import Place, Router, Target
from gateway.settings import KeySettings, Settings, SettingsError
from otel.journal import JournalUnavailable, JournalWriter
from otel.schema import encode_span, resource_spans_frame

SIMULATED: Final = "simulated"
RETRY_AFTER_S: Final = 1
LANES_MAX: Final = 4096
"""Remembered names; callers choose names, so the memo starts over when it is full."""


class JournalRecorder:
    """The journal in the words of the story; see `gateway.pipeline.Recorder`."""

    def __init__(self, writer: JournalWriter, resource: Mapping[str, str], cache_write_name: str) -> None:
        self._writer = writer
        self._head, self._tail = resource_spans_frame(resource, "spanbill", __version__)
        self._cache_write_name = cache_write_name

    def intent(self, call: Call) -> int:
        """Write the intent: all that a bill would need if the process died now."""
        try:
            return self._writer.append("I", call.record_id, msgspec.json.encode(call).decode())
        except JournalUnavailable as fault:
            raise unavailable(str(fault)) from fault

    def settle(self, exchange: Exchange) -> int:
        """Write the bill."""
        span = encode_span(billing_span(exchange, cache_write_name=self._cache_write_name))
        try:
            return self._writer.append("S", exchange.call.record_id, self._head + span + self._tail)
        except JournalUnavailable as fault:
            raise unavailable(str(fault)) from fault

    async def durable(self, sequence: int) -> None:
        """Wait for the sync."""
        try:
            await self._writer.durable(sequence)
        except JournalUnavailable as fault:
            raise unavailable(str(fault)) from fault


def unavailable(reason: str) -> GatewayFault:
    """Return the refusal of a gateway that cannot write bills: no journal, no reply."""
    return GatewayFault(
        "journal_unavailable",
        f"bills cannot be written now ({reason}); try again soon. The operator finds more at /ready",
        status=503,
        retry_after_s=RETRY_AFTER_S,
    )


class Switch:
    """Sends each request to the simulated provider or out to the network, by its endpoint."""

    def __init__(self, network: Transport, simulated: Transport, simulated_host: str) -> None:
        self._network = network
        self._simulated = simulated
        self._host = simulated_host

    async def send(
        self, method: bytes, endpoint: Endpoint, headers: Sequence[Header], body: bytes, timeouts: Timeouts
    ) -> UpstreamReply:
        """Send one request; see `gateway.providers.upstream.Transport`."""
        transport = self._simulated if endpoint.host == self._host else self._network
        return await transport.send(method, endpoint, headers, body, timeouts)

    async def aclose(self) -> None:
        """Close both."""
        await self._network.aclose()
        await self._simulated.aclose()


def configured_keys(settings: Settings, environ: Mapping[str, str]) -> list[KeyEntry]:
    """Return the keys of the environment and of the file.

    Raises:
        SettingsError: a key is empty, unusable, or its variable is not set.
    """
    try:
        entries = env_keys(settings.api_keys.get_secret_value())
        return entries + [_key_entry(key, environ) for key in settings.keys]
    except ValueError as fault:
        raise SettingsError(str(fault)) from fault


def _key_entry(key: KeySettings, environ: Mapping[str, str]) -> KeyEntry:
    secret = key.key.get_secret_value() if key.key is not None else environ.get(key.key_env or "", "")
    if not secret:
        raise ValueError(f"keys: {key.id}: give `key`, or set the variable that `key_env` names")
    return KeyEntry(
        secret,
        Identity(
            key_id=key.id,
            user_id=key.user,
            user_name=key.user_name,
            source="key",
            team=key.team,
            project=key.project,
            tags=key.tags,
        ),
    )


def configured_providers(settings: Settings, environ: Mapping[str, str]) -> dict[str, Provider]:
    """Return the providers by name, each with its key if it has one.

    Raises:
        SettingsError: listing what is wrong with the cards or the configuration.
    """
    overrides = {
        name: Override(
            **{
                field: value
                for field, value in own.model_dump(exclude={"api_key"}, exclude_unset=True).items()
                if value is not None
            },
            has_key=own.api_key is not None,
        )
        for name, own in settings.providers.items()
    }
    try:
        cards = load_cards(overrides)
        return {name: resolve(card, environ, _provider_key(settings, name)) for name, card in cards.items()}
    except (CardError, ValueError) as fault:
        raise SettingsError(str(fault)) from fault


def _provider_key(settings: Settings, name: str) -> Secret | None:
    own = settings.providers.get(name)
    return Secret(own.api_key.get_secret_value()) if own is not None and own.api_key is not None else None


def place_of(provider: Provider) -> Place:
    """Return what routing must know about a provider."""
    card = provider.card
    return Place(
        provider=provider.name,
        protocols=tuple(card.doors),
        models=card.models,
        ready=provider.ready,
        key_env=card.key_env,
        suggest=card.suggest,
    )


def lanes_of(router: Router, providers: Mapping[str, Provider]) -> Callable[[str, str], tuple[Lane, ...]]:
    """Return the routing of the door: (model, protocol name) -> lanes in order, remembered."""
    known: dict[tuple[str, str], tuple[Lane, ...]] = {}

    def lane(target: Target, protocol: str) -> Lane:
        provider = providers[target.provider]
        door = provider.doors[protocol]
        return Lane(
            provider=provider.name,
            model=target.model,
            prices=provider.prices_of(target.model),
            endpoint=door.endpoint,
            dialect=Dialect(reasoning_in_output=door.reasoning_in_output, stream_usage=door.stream_usage),
            headers=door.headers,
        )

    def lanes(model: str, protocol: str) -> tuple[Lane, ...]:
        key = (model, protocol)
        found = known.get(key)
        if found is None:
            found = tuple([lane(target, protocol) for target in router.targets(model, protocol)])
            if len(known) >= LANES_MAX:
                known.clear()
            known[key] = found
        return found

    return lanes


def pricer(catalogue: Catalogue) -> Callable[[Lane, Reply, int], Charge | None]:
    """Return the pricing of the story: (lane, reply, Unix seconds) -> charge, None where there is no rate."""

    def price(lane: Lane, reply: Reply, at_unix_s: int) -> Charge | None:
        """Price by the model that served; by the requested one only if the reply names none."""
        card = catalogue.card(lane.provider, lane.prices, reply.response_model or lane.model, at_unix_s)
        if card is None or reply.usage is None:
            return None
        return charge(reply.usage, card, catalogue.hash)

    return price


def models_of(providers: Mapping[str, Provider], catalogue: Catalogue) -> list[ModelEntry]:
    """Return what can be named: for each ready provider the names its card knows and its prices list."""
    entries: dict[str, ModelEntry] = {}
    for provider in providers.values():
        if not provider.ready:
            continue
        known = [name for name in (*provider.card.suggest, *provider.card.models) if "*" not in name]
        titles = {model.id: model.name or model.id for model in catalogue.models(provider.card.prices)}
        for name in (*known, *(titles if provider.name != SIMULATED else ())):
            plain = name if name in known else f"{provider.name}/{name}"
            if plain not in entries and f"{provider.name}/{plain}" not in entries:
                entries[plain] = ModelEntry(id=plain, provider=provider.name, title=titles.get(name, name))
    return list(entries.values())
