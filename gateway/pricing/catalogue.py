"""Catalogue: which rates were in force for a model at a time; unknown stays unknown.

A name is looked up among the operator's own rates first, then by the catalogue's match clauses. No near
miss is ever priced: `None` becomes the state `unpriced`. The content hash covers everything that can change
a price, so a bill says exactly from which catalogue it came.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from importlib.resources import files
from typing import Any, Final

import msgspec

from gateway.core.dimensions import DIMENSIONS
from gateway.core.money import rate_to_atto

MEMO_MAX: Final = 10_000
"""Names remembered; callers choose names, so the memo starts over when it is full."""
HASH_HEX: Final = 16


class CatalogueError(Exception):
    """The catalogue or an override cannot be used; the message says where and why."""


class Rate(msgspec.Struct, frozen=True):
    """A rate in atto-USD per million units; from more than `tiers[i][0]` input tokens on, another one."""

    base: int
    tiers: tuple[tuple[int, int], ...] = ()


class RateCard(msgspec.Struct, frozen=True, kw_only=True):
    """The rates of one model in one period.

    Args:
        context_window: the most tokens that the model takes and makes, None if the catalogue does not say.
    """

    price_id: str
    rates: dict[str, Rate]
    context_window: int | None = None


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """One model of the catalogue as it stands in the file."""

    id: str
    match: dict[str, Any]
    prices: list[dict[str, Any]]
    name: str | None = None
    context_window: int | None = None
    variants: list[dict[str, Any]] = []


class _Provider(msgspec.Struct, frozen=True):
    fallback: list[str]
    models: list[Model]


class _File(msgspec.Struct, frozen=True):
    source: str
    unit: str
    providers: dict[str, msgspec.Raw]


class _Period(msgspec.Struct, frozen=True):
    """When a card applies: from a day on (Unix seconds), or between two times of the day (seconds)."""

    card: RateCard
    from_unix_s: int | None = None
    day_from_s: int | None = None
    day_to_s: int | None = None

    def active(self, at_unix_s: int) -> bool:
        if self.from_unix_s is not None:
            return at_unix_s >= self.from_unix_s
        if self.day_from_s is not None and self.day_to_s is not None:
            second = at_unix_s % 86_400
            if self.day_to_s < self.day_from_s:
                return second >= self.day_from_s or second < self.day_to_s
            return self.day_from_s <= second < self.day_to_s
        return True


class Catalogue:
    """All rates of one gateway.

    Args:
        data: the compiled catalogue, as `gateway.pricing.importer` writes it.
        overrides: `provider/model` -> dimension -> USD per million units (for `request`: per request).

    Raises:
        CatalogueError: naming the entry that cannot be used.
    """

    def __init__(self, data: bytes, overrides: Mapping[str, Mapping[str, str | int]] | None = None) -> None:
        try:
            parsed = msgspec.json.decode(data, type=_File)
        except ValueError as fault:  # msgspec's own, and text that is no UTF-8
            raise CatalogueError(f"the rate catalogue cannot be read: {fault}") from fault
        overrides = overrides or {}
        digest = hashlib.sha256(data)
        digest.update(msgspec.json.encode(overrides, order="deterministic"))
        self.hash = digest.hexdigest()[:HASH_HEX]
        self.source = parsed.source
        for section, raw in parsed.providers.items():
            _check(section, raw)
        self._raw = parsed.providers
        self._overrides = {name: _override(name, rates) for name, rates in overrides.items()}
        self._providers: dict[str, _Provider | None] = {}
        self._memo: dict[tuple[str, str], tuple[_Period, ...] | None] = {}

    def card(self, provider: str, section: str, model: str, at_unix_s: int) -> RateCard | None:
        """Return the rates in force, or None: unpriced.

        Args:
            provider: name of the provider's card, for the operator's own rates.
            section: provider id in the catalogue.
            model: as the provider named the model that served.
        """
        own = self._overrides.get(f"{provider}/{model}")
        if own is not None:
            return own
        key = (section, model)
        if key in self._memo:
            periods = self._memo[key]
        else:
            if len(self._memo) >= MEMO_MAX:
                self._memo.clear()
            periods = self._memo[key] = self._find(section, model)
        for period in reversed(periods or ()):  # the last one that is in force takes precedence
            if period.active(at_unix_s):
                return period.card
        return periods[0].card if periods else None

    def models(self, section: str) -> list[Model]:
        """Return the models of one provider of the catalogue."""
        provider = self._provider(section)
        return [] if provider is None else provider.models

    def _provider(self, section: str) -> _Provider | None:
        if section not in self._providers:
            raw = self._raw.get(section)
            self._providers[section] = None if raw is None else msgspec.json.decode(raw, type=_Provider)
        return self._providers[section]

    def _find(self, section: str, model: str) -> tuple[_Period, ...] | None:
        name = model.lower()
        provider = self._provider(section)
        if provider is None:
            return None
        for candidate in (name, _dashed_date(name)):
            for place in (section, *provider.fallback):  # one step of fallback, as the data means it
                known = self._provider(place)
                for entry in known.models if known is not None else ():
                    if matches(entry.match, candidate):
                        return tuple(_period(place, entry, price) for price in entry.prices)
        return None


def _check(section: str, raw: msgspec.Raw) -> None:
    """Read a whole section once: what cannot be read must stop the start, and not a request's bill.

    Raises:
        CatalogueError: naming the model.
    """
    name = ""
    try:
        for model in msgspec.json.decode(raw, type=_Provider).models:
            name = model.id
            _check_clause(model.match)
            if not [_period(section, model, price) for price in model.prices]:
                raise ValueError("no prices")
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        ArithmeticError,
        re.error,
        CatalogueError,
    ) as fault:
        raise CatalogueError(f"the rate catalogue: {section}/{name} cannot be used: {fault}") from fault
    except RecursionError as fault:
        raise CatalogueError(f"the rate catalogue: {section}/{name} is nested too deeply") from fault


def _check_clause(clause: Mapping[str, Any]) -> None:
    """Raise ValueError, or what reading the clause raises, if `matches` could not use it."""
    ((kind, value),) = clause.items()
    for inner in value if kind in ("or", "and") else ():
        _check_clause(inner)
    if kind not in ("or", "and") and not isinstance(value, str):
        raise ValueError("a match clause compares with text")
    matches(clause, "")


def matches(clause: Mapping[str, Any], name: str) -> bool:
    """Say whether a match clause fits a model's lower-case name."""
    ((kind, value),) = clause.items()
    match kind:
        case "equals":
            return bool(name == value)
        case "starts_with":
            return name.startswith(value)
        case "ends_with":
            return name.endswith(value)
        case "contains":
            return value in name
        case "regex":
            return re.search(value, name) is not None
        case "or":
            return any(matches(inner, name) for inner in value)
        case "and":
            return all(matches(inner, name) for inner in value)
    raise CatalogueError(f"unknown match clause {kind!r}")


def _dashed_date(name: str) -> str:
    """Return `…-20251211` as `…-2025-12-11`; some gateways emit the compact form."""
    return re.sub(r"-(20\d\d)(\d\d)(\d\d)$", r"-\1-\2-\3", name)


def _period(section: str, model: Model, price: Mapping[str, Any]) -> _Period:
    start = price.get("from")
    suffix = f"@{start}" if start else ""
    if "from_time" in price:
        suffix = f"@{price['from_time']}"
    rates = {name: _rate(value) for name, value in price["rates"].items() if name in DIMENSIONS}
    return _Period(
        card=RateCard(
            price_id=f"{section}/{model.id}{suffix}", rates=rates, context_window=model.context_window
        ),
        from_unix_s=None if start is None else _day_unix_s(start),
        day_from_s=_day_s(price["from_time"]) if "from_time" in price else None,
        day_to_s=_day_s(price["to_time"]) if "to_time" in price else None,
    )


def _rate(value: Any) -> Rate:
    if isinstance(value, dict):
        tiers = tuple((int(start), _atto(Decimal(price))) for start, price in value["tiers"])
        return Rate(_atto(Decimal(value["base"])), tiers)
    return Rate(_atto(Decimal(value)))


def _atto(usd: Decimal) -> int:
    """Return a rate; one below zero would be paid out.

    Raises:
        ValueError: it is below zero, or no amount.
    """
    if usd < 0:
        raise ValueError(f"{usd} is below zero")
    return rate_to_atto(usd)


def _day_unix_s(day: str) -> int:
    """Return the first second (UTC) of an ISO day, without a calendar library: days since 1970-01-01."""
    year, month, date = (int(part) for part in day.split("-"))
    if not (1970 <= year <= 9999 and 1 <= month <= 12 and 1 <= date <= 31):
        raise ValueError(f"{day} is no day")
    year -= month <= 2
    era_day = 365 * year + year // 4 - year // 100 + year // 400
    month_day = (153 * ((month + 9) % 12) + 2) // 5
    return (era_day + month_day + date - 1 - 719_468) * 86_400


def _day_s(time: str) -> int:
    hours, minutes, seconds = (int(part) for part in time.split(":"))
    if not (0 <= hours < 24 and 0 <= minutes < 60 and 0 <= seconds < 60):
        raise ValueError(f"{time} is no time of the day")
    return hours * 3600 + minutes * 60 + seconds


def _override(name: str, rates: Mapping[str, str | int]) -> RateCard:
    if "/" not in name:
        raise CatalogueError(f"prices.overrides: {name!r} must be `provider/model`")
    card: dict[str, Rate] = {}
    for dimension, usd in rates.items():
        if dimension not in DIMENSIONS:
            raise CatalogueError(
                f"prices.overrides: {name}: {dimension!r} is not one of {', '.join(DIMENSIONS)}"
            )
        try:
            atto = _atto(Decimal(str(usd)))
        except InvalidOperation as fault:
            raise CatalogueError(f"prices.overrides: {name}: {dimension}: {usd!r} is no amount") from fault
        except ValueError as fault:
            raise CatalogueError(f"prices.overrides: {name}: {dimension}: {fault}") from fault
        card[dimension] = Rate(atto * 1_000_000 if dimension == "request" else atto)
    return RateCard(price_id=f"override:{name}", rates=card)


def packaged_rates() -> bytes:
    """Return the catalogue that ships with the gateway."""
    return files("gateway.pricing").joinpath("rates.json").read_bytes()
