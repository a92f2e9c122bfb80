"""Views: a catalogue for people: which prices it has at a time, one model whole, and how two differ.

Rates are shown as a catalogue file writes them. What is shown is what a bill would use: the same look-up.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Final, Literal

import msgspec

from gateway.core.dimensions import DIMENSIONS
from gateway.core.money import factor_to_text, rate_to_usd
from gateway.pricing.catalogue import Catalogue
from gateway.pricing.entries import Entry, Variant
from gateway.pricing.rates import Rate, RateCard, Validity

_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
MAIN: Final = ("input", "cache_read", "cache_write", "cache_write_1h", "output")
"""Dimensions with a column of their own in a list."""


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """One model's rates at a time; `rates` by dimension, as text."""

    section: str
    model: str
    price_id: str
    rates: dict[str, str]


class Period(msgspec.Struct, frozen=True, kw_only=True):
    """One price, or variant, of a model.

    Args:
        valid: since when and until when, in words.
        in_force: at the time that was asked for.
        when: what a reply must state; empty for the list price.
        times: what token rates are multiplied by, None for rates of its own.
    """

    price_id: str
    valid: str
    in_force: bool
    when: dict[str, str]
    rates: dict[str, str]
    times: str | None = None


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of the catalogue, whole."""

    section: str
    model: str
    name: str | None
    context_window: int | None
    periods: tuple[Period, ...]


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One rate that two catalogues do not agree on; None where one of them has it not."""

    kind: Literal["added", "removed", "changed"]
    section: str
    model: str
    dimension: str
    before: str | None
    after: str | None


def listed(catalogue: Catalogue, at_unix_s: int, section: str | None = None) -> Iterator[Listed]:
    """Yield what each model costs then; a model without a price then is left out."""
    seen: set[tuple[str, str]] = set()
    for place, entry in catalogue.entries():
        key = (place, entry.model.id)
        if key in seen or section not in (None, place):
            continue
        seen.add(key)
        card = _card(catalogue, place, entry, at_unix_s)
        if card is not None and card.rates:
            yield Listed(
                section=place, model=entry.model.id, price_id=card.price_id, rates=_rates(card.rates)
            )


def shown(catalogue: Catalogue, name: str, at_unix_s: int) -> list[Shown]:
    """Return the entries of a model: `section/model`, or a bare name in every section that knows it."""
    found: list[Shown] = []
    for place in dict.fromkeys(place for place, _ in catalogue.entries()):
        bare = name.removeprefix(f"{place}/")
        entries = catalogue.find(place, bare) or (catalogue.find(place, name) if bare != name else [])
        found += [_shown(place, entry, at_unix_s) for entry in entries]
    return found


def differences(before: Catalogue, after: Catalogue, at_unix_s: int) -> Iterator[Difference]:
    """Yield what changes between two catalogues, at a time."""
    old = {(row.section, row.model): row.rates for row in listed(before, at_unix_s)}
    new = {(row.section, row.model): row.rates for row in listed(after, at_unix_s)}
    for key in sorted(old.keys() | new.keys()):
        left, right = old.get(key, {}), new.get(key, {})
        for dimension in (name for name in DIMENSIONS if name in left or name in right):
            was, now = left.get(dimension), right.get(dimension)
            if was != now:
                yield Difference(
                    kind="added" if was is None else "removed" if now is None else "changed",
                    section=key[0],
                    model=key[1],
                    dimension=dimension,
                    before=was,
                    after=now,
                )


def _card(catalogue: Catalogue, place: str, entry: Entry, at_unix_s: int) -> RateCard | None:
    """Return the entry's card then; where it is the operator's and not in force, the shipped one's."""
    card = entry.card(at_unix_s, ())[0]
    return card if card is not None else catalogue.card("", place, entry.model.id, at_unix_s)


def _shown(section: str, entry: Entry, at_unix_s: int) -> Shown:
    card = entry.card(at_unix_s, ())[0]
    return Shown(
        section=section,
        model=entry.model.id,
        name=entry.model.name,
        context_window=entry.model.context_window,
        periods=(
            *[
                Period(
                    price_id=period.price_id,
                    valid=_valid(period.validity),
                    in_force=card is not None and card.price_id == period.price_id,
                    when={},
                    rates=_rates(period.rates),
                )
                for period in entry.periods
            ],
            *[_variant(variant, at_unix_s) for variant in entry.variants],
        ),
    )


def _variant(variant: Variant, at_unix_s: int) -> Period:
    return Period(
        price_id="+" + ",".join([f"{name}={value}" for name, value in sorted(variant.when.items())]),
        valid=_valid(variant.validity),
        in_force=variant.validity.active(at_unix_s),
        when=variant.when,
        rates=_rates(variant.rates),
        times=None if variant.multiplier == (1, 1) else factor_to_text(variant.multiplier),
    )


def _rates(rates: dict[str, Rate]) -> dict[str, str]:
    return {name: _rate(name, rates[name]) for name in DIMENSIONS if name in rates}


def _rate(dimension: str, rate: Rate) -> str:
    units, per = (1_000_000, "/1M") if DIMENSIONS[dimension].unit == "token" else (1, "/1")
    steps = "".join([f", above {start} tokens {rate_to_usd(price, units)}" for start, price in rate.tiers])
    return f"{rate_to_usd(rate.base, units)}{per}{steps}"


def _valid(validity: Validity) -> str:
    words: list[str] = []
    if validity.from_unix_s is not None:
        words.append(f"from {_day(validity.from_unix_s)}")
    if validity.until_unix_s is not None:
        words.append(f"until {_day(validity.until_unix_s)}")
    if validity.day_from_s is not None and validity.day_to_s is not None:
        words.append(f"each day {_time(validity.day_from_s)} to {_time(validity.day_to_s)} UTC")
    return " ".join(words) or "always"


def _day(unix_s: int) -> str:
    when = _EPOCH + datetime.timedelta(seconds=unix_s)
    return when.date().isoformat() if unix_s % 86_400 == 0 else when.isoformat().replace("+00:00", "Z")


def _time(second: int) -> str:
    return f"{second // 3600:02d}:{second // 60 % 60:02d}"
