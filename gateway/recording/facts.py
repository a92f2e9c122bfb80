"""Facts: what stands on a bill, read back: everything that decided its price and nothing else.

`billing_span` writes them and this reads them; a test holds that a bill rated again from its own span comes
out the same. Values are taken as written, in an order that no reader of the journal can change.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from gateway.core.dimensions import DIMENSIONS
from gateway.core.usage import OtherUsage, Usage, UsageSource
from gateway.recording.span import CACHE_WRITE_OLDER_NAME

_DIMENSION_OF: Final = {d.attribute: name for name, d in DIMENSIONS.items()} | {
    CACHE_WRITE_OLDER_NAME: "cache_write"
}


class PriceFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What decides the price of a bill, apart from the catalogue.

    Args:
        section: section of the catalogue.
        model: as the provider was asked; `served` as it named the one that served, None if it named none.
        at_unix_s: the second whose rates apply: the bill's end.
    """

    provider: str
    section: str
    model: str
    served: str | None
    key_id: str
    team: str | None
    at_unix_s: int
    usage: Usage


def price_facts(attributes: Mapping[str, object], ended_unix_ns: int) -> PriceFacts | None:
    """Return the facts of a billing span; None where there is nothing to rate: no provider, or no usage.

    Raises:
        ValueError: an attribute does not hold what `billing_span` writes there.
    """
    provider, section = _text(attributes, "gen_ai.provider.name"), _text(attributes, "billing.price.section")
    model, source = _text(attributes, "billing.target.model"), _text(attributes, "billing.usage.source")
    if provider is None or section is None or model is None or source is None:
        return None
    counts = {_DIMENSION_OF[name]: units for name, units in attributes.items() if name in _DIMENSION_OF}
    usage = Usage(
        counts=msgspec.convert(counts, type=dict[str, int]),
        source=msgspec.convert(source, type=UsageSource),
        service_tier=_text(attributes, "billing.service_tier"),
        reported_cost_usd=_text(attributes, "billing.cost.reported_usd"),
        qualifiers=dict([_pair(item) for item in _texts(attributes, "billing.usage.qualifiers")]),
        others=tuple(
            [
                msgspec.json.decode(item, type=OtherUsage)
                for item in _texts(attributes, "billing.usage.other_models")
            ]
        ),
    )
    return PriceFacts(
        provider=provider,
        section=section,
        model=model,
        served=_text(attributes, "gen_ai.response.model"),
        key_id=_text(attributes, "billing.key.id") or "",
        team=_text(attributes, "billing.team"),
        at_unix_s=ended_unix_ns // 1_000_000_000,
        usage=usage,
    )


def _text(attributes: Mapping[str, object], name: str) -> str | None:
    value = attributes.get(name)
    if value is None or isinstance(value, str):
        return value
    raise ValueError(f"{name} is no text")


def _texts(attributes: Mapping[str, object], name: str) -> list[str]:
    value = attributes.get(name)
    if value is None:
        return []
    if isinstance(value, tuple | list) and all(isinstance(item, str) for item in value):
        return list(value)
    raise ValueError(f"{name} is no list of texts")


def _pair(item: str) -> tuple[str, str]:
    name, equals, value = item.partition("=")
    if not equals:
        raise ValueError(f"{item!r} is no name=value")
    return name, value
