"""Catalogue: which rates were in force for a model at a time; unknown stays unknown.

A name is looked up in three layers: the overrides of the configuration, the operator's own catalogue file,
and the rates that ship with the gateway. The first layer that has a price in force for the name gives all of
it; nothing is mixed. No near miss is ever priced: `None` becomes the state `unpriced`. The content hash
covers everything that can change a price, so a bill says exactly from which catalogue it came.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Final

import msgspec

from gateway.core.dimensions import DIMENSIONS
from gateway.pricing.entries import Context, Entry, Model, Section, compiled, fits, model_mistake
from gateway.pricing.rates import ALWAYS, Exchange, RateCard, parse_rates

MEMO_MAX: Final = 4096
"""Answers remembered; callers choose names, so the memo starts over when it is full."""
HASH_HEX: Final = 16

Rates = Mapping[str, str | int]
"""Written rates by dimension."""


class CatalogueError(Exception):
    """The catalogue or an override cannot be used; the message says where and why, one mistake a line."""


class _File(msgspec.Struct, frozen=True):
    source: str
    unit: str
    providers: dict[str, msgspec.Raw]


class Layer:
    """One source of rates.

    Args:
        sections: models by provider; undecoded where the data is trusted and large.
        always: see `Entry`.
    """

    def __init__(
        self, sections: Mapping[str, Section | msgspec.Raw], exchange: Exchange, *, always: bool
    ) -> None:
        self._sections = dict(sections)
        self._exchange = exchange
        self._always = always
        self._entries: dict[tuple[str, str], Entry] = {}

    def names(self) -> list[str]:
        """Return the names of its sections."""
        return list(self._sections)

    def section(self, name: str) -> Section | None:
        """Return one section, decoded at its first use."""
        found = self._sections.get(name)
        if isinstance(found, msgspec.Raw):
            found = self._sections[name] = msgspec.json.decode(found, type=Section)
        return found

    def find(self, section: str, model: str) -> Entry | None:
        """Return the entry of a model, by its name or, where that has none, with its date dashed."""
        name = model.lower()
        first = self.section(section)
        if first is None:
            return None
        for candidate in dict.fromkeys((name, _dashed_date(name))):
            for place in (section, *first.fallback):  # one step of fallback, as the data means it
                known = self.section(place)
                for entry in known.models if known is not None else ():
                    if fits(entry, candidate):
                        return self.entry(place, entry)
        return None

    def entry(self, section: str, model: Model) -> Entry:
        """Return one model's entry, compiled at its first use."""
        entry = self._entries.get((section, model.id))
        if entry is None:
            home = self.section(section)
            multipliers = [] if home is None else home.multipliers
            entry = compiled(section, model, multipliers, self._exchange, always=self._always)
            self._entries[section, model.id] = entry
        return entry


class _Answer(msgspec.Struct, frozen=True):
    card: RateCard | None
    since: int
    until: int


class Catalogue:
    """All rates of one gateway.

    Args:
        data: the compiled catalogue, as `gateway.pricing.importer` writes it.
        overrides: `provider/model` -> dimension -> rate (see `gateway.pricing.rates`).
        own: the operator's catalogue file, read and checked (see `gateway.pricing.own`), and its content.
        exchange: USD for one unit of other currencies.
        fallback: rates for models without any; None leaves them unpriced.
        salt: whatever else decides what is charged, for the hash: adjustments.

    Raises:
        CatalogueError: naming the entry that cannot be used.
    """

    def __init__(
        self,
        data: bytes,
        overrides: Mapping[str, Rates] | None = None,
        *,
        own: tuple[Mapping[str, Section], bytes] | None = None,
        exchange: Exchange | None = None,
        fallback: Rates | None = None,
        salt: bytes = b"",
    ) -> None:
        try:
            parsed = msgspec.json.decode(data, type=_File)
        except ValueError as fault:  # msgspec's own, and text that is no UTF-8
            raise CatalogueError(f"the rate catalogue cannot be read: {fault}") from fault
        for name, raw in parsed.providers.items():
            for mistake in section_mistakes(name, raw, exchange or {}):
                raise CatalogueError(f"the rate catalogue: {mistake}")
        overrides, exchange = overrides or {}, exchange or {}
        self.hash = _hash(data, overrides, own, exchange, fallback, salt)
        self.source = parsed.source
        self._overrides = {name: _override(name, rates, exchange) for name, rates in overrides.items()}
        shipped = Layer(parsed.providers, exchange, always=True)
        self._layers = (shipped,) if own is None else (Layer(own[0], exchange, always=False), shipped)
        self.fallback = None if not fallback else _fallback(fallback, exchange)
        self._memo: dict[tuple[str, str, str, Context], _Answer] = {}

    def card(
        self, provider: str, section: str, model: str, at_unix_s: int, context: Context = ()
    ) -> RateCard | None:
        """Return the rates in force, or None: unpriced.

        Args:
            provider: name of the provider's card, for the operator's overrides.
            section: provider id in the catalogue.
            model: as the provider named the model that served.
            context: what the reply states that decides its rates.
        """
        key = (provider, section, model, context)
        answer = self._memo.get(key)
        if answer is None or not answer.since <= at_unix_s < answer.until:
            if len(self._memo) >= MEMO_MAX:
                self._memo.clear()
            answer = self._memo[key] = self._answer(provider, section, model, at_unix_s, context)
        return answer.card

    def models(self, section: str) -> list[Model]:
        """Return the models of one provider of the catalogue, the operator's own first."""
        known: dict[str, Model] = {}
        for layer in self._layers:
            found = layer.section(section)
            for model in found.models if found is not None else ():
                known.setdefault(model.id, model)
        return list(known.values())

    def find(self, section: str, model: str) -> list[Entry]:
        """Return every entry that a name has in a section, the operator's own first."""
        found = [layer.find(section, model) for layer in self._layers]
        return [entry for entry in found if entry is not None]

    def entries(self) -> Iterator[tuple[str, Entry]]:
        """Yield (section, entry) of every model, the operator's own first."""
        for layer in self._layers:
            for name in layer.names():
                section = layer.section(name)
                for model in section.models if section is not None else ():
                    yield name, layer.entry(name, model)

    def _answer(self, provider: str, section: str, model: str, at_unix_s: int, context: Context) -> _Answer:
        own = self._overrides.get(f"{provider}/{model}")
        if own is not None:
            return _Answer(own.card(at_unix_s, context)[0], *ALWAYS)
        since, until = ALWAYS
        for layer in self._layers:
            entry = layer.find(section, model)
            if entry is None:
                continue
            card, window = entry.card(at_unix_s, context)
            since, until = max(since, window[0]), min(until, window[1])
            if card is not None:
                return _Answer(card, since, until)
        return _Answer(None, since, until)


def section_mistakes(name: str, raw: Section | msgspec.Raw, exchange: Exchange) -> Iterator[str]:
    """Yield what is wrong with a section: it must stop the start, and not a request's bill."""
    try:
        section = raw if isinstance(raw, Section) else msgspec.json.decode(raw, type=Section)
    except (ValueError, RecursionError) as fault:
        yield f"{name} cannot be used: {fault}"
        return
    for model in section.models:
        mistake = model_mistake(name, model, section.multipliers, exchange)
        if mistake is not None:
            yield f"{name}/{model.id} cannot be used: {mistake}"


def _dashed_date(name: str) -> str:
    """Return `…-20251211` as `…-2025-12-11`; some gateways emit the compact form."""
    return re.sub(r"-(20\d\d)(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(?=-|:|$)", r"-\1-\2-\3", name)


def _hash(
    data: bytes,
    overrides: Mapping[str, Rates],
    own: tuple[Mapping[str, Section], bytes] | None,
    exchange: Exchange,
    fallback: Rates | None,
    salt: bytes,
) -> str:
    digest = hashlib.sha256(data)
    digest.update(msgspec.json.encode(overrides, order="deterministic"))
    rest = (
        {name: f"{rate:f}" for name, rate in exchange.items()},
        fallback or {},
        None if own is None else own[1],
        salt,
    )
    if any(rest):
        digest.update(msgspec.json.encode(rest, order="deterministic"))
    return digest.hexdigest()[:HASH_HEX]


def _override(name: str, rates: Rates, exchange: Exchange) -> Entry:
    if "/" not in name:
        raise CatalogueError(f"prices.overrides: {name!r} must be `provider/model`")
    _check_names(f"prices.overrides: {name}", rates)
    model = Model(id=name, prices=[{"id": f"override:{name}", "rates": dict(rates)}])
    try:
        return compiled("override", model, [], exchange, always=True)
    except ValueError as fault:
        raise CatalogueError(f"prices.overrides: {name}: {fault}") from fault


def _fallback(rates: Rates, exchange: Exchange) -> RateCard:
    _check_names("prices.fallback", rates)
    try:
        return RateCard(price_id="fallback", rates=parse_rates(rates, exchange), estimated=True)
    except ValueError as fault:
        raise CatalogueError(f"prices.fallback: {fault}") from fault


def _check_names(where: str, rates: Rates) -> None:
    for dimension in rates:
        if dimension not in DIMENSIONS:
            raise CatalogueError(f"{where}: {dimension!r} is not one of {', '.join(DIMENSIONS)}")


def nothing_shipped() -> bytes:
    """Return the data of a catalogue without models, for a file that is looked at alone."""
    return b'{"source":"none","unit":"USD","providers":{}}'


def packaged_rates() -> bytes:
    """Return the catalogue that ships with the gateway."""
    return files("gateway.pricing").joinpath("rates.json").read_bytes()
