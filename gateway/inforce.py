"""In force: what a configuration comes to, checked wholly before any of it is used.

`checked` turns settings into values and finds every mistake; it opens nothing, starts nothing and may be
called anywhere: by a start, by `spanbill check`, by a supervisor before it forks, beside requests. `Reign`
puts such values in force, in one step and without awaiting inside it.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable, Mapping

import msgspec

from gateway.admission.admin import AdminKey
from gateway.admission.guards import Guards
from gateway.admission.limit_rules import RuleBook
from gateway.admission.stored_keys import StoredKeys
from gateway.admission.virtual_keys import KeyEntry, KeyRing
from gateway.api.terms import InForce, Terms
from gateway.assembly import (
    SIMULATED,
    Switch,
    admin_key,
    book_of,
    configured_keys,
    configured_providers,
    models_of,
    place_of,
    prices_of,
    screen_of,
)
from gateway.assembly_routing import cooldown_of, cost_of, routes_of, timeouts_of
from gateway.budgeting import Budgeting, configured_budgets
from gateway.budgets.definitions import Budget
from gateway.limiting import Limiting, rules_of
from gateway.pricing.catalogue import CatalogueError
from gateway.pricing.selling import Book
from gateway.providers.places import Provider
from gateway.providers.upstream import Transport
from gateway.routes import Routes, chosen
from gateway.routing.choosing import Chooser
from gateway.routing.targets import Router, Target
from gateway.settings import Settings, SettingsError
from gateway.stages import Stages
from gateway.translation import STAND_INS


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration that can be used."""

    settings: Settings
    ring: KeyRing
    admin: AdminKey
    providers: Mapping[str, Provider]
    book: Book
    routes: Routes
    rules: RuleBook
    budgets: tuple[Budget, ...]


def checked(
    settings: Settings,
    environ: Mapping[str, str],
    *,
    stored: StoredKeys | None = None,
    keys: Iterable[KeyEntry] = (),
) -> Checked:
    """Return what settings come to; it takes a tenth of a second, prices most of it.

    Args:
        stored: the keys of the database.
        keys: virtual keys that hold while the configuration has none (the demo key).

    Raises:
        SettingsError: keys, providers, prices, routes, limits or budgets cannot be used.
    """
    providers = configured_providers(settings, environ)
    try:
        ring = KeyRing(configured_keys(settings, environ) or keys, stored)
        admin = admin_key(settings, ring)
        book = book_of(settings.prices)
        router = Router(
            [place_of(provider) for provider in providers.values()],
            settings.routing.default_provider,
            STAND_INS,
        )
    except (CatalogueError, ValueError) as fault:
        raise SettingsError(str(fault)) from fault
    return Checked(
        settings=settings,
        ring=ring,
        admin=admin,
        providers=providers,
        book=book,
        routes=routes_of(settings, router, providers),
        rules=rules_of(settings),
        budgets=configured_budgets(settings.budgets),
    )


class Reign:
    """What lasts while configurations come and go, and puts them in force.

    Args:
        stages: of the first configuration; of another one, what depends on it is replaced.
        network: how providers are reached.
        simulated: how the simulated one is; None where `network` is all there is, in tests.
    """

    def __init__(
        self,
        inforce: InForce,
        stages: Stages,
        chooser: Chooser,
        limiting: Limiting,
        budgeting: Budgeting,
        network: Transport,
        simulated: Transport | None,
    ) -> None:
        self._inforce = inforce
        self._stages = stages
        self._chooser = chooser
        self._limiting = limiting
        self._budgeting = budgeting
        self._network = network
        self._simulated = simulated

    def begin(self, found: Checked) -> None:
        """Put the first configuration in force, which the other parts were made from."""
        self._inforce.terms = self._terms(found)

    async def take(self, found: Checked) -> None:
        """Put another configuration in force."""
        await self._limiting.ready(found.rules)
        terms = self._terms(found)
        before = self._inforce.terms.providers
        async with self._budgeting.still:
            self._inforce.terms = terms
            self._budgeting.configure(found.budgets)
            self._chooser.adopt(
                cooldown_of(found.settings), lambda target: _moved(target, before, found.providers)
            )

    def _terms(self, found: Checked) -> Terms:
        settings, book = found.settings, found.book
        chooser, cost = self._chooser, cost_of(book)
        limits = self._limiting.under(settings, found.rules)
        budgets = self._budgeting.guard(settings.budgets, book)
        return Terms(
            stages=msgspec.structs.replace(
                self._stages,
                transport=self._transport(found.providers.get(SIMULATED)),
                prices=prices_of(book),
                timeouts=timeouts_of(settings.upstream),
                reply_bytes_max=settings.upstream.max_reply_bytes,
            ),
            holder=found.ring.holder,
            route=found.routes.route,
            screen=screen_of(book, settings.prices.unpriced, time.time_ns),
            choose=lambda route, lanes, call: chosen(route, lanes, call, chooser, cost, time.monotonic_ns()),
            guard=Guards([budgets] if limits is None else [limits, budgets]),
            limits=limits,
            models=lambda: models_of(found.providers, book.catalogue, settings.routing.aliases),
            providers=found.providers,
        )

    def _transport(self, simulated: Provider | None) -> Transport:
        if self._simulated is None or simulated is None or not simulated.card.in_process:
            return self._network
        return Switch(self._network, self._simulated, simulated.origin.host)


def _moved(target: Hashable, before: Mapping[str, Provider], now: Mapping[str, Provider]) -> bool:
    """Say whether a target is not what it was: its provider is gone, elsewhere, or has another key."""
    if not isinstance(target, Target):
        return False
    old, new = before.get(target.provider), now.get(target.provider)
    return old is None or new is None or not old.same_place(new)
