"""Rating: usage x rates -> charge, exactly, one line per dimension.

Each unit is charged once, at the most specific rate that applies: a part with a rate of its own is charged
at it, and the whole's rate takes what is left. So cache writes whose 5-minute / 1-hour split does not add
up are charged in full, the rest at the plain write rate. The same function prices a live request and
re-rates an old one; only the rate card differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from gateway.core.charge import Charge, Line
from gateway.core.dimensions import DIMENSIONS
from gateway.core.money import line_pico
from gateway.core.usage import Usage
from gateway.pricing.catalogue import Rate, RateCard

_PARTS: Final[dict[str, tuple[str, ...]]] = {
    name: tuple(d.name for d in DIMENSIONS.values() if d.part_of == name) for name in DIMENSIONS
}
_WHOLES: Final = tuple(d.name for d in DIMENSIONS.values() if d.part_of is None and d.side != "request")


def charge(usage: Usage, card: RateCard, catalog: str) -> Charge | None:
    """Return the charge, or None if units were used that no rate of the card covers.

    Parts that exceed their whole (real payloads do that) are charged as reported; the whole's rest is then 0.
    """
    counts = usage.counts
    input_units = counts.get("input", 0)
    lines: list[Line] = []
    tiered = False
    for whole in _WHOLES:
        covered = _charge_tree(whole, counts, card.rates, input_units, lines)
        if covered < counts.get(whole, 0) and not DIMENSIONS[whole].free_without_rate:
            return None
    if not lines and any(counts.values()):
        return None
    for rate in card.rates.values():
        tiered = tiered or bool(rate.tiers)
    if "request" in card.rates:
        lines.append(_line("request", 1, card.rates["request"].base))
    return Charge(
        lines=tuple(lines),
        price_id=card.price_id,
        catalog=catalog,
        tier=_tier(card.rates, input_units) if tiered else None,
    )


def _charge_tree(
    name: str, counts: Mapping[str, int], rates: Mapping[str, Rate], input_units: int, lines: list[Line]
) -> int:
    """Append the lines of a dimension and its parts; return how many of its units they cover."""
    at = len(lines)
    covered = 0
    for part in _PARTS[name]:
        if part in counts:
            covered += _charge_tree(part, counts, rates, input_units, lines)
    rate = rates.get(name)
    units = counts.get(name)
    if rate is None or units is None:
        return covered
    rest = units - covered
    if rest > 0 or not covered:
        lines.insert(at, _line(name, max(rest, 0), _in_force(rate, input_units)))
    return max(units, covered)


def _line(dimension: str, units: int, rate: int) -> Line:
    return Line(
        dimension=dimension, units=units, rate_atto_per_million=rate, cost_pico_usd=line_pico(units, rate)
    )


def _in_force(rate: Rate, input_units: int) -> int:
    """Return the rate at this context size: the highest tier below it applies to all units."""
    price = rate.base
    for start, tier_price in rate.tiers:
        if input_units > start:
            price = tier_price
    return price


def _tier(rates: Mapping[str, Rate], input_units: int) -> str:
    passed = [start for rate in rates.values() for start, _ in rate.tiers if input_units > start]
    return f">{max(passed)}" if passed else "base"
