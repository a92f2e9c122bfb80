"""What leaves for billing systems and finance adds up to the ledger, corrections and rebuilds included."""

from __future__ import annotations

import asyncio
import csv
import importlib.util
import io
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from sqlalchemy import func, select

from gateway.core.money import pico_to_usd
from gateway.ledger import schema
from gateway.ledger.expiry import expire
from gateway.ledger.instants import instant, second
from gateway.ledger.opening import store_at
from gateway.ledger.rebuilding import rebuild
from gateway.ledger.records import cell
from gateway.ledger.schema import DAY_NS
from tests.api.cost_doors import KEYS, Doors, filled
from tests.journals import copy_of
from tests.ledger.books import START_NS, caught_up, pico, write_bills
from tests.ledger.conftest import postgres as postgres
from tests.rerating.rated_journals import changed, make_rated, run

COUNT = 400
MANDATORY = {  # FOCUS 1.2, and whether nulls are allowed
    "BilledCost": False,
    "BillingAccountId": False,
    "BillingAccountName": True,
    "BillingCurrency": False,
    "BillingPeriodEnd": False,
    "BillingPeriodStart": False,
    "ChargeCategory": False,
    "ChargeClass": True,
    "ChargeDescription": True,
    "ChargePeriodEnd": False,
    "ChargePeriodStart": False,
    "ContractedCost": False,
    "EffectiveCost": False,
    "InvoiceIssuerName": False,
    "ListCost": False,
    "PricingQuantity": True,
    "PricingUnit": True,
    "ProviderName": False,
    "PublisherName": False,
    "ServiceCategory": False,
    "ServiceName": False,
}
Event = dict[str, Any]


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def doors(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    url = request.getfixturevalue("postgres").database() if request.param == "postgresql" else ""
    journal = tmp_path_factory.mktemp("exports") / "journal"
    filled(journal, store_at(url, journal), range(COUNT))
    found = Doors(journal, url)
    yield found
    found.asker.close()


async def feed(doors: Doors, cursor: str | None = None, **params: Any) -> tuple[list[Event], str]:
    """Read the feed to its end."""
    found: list[Event] = []
    for _ in range(COUNT):
        page = await doors.json(
            "/v1/costs/events", **params, **({} if cursor is None else {"cursor": cursor})
        )
        found += page["data"]
        cursor = page["next_cursor"]
        if not page["has_more"]:
            return found, str(cursor)
    raise AssertionError("the feed has no end")


def owed(events: list[Event]) -> Decimal:
    """Return what a consumer that drops ids which it knows has summed up."""
    once = {event["id"]: event for event in events}
    return sum((Decimal(event["data"].get("cost_usd", "0")) for event in once.values()), Decimal(0))


async def test_the_feed_has_every_bill_once_in_both_shapes(doors: Doors) -> None:
    events, _ = await feed(doors, limit=97)
    assert len(events) == len({event["id"] for event in events}) == COUNT
    assert owed(events) == Decimal(sum(pico(bill) for bill in doors.bills)).scaleb(-12)
    for event in events:
        assert event.keys() == {
            "specversion", "id", "source", "type", "subject", "time", "datacontenttype", "data"
        }  # fmt: skip
        assert event["specversion"] == "1.0"
    known = {bill["billing.record.id"] for bill in doors.bills if "billing.cost.usd" in bill}
    assert {event["id"] for event in events if "cost_usd" in event["data"]} == known
    same, _ = await feed(doors, limit=1000, format="lago", subject="api_key")
    assert [event["transaction_id"] for event in same] == [event["id"] for event in events]
    for ours, theirs in zip(events, same, strict=True):
        assert theirs["properties"] == ours["data"]
        assert theirs["external_subscription_id"] == ours["data"]["api_key"]
        if "cost_usd" in ours["data"]:
            cents = Decimal(ours["data"]["cost_usd"]) * 100
            assert Decimal(theirs["precise_total_amount_cents"]) == cents
        assert theirs["timestamp"] == int(theirs["timestamp"])


async def test_the_feed_goes_on_with_bills_that_come_late_and_ended_early(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    store = store_at("", journal)
    await asyncio.to_thread(filled, journal, store, range(200, 260))
    doors = Doors(journal)
    before, cursor = await feed(doors)
    assert (await feed(doors, cursor))[0] == []
    await write_bills(journal, range(100), boot="b1", of=20)  # all of them ended before
    caught_up(journal, store)
    later, last = await feed(doors, cursor, limit=7)
    assert len(later) == 100
    assert max(event["time"] for event in later) < min(event["time"] for event in before)
    everything, _ = await feed(doors)
    assert everything == before + later
    rebuild(journal, store)
    again, _ = await feed(doors, last)
    assert {event["id"]: event for event in again} == {event["id"]: event for event in everything}
    assert owed(before + later + again) == owed(everything), "what comes again has the same ids"
    store.close()
    doors.asker.close()


async def test_corrections_are_events_and_keep_the_consumers_sum_right(tmp_path: Path) -> None:
    made = tmp_path / "made" / "journal"
    made.parent.mkdir()
    await asyncio.to_thread(make_rated, made, 60)
    journal = copy_of(made, tmp_path / "journal")
    store = store_at("", journal)
    caught_up(journal, store)
    doors = Doors(journal)
    settled, cursor = await feed(doors)
    assert {event["data"]["revision"] for event in settled} == {0}
    for number, sats in enumerate(("5/6", "7/8"), 1):
        await asyncio.to_thread(run, journal, changed(sats=sats, nobody="1/2"), boot=f"r{number}")
        caught_up(journal, store)
        corrections, cursor = await feed(doors, cursor)
        assert {event["data"]["revision"] for event in corrections} <= set(range(1, number + 1))
        assert corrections
        assert all(event["id"].endswith(f".r{event['data']['revision']}") for event in corrections)
        assert {event["data"]["requests"] for event in corrections} == {0}
        settled += corrections
        total = (await doors.json("/v1/costs", group_by="user"))["total"]
        assert owed(settled) == Decimal(total["cost_usd"])
        record = await doors.json(f"/v1/costs/records/{corrections[0]['data']['request_id']}")
        assert record["revisions"][-1]["cost_usd"] == record["record"]["cost_usd"]
        assert len(record["revisions"]) == record["record"]["revision"] + 1
    rebuild(journal, store)
    again, _ = await feed(doors)
    assert owed(again) == Decimal(total["cost_usd"])
    rows = await focus_rows(doors)
    assert sum(Decimal(row["BilledCost"]) for row in rows) == Decimal(total["cost_usd"])
    store.close()
    doors.asker.close()


async def focus_rows(doors: Doors, **params: Any) -> list[dict[str, str]]:
    answer = await doors.get("/v1/costs/focus", **params)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/csv")
    return list(csv.DictReader(io.StringIO(answer.text)))


async def test_focus_has_what_the_specification_demands_and_adds_up(doors: Doors) -> None:
    rows = await focus_rows(doors)
    assert sum(Decimal(row["BilledCost"]) for row in rows) == Decimal(
        pico_to_usd(sum(pico(bill) for bill in doors.bills))
    )
    assert set(rows[0]) >= set(MANDATORY)
    assert list(rows[0]) == sorted(rows[0], key=lambda name: (name.startswith("x_"), name))
    for row in rows:
        for name, nullable in MANDATORY.items():
            assert nullable or row[name], (name, row)
        assert row["BillingPeriodStart"][8:] == row["BillingPeriodEnd"][8:] == "01T00:00:00Z"
        assert row["BillingPeriodStart"] <= row["ChargePeriodStart"] < row["ChargePeriodEnd"]
        assert row["ChargePeriodEnd"] <= row["BillingPeriodEnd"]
        assert row["BillingCurrency"] == "USD"
        assert row["ChargeCategory"] in {"Usage", "Adjustment"}
        assert row["ServiceCategory"] == "AI and Machine Learning"
        if row["ChargeCategory"] == "Usage":
            assert Decimal(row["PricingQuantity"]) >= 0
            assert row["PricingUnit"]
        if row["x_BillStatus"].startswith("un"):
            assert row["BilledCost"] == "0"
            assert row["ListUnitPrice"] == ""
            assert row["PricingUnit"] == "Requests"
    uncharged = [row for row in rows if not row["SkuMeter"]]
    assert sum(int(row["x_Requests"]) for row in uncharged if row["x_BillStatus"] == "unpriced") == sum(
        bill["billing.status"] == "unpriced" for bill in doors.bills
    )
    users = {row["SubAccountId"] for row in rows}
    assert users == {bill["billing.user.id"] for bill in doors.bills}


async def test_focus_of_two_halves_is_focus_of_the_whole(doors: Doors) -> None:
    halves = [
        await focus_rows(doors, end="2026-10-10T07:30:00Z"),
        await focus_rows(doors, start="2026-10-10T07:30:00Z", billing_account="acme"),
    ]
    cost = [sum(Decimal(row["BilledCost"]) for row in rows) for rows in halves]
    whole = sum(Decimal(row["BilledCost"]) for row in await focus_rows(doors))
    assert all(cost)
    assert sum(cost) == whole
    assert {row["BillingAccountId"] for row in halves[1]} == {"acme"}


async def test_parquet_is_the_same_with_exact_types(doors: Doors) -> None:
    answer = await doors.get("/v1/costs/focus", format="parquet")
    assert answer.status_code == 200
    table = pq.read_table(io.BytesIO(answer.content))
    rows = await focus_rows(doors)
    assert table.column_names == list(rows[0])
    assert table.num_rows == len(rows)
    for name, nullable in MANDATORY.items():
        assert table.schema.field(name).nullable is nullable, name
        assert nullable or table.column(name).null_count == 0, name
    assert sum(table.column("BilledCost").to_pylist()) == sum(Decimal(row["BilledCost"]) for row in rows)
    assert str(table.schema.field("ChargePeriodStart").type) == "timestamp[us, tz=UTC]"


async def test_parquet_without_its_library_is_refused_with_what_to_do(
    doors: Doors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    answer = await doors.get("/v1/costs/focus", format="parquet")
    assert answer.status_code == 400
    assert "spanbill[parquet]" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/costs/events", "/v1/costs/focus"])
async def test_exports_are_for_the_operator_alone(doors: Doors, path: str) -> None:
    assert (await doors.get(path, KEYS["alice"])).status_code == 403
    assert (await doors.get(path, "sk-unknown")).status_code == 401


@pytest.mark.parametrize(
    ("path", "params", "at_fault"),
    [
        ("/v1/costs/events", {"cursor": "AAAA"}, "cursor"),
        ("/v1/costs/events", {"cursor": "W1sxLCJhIiwtMV1d"}, "cursor"),
        ("/v1/costs/events", {"cursor": "W1sxLCJhIiw5OTk5OTk5OTk5OTk5OTk5OTk5OV1d"}, "cursor"),
        ("/v1/costs/events", {"format": "stripe"}, "format"),
        ("/v1/costs/events", {"subject": "team"}, "subject"),
        ("/v1/costs/events", {"start": "2026-01-01"}, "start"),
        ("/v1/costs/focus", {"format": "xlsx"}, "format"),
        ("/v1/costs/focus", {"tz": "Asia/Kolkata"}, "tz"),
        ("/v1/costs/focus", {"billing_account": ""}, "billing_account"),
    ],
)
async def test_a_wrong_parameter_is_named(doors: Doors, path: str, params: Any, at_fault: str) -> None:
    answer = await doors.get(path, **params)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == at_fault


def test_cells_hold_no_formula() -> None:
    assert cell("=HYPERLINK(1)") == "'=HYPERLINK(1)"
    assert cell("-0.5") == "-0.5"
    assert cell("-1+1") == "'-1+1"
    assert cell(None) == ""


async def test_what_went_from_the_ledger_stays_in_totals_and_is_never_exported_as_nothing(
    tmp_path: Path,
) -> None:
    journal = tmp_path / "journal"
    store = store_at("", journal)
    await asyncio.to_thread(filled, journal, store, range(COUNT))
    doors = Doors(journal)
    before = await doors.json("/v1/costs")
    store.open()
    (gateway_id,) = store.run(lambda c: c.execute(select(schema.gateways.c.id)).scalars().all())
    horizon_ns = (START_NS // DAY_NS + 20) * DAY_NS
    while store.run(lambda c: expire(c, gateway_id, horizon_ns, 50), writes=True):
        pass
    after = await doors.json("/v1/costs")
    assert after["total"] == before["total"]
    assert after["by_day"] == before["by_day"]
    assert (before["as_of"]["rows_since"], after["as_of"]["rows_since"]) == (None, instant(horizon_ns))
    events, _ = await feed(doors)
    kept = {b["billing.record.id"] for b in doors.bills if b["ended"] >= horizon_ns}
    assert 0 < len(kept) < COUNT
    assert {event["id"] for event in events} == kept
    numbered = store.run(lambda c: c.execute(select(func.count()).select_from(schema.feed)).scalar())
    assert numbered == len(kept), "the feed goes with its bills"
    refused = await doors.get("/v1/costs/focus", start="2026-09-22")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "start")
    rows = await focus_rows(doors)
    assert rows[0]["ChargePeriodStart"] == second(horizon_ns)
    store.close()
    doors.asker.close()
