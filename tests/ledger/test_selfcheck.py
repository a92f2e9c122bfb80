"""The self-check says what agrees, what is behind and what differs, and reads a bounded part at each call."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from deploy.stack import wait_until
from gateway import selfcheck
from gateway.api.selfcheck import Report, shown
from gateway.core.money import pico_to_usd
from gateway.ledger.sqlite import SqliteStore
from gateway.ledger.store import Store
from gateway.selfcheck import LOADED, SelfCheck
from otel.journal.counting import JournalCount
from otel.journal.cursor import Cursor
from otel.journal.reader import Reader
from otel.metrics import Metrics, gauge
from tests.gateway_process import KEYS, Gateway
from tests.journals import remove
from tests.ledger.books import FILES, bills_of, caught_up, follower, mixed, pico, write_bills
from tests.ledger.test_totals import counted
from tests.rerating.rated_journals import changed, make_rated, revisions, run

ADMIN = "adm-9f27c1d0b4e86a35f1c2"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    asyncio.run(write_bills(tmp_path / "journal", range(300)))
    return tmp_path / "journal"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = SqliteStore(tmp_path / "ledger.db")
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selfcheck, "PAUSE_S", 0.0)


def metrics_of(bills: Any, *, loaded: bool = True) -> Metrics:
    metrics = Metrics(lambda: [gauge(LOADED, "…", int(loaded))])
    metrics.add(counted(bills).state(), gauges=False)
    return metrics


def checked(folder: Path, metrics: Metrics, cursor: Path | None = None) -> Report:
    store = SqliteStore(folder.parent / "ledger.db")
    return asyncio.run(SelfCheck(folder, FILES, store, cursor, lambda: metrics).check())


def states(report: Report) -> dict[str, str]:
    return {name: part.state for name, part in report.parts.items()} | {"all": report.state}


def ship(folder: Path, lines: int, batches: int) -> Path:
    """Move a shipper's cursor behind some lines."""
    path = folder / "cursors" / "otlp.json"
    cursor = Cursor(path, FILES)
    for _, batch in zip(range(batches), Reader(folder, cursor, FILES).batches(lines, 10**9), strict=False):
        cursor.move(batch.segment, batch.end, batch.writer, batch.seen)
    cursor.save()
    return path


def test_all_that_has_all_bills_agrees(folder: Path, store: Store) -> None:
    caught_up(folder, store)
    report = checked(folder, metrics_of(map(mixed, range(300))), ship(folder, 10**6, 10**6))
    cost = sum(map(pico, bills_of(folder)))
    assert states(report) == {"ledger": "agrees", "metrics": "agrees", "collector": "agrees", "all": "agrees"}
    assert (report.journal.bills, report.journal.cost_pico_usd) == (300, cost)
    assert cost > 0
    said: Any = shown(report)
    parts = ("journal", "ledger", "metrics", "collector")
    assert [said[name]["cost_usd"] for name in parts] == [pico_to_usd(cost)] * 4


def test_what_has_less_and_waits_is_behind(folder: Path, store: Store) -> None:
    found = follower(folder, store)
    opened = found._opened()
    found._write(opened, next(opened.reader.batches(7, 10**6)))
    report = checked(folder, metrics_of(map(mixed, range(200)), loaded=False), ship(folder, 11, 1))
    assert states(report) == {"ledger": "behind", "metrics": "behind", "collector": "behind", "all": "behind"}
    has = {name: part.has.bills for name, part in report.parts.items() if part.has is not None}
    assert has == {"ledger": 7, "metrics": 200, "collector": 11}
    assert report.parts["ledger"].facts["pending_bytes"] > 0
    assert report.parts["collector"].facts["pending_bytes"] > 0


@pytest.mark.parametrize(
    "statement", ["UPDATE costs_total SET cost_rest_pico = cost_rest_pico + 1", "DELETE FROM tallies"]
)
def test_a_ledger_with_other_sums_differs(folder: Path, store: Store, statement: str) -> None:
    caught_up(folder, store)
    metrics = metrics_of(map(mixed, range(300)))
    assert states(checked(folder, metrics))["all"] == "agrees"
    store.run(lambda c: c.execute(text(statement)), writes=True)
    found = states(checked(folder, metrics))
    assert found == {"ledger": "differs", "metrics": "agrees", "all": "differs"}


@pytest.mark.parametrize("count", [299, 301])
def test_counters_with_a_bill_more_or_less_differ(folder: Path, store: Store, count: int) -> None:
    caught_up(folder, store)
    assert states(checked(folder, metrics_of(map(mixed, range(count)))))["metrics"] == "differs"


def test_revisions_are_owed_on_top_of_what_was_settled(tmp_path: Path, store: Store) -> None:
    folder = tmp_path / "journal"
    made = make_rated(folder)
    run(folder, changed(sats="5/6", nobody="1/2"))
    caught_up(folder, store)
    report = checked(folder, metrics_of(made))
    assert report.state == "agrees"
    assert report.revisions.bills == len(revisions(folder)) > 0
    assert report.revisions.cost_pico_usd != 0
    said: Any = shown(report)
    assert said["ledger"]["current_cost_usd"] != said["ledger"]["cost_usd"]


def test_each_call_counts_a_bounded_part_and_the_next_goes_on(folder: Path) -> None:
    count = JournalCount(folder, FILES)
    left = [count.step(20_000) for _ in range(3)]
    assert left[0] > left[1] > left[2] > 0
    assert 0 < count.here().bills < 300
    for _ in range(100):
        if not count.step(20_000):
            break
    assert count.here().bills == 300
    assert count.here().cost_pico_usd == sum(map(pico, bills_of(folder)))


@pytest.mark.parametrize("before", [0, 10**9])
def test_what_retention_removed_counts_by_what_it_wrote_down(folder: Path, before: int) -> None:
    count = JournalCount(folder, FILES)
    if before:
        count.step(before)
    first = sorted(path for path in folder.glob("2*/*.jsonl"))[0].relative_to(folder)
    inside = (folder / first).read_text()
    bills = bills_of(folder)
    cost = sum(pico(bill) for bill in bills if f'"S","id":"{bill["billing.record.id"]}"' in inside)
    whole = sum(map(pico, bills))
    assert cost > 0
    remove(folder, str(first))
    manifest = folder / "removed.jsonl"
    manifest.write_text(manifest.read_text().replace('"cost_pico_usd": 0', f'"cost_pico_usd": {cost}'))
    count.step(10**9)
    assert (count.whole().bills, count.whole().cost_pico_usd) == (300, whole)


def asked(gateway: Gateway, key: str | None) -> httpx.Response:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    return httpx.get(f"{gateway.url}/v1/selfcheck", headers=headers, timeout=30)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_door_is_the_operators_and_agrees_whatever_was_killed(tmp_path: Path, workers: str) -> None:
    environment = {"SPANBILL_ADMIN__KEY": ADMIN, "SPANBILL_SERVER__WORKERS": workers}
    with Gateway(tmp_path / "g", **environment) as gateway:
        assert asked(gateway, None).status_code == 401
        assert asked(gateway, KEYS["alice"]).status_code == 403
        for number in range(12):
            answer = httpx.post(
                f"{gateway.url}/v1/chat/completions",
                headers={"authorization": f"Bearer {KEYS['alice']}"},
                json={"model": "sim-small", "messages": [{"role": "user", "content": f"Hello {number}"}]},
                timeout=30,
            )
            assert answer.status_code == 200
        assert asked(gateway, ADMIN).json()["state"] in ("agrees", "behind")
        gateway.stop() if workers == "2" else gateway.kill()
        gateway.start()
        agreed = wait_until(lambda: asked(gateway, ADMIN).json()["state"] == "agrees", 60, 0.1)
        said = asked(gateway, ADMIN).json()
        assert agreed, said
        assert {said[name]["bills"] for name in ("journal", "ledger", "metrics")} == {12}
        assert float(said["journal"]["cost_usd"]) > 0
        assert gateway.stop() == 0
