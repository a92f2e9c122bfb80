"""Charge: what a reply costs, one line per dimension and adjustment, and how far to trust it."""

from __future__ import annotations

from typing import Literal

import msgspec

BillStatus = Literal["final", "estimated", "unpriced", "unmetered"]
"""final: counted and priced; estimated: one of the two by us; unpriced: no rate; unmetered: not counted."""
AdjustmentKind = Literal["discount", "markup", "fee"]


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """Units of one dimension at one rate.

    Args:
        dimension: name in `gateway.core.dimensions`.
        units: how many were charged at this rate (a whole's line excludes its separately charged parts).
        rate_atto_per_million: atto-USD (10^-18 USD) per million units.
        multiplier: what the rate was multiplied by, as numerator and denominator.
        cost_pico_usd: `line_pico(units, rate, multiplier)`.
        model: the other model whose tokens these are; None for the model that served.
        price_id: the entry of the catalogue that was applied to the other model's tokens.
    """

    dimension: str
    units: int
    rate_atto_per_million: int
    cost_pico_usd: int
    multiplier: tuple[int, int] = (1, 1)
    model: str | None = None
    price_id: str | None = None


class Adjusted(msgspec.Struct, frozen=True, kw_only=True):
    """What an adjustment of the operator's adds to the lines, or takes from them.

    Args:
        id: as the configuration names it.
        percent: of what, in percent, as an exact decimal; None for a fee.
        cost_pico_usd: below zero for a discount.
    """

    id: str
    kind: AdjustmentKind
    cost_pico_usd: int
    percent: str | None = None


class Charge(msgspec.Struct, frozen=True, kw_only=True):
    """The priced usage of one bill.

    Args:
        lines: one per charged dimension, in registry order; those of other models behind them.
        price_id: which entry of the catalogue was applied.
        catalog: content hash of the catalogue.
        tier: name of the context tier that applied; None where the rate has no tiers.
        adjustments: discounts, then mark-ups, then fees.
        estimated: no rate is known for the model, and the operator's fallback rate was applied.
        exchange: `sat=0.00065`: USD for one unit of the currency that a rate is given in; None for USD.
        requested_price_id: the entry that the requested model has, where the model that served has another.
    """

    lines: tuple[Line, ...]
    price_id: str
    catalog: str
    tier: str | None = None
    adjustments: tuple[Adjusted, ...] = ()
    estimated: bool = False
    exchange: str | None = None
    requested_price_id: str | None = None

    @property
    def cost_pico_usd(self) -> int:
        """The exact sum of lines and adjustments, in pico-USD."""
        return sum([line.cost_pico_usd for line in self.lines]) + sum(
            [adjusted.cost_pico_usd for adjusted in self.adjustments]
        )

    @property
    def provider_cost_pico_usd(self) -> int:
        """What the provider should charge, in pico-USD: lines less discounts, without mark-ups and fees."""
        return sum([line.cost_pico_usd for line in self.lines]) + sum(
            [adjusted.cost_pico_usd for adjusted in self.adjustments if adjusted.kind == "discount"]
        )


class NoRate(msgspec.Struct, frozen=True):
    """Why usage has no price.

    Args:
        reason: `model`, or what exactly lacks a rate: `output_audio`, `service_tier=flex`, `model other-1`.
    """

    reason: str
