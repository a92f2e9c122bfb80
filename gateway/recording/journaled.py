"""Journaled: a span as the journal has it, read back into values: what `encode_span` wrote, reversed."""

from __future__ import annotations

from typing import Final

import msgspec

from otel.schema import Value

_END: Final = b'"endTimeUnixNano":"'
_SPANS: Final = b'"spans":['
_TAIL: Final = b"]}]}"


class Journaled(msgspec.Struct, frozen=True, kw_only=True):
    """One bill or revision; ids and times as in `otel.schema.BillingSpan`.

    Args:
        head, tail: what stands before and after the span: its resource and scope.
    """

    trace_id: str
    span_id: str
    name: str
    ended_unix_ns: int
    attributes: dict[str, Value]
    head: str
    tail: str


class _Item(msgspec.Struct, frozen=True, gc=False):
    text: str = msgspec.field(name="stringValue")


class _Array(msgspec.Struct, frozen=True, gc=False):
    values: list[_Item] = []


class _Value(msgspec.Struct, frozen=True, gc=False):
    text: str | None = msgspec.field(name="stringValue", default=None)
    whole: str | None = msgspec.field(name="intValue", default=None)
    flag: bool | None = msgspec.field(name="boolValue", default=None)
    double: float | None = msgspec.field(name="doubleValue", default=None)
    array: _Array | None = msgspec.field(name="arrayValue", default=None)


class _Pair(msgspec.Struct, frozen=True, gc=False):
    key: str
    value: _Value


class _Span(msgspec.Struct, frozen=True, rename="camel", gc=False):
    trace_id: str
    span_id: str
    name: str
    end_time_unix_nano: str
    attributes: list[_Pair]


_decoder: Final = msgspec.json.Decoder(_Span)


def ended_unix_ns(spans: bytes) -> int:
    """Return when the span of a settled line ended, without decoding it.

    A quote inside a JSON string is escaped, so that nothing else can look like this member.

    Raises:
        ValueError: it has no such time.
    """
    start = spans.index(_END) + len(_END)
    return int(spans[start : spans.index(b'"', start)])


def journaled(spans: bytes) -> Journaled:
    """Return the span of a settled line, given the inside of its `resourceSpans`.

    Raises:
        ValueError: it is not what the gateway writes (msgspec's errors are such).
    """
    start = spans.index(_SPANS) + len(_SPANS)
    if not spans.endswith(_TAIL):
        raise ValueError("no single span of ours")
    span = _decoder.decode(spans[start : -len(_TAIL)])
    return Journaled(
        trace_id=span.trace_id,
        span_id=span.span_id,
        name=span.name,
        ended_unix_ns=int(span.end_time_unix_nano),
        attributes={
            pair.key: _value(pair) if pair.value.text is None else pair.value.text for pair in span.attributes
        },
        head=spans[:start].decode(),
        tail=_TAIL.decode(),
    )


def _value(pair: _Pair) -> Value:
    value = pair.value
    if value.whole is not None:
        return int(value.whole)
    if value.array is not None:
        return tuple([item.text for item in value.array.values])
    if value.flag is not None:
        return value.flag
    if value.double is not None:
        return value.double
    raise ValueError(f"{pair.key} has no value")
