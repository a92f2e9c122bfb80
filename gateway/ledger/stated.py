"""Stated: a line of the journal as its span's attributes, each of the type that the databases take."""

from __future__ import annotations

from typing import Any, Final, Generic, Literal, TypeVar

import msgspec

from gateway.core.dimensions import DIMENSIONS
from otel.schema import ATTRIBUTES, REVISION_ATTRIBUTES

Facts = dict[str, Any]
"""Attributes by name; each is of the type that `otel.schema` gives it, or the databases would refuse it."""


Counted = tuple[tuple[str, str], ...]
"""Attribute and dimension of each count that a bill has, in the order of the dimensions."""


class _String(msgspec.Struct, frozen=True, gc=False):
    stringValue: str  # noqa: N815  # OTLP's own names


class _Strings(msgspec.Struct, frozen=True, gc=False):
    values: list[_String] = []


class _Value(msgspec.Struct, frozen=True, gc=False):
    stringValue: str | None = None  # noqa: N815
    intValue: str | None = None  # noqa: N815
    doubleValue: float | None = None  # noqa: N815
    boolValue: bool | None = None  # noqa: N815
    arrayValue: _Strings | None = None  # noqa: N815


_Name = TypeVar("_Name")
_known: Any = Literal[tuple(attribute.name for attribute in (*ATTRIBUTES, *REVISION_ATTRIBUTES))]
"""Each of these names is one and the same object whenever it is decoded, whose hash is known."""


class _Pair(msgspec.Struct, Generic[_Name], frozen=True, gc=False):
    key: _Name
    value: _Value


class Span(msgspec.Struct, Generic[_Name], frozen=True, rename="camel"):
    """What a ledger takes of a span."""

    trace_id: str
    span_id: str
    start_time_unix_nano: str
    end_time_unix_nano: str
    attributes: list[_Pair[_Name]]


class _Scope(msgspec.Struct, Generic[_Name], frozen=True, rename="camel"):
    spans: list[Span[_Name]]


class _Resource(msgspec.Struct, Generic[_Name], frozen=True, rename="camel"):
    scope_spans: list[_Scope[_Name]]


_decode_known: Final = msgspec.json.Decoder(_Resource[_known]).decode
_decode_any: Final = msgspec.json.Decoder(_Resource[str]).decode
_COUNTS: Final = {"gen_ai.usage.cache_creation.input_tokens": "cache_write"} | {
    dimension.attribute: name for name, dimension in DIMENSIONS.items()
}
_SHAPES_MAX: Final = 10_000
"""Remembered sets of names; a journal has a few dozen of them, so the memo starts over when it is full."""
_shapes: Final[dict[tuple[str, ...], Counted]] = {}
_NUL: Final = b"\\u0000"


def span_of(inner: bytes) -> Span[str]:
    """Return the one span of a line, given the inside of its `resourceSpans`.

    Raises:
        ValueError: there is not exactly one (msgspec's errors are such).
    """
    escape = inner.find(b"\\")  # the first one stands near the end, in lines of a cost
    if escape >= 0 and inner.find(_NUL, escape) >= 0:  # PostgreSQL's text has none
        inner = inner.replace(_NUL, b"\\ufffd")
    try:
        resource: _Resource[str] = _decode_known(inner)
    except msgspec.ValidationError:  # perhaps of a name that only a newer version knows
        resource = _decode_any(inner)
    (scope,) = resource.scope_spans
    (span,) = scope.spans
    return span


def facts_of(span: Span[str]) -> Facts:
    """Return the attributes of a span."""
    facts: Facts = {}
    for pair in span.attributes:
        value = pair.value
        if (text := value.stringValue) is not None:
            facts[pair.key] = text
        elif (digits := value.intValue) is not None:
            facts[pair.key] = int(digits)
        elif value.doubleValue is not None:
            facts[pair.key] = value.doubleValue
        elif value.boolValue is not None:
            facts[pair.key] = value.boolValue
        elif value.arrayValue is not None:
            facts[pair.key] = [item.stringValue for item in value.arrayValue.values]
    return facts


def counts_in(a: Facts) -> Counted:
    """Return the counts that a bill has."""
    names = tuple(a)
    found = _shapes.get(names)
    if found is None:
        if len(_shapes) >= _SHAPES_MAX:
            _shapes.clear()
        found = _shapes[names] = tuple((name, of) for name, of in _COUNTS.items() if name in a)
    return found
