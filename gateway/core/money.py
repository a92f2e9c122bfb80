"""Money: exact integers of 10^-12 USD (pico-USD), and rates as exact integers per million units.

The one rounding rule: a charge line is `units x rate` rounded half-even to one pico-USD, once; sums of
lines are exact and never rounded again. Decimal appears only where people read or write money. No float.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Final

PICO_PER_USD: Final = 10**12
UNITS_PER_MILLION: Final = 10**6


def usd_to_pico(usd: Decimal) -> int:
    """Return whole pico-USD.

    Raises:
        ValueError: the amount is not finite or is finer than 10^-12 USD: nothing here may round silently.
    """
    if not usd.is_finite():
        raise ValueError(f"{usd} is not an amount of money")
    sign, digits, exponent = usd.as_tuple()
    assert isinstance(exponent, int)
    magnitude = int("".join(map(str, digits)))
    shift = exponent + 12
    if shift >= 0:
        pico = magnitude * 10**shift
    else:
        pico, rest = divmod(magnitude, 10**-shift)
        if rest:
            raise ValueError(f"{usd} USD is finer than 10^-12 USD")
    return -pico if sign else pico


def pico_to_usd(pico: int) -> str:
    """Return the exact decimal string in USD, without exponent and without trailing zeros: "0.000125"."""
    sign = "-" if pico < 0 else ""
    whole, fraction = divmod(abs(pico), PICO_PER_USD)
    if not fraction:
        return f"{sign}{whole}"
    return f"{sign}{whole}.{fraction:012d}".rstrip("0")


def line_pico(units: int, rate_pico_per_million: int) -> int:
    """Return the cost of `units` in pico-USD, rounded half-even: the only place where money is rounded."""
    product = units * rate_pico_per_million
    quotient, rest = divmod(product, UNITS_PER_MILLION)
    double = 2 * rest
    if double > UNITS_PER_MILLION or (double == UNITS_PER_MILLION and quotient & 1):
        quotient += 1
    return quotient
