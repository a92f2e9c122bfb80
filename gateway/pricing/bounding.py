"""Bounding: the most that a request can cost at a model's rates, for a reservation before it is sent.

Each input token is taken at the dearest rate of any kind of input token, cache writes among them, and each
output token at the dearest of any kind of output. What no rate of the request's own bounds, calls of the
provider's tools and a dearer service tier, is not in it.
"""

from __future__ import annotations

from typing import Final

from gateway.core.dimensions import DIMENSIONS, Side
from gateway.core.money import line_pico
from gateway.pricing.rates import Rate, RateCard

_SIDES: Final[dict[str, Side]] = {name: d.side for name, d in DIMENSIONS.items() if d.unit == "token"}


def most_pico(card: RateCard, input_tokens: int, output_tokens: int) -> int | None:
    """Return the most that so many tokens can cost, None where a side has no rate."""
    dearest: dict[Side, int] = {}
    for name, rate in card.rates.items():
        side = _SIDES.get(name)
        if side is not None:
            dearest[side] = max(dearest.get(side, 0), _most(rate, input_tokens))
    total = 0
    sides: tuple[tuple[Side, int], ...] = (("input", input_tokens), ("output", output_tokens))
    for side, tokens in sides:
        if side in dearest:
            total += line_pico(tokens, dearest[side], card.multiplier)
        elif tokens:
            return None
    request = card.rates.get("request")
    if request is not None:
        total += line_pico(1, _most(request, input_tokens))
    return total


def _most(rate: Rate, input_tokens: int) -> int:
    """Return the dearest rate of all contexts up to that size."""
    return max([rate.base, *[price for start, price in rate.tiers if input_tokens > start]])
