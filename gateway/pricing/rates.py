"""Rates: what one model costs in one period, and how people write a rate; exact or refused.

A rate is written `2.50`, `0.0025/1k`, `10/1000` or `3 sat/1k`: an amount, a currency if it is not USD, and
for how many units. Without that, tokens are priced per million and everything else per one.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, Final

import msgspec

from gateway.core.dimensions import DIMENSIONS
from gateway.core.money import rate_to_atto

_RATE: Final = re.compile(
    r"(?P<amount>\d{1,30}(?:\.\d{1,40})?(?:[eE][-+]?\d{1,2})?)(?: ?(?P<currency>[A-Za-z]{2,8}))?"
    r"(?: ?/ ?(?P<per>1|1k|1000|1M|1000000))?"
)
_PER: Final = {"1": 1, "1k": 1000, "1000": 1000, "1M": 1_000_000, "1000000": 1_000_000}
_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_DAY_S: Final = 86_400
ALWAYS: Final = (-(2**62), 2**62)
"""The window, in Unix seconds, of what never changes."""

Exchange = Mapping[str, Decimal]
"""Currency, in lower case, to USD for one unit of it."""


class Rate(msgspec.Struct, frozen=True):
    """A rate in atto-USD per million units; from more than `tiers[i][0]` input tokens on, another one."""

    base: int
    tiers: tuple[tuple[int, int], ...] = ()

    def at(self, input_units: int) -> int:
        """Return the rate at this context size: the highest tier below it applies to all units."""
        price = self.base
        for start, tier_price in self.tiers:
            if input_units > start:
                price = tier_price
        return price


class RateCard(msgspec.Struct, frozen=True, kw_only=True):
    """The rates of one model in one period, for one service tier and whatever else a reply states.

    Args:
        context_window: the most tokens that the model takes and makes, None if the catalogue does not say.
        multiplier: numerator and denominator of what every token rate is multiplied by.
        missing: what the reply states that no rate is known for, as `name=value`; nothing is priced then.
        exchange: `currency=USD`, where a rate was given in another currency.
        estimated: the operator's fallback for models without a rate.
    """

    price_id: str
    rates: dict[str, Rate]
    context_window: int | None = None
    multiplier: tuple[int, int] = (1, 1)
    missing: str | None = None
    exchange: str | None = None
    estimated: bool = False


class Validity(msgspec.Struct, frozen=True, kw_only=True):
    """When something applies: from a second until before another one, or between two times of each day."""

    from_unix_s: int | None = None
    until_unix_s: int | None = None
    day_from_s: int | None = None
    day_to_s: int | None = None

    def active(self, at_unix_s: int) -> bool:
        """Say whether it applies then."""
        if self.from_unix_s is not None and at_unix_s < self.from_unix_s:
            return False
        if self.until_unix_s is not None and at_unix_s >= self.until_unix_s:
            return False
        if self.day_from_s is None or self.day_to_s is None:
            return True
        second = at_unix_s % _DAY_S
        if self.day_to_s < self.day_from_s:
            return second >= self.day_from_s or second < self.day_to_s
        return self.day_from_s <= second < self.day_to_s

    def window(self, at_unix_s: int) -> tuple[int, int]:
        """Return since when and until before when `active` says the same as it does now."""
        since, until = ALWAYS
        edges = [edge for edge in (self.from_unix_s, self.until_unix_s) if edge is not None]
        if self.day_from_s is not None and self.day_to_s is not None:
            day = at_unix_s - at_unix_s % _DAY_S
            for start in (day - _DAY_S, day, day + _DAY_S):
                edges += [start + self.day_from_s, start + self.day_to_s]
        for edge in edges:
            if edge <= at_unix_s:
                since = max(since, edge)
            else:
                until = min(until, edge)
        return since, until


def parse_rate(value: object, dimension: str, exchange: Exchange) -> int:
    """Return a written rate in atto-USD per million units.

    Raises:
        ValueError: it is no rate, is in a currency without an exchange rate, or is finer than 10^-18 USD per
            million: nothing is rounded here.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | Decimal):
        raise ValueError(f"{value!r} is no rate; write it as a quoted decimal")
    amount, per = _amount(str(value), exchange)
    if per is None:
        per = 1_000_000 if DIMENSIONS[dimension].unit == "token" else 1
    return rate_to_atto(exact_product(amount, Decimal(1_000_000 // per)))


def parse_amount(value: object, exchange: Exchange) -> Decimal:
    """Return a written amount of money in USD.

    Raises:
        ValueError: it is no amount, or is in a currency without an exchange rate.
    """
    amount, per = _amount(str(value), exchange)
    if per is not None:
        raise ValueError(f"{value!r} is a rate, where an amount is wanted")
    return amount


def currency_of(value: object) -> str | None:
    """Return the currency of a written rate in lower case, None for USD."""
    match = _RATE.fullmatch(str(value))
    currency = match["currency"].lower() if match is not None and match["currency"] else "usd"
    return None if currency == "usd" else currency


def _amount(text: str, exchange: Exchange) -> tuple[Decimal, int | None]:
    match = _RATE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text[:80]!r} is no rate: write `2.50`, `0.0025/1k` or `3 sat/1k`")
    try:
        amount = Decimal(match["amount"])
    except InvalidOperation as fault:
        raise ValueError(f"{text!r} is no amount") from fault
    currency = (match["currency"] or "usd").lower()
    if currency != "usd":
        if currency not in exchange:
            raise ValueError(f"{text!r}: there is no exchange rate for {currency}; set prices.exchange")
        amount = exact_product(amount, exchange[currency])
    return amount, None if match["per"] is None else _PER[match["per"]]


def exact_product(left: Decimal, right: Decimal) -> Decimal:
    """Return the product with all its digits: the default context would round to 28 of them."""
    sign, digits, exponent = left.as_tuple()
    other_sign, other_digits, other_exponent = right.as_tuple()
    assert isinstance(exponent, int)  # finite
    assert isinstance(other_exponent, int)
    whole = int("".join(map(str, digits))) * int("".join(map(str, other_digits)))
    return Decimal((sign ^ other_sign, tuple(map(int, str(whole))), exponent + other_exponent))


def parse_factor(value: object) -> tuple[int, int]:
    """Return a written factor as numerator and denominator: `1.1` is (11, 10).

    Raises:
        ValueError: it is no plain decimal.
    """
    match = re.fullmatch(r"(\d{1,12})(?:\.(\d{1,12}))?", str(value))
    if match is None:
        raise ValueError(f"{value!r} is no factor: write a decimal such as `1.1`")
    fraction = match[2] or ""
    return int(match[1] + fraction), 10 ** len(fraction)


def parse_percent(value: str, most: int | None = None) -> tuple[int, int]:
    """Return a written percentage as a share: `2.5` is (25, 1000).

    Raises:
        ValueError: it is no plain decimal, or more than `most`.
    """
    numerator, denominator = parse_factor(value)
    if most is not None and numerator > most * denominator:
        raise ValueError(f"{value} percent is more than {most}")
    return numerator, denominator * 100


def parse_exchange(written: Mapping[str, str | int]) -> dict[str, Decimal]:
    """Return exchange rates, USD for one unit of each currency.

    Raises:
        ValueError: naming the currency whose rate is no positive decimal.
    """
    exchange: dict[str, Decimal] = {}
    for currency, value in written.items():
        if not re.fullmatch(r"\d{1,20}(\.\d{1,20})?", str(value)) or not Decimal(str(value)):
            raise ValueError(f"{currency}: {value!r} is no exchange rate: USD for one {currency}")
        exchange[currency.lower()] = Decimal(str(value))
    return exchange


def parse_instant(value: object) -> int:
    """Return a written day (its first second) or time as Unix seconds; without a zone it is UTC.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, datetime.date):  # YAML knows dates
        value = value.isoformat()
    try:
        when = datetime.datetime.fromisoformat(str(value))
    except ValueError as fault:
        raise ValueError(f"{value!r} is no day such as 2026-10-01, and no time") from fault
    if when.tzinfo is None:
        when = when.replace(tzinfo=datetime.UTC)
    return (when - _EPOCH) // datetime.timedelta(seconds=1)


def parse_time_of_day(value: object) -> int:
    """Return a written time of day as seconds since midnight UTC.

    Raises:
        ValueError: it is none.
    """
    match = re.fullmatch(r"([01]\d|2[0-3]):([0-5]\d):([0-5]\d)", str(value))
    if match is None:
        raise ValueError(f"{value!r} is no time of day such as 16:30:00")
    hours, minutes, seconds = (int(part) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds


def parse_rates(written: Mapping[str, Any], exchange: Exchange) -> dict[str, Rate]:
    """Return rates by dimension; names that are no dimension (yet) price nothing and are left out.

    Raises:
        ValueError: naming the dimension whose rate cannot be used.
    """
    rates: dict[str, Rate] = {}
    for name, value in written.items():
        if name not in DIMENSIONS:
            continue
        try:
            if isinstance(value, Mapping):
                tiers = [
                    (int(start), parse_rate(price, name, exchange)) for start, price in value.get("tiers", ())
                ]
                rates[name] = Rate(parse_rate(value["base"], name, exchange), tuple(sorted(tiers)))
            else:
                rates[name] = Rate(parse_rate(value, name, exchange))
        except KeyError as fault:
            raise ValueError(f"{name}: a rate with tiers needs `base`") from fault
        except (TypeError, ValueError) as fault:
            raise ValueError(f"{name}: {fault}") from fault
    return rates
