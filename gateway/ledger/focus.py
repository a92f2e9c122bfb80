"""FOCUS: bills as rows of the FinOps Open Cost and Usage Specification 1.2, one for each charge of a UTC day.

A row is the sum of the same line of the same price for one key and one model on one day; the rows of a range
add up to its cost, to the last digit. Corrected bills stand with what they cost now: an export of a month
replaces an earlier one of it. A bill without a cost has a row of its own, whose cost must be a number by the
specification: `x_BillStatus` says that it is not known.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Final, Literal

import msgspec
from sqlalchemy import ColumnElement, Connection, Select, exists, func, literal, null, select

from gateway.core.dimensions import DIMENSIONS
from gateway.ledger import schema
from gateway.ledger.expiry import horizon_of
from gateway.ledger.instants import SECOND_NS, second
from gateway.ledger.periods import Period
from gateway.ledger.records import cell
from gateway.ledger.rollups import counts, whole
from gateway.ledger.schema import DAY_NS, PICO_PER_MILLI, total_pico

Kind = Literal["text", "decimal", "time", "count"]
Charge = dict[str, str | int | Decimal | None]

ROWS_MAX: Final = 500_000
"""Rows of one day."""
ACCOUNT: Final = "spanbill"
"""Billing account, where none is named."""
UNKNOWN: Final = "unknown"

COLUMNS: Final[Mapping[str, tuple[Kind, bool]]] = {
    "BilledCost": ("decimal", False),
    "BillingAccountId": ("text", False),
    "BillingAccountName": ("text", True),
    "BillingCurrency": ("text", False),
    "BillingPeriodEnd": ("time", False),
    "BillingPeriodStart": ("time", False),
    "ChargeCategory": ("text", False),
    "ChargeClass": ("text", True),
    "ChargeDescription": ("text", True),
    "ChargeFrequency": ("text", False),
    "ChargePeriodEnd": ("time", False),
    "ChargePeriodStart": ("time", False),
    "ConsumedQuantity": ("decimal", True),
    "ConsumedUnit": ("text", True),
    "ContractedCost": ("decimal", False),
    "ContractedUnitPrice": ("decimal", True),
    "EffectiveCost": ("decimal", False),
    "InvoiceId": ("text", True),
    "InvoiceIssuerName": ("text", False),
    "ListCost": ("decimal", False),
    "ListUnitPrice": ("decimal", True),
    "PricingCategory": ("text", True),
    "PricingQuantity": ("decimal", True),
    "PricingUnit": ("text", True),
    "ProviderName": ("text", False),
    "PublisherName": ("text", False),
    "RegionId": ("text", True),
    "RegionName": ("text", True),
    "ResourceId": ("text", True),
    "ResourceName": ("text", True),
    "ResourceType": ("text", True),
    "ServiceCategory": ("text", False),
    "ServiceName": ("text", False),
    "ServiceSubcategory": ("text", False),
    "SkuId": ("text", True),
    "SkuMeter": ("text", True),
    "SkuPriceDetails": ("text", True),
    "SkuPriceId": ("text", True),
    "SubAccountId": ("text", True),
    "SubAccountName": ("text", True),
    "SubAccountType": ("text", True),
    "Tags": ("text", True),
    "x_BillStatus": ("text", False),
    "x_Requests": ("count", False),
}
"""Each column with its kind, and whether it may be null; by the names of FOCUS 1.2, in their order."""

_UNITS: Final = {
    "token": "Tokens",
    "call": "Calls",
    "image": "Images",
    "second": "Seconds",
    "page": "Pages",
    "character": "Characters",
}
_MILLION: Final = 1_000_000
_PER_MILLION: Final = "1M"
_RATE_CHARS_MAX: Final = 80
_PICO: Final = Decimal(1).scaleb(-12)


class TooManyRows(ValueError):
    """A day has more rows than are held at a time."""


class RowsGone(ValueError):
    """Bills of the period are in sums only."""


def days_in(connection: Connection, period: Period) -> list[Period]:
    """Return the UTC days of a period that can hold bills, as far as they are in it.

    Raises:
        RowsGone: it begins before the bills that are still rows; a period without a beginning begins there.
    """
    horizon_ns = horizon_of(connection)
    if 0 < period.start_ns < horizon_ns:
        raise RowsGone(f"bills before {second(horizon_ns)} are in sums only; begin there")
    ended = schema.bills.c.ended_unix_ns
    first, last = (connection.execute(select(of(ended))).scalar() for of in (func.min, func.max))
    if first is None or last is None:
        return []
    start, end = max(period.start_ns, first // DAY_NS * DAY_NS), min(period.end_ns, last + 1)
    return [
        Period(max(start, day * DAY_NS), min(period.end_ns, (day + 1) * DAY_NS))
        for day in range(start // DAY_NS, -(-end // DAY_NS))
    ]


def charges_of(connection: Connection, day: Period, account: str) -> list[Charge]:
    """Return the rows of one day.

    Raises:
        TooManyRows: there are more than ROWS_MAX.
    """
    rows: list[Charge] = []
    for statement in (_lines(day), _without_cost(day)):
        found = connection.execute(statement.limit(ROWS_MAX + 1 - len(rows))).mappings()
        rows += [_charge(dict(row), day, account) for row in found]
    if len(rows) > ROWS_MAX:
        raise TooManyRows(f"{second(day.start_ns)} has more than {ROWS_MAX} rows; export a shorter range")
    return rows


def _lines(day: Period) -> Select[Any]:
    bills, lines = schema.bills, schema.lines
    cost = lines.c.cost_pico
    rest = cost.op("%", return_type=cost.type)(literal(PICO_PER_MILLI, cost.type))
    own: tuple[ColumnElement[Any], ...] = (lines.c.kind, lines.c.dimension, lines.c.model, lines.c.rate)
    keys = (bills.c.account_id, bills.c.route_id, bills.c.rate_id, bills.c.status, *own)
    sums = (
        select(
            *keys,
            func.count().label("requests"),
            func.sum(lines.c.units).label("units"),
            func.sum(whole(cost, PICO_PER_MILLI)).label("milli"),
            func.sum(rest).label("rest"),
        )
        .join(lines, (lines.c.record_id == bills.c.record_id) & (lines.c.revision == bills.c.revision))
        .where(*_in(day), cost.is_not(None))
        .group_by(*keys)
        .subquery("sums")
    )
    columns = [sums.c[name] for name in ("kind", "dimension", "rate", "units", "milli", "rest")]
    return _named(sums, [*columns, sums.c.model.label("line_model")])


def _without_cost(day: Period) -> Select[Any]:
    """Return the bills of which no line has a cost: errors that are not charged, and what is not known."""
    bills, lines = schema.bills, schema.lines
    charged = exists().where(
        lines.c.record_id == bills.c.record_id,
        lines.c.revision == bills.c.revision,
        lines.c.cost_pico.is_not(None),
    )
    keys = (bills.c.account_id, bills.c.route_id, bills.c.rate_id, bills.c.status)
    sums = (
        select(*keys, func.count().label("requests"))
        .where(*_in(day), ~charged)
        .group_by(*keys)
        .subquery("sums")
    )
    unknown = [null().label(name) for name in ("kind", "dimension", "rate", "units", "line_model")]
    return _named(sums, [*unknown, literal(0).label("milli"), literal(0).label("rest")])


def _in(day: Period) -> tuple[ColumnElement[bool], ...]:
    ended = schema.bills.c.ended_unix_ns
    return (ended >= day.start_ns, ended < day.end_ns, counts(schema.bills))


def _named(sums: Any, columns: Sequence[ColumnElement[Any]]) -> Select[Any]:
    accounts, routes, rates = schema.accounts, schema.routes, schema.rates
    shared = [c for table in (accounts, routes, rates) for c in table.c if c.name != "id"]
    return (
        select(sums.c.status, sums.c.requests, *columns, *shared)
        .select_from(sums)
        .join(accounts, accounts.c.id == sums.c.account_id)
        .join(routes, routes.c.id == sums.c.route_id)
        .outerjoin(rates, rates.c.id == sums.c.rate_id)
    )


def _charge(row: dict[str, Any], day: Period, account: str) -> Charge:
    kind, dimension = row["kind"], row["dimension"]
    cost = Decimal(total_pico(int(row["milli"]), int(row["rest"]))) * _PICO
    provider = row["provider"] or UNKNOWN
    model = row["line_model"] or row["model"]
    month_start, month_end = _month(day.start_ns)
    sku = None if dimension is None else f"{provider}/{model}/{dimension}"
    price = [str(part) for part in (sku, row["price_id"], row["tier"]) if part is not None]
    return {
        "BilledCost": cost,
        "BillingAccountId": account,
        "BillingAccountName": account,
        "BillingCurrency": "USD",
        "BillingPeriodEnd": month_end,
        "BillingPeriodStart": month_start,
        "ChargeCategory": "Usage" if kind in ("charge", None) else "Adjustment",
        "ChargeClass": None,
        "ChargeDescription": _description(row, provider, model),
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodEnd": day.end_ns,
        "ChargePeriodStart": day.start_ns,
        "ContractedCost": cost,
        "EffectiveCost": cost,
        "InvoiceId": None,
        "InvoiceIssuerName": provider,
        "ListCost": cost,
        **_quantities(row),
        "ProviderName": provider,
        "PublisherName": provider,
        "RegionId": None,
        "RegionName": None,
        "ResourceId": row["key_id"],
        "ResourceName": row["key_id"],
        "ResourceType": "Virtual key",
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": f"{provider} {row['operation'] or 'inference'}",
        "ServiceSubcategory": "Generative AI",
        "SkuId": sku,
        "SkuMeter": dimension,
        "SkuPriceDetails": None,
        "SkuPriceId": None if sku is None else "/".join(price),
        "SubAccountId": row["user_id"],
        "SubAccountName": row["user_name"],
        "SubAccountType": "User",
        "Tags": _tags(row),
        "x_BillStatus": row["status"],
        "x_Requests": int(row["requests"]),
    }


def _quantities(row: dict[str, Any]) -> Charge:
    """Return what was used and what one of it costs; adjustments have neither."""
    found: Charge = dict.fromkeys(
        (
            "ConsumedQuantity",
            "ConsumedUnit",
            "ContractedUnitPrice",
            "ListUnitPrice",
            "PricingCategory",
            "PricingQuantity",
            "PricingUnit",
        )
    )
    if row["kind"] is None:
        count = Decimal(int(row["requests"]))
        unit = "Requests"
        return found | {
            "ConsumedQuantity": count,
            "ConsumedUnit": unit,
            "PricingQuantity": count,
            "PricingUnit": unit,
        }
    if row["kind"] != "charge":
        return found
    dimension = DIMENSIONS.get(row["dimension"])
    unit = _UNITS[dimension.unit if dimension is not None else "token"]
    units = Decimal(int(row["units"] if row["units"] is not None else row["requests"]))
    price, per_million = _price(row["rate"])
    return found | {
        "ConsumedQuantity": units,
        "ConsumedUnit": unit,
        "ContractedUnitPrice": price,
        "ListUnitPrice": price,
        "PricingCategory": "Standard",
        "PricingQuantity": units / _MILLION if per_million else units,
        "PricingUnit": f"{_MILLION} {unit}" if per_million else unit,
    }


def _price(rate: str | None) -> tuple[Decimal | None, bool]:
    """Return the price of one unit as it was multiplied, and whether a million is one unit.

    Args:
        rate: as the lines of a bill have it: `2.50/1M`, `0.01/1`, `2.50/1M x 1.1`.
    """
    if rate is None or len(rate) > _RATE_CHARS_MAX:
        return None, False
    per_unit, _, times = rate.partition(" x ")
    price, _, per = per_unit.partition("/")
    if per not in (_PER_MILLION, "1"):
        return None, False
    try:
        return Decimal(price) * Decimal(times or 1), per == _PER_MILLION
    except InvalidOperation:
        return None, False


def _description(row: dict[str, Any], provider: str, model: str) -> str:
    if row["kind"] is None:
        return f"{provider} {model}: requests without a charge ({row['status']})"
    return f"{provider} {model}: {row['dimension']}" + (
        "" if row["kind"] == "charge" else f" ({row['kind']})"
    )


def _tags(row: dict[str, Any]) -> str | None:
    tags = {name: row[name] for name in ("team", "project") if row[name] is not None}
    own = () if row["tags"] is None else msgspec.json.decode(row["tags"], type=tuple[str, ...])
    found = {**dict.fromkeys(own, "true"), **tags}
    return msgspec.json.encode(found).decode() if found else None


def _month(unix_ns: int) -> tuple[int, int]:
    day = datetime.fromtimestamp(unix_ns // SECOND_NS, UTC)
    start = datetime(day.year, day.month, 1, tzinfo=UTC)
    end = datetime(day.year + day.month // 12, day.month % 12 + 1, 1, tzinfo=UTC)
    return int(start.timestamp()) * SECOND_NS, int(end.timestamp()) * SECOND_NS


def csv_head() -> bytes:
    """Return the line of the names."""
    return _csv([list(COLUMNS)])


def csv_rows(rows: Iterable[Charge]) -> bytes:
    """Return one line a row; a null is an empty cell, a number has no exponent."""
    return _csv(_cells(row) for row in rows)


def _cells(row: Charge) -> Iterator[str]:
    for name, (kind, _) in COLUMNS.items():
        value = row[name]
        if kind == "time":
            assert isinstance(value, int)  # no time of FOCUS may be null
            yield second(value)
        elif isinstance(value, Decimal):
            yield plain(value)
        else:
            yield cell(value)


def plain(value: Decimal) -> str:
    """Return a number without exponent and without zeros behind the point."""
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _csv(rows: Iterable[Iterable[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerows(rows)
    return text.getvalue().encode("utf-8", "replace")
