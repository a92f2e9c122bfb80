"""Records: a bill as a flat row for JSON, CSV and JSONL, and the receipt with all its lines and revisions.

All shapes say the same with the same names. What a bill does not say is null, or an empty cell; money is the
exact decimal string in USD.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Row, Select, select

from gateway.core.money import pico_to_usd
from gateway.ledger import schema
from gateway.ledger.instants import instant
from gateway.ledger.queries import lines_of

Read = Mapping[str, Any]

_FORMULAS: Final = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet would run; callers choose some of the texts."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One bill as it counts now.

    Args:
        request_id: the correlation id of the request (`x-request-id`).
        revision: 0 as it was settled; each correction of its price counts one up.
        status: `final`, `estimated`, `unpriced` or `unmetered`.
        cost_usd: exact; None where there is no price or no usage.
        latency_us, first_chunk_us: microseconds.
    """

    request_id: str
    revision: int
    started_at: str
    ended_at: str
    status: str
    outcome: str
    error: str | None
    http_status: int | None
    api_key: str
    user: str
    user_name: str | None
    team: str | None
    project: str | None
    tags: tuple[str, ...]
    provider: str | None
    model: str
    requested_model: str
    served_model: str | None
    alias: str | None
    operation: str | None
    protocol: str | None
    stream: bool
    attempts: int
    providers_tried: tuple[str, ...]
    input_tokens: int | None
    output_tokens: int | None
    cache_read_tokens: int | None
    cache_write_tokens: int | None
    reasoning_tokens: int | None
    usage_source: str | None
    cost_usd: str | None
    reported_cost_usd: str | None
    price_id: str | None
    price_catalog: str | None
    price_tier: str | None
    service_tier: str | None
    price_source: str | None
    latency_us: int | None
    first_chunk_us: int | None
    trace_id: str
    span_id: str
    client_request_id: str | None
    session_id: str | None
    end_user: str | None


class CostLine(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a bill.

    Args:
        kind: `charge`, `count` (reported, not charged by itself), `discount`, `markup` or `fee`.
        rate: USD per million units, or what the adjustment is.
    """

    kind: str
    dimension: str
    model: str | None
    units: int | None
    rate: str | None
    cost_usd: str | None


class Revised(msgspec.Struct, frozen=True, kw_only=True):
    """A bill at one of its revisions; the highest one counts."""

    revision: int
    status: str
    cost_usd: str | None
    price_id: str | None
    price_catalog: str | None
    lines: tuple[CostLine, ...]


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """One request's bill, with every line of every revision, the oldest first."""

    record: Record
    revisions: tuple[Revised, ...]


COLUMNS: Final = Record.__struct_fields__


def record_of(row: Read) -> Record:
    """Return what a row of `gateway.ledger.queries.records` says."""
    cost = row["cost_pico"]
    return Record(
        request_id=row["record_id"],
        revision=row["revision"],
        started_at=instant(row["started_unix_ns"]),
        ended_at=instant(row["ended_unix_ns"]),
        status=row["status"],
        outcome=row["outcome"],
        error=row["error_type"],
        http_status=row["http_status"],
        api_key=row["key_id"],
        user=row["user_id"],
        user_name=row["user_name"],
        team=row["team"],
        project=row["project"],
        tags=_list(row["tags"]),
        provider=row["provider"],
        model=row["model"],
        requested_model=row["requested_model"],
        served_model=row["served_model"],
        alias=row["alias"],
        operation=row["operation"],
        protocol=row["protocol"],
        stream=bool(row["stream"]),
        attempts=row["attempts"],
        providers_tried=_list(row["providers_tried"]),
        input_tokens=row["input_tokens"],
        output_tokens=row["output_tokens"],
        cache_read_tokens=row["cache_read_tokens"],
        cache_write_tokens=row["cache_write_tokens"],
        reasoning_tokens=row["reasoning_tokens"],
        usage_source=row["usage_source"],
        cost_usd=None if cost is None else pico_to_usd(cost),
        reported_cost_usd=row["reported_cost_usd"],
        price_id=row["price_id"],
        price_catalog=row["catalog"],
        price_tier=row["tier"],
        service_tier=row["service_tier"],
        price_source=row["source"],
        latency_us=row["latency_us"],
        first_chunk_us=row["first_chunk_us"],
        trace_id=row["trace_id"],
        span_id=row["span_id"],
        client_request_id=row["client_request_id"],
        session_id=row["session_id"],
        end_user=row["end_user"],
    )


def receipt_of(connection: Connection, record_id: str) -> Receipt | None:
    """Return the bill of a request; None if the ledger has none."""
    rows = connection.execute(_revisions(record_id)).mappings().all()
    if not rows:
        return None
    lines: dict[int, list[CostLine]] = {}
    for line in connection.execute(lines_of([record_id])):
        lines.setdefault(line.revision, []).append(_line(line))
    revisions = tuple(
        Revised(
            revision=row["revision"],
            status=row["status"],
            cost_usd=None if row["cost_pico"] is None else pico_to_usd(row["cost_pico"]),
            price_id=row["price_id"],
            price_catalog=row["catalog"],
            lines=tuple(lines.get(row["revision"], ())),
        )
        for row in rows
    )
    return Receipt(record=record_of(dict(rows[-1])), revisions=revisions)


def _revisions(record_id: str) -> Select[Any]:
    bills, accounts, routes, rates = schema.bills, schema.accounts, schema.routes, schema.rates
    return (
        select(bills, *[c for t in (accounts, routes, rates) for c in t.c if c.name != "id"])
        .join(accounts, accounts.c.id == bills.c.account_id)
        .join(routes, routes.c.id == bills.c.route_id)
        .outerjoin(rates, rates.c.id == bills.c.rate_id)
        .where(bills.c.record_id == record_id)
        .order_by(bills.c.revision)
    )


def _line(row: Row[Any]) -> CostLine:
    return CostLine(
        kind=row.kind,
        dimension=row.dimension,
        model=row.model,
        units=row.units,
        rate=row.rate,
        cost_usd=None if row.cost_pico is None else pico_to_usd(row.cost_pico),
    )


def _list(text: str | None) -> tuple[str, ...]:
    return () if text is None else msgspec.json.decode(text, type=tuple[str, ...])


_json: Final = msgspec.json.Encoder().encode


def jsonl(records: Iterable[Record]) -> bytes:
    """Return one JSON object a line."""
    return b"".join(_json(record) + b"\n" for record in records)


def csv_head() -> bytes:
    """Return the line of the names."""
    return _csv([COLUMNS])


def csv_rows(records: Iterable[Record]) -> bytes:
    """Return one line a record (RFC 4180); lists are joined by `;`, null is an empty cell."""
    return _csv([[cell(getattr(record, name)) for name in COLUMNS] for record in records])


def cell(value: object) -> str:
    """Return a value as a cell that no spreadsheet takes for a formula."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        value = ";".join(value)
    text = str(value)
    return f"'{text}" if text.startswith(_FORMULAS) and not _is_amount(text) else text


def _is_amount(text: str) -> bool:
    return text[0] == "-" and text[1:].replace(".", "", 1).isdecimal() and text.isascii()


def _csv(rows: Iterable[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerows(rows)
    return text.getvalue().encode("utf-8", "replace")
