"""Entries: the models of a catalogue as they stand in its data, and the rate card that follows from one.

    layer ── section ──┬─ fallback: sections to look in if no model here fits
                       ├─ multipliers: for all models of the section
                       └─ model ──┬─ match: which names it has
                                  ├─ prices: one after another in time; the last that is in force applies
                                  └─ variants: other rates, or a multiplier, for what a reply states

A variant's rates take the place of the price's, dimension by dimension, first match first. A reply that
states a service tier, speed or region that is not the plain one, and that no variant knows, has no rate.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from gateway.core.usage import Usage
from gateway.pricing.rates import (
    ALWAYS,
    Exchange,
    Rate,
    RateCard,
    Validity,
    currency_of,
    parse_factor,
    parse_instant,
    parse_rates,
    parse_time_of_day,
)

Context = tuple[tuple[str, str], ...]
"""What a reply states that decides its rates: sorted pairs of name and value."""

PLAIN: Final[dict[str, frozenset[str]]] = {
    "service_tier": frozenset(
        {"default", "standard", "standard_only", "auto", "on_demand", "provisioned", "unspecified"}
    ),
    "processing": frozenset({"realtime", "standard"}),
    "speed": frozenset({"standard", "normal"}),
    "inference_geo": frozenset({"global", "not_available", "default"}),
}
"""Facts that change a price, each with the values that stand for the list price."""


class Model(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model as it stands in the data; without `match` its only name is its id."""

    id: str
    match: dict[str, Any] | None = None
    prices: list[dict[str, Any]] = []
    name: str | None = None
    context_window: int | None = None
    variants: list[dict[str, Any]] = []


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The models of one provider."""

    models: list[Model]
    fallback: list[str] = []
    multipliers: list[dict[str, Any]] = []


class Period(msgspec.Struct, frozen=True):
    """Rates and when they apply."""

    price_id: str
    validity: Validity
    rates: dict[str, Rate]
    exchange: str | None


class Variant(msgspec.Struct, frozen=True):
    """Other rates, or a multiplier, for replies that state all of `when`."""

    when: dict[str, str]
    validity: Validity
    rates: dict[str, Rate]
    multiplier: tuple[int, int]
    exchange: str | None


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One model, compiled.

    Args:
        always: where no period is in force the first applies, as the genai-prices data means it; of the
            operator's own entries none does.
    """

    model: Model
    periods: tuple[Period, ...]
    variants: tuple[Variant, ...]
    always: bool

    def card(self, at_unix_s: int, context: Context) -> tuple[RateCard | None, tuple[int, int]]:
        """Return the rates in force and the window (since, until) in which that answer stays the same."""
        window = ALWAYS
        chosen: Period | None = None
        for period in reversed(self.periods):  # the last one that is in force takes precedence
            window = _narrowed(window, period.validity.window(at_unix_s))
            if period.validity.active(at_unix_s):
                chosen = period
                break
        if chosen is None:
            if not self.always or not self.periods:
                return None, window
            chosen = self.periods[0]
        facts = dict(context)
        rates: dict[str, Rate] = {}
        numerator, denominator = 1, 1
        exchanges = {chosen.exchange}
        applied: list[str] = []
        known: set[str] = set()
        for variant in self.variants if facts else ():
            if not all(facts.get(name) == value for name, value in variant.when.items()):
                continue
            window = _narrowed(window, variant.validity.window(at_unix_s))
            if not variant.validity.active(at_unix_s):
                continue
            known.update(variant.when)
            plain = variant.multiplier == (1, 1)
            if plain and not any(name not in rates for name in variant.rates):
                continue
            rates = {**variant.rates, **rates}
            numerator, denominator = numerator * variant.multiplier[0], denominator * variant.multiplier[1]
            exchanges.add(variant.exchange)
            applied.append(",".join([f"{name}={value}" for name, value in sorted(variant.when.items())]))
        missing = [
            f"{name}={value}"
            for name, value in context
            if name in PLAIN and name not in known and value not in PLAIN[name]
        ]
        return (
            RateCard(
                price_id="+".join([chosen.price_id, *applied]),
                rates={**chosen.rates, **rates},
                context_window=self.model.context_window,
                multiplier=(numerator, denominator),
                missing=missing[0] if missing else None,
                exchange=",".join(sorted(exchange for exchange in exchanges if exchange)) or None,
            ),
            window,
        )


def context_of(usage: Usage) -> Context:
    """Return what a reply states that decides its rates; the tier `batch` is a way of processing."""
    if usage.service_tier is None and not usage.qualifiers:
        return ()
    facts = {name: value.lower() for name, value in usage.qualifiers.items()}
    if usage.service_tier is not None:
        facts["service_tier"] = usage.service_tier.lower()
    return tuple(sorted(_normal(facts).items()))


def _normal(facts: Mapping[str, str]) -> dict[str, str]:
    if facts.get("service_tier") != "batch":
        return dict(facts)
    return {name: value for name, value in facts.items() if name != "service_tier"} | {"processing": "batch"}


def compiled(
    section: str, model: Model, multipliers: list[dict[str, Any]], exchange: Exchange, *, always: bool
) -> Entry:
    """Return a model's entry.

    Raises:
        ValueError: saying which price or variant cannot be used, and why.
    """
    return Entry(
        model=model,
        periods=tuple([_period(section, model.id, price, exchange) for price in model.prices]),
        variants=tuple([_variant(written, exchange) for written in (*model.variants, *multipliers)]),
        always=always,
    )


def _period(section: str, model: str, price: Mapping[str, Any], exchange: Exchange) -> Period:
    start = price.get("from", price.get("from_time"))
    try:
        rates = parse_rates(price["rates"], exchange)
        return Period(
            str(price.get("id") or f"{section}/{model}" + (f"@{start}" if start else "")),
            _validity(price),
            rates,
            _exchange_of(price["rates"], exchange),
        )
    except (KeyError, ValueError) as fault:
        raise ValueError(f"price{f' from {start}' if start else ''}: {_said(fault)}") from fault


def _variant(written: Mapping[str, Any], exchange: Exchange) -> Variant:
    try:
        when = _normal({str(name): str(value) for name, value in written["when"].items()})
        if not when:
            raise ValueError("`when` is empty")
        factor = parse_factor(written["multiply"]) if "multiply" in written else (1, 1)
        rates = written.get("rates", {})
        return Variant(
            when, _validity(written), parse_rates(rates, exchange), factor, _exchange_of(rates, exchange)
        )
    except (KeyError, AttributeError, ValueError) as fault:
        raise ValueError(f"variant {written.get('when')}: {_said(fault)}") from fault


def _validity(written: Mapping[str, Any]) -> Validity:
    def instant(name: str) -> int | None:
        return parse_instant(written[name]) if name in written else None

    def second(name: str) -> int | None:
        return parse_time_of_day(written[name]) if name in written else None

    validity = Validity(
        from_unix_s=instant("from"),
        until_unix_s=instant("until"),
        day_from_s=second("from_time"),
        day_to_s=second("to_time"),
    )
    if (validity.day_from_s is None) != (validity.day_to_s is None):
        raise ValueError("`from_time` and `to_time` go together")
    start, end = validity.from_unix_s, validity.until_unix_s
    if start is not None and end is not None and start >= end:
        raise ValueError("`until` is not after `from`")
    return validity


def _exchange_of(rates: Mapping[str, Any], exchange: Exchange) -> str | None:
    """Return the exchange rates that were used, as they stand on the bill."""
    used: set[str] = set()
    for value in rates.values():
        amounts = (
            [value["base"], *(price for _, price in value.get("tiers", ()))]
            if isinstance(value, Mapping)
            else [value]
        )
        used.update(currency for amount in amounts if (currency := currency_of(amount)) is not None)
    return ",".join([f"{currency}={exchange[currency]:f}" for currency in sorted(used)]) or None


def _said(fault: Exception) -> str:
    return f"{fault} is missing" if isinstance(fault, KeyError) else str(fault)


def _narrowed(left: tuple[int, int], right: tuple[int, int]) -> tuple[int, int]:
    return max(left[0], right[0]), min(left[1], right[1])


def model_mistake(
    section: str, model: Model, multipliers: list[dict[str, Any]], exchange: Exchange
) -> str | None:
    """Return why a model's entry could not price a reply, None if it can."""
    try:
        if model.match is not None:
            check_clause(model.match)
        if not model.id or not model.prices:
            return "no prices"
        ids = [
            period.price_id for period in compiled(section, model, multipliers, exchange, always=True).periods
        ]
        if len(set(ids)) < len(ids):
            return "two prices have the same id; give them one of their own in `id`"
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as fault:
        return str(fault)
    except RecursionError:
        return "nested too deeply"
    return None


def fits(model: Model, name: str) -> bool:
    """Say whether a model has a lower-case name."""
    return name == model.id.lower() if model.match is None else matches(model.match, name)


def matches(clause: Mapping[str, Any], name: str) -> bool:
    """Say whether a match clause fits a model's lower-case name.

    Raises:
        ValueError: the clause is of an unknown kind.
    """
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
    raise ValueError(f"unknown match clause {kind!r}")


def check_clause(clause: Mapping[str, Any]) -> None:
    """Check a match clause wholly, also where `matches` would stop early.

    Raises:
        ValueError: it is none, or its regular expression is none.
    """
    if not isinstance(clause, Mapping) or len(clause) != 1:
        raise ValueError("match: one of equals, starts_with, ends_with, contains, regex, or, and")
    ((kind, value),) = clause.items()
    if kind in ("or", "and"):
        if not isinstance(value, list) or not value:
            raise ValueError(f"match: `{kind}` takes a list of clauses")
        for inner in value:
            check_clause(inner)
        return
    if not isinstance(value, str) or not value:
        raise ValueError(f"match: `{kind}` takes a text")
    if kind != "regex" and value != value.lower():
        raise ValueError(f"match: {value!r} must be in lower case, as names are compared")
    try:
        matches(clause, "")
    except re.error as fault:
        raise ValueError(f"match: {value!r} is no regular expression: {fault}") from fault
