"""Revisions as rows: the newest counts, once, in whatever order and company it is read."""

from __future__ import annotations

import json
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import func, select, text

from gateway.ledger import schema
from gateway.ledger.periods import Period
from gateway.ledger.projection import id_of
from gateway.ledger.queries import Filters, costs, records
from gateway.ledger.rebuilding import rebuild
from gateway.ledger.store import Store
from gateway.ledger.summary import says, summary_of
from gateway.ledger.writing import refill
from otel.journal.audit import Logs, Report, audit_folder
from otel.journal.removed import folder_id
from tests.gateway_process import attributes, spans_in
from tests.journals import copy_of
from tests.ledger.books import FILES, assert_each_is_numbered_once, caught_up, everything, follower
from tests.ledger.conftest import MakeStore
from tests.rerating.rated_journals import book, changed, lines, make_rated, revisions, run

WHOLE = Period(0, 2**62)
UTC = ZoneInfo("UTC")
FIRST = changed(sats="5/6", nobody="1/2")
SECOND = changed(sats="7/8", nobody="1/2")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("revised") / "journal"
    make_rated(folder, 200)
    return folder


@pytest.fixture
def folder(tmp_path: Path, made: Path) -> Path:
    return copy_of(made, tmp_path / "journal")


def pico(usd: str | None) -> int | None:
    if usd is None:
        return None
    whole, _, fraction = usd.partition(".")
    return int(whole) * 10**12 + int(fraction.ljust(12, "0"))


def owed(folder: Path) -> dict[str, tuple[int, str, int | None]]:
    """Return by bill the number, status and cost that count now, read without the product's reader."""
    found = {
        bill["billing.record.id"]: (0, bill["billing.status"], pico(bill.get("billing.cost.usd")))
        for line in lines(folder, "S")
        for bill in map(attributes, spans_in(json.loads(line)))
    }
    for revision in revisions(folder):
        of, number = revision["billing.revision.of"], revision["billing.revision.number"]
        if number > found[of][0]:
            cost = pico(revision.get("billing.revision.cost_usd"))
            found[of] = (number, revision["billing.status"], cost)
    return found


def current(store: Store) -> dict[str, tuple[int, str, int | None]]:
    rows = store.run(
        lambda c: c.execute(text("SELECT record_id, revision, status, cost_pico FROM current_bills")).all()
    )
    return {row.record_id: (row.revision, row.status, row.cost_pico) for row in rows}


def total(store: Store) -> tuple[int, int]:
    question = costs([], Filters(), WHOLE, UTC)
    rows = store.run(lambda c: [tuple(row) for s in question.statements for row in c.execute(s)])
    (group,) = question.fold(rows)
    return group.total.bills, group.total.cost_pico


def assert_owed(store: Store, folder: Path) -> None:
    expected = owed(folder)
    assert current(store) == expected
    assert total(store) == (len(expected), sum(cost or 0 for _, _, cost in expected.values()))


def assert_sums_are_of_the_rows(store: Store, folder: Path) -> None:
    """Sums kept in steps are those that are made from all rows, to the last row."""
    before = everything(store)
    gateway_id = id_of(folder_id(folder, FILES))
    store.run(lambda c: refill(c, gateway_id), writes=True)
    assert everything(store) == before


def audited(folder: Path, store: Store) -> Report:
    return audit_folder(folder, logs=Logs(ledger=says(store, folder, FILES)))


def ledger_findings(report: Report) -> set[str]:
    return {kind for kind in report.counts if kind.startswith("ledger_")}


def test_the_newest_revision_counts_in_rows_and_sums(folder: Path, ledger: MakeStore) -> None:
    store = ledger()
    found = caught_up(folder, store)
    assert_owed(store, folder)
    revised = run(folder, FIRST).total.revised
    assert revised > 20
    while found.step() == 0.0:  # ends with the journal
        pass
    assert found.stats.revisions == revised
    assert_owed(store, folder)
    assert_sums_are_of_the_rows(store, folder)
    again = run(folder, SECOND, boot="r1").total.revised
    assert again > 5
    while found.step() == 0.0:  # ends with the journal
        pass
    assert found.stats.revisions == revised + again
    assert max(number for number, _, _ in current(store).values()) == 2
    assert_owed(store, folder)
    assert_sums_are_of_the_rows(store, folder)
    report = audited(folder, store)
    assert (report.complete, report.intact) == (True, True)
    summary = summary_of(store, folder, FILES)
    assert (summary.revisions, summary.waiting, summary.refused) == (revised + again, 0, 0)


def test_a_revision_has_lines_and_rates_of_its_own_and_all_else_of_its_bill(
    folder: Path, ledger: MakeStore
) -> None:
    run(folder, FIRST)
    store = ledger()
    caught_up(folder, store)
    bills, own = schema.bills, schema.lines
    held = store.run(lambda c: c.execute(select(bills).order_by(bills.c.record_id, bills.c.revision)).all())
    by_id = {(row.record_id, row.revision): row for row in held}
    stated = {r["billing.revision.of"]: r for r in revisions(folder)}
    assert stated
    own_columns = ("revision", "status", "rate_id", "cost_pico", "cost_lines", "current")
    same = [c.name for c in bills.c if c.name not in own_columns]
    for record_id, revision in stated.items():
        settled, row = by_id[record_id, 0], by_id[record_id, 1]
        assert [getattr(row, name) for name in same] == [getattr(settled, name) for name in same]
        rate = store.run(
            lambda c, r=row: c.execute(select(schema.rates).where(schema.rates.c.id == r.rate_id)).one()
        )
        assert rate.price_id == revision.get("billing.price.id")
        assert rate.catalog == revision.get("billing.price.catalog")
        found = store.run(
            lambda c, i=record_id: c.execute(
                select(own).where(own.c.record_id == i).order_by(own.c.line)
            ).all()
        )
        charged = [line for line in found if line.revision == 1 and line.kind != "count"]
        assert sum(line.cost_pico for line in charged) == (row.cost_pico or 0)
        counted = {n: [tuple(x)[3:] for x in found if x.revision == n and x.kind == "count"] for n in (0, 1)}
        assert counted[0] == counted[1]
    tiers = {
        bill["billing.record.id"]: bill.get("billing.service_tier")
        for line in lines(folder, "S")
        for bill in map(attributes, spans_in(json.loads(line)))
    }
    page = store.run(lambda c: c.execute(records(Filters(), WHOLE, count=1_000)).all())
    assert any(tiers.values())
    assert {row.record_id: row.service_tier for row in page} == tiers


@pytest.mark.parametrize("sums", ["kept in steps", "made at the end"])
def test_revisions_that_come_before_their_bills_wait_for_them(
    folder: Path, ledger: MakeStore, sums: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.ledger.follower.LINES_MAX", 7)
    run(folder, FIRST)
    run(folder, SECOND, boot="r1")
    in_time = ledger()
    caught_up(folder, in_time)
    expected = everything(in_time)
    in_time.run(lambda c: c.execute(text("DELETE FROM gateways")), writes=True)
    for table in (*schema.metadata.sorted_tables,):
        in_time.run(lambda c, t=table: c.execute(t.delete()), writes=True)
    in_time.close()
    # A clock that was set back: the newest revisions stand in the folder of a day before all others.
    early = folder / "2020-01-01"
    early.mkdir()
    moved = [path for path in folder.glob("2*/r1-0-*.jsonl") if path.parent != early]
    assert moved
    for path in moved:
        path.rename(early / path.name)
    store = ledger()
    if sums == "made at the end":
        store.open()
        assert rebuild(folder, store).revisions == len(revisions(folder))
    else:
        found = follower(folder, store)
        opened = found._opened()
        for batch in opened.reader.batches(7, 10**6):
            found._write(opened, batch)
            waited = summary_of(store, folder, FILES).waiting
            if waited:
                report = audited(folder, store)
                assert ledger_findings(report) == set()
                break
        assert waited
        caught_up(folder, store)
    assert summary_of(store, folder, FILES).waiting == 0
    assert everything(store) == expected
    assert_owed(store, folder)


def test_a_revision_that_comes_again_counts_once_and_another_one_is_a_conflict(
    folder: Path, ledger: MakeStore
) -> None:
    run(folder, FIRST)
    store = ledger()
    caught_up(folder, store)
    before = everything(store)
    store.run(lambda c: c.execute(schema.segments.delete()), writes=True)
    store.run(lambda c: c.execute(schema.writers.delete()), writes=True)
    again = caught_up(folder, store)
    assert (again.stats.bills, again.stats.revisions, again.stats.conflicts) == (0, 0, 0)
    assert again.stats.again == 200 + len(revisions(folder))
    assert everything(store) == before
    # The same numbers once more, of another catalogue, as if the first segment had been lost and made anew.
    other = copy_of(folder, folder.parent / "other")
    for path in other.glob("*/r0-0-*.jsonl"):
        path.unlink()
    count = run(other, SECOND, boot="r2").total.revised
    assert count
    for path in other.glob("*/r2-0-*.jsonl"):
        path.rename(folder / path.parent.name / path.name)
    clashing = caught_up(folder, store)
    assert clashing.stats.conflicts + clashing.stats.again == count
    assert clashing.stats.conflicts > 0
    assert everything(store) == before
    noted = store.run(lambda c: c.execute(select(schema.conflicts)).all())
    assert {row.kind for row in noted} == {"conflict"}
    assert all(row.record_id in row.line for row in noted)
    assert "ledger_differs" in ledger_findings(audited(folder, store))


def test_a_rebuilt_ledger_has_the_same_revisions(folder: Path, ledger: MakeStore) -> None:
    store = ledger()
    found = caught_up(folder, store)
    run(folder, FIRST)
    run(folder, SECOND, boot="r1")
    while found.step() == 0.0:  # ends with the journal
        pass
    before = everything(store)
    for processes in (1, 2):
        assert rebuild(folder, store, processes=processes).revisions == len(revisions(folder))
        assert everything(store) == before
        assert_each_is_numbered_once(store)


TAMPERED = {
    "ledger_missing": "DELETE FROM bills WHERE revision = 1 AND record_id = "
    "(SELECT MIN(record_id) FROM bills WHERE revision = 1)",
    "ledger_differs": "UPDATE bills SET status = 'unpriced', cost_pico = NULL WHERE revision = 1",
    "ledger_extra": "UPDATE bills SET revision = 7 WHERE revision = 1",
    "ledger_sum": "UPDATE bills SET current = true WHERE revision = 0",
}


@pytest.mark.parametrize("kind", TAMPERED)
def test_a_revision_that_was_changed_is_found_out(folder: Path, ledger: MakeStore, kind: str) -> None:
    run(folder, FIRST)
    store = ledger()
    caught_up(folder, store)
    assert ledger_findings(audited(folder, store)) == set()
    store.run(lambda c: c.execute(text(TAMPERED[kind])), writes=True)
    assert kind in ledger_findings(audited(folder, store))


def test_a_status_filter_finds_the_status_that_counts(folder: Path, ledger: MakeStore) -> None:
    run(folder, FIRST)
    store = ledger()
    caught_up(folder, store)
    settled = store.run(
        lambda c: c.execute(
            select(func.count()).where(schema.bills.c.revision == 0, schema.bills.c.status == "unpriced")
        ).scalar_one()
    )
    now = [record_id for record_id, (_, status, _) in owed(folder).items() if status == "unpriced"]
    assert len(now) != settled
    page = store.run(lambda c: c.execute(records(Filters(status=("unpriced",)), WHOLE, count=1_000)).all())
    assert sorted(row.record_id for row in page) == sorted(now)
    assert book().catalogue.hash != FIRST.catalogue.hash
