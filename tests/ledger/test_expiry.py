"""Old bills lose their rows and never their sums, a little at a time, and whoever checks is not misled."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from sqlalchemy import func, select, text, update

from gateway.behind import Behind
from gateway.ledger import follower as follower_module
from gateway.ledger import schema
from gateway.ledger.expiry import ROWS_A_STEP, Expiry, expire, horizon_of
from gateway.ledger.follower import Follower
from gateway.ledger.opening import passed_in
from gateway.ledger.periods import Period, days_of, in_hours
from gateway.ledger.projection import id_of
from gateway.ledger.queries import Filters, costs
from gateway.ledger.rebuilding import rebuild
from gateway.ledger.schema import DAY_NS, HOUR_NS
from gateway.ledger.store import Store
from gateway.ledger.totals import totals_of
from gateway.settings import JournalSettings, LedgerSettings, Settings, SettingsError
from otel.journal.audit import audit_folder
from otel.journal.files import Files
from otel.journal.removal import Remover, Retention
from otel.journal.removed import folder_id
from otel.journal.segments import mark_path
from tests.journals import copy_of
from tests.ledger.books import FILES, START_NS, bills_of, caught_up, everything, follower, summed, write_bills
from tests.ledger.conftest import MakeStore
from tests.ledger.test_conformance import UTC, asked, by
from tests.ledger.test_verified import audited, ledger_findings
from tests.rerating.rated_journals import DAY_S, FIRST_S, changed, make_rated, run

DAYS = 2
NOW_NS = START_NS + 4 * DAY_NS
HORIZON_NS = (NOW_NS // DAY_NS - DAYS) * DAY_NS


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written") / "journal"
    asyncio.run(write_bills(folder, range(1_000), bytes_max=300_000))
    old = [bill for bill in bills_of(folder) if bill["ended"] < HORIZON_NS]
    assert 2 * ROWS_A_STEP < len(old) < 900, "there are some that go and some that stay"
    return folder


@pytest.fixture
def folder(tmp_path: Path, written: Path) -> Path:
    return copy_of(written, tmp_path / "journal")


def expiring(folder: Path, store: Store, *, now_ns: int = NOW_NS, days: int = DAYS) -> Follower:
    """Return a follower that has nothing to follow and nothing to let go any more."""
    found = follower(folder, store, expiry=Expiry(days, lambda: now_ns))
    for _ in range(100):
        if found.step() > 0:
            break
    assert found.stats.last_error is None
    return found


def ended_of_rows(store: Store) -> list[int]:
    return list(store.run(lambda c: c.execute(select(schema.bills.c.ended_unix_ns)).scalars().all()))


def gateway_of(folder: Path) -> int:
    return id_of(folder_id(folder, Files()))


def rollups(store: Store) -> dict[str, Any]:
    found = everything(store)
    return {name: found[name] for name in found if name.startswith("costs_")}


def test_old_rows_go_with_their_lines_and_every_sum_stays(folder: Path, ledger: MakeStore) -> None:
    store = ledger()
    caught_up(folder, store)
    before = rollups(store)
    expiring(folder, store)
    assert rollups(store) == before
    young = sorted(bill["ended"] for bill in bills_of(folder) if bill["ended"] >= HORIZON_NS)
    assert sorted(ended_of_rows(store)) == young
    lines = store.run(lambda c: set(c.execute(select(schema.lines.c.record_id)).scalars()))
    kept = store.run(lambda c: set(c.execute(select(schema.bills.c.record_id)).scalars()))
    assert lines
    assert lines <= kept
    assert store.run(horizon_of) == HORIZON_NS
    days = asked(store, costs(["day"], Filters(), WHOLE_DAYS, UTC, horizon_ns=HORIZON_NS))
    assert by(days) == summed(bills_of(folder), lambda bill: day_of(bill["ended"]))
    assert audited(folder, store).complete
    assert not ledger_findings(audited(folder, store))


WHOLE_DAYS = Period(START_NS - START_NS % DAY_NS - 10 * DAY_NS, START_NS - START_NS % DAY_NS + 10 * DAY_NS)


def day_of(ended_ns: int) -> str:
    ((label, _),) = days_of(Period(ended_ns, ended_ns + 1), UTC)
    return label


@pytest.mark.parametrize("zone", ["UTC", "America/Los_Angeles", "Asia/Kolkata", "Australia/Lord_Howe"])
def test_local_days_over_the_horizon_add_up_to_their_range(
    folder: Path, ledger: MakeStore, zone: str
) -> None:
    store = ledger()
    expiring(folder, store)
    start, end = START_NS + 1_234_567_890, START_NS + 230_000 * 10**9 + 1
    assert start < HORIZON_NS < end
    days = asked(store, costs(["day"], Filters(), Period(start, end), ZoneInfo(zone), horizon_ns=HORIZON_NS))
    (whole,) = asked(store, costs([], Filters(), Period(start, end), UTC, horizon_ns=HORIZON_NS))
    bills = [bill for bill in bills_of(folder) if start - start % HOUR_NS <= bill["ended"] < end]
    assert sum(day.total.bills for day in days) == whole.total.bills == len(bills)
    assert sum(day.total.cost_pico for day in days) == whole.total.cost_pico
    for name in whole.total.tokens:
        assert sum(day.total.tokens.get(name, 0) for day in days) == whole.total.tokens[name]
    if zone != "Asia/Kolkata":
        return
    longed = asked(store, costs(["day"], Filters(), Period(start, end), ZoneInfo(zone)))
    assert sum(day.total.bills for day in longed) < len(bills), "without the horizon rows are missed"


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata"])
def test_totals_of_all_time_are_what_they_were_before_rows_went(
    folder: Path, ledger: MakeStore, zone: str
) -> None:
    store = ledger()
    caught_up(folder, store)

    def totals() -> Any:
        period = Period(0, 2**62)
        return store.run(lambda c: totals_of(c, ("key", "model", "day"), Filters(), period, ZoneInfo(zone)))

    before = totals()
    expiring(folder, store)
    after = totals()
    assert after.total == before.total
    assert {name: after.by[name] for name in ("key", "model")} == {
        name: before.by[name] for name in ("key", "model")
    }
    days = sum(group.total.requests for group in after.by["day"])
    assert days == after.total.requests == 1_000
    if zone == "UTC":
        assert after.by["day"] == before.by["day"]


@given(st.lists(st.integers(0, 10 * DAY_NS), min_size=2, max_size=6).map(sorted), st.integers(0, 10))
def test_stretches_that_adjoin_still_do_in_hours(edges: list[int], days: int) -> None:
    horizon_ns = days * DAY_NS
    cut = [in_hours(Period(a, b), horizon_ns) for a, b in pairwise(edges)]
    for before, after in pairwise(cut):
        assert before.end_ns == after.start_ns
    for found, (a, b) in zip(cut, pairwise(edges), strict=True):
        assert found.start_ns <= a
        assert a - found.start_ns < HOUR_NS
        assert found.start_ns == a or found.start_ns % HOUR_NS == 0
        assert (a < horizon_ns) or found == Period(a, b)


def test_rows_go_in_small_steps_and_only_while_there_is_nothing_to_follow(
    folder: Path, ledger: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower_module, "BATCHES_A_STEP", 1)
    monkeypatch.setattr(follower_module, "LINES_MAX", 300)
    store = ledger()
    found = follower(folder, store, expiry=Expiry(DAYS, lambda: NOW_NS))
    counts = []
    while found.step() == 0:  # ends when nothing is left to do
        counts.append(len(ended_of_rows(store)))
    level = counts.index(1_000)
    assert level >= 2
    assert counts[:level] == sorted(counts[:level]), "a row went before all was read"
    after = counts[level:]
    steps = [a - b for a, b in pairwise(after) if a != b]
    assert steps[0] == ROWS_A_STEP
    assert all(0 < step <= ROWS_A_STEP for step in steps)
    assert min(ended_of_rows(store)) >= HORIZON_NS


def test_whoever_looks_half_way_is_not_misled_and_the_next_one_goes_on(
    folder: Path, ledger: MakeStore
) -> None:
    store = ledger()
    caught_up(folder, store)
    before = rollups(store)
    assert store.run(lambda c: expire(c, gateway_of(folder), HORIZON_NS, 10), writes=True) == 10
    report = audited(folder, store)
    assert not ledger_findings(report)
    again = ledger()
    expiring(folder, again)
    assert min(ended_of_rows(again)) >= HORIZON_NS
    assert rollups(again) == before


def test_the_horizon_never_moves_back(folder: Path, ledger: MakeStore) -> None:
    store = ledger()
    caught_up(folder, store)
    store.run(lambda c: expire(c, gateway_of(folder), HORIZON_NS, 10), writes=True)
    expiring(folder, store, now_ns=NOW_NS - DAY_NS)
    assert min(ended_of_rows(store)) >= HORIZON_NS, "what was begun is finished"
    expiring(folder, store, days=DAYS + 5)
    assert store.run(horizon_of) == HORIZON_NS
    assert not ledger_findings(audited(folder, store))
    expiring(folder, store, now_ns=NOW_NS + DAY_NS)
    assert store.run(horizon_of) == HORIZON_NS + DAY_NS
    assert not ledger_findings(audited(folder, store))


def test_of_two_gateways_only_the_one_that_says_so_lets_go(
    folder: Path, tmp_path: Path, ledger: MakeStore
) -> None:
    store = ledger()
    second = tmp_path / "second"
    asyncio.run(write_bills(second, range(2_000, 2_300), boot="b7", of=2_300))
    caught_up(second, store)
    of_second = (schema.bills.c.gateway_id == gateway_of(second),)
    count = select(func.count()).select_from(schema.bills).where(*of_second)
    expiring(folder, store)
    assert store.run(lambda c: c.execute(count).scalar()) == 300
    assert not ledger_findings(audited(second, store))
    assert not ledger_findings(audited(folder, store))


SPOILED = {
    "ledger_sum": update(schema.totals)
    .where(schema.totals.c.hour >= HORIZON_NS // HOUR_NS)
    .values(cost_milli=schema.totals.c.cost_milli + 1),
    "ledger_missing": update(schema.totals)
    .where(schema.totals.c.hour < HORIZON_NS // HOUR_NS)
    .values(cost_milli=schema.totals.c.cost_milli + 1),
    "ledger_extra": update(schema.totals)
    .where(schema.totals.c.hour < HORIZON_NS // HOUR_NS)
    .values(bills=schema.totals.c.bills + 1),
}


@pytest.mark.parametrize("kind", SPOILED)
def test_sums_that_are_not_those_of_the_bills_are_found_on_both_sides_of_the_horizon(
    folder: Path, ledger: MakeStore, kind: str
) -> None:
    store = ledger()
    expiring(folder, store)
    store.run(lambda c: c.execute(SPOILED[kind]), writes=True)
    assert ledger_findings(audited(folder, store)) == {kind}


def test_a_young_row_that_is_gone_is_still_missed(folder: Path, ledger: MakeStore) -> None:
    store = ledger()
    expiring(folder, store)
    store.run(
        lambda c: c.execute(
            text("DELETE FROM bills WHERE record_id = (SELECT MAX(record_id) FROM bills WHERE cost_pico > 0)")
        ),
        writes=True,
    )
    assert "ledger_missing" in ledger_findings(audited(folder, store))


def test_a_journal_that_retention_shortened_and_a_ledger_that_let_go_still_agree(
    folder: Path, ledger: MakeStore
) -> None:
    store = ledger()
    caught_up(folder, store)
    mark_path(folder, "b0-0").unlink()
    sizes = [path.stat().st_size for path in sorted(folder.glob("2*/*.jsonl"))]
    assert len(sizes) > 3
    remover = Remover(
        folder,
        Retention(bytes_max=sum(sizes[2:])),
        consumers=frozenset(),
        asked={"ledger": lambda: passed_in(ledger(), folder, FILES)},
        pause=lambda: None,
    )
    assert remover.run() == 2
    expiring(folder, store)
    report = audited(folder, store)
    assert report.facts.removed_bills > 0
    assert not ledger_findings(report)
    remover = Remover(folder, Retention(bytes_max=1), consumers=frozenset(), asked=remover._asked)
    assert remover.run() > 0
    report = audited(folder, store)
    assert not ledger_findings(report)


def test_a_rebuild_brings_all_rows_back_and_they_go_again(folder: Path, ledger: MakeStore) -> None:
    store = ledger()
    caught_up(folder, store)
    before = everything(store)
    expiring(folder, store)
    assert rebuild(folder, store).bills == 1_000
    assert everything(store) == before
    assert store.run(horizon_of) == 0
    expiring(folder, store)
    assert rollups(store) == {name: before[name] for name in rollups(store)}
    assert store.run(horizon_of) == HORIZON_NS


def test_the_sums_of_revised_bills_stay_revised_and_those_of_gone_ones_are_left_alone(
    tmp_path: Path, ledger: MakeStore
) -> None:
    folder = tmp_path / "journal"
    made = make_rated(folder, 300)
    now_ns = (FIRST_S + 3 * DAY_S) * 10**9  # the first day of three goes
    run(folder, changed(sats="9/9"), boot="r0")
    store = ledger()
    caught_up(folder, store)
    revised = rollups(store)
    expiring(folder, store, now_ns=now_ns)
    assert rollups(store) == revised
    assert 0 < min(ended_of_rows(store)) // DAY_NS * DAY_NS == store.run(horizon_of)
    assert {one.ended_unix_ns for one in made} > set(ended_of_rows(store))
    assert not ledger_findings(audited(folder, store))
    run(folder, changed(sats="5/5"), boot="r1")
    found = expiring(folder, store, now_ns=now_ns)
    assert found.stats.revisions > 0
    waiting = store.run(lambda c: c.execute(select(func.count()).select_from(schema.waiting)).scalar())
    assert waiting, "a revision of a bill without a row waits"
    first_day = (FIRST_S * 10**9) // DAY_NS
    for name, old in revised.items():
        unit = 24 if name in ("costs_hourly", "costs_total") else 1
        now = [row for row in rollups(store)[name] if row[0] // unit == first_day]
        assert now == [row for row in old if row[0] // unit == first_day], name
    assert rollups(store) != revised, "younger bills follow their revisions"
    assert not ledger_findings(audited(folder, store))
    assert audit_folder(folder).complete


def test_a_revision_that_comes_half_way_spoils_no_sum_of_what_has_gone(
    tmp_path: Path, ledger: MakeStore
) -> None:
    folder = tmp_path / "journal"
    make_rated(folder, 300)
    store = ledger()
    caught_up(folder, store)
    before = rollups(store)["costs_total"]
    horizon_ns = (FIRST_S + DAY_S) * 10**9
    assert store.run(lambda c: expire(c, gateway_of(folder), horizon_ns, 50), writes=True) == 50
    run(folder, changed(sats="9/9"))
    assert caught_up(folder, store).stats.revisions > 0

    def old(totals: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        return [row for row in totals if row[0] < horizon_ns // HOUR_NS]

    assert old(rollups(store)["costs_total"]) == old(before)
    assert rollups(store)["costs_total"] != before, "younger bills follow their revisions"


def test_rows_that_would_go_before_the_journals_bills_refuse_to_start(tmp_path: Path) -> None:
    settings = Settings(
        journal=JournalSettings(directory=tmp_path / "journal", retention_days=30),
        ledger=LedgerSettings(url=SecretStr(f"sqlite:///{tmp_path}/ledger.db"), retention_days=29),
    )
    with pytest.raises(SettingsError, match=r"ledger\.retention_days"):
        Behind(settings, FILES, {})
