"""Projection: a settled line of the journal becomes a row, and nothing but the line decides which.

The same line gives the same row in every ledger, however often and in whatever company it is read. What a
bill does not say is NULL, never 0. A bill that no ledger can hold is refused with the reason, not bent. A
revision says only what is new, and becomes a row together with its bill (`gateway.ledger.revising`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Final

import msgspec

from gateway.core.dimensions import DIMENSIONS
from gateway.ledger.observed import observed, tally
from gateway.ledger.packing import COUNT, Line, packed
from gateway.ledger.schema import TOKENS, bills
from gateway.ledger.stated import Counted, Facts, Span, counts_in, facts_of, span_of
from otel.journal.audit.bills import STATUSES
from otel.observation import Tally, TallyLabels

Value = str | int | bool | None
Row = tuple[Value, ...]

INT64_MAX: Final = 2**63 - 1
PLACES: Final = 12
"""Digits of an amount in USD behind the point: whole pico-USD."""
DIGITS_MAX: Final = 40
WHOLE_MAX: Final = 6
"""Digits before the point that surely fit."""
UNITS_MAX: Final = 10**12
"""Units of one dimension in one bill: nine million such bills still add up within 64 bits."""
SMALL_MAX: Final = 2**31 - 1
KNOWN_MAX: Final = 50_000
"""Remembered ids; callers choose some of the names, so the memo starts over when it is full."""

SETTLED_REVISION: Final = 0
"""The revision of a bill as it was settled."""
OF: Final = "billing.revision.of"
_COST: Final = list(bills.c.keys()).index("cost_pico")
NO_RATE: Final[Row] = (None, None, None, None, None)


class Refused(ValueError):
    """A bill cannot be held by a ledger; the message says why."""


class _ChargeLine(msgspec.Struct, frozen=True):
    usd: str
    dimension: str | None = None
    id: str | None = None
    kind: str = "charge"
    units: int | None = None
    rate: str | None = None
    times: str | None = None
    percent: str | None = None
    model: str | None = None


_decode_line: Final = msgspec.json.Decoder(_ChargeLine).decode
_NUMBERS: Final = (int, float)
_TEN_TO: Final[list[int]] = [10**power for power in range(PLACES + 1)]
_CACHE_WRITE_OLDER: Final = "gen_ai.usage.cache_creation.input_tokens"
_OWN_ATTRIBUTES: Final = tuple(DIMENSIONS[name].attribute for name in TOKENS)


class Revision(msgspec.Struct, frozen=True, kw_only=True):
    """What a revision of a bill says anew; all else stays as the bill has it.

    Args:
        place: in what was projected.
        rate: as in `schema.rates`, without the id; the service tier is the bill's.
        lines: those of the cost.
    """

    place: int
    record_id: str
    number: int
    status: str
    cost_pico: int | None
    rate: Row
    lines: list[Line]


class Rows(msgspec.Struct, kw_only=True):
    """What a stretch of the journal comes to; rows have the columns of their tables, in their order.

    Args:
        accounts, routes, rates: by id, all that `bills` name.
        refused: for lines that give no row their place in what was projected, and why.
        places: for each of `bills` its place in what was projected.
        revisions: of bills here or anywhere.
        tallies: what `bills` come to in the words of the metrics.
        shard: instead of `bills` and `places`, the file that holds so many bills (`gateway.ledger.sharding`).
    """

    bills: list[Row] = []
    accounts: dict[int, Row] = {}
    routes: dict[int, Row] = {}
    rates: dict[int, Row] = {}
    refused: list[tuple[int, str]] = []
    places: list[int] = []
    revisions: list[Revision] = []
    tallies: dict[TallyLabels, Tally] = {}
    shard: tuple[str, int] | None = None


def tallies_of(spans: Iterable[bytes]) -> dict[TallyLabels, Tally]:
    """Return what bills that were projected before come to in the words of the metrics."""
    found: dict[TallyLabels, Tally] = {}
    for inner in spans:
        a = facts_of(span_of(inner))
        cost = a.get("billing.cost.usd")
        tally(found, observed(a, counts_in(a), None if cost is None else _pico(cost)))
    return found


class Projector:
    """Projects the lines of one gateway's journal."""

    def __init__(self, gateway_id: int) -> None:
        self._gateway_id = gateway_id
        self._ids: dict[Row, int] = {}

    def add(self, rows: Rows, spans: Sequence[bytes], first: int = 0) -> None:
        """Add the rows of settled lines, given the inside of each one's `resourceSpans`.

        Args:
            first: place of the first of `spans` in what is projected.
        """
        for place, inner in enumerate(spans, first):
            try:
                span = span_of(inner)
                a = facts_of(span)
                if OF in a:
                    rows.revisions.append(_revision(a, place))
                    continue
                counted = counts_in(a)
                bill = self._bill(span, a, counted, rows)
                seen = observed(a, counted, bill[_COST])  # type: ignore[arg-type]  # a cost
            except (ValueError, LookupError) as fault:  # so are msgspec's errors
                rows.refused.append((place, _reason(fault)))
                continue
            tally(rows.tallies, seen)
            rows.bills.append(bill)
            rows.places.append(place)

    def _bill(self, span: Span[str], a: Facts, counted: Counted, rows: Rows) -> Row:
        record_id = str(a["billing.record.id"])
        status = _status(a)
        get = a.get
        requested = a["gen_ai.request.model"]
        served = get("gen_ai.response.model")
        account_id = self._known(rows.accounts, _account(a))
        route_id = self._known(
            rows.routes,
            (
                get("gen_ai.operation.name"),
                get("billing.protocol"),
                get("gen_ai.provider.name"),
                served or requested,
                requested,
                served,
                get("billing.alias"),
            ),
        )
        cost = get("billing.cost.usd")
        cost_pico = None if cost is None else _pico(cost)
        rate = _rate(a)
        rate_id = None if rate == NO_RATE else self._known(rows.rates, rate)
        counts = [get(attribute) for attribute in _OWN_ATTRIBUTES]
        if counts[3] is None:
            counts[3] = get(_CACHE_WRITE_OLDER)
        for units in counts:
            if units is not None and (type(units) is not int or not 0 <= units <= UNITS_MAX):
                _bounded(units, UNITS_MAX, "a count")
        tried = get("billing.providers_tried")
        return (
            record_id,
            SETTLED_REVISION,
            self._gateway_id,
            _bounded(int(span.start_time_unix_nano), INT64_MAX, "its start"),
            _bounded(int(span.end_time_unix_nano), INT64_MAX, "its end"),
            span.trace_id,
            span.span_id,
            account_id,
            route_id,
            rate_id,
            status,
            str(a["billing.outcome"]),
            get("error.type"),
            _bounded(get("billing.http.status_code"), SMALL_MAX, "an HTTP status"),
            _bounded(a["billing.attempts"], SMALL_MAX, "the number of attempts"),
            _json(tried) if isinstance(tried, list) and len(tried) > 1 else None,
            bool(get("gen_ai.request.stream")),
            *counts,
            get("billing.usage.source"),
            cost_pico,
            get("billing.cost.reported_usd"),
            _micros(get("billing.latency_ms"), 1_000),
            _micros(get("gen_ai.response.time_to_first_chunk"), 1_000_000),
            get("billing.client.request_id"),
            get("session.id"),
            get("user.id"),
            packed(_lines(a, cost_pico) + _other_counts(a, counted)),
            True,
        )

    def _known(self, table: dict[int, Row], row: Row) -> int:
        """Return the id of what many bills share, and note that these rows need it."""
        found = self._ids.get(row)
        if found is None:
            if len(self._ids) >= KNOWN_MAX:
                self._ids.clear()
            found = self._ids[row] = id_of(row)
        table[found] = row
        return found


def id_of(value: Row | str) -> int:
    """Return the id of a value: the same in every ledger, positive and within 63 bits."""
    return int.from_bytes(blake2b(msgspec.json.encode(value), digest_size=8).digest()) >> 1


def revision_of(inner: bytes) -> Revision:
    """Return the revision of a line that was projected before, given the inside of its `resourceSpans`.

    Raises:
        ValueError, LookupError: it is none.
    """
    return _revision(facts_of(span_of(inner)), 0)


def _revision(a: Facts, place: int) -> Revision:
    cost = a.get("billing.revision.cost_usd")
    cost_pico = None if cost is None else _pico(cost)
    number = _bounded(a["billing.revision.number"], SMALL_MAX, "the number of a revision")
    if number == SETTLED_REVISION:
        raise Refused("revisions are numbered from 1")
    return Revision(
        place=place,
        record_id=str(a[OF]),
        number=number,
        status=_status(a),
        cost_pico=cost_pico,
        rate=_rate(a),
        lines=_lines(a, cost_pico),
    )


def _status(a: Facts) -> str:
    status = a["billing.status"]
    if status not in STATUSES:
        raise Refused(f"its status is {status!r}")
    return str(status)


def _rate(a: Facts) -> Row:
    """Return what is known of the price, in the order of the columns of `schema.rates`."""
    get = a.get
    return (
        get("billing.price.id"),
        get("billing.price.catalog"),
        get("billing.price.tier"),
        get("billing.service_tier"),
        get("billing.cost.source"),
    )


def _account(a: Facts) -> Row:
    tags = a.get("billing.tags")
    return (
        str(a["billing.key.id"]),
        str(a["billing.user.id"]),
        a.get("billing.user.name"),
        a.get("billing.user.source"),
        a.get("billing.team"),
        a.get("billing.project"),
        None if tags is None else _json(tags),
    )


def _lines(a: Facts, cost_pico: int | None) -> list[Line]:
    """Return the lines of the cost; none without a cost.

    Raises:
        Refused: they are not all of the cost.
    """
    if cost_pico is None:
        return []
    texts = (*a.get("billing.cost.lines", ()), *a.get("billing.cost.adjustments", ()))
    found = [_stated(_decode_line(text)) for text in texts]
    if sum([line[5] for line in found]) != cost_pico:  # type: ignore[misc]  # each has one
        raise Refused("its lines do not add up to its cost")
    return found


def _stated(line: _ChargeLine) -> Line:
    rate = line.rate if line.times is None else f"{line.rate} x {line.times}"
    if line.percent is not None:
        rate = f"{line.percent}%"
    name = line.dimension or line.id
    if name is None:
        raise Refused("a line of its cost has no name")
    units = None if line.units is None else _bounded(line.units, INT64_MAX, "units of a line")
    return (line.kind, name, line.model, units, rate, _pico(line.usd))


def _other_counts(a: Facts, counted: Counted) -> list[Line]:
    return [
        (COUNT, dimension, None, _bounded(a[name], INT64_MAX, "a count"), None, None)
        for name, dimension in counted
        if dimension not in TOKENS
    ]


def _pico(usd: object) -> int:
    """Return an exact decimal string of USD as pico-USD.

    Raises:
        Refused: it is none, or is over 9.2 million USD.
    """
    if type(usd) is not str or not usd.isascii():
        raise Refused(f"{usd!r:.60} is no exact amount of USD")
    whole, _, fraction = usd.partition(".")
    places = len(fraction)
    if whole and 0 < places <= PLACES and len(whole) <= WHOLE_MAX and (digits := whole + fraction).isdigit():
        return int(digits) * _TEN_TO[PLACES - places]  # as nearly all are
    below_zero = usd.startswith("-")
    whole, point, fraction = (usd[1:] if below_zero else usd).partition(".")
    digits = whole + fraction
    if not whole or bool(point) != bool(fraction) or len(fraction) > PLACES or not digits.isdigit():
        raise Refused(f"{usd!r:.60} is no exact amount of USD")
    pico = int(digits) * _TEN_TO[PLACES - len(fraction)] if len(digits) <= DIGITS_MAX else INT64_MAX + 1
    if pico > INT64_MAX:
        raise Refused(f"{usd:.60} USD is more than a ledger holds in one amount")
    return -pico if below_zero else pico


def _bounded(value: object, most: int, what: str) -> int:
    if value is None:
        return None  # type: ignore[return-value]  # absent stays absent
    if type(value) is not int or not 0 <= value <= most:
        raise Refused(f"{what} is {value!r}, and not a whole number from 0 to {most}")
    return value


def _micros(value: object, per: int) -> int | None:
    """Return a duration in whole microseconds; it is a time and no money, so a float may be rounded."""
    if not isinstance(value, _NUMBERS):
        return None
    return min(max(0, round(value * per)), INT64_MAX)


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _reason(fault: Exception) -> str:
    return str(fault) if isinstance(fault, Refused) else f"{type(fault).__name__}: {fault}"[:200]
