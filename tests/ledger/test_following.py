"""The follower's faults: each one happened, and what came of it is the same ledger."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.ledger.follower import Follower
from gateway.ledger.opening import passed_in, store_at
from gateway.ledger.postgres import PostgresStore
from gateway.ledger.sqlite import SqliteStore
from gateway.ledger.store import LedgerBroken, LedgerUnavailable, Store
from gateway.ledger.writing import write
from otel.journal.removal import Remover, Retention
from otel.journal.segments import mark_path
from otel.journal.turn import Lock
from otel.totals import Totals
from tests.journals import NOON_NS, make_journal
from tests.ledger.books import (
    FILES,
    bills_of,
    caught_up,
    everything,
    follower,
    rows_by_status,
    status,
    summed,
    write_bills,
)
from tests.ledger.conftest import MakeStore
from tests.ledger.servers import Postgres

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
async def folder(tmp_path: Path) -> Path:
    await write_bills(tmp_path / "journal", range(200))
    return tmp_path / "journal"


async def test_a_ledger_that_is_deleted_under_the_follower_comes_back_whole(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = SqliteStore(tmp_path / "ledger.db")
    found = caught_up(folder, store)
    before = everything(store)
    SqliteStore(tmp_path / "ledger.db").delete()
    await write_bills(folder, range(200, 220), boot="b1")
    while found.step() == 0.0:  # ends with the journal
        pass
    assert "is gone or was replaced" in caplog.text
    assert rows_by_status(store) == summed(bills_of(folder), status)
    assert sum(count for count, _ in rows_by_status(store).values()) == 220
    assert set(before["bills"]) <= set(everything(store)["bills"])


@pytest.mark.parametrize("at", ["header", "middle"])
def test_a_broken_ledger_is_set_aside_and_made_again(
    folder: Path, tmp_path: Path, at: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "ledger.db"
    store = SqliteStore(path)
    caught_up(folder, store)
    before = everything(store)
    store.close()
    data = bytearray(path.read_bytes())
    place = 0 if at == "header" else len(data) // 2
    data[place : place + 20_000 if at == "middle" else 100] = b"\xaa" * (20_000 if at == "middle" else 100)
    path.write_bytes(data)
    with pytest.raises(LedgerBroken):  # the fault is there
        _look_at(store)
    again = SqliteStore(path)
    found = follower(folder, again)
    for _ in range(100):
        if found.step() > 0:
            break
    assert found.stats.rebuilt == 1
    assert found.stats.last_error is None
    assert (tmp_path / "ledger.db.broken-1").exists()
    assert "is made again from the journal" in caplog.text
    assert everything(again) == before


def _look_at(store: SqliteStore) -> None:
    store.open()
    store.check()


def test_a_locked_ledger_is_waited_for(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.ledger.sqlite.BUSY_S", 0.01)
    store = SqliteStore(tmp_path / "ledger.db")
    found = follower(folder, store)
    found._opened()
    other = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    waits = [found.step() for _ in range(3)]
    assert min(waits) > 0
    assert found.stats.failures_in_a_row == 3
    assert "locked" in str(found.stats.last_error)
    assert found.stats.behind_s > 0
    other.execute("ROLLBACK")
    other.close()
    while found.step() == 0.0:  # ends with the journal
        pass
    assert (found.stats.failures_in_a_row, found.stats.behind_s, found.stats.pending_bytes) == (0, 0.0, 0)
    assert rows_by_status(store) == summed(bills_of(folder), status)


async def test_a_server_that_dies_and_comes_back_misses_nothing(folder: Path, postgres: Postgres) -> None:
    store = PostgresStore(postgres.database())
    found = await _in_thread(caught_up, folder, store)
    await write_bills(folder, range(200, 260), boot="b1")
    postgres.stop()
    try:
        assert await _in_thread(found.step) > 0
        assert found.stats.failures_in_a_row == 1
        assert await _in_thread(passed_in, store, folder, FILES) is None
    finally:
        postgres.start()
    for _ in range(20):
        if await _in_thread(found.step) > 0 and found.stats.last_error is None:
            break
    assert found.stats.bills == 260
    assert await _in_thread(rows_by_status, store) == summed(bills_of(folder), status)
    await _in_thread(store.close)


async def _in_thread(work: Any, *arguments: Any) -> Any:
    return await asyncio.to_thread(work, *arguments)


def test_a_server_that_is_not_there_stops_no_start(folder: Path) -> None:
    store = store_at("postgresql://nobody:secret@127.0.0.1:1/none", folder)
    assert "secret" not in store.name
    found = follower(folder, store)
    assert found.step() > 0
    assert found.stats.failures_in_a_row == 1
    assert not found.stats.stopped
    found._close()


@pytest.mark.parametrize(
    "url", ["mysql://u:secret@h/d", "sqlite:///", "postgresql://u:secret@h:x/d", "ledger.db"]
)
def test_an_address_that_is_none_is_refused_without_being_repeated(url: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ledger\.url") as fault:
        store_at(url, tmp_path)
    assert "secret" not in str(fault.value)


def test_of_several_processes_one_follows(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "lead"
    first = follower(folder, SqliteStore(tmp_path / "ledger.db"), lead=Lock(path))
    second = follower(folder, SqliteStore(tmp_path / "ledger.db"), lead=Lock(path))
    first.step()
    assert second.step() > 0
    assert second.stats.bills == 0
    first._close()
    caught = second.step()
    assert caught == 0.0 or second.stats.pending_bytes == 0
    assert second.stats.behind_s == 0.0 or caught == 0.0
    second._close()


def test_retention_removes_nothing_that_the_ledger_has_not(tmp_path: Path) -> None:
    folder = make_journal(tmp_path / "journal")
    mark_path(folder, "b1-0").unlink()
    store = SqliteStore(tmp_path / "ledger.db")
    remover = Remover(
        folder,
        Retention(days=1),
        consumers=frozenset(),
        asked={"ledger": lambda: passed_in(SqliteStore(tmp_path / "ledger.db"), folder, FILES)},
        now_ns=lambda: NOON_NS + 10 * 86_400 * 10**9,
        pause=lambda: None,
    )
    assert remover.run() == 0
    segments = len(list(folder.glob("2*/*.jsonl")))
    found = follower(folder, store)
    opened = found._opened()
    batch = next(opened.reader.batches(1, 10**6))  # a part of the first segment
    found._write(opened, batch)
    assert remover.run() == 0
    caught_up(folder, store)
    before = everything(store)
    assert remover.run() == segments > 3
    assert caught_up(folder, store).stats.bills == 0
    assert everything(store) == before
    for path in tmp_path.glob("ledger.db*"):
        path.unlink()
    lost = follower(folder, SqliteStore(tmp_path / "ledger.db"))
    lost.step()
    assert lost.stats.stopped
    assert f"lacks {len(before['bills'])} bills" in str(lost.stats.last_error)


class Crash(BaseException):
    """The process is gone."""


class Crashing:
    """A store whose n-th transaction dies: before its commit, or right after it."""

    def __init__(self, store: Store, at: int, *, after: bool) -> None:
        self._store, self._left, self._after = store, at, after
        self.crashed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def run(self, work: Any, *, writes: bool = False, beside: None = None) -> Any:
        self._left -= writes
        if self._left != 0 or not writes or self.crashed:
            return self._store.run(work, writes=writes)
        self.crashed = True
        if self._after:
            self._store.run(work, writes=True)
            raise Crash

        def cut(connection: Any) -> Any:
            work(connection)
            raise Crash

        return self._store.run(cut, writes=True)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(crashes=st.lists(st.tuples(st.integers(1, 12), st.booleans()), max_size=4), lines=st.integers(1, 60))
def test_crashes_anywhere_give_the_same_rows(
    crash_world: tuple[Path, dict[str, Any], Totals | None], crashes: list[tuple[int, bool]], lines: int
) -> None:
    folder, wanted, totals = crash_world
    path = folder.parent / "crashing.db"
    for old in folder.parent.glob("crashing.db*"):
        old.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gateway.ledger.follower.LINES_MAX", lines)
        for at, after in crashes:
            dying = Crashing(SqliteStore(path), at, after=after)
            _until_it_waits(follower(folder, dying))  # type: ignore[arg-type]
            dying.close()
        last = SqliteStore(path)
        found = follower(folder, last)
        _until_it_waits(found)
        assert found.stats.conflicts == found.stats.again == 0
        assert everything(last) == wanted
        assert found.stats.totals == totals
        last.close()


def _until_it_waits(found: Follower) -> None:
    try:
        while found.step() == 0.0:  # ends with the journal, or the crash
            pass
    except Crash:
        pass


@pytest.fixture(scope="module")
def crash_world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Totals | None]:
    base = tmp_path_factory.mktemp("crashes")
    folder = make_journal(base / "journal")
    store = SqliteStore(base / "whole.db")
    totals = caught_up(folder, store).stats.totals
    assert totals is not None
    wanted = everything(store)
    store.close()
    return folder, wanted, totals


def test_a_write_that_fails_in_the_middle_leaves_nothing(
    folder: Path, ledger: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ledger()
    found = follower(folder, store)
    found._opened()
    before = everything(store)

    def half(*arguments: Any, **named: Any) -> Any:
        write(*arguments, **named)
        raise LedgerUnavailable("cut")

    monkeypatch.setattr("gateway.ledger.batches.write", half)
    assert found.step() > 0
    assert found.stats.last_error == "cut"
    assert everything(store) == before
    monkeypatch.undo()
    while found.step() == 0.0:  # ends with the journal
        pass
    assert rows_by_status(store) == summed(bills_of(folder), status)
    assert found.stats.again == 0


_FOLLOW = """
import sys
from pathlib import Path
from tests.ledger.books import follower
from gateway.ledger.opening import store_at
import gateway.ledger.follower as f
f.LINES_MAX = 20
f.BATCHES_A_STEP = 2
found = follower(Path(sys.argv[1]), store_at(sys.argv[2], Path(sys.argv[1])))
while found.step() == 0.0:
    print(found.stats.bills, flush=True)
print("done", flush=True)
"""


def test_a_killed_follower_leaves_a_ledger_that_goes_on(
    folder: Path, ledger: MakeStore, tmp_path: Path
) -> None:
    """SIGKILL as soon as it says that it has committed something, until one comes through."""
    store = ledger()
    url = getattr(store, "_url", None)
    address = (
        f"sqlite:///{tmp_path / 'ledger.db'}" if url is None else url.render_as_string(hide_password=False)
    )
    killed = 0
    for _ in range(30):
        process = subprocess.Popen(
            [sys.executable, "-c", _FOLLOW, str(folder), address],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        if line.startswith("done"):
            process.wait(timeout=60)
            process.stdout.close()
            break
        process.send_signal(signal.SIGKILL)
        killed += 1
        process.wait(timeout=60)
        process.stdout.close()
    assert killed >= 1
    final = caught_up(folder, store)
    assert final.stats.conflicts == final.stats.again == 0
    assert rows_by_status(store) == summed(bills_of(folder), status)
