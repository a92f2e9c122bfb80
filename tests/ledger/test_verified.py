"""The ledger held to the journal, bill by bill, by the same audit that holds the journal to itself."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from gateway.cli import app
from gateway.ledger.periods import Period
from gateway.ledger.queries import Filters, costs
from gateway.ledger.sqlite import SqliteStore
from gateway.ledger.store import Store
from gateway.ledger.summary import says, summary_of
from otel.journal.audit import Logs, Report, audit_folder
from otel.journal.turn import Lock
from tests.journals import make_journal, remove, rows
from tests.ledger.books import (
    FILES,
    bills_of,
    caught_up,
    follower,
    pico,
    rows_by_status,
    status,
    summed,
    write_bills,
)
from tests.ledger.conftest import MakeStore

MANY = 10_000


def audited(folder: Path, store: Store) -> Report:
    return audit_folder(folder, logs=Logs(ledger=says(store, folder, FILES)))


def ledger_findings(report: Report) -> set[str]:
    return {kind for kind in report.counts if kind.startswith("ledger_")}


@pytest.mark.timeout(300)
def test_ten_thousand_mixed_bills_a_kill_and_a_deleted_ledger_leave_one_number(tmp_path: Path) -> None:
    """Records, roll-ups and journal agree to the last digit, whatever happened on the way."""
    folder, path = tmp_path / "journal", tmp_path / "ledger.db"
    quarter = MANY // 4
    boots = 0
    for part in range(4):
        numbers = range(part * quarter, (part + 1) * quarter)
        asyncio.run(write_bills(folder, numbers, boot=f"b{part}", bytes_max=2_000_000, of=MANY))
        boots += 1
        store = SqliteStore(path)
        if part == 1:  # gone in the middle of a step, its connection left open
            dying = follower(folder, store)
            opened = dying._opened()
            dying._write(opened, next(opened.reader.batches(700, 10**9)))
            continue
        if part == 2:
            SqliteStore(path).delete()
            assert not path.exists()
        caught_up(folder, store)
        store.close()
    store = SqliteStore(path)
    caught_up(folder, store)
    bills = bills_of(folder)
    assert len(bills) == MANY
    assert boots == 4
    assert rows_by_status(store) == summed(bills, status)
    question = costs(["user"], Filters(), Period(0, 2**62), ZoneInfo("UTC"))
    groups = question.fold(
        store.run(lambda c: [tuple(row) for s in question.statements for row in c.execute(s)])
    )
    by_user = summed(bills, lambda bill: bill["billing.user.id"])
    assert {g.values[0]: (g.total.bills, g.total.cost_pico) for g in groups} == by_user
    assert sum(g.total.cost_pico for g in groups) == sum(map(pico, bills))
    report = audited(folder, store)
    assert report.complete
    assert report.intact
    store.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_journal(tmp_path / "journal")


TAMPERED = {
    "ledger_missing": "DELETE FROM bills WHERE record_id = (SELECT MIN(record_id) FROM bills)",
    "ledger_differs": "UPDATE bills SET cost_pico = cost_pico + 1 WHERE record_id = "
    "(SELECT MIN(record_id) FROM bills WHERE cost_pico > 0)",
    "ledger_extra": "INSERT INTO bills SELECT 'x' || record_id, revision, gateway_id, started_unix_ns, "
    "ended_unix_ns, trace_id, span_id, account_id, route_id, rate_id, status, outcome, error_type, "
    "http_status, attempts, providers_tried, stream, input_tokens, output_tokens, cache_read_tokens, "
    "cache_write_tokens, reasoning_tokens, usage_source, cost_pico, reported_cost_usd, latency_us, "
    "first_chunk_us, client_request_id, session_id, end_user, cost_lines, current FROM bills",
    "ledger_sum": "UPDATE costs_total SET cost_rest_pico = cost_rest_pico + 1",
}


@pytest.mark.parametrize("kind", TAMPERED)
def test_a_ledger_that_was_changed_is_found_out(folder: Path, ledger: MakeStore, kind: str) -> None:
    store = ledger()
    caught_up(folder, store)
    assert ledger_findings(audited(folder, store)) == set()
    store.run(lambda c: c.execute(text(TAMPERED[kind])), writes=True)
    assert kind in ledger_findings(audited(folder, store))


def test_a_ledger_that_is_behind_is_not_called_wrong(folder: Path, ledger: MakeStore) -> None:
    store = ledger()
    found = follower(folder, store)
    opened = found._opened()
    found._write(opened, next(opened.reader.batches(2, 10**6)))
    report = audited(folder, store)
    assert ledger_findings(report) == set()
    assert report.facts.ledger_pending == 40
    summary = summary_of(store, folder, FILES)
    assert summary.pending_bytes > 0
    assert sum(summary.bills_by_status.values()) == 2


def test_rows_of_removed_segments_must_be_as_many_and_as_much(folder: Path, ledger: MakeStore) -> None:
    store = ledger()
    caught_up(folder, store)
    first, *_ = dict.fromkeys(row.segment for row in rows(folder))
    gone = [row.id for row in rows(folder) if row.segment == first and row.kind == "S"]
    cost = sum(pico(bill) for bill in bills_of(folder) if bill["billing.record.id"] in gone)
    assert cost > 0
    remove(folder, first)
    manifest = folder / "removed.jsonl"
    plain = manifest.read_text()
    assert "ledger_missing" in ledger_findings(audited(folder, store))  # it says that they cost nothing
    manifest.write_text(plain.replace('"cost_pico_usd": 0', f'"cost_pico_usd": {cost}'))
    assert ledger_findings(audited(folder, store)) == set()


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_the_commands_say_what_is_there_and_make_it_again(folder: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'other.db'}"
    where = ("--journal", str(folder), "--ledger", url)
    done = run("ledger", "rebuild", *where)
    assert (done.exit_code, done.output.startswith("42 bills in ")) == (0, True), done.output
    shown = run("ledger", "status", *where, "--json")
    assert '"bills_by_status":{"final":22,"unmetered":14,"unpriced":6}' in shown.output
    assert '"final":"0.000490004922"' in shown.output
    assert "behind the journal" in run("ledger", "status", *where).output
    assert run("ledger", "verify", *where).exit_code == 0
    assert run("verify", *where).exit_code == 0
    store = SqliteStore(tmp_path / "other.db")
    store.open()
    store.run(lambda c: c.execute(text(TAMPERED["ledger_differs"])), writes=True)
    store.close()
    told = run("verify", *where)
    assert told.exit_code == 1
    assert "ledger_differs" in told.output


def test_a_rebuild_is_refused_while_a_gateway_follows(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lead = Lock(folder / "cursors" / "ledger.lock")
    assert lead.take()
    done = run("ledger", "rebuild", "--journal", str(folder))
    lead.release()
    assert done.exit_code == 78
    assert "stop it first" in done.output + capfd.readouterr().err
    assert run("ledger", "rebuild", "--journal", str(folder)).exit_code == 0
    assert (tmp_path / "ledger.db").exists()


def test_a_broken_ledger_is_made_again_by_hand_only_if_told_what_is_lost(
    folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(b"no database" * 1_000)
    assert run("ledger", "rebuild", "--journal", str(folder)).exit_code == 78
    done = run("ledger", "rebuild", "--journal", str(folder), "--accept-loss")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "ledger.db.broken-1").exists()
