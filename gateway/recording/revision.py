"""Revision: a bill rated anew, as a span of its own that is linked to the bill's; the bill stays as it is.

Whoever sums bills must not count one twice: a revision has neither `billing.record.id` nor
`billing.cost.usd`, no usage and no `gen_ai.usage.cost`; sums of bills plus sums of
`billing.revision.delta_usd` are what is owed. It depends on nothing but the bill, the revision before it and
the charge: ids are hashes, and its time is that of the bill's end.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from hashlib import blake2b
from typing import Final, cast

import msgspec

from gateway.core.charge import BillStatus, Charge, NoRate
from gateway.core.money import pico_to_usd, usd_to_pico
from gateway.core.usage import Usage
from gateway.recording.journaled import Journaled
from gateway.recording.span import price_attributes
from otel.schema import INTERNAL, BillingSpan, Value, encode_attribute

KEPT: Final = (
    "gen_ai.provider.name",
    "gen_ai.request.model",
    "gen_ai.response.model",
    "billing.target.model",
    "billing.outcome",
    "billing.user.id",
    "billing.user.name",
    "billing.key.id",
    "billing.team",
    "billing.project",
    "billing.tags",
    "billing.price.section",
    "billing.usage.source",
)
"""What a revision repeats of its bill: what people group by."""
RERATED: Final = (
    "billing.status",
    "billing.cost.currency",
    "billing.cost.source",
    "billing.cost.lines",
    "billing.cost.adjustments",
    "billing.price.id",
    "billing.price.catalog",
    "billing.price.tier",
    "billing.price.exchange",
    "billing.price.requested_id",
    "billing.price.missing",
)
"""What a revision states anew by the bill's names; the amounts are `billing.revision.*_usd`."""
_COMPARED: Final = ("billing.price.id", "billing.cost.lines", "billing.cost.adjustments")


class Rated(msgspec.Struct, frozen=True, kw_only=True):
    """What a bill, or its newest revision, comes to.

    Args:
        number: 0 for the bill itself.
        cost_usd: exact decimal string; None without a cost.
        detail: hash of price id, lines and adjustments.
    """

    number: int
    status: BillStatus
    cost_usd: str | None
    price_id: str | None
    catalog: str | None
    detail: bytes


def rated_of_bill(attributes: Mapping[str, Value]) -> Rated:
    """Return what a bill comes to."""
    return _rated(0, attributes, attributes.get("billing.cost.usd"))


def rated_of_revision(attributes: Mapping[str, Value]) -> tuple[str, Rated]:
    """Return the id of the bill that it revises, and what it comes to.

    Raises:
        ValueError: it does not say so.
    """
    of, number = attributes.get("billing.revision.of"), attributes.get("billing.revision.number")
    if not isinstance(of, str) or type(number) is not int:
        raise ValueError("a revision without its bill's id and its number")
    return of, _rated(number, attributes, attributes.get("billing.revision.cost_usd"))


def _rated(number: int, a: Mapping[str, Value], cost: Value | None) -> Rated:
    return Rated(
        number=number,
        status=cast(BillStatus, a.get("billing.status")),
        cost_usd=cast(str | None, cost),
        price_id=cast(str | None, a.get("billing.price.id")),
        catalog=cast(str | None, a.get("billing.price.catalog")),
        detail=_detail(a),
    )


def _detail(a: Mapping[str, Value]) -> bytes:
    return blake2b(repr([a.get(name) for name in _COMPARED]).encode(), digest_size=16).digest()


def rerated(usage: Usage, charge: Charge | NoRate, number: int) -> tuple[Rated, dict[str, Value]]:
    """Return what a charge comes to, and the attributes that say so.

    What was counted by an estimate stays estimated.
    """
    a: dict[str, Value] = {}
    if isinstance(charge, NoRate):
        a["billing.status"] = "unpriced"
        a["billing.price.missing"] = charge.reason
        return _rated(number, a, None), a
    estimated = usage.source == "estimated" or charge.estimated
    a["billing.status"] = "estimated" if estimated else "final"
    price_attributes(a, charge)
    return _rated(number, a, pico_to_usd(charge.cost_pico_usd)), a


def differs(old: Rated, new: Rated) -> bool:
    """Say whether a revision is due: another status, total, line, adjustment or price id."""
    return (old.status, old.cost_usd, old.detail) != (new.status, new.cost_usd, new.detail)


def pico_of_usd(usd: str | None) -> int:
    """Return an exact amount, as spans have it, in pico-USD; no cost adds nothing."""
    return 0 if usd is None else usd_to_pico(Decimal(usd))


def revision(bill: Journaled, old: Rated, new: Rated, stated: Mapping[str, Value]) -> BillingSpan:
    """Return the revision that follows on `old`.

    Args:
        stated: as `rerated` returns it with `new`.

    Raises:
        ValueError: the bill has no id.
    """
    record_id = bill.attributes.get("billing.record.id")
    if not isinstance(record_id, str):
        raise ValueError("a bill without an id")
    a: dict[str, Value] = {
        "billing.revision.of": record_id,
        "billing.revision.number": new.number,
        "billing.revision.old_status": old.status,
        "billing.revision.delta_usd": pico_to_usd(pico_of_usd(new.cost_usd) - pico_of_usd(old.cost_usd)),
    }
    for name, value in (
        ("cost_usd", new.cost_usd),
        ("old_cost_usd", old.cost_usd),
        ("old_price_id", old.price_id),
        ("old_catalog", old.catalog),
    ):
        if value is not None:
            a[f"billing.revision.{name}"] = value
    a.update({name: bill.attributes[name] for name in KEPT if name in bill.attributes})
    a.update(stated)
    text = ",".join([encode_attribute(name, value) for name, value in a.items()])
    digest = blake2b(f"{bill.trace_id}{bill.span_id}{text}".encode(), digest_size=24).hexdigest()
    return BillingSpan(
        trace_id=digest[:32],
        span_id=digest[32:],
        parent_span_id=None,
        name=f"rerate {bill.name}",
        started_unix_ns=bill.ended_unix_ns,
        ended_unix_ns=bill.ended_unix_ns,
        attributes=a,
        kind=INTERNAL,
        links=((bill.trace_id, bill.span_id),),
    )
