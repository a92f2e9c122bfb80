"""Stated: a line of the journal as its span's attributes, each of the type that the databases take."""

from __future__ import annotations

from typing import Any, Final

import msgspec

Facts = dict[str, Any]
"""Attributes by name; each is of the type that `otel.schema` gives it, or the databases would refuse it."""


class _Strings(msgspec.Struct, frozen=True, gc=False):
    values: list[dict[str, str]] = []


class _Value(msgspec.Struct, frozen=True, gc=False):
    stringValue: str | None = None  # noqa: N815  # OTLP's own names
    intValue: str | None = None  # noqa: N815
    doubleValue: float | None = None  # noqa: N815
    boolValue: bool | None = None  # noqa: N815
    arrayValue: _Strings | None = None  # noqa: N815


class _Pair(msgspec.Struct, frozen=True, gc=False):
    key: str
    value: _Value


class Span(msgspec.Struct, frozen=True, rename="camel"):
    """What a ledger takes of a span."""

    trace_id: str
    span_id: str
    start_time_unix_nano: str
    end_time_unix_nano: str
    attributes: list[_Pair]


class _Scope(msgspec.Struct, frozen=True, rename="camel"):
    spans: list[Span]


class _Resource(msgspec.Struct, frozen=True, rename="camel"):
    scope_spans: list[_Scope]


_decode: Final = msgspec.json.Decoder(_Resource).decode
_NOTHING: Final = object()
"""The value of an attribute of a type that we do not know."""
_NUL: Final = b"\\u0000"


def span_of(inner: bytes) -> Span:
    """Return the one span of a line, given the inside of its `resourceSpans`.

    Raises:
        ValueError: there is not exactly one (msgspec's errors are such).
    """
    escape = inner.find(b"\\")  # the first one stands near the end, in lines of a cost
    if escape >= 0 and inner.find(_NUL, escape) >= 0:  # PostgreSQL's text has none
        inner = inner.replace(_NUL, b"\\ufffd")
    (scope,) = _decode(inner).scope_spans
    (span,) = scope.spans
    return span


def facts_of(span: Span) -> Facts:
    """Return the attributes of a span."""
    facts = {
        pair.key: text
        if (text := (value := pair.value).stringValue) is not None
        else int(digits)
        if (digits := value.intValue) is not None
        else _other(value)
        for pair in span.attributes
    }
    if _NOTHING in facts.values():
        return {name: value for name, value in facts.items() if value is not _NOTHING}
    return facts


def _other(value: _Value) -> object:
    if value.doubleValue is not None:
        return value.doubleValue
    if value.boolValue is not None:
        return value.boolValue
    if value.arrayValue is not None:
        return [item["stringValue"] for item in value.arrayValue.values]
    return _NOTHING
