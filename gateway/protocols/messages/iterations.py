"""Iterations: what a reply consumed in several passes, and which of them its top level leaves out.

The top level holds the `message` passes of the model that served. A compaction pass, an adviser or a model
that declined is not in it: the provider charges each at its own model's rates, and so do we.
"""

from __future__ import annotations

import re
from typing import Final

from gateway.core.usage import COUNT_MAX, OtherUsage
from gateway.protocols.messages.tokens import take_tokens
from gateway.protocols.reading import Counts, text

ITERATIONS_MAX: Final = 1024
"""More than these are not read: no reply has been seen with more than a dozen."""
OTHERS_MAX: Final = 32
"""More parts than these are summed by model and reason."""
_SERVING: Final = ("message", "fallback_message")
_DATED: Final = re.compile(r"-\d{8}\Z")
_COMPARED: Final = ("input", "cache_read", "cache_write", "output")


def read_iterations(counts: Counts, iterations: object, model: str | None) -> tuple[OtherUsage, ...]:
    """Return what the top level leaves out; flag iterations that contradict it.

    Args:
        counts: the top level, input summed.
        model: the model that served.
    """
    passes = _passes(counts, iterations)
    if passes is None:
        return ()
    served: list[dict[str, int]] = []
    apart: list[OtherUsage] = []
    fallback = any(reason == "fallback_message" for reason, _, _ in passes)
    for reason, named, tokens in passes:
        if reason in _SERVING and _same(named, model):
            served.append(tokens)
        elif reason == "message" and fallback and not tokens.get("output", 0):
            counts.flag("declined_attempt_free")  # a model that declines before it writes is not charged
        else:
            apart.append(OtherUsage(model=named or model or "", reason=reason, counts=tokens))
    everything = [*served, *[other.counts for other in apart]]
    if not _equal(counts.values, served):
        if apart and _equal(counts.values, everything):
            counts.flag("iterations_in_top_level")
            return ()
        counts.flag("iterations_exceed_top_level")
    return bounded(tuple(apart))


def _passes(counts: Counts, iterations: object) -> list[tuple[str, str | None, dict[str, int]]] | None:
    """Return (type, model, tokens) of each iteration, or None, flagged, if they cannot be read."""
    if not isinstance(iterations, list) or len(iterations) > ITERATIONS_MAX:
        counts.flag("iterations_unusable")
        return None
    passes = []
    for iteration in iterations:
        tokens = Counts()
        if isinstance(iteration, dict):
            take_tokens(tokens, iteration)
        if not isinstance(iteration, dict) or "output" not in tokens.values:
            counts.flag("iterations_unusable")
            return None
        passes.append((text(iteration.get("type")) or "message", text(iteration.get("model")), tokens.values))
    return passes


def _same(named: str | None, model: str | None) -> bool:
    """Say whether two names are one model: the same, or the same but for a date behind one of them."""
    return named is None or model is None or _DATED.sub("", named) == _DATED.sub("", model)


def _equal(top: dict[str, int], passes: list[dict[str, int]]) -> bool:
    return all(
        top[name] == sum([tokens.get(name, 0) for tokens in passes]) for name in _COMPARED if name in top
    )


def bounded(others: tuple[OtherUsage, ...]) -> tuple[OtherUsage, ...]:
    """Return no more than OTHERS_MAX parts, unless they are of more models and reasons than that."""
    if len(others) <= OTHERS_MAX:
        return others
    sums: dict[tuple[str, str], dict[str, int]] = {}
    for other in others:
        total = sums.setdefault((other.model, other.reason), {})
        for name, units in other.counts.items():
            total[name] = min(total.get(name, 0) + units, COUNT_MAX)
    return tuple([OtherUsage(model=m, reason=r, counts=counts) for (m, r), counts in sums.items()])
