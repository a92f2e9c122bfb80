"""A ledger that is away, slow, gone or overrun is a 503 with a time to come back, never a wrong number."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text

from gateway.api import costs as door
from gateway.core.errors import GatewayFault
from gateway.ledger import asking
from gateway.ledger.asking import THREADS, WAITING_MAX, Asker
from gateway.ledger.opening import store_at
from gateway.ledger.store import Store
from tests.api.cost_doors import Doors, filled
from tests.gateway_process import free_port
from tests.ledger.books import caught_up, write_bills
from tests.ledger.conftest import MakeStore
from tests.ledger.conftest import ledger as ledger
from tests.ledger.conftest import postgres as postgres

COUNT = 60
SOON_S = 60.0


@pytest.fixture
def asker(ledger: MakeStore) -> Iterator[Asker]:
    found = Asker(ledger)
    yield found
    found.close()


async def test_no_more_questions_are_taken_in_than_there_is_room_for(asker: Asker) -> None:
    go_on = threading.Event()

    def waits(_: Connection) -> bool:
        return go_on.wait(SOON_S)

    await asker.ask(lambda c: None)
    asked = [asyncio.create_task(asker.ask(waits)) for _ in range(THREADS + WAITING_MAX)]
    await asyncio.sleep(0)
    with pytest.raises(GatewayFault) as refused:
        await asker.ask(lambda c: None)
    assert (refused.value.code, refused.value.status) == ("ledger_busy", 503)
    assert refused.value.retry_after_s is not None
    go_on.set()
    assert all(await asyncio.gather(*asked))
    assert await asker.ask(lambda c: 7) == 7


async def test_a_question_that_takes_too_long_is_broken_off_in_the_database(
    asker: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asker.ask(lambda c: None)
    monkeypatch.setattr(asking, "QUESTION_S", 0.3)

    def counts_for_minutes(connection: Connection) -> Any:
        endless = (
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000000) "
            "SELECT COUNT(*) FROM n"
        )
        return connection.execute(text(endless)).scalar()

    with pytest.raises(GatewayFault, match="cannot be read now") as refused:
        await asker.ask(counts_for_minutes)
    assert refused.value.code == "ledger_unavailable"
    monkeypatch.undo()
    assert await asker.ask(lambda c: c.execute(text("SELECT 7")).scalar()) == 7


@pytest.mark.parametrize("path", ["/v1/costs", "/v1/costs/records", "/v1/costs/events", "/v1/costs/focus"])
async def test_a_ledger_that_is_away_is_a_503_with_a_time_to_come_back(tmp_path: Path, path: str) -> None:
    doors = Doors(tmp_path / "journal", f"postgresql://spanbill:secret@127.0.0.1:{free_port()}/none")
    answer = await doors.get(path)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert answer.json()["error"]["code"] == "ledger_unavailable"
    assert "secret" not in answer.text
    doors.asker.close()


async def test_a_deleted_ledger_is_never_taken_for_a_complete_one(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    await asyncio.to_thread(filled, journal, store_at("", journal), range(COUNT))
    doors = Doors(journal)
    before = await doors.json("/v1/costs")
    assert before["as_of"]["complete"]
    for end in ("", "-wal", "-shm"):
        (tmp_path / f"ledger.db{end}").unlink(missing_ok=True)
    gone = await doors.json("/v1/costs")
    assert gone["total"]["requests"] == 0
    assert not gone["as_of"]["complete"]
    assert gone["as_of"]["pending_bytes"] > 0
    store = store_at("", journal)
    caught_up(journal, store)
    after = await doors.json("/v1/costs")
    assert after["as_of"]["complete"]
    assert after["total"] == before["total"]
    await write_bills(journal, range(COUNT, COUNT + 1), boot="b1")
    assert not (await doors.json("/v1/costs"))["as_of"]["complete"]
    store.close()
    doors.asker.close()


class Failing(Asker):
    """Fails from the third question on, as often as it is told to."""

    def __init__(self, make: Callable[[], Store], failures: int) -> None:
        super().__init__(make)
        self.asked = 0
        self.failures = failures

    async def ask(self, work: Any) -> Any:
        self.asked += 1
        if self.asked > 2 and self.failures:
            self.failures -= 1
            raise GatewayFault("ledger_unavailable", "away", status=503)
        return await super().ask(work)


@pytest.mark.parametrize(("failures", "whole"), [(3, True), (100, False)])
async def test_an_export_asks_again_and_is_cut_off_rather_than_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int, *, whole: bool
) -> None:
    journal = tmp_path / "journal"
    await asyncio.to_thread(filled, journal, store_at("", journal), range(COUNT))
    failing: list[Failing] = []

    def make(store: Callable[[], Store]) -> Failing:
        failing.append(Failing(store, failures))
        return failing[-1]

    monkeypatch.setattr("tests.api.cost_doors.Asker", make)
    monkeypatch.setattr(door, "RECORDS_MAX", 10)
    monkeypatch.setattr(door, "AGAIN_S", 0)
    doors = Doors(journal)
    if whole:
        answer = await doors.get("/v1/costs/records", format="jsonl")
        assert len({json.loads(line)["request_id"] for line in answer.text.splitlines()}) == COUNT
    else:
        with pytest.raises(RuntimeError, match="already started"):  # the front cuts the connection off
            await doors.get("/v1/costs/records", format="jsonl")
    assert failing[0].asked > 3, "nothing failed"
    doors.asker.close()


async def test_no_more_exports_are_made_than_there_is_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = tmp_path / "journal"
    await asyncio.to_thread(filled, journal, store_at("", journal), range(COUNT))
    doors = Doors(journal)
    monkeypatch.setattr(door, "STREAMS_MAX", 0)
    refused = await doors.get("/v1/costs/records", format="csv")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, str(asking.AGAIN_S))
    monkeypatch.undo()
    for _ in range(door.STREAMS_MAX + 1):  # each of them makes room again
        assert (await doors.get("/v1/costs/records", format="csv")).status_code == 200
    doors.asker.close()
