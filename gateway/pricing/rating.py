"""Rating: usage x rates -> lines, exactly, one line per dimension.

Each unit is charged once, at the most specific rate that applies: a part with a rate of its own is charged
at it, and the whole's rate takes what is left. So cache writes whose 5-minute / 1-hour split does not add
up are charged in full, the rest at the plain write rate. The same function prices a live request and
re-rates an old one; only the rate card differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from gateway.core.charge import Charge, Line, NoRate
from gateway.core.dimensions import DIMENSIONS
from gateway.core.money import line_pico
from gateway.core.usage import Usage
from gateway.pricing.rates import Rate, RateCard

_PARTS: Final[dict[str, tuple[str, ...]]] = {
    name: tuple(d.name for d in DIMENSIONS.values() if d.part_of == name) for name in DIMENSIONS
}
_SHARED: Final[dict[str, tuple[str, ...]]] = {
    name: tuple(d.name for d in DIMENSIONS.values() if d.also_part_of == name) for name in DIMENSIONS
}
_TOKENS: Final = frozenset(d.name for d in DIMENSIONS.values() if d.unit == "token")
_FREE: Final = frozenset(d.name for d in DIMENSIONS.values() if d.free_without_rate)
_ORDER: Final = {name: place for place, name in enumerate(DIMENSIONS)}


def _whole_of(name: str) -> str:
    part_of = DIMENSIONS[name].part_of
    return name if part_of is None else _whole_of(part_of)


_WHOLE: Final = {name: _whole_of(name) for name in DIMENSIONS if name != "request"}


def charge(usage: Usage, card: RateCard, catalog: str) -> Charge | NoRate:
    """Return the charge of one model's own usage, or which units no rate of the card covers."""
    lines = rated(usage.counts, card)
    if isinstance(lines, NoRate):
        return lines
    return Charge(
        lines=lines,
        price_id=card.price_id,
        catalog=catalog,
        tier=tier_of(card, usage.counts.get("input", 0)),
        estimated=card.estimated,
        exchange=card.exchange,
    )


def rated(
    counts: Mapping[str, int], card: RateCard, *, model: str | None = None
) -> tuple[Line, ...] | NoRate:
    """Return the lines of the counts in registry order, or which units no rate of the card covers.

    Parts that exceed their whole (real payloads do that) are charged as reported; the whole's rest is then 0.

    Args:
        model: the other model whose tokens these are; a request's own fee is not charged for it.
    """
    if card.missing is not None:
        return NoRate(card.missing)
    units: dict[str, int] = {}
    for whole in sorted({_WHOLE[name] for name in counts if name != "request"}, key=_ORDER.__getitem__):
        if _spread(whole, counts, card.rates, units) < counts.get(whole, 0) and whole not in _FREE:
            return NoRate(whole)
    if not units and any(counts.values()):
        return NoRate("model")
    if "request" in card.rates and model is None:
        units["request"] = 1
    input_units = counts.get("input", 0)
    multiplied = card.multiplier
    lines: list[Line] = []
    for name in sorted(units, key=_ORDER.__getitem__):
        rate = card.rates[name].at(input_units)
        multiplier = multiplied if name in _TOKENS else (1, 1)
        lines.append(
            Line(
                dimension=name,
                units=units[name],
                rate_atto_per_million=rate,
                multiplier=multiplier,
                cost_pico_usd=line_pico(units[name], rate, multiplier),
                model=model,
                price_id=None if model is None else card.price_id,
            )
        )
    return tuple(lines)


def _spread(name: str, counts: Mapping[str, int], rates: Mapping[str, Rate], units: dict[str, int]) -> int:
    """Give the units of a dimension and its parts to the rates; return how many of its units they cover."""
    covered = 0
    for part in _PARTS[name]:
        if part in counts:
            covered += _spread(part, counts, rates, units)
    count = counts.get(name)
    if name not in rates or count is None:
        return covered
    for part in _SHARED[name]:  # charged in the tree of the first dimension that it is a part of
        if part in counts and (part in rates or DIMENSIONS[part].part_of in rates):
            count = max(0, count - counts[part])
    rest = count - covered
    if rest > 0 or not covered:
        units[name] = max(rest, 0)
    return max(count, covered)


def tier_of(card: RateCard, input_units: int) -> str | None:
    """Return the name of the context tier that applies, None where no rate of the card has tiers."""
    starts = [start for rate in card.rates.values() for start, _ in rate.tiers]
    if not starts:
        return None
    passed = [start for start in starts if input_units > start]
    return f">{max(passed)}" if passed else "base"
