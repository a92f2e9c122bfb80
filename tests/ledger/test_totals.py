"""Counters begin with what earlier runs counted: exactly, once, and they never fall."""

from __future__ import annotations

import asyncio
import os
import signal
import urllib.request
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from deploy.stack import wait_until
from gateway.api.observe import Observer
from gateway.core.exchange import Exchange
from gateway.ledger import schema
from gateway.ledger.opening import store_at
from gateway.ledger.projection import id_of
from gateway.ledger.rebuilding import rebuild
from gateway.ledger.sqlite import SqliteStore
from gateway.ledger.store import LedgerUnavailable, Store
from gateway.ledger.tallying import tallied, totals
from otel.journal.removed import folder_id
from otel.journal.segments import mark_path
from otel.metrics import Metrics, State, bills_only
from otel.shared_metrics import FRESH_S, Board
from otel.totals import Totals, WithTotals
from tests.gateway_process import KEYS, Gateway, bills_in_journal
from tests.journals import append_bill, make_journal
from tests.ledger.books import FILES, caught_up, everything, follower, mixed, pico, write_bills
from tests.ledger.conftest import MakeStore
from tests.otel.test_shared_metrics import Clock, Worker

SOON_S = 90.0


class NoTraces:
    enabled = False


def counted(bills: Iterable[Exchange]) -> Metrics:
    """Return what a process counts of its bills."""
    metrics = Metrics()
    observer = Observer(metrics, NoTraces(), None)  # type: ignore[arg-type]  # spans are none of this
    for bill in bills:
        observer.exchange(bill, 200)
    return metrics


def of(*states: State) -> State:
    metrics = Metrics()
    for state in states:
        metrics.add(state, gauges=False)
    return metrics.state()


def known(store: Store, folder: Path, living: Iterable[str] = ()) -> Totals:
    gateway_id = id_of(folder_id(folder, FILES))
    return store.run(lambda c: totals(c, gateway_id, frozenset(living)), writes=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    asyncio.run(write_bills(tmp_path / "journal", range(400), boot="b0"))
    asyncio.run(write_bills(tmp_path / "journal", range(400, 700), boot="b1"))
    return tmp_path / "journal"


def test_the_ledger_counts_of_bills_what_their_process_counted(folder: Path, ledger: MakeStore) -> None:
    found = caught_up(folder, ledger())
    assert found.stats.totals is not None
    assert found.stats.totals.state == counted(map(mixed, range(700))).state()
    assert found.stats.totals.bills == 700
    assert found.stats.totals.writers == {"b0-0", "b1-0"}
    costs = found.stats.totals.state.sums[2]
    assert sum(costs.values()) > 10**9


def test_a_writer_that_lives_is_not_in_the_totals_until_it_is_gone(folder: Path, ledger: MakeStore) -> None:
    mark = FILES.hold(mark_path(folder, "b1-0"))
    FILES.mark(mark, 2**64 - 1)  # all that it wrote may be read
    store = ledger()
    found = caught_up(folder, store)
    assert found.stats.bills == 700
    assert found.stats.totals is not None
    assert found.stats.totals.state == counted(map(mixed, range(400))).state()
    assert found.stats.totals.writers == {"b0-0"}
    os.close(mark)
    caught_up_by(found)
    assert found.stats.totals.state == counted(map(mixed, range(700))).state()
    assert store.run(lambda c: tallied(c, id_of(folder_id(folder, FILES))))[0] == 700


def caught_up_by(found: Any) -> None:
    while found.step() == 0.0:  # ends with the journal
        pass
    assert found.stats.last_error is None


def test_a_bill_that_comes_again_or_otherwise_is_tallied_once(tmp_path: Path, ledger: MakeStore) -> None:
    folder = make_journal(tmp_path / "journal")  # records stand twice in it
    store = ledger()
    before = caught_up(folder, store).stats.totals
    append_bill(folder, 5, lambda text: text)
    append_bill(folder, 5, lambda text: text.replace('"stringValue":"ok"', '"stringValue":"interrupted"'))
    append_bill(folder, 5, lambda text: text)
    append_bill(folder, 77, lambda text: text)
    found = caught_up(folder, store)
    assert (found.stats.bills, found.stats.again, found.stats.conflicts) == (2, 1, 1)
    assert before is not None
    assert found.stats.totals is not None
    assert found.stats.totals.bills == before.bills + 2 == len(everything(store)["bills"])


def test_a_rebuild_by_any_number_of_processes_tallies_the_same(folder: Path, ledger: MakeStore) -> None:
    store = ledger()
    expected = caught_up(folder, store).stats.totals
    for processes in (1, 2):
        rebuild(folder, store, processes=processes)
        assert known(store, folder) == expected
    assert known(store, folder) == expected  # merged, and read again


def test_totals_do_not_fall_while_a_ledger_is_made_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.ledger.follower.LINES_MAX", 50)
    monkeypatch.setattr("gateway.ledger.follower.BATCHES_A_STEP", 1)
    store = SqliteStore(tmp_path / "ledger.db")
    found = follower(folder, store)
    seen = []
    while found.step() == 0.0:  # ends with the journal
        seen.append(found.stats.totals)
    assert seen
    assert set(seen) == {None}, "totals before all was read would be too low"
    whole = found.stats.totals
    assert whole is not None
    SqliteStore(tmp_path / "ledger.db").delete()
    steps = 0
    while found.step() == 0.0:  # ends with the journal
        steps += 1
        assert found.stats.totals is whole
    assert steps > 3
    assert found.stats.totals == whole


def told(worker: Worker) -> State:
    return bills_only(worker.metrics.state())


def test_what_a_dead_worker_told_is_replaced_by_what_its_journal_says(folder: Path) -> None:
    clock, board = Clock(), Board(3)
    living, dying, leader = (Worker(board, place, clock) for place in range(3))
    for _ in range(5):
        dying.bill()
    dying.shared.publish()
    dying.bill()  # and is killed before it can tell
    name = 'llm_gateway_requests_total{api_key_id="k",provider="p",status="200"}'
    assert living.page()[name] == 5
    successor = Worker(board, 1, clock)
    successor.bill()
    assert living.page()[name] == 5
    successor.shared.publish()
    assert living.page()[name] == 6
    leader.totals = Totals(writers=frozenset({dying.name}), bills=6, state=told(dying))
    leader.shared.publish()
    assert [w.page()[name] for w in (living, successor, leader)] == [7, 7, 7]
    assert living.page()['llm_gateway_refused_total{code="some_code"}'] == 6, "no ledger has refusals"
    # The one that knew them dies, too: what it knew stays.
    leader.bill()
    leader.shared.publish()
    clock.now_s += FRESH_S + 1
    heir = Worker(board, 2, clock)
    assert living.page()[name] == 8
    heir.shared.publish()
    assert living.page()[name] == 8
    both = of(told(dying), told(leader))
    heir.totals = Totals(writers=frozenset({dying.name, leader.name}), bills=7, state=both)
    assert heir.page()[name] == living.page()[name] == 8


def test_a_dead_worker_is_counted_once_before_anybody_takes_its_place() -> None:
    clock, board = Clock(), Board(2)
    leader, dying = (Worker(board, place, clock) for place in range(2))
    for _ in range(5):
        dying.bill()
    dying.shared.publish()
    name = 'llm_gateway_requests_total{api_key_id="k",provider="p",status="200"}'
    assert leader.page()[name] == 5
    leader.totals = Totals(writers=frozenset({dying.name}), bills=5, state=told(dying))
    assert leader.page()[name] == 5
    assert leader.page()['llm_gateway_refused_total{code="some_code"}'] == 5
    successor = Worker(board, 1, clock)
    assert successor.page()[name] == leader.page()[name] == 5
    assert successor.shared._carried == {}, "what the totals have is not carried along for ever"


def test_a_process_that_ends_is_counted_once_when_its_ledger_has_it() -> None:
    metrics = counted(map(mixed, range(10)))
    found: list[Totals | None] = [None]
    shown = WithTotals(metrics, "b0-0", lambda: found[0])
    assert shown.whole().bills()[0] == 10
    older = counted(map(mixed, range(10, 15)))
    found[0] = Totals(writers=frozenset({"older"}), bills=5, state=older.state())
    assert shown.whole().bills()[0] == 15
    everyone = of(older.state(), metrics.state())
    found[0] = Totals(writers=frozenset({"older", "b0-0"}), bills=15, state=everyone)
    assert shown.whole().bills()[0] == 15


# the whole gateway


Labels = frozenset[tuple[str, str]]


def page(gateway: Gateway) -> dict[str, dict[Labels, float]]:
    """Return the samples of a gateway's page, by name and labels."""
    with urllib.request.urlopen(f"{gateway.url}/metrics", timeout=30) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    found: dict[str, dict[Labels, float]] = {}
    for family in families:
        for sample in family.samples:
            found.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value
    return found


def in_journal(journal: Path) -> dict[str, Counter[Labels]]:
    """Return what the counters have to say, counted without the product's reader; money in pico-USD."""
    found: dict[str, Counter[Labels]] = {
        name: Counter() for name in ("requests", "records", "errors", "cost", "input", "latency")
    }

    def add(name: str, amount: int, **labels: str) -> None:
        found[name][frozenset(labels.items())] += amount

    for bill in bills_in_journal(journal).values():
        who = {"api_key_id": bill["billing.key.id"], "provider": bill.get("gen_ai.provider.name", "none")}
        model = bill.get("gen_ai.response.model") or bill.get("billing.target.model")
        model = model or bill["gen_ai.request.model"]
        status = bill.get("billing.http.status_code") or {"interrupted": 503}[bill["error.type"]]
        add("requests", 1, **who, status=str(status))
        add("records", 1, status=bill["billing.status"])
        add("latency", 1, **who)
        if "error.type" in bill:
            add("errors", 1, **who, error_type=bill["error.type"])
        if "billing.cost.usd" in bill:
            add("cost", pico(bill), **who, model=model)
        if "gen_ai.usage.input_tokens" in bill:
            add("input", bill["gen_ai.usage.input_tokens"], **who, model=model, type="input")
    return found


def agrees(gateway: Gateway) -> bool:
    """Say whether the page has exactly what the journal has."""
    shown, expected = page(gateway), in_journal(gateway.journal)
    tokens = shown.get("llm_gateway_tokens_total", {})
    cost = {labels: pico_usd / 10**12 for labels, pico_usd in expected["cost"].items()}
    return (
        shown.get("llm_gateway_requests_total", {}) == expected["requests"]
        and shown.get("llm_gateway_records_total", {}) == expected["records"]
        and shown.get("llm_gateway_errors_total", {}) == expected["errors"]
        and shown.get("llm_gateway_cost_total", {}) == cost
        and {labels: n for labels, n in tokens.items() if ("type", "input") in labels} == expected["input"]
        and shown.get("llm_gateway_latency_seconds_count", {}) == expected["latency"]
        and shown.get("llm_gateway_totals_loaded", {}) == {frozenset(): 1}
    )


def in_ledger(gateway: Gateway) -> tuple[int, int]:
    store = store_at("", gateway.journal)
    try:
        store.open()
        bills = schema.bills
        rows = store.run(lambda c: c.execute(bills.select()).all())
    except LedgerUnavailable:
        return 0, 0
    finally:
        store.close()
    return len(rows), sum(row.cost_pico or 0 for row in rows)


def served(gateway: Gateway, count: int, *, model: str = "sim-small") -> int:
    """Send requests, some of them streams, by several callers; return how many were answered."""

    def ask(number: int) -> bool:
        user = ("alice", "bob", "carol")[number % 3]
        try:
            answer = httpx.post(
                f"{gateway.url}/v1/chat/completions",
                headers={"authorization": f"Bearer {KEYS[user]}"},
                json={
                    "model": ("sim-err-429", "sim-cache", model)[min(number % 7, 2)],
                    "stream": number % 2 == 0,
                    "messages": [{"role": "user", "content": "Hello"}],
                },
                timeout=30,
            )
        except httpx.HTTPError:
            return False
        return answer.status_code in (200, 429)

    with ThreadPoolExecutor(6) as callers:
        return sum(callers.map(ask, range(count)))


def test_a_restart_loses_no_count(tmp_path: Path) -> None:
    with Gateway(tmp_path / "g") as gateway:
        assert served(gateway, 30) == 30
        assert wait_until(lambda: agrees(gateway), SOON_S, 0.1)
        before = page(gateway)
        assert gateway.stop() == 0
        gateway.start()
        assert wait_until(lambda: agrees(gateway), SOON_S, 0.1)
        after = page(gateway)
        names = [name for name in before if name.endswith(("_total", "_bucket", "_sum", "_count"))]
        own = [n for n in names if n.startswith(("llm_gateway_l", "llm_gateway_t")) and "ledger" not in n]
        assert len(own) > 5
        assert {n: after[n] for n in own} == {n: before[n] for n in own}
        served(gateway, 6)
        assert wait_until(lambda: agrees(gateway), SOON_S, 0.1)
        assert gateway.stop() == 0


def test_a_gateway_that_is_killed_counts_on_with_what_was_recovered(tmp_path: Path) -> None:
    with Gateway(tmp_path / "g") as gateway:
        with ThreadPoolExecutor(1) as side:
            under_way = side.submit(served, gateway, 400, model="sim-slow")
            assert wait_until(lambda: len(bills_in_journal(gateway.journal)) > 20, SOON_S, 0.02)
            gateway.kill()
            assert under_way.result() < 400
        killed = len(bills_in_journal(gateway.journal))
        gateway.start()
        assert wait_until(lambda: agrees(gateway), SOON_S, 0.1)
        bills = bills_in_journal(gateway.journal)
        assert len(bills) > killed, "nothing was in flight when it was killed"
        expected = (len(bills), sum(map(pico, bills.values())))
        assert wait_until(lambda: in_ledger(gateway) == expected, SOON_S, 0.1)
        for path in gateway.journal.parent.glob("ledger.db*"):
            path.unlink()
        assert served(gateway, 9) == 9
        assert wait_until(lambda: agrees(gateway), SOON_S, 0.1)
        gateway.kill()
        gateway.start()
        assert wait_until(lambda: agrees(gateway), SOON_S, 0.1)
        assert gateway.stop() == 0


def test_workers_that_are_killed_count_once(tmp_path: Path) -> None:
    with Gateway(tmp_path / "g", SPANBILL_SERVER__WORKERS="2") as gateway:
        assert served(gateway, 20) == 20
        assert wait_until(lambda: agrees(gateway), SOON_S, 0.1)
        for _ in range(3):
            assert served(gateway, 5) == 5
            victim = _one_of(gateway)
            os.kill(victim, signal.SIGKILL)
            assert wait_until(lambda v=victim: v not in _workers(gateway), SOON_S, 0.02)
            served(gateway, 5)
            assert wait_until(lambda: len(_workers(gateway)) == 2, SOON_S, 0.05)
            assert wait_until(lambda: agrees(gateway), SOON_S, 0.1), (
                page(gateway)["llm_gateway_records_total"],
                in_journal(gateway.journal)["records"],
            )
        assert gateway.stop() == 0
        gateway.start()
        assert wait_until(lambda: agrees(gateway), SOON_S, 0.1)
        assert gateway.stop() == 0


def _workers(gateway: Gateway) -> list[int]:
    behind = gateway.behind()
    return [pid for pid in gateway.children() if pid != behind]


def _one_of(gateway: Gateway) -> int:
    found = _workers(gateway)
    assert len(found) == 2
    return found[0]
