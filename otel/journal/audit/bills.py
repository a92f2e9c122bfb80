"""Bills: what one settled line says, and whether it says it without contradicting itself.

The line must be plain OTLP/JSON with exactly one span, because stock Collectors read the journal too; its
cost must be the exact sum of its cost lines. Amounts are compared as integers of 10^-12 USD.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Final

import msgspec

STATUSES: Final = ("final", "estimated", "unpriced", "unmetered")
PICO_PER_USD: Final = 10**12
NO_LINES: Final = frozenset({"billing.cost.reported_usd", "billing.cost.reported_difference_usd"})
"""Amounts of the `billing.cost.*_usd` form that are no line of the bill: the provider's own figure."""
DISCOUNT: Final = "billing.cost.discount_usd"
"""The only line that is below zero."""
INT64_MAX: Final = 2**63 - 1

_AMOUNT: Final = re.compile(r"(0|[1-9][0-9]{0,29})(?:\.([0-9]{1,12}))?", re.ASCII)
_WHOLE: Final = re.compile(r"-?[0-9]{1,19}", re.ASCII)
_KINDS: Final[dict[str, type]] = {
    "stringValue": str,
    "intValue": str,
    "doubleValue": float,
    "boolValue": bool,
    "arrayValue": dict,
    "kvlistValue": dict,
    "bytesValue": str,
}

_Hex32 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
_Hex16 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")]
_Nanos = Annotated[str, msgspec.Meta(pattern="^[0-9]{1,20}$")]


class _Plain(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """OTLP/JSON messages: members of the specification only."""


class Pair(_Plain, frozen=True):
    """One attribute."""

    key: str
    value: dict[str, Any]


class Span(_Plain, frozen=True):
    """One span; see opentelemetry/proto/trace/v1/trace.proto."""

    trace_id: _Hex32
    span_id: _Hex16
    name: str
    start_time_unix_nano: _Nanos
    end_time_unix_nano: _Nanos
    attributes: list[Pair]
    kind: int = 0
    parent_span_id: str = ""
    trace_state: str = ""
    flags: int = 0
    dropped_attributes_count: int = 0
    events: list[msgspec.Raw] = []
    dropped_events_count: int = 0
    links: list[msgspec.Raw] = []
    dropped_links_count: int = 0
    status: dict[str, str | int] = {}


class ScopeSpans(_Plain, frozen=True):
    """Spans of one scope."""

    spans: list[Span]
    scope: msgspec.Raw = msgspec.Raw(b"{}")
    schema_url: str = ""


class ResourceSpans(_Plain, frozen=True):
    """Spans of one resource."""

    scope_spans: list[ScopeSpans]
    resource: msgspec.Raw = msgspec.Raw(b"{}")
    schema_url: str = ""


class SeenSpan(msgspec.Struct, frozen=True, rename="camel"):
    """A span as others wrote it: only what a bill or a revision is recognised by; see `Span`."""

    trace_id: _Hex32
    span_id: _Hex16
    attributes: list[Pair] = []
    start_time_unix_nano: str = "0"
    end_time_unix_nano: str = "0"
    links: list[msgspec.Raw] = []


class Bill(msgspec.Struct, frozen=True, kw_only=True):
    """The facts of one bill that other records of it must agree with.

    Args:
        record_id: `billing.record.id`.
        cost_pico_usd: None where the bill has no cost.
        counts: every integer attribute of `gen_ai.usage.*` and `billing.usage.*`.
    """

    record_id: str
    trace_id: str
    span_id: str
    status: str
    outcome: str
    cost_pico_usd: int | None
    counts: dict[str, int]
    ended_unix_ns: int = 0

    def fingerprint(self) -> str:
        """Return what must be equal wherever this bill stands: its id, status, cost and counts."""
        counts = ",".join(f"{name}={count}" for name, count in sorted(self.counts.items()))
        return f"{self.record_id}|{self.status}|{self.cost_pico_usd}|{counts}"


Problem = tuple[str, str]
"""(kind of finding, in words)"""


def pico_of(amount: object) -> int | None:
    """Return an exact decimal string of USD as pico-USD; None if it is none, is negative or is finer."""
    match = _AMOUNT.fullmatch(amount) if isinstance(amount, str) else None
    if match is None:
        return None
    whole, fraction = match.groups()
    return int(whole) * PICO_PER_USD + int((fraction or "").ljust(12, "0"))


def signed_pico_of(amount: object) -> int | None:
    """Return the same of a string that may be below zero."""
    below = isinstance(amount, str) and amount.startswith("-")
    pico = pico_of(amount[1:] if isinstance(amount, str) and below else amount)
    return -pico if pico is not None and below else pico


def one_span(resource_spans: list[ResourceSpans]) -> Span | None:
    """Return the only span, None if there is none or more than one."""
    spans = [span for resource in resource_spans for scope in resource.scope_spans for span in scope.spans]
    return spans[0] if len(spans) == 1 else None


def read_bill(span: Span | SeenSpan) -> tuple[Bill, list[Problem]]:
    """Return what the span says as a bill, and everything that is wrong with it."""
    problems: list[Problem] = []
    values, counts = values_of(span, problems)
    cost = _cost(values, problems)
    problems += _by_status(values, cost)
    bill = Bill(
        record_id=_text(values, "billing.record.id"),
        trace_id=span.trace_id,
        span_id=span.span_id,
        status=_text(values, "billing.status"),
        outcome=_text(values, "billing.outcome"),
        cost_pico_usd=cost,
        counts=counts,
        ended_unix_ns=int(span.end_time_unix_nano),
    )
    problems += [("amount", f"{name} is negative") for name, count in counts.items() if count < 0]
    return bill, problems


def values_of(span: Span | SeenSpan, problems: list[Problem]) -> tuple[dict[str, Any], dict[str, int]]:
    """Return attributes by name, and those that count usage; what is wrong is added to `problems`."""
    values: dict[str, Any] = {}
    counts: dict[str, int] = {}
    for pair in span.attributes:
        name = pair.key
        value = pair.value
        kind, inner = next(iter(value.items())) if len(value) == 1 else ("", "")
        wanted = _KINDS.get(kind)
        whole_double = kind == "doubleValue" and type(inner) is int
        if wanted is None or not (type(inner) is wanted or whole_double):
            problems.append(("not_otlp", f"attribute {name} has no plain OTLP/JSON value"))
            continue
        if name in values:
            problems.append(("not_otlp", f"attribute {name} stands twice"))
        if kind == "intValue":
            if not _WHOLE.fullmatch(inner) or abs(int(inner)) > INT64_MAX:
                problems.append(("not_otlp", f"attribute {name} is no 64-bit integer"))
                continue
            inner = int(inner)
            if ".usage." in name:
                counts[name] = inner
        values[name] = inner
    if int(span.end_time_unix_nano) < int(span.start_time_unix_nano):
        problems.append(("not_otlp", "the span ends before it begins"))
    return values, counts


def _text(values: dict[str, Any], name: str) -> str:
    value = values.get(name)
    return value if isinstance(value, str) else ""


def _cost(values: dict[str, Any], problems: list[Problem]) -> int | None:
    """Return the bill's cost in pico-USD; its lines and its double must say the same."""
    total = 0
    lines = 0
    for name, value in values.items():
        if not name.startswith("billing.cost.") or not name.endswith("_usd") or name in NO_LINES:
            continue
        line = signed_pico_of(value) if name == DISCOUNT else pico_of(value)
        if line is None:
            problems.append(("amount", f"{name} = {value!r} is no exact amount"))
            continue
        total += line
        lines += 1
    stated = values.get("billing.cost.usd")
    double = values.get("gen_ai.usage.cost")
    if stated is None:
        if lines or double is not None:
            problems.append(("sum", "there are cost lines, but no billing.cost.usd"))
        return None
    cost = pico_of(stated)
    if cost is None:
        problems.append(("amount", f"billing.cost.usd = {stated!r} is no exact amount"))
        return None
    if cost != total:
        problems.append(("sum", f"billing.cost.usd is {cost} pico-USD, its lines add up to {total}"))
    if double is None or double != cost / PICO_PER_USD:
        problems.append(("double", f"gen_ai.usage.cost is {double!r}, billing.cost.usd {stated}"))
    return cost


def _by_status(values: dict[str, Any], cost: int | None) -> Iterator[Problem]:
    status = values.get("billing.status")
    has_cost = cost is not None or "billing.cost.usd" in values
    if status not in STATUSES:
        yield "status", f"billing.status is {status!r}"
    elif status in ("unpriced", "unmetered") and has_cost:
        yield "status", f"the bill is {status} and yet has a cost"
    elif status == "final" and not has_cost:
        yield "status", "the bill is final and has no cost"
