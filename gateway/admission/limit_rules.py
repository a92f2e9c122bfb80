"""Limit rules: which counters a request is charged to, and how much of each it asks for.

A rule holds for requests that have all that it names. What it names by value has one counter; what it names
by `*` has one for each value. Where rules that name the same things differ in how many `*` they have, the
most particular ones hold for a unit and the others do not: a key's own limit takes the place of that of `*`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from gateway.core.exchange import Call, Identity
from gateway.limits.store import COUNT_MAX, Charge, Unit

EACH: Final = "*"
KNOWN_MAX: Final = 4096
"""Remembered matches; callers choose names of models, so the memo starts over when it is full."""


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """See `gateway.settings.limits.LimitRuleSettings`."""

    id: str
    key: str | None = None
    user: str | None = None
    team: str | None = None
    project: str | None = None
    model: str | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None

    def limits(self) -> list[tuple[Unit, int]]:
        """Return what it limits."""
        units: list[tuple[Unit, int | None]] = [
            ("requests", self.requests_per_minute),
            ("tokens", self.tokens_per_minute),
            ("concurrent", self.concurrent),
        ]
        return [(unit, limit) for unit, limit in units if limit is not None]

    def named(self) -> tuple[str | None, ...]:
        """Return what it names, in the order of `Subjects`."""
        return self.key, self.user, self.team, self.project, self.model


class Match(msgspec.Struct, frozen=True, kw_only=True):
    """A counter that a request is charged to."""

    rule: str
    unit: Unit
    key: str
    limit: int


Subjects = tuple[tuple[str, ...], ...]
"""Names of the request's key, user, team, project and model; the first is the one that a `*` counts by."""


class RuleBook:
    """All rules.

    Raises:
        ValueError: two rules of one id.
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        if len({rule.id for rule in rules}) < len(rules):
            raise ValueError("each rule needs an id of its own")
        self._rules = tuple(rules)
        self._known: dict[tuple[str, ...], tuple[Match, ...]] = {}

    def __bool__(self) -> bool:
        return bool(self._rules)

    def matches(self, identity: Identity, model: str, provider: str, target: str) -> tuple[Match, ...]:
        """Return the counters of a request.

        Args:
            model: as the caller names it.
            target: the model's name at the provider that is to be asked first.
        """
        about = _about(identity)
        known = (*about, model, provider, target)
        found = self._known.get(known)
        if found is None:
            if len(self._known) >= KNOWN_MAX:
                self._known.clear()
            subjects = (*_subjects(about), (f"{provider}/{target}", target, model))
            found = self._known[known] = tuple(_matches(self._rules, subjects))
        return found

    def matches_of(self, identity: Identity) -> tuple[Match, ...]:
        """Return the counters that all requests of somebody are charged to, whatever the model."""
        return tuple(_matches(self._rules, (*_subjects(_about(identity)), ())))


def _about(identity: Identity) -> tuple[str, ...]:
    return identity.key_id, identity.user_id, identity.team or "", identity.project or ""


def _subjects(about: tuple[str, ...]) -> Subjects:
    return tuple([(name,) if name else () for name in about])


def _matches(rules: Sequence[Rule], subjects: Subjects) -> list[Match]:
    found: list[tuple[tuple[bool, ...], int, Match]] = []
    for rule in rules:
        values = _values(rule, subjects)
        if values is None:
            continue
        named = tuple([name is not None for name in rule.named()])
        stars = rule.named().count(EACH)
        for unit, limit in rule.limits():
            match = Match(rule=rule.id, unit=unit, key=f"{rule.id} {unit} {values}", limit=limit)
            found.append((named, stars, match))
    fewest: dict[tuple[tuple[bool, ...], Unit], int] = {}
    for named, stars, match in found:
        fewest[named, match.unit] = min(stars, fewest.get((named, match.unit), stars))
    return [match for named, stars, match in found if stars == fewest[named, match.unit]]


def _values(rule: Rule, subjects: Subjects) -> str | None:
    """Return whose counter it is, None if the rule does not hold."""
    values: list[str] = []
    for name, names in zip(rule.named(), subjects, strict=True):
        if name is None:
            continue
        if name == EACH and names:
            values.append(names[0])
        elif name in names:
            values.append(name)
        else:
            return None
    return "\x1f".join(values)


def charges_of(matches: Sequence[Match], tokens: int) -> tuple[Charge, ...]:
    """Return what a request asks of its counters, given how many tokens it may come to."""
    return tuple(
        [
            Charge(
                key=match.key,
                unit=match.unit,
                units=min(tokens, COUNT_MAX) if match.unit == "tokens" else 1,
                limit=match.limit,
            )
            for match in matches
        ]
    )


def tokens_asked(call: Call, input_tokens: int, assumed_output_tokens: int) -> int:
    """Return how many tokens a request may come to: its input, and for each answer the most it asked for."""
    if "output" not in call.sides:
        return input_tokens
    most = assumed_output_tokens if call.max_tokens is None else call.max_tokens
    return input_tokens + most * call.choices
