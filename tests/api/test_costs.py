"""The cost doors say what the journal says, to those who may know it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import pytest

from gateway.core.money import pico_to_usd
from gateway.ledger.opening import store_at
from tests.api.cost_doors import KEYS, NOBODY, Doors, filled
from tests.ledger.books import pico, summed
from tests.ledger.conftest import postgres as postgres

COUNT = 600
OWN = {
    "api_key": "billing.key.id",
    "user": "billing.user.id",
    "team": "billing.team",
    "project": "billing.project",
    "provider": "gen_ai.provider.name",
}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def doors(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    url = request.getfixturevalue("postgres").database() if request.param == "postgresql" else ""
    journal = tmp_path_factory.mktemp("costs") / "journal"
    filled(journal, store_at(url, journal), range(COUNT))
    found = Doors(journal, url)
    yield found
    found.asker.close()


def usd(text: str | None) -> int:
    return int(Decimal(text or "0") * 10**12)


def model_of(bill: dict[str, Any]) -> str:
    return str(bill.get("gen_ai.response.model") or bill["gen_ai.request.model"])


async def test_every_grouping_is_what_the_journal_says_and_adds_up(doors: Doors) -> None:
    answer = await doors.json("/v1/costs")
    whole = sum(pico(bill) for bill in doors.bills)
    assert answer["total"]["cost_usd"] == pico_to_usd(whole)
    assert answer["total"]["requests"] == COUNT
    for name in ("api_key", "user", "team", "project", "provider", "model"):
        key = model_of if name == "model" else (lambda b, a=OWN[name]: b.get(a))
        found = {g["name"]: (g["requests"], usd(g["cost_usd"])) for g in answer[f"by_{name}"]}
        assert found == summed(doors.bills, key), name
    for total in [answer["total"], *answer["by_user"], *answer["by_day"]]:
        assert sum(s["requests"] for s in total["by_status"].values()) == total["requests"]
        assert sum(usd(s["cost_usd"]) for s in total["by_status"].values()) == usd(total["cost_usd"])
        assert all(
            s["cost_usd"] is None for name, s in total["by_status"].items() if name.startswith("un")
        ), "unknown is never 0"
    assert answer["as_of"]["complete"] is True
    assert answer["as_of"]["pending_bytes"] == 0


@pytest.mark.parametrize("zone", ["UTC", "America/Los_Angeles", "Asia/Kolkata", "Australia/Lord_Howe"])
async def test_local_days_add_up_to_their_range_over_changes_of_clocks(doors: Doors, zone: str) -> None:
    answer = await doors.json("/v1/costs", tz=zone, group_by="day")
    days = [day["name"] for day in answer["by_day"]]
    assert days[0] < "2026-10-04" < "2026-11-01" < days[-1], "the clocks of Lord Howe and Los Angeles"
    assert sum(usd(day["cost_usd"]) for day in answer["by_day"]) == usd(answer["total"]["cost_usd"])
    assert sum(day["requests"] for day in answer["by_day"]) == COUNT
    for day in answer["by_day"]:
        following = (date.fromisoformat(day["name"]) + timedelta(days=1)).isoformat()
        one = await doors.json("/v1/costs", tz=zone, start=day["name"], end=following, group_by="user")
        assert one["total"] == {name: value for name, value in day.items() if name != "name"}
        assert "by_day" not in one


async def test_filters_narrow_totals_and_records_alike(doors: Doors) -> None:
    for params in (
        {"user": ["alice", "bob"], "status": "final"},
        {"team": ""},
        {"provider": "azure", "project": "apollo"},
        {"model": ["gpt-4o", "gpt-4o-2026"], "api_key": "key-carol-1"},
        {"start": "2026-09-22", "end": "2026-09-23T12:30:00Z"},
        {"user": "' OR 1=1 --"},
    ):
        totals = await doors.json("/v1/costs", **params)
        found = [json.loads(line) for line in await _lines(doors, "jsonl", **params)]
        assert len(found) == totals["total"]["requests"]
        assert sum(usd(record["cost_usd"]) for record in found) == usd(totals["total"]["cost_usd"])
    assert totals["total"]["cost_usd"] == "0"


async def _lines(doors: Doors, kind: str, **params: Any) -> list[str]:
    answer = await doors.get("/v1/costs/records", format=kind, **params)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-ledger-complete"] == "true"
    return answer.text.splitlines()


@pytest.mark.parametrize("order", ["newest", "oldest"])
async def test_pages_csv_and_jsonl_are_the_same_records(doors: Doors, order: str) -> None:
    paged: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    for _ in range(COUNT):
        page = await doors.json("/v1/costs/records", limit=97, order=order, **cursor)
        paged += page["data"]
        assert page["has_more"] == (page["next_cursor"] is not None)
        if not page["has_more"]:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert [record["request_id"] for record in paged] == list(dict.fromkeys(r["request_id"] for r in paged))
    assert {r["request_id"] for r in paged} == {b["billing.record.id"] for b in doors.bills}
    assert paged == sorted(paged, key=lambda r: (r["ended_at"], r["request_id"]), reverse=order == "newest")
    lines = await _lines(doors, "jsonl", order=order)
    assert [json.loads(line) for line in lines] == paged
    rows = list(csv.DictReader(io.StringIO("\r\n".join(await _lines(doors, "csv", order=order)))))
    assert [row["request_id"] for row in rows] == [record["request_id"] for record in paged]
    for row, record in zip(rows, paged, strict=True):
        assert row["cost_usd"] == (record["cost_usd"] or "")
        assert row["input_tokens"] == ("" if record["input_tokens"] is None else str(record["input_tokens"]))


async def test_a_key_sees_its_users_costs_and_no_others(doors: Doors) -> None:
    answer = await doors.json("/v1/costs", KEYS["alice"])
    assert [group["name"] for group in answer["by_user"]] == ["alice"]
    assert answer["filters"] == {"user": ["alice"]}
    mine = [bill for bill in doors.bills if bill["billing.user.id"] == "alice"]
    assert len({bill["billing.key.id"] for bill in mine}) == 2
    assert answer["total"]["requests"] == len(mine)
    page = await doors.json("/v1/costs/records", KEYS["alice"], limit=1000, user="alice")
    assert len(page["data"]) == len(mine)
    for path in ("/v1/costs", "/v1/costs/records"):
        refused = await doors.get(path, KEYS["alice"], user="bob")
        assert refused.status_code == 403
        assert refused.json()["error"]["param"] == "user"
        assert (await doors.get(path, "sk-unknown")).status_code == 401


async def test_a_key_without_an_owner_sees_its_own_costs_alone(doors: Doors) -> None:
    answer = await doors.json("/v1/costs", NOBODY)
    assert list(answer["filters"]) == ["api_key"]
    assert answer["total"]["requests"] == 0


async def test_a_receipt_has_every_line_and_is_shown_to_its_owner_only(doors: Doors) -> None:
    bill = next(b for b in doors.bills if b["billing.user.id"] == "bob" and pico(b))
    path = f"/v1/costs/records/{bill['billing.record.id']}"
    receipt = await doors.json(path, KEYS["bob"])
    assert usd(receipt["record"]["cost_usd"]) == pico(bill)
    (settled,) = receipt["revisions"]
    assert sum(usd(line["cost_usd"]) for line in settled["lines"]) == pico(bill)
    assert receipt["record"]["tags"] == ["a", "b"]
    assert (await doors.json(path))["record"] == receipt["record"]
    for answer in (
        await doors.get(path, KEYS["carol"]),
        await doors.get(path, NOBODY),
        await doors.get("/v1/costs/records/0192f000-0000-7000-8000-000000000000", KEYS["bob"]),
        await doors.get("/v1/costs/records/..%2f..%2fetc", KEYS["bob"]),
        await doors.get("/v1/costs/records/%00", KEYS["bob"]),
    ):
        assert answer.status_code == 404
        assert "bob" not in answer.text


@pytest.mark.parametrize(
    ("path", "params", "at_fault"),
    [
        ("/v1/costs", {"users": "alice"}, "users"),
        ("/v1/costs", {"user": ""}, "user"),
        ("/v1/costs", {"user": "\0"}, "user"),
        ("/v1/costs", {"model": "m" * 600}, "model"),
        ("/v1/costs", {"model": ["m"] * 50 + [f"m{n}" for n in range(100)]}, "model"),
        ("/v1/costs", {"status": "paid"}, "status"),
        ("/v1/costs", {"group_by": "user,colour"}, "group_by"),
        ("/v1/costs", {"tz": "../../etc/passwd"}, "tz"),
        ("/v1/costs", {"tz": "Mars/Olympus"}, "tz"),
        ("/v1/costs", {"tz": "America"}, "tz"),
        ("/v1/costs", {"start": "yesterday"}, "start"),
        ("/v1/costs", {"start": "2026-13-01"}, "start"),
        ("/v1/costs", {"start": ["2026-01-01", "2026-01-02"]}, "start"),
        ("/v1/costs", {"start": "2026-02-01", "end": "2026-01-01"}, "end"),
        ("/v1/costs/records", {"limit": "0"}, "limit"),
        ("/v1/costs/records", {"limit": "1001"}, "limit"),
        ("/v1/costs/records", {"limit": "٣"}, "limit"),
        ("/v1/costs/records", {"limit": "5", "format": "csv"}, "limit"),
        ("/v1/costs/records", {"format": "xml"}, "format"),
        ("/v1/costs/records", {"order": "random"}, "order"),
        ("/v1/costs/records", {"cursor": "AAAA"}, "cursor"),
        ("/v1/costs/records", {"cursor": "WzksIlx1MDAwMCJd"}, "cursor"),
        ("/v1/costs/records", {"cursor": "Wzk5OTk5OTk5OTk5OTk5OTk5OTk5LCJhIl0="}, "cursor"),
        ("/v1/costs/records", {"cursor": "Wy0xLCJhIl0="}, "cursor"),
        ("/v1/costs/records/0192f000-0000-7000-8000-000000000000", {"q": "1"}, "q"),
    ],
)
async def test_a_wrong_parameter_is_named(doors: Doors, path: str, params: Any, at_fault: str) -> None:
    answer = await doors.get(path, **params)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == at_fault
    assert answer.json()["error"]["code"] == "invalid_parameter"


@pytest.mark.parametrize(
    "params",
    [
        {"start": "0001-01-01"},
        {"start": "0001-01-01", "tz": "Asia/Kolkata"},
        {"end": "9999-12-31", "tz": "America/Los_Angeles"},
        {"start": "0001-01-01", "end": "9999-12-31"},
    ],
)
async def test_no_range_is_too_wide(doors: Doors, params: Any) -> None:
    answer = await doors.get("/v1/costs", **params)
    if answer.status_code == 400:  # before there was time, in that zone
        assert answer.json()["error"]["param"] in params
        return
    assert answer.json()["total"]["requests"] == COUNT
