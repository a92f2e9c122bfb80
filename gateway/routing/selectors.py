"""Selectors: in which order the targets of a request are tried.

`in_order` and `cost` decide; `random` draws by weight. The measured ones (`latency`, `throughput`,
`performance`) draw too, by the fourth power of what was measured: the better target gets nearly all, a
change in what is better moves requests along with the measurements, and the others stay measured, because a
small share of the draws goes by weight alone. Until each target was measured, all go by weight.

Pure: chance comes in as an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Literal, get_args

import msgspec

from gateway.routing.rolling import Standing

Selector = Literal["random", "in_order", "cost", "latency", "throughput", "performance"]
SELECTORS: Final[tuple[Selector, ...]] = get_args(Selector)

SAMPLES_MIN: Final = 5
"""Attempts in the window below which a target is not yet measured."""
EXPLORE: Final = 0.05
"""Share of draws that go by weight alone."""
SHARPNESS: Final = 4
"""Of two targets, the one that is twice as good gets sixteen times as much."""
SUCCESS_MIN: Final = 0.01
"""A target that only fails is still drawn sometimes: cooldown is what keeps requests away from it."""


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One target as a selector sees it.

    Args:
        weight: its share where targets are drawn by weight; 0 is the last resort.
        order: smaller ones first, where order decides.
        cost: of this request there, in any one unit; None where it has no price.
        standing: how it did lately.
    """

    weight: float = 1.0
    order: int = 0
    cost: int | None = None
    standing: Standing = Standing()


class Ranking(msgspec.Struct, frozen=True):
    """The order in which targets are tried, and what decided it.

    Args:
        order: places of the candidates.
        by: the selector, or `random` where it had nothing to go by, or `explore`.
    """

    order: tuple[int, ...]
    by: str


def rank(
    selector: Selector, candidates: Sequence[Candidate], toss: Callable[[], float], *, stream: bool = False
) -> Ranking:
    """Rank the candidates, of which there is at least one.

    Args:
        toss: returns chance from 0 up to 1.
        stream: of a stream it is its first byte that people wait for.
    """
    if len(candidates) == 1:
        return Ranking((0,), selector)
    if selector == "in_order":
        return Ranking(_sorted(candidates, lambda one: (one.order, 0.0)), selector)
    if selector == "random":
        return Ranking(_drawn([one.weight for one in candidates], toss), selector)
    if selector == "cost":
        if all(one.cost is None for one in candidates):
            return Ranking(_drawn([one.weight for one in candidates], toss), "random")
        ties = [toss() for _ in candidates]
        places = sorted(range(len(candidates)), key=lambda place: (*_price(candidates[place]), ties[place]))
        return Ranking(tuple(places), selector)
    # The last resort is drawn last, and so hardly measured: it must not keep the others from being compared.
    merits = [_merit(selector, one, stream=stream) if one.weight > 0 else 0.0 for one in candidates]
    if any(merit is None for merit in merits):
        return Ranking(_drawn([one.weight for one in candidates], toss), "random")
    if toss() < EXPLORE:
        return Ranking(_drawn([one.weight for one in candidates], toss), "explore")
    best = max(merit for merit in merits if merit is not None)
    shares = [(merit or 0.0) / best for merit in merits] if best > 0 else [1.0] * len(merits)
    return Ranking(_drawn([share**SHARPNESS for share in shares], toss), selector)


def _price(candidate: Candidate) -> tuple[bool, int]:
    return candidate.cost is None, -1 if candidate.cost is None else candidate.cost


def _merit(selector: Selector, candidate: Candidate, *, stream: bool) -> float | None:
    """Return how good a target is for a measured selector, None where too little is known."""
    standing = candidate.standing
    success = standing.success
    if success is None or standing.requests < SAMPLES_MIN:
        return None
    success = max(SUCCESS_MIN, success)
    if standing.failures == standing.requests:
        return 0.0  # it was measured: nothing came
    latency = standing.first_chunk_p50_s if stream else standing.latency_p50_s
    if selector == "latency":
        return None if latency is None else success / latency
    if standing.tokens_per_s is None:
        return None
    if selector == "throughput":
        return success * standing.tokens_per_s
    if latency is None or standing.usd_per_million is None:
        return None
    # What costs nothing would be infinitely good: a millionth of a dollar per million tokens is the floor.
    return success * standing.tokens_per_s / (latency * max(standing.usd_per_million, 1e-6))


def _sorted(
    candidates: Sequence[Candidate], key: Callable[[Candidate], tuple[int, float]]
) -> tuple[int, ...]:
    return tuple(sorted(range(len(candidates)), key=lambda place: key(candidates[place])))


def _drawn(weights: Sequence[float], toss: Callable[[], float]) -> tuple[int, ...]:
    """Draw an order without putting back: each next place in proportion to its weight among those left.

    Efraimidis and Spirakis, Weighted random sampling with a reservoir, 2006: sort by u^(1/w).
    """
    keys = [toss() ** (1 / weight) if weight > 0 else -1.0 for weight in weights]
    return tuple(sorted(range(len(weights)), key=lambda place: -keys[place]))
