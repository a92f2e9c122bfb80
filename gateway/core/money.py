"""Money: exact integers of 10^-12 USD (pico-USD), and rates as integers of 10^-18 USD (atto-USD) per million.

The one rounding rule: a charge line is `units x rate x multiplier`, and an adjustment a share of such lines,
rounded half-even to one pico-USD, once; sums of lines are exact and never rounded again. Decimal appears only
where people read or write money. No float.
"""

from __future__ import annotations

from decimal import Context, Decimal
from functools import lru_cache
from typing import Final

PICO_PER_USD: Final = 10**12
ATTO_PER_PICO_TIMES_MILLION: Final = 10**12
RATE_DECIMALS: Final = 18
"""Published rates have up to 17 decimals per million: some price lists print what a double left of 0.14."""

USD_DIGITS_MAX: Final = 24
"""Digits before the point: a larger amount is a slip of the pen, and 1E999999999 would be minutes of work."""
DIGITS_MAX: Final = 60
TEXTS_MAX: Final = 512
"""Texts that are remembered: a bill says each of its amounts two or three times, and its rates are those of
the bills before it."""


def usd_to_pico(usd: Decimal) -> int:
    """Return whole pico-USD.

    Raises:
        ValueError: the amount is not finite, too large, or finer than 10^-12 USD: nothing here may round
            silently.
    """
    return _scaled(usd, 12)


def rate_to_atto(usd_per_million: Decimal) -> int:
    """Return a rate as whole atto-USD per million units.

    Raises:
        ValueError: the rate is not finite, too large, or has more than RATE_DECIMALS decimals.
    """
    return _scaled(usd_per_million, RATE_DECIMALS)


def _scaled(usd: Decimal, decimals: int) -> int:
    if not usd.is_finite():
        raise ValueError(f"{usd} is not an amount of money")
    sign, digits, exponent = usd.as_tuple()
    assert isinstance(exponent, int)  # finite, so a number
    if usd.adjusted() >= USD_DIGITS_MAX or len(digits) > DIGITS_MAX:
        raise ValueError(f"an amount of money has at most {USD_DIGITS_MAX} digits before the point")
    if exponent < -DIGITS_MAX:
        raise ValueError(f"an amount is finer than 10^-{decimals} USD")
    shift = exponent + decimals
    magnitude = int("".join(map(str, digits)))
    whole: int
    whole, rest = (magnitude * 10**shift, 0) if shift >= 0 else divmod(magnitude, 10**-shift)
    if rest:
        raise ValueError(f"{usd} USD is finer than 10^-{decimals} USD")
    return -whole if sign else whole


@lru_cache(TEXTS_MAX)
def pico_to_usd(pico: int) -> str:
    """Return the exact decimal string in USD, without exponent and without trailing zeros: "0.000125"."""
    sign = "-" if pico < 0 else ""
    whole, fraction = divmod(abs(pico), PICO_PER_USD)
    if not fraction:
        return f"{sign}{whole}"
    return f"{sign}{whole}.{fraction:012d}".rstrip("0")


def difference_usd(reported: str, pico: int) -> str:
    """Return exactly how much a decimal string of USD is above (or, with a sign, below) an amount of ours."""
    context = Context(prec=200)  # reported: at most 40 decimals; ours: fewer than 100 digits
    difference = context.subtract(Decimal(reported), context.scaleb(Decimal(pico), -12))
    return format(difference.normalize(context), "f") if difference else "0"


def factor_to_text(factor: tuple[int, int]) -> str:
    """Return a factor, whose denominator is a power of ten, as an exact decimal string: (11, 10) is "1.1"."""
    return _plain(factor[0], len(str(factor[1])) - 1)


@lru_cache(TEXTS_MAX)
def rate_to_usd(rate_atto_per_million: int, units: int = 1_000_000) -> str:
    """Return the exact decimal string of a rate in USD per `units` (a power of ten up to a million)."""
    decimals = RATE_DECIMALS + len(str(1_000_000 // units)) - 1
    return _plain(rate_atto_per_million, decimals)


def _plain(value: int, decimals: int) -> str:
    whole, fraction = divmod(value, 10**decimals)
    return f"{whole}.{fraction:0{decimals}d}".rstrip("0").rstrip(".") if fraction else str(whole)


def line_pico(units: int, rate_atto_per_million: int, multiplier: tuple[int, int] = (1, 1)) -> int:
    """Return the cost of `units` in pico-USD, rounded half-even.

    Args:
        multiplier: numerator and denominator of what the rate is multiplied by.
    """
    numerator, denominator = multiplier
    return _rounded(units * rate_atto_per_million * numerator, ATTO_PER_PICO_TIMES_MILLION * denominator)


def share_pico(pico: int, share: tuple[int, int]) -> int:
    """Return a share (numerator, denominator) of an amount in pico-USD, rounded half-even."""
    return _rounded(pico * share[0], share[1])


def _rounded(numerator: int, denominator: int) -> int:
    """Return the quotient rounded half-even: the only place where money is rounded."""
    quotient, rest = divmod(numerator, denominator)
    double = 2 * rest
    if double > denominator or (double == denominator and quotient & 1):
        quotient += 1
    return quotient
