"""Charge: what a reply costs, one line per dimension, and the state that says how far to trust it."""

from __future__ import annotations

from typing import Literal

import msgspec

BillStatus = Literal["final", "estimated", "unpriced", "unmetered"]
"""final: counted and priced; estimated: counted by us; unpriced: counted, no rate; unmetered: not counted."""


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """Units of one dimension at one rate.

    Args:
        dimension: name in `gateway.core.dimensions`.
        units: how many were charged at this rate (a whole's line excludes its separately charged parts).
        rate_atto_per_million: atto-USD (10^-18 USD) per million units.
        cost_pico_usd: `line_pico(units, rate)`.
    """

    dimension: str
    units: int
    rate_atto_per_million: int
    cost_pico_usd: int


class Charge(msgspec.Struct, frozen=True, kw_only=True):
    """The priced usage of one bill.

    Args:
        lines: one per charged dimension, in registry order.
        price_id: which entry of the catalogue was applied.
        catalog: content hash of the catalogue.
        tier: name of the context tier that applied; None where the rate has no tiers.
    """

    lines: tuple[Line, ...]
    price_id: str
    catalog: str
    tier: str | None = None

    @property
    def cost_pico_usd(self) -> int:
        """The exact sum of the lines, in pico-USD."""
        return sum(line.cost_pico_usd for line in self.lines)
