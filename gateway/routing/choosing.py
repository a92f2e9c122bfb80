"""Choosing: the targets of one request in the order in which they are tried, and how they did afterwards.

What is known of targets (rolling measurements, cooldown, retry budget) is kept here, by target and bounded;
every decision is made by the pure functions beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Final

import msgspec

from gateway.routing.cooldown import Cooldown, Rules, State
from gateway.routing.retry import RetryBudget
from gateway.routing.rolling import Rolling, Sample, Standing
from gateway.routing.selectors import Candidate, Ranking, Selector, rank

TARGETS_MAX: Final = 2_000
"""Targets that are remembered; callers choose names of models, so the one unused for longest makes room."""
SHOWN_MAX: Final = 200
"""Targets that are told of at a time, those with most requests: working one out takes up to half a ms."""
TOLD_NS: Final = 60_000_000_000
"""How often it is told that a target refuses our key."""
FRESH_NS: Final = 250_000_000
"""How long a standing that was worked out is good for decisions."""


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """The order for one request, as places in the list of its targets.

    Args:
        order: all of them; those in cooldown last.
        by: see `Ranking`; `cooldown` where it was a cooldown that changed which one is first.
        cooling: how many are left alone now.
    """

    order: tuple[int, ...]
    by: str
    cooling: int = 0


class Known(msgspec.Struct, kw_only=True):
    """What is known of one target."""

    rolling: Rolling
    cooldown: Cooldown
    budget: RetryBudget
    standing: Standing = Standing()
    worked_out_ns: int = -FRESH_NS
    inside: int = 0
    refused_ns: int = -TOLD_NS


class Attempted(msgspec.Struct, frozen=True):
    """An attempt that began; `answered` or `given_up` must be told of it once."""

    target: Hashable
    known: Known
    probe: bool


class Chooser:
    """Chooses, and remembers.

    Args:
        toss: chance from 0 up to 1.
        changed: told of each target whose state of cooldown changes: (target, new state, seconds).
        refused: told of a target that refuses our key, once in TOLD_NS: (target, status).
    """

    def __init__(
        self,
        rules: Rules,
        window_s: float,
        toss: Callable[[], float],
        changed: Callable[[Hashable, State, float], None] = lambda *_: None,
        refused: Callable[[Hashable, int], None] = lambda *_: None,
    ) -> None:
        self._rules = rules
        self._window_s = window_s
        self._toss = toss
        self._changed = changed
        self._refused = refused
        self._known: dict[Hashable, Known] = {}

    def adopt(self, rules: Rules, changed: Callable[[Hashable], bool]) -> None:
        """Go by other rules from now on, and forget targets that are no longer what they were.

        Attempts that are under way at a forgotten target end as they would have, and what their answers show
        later counts for the target of that name.
        """
        self._rules = rules
        self._known = {target: known for target, known in self._known.items() if not changed(target)}
        for known in self._known.values():
            known.cooldown.rules = rules

    def choose(
        self,
        selector: Selector,
        targets: Sequence[Hashable],
        candidates: Sequence[Candidate],
        now_ns: int,
        *,
        stream: bool,
    ) -> Choice:
        """Return the order for one request, which has at least one target.

        Args:
            candidates: of the targets, in the same order; their standing is filled in here.
        """
        if len(targets) == 1:
            return Choice(order=(0,), by="only")
        known = [self._of(target) for target in targets]
        measured = [
            msgspec.structs.replace(candidate, standing=self._standing(one, now_ns))
            for candidate, one in zip(candidates, known, strict=True)
        ]
        warm = [place for place, one in enumerate(known) if one.cooldown.callable(now_ns)]
        cooling = sorted(
            set(range(len(known))) - set(warm), key=lambda place: known[place].cooldown.left_s(now_ns)
        )
        if not warm:  # all are left alone: the caller is better off with a try than without
            return Choice(order=tuple(cooling), by="cooldown", cooling=len(cooling))
        ranking = rank(selector, [measured[place] for place in warm], self._toss, stream=stream)
        order = tuple(warm[place] for place in ranking.order)
        return Choice(order=(*order, *cooling), by=_by(ranking, cooling), cooling=len(cooling))

    def callable(self, targets: Sequence[Hashable], now_ns: int) -> list[bool]:
        """Say of each target whether it may be called now; the only one of a request always may."""
        if len(targets) == 1:
            return [True]
        return [self._of(target).cooldown.callable(now_ns) for target in targets]

    def affordable(self, targets: Sequence[Hashable]) -> list[bool]:
        """Say of each target whether it may be asked again for a request that it failed."""
        return [self._of(target).budget.affordable for target in targets]

    def retried(self, target: Hashable) -> None:
        """Note that a target will be asked again for a request that it failed, maybe after a pause."""
        self._of(target).budget.spend()

    def began(self, target: Hashable, now_ns: int, *, again: bool) -> Attempted:
        """Note an attempt.

        Args:
            again: it was asked for this request before.
        """
        known = self._of(target)
        if not again:
            known.budget.request()
        known.inside += 1
        return Attempted(target, known, known.cooldown.began(now_ns))

    def answered(self, attempt: Attempted, ok: bool, now_ns: int, wait_s: float | None = None) -> None:
        """Note that an attempt brought the head of an answer, or failed.

        Args:
            wait_s: how long the provider asks to be left alone.
        """
        known = attempt.known
        known.inside -= 1
        state = known.cooldown.ended(ok, now_ns, probe=attempt.probe, jitter=self._toss(), wait_s=wait_s)
        if state is not None:
            self._changed(attempt.target, state, known.cooldown.left_s(now_ns))

    def broke(self, target: Hashable, now_ns: int) -> None:
        """Note that an answer broke off after its head, which was noted as one."""
        known = self._of(target)
        state = known.cooldown.broke(now_ns, jitter=self._toss())
        if state is not None:
            self._changed(target, state, known.cooldown.left_s(now_ns))

    def refused(self, target: Hashable, status: int, now_ns: int) -> None:
        """Note that a target refused our key: only the operator can mend that."""
        known = self._of(target)
        if now_ns - known.refused_ns >= TOLD_NS:
            known.refused_ns = now_ns
            self._refused(target, status)

    def given_up(self, attempt: Attempted) -> None:
        """Note an attempt that says nothing of its target."""
        known = attempt.known
        known.inside -= 1
        known.cooldown.given_up(probe=attempt.probe)

    def measured(self, target: Hashable, sample: Sample, now_ns: int) -> None:
        """Note what an attempt showed, once it is over."""
        self._of(target).rolling.add(sample, now_ns)

    def standings(self, now_ns: int) -> dict[Hashable, tuple[Standing, State, float, int]]:
        """Return of the busiest targets: standing, state, seconds of cooldown left, and requests inside.

        None that nothing is known of: callers may name any model, and most of those have never answered.
        """
        every = list(self._known.items())  # at once: pages are read by a thread
        found = [(known.rolling.requests(now_ns), target, known) for target, known in every]
        told = [one for one in found if one[0] or one[2].inside or one[2].cooldown.state(now_ns) != "warm"]
        told.sort(key=lambda one: -one[0])
        return {
            target: (
                self._standing(known, now_ns),
                known.cooldown.state(now_ns),
                known.cooldown.left_s(now_ns),
                known.inside,
            )
            for _, target, known in told[:SHOWN_MAX]
        }

    def _standing(self, known: Known, now_ns: int) -> Standing:
        if now_ns - known.worked_out_ns >= FRESH_NS:
            known.standing = known.rolling.standing(now_ns)
            known.worked_out_ns = now_ns
        return known.standing

    def _of(self, target: Hashable) -> Known:
        known = self._known.pop(target, None)
        if known is None:
            known = Known(
                rolling=Rolling(self._window_s), cooldown=Cooldown(self._rules), budget=RetryBudget()
            )
            if len(self._known) >= TARGETS_MAX:
                del self._known[next(iter(self._known))]
        self._known[target] = known  # the newest is the last
        return known


def _by(ranking: Ranking, cooling: Sequence[int]) -> str:
    return "cooldown" if cooling and len(ranking.order) == 1 else ranking.by
