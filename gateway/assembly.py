"""Assembly: the parts that the composition root puts together, made from settings and environment.

Nothing here decides anything about a request; it turns configuration into the values that stages take.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Final, Literal

import msgspec

from gateway.admission.admin import AdminKey
from gateway.admission.permission import permission_of
from gateway.admission.virtual_keys import KeyEntry, KeyRing, env_keys
from gateway.api.doors import ModelEntry
from gateway.billing import Prices
from gateway.billing import Target as PriceTarget
from gateway.control.plane import Plane
from gateway.control.terms import check_endpoints, check_models, end_of
from gateway.core.charge import Charge, NoRate
from gateway.core.errors import CallerError
from gateway.core.exchange import Identity, Reply
from gateway.core.money import usd_to_pico
from gateway.metering import tokenizer
from gateway.pricing.adjusting import Adjustment
from gateway.pricing.catalogue import Catalogue, CatalogueError, packaged_rates
from gateway.pricing.own import read_catalogue
from gateway.pricing.rates import ALWAYS, parse_amount, parse_exchange, parse_instant, parse_percent
from gateway.pricing.selling import Book, Sale
from gateway.providers.cards import CardError, Override, load_cards
from gateway.providers.places import Provider, Secret, resolve
from gateway.providers.upstream import Endpoint, Header, Timeouts, Transport, UpstreamReply
from gateway.routing.targets import Place
from gateway.settings import AdjustmentSettings, KeySettings, PricesSettings, Settings, SettingsError
from gateway.stages import Lane

SIMULATED: Final = "simulated"
ALIAS_OWNER: Final = "alias"
"""Who owns an alias, in a list of models."""


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
    try:
        if key.models is not None:
            check_models(key.models)
        if key.endpoints is not None:
            check_endpoints(key.endpoints)
        until_unix_ns = None if key.expires_at is None else end_of(key.expires_at)
    except CallerError as fault:
        raise ValueError(f"keys: {key.id}: {fault.message}") from fault
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
            on_disconnect=key.on_disconnect,
            unpriced=key.unpriced,
        ),
        permission_of(key.models, key.endpoints),
        name=key.name,
        until_unix_ns=until_unix_ns,
    )


def admin_key(settings: Settings, ring: KeyRing) -> AdminKey:
    """Return the operator's key.

    Raises:
        SettingsError: it can be guessed, or is somebody's virtual key.
    """
    key = settings.admin.key
    try:
        return AdminKey(None if key is None else key.get_secret_value(), ring)
    except ValueError as fault:
        raise SettingsError(f"admin.key (SPANBILL_ADMIN__KEY): {fault}") from fault


def plane_of(settings: Settings) -> Plane:
    """Return the control plane.

    Raises:
        SettingsError: its address cannot be used.
    """
    try:
        return Plane(
            settings.control.url.get_secret_value(),
            settings.ledger.url.get_secret_value(),
            settings.journal.directory,
        )
    except ValueError as fault:
        raise SettingsError(str(fault)) from fault


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
        wants=provider.wants,
        suggest=card.suggest,
    )


def book_of(settings: PricesSettings) -> Book:
    """Return the catalogue and the adjustments that the settings name, wholly checked.

    Raises:
        CatalogueError: listing what is wrong with the file, the overrides or the adjustments.
    """
    try:
        exchange = parse_exchange(settings.exchange)
    except ValueError as fault:
        raise CatalogueError(f"prices.exchange: {fault}") from fault
    adjustments = [_adjustment(rule, exchange) for rule in settings.adjustments]
    if len({rule.id for rule in adjustments}) < len(adjustments):
        raise CatalogueError("prices.adjustments: each needs an id of its own")
    catalogue = Catalogue(
        packaged_rates(),
        settings.overrides,
        own=None if settings.catalog is None else read_catalogue(settings.catalog, exchange),
        exchange=exchange,
        fallback=settings.fallback,
        salt=msgspec.json.encode(adjustments) if adjustments else b"",
    )
    return Book(catalogue, adjustments)


def _adjustment(rule: AdjustmentSettings, exchange: Mapping[str, Decimal]) -> Adjustment:
    try:
        if (rule.percent is None) == (rule.kind != "fee") or (rule.amount is None) == (rule.kind == "fee"):
            raise ValueError("a fee takes `amount`, a discount or mark-up takes `percent`")
        percent = None if rule.percent is None else str(rule.percent)
        return Adjustment(
            id=rule.id,
            kind=rule.kind,
            percent=percent,
            share=(0, 1)
            if percent is None
            else parse_percent(percent, most=100 if rule.kind == "discount" else None),
            amount_pico_usd=0 if rule.amount is None else usd_to_pico(parse_amount(rule.amount, exchange)),
            provider=rule.provider,
            key_id=rule.key,
            team=rule.team,
            since_unix_s=ALWAYS[0] if rule.since is None else parse_instant(rule.since),
            until_unix_s=ALWAYS[1] if rule.until is None else parse_instant(rule.until),
        )
    except ValueError as fault:
        raise CatalogueError(f"prices.adjustments: {rule.id}: {fault}") from fault


def prices_of(book: Book) -> Prices:
    """Return the catalogue in the words of the story.

    A reply is priced by the model that served; by the requested one only if the reply names none.
    """

    def sale(target: PriceTarget, reply: Reply, at_unix_s: int) -> Sale:
        return Sale(
            provider=target.provider,
            section=target.prices,
            model=target.model,
            served=reply.response_model,
            key_id=target.key_id,
            team=target.team,
            at_unix_s=at_unix_s,
        )

    def charge_of(target: PriceTarget, reply: Reply, at_unix_s: int) -> Charge | NoRate | None:
        return None if reply.usage is None else book.charge(sale(target, reply, at_unix_s), reply.usage)

    def context_window(target: PriceTarget, reply: Reply, at_unix_s: int) -> int | None:
        found = book.card(sale(target, reply, at_unix_s))
        return None if found is None else found.context_window

    return Prices(charge=charge_of, context_window=context_window)


def screen_of(
    book: Book, unpriced: Literal["serve", "refuse"], now_ns: Callable[[], int]
) -> Callable[[Identity, tuple[Lane, ...]], tuple[Lane, ...]]:
    """Return what is asked before a provider is called: which of the lanes a key may be sent to.

    The model that serves may still turn out to be another one, and unpriced: only the requested one is known.

    Args:
        unpriced: what holds for keys that say nothing of their own.
    """

    def screen(identity: Identity, lanes: tuple[Lane, ...]) -> tuple[Lane, ...]:
        if (identity.unpriced or unpriced) == "serve":
            return lanes
        at_unix_s = now_ns() // 1_000_000_000
        priced = tuple([lane for lane in lanes if _has_rate(book, lane, at_unix_s)])
        if not priced:
            raise CallerError(
                "model_unpriced",
                "there is no rate for this model, and this key is not served without one; name another "
                "model, or ask the operator to add its price",
                status=402,
                param="model",
            )
        return priced

    return screen


def _has_rate(book: Book, lane: Lane, at_unix_s: int) -> bool:
    sale = Sale(provider=lane.provider, section=lane.prices, model=lane.model, at_unix_s=at_unix_s)
    return book.card(sale) is not None


class CountOnDemand:
    """A tokenizer that is loaded beside the requests when it is first needed; until then it cannot say.

    Args:
        load: takes half a second.
    """

    def __init__(self, load: Callable[[], tokenizer.Count]) -> None:
        self._load = load
        self._loading: threading.Thread | None = None
        self._count: tokenizer.Count | None = None

    def __call__(self, text: str) -> int | None:
        """Return the tokens of `text`, None while the tokenizer is being loaded."""
        if self._count is None and self._loading is None:
            self._loading = threading.Thread(target=self.load, name="tokenizer", daemon=True)
            self._loading.start()
        return None if self._count is None else self._count(text)

    def load(self) -> None:
        """Load it; a failure leaves the estimates to the other method."""
        self._count = self._load()


def models_of(
    providers: Mapping[str, Provider], catalogue: Catalogue, aliases: Iterable[str] = ()
) -> list[ModelEntry]:
    """Return what can be named: aliases, and each ready provider's names, of its card and its prices."""
    entries = {name: ModelEntry(id=name, provider=ALIAS_OWNER, title=name) for name in aliases}
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
