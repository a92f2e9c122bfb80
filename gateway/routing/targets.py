"""Targets: a model's name becomes an ordered list of places to call, or an error that says what to do.

`provider/model` names the place itself, but only where the first segment is a provider and no provider
lists the whole name as its own; other slashes belong to the model ("openrouter/anthropic/claude-sonnet-4.5"
is OpenRouter's "anthropic/claude-sonnet-4.5").

A provider that has the caller's own door comes before one that must be spoken to in another language.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Final

import msgspec

from gateway.core.errors import CallerError
from gateway.core.names import glob

NAME_CHARS_MAX: Final = 256
MEMO_MAX: Final = 4096
"""Remembered names; the memo starts again when it is full, so that odd names cost time and no memory."""
SUGGESTIONS_MAX: Final = 5
SUGGEST_FROM_MAX: Final = 300
SUGGEST_CHARS_MAX: Final = 64
"""Bounds on the search for close names, whose cost is names x characters squared."""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """What routing must know about one provider.

    Args:
        protocols: names of the doors that it serves.
        models: exact names, or patterns with `*` (any characters).
        ready: it has a key or needs none, and an address.
        wants: variables that would make it ready, all of them; empty where only the configuration can.
        suggest: well-known exact names.
    """

    provider: str
    protocols: tuple[str, ...]
    models: tuple[str, ...]
    ready: bool
    wants: tuple[str, ...] = ()
    suggest: tuple[str, ...] = ()


class Target(msgspec.Struct, frozen=True):
    """One place to call, the model's name there, and the protocols that stand in for the caller's there."""

    provider: str
    model: str
    protocols: tuple[str, ...] = ()


class Router:
    """Answers which places serve a model through a door; pure, with a bounded memory of its answers."""

    def __init__(
        self,
        places: Sequence[Place],
        default_provider: str | None = None,
        others: Mapping[str, tuple[str, ...]] = {},
    ) -> None:
        """Index the places; earlier ones come first where several serve a name.

        Args:
            others: door -> protocols that can stand in for it, the first before the second.

        Raises:
            ValueError: two places of one name, or an unknown default provider.
        """
        self._places = {place.provider: place for place in places}
        if len(self._places) != len(places):
            raise ValueError("two providers have the same name")
        if default_provider is not None and default_provider not in self._places:
            raise ValueError(
                f"routing.default_provider: {default_provider!r} is none of {', '.join(sorted(self._places))}"
            )
        self._default = default_provider
        self._others = others
        self._exact: dict[str, list[Place]] = {}
        self._patterns: list[tuple[re.Pattern[str], Place]] = []
        for place in places:
            for model in place.models:
                if "*" in model:
                    self._patterns.append((glob(model), place))
                else:
                    self._exact.setdefault(model, []).append(place)
        self._memo: dict[tuple[str, str], tuple[Target, ...]] = {}

    def targets(self, model: str, protocol: str) -> tuple[Target, ...]:
        """Return the places to call, in order; at least one.

        Raises:
            CallerError: 400 for a name that can't be one or a door that its provider lacks; 404 for one that
                nobody here serves.
        """
        known = self._memo.get((model, protocol))
        if known is not None:
            return known
        targets = self._decide(model, protocol)
        if len(self._memo) >= MEMO_MAX:
            self._memo.clear()
        self._memo[model, protocol] = targets
        return targets

    def known(self, model: str) -> None:
        """Check a name of the configuration.

        Raises:
            ValueError: no provider serves it, ready or not.
        """
        if not self._serving(model):
            raise ValueError(f"no provider serves {model[:SUGGEST_CHARS_MAX]}")

    def _decide(self, model: str, protocol: str) -> tuple[Target, ...]:
        if not 0 < len(model) <= NAME_CHARS_MAX or not model.isprintable():
            raise CallerError(
                "invalid_model",
                f"model must be 1 to {NAME_CHARS_MAX} printable characters",
                status=400,
                param="model",
            )
        serving = self._serving(model)
        ready = [(place, name) for place, name in serving if place.ready]
        if not ready:
            raise self._not_found(model, serving)
        offered = tuple(Target(place.provider, name) for place, name in ready if protocol in place.protocols)
        if not offered:
            others = self._others.get(protocol, ())
            offered = tuple(
                Target(place.provider, name, ways)
                for place, name in ready
                if (ways := tuple(other for other in others if other in place.protocols))
            )
        if not offered:
            raise _no_such_door(model, protocol, [place for place, _ in ready])
        return offered

    def _serving(self, model: str) -> list[tuple[Place, str]]:
        """Return who serves the name, ready or not: by exact name, as named, by pattern, or by default."""
        if model in self._exact:  # first: "openai/gpt-oss-120b" may be a model of the operator's own server
            return [(place, model) for place in self._exact[model]]
        first, slash, rest = model.partition("/")
        if slash and first in self._places:
            return [(self._places[first], rest)] if rest else []
        places: list[Place] = []
        for pattern, place in self._patterns:
            if place not in places and pattern.fullmatch(model):
                places.append(place)
        if not any(place.ready for place in places) and self._default is not None:
            places.append(self._places[self._default])
        return [(place, model) for place in places]

    def _not_found(self, model: str, serving: Sequence[tuple[Place, str]]) -> CallerError:
        shown = model[:SUGGEST_CHARS_MAX]
        if serving:
            ways = "; or ".join(_make_ready(place) for place, _ in serving)
            message = f"{shown} is served by {serving[0][0].provider}, which is not configured: {ways}"
        else:
            close = self._close(model)
            hint = f"did you mean {', '.join(close)}? " if close else ""
            message = (
                f"no provider here serves {shown}: {hint}GET /v1/models lists what can be named, and "
                "provider/model sends any name to a provider"
            )
        return CallerError("model_not_found", message, status=404, param="model")

    def _close(self, model: str) -> list[str]:
        names = dict.fromkeys(
            name for place in self._places.values() if place.ready for name in place.suggest
        )
        names |= dict.fromkeys(
            name for place in self._places.values() if not place.ready for name in place.suggest
        )
        candidates = [name for name in names if len(name) <= SUGGEST_CHARS_MAX][:SUGGEST_FROM_MAX]
        wanted = model.rpartition("/")[2][:SUGGEST_CHARS_MAX]
        return get_close_matches(wanted, candidates, n=SUGGESTIONS_MAX)


def _make_ready(place: Place) -> str:
    if place.wants:
        return f"set {' and '.join(place.wants)}"
    return f"configure providers.{place.provider}.api_key"


def _no_such_door(model: str, protocol: str, places: Sequence[Place]) -> CallerError:
    provider = places[0].provider
    doors = ", ".join(dict.fromkeys(name for place in places for name in place.protocols))
    return CallerError(
        "unsupported_protocol",
        f"{model[:SUGGEST_CHARS_MAX]} is served by {provider}, which does not offer {protocol}; "
        f"it offers {doors}",
        status=400,
        param="model",
    )
