"""What every ledger keeps, whichever database it is in."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import func, select, update

from gateway.ledger import schema, writing
from gateway.ledger.opening import passed_in
from gateway.ledger.periods import Period
from gateway.ledger.queries import After, Costs, Filters, Group, costs, lines_of, records
from gateway.ledger.queries import after as after_token
from gateway.ledger.rebuilding import WouldLose, rebuild
from gateway.ledger.sharding import Spoiled
from gateway.ledger.store import LedgerNewer, Store
from gateway.ledger.writing import Overtaken, refill
from otel.journal.files import Files
from otel.journal.reader import Reader
from otel.journal.removed import folder_id
from tests.journals import append_bill, copy_of, make_journal, record_id, remove, rows
from tests.ledger.books import (
    FILES,
    START_NS,
    assert_each_is_numbered_once,
    bills_of,
    caught_up,
    everything,
    follower,
    pico,
    rows_by_status,
    status,
    summed,
    write_bills,
)
from tests.ledger.conftest import MakeStore

WHOLE = Period(0, 2**62)
UTC = ZoneInfo("UTC")


def asked(store: Store, question: Costs) -> list[Group]:
    def read(connection: Any) -> list[Any]:
        return [tuple(row) for statement in question.statements for row in connection.execute(statement)]

    return question.fold(store.run(read))


def by(groups: list[Group]) -> dict[Any, tuple[int, int]]:
    return {group.values[0]: (group.total.bills, group.total.cost_pico) for group in groups}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written") / "journal"
    asyncio.run(write_bills(folder, range(1_000), bytes_max=300_000))
    return folder


@pytest.fixture
def folder(tmp_path: Path, written: Path) -> Path:
    return copy_of(written, tmp_path / "journal")


def test_each_bill_is_a_row_with_what_the_span_says(folder: Path, ledger: MakeStore) -> None:
    store = ledger()
    assert caught_up(folder, store).stats.bills == 1_000
    page = store.run(lambda c: c.execute(records(Filters(), WHOLE, count=1_000)).mappings().all())
    held = {row["record_id"]: row for row in page}
    for bill in bills_of(folder):
        row = held.pop(bill["billing.record.id"])
        assert row["revision"] == 0
        assert row["user_id"] == bill["billing.user.id"]
        assert row["user_name"] == bill.get("billing.user.name")
        assert row["team"] == bill.get("billing.team")
        assert (row["tags"] and json.loads(row["tags"])) == bill.get("billing.tags")
        assert row["requested_model"] == bill["gen_ai.request.model"]
        assert row["served_model"] == bill.get("gen_ai.response.model")
        assert row["model"] == bill.get("gen_ai.response.model", bill["gen_ai.request.model"])
        assert row["provider"] == bill["gen_ai.provider.name"]
        assert row["alias"] == bill.get("billing.alias")
        assert (row["status"], row["outcome"]) == (bill["billing.status"], bill["billing.outcome"])
        assert row["error_type"] == bill.get("error.type")
        assert row["attempts"] == bill["billing.attempts"]
        assert row["input_tokens"] == bill.get("gen_ai.usage.input_tokens")
        assert row["cache_read_tokens"] == bill.get("gen_ai.usage.cache_read.input_tokens")
        assert row["cost_pico"] == (pico(bill) if "billing.cost.usd" in bill else None)
        assert row["price_id"] == bill.get("billing.price.id")
        assert row["latency_us"] == round(bill["billing.latency_ms"] * 1_000)
        assert row["session_id"] == (
            bill["session.id"].replace("\0", "\ufffd") if "session.id" in bill else None
        )
        assert row["stream"] is True
        assert row["folder"] == folder_id(folder, FILES)
    assert not held


def test_the_lines_of_a_bill_are_its_cost_and_its_other_counts(folder: Path, ledger: MakeStore) -> None:
    store = ledger()
    caught_up(folder, store)
    for bill in bills_of(folder)[:300]:
        own = store.run(lambda c, b=bill: c.execute(lines_of([b["billing.record.id"]])).all())
        charged = [line for line in own if line.kind == "charge"]
        assert sum(line.cost_pico for line in charged) == pico(bill)
        assert {line.dimension for line in charged} == {
            name.removeprefix("billing.cost.").removesuffix("_usd")
            for name in bill
            if name.startswith("billing.cost.") and name.endswith("_usd") and name != "billing.cost.usd"
        }
        counted = [line for line in own if line.kind == "count"]
        assert {line.dimension: line.units for line in counted} == (
            {"cache_write_5m": 60} if "billing.usage.cache_write_5m_tokens" in bill else {}
        )


def test_the_view_shows_each_bill_once_with_names(folder: Path, ledger: MakeStore) -> None:
    store = ledger()
    caught_up(folder, store)
    found = store.run(
        lambda c: c.exec_driver_sql(
            "SELECT status, COUNT(*), SUM(cost_pico) FROM current_bills GROUP BY 1"
        ).all()
    )
    assert {name: (count, int(cost or 0)) for name, count, cost in found} == summed(bills_of(folder), status)


@pytest.mark.parametrize("dimension", ["key", "user", "team", "project", "provider", "model"])
def test_sums_by_a_dimension_are_those_of_the_journal(
    folder: Path, ledger: MakeStore, dimension: Any
) -> None:
    store = ledger()
    caught_up(folder, store)
    name = {
        "key": "billing.key.id",
        "user": "billing.user.id",
        "team": "billing.team",
        "project": "billing.project",
        "provider": "gen_ai.provider.name",
    }.get(dimension, "")

    def value(bill: dict[str, Any]) -> Any:
        if dimension == "model":
            return bill.get("gen_ai.response.model", bill["gen_ai.request.model"])
        return bill.get(name)

    bills = bills_of(folder)
    assert by(asked(store, costs([dimension], Filters(), WHOLE, UTC))) == summed(bills, value)
    # From the middle of an hour to the middle of another one: bills, hours and days take part.
    start, end = START_NS + 7_777 * 10**9, START_NS + 200_000 * 10**9 + 1
    some = [bill for bill in bills if start <= bill["ended"] < end]
    assert 0 < len(some) < len(bills)
    assert by(asked(store, costs([dimension], Filters(), Period(start, end), UTC))) == summed(some, value)


@pytest.mark.parametrize("zone", ["UTC", "America/Los_Angeles", "Asia/Kolkata", "Australia/Lord_Howe"])
def test_local_days_add_up_to_their_range(folder: Path, ledger: MakeStore, zone: str) -> None:
    store = ledger()
    caught_up(folder, store)
    bills = bills_of(folder)
    start, end = START_NS + 1_234_567_890, START_NS + 230_000 * 10**9 + 1
    for filters in (Filters(), Filters(user=("alice",)), Filters(status=("final",), provider=("azure",))):
        days = asked(store, costs(["day"], filters, Period(start, end), ZoneInfo(zone)))
        (whole,) = asked(store, costs([], filters, Period(start, end), UTC))
        assert sum(day.total.bills for day in days) == whole.total.bills
        assert sum(day.total.cost_pico for day in days) == whole.total.cost_pico
        for name in whole.total.tokens:
            assert sum(day.total.tokens.get(name, 0) for day in days) == whole.total.tokens[name]
    assert len(days) >= 3
    # A status beside every sum, and the sum of the statuses is the sum.
    for day in days:
        assert sum(sums.bills for sums in day.by_status.values()) == day.total.bills
    expected = [bill for bill in bills if start <= bill["ended"] < end]
    (whole,) = asked(store, costs([], Filters(), Period(start, end), UTC))
    assert {name: (s.bills, s.cost_pico) for name, s in whole.by_status.items()} == summed(expected, status)


def test_filters_take_several_values_and_the_unknown_one(folder: Path, ledger: MakeStore) -> None:
    store = ledger()
    caught_up(folder, store)
    wanted = [
        bill
        for bill in bills_of(folder)
        if bill.get("billing.team") in (None, "team-True") and bill["gen_ai.provider.name"] == "openai"
    ]
    filters = Filters(team=(None, "team-True"), provider=("openai",))
    (found,) = asked(store, costs([], filters, WHOLE, UTC))
    assert (found.total.bills, found.total.cost_pico) == (len(wanted), sum(map(pico, wanted)))
    assert asked(store, costs(["user"], Filters(user=("x' OR '1'='1",)), WHOLE, UTC)) == []


def test_pages_of_records_neither_repeat_nor_leave_out(folder: Path, ledger: MakeStore) -> None:
    store = ledger()
    caught_up(folder, store)
    for newest_first in (False, True):
        place: After | None = None
        found: list[str] = []
        while True:  # ends with the records
            question = records(Filters(), WHOLE, count=73, after=place, newest_first=newest_first)
            page = store.run(lambda c, q=question: c.execute(q).all())
            found += [row.record_id for row in page[:73]]
            if len(page) <= 73:
                break
            place = after_token(After(page[72].ended_unix_ns, page[72].record_id).token())
        wanted = [b["billing.record.id"] for b in sorted(bills_of(folder), key=lambda b: b["ended"])]
        assert found == (wanted[::-1] if newest_first else wanted)


@pytest.mark.parametrize("newest_first", [False, True])
def test_pages_of_records_of_one_moment_go_by_their_ids_whatever_is_added(
    tmp_path: Path, ledger: MakeStore, newest_first: bool
) -> None:
    folder = tmp_path / "journal"
    asyncio.run(write_bills(folder, range(10, 100, 2), at_once=True))  # not in the order of their ids' time
    asyncio.run(write_bills(folder, range(11, 50, 2), at_once=True, boot="b1"))
    asyncio.run(write_bills(folder, range(200, 210), at_once=False, boot="b2"))
    store = ledger()
    caught_up(folder, store)
    wanted = [b["billing.record.id"] for b in sorted(bills_of(folder), key=_moment)]
    assert len({b["ended"] for b in bills_of(folder)}) == 11
    if newest_first:
        wanted.reverse()
    found: list[str] = []
    place = None
    for turn in range(100):
        question = records(Filters(), WHOLE, count=4, after=place, newest_first=newest_first)
        page = store.run(lambda c, q=question: c.execute(q).all())
        found += [row.record_id for row in page[:4]]
        if len(page) <= 4:
            break
        place = after_token(After(page[3].ended_unix_ns, page[3].record_id).token())
        if turn == 5:  # of the same moment, before and behind the place that was reached
            asyncio.run(write_bills(folder, (1, 60 + 1, 99), at_once=True, boot="b3"))
            caught_up(folder, store)
    added = {b["billing.record.id"] for b in bills_of(folder)} - set(wanted)
    assert len(added) == 3
    assert [one for one in found if one not in added] == wanted
    assert len(set(found)) == len(found)
    everything_now = [b["billing.record.id"] for b in sorted(bills_of(folder), key=_moment)]
    if newest_first:
        everything_now.reverse()
    assert found == [one for one in everything_now if one in wanted or one in found]
    assert added & set(found)
    assert added - set(found)


def _moment(bill: dict[str, Any]) -> tuple[int, str]:
    return bill["ended"], bill["billing.record.id"]


def test_a_bill_that_comes_twice_counts_once(folder: Path, ledger: MakeStore) -> None:
    store = ledger()
    caught_up(folder, store)
    before = everything(store)

    def start_over(connection: Any) -> None:
        connection.execute(update(schema.segments).values(passed=0))
        connection.execute(update(schema.writers).values(seen=0))

    store.run(start_over, writes=True)
    again = caught_up(folder, store)
    assert (again.stats.again, again.stats.bills, again.stats.conflicts) == (1_000, 0, 0)
    assert everything(store) == before


def test_a_second_different_bill_alarms_and_does_not_count(
    tmp_path: Path, ledger: MakeStore, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_journal(tmp_path / "journal")
    store = ledger()
    caught_up(folder, store)
    before = rows_by_status(store)
    append_bill(folder, 5, lambda text: text)
    append_bill(folder, 5, lambda text: text.replace('"stringValue":"ok"', '"stringValue":"interrupted"'))
    append_bill(folder, 5, lambda text: text)
    found = caught_up(folder, store)
    assert (found.stats.bills, found.stats.again, found.stats.conflicts) == (1, 1, 1)
    assert "are not in the ledger" in caplog.text
    (noted,) = store.run(lambda c: c.execute(select(schema.conflicts)).all())
    assert (noted.kind, noted.record_id) == ("conflict", record_id(1005))
    assert "interrupted" in noted.line
    after = rows_by_status(store)
    assert sum(count for count, _ in after.values()) == sum(count for count, _ in before.values()) + 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            '"billing.cost.usd","value":{"stringValue":"',
            '"billing.cost.usd","value":{"stringValue":"99999999',
        ),
        ('"intValue":"130"', '"intValue":"1000000000001"'),
        ('"billing.status","value":{"stringValue":"', '"billing.status","value":{"stringValue":"un'),
        ('"billing.outcome"', '"billing.outgone"'),
    ],
)
def test_a_bill_that_cannot_be_held_is_kept_apart_and_holds_nothing_up(
    tmp_path: Path, ledger: MakeStore, old: str, new: str
) -> None:
    folder = make_journal(tmp_path / "journal")
    store = ledger()
    whole = caught_up(folder, store).stats.bills

    def alter(text: str) -> str:
        assert old in text
        return text.replace(old, new)

    append_bill(folder, 5, alter)
    append_bill(folder, 6, lambda text: text)
    found = caught_up(folder, store)
    assert (found.stats.bills, found.stats.refused) == (1, 1)
    assert sum(count for count, _ in rows_by_status(store).values()) == whole + 1
    (noted,) = store.run(lambda c: c.execute(select(schema.conflicts)).all())
    assert noted.kind == "refused"


def test_roll_ups_made_again_are_what_was_kept(folder: Path, ledger: MakeStore) -> None:
    store = ledger()
    opened = caught_up(folder, store)
    before = everything(store)
    gateway = store.run(lambda c: c.execute(select(schema.gateways.c.id)).scalar_one())
    store.run(lambda c: refill(c, gateway), writes=True)
    assert everything(store) == before
    assert opened.stats.conflicts == 0


def test_sums_beyond_64_bits_are_exact(tmp_path: Path, ledger: MakeStore) -> None:
    folder = make_journal(tmp_path / "journal")
    for number in range(10):  # 9 million USD each: two of them are more than 64 bits of pico-USD
        append_bill(folder, number, _nine_million)
    store = ledger()
    assert caught_up(folder, store).stats.refused == 0
    wanted = sum(map(pico, bills_of(folder)))
    assert wanted > 2**63
    for period in (WHOLE, Period(0, 1_728_043_200 * 10**9 + 6)):  # from roll-ups, and from bills
        groups = asked(store, costs(["user"], Filters(), period, UTC))
        assert sum(group.total.cost_pico for group in groups) == wanted
    gateway = store.run(lambda c: c.execute(select(schema.gateways.c.id)).scalar_one())
    before = everything(store)
    store.run(lambda c: refill(c, gateway), writes=True)
    (found,) = asked(store, costs([], Filters(), WHOLE, UTC))
    assert found.total.cost_pico == wanted
    assert [r[:-2] for r in everything(store)["costs_hourly"]] == [r[:-2] for r in before["costs_hourly"]]


def _nine_million(text: str) -> str:
    """Make the first line of a bill's cost, and with it the bill, 9 million USD dearer."""
    for old in (
        '"billing.cost.usd","value":{"stringValue":"0.',
        '"billing.cost.input_usd","value":{"stringValue":"0.',
        '\\"usd\\":\\"0.',
    ):
        assert old in text
        text = text.replace(old, old.removesuffix("0.") + "9000000.", 1)
    return text


def test_two_gateways_share_a_ledger_and_a_rebuild_touches_only_its_own(
    tmp_path: Path, ledger: MakeStore
) -> None:
    first, second = make_journal(tmp_path / "one"), make_journal(tmp_path / "two")
    for number in range(5):
        append_bill(second, 100 + number, lambda text: text)
    store = ledger()
    one = caught_up(first, store).stats.bills
    two = caught_up(second, store)
    assert (two.stats.bills, two.stats.again) == (5, one)  # the bills of a copied journal are the same bills
    before = everything(store)
    other = rebuild(second, store)
    assert other.bills == 5
    assert everything(store) == before


def test_bills_that_are_there_already_spoil_no_rebuild_by_other_processes(
    tmp_path: Path, ledger: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = make_journal(tmp_path / "one"), make_journal(tmp_path / "two")
    (second / "folder-id").write_text("f" * 32)
    for number in range(5):
        append_bill(second, 100 + number, lambda text: text)
    store = ledger()
    one = caught_up(first, store).stats.bills
    two = caught_up(second, store)
    assert (two.stats.bills, two.stats.again) == (5, one)
    before = everything(store)
    spoiled = []
    take_over = writing.take_over

    def spied(connection: Any) -> None:
        try:
            take_over(connection)
        except Spoiled:
            spoiled.append(1)
            raise

    monkeypatch.setattr(writing, "take_over", spied)
    assert rebuild(second, store, processes=2).bills == 5
    assert everything(store) == before
    on_sqlite = type(store).__name__ == "SqliteStore"
    assert bool(spoiled) == on_sqlite, "no shard had a bill that was there"
    assert_each_is_numbered_once(store)
    rebuild(first, store, processes=2)
    assert everything(store) == before
    assert store.workshop is None or not store.workshop.exists()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_rebuilt_ledger_is_the_same_row_for_row(folder: Path, ledger: MakeStore, processes: int) -> None:
    store = ledger()
    caught_up(folder, store)
    before = everything(store)
    done = rebuild(folder, store, processes=processes)
    assert (done.bills, done.conflicts, done.refused, done.lost) == (1_000, 0, 0, 0)
    assert everything(store) == before
    assert_each_is_numbered_once(store)
    found = caught_up(folder, store)
    assert (found.stats.bills, found.stats.again) == (0, 0)


def test_other_processes_read_what_this_one_would_have_read(
    tmp_path: Path, ledger: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_journal(tmp_path / "journal")  # a sync failed in it, so that records stand twice
    append_bill(folder, 5, lambda text: text)
    append_bill(folder, 5, lambda text: text.replace('"stringValue":"ok"', '"stringValue":"interrupted"'))
    store = ledger()
    caught_up(folder, store)
    before = everything(store)
    noted = store.run(lambda c: c.execute(select(schema.conflicts.c.line, schema.conflicts.c.line_end)).all())
    again: list[str] = []
    read_here = Reader.batches_of

    def spied(self: Reader, stretch: Any, *bounds: int) -> Any:
        again.append(stretch.name)
        return read_here(self, stretch, *bounds)

    monkeypatch.setattr(Reader, "batches_of", spied)
    done = rebuild(folder, store, processes=2)
    assert done.conflicts == 1
    assert everything(store) == before
    assert noted == store.run(
        lambda c: c.execute(select(schema.conflicts.c.line, schema.conflicts.c.line_end)).all()
    )
    here = [name for name in again if "b0-0" in name]
    assert here, "no segment was read again here, so the records that stand twice were not"


@pytest.mark.parametrize("processes", [1, 2])
def test_a_rebuild_that_died_before_its_sums_is_finished_by_the_follower(
    folder: Path, ledger: MakeStore, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    store = ledger()
    caught_up(folder, store)
    before = everything(store)

    class Killed(BaseException):
        pass

    def killed(*_: object, **__: object) -> None:
        raise Killed

    monkeypatch.setattr("gateway.ledger.rebuilding.refill", killed)
    with pytest.raises(Killed):
        rebuild(folder, store, processes=processes)
    assert not everything(store)["costs_daily"]
    assert caught_up(folder, store).stats.bills == 0
    assert everything(store) == before


def test_what_retention_removed_is_not_lost_silently(
    tmp_path: Path, ledger: MakeStore, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_journal(tmp_path / "journal")
    store = ledger()
    caught_up(folder, store)
    before = everything(store)
    segments = list(dict.fromkeys(row.segment for row in rows(folder)))
    remove(folder, *segments[:2])
    assert caught_up(folder, store).stats.bills == 0  # it has what was removed
    with pytest.raises(WouldLose, match="not in the journal any more"):
        rebuild(folder, store)
    assert everything(store) == before
    store.run(lambda c: c.execute(schema.segments.delete()), writes=True)  # as an empty ledger would say
    found = follower(folder, store)
    assert found.step() > 0
    assert found.stats.stopped
    assert "--accept-loss" in str(found.stats.last_error)
    assert "the ledger is not followed" in caplog.text
    assert not passed_in(ledger(), folder, Files())
    done = rebuild(folder, store, accept=True)
    assert done.lost > 0
    assert done.bills + done.lost == len(before["bills"])
    assert caught_up(folder, store).stats.last_error is None


def test_a_newer_schema_is_left_alone(folder: Path, ledger: MakeStore) -> None:
    store = ledger()
    store.open()
    store.run(lambda c: c.exec_driver_sql("UPDATE ledger_schema SET version_num = '9999'"), writes=True)
    with pytest.raises(LedgerNewer, match="9999"):
        ledger().open()
    found = follower(folder, ledger())
    found.step()
    assert found.stats.stopped
    assert "newer" in str(found.stats.last_error)


def test_of_two_followers_of_one_journal_the_slower_one_writes_nothing(
    folder: Path, ledger: MakeStore
) -> None:
    slow_store, store = ledger(), ledger()
    slow = follower(folder, slow_store)
    opened = slow._opened()
    batch = next(opened.reader.batches(100, 10**6))
    caught_up(folder, store)
    before = everything(store)
    with pytest.raises(Overtaken):
        slow._write(opened, batch)
    assert everything(store) == before
    assert slow.stats.bills == 0


def test_a_follower_that_was_overtaken_reads_on_from_where_the_other_one_is(
    folder: Path, ledger: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.ledger.follower.LINES_MAX", 50)
    monkeypatch.setattr("gateway.ledger.follower.BATCHES_A_STEP", 2)
    first, second = follower(folder, ledger()), follower(folder, ledger())
    first._opened()
    assert second.step() == 0.0
    for turn in range(200):
        waits = [one.step() for one in (first, second)]
        if turn and min(waits) > 0 and first.stats.bills + second.stats.bills == 1_000:
            break
    assert first.stats.bills + second.stats.bills == 1_000
    assert first.stats.again == second.stats.again == 0
    assert rows_by_status(first._store) == summed(bills_of(folder), status)


def test_retention_is_told_what_the_ledger_has(folder: Path, ledger: MakeStore) -> None:
    assert not passed_in(ledger(), folder, Files())
    caught_up(folder, ledger())
    assert passed_in(ledger(), folder, Files()) == {
        str(p.relative_to(folder)): p.stat().st_size
        for p in folder.glob("*/*.jsonl")
        if p.parent.name[0] == "2"
    }


def test_counts_of_rows_are_counts_of_bills(folder: Path, ledger: MakeStore) -> None:
    store = ledger()
    caught_up(folder, store)
    assert (
        store.run(lambda c: c.execute(select(func.count()).select_from(schema.bills)).scalar_one()) == 1_000
    )
    assert rows_by_status(store) == summed(bills_of(folder), status)
