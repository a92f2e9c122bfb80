"""Cost answers: the shapes of what the cost doors say, which the OpenAPI document is made of."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from gateway.api.cost_questions import FILTERS, FOREVER, GROUPINGS, Costs
from gateway.ledger.instants import instant
from gateway.ledger.lag import AsOf
from gateway.ledger.queries import Filters
from gateway.ledger.records import Record, Revised
from gateway.ledger.totals import StatusTotal, Total, Totals


class Named(msgspec.Struct, frozen=True, kw_only=True):
    """The total of one group; `name` is null for bills that name none."""

    name: str | None
    requests: int
    priced: int
    errors: int
    cost_usd: str | None
    tokens: dict[str, int]
    by_status: dict[str, StatusTotal]


Groups = tuple[Named, ...] | UnsetType


class CostsAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """`GET /v1/costs`; a grouping that was not asked for is not there.

    Args:
        start, end: of the half-open range, null where it is open.
        filters: what the sums are narrowed to, by the question or by the key that asked.
    """

    start: str | None
    end: str | None
    tz: str
    filters: dict[str, tuple[str | None, ...]]
    as_of: AsOf
    total: Total
    object: Literal["costs"] = "costs"
    by_api_key: Groups = UNSET
    by_provider: Groups = UNSET
    by_model: Groups = UNSET
    by_user: Groups = UNSET
    by_team: Groups = UNSET
    by_project: Groups = UNSET
    by_day: Groups = UNSET


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """`GET /v1/costs/records`: `next_cursor` goes on where this page ends, whatever was added meanwhile."""

    data: tuple[Record, ...]
    has_more: bool
    next_cursor: str | None
    as_of: AsOf
    object: Literal["list"] = "list"


class ReceiptAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """`GET /v1/costs/records/{request_id}`."""

    record: Record
    revisions: tuple[Revised, ...]
    as_of: AsOf
    object: Literal["receipt"] = "receipt"


def answer_of(asked: Costs, filters: Filters, totals: Totals, held: AsOf) -> CostsAnswer:
    """Return totals as the door says them."""
    by = {
        f"by_{name}": tuple(
            Named(name=group.value, **msgspec.structs.asdict(group.total))
            for group in totals.by[GROUPINGS[name]]
        )
        for name in asked.group_by
    }
    period = asked.period
    return CostsAnswer(
        start=None if period.start_ns == FOREVER.start_ns else instant(period.start_ns),
        end=None if period.end_ns == FOREVER.end_ns else instant(period.end_ns),
        tz=asked.zone.key,
        filters={name: found for name, field in FILTERS.items() if (found := getattr(filters, field))},
        as_of=held,
        total=totals.total,
        **by,  # type: ignore[arg-type]  # the names are those of the groupings
    )
