"""Own: the operator's catalogue file, read exactly and checked wholly before anything uses it.

YAML or JSON; `docs/prices.md` describes it. Numbers are decimals as they are written, never doubles. A key
that stands twice, an unknown word or a rate that cannot be used is a mistake, and all of them are listed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

from gateway.core.dimensions import DIMENSIONS
from gateway.pricing.catalogue import CatalogueError, section_mistakes
from gateway.pricing.entries import Section
from gateway.pricing.rates import Exchange

FORMAT: Final = "spanbill-prices/1"
FILE_BYTES_MAX: Final = 32 * 1024 * 1024
MISTAKES_MAX: Final = 50
"""Mistakes listed; a file with more of them is none."""
_PRICE_KEYS: Final = frozenset({"id", "from", "until", "from_time", "to_time", "rates"})
_VARIANT_KEYS: Final = (_PRICE_KEYS - {"id"}) | {"when", "multiply"}


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: str
    providers: dict[str, Section]
    source: str = ""


def read_catalogue(path: Path, exchange: Exchange) -> tuple[dict[str, Section], bytes]:
    """Return the sections of a catalogue file, and its content in one canonical form.

    Raises:
        CatalogueError: listing what is wrong with it.
    """
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise CatalogueError(f"{path}: larger than {FILE_BYTES_MAX} bytes")
        return parse_catalogue(path.read_bytes(), str(path), exchange)
    except OSError as fault:
        raise CatalogueError(f"{path}: {fault.strerror}") from fault


def parse_catalogue(data: bytes, name: str, exchange: Exchange) -> tuple[dict[str, Section], bytes]:
    """Return what `read_catalogue` returns, of a file's content.

    Raises:
        CatalogueError: listing what is wrong with it; `name` says of what.
    """
    try:
        raw = exact(data)
        found = msgspec.convert(raw, type=_File)
    except (ValueError, yaml.YAMLError, RecursionError) as fault:
        raise CatalogueError(f"{name}: {fault}") from fault
    if found.format != FORMAT:
        raise CatalogueError(f"{name}: format: must be {FORMAT}")
    content = msgspec.json.encode(found.providers, order="deterministic")
    mistakes: list[str] = []
    for mistake in _mistakes(found.providers, exchange):
        mistakes.append(mistake)
        if len(mistakes) == MISTAKES_MAX:
            break
    if mistakes:
        raise CatalogueError("\n".join([f"{name}: {mistake}" for mistake in mistakes]))
    return found.providers, content


def exact(data: bytes) -> Any:
    """Return YAML or JSON as plain values, numbers with a point as decimals.

    Raises:
        ValueError, yaml.YAMLError: it is neither, or a key stands twice.
    """
    text = data.decode("utf-8")
    if text.lstrip().startswith("{"):
        return json.loads(text, parse_float=Decimal, parse_constant=_no_number, object_pairs_hook=_once)
    return yaml.load(text, Loader=_Loader)  # noqa: S506  # a SafeLoader


def _no_number(text: str) -> object:
    raise ValueError(f"{text} is no number")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands twice")
    return found


class _Loader(yaml.SafeLoader):
    """A SafeLoader that keeps decimals exact and refuses a key that stands twice."""


def _decimal(_: yaml.SafeLoader, node: yaml.ScalarNode) -> Decimal:
    try:
        return Decimal(node.value)
    except ArithmeticError as fault:
        raise ValueError(f"{node.value!r} is no decimal") from fault


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[str, Any]:
    loader.flatten_mapping(node)
    return _once([(str(k), v) for k, v in loader.construct_pairs(node, deep=True)])


_Loader.add_constructor("tag:yaml.org,2002:float", _decimal)
_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def _mistakes(sections: Mapping[str, Section], exchange: Exchange) -> Iterator[str]:
    for name, section in sections.items():
        seen: set[str] = set()
        for model in section.models:
            if model.id.lower() in seen:
                yield f"{name}/{model.id} stands twice"
            seen.add(model.id.lower())
            yield from (f"{name}/{model.id}: {word}" for word in _unknown(model.prices, _PRICE_KEYS))
            yield from (f"{name}/{model.id}: {word}" for word in _unknown(model.variants, _VARIANT_KEYS))
        yield from (f"{name}: {word}" for word in _unknown(section.multipliers, _VARIANT_KEYS))
        for place in section.fallback:
            if place not in sections:
                yield f"{name}: fallback: there is no section {place}"
        yield from section_mistakes(name, section, exchange)


def _unknown(entries: list[dict[str, Any]], known: frozenset[str]) -> Iterator[str]:
    for entry in entries:
        yield from (f"{word!r} is not one of {', '.join(sorted(known))}" for word in entry.keys() - known)
        rates = entry.get("rates", {})
        for dimension in rates if isinstance(rates, Mapping) else ():
            if dimension not in DIMENSIONS:
                yield f"rates: {dimension!r} is not one of {', '.join(DIMENSIONS)}"
