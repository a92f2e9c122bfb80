"""Events: what the feed says in the shapes that billing systems take: CloudEvents, and Lago's usage events.

Ids follow from the bill alone, so that a consumer that has seen one drops it when it comes again. A
correction is an event of its own, and says by how much the cost changed: sums of `cost_usd` are right
whenever they are made. A cost that is not known is not there; a change of nothing is 0.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from gateway.core.money import PICO_PER_USD, pico_to_usd
from gateway.ledger.feed import Entry
from gateway.ledger.instants import SECOND_NS, instant
from gateway.ledger.schema import TOKENS

Format = Literal["openmeter", "lago"]
Subject = Literal["user", "api_key"]
Event = dict[str, Any]

TYPE: Final = "spanbill.usage"
CODE: Final = "spanbill_usage"
SOURCE: Final = "/spanbill"

_SUBJECT: Final = {"user": "user_id", "api_key": "key_id"}
_FACTS: Final = {
    "api_key": "key_id",
    "user": "user_id",
    "team": "team",
    "project": "project",
    "provider": "provider",
    "model": "model",
    "operation": "operation",
    "status": "status",
    "outcome": "outcome",
}


def event_of(entry: Entry, shape: Format, subject: Subject) -> Event:
    """Return an entry of the feed as an event."""
    row = entry.row
    who = row[_SUBJECT[subject]]
    if shape == "openmeter":
        return {
            "specversion": "1.0",
            "id": id_of(entry),
            "source": SOURCE,
            "type": TYPE,
            "subject": who,
            "time": instant(row["ended_unix_ns"]),
            "datacontenttype": "application/json",
            "data": _data(entry),
        }
    event: Event = {
        "transaction_id": id_of(entry),
        "external_subscription_id": who,
        "code": CODE,
        "timestamp": row["ended_unix_ns"] // SECOND_NS,
        "properties": _data(entry),
    }
    delta = entry.delta_pico
    if delta is not None:
        event["precise_total_amount_cents"] = _cents(delta)
    return event


def id_of(entry: Entry) -> str:
    """Return the request's id, and for a correction the number of its revision behind it."""
    row = entry.row
    return f"{row['record_id']}.r{row['revision']}" if entry.is_correction else str(row["record_id"])


def _data(entry: Entry) -> dict[str, Any]:
    row = entry.row
    data: dict[str, Any] = {
        "request_id": row["record_id"],
        "revision": row["revision"],
        "requests": 0 if entry.is_correction else 1,
    }
    data |= {name: row[column] for name, column in _FACTS.items() if row[column] is not None}
    for name in TOKENS:
        count = row[f"{name}_tokens"]
        if count is not None:
            data[f"{name}_tokens"] = 0 if entry.is_correction else count
    delta = entry.delta_pico
    if delta is not None:
        data["cost_usd"] = pico_to_usd(delta)
    return data


def _cents(pico: int) -> str:
    sign = "-" if pico < 0 else ""
    whole, rest = divmod(abs(pico) * 100, PICO_PER_USD)
    return f"{sign}{whole}.{rest:012d}".rstrip("0").rstrip(".")
