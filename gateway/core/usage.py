"""Usage: counts exactly as the provider reported them.

Absent is not zero: a dimension that nobody reported has no key, and a key with 0 means that the provider
said 0. Wholes include their parts (`gateway.core.dimensions`): `input` is all input, cached included, and
`output` is all output, reasoning included, whatever the provider's own arithmetic looks like.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from gateway.core.dimensions import DIMENSIONS

UsageSource = Literal["provider", "drained", "estimated"]

COUNT_MAX = 2**53 - 1
"""A larger count is an anomaly: it would not survive JSON readers that keep numbers as doubles."""


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """How the counts that no provider reported were made.

    Args:
        method: stable name of the method; `docs/estimates.md` says what it does.
        bounds: estimated dimension -> least and most units that what was seen can amount to.
    """

    method: str
    bounds: dict[str, tuple[int, int]]


class OtherUsage(msgspec.Struct, frozen=True, kw_only=True):
    """What a reply consumed beside its own counts: an adviser, a model that declined, a compaction pass.

    Mostly of another model than the one that served; a compaction is of the same one.

    Args:
        model: as the provider names it.
        reason: why it was called, in the provider's word.
        counts: as `Usage.counts`; none of them is in the counts of the reply itself.
    """

    model: str
    reason: str
    counts: dict[str, int]


class Usage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one reply consumed.

    Args:
        counts: dimension name -> units, only those that were reported; each 0..COUNT_MAX.
        source: who counted.
        anomalies: what the payload got wrong and which choice was made, as stable snake_case words.
        service_tier: the tier that the *reply* states, None when it states none.
        reported_cost_usd: the provider's own figure as the decimal string it sent, None when absent.
        estimate: which counts are estimated, None where all were reported.
        others: tokens of other models inside this reply, charged at those models' rates.
        qualifiers: what else the reply states that decides its rates, by name: `speed`, `inference_geo`.
        running: reported while the reply went on, and its end never came: the output is the least there was.
    """

    counts: dict[str, int]
    source: UsageSource = "provider"
    anomalies: tuple[str, ...] = ()
    service_tier: str | None = None
    reported_cost_usd: str | None = None
    estimate: Estimate | None = None
    others: tuple[OtherUsage, ...] = ()
    qualifiers: dict[str, str] = {}
    running: bool = False

    def __post_init__(self) -> None:
        _check(self.counts)
        for other in self.others:
            _check(other.counts)


def _check(counts: dict[str, int]) -> None:
    for name, units in counts.items():
        if name not in DIMENSIONS:
            raise ValueError(f"{name!r} is not a dimension; add it to gateway.core.dimensions")
        if not 0 <= units <= COUNT_MAX:
            raise ValueError(f"{name} = {units} is outside 0..{COUNT_MAX}")
