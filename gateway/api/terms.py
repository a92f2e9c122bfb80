"""Terms: what one configuration says of requests, as one value.

A request takes the terms in force when it begins, and keeps them to its end: `InForce.terms` is read once
for it. Another configuration is another value, made and checked wholly before it takes the place of this one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from gateway.admission.guards import Guard
from gateway.admission.limits import LimitGuard
from gateway.admission.permission import Holder
from gateway.api.doors import ModelEntry
from gateway.billing import Prices
from gateway.core.exchange import Call, Identity, Routed
from gateway.providers.places import Provider
from gateway.routes import Route
from gateway.stages import Lane, Stages

Header = tuple[bytes, bytes]


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """See the module.

    Args:
        holder: request headers -> who pays, and for what; raises CallerError 401, GatewayFault 503.
        route: (model, protocol name) -> targets; raises CallerError 404.
        screen: (who pays, targets) -> those that it may be sent to; raises CallerError 402.
        choose: (route, targets, call) -> targets in the order in which they are tried, and why.
        guard: what an admitted request must still pass: limits, budgets.
        limits: the one of them that limits; None where nothing is limited.
        models: what can be named.
    """

    stages: Stages
    holder: Callable[[Sequence[Header]], Holder]
    route: Callable[[str, str], Route]
    screen: Callable[[Identity, tuple[Lane, ...]], tuple[Lane, ...]]
    choose: Callable[[Route, tuple[Lane, ...], Call], tuple[tuple[Lane, ...], Routed | None]]
    guard: Guard
    limits: LimitGuard | None
    models: Callable[[], Sequence[ModelEntry]]
    providers: Mapping[str, Provider]


class InForce:
    """The terms in force: the one reference that a change of configuration replaces.

    Attributes:
        terms: set before anybody asks.
    """

    __slots__ = ("terms",)

    terms: Terms

    def holder(self, headers: Sequence[Header]) -> Holder:
        """Return who pays, by the terms in force now; see `Terms`."""
        return self.terms.holder(headers)

    @property
    def prices(self) -> Prices:
        """What bills cost, by the terms in force whenever one is priced."""
        return Prices(
            charge=lambda *sold: self.terms.stages.prices.charge(*sold),
            context_window=lambda *sold: self.terms.stages.prices.context_window(*sold),
        )
