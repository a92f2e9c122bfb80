"""Adjusting: the operator's discounts, mark-ups and fees, each as a line of its own behind the rated lines.

Discounts are shares of the lines' sum, mark-ups are shares of what discounts leave of it, and fees are added
last. Adjustments of one kind do not act on one another, so their order changes nothing. All discounts
together never exceed what they are taken from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from gateway.core.charge import Adjusted, AdjustmentKind
from gateway.core.money import share_pico
from gateway.pricing.rates import ALWAYS

_KINDS: Final[tuple[AdjustmentKind, ...]] = ("discount", "markup", "fee")


class Adjustment(msgspec.Struct, frozen=True, kw_only=True):
    """One rule of the operator's.

    Args:
        percent: as written, for the bill; None for a fee.
        share: `percent` as numerator and denominator.
        amount_pico_usd: of a fee.
        provider, key_id, team: whom it applies to; None means all.
        since_unix_s, until_unix_s: when it applies.
    """

    id: str
    kind: AdjustmentKind
    percent: str | None = None
    share: tuple[int, int] = (0, 1)
    amount_pico_usd: int = 0
    provider: str | None = None
    key_id: str | None = None
    team: str | None = None
    since_unix_s: int = ALWAYS[0]
    until_unix_s: int = ALWAYS[1]


def adjusted(
    adjustments: Sequence[Adjustment],
    lines_pico_usd: int,
    *,
    provider: str,
    key_id: str,
    team: str | None,
    at_unix_s: int,
) -> tuple[Adjusted, ...]:
    """Return what the rules add to lines of that sum, discounts first."""
    mine = [
        rule
        for rule in adjustments
        if rule.provider in (None, provider)
        and rule.key_id in (None, key_id)
        and rule.team in (None, team)
        and rule.since_unix_s <= at_unix_s < rule.until_unix_s
    ]
    found: list[Adjusted] = []
    discounted = lines_pico_usd
    for rule in sorted(mine, key=lambda rule: (_KINDS.index(rule.kind), rule.id)):
        if rule.kind == "discount":
            cost = -min(share_pico(lines_pico_usd, rule.share), discounted)
            discounted += cost
        elif rule.kind == "markup":
            cost = share_pico(discounted, rule.share)
        else:
            cost = rule.amount_pico_usd
        found.append(Adjusted(id=rule.id, kind=rule.kind, percent=rule.percent, cost_pico_usd=cost))
    return tuple(found)
