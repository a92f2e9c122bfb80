"""Routes: what a name of a model comes to: its targets made callable, and how one of them is chosen.

A name is an alias of the operator's, or a model that one or several providers serve. Routes are made when
they are first asked for, and remembered; choosing is done for each request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from gateway.core.errors import CallerError
from gateway.core.exchange import Call, Routed
from gateway.protocols.base import Dialect
from gateway.providers.places import Provider
from gateway.providers.upstream import Timeouts
from gateway.routing.choosing import Chooser
from gateway.routing.retry import Policy
from gateway.routing.selectors import Candidate, Selector
from gateway.routing.targets import Router, Target
from gateway.stages import Lane
from gateway.translation import TRANSLATORS, Translator

ROUTES_MAX: Final = 4096
"""Remembered names; callers choose names, so the memo starts over when it is full."""


class AliasTarget(msgspec.Struct, frozen=True, kw_only=True):
    """One target of an alias.

    Args:
        model: a model's name, or `provider/model`.
    """

    model: str
    weight: float = 1.0


class Alias(msgspec.Struct, frozen=True, kw_only=True):
    """A name of the operator's, and what stands behind it.

    Args:
        timeouts: of its attempts.
    """

    targets: tuple[AliasTarget, ...]
    selector: Selector
    policy: Policy
    timeouts: Timeouts


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """What a name comes to.

    Args:
        lanes: at least one.
        candidates: of the lanes, in the same order, as selectors see them.
        alias: the name, if it is one.
    """

    lanes: tuple[Lane, ...]
    candidates: tuple[Candidate, ...]
    selector: Selector
    policy: Policy
    alias: str | None = None


Cost = Callable[[Lane, Call], int | None]
"""What a request would cost at a target, in any one unit; None where that is not known."""


class Routes:
    """All routes of one configuration.

    Args:
        selector, policy: for models that are no alias.
    """

    def __init__(
        self,
        router: Router,
        providers: Mapping[str, Provider],
        aliases: Mapping[str, Alias],
        selector: Selector,
        policy: Policy,
    ) -> None:
        self._router = router
        self._providers = providers
        self._aliases = aliases
        self._selector = selector
        self._policy = policy
        self._known: dict[tuple[str, str], Route] = {}

    def route(self, model: str, protocol: str) -> Route:
        """Return the route of a name through a door.

        Raises:
            CallerError: 400 or 404; see `Router.targets`.
        """
        key = (model, protocol)
        found = self._known.get(key)
        if found is None:
            alias = self._aliases.get(model)
            found = self._plain(model, protocol) if alias is None else self._named(model, alias, protocol)
            if len(self._known) >= ROUTES_MAX:
                self._known.clear()
            self._known[key] = found
        return found

    def _plain(self, model: str, protocol: str) -> Route:
        lanes = tuple([self._lane(target, protocol) for target in self._router.targets(model, protocol)])
        candidates = tuple([Candidate(order=place) for place in range(len(lanes))])
        return Route(lanes=lanes, candidates=candidates, selector=self._selector, policy=self._policy)

    def _named(self, name: str, alias: Alias, protocol: str) -> Route:
        lanes: list[Lane] = []
        candidates: list[Candidate] = []
        why: CallerError | None = None
        for place, target in enumerate(alias.targets):
            try:
                served = self._router.targets(target.model, protocol)
            except CallerError as fault:  # a provider without a key, or without this door: the others serve
                why = why or fault
                continue
            for one in served:
                lanes.append(self._lane(one, protocol, alias.timeouts))
                candidates.append(Candidate(order=place, weight=target.weight / len(served)))
        if not lanes:
            raise CallerError(
                "alias_not_served",
                f"no target of the alias {name} can serve this: {why.message if why is not None else 'none'}",
                status=404 if why is None else why.status,
                param="model",
            )
        return Route(
            lanes=tuple(lanes),
            candidates=tuple(candidates),
            selector=alias.selector,
            policy=alias.policy,
            alias=name,
        )

    def _lane(self, target: Target, protocol: str, timeouts: Timeouts | None = None) -> Lane:
        if not target.protocols:
            return self._spoken(target, protocol, None, timeouts)
        ways = [
            self._spoken(target, other, TRANSLATORS[protocol, other], timeouts) for other in target.protocols
        ]
        return msgspec.structs.replace(ways[0], instead=tuple(ways[1:]))

    def _spoken(
        self, target: Target, protocol: str, translator: Translator | None, timeouts: Timeouts | None
    ) -> Lane:
        provider = self._providers[target.provider]
        door = provider.doors[protocol]
        return Lane(
            provider=provider.name,
            model=target.model,
            prices=provider.prices_of(target.model),
            endpoint=door.endpoint,
            dialect=Dialect(
                reasoning_in_output=door.reasoning_in_output,
                hidden_output=door.hidden_output,
                stream_usage=door.stream_usage,
                output_limit=provider.card.output_limit,
                adaptive_thinking=provider.card.thinks_adaptively(target.model),
                reasoning_content=provider.card.reasoning_content,
            ),
            headers=door.headers,
            timeouts=timeouts,
            translator=translator,
        )


def chosen(
    route: Route, lanes: Sequence[Lane], call: Call, chooser: Chooser, cost: Cost, now_ns: int
) -> tuple[tuple[Lane, ...], Routed | None]:
    """Return the lanes of one request in the order in which they are tried, and what is to be said of it.

    Args:
        lanes: those of the route that this caller may be sent to, in the same order; at least one.
    """
    if len(lanes) == 1 and route.alias is None:
        return tuple(lanes), None
    kept = {id(lane) for lane in lanes}
    candidates = [
        msgspec.structs.replace(candidate, cost=cost(lane, call))
        if route.selector == "cost" and len(lanes) > 1
        else candidate
        for lane, candidate in zip(route.lanes, route.candidates, strict=True)
        if id(lane) in kept
    ]
    choice = chooser.choose(
        route.selector, [lane.target for lane in lanes], candidates, now_ns, stream=call.stream
    )
    routed = Routed(selector=route.selector, by=choice.by, targets=len(lanes), cooling=choice.cooling)
    return tuple([lanes[place] for place in choice.order]), routed
