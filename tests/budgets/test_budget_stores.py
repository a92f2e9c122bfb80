"""What both databases must do alike: say what was spent, lease no more than there is, warn once."""

from __future__ import annotations

import asyncio
import threading
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import cast
from zoneinfo import ZoneInfo

import msgspec
import pytest
from sqlalchemy import func, select

from gateway.budgets import stored
from gateway.budgets.definitions import FOREVER, Budget
from gateway.budgets.leasing import Leasing
from gateway.budgets.overview import Overview
from gateway.budgets.purse import Ask
from gateway.budgets.spending import Account, Books, Spending, Unknown
from gateway.budgets.warning import Warnings
from gateway.control.schema import changes, leases, warnings
from gateway.control.store import Control
from gateway.ledger.periods import Period, midnight_ns
from gateway.ledger.position import Position
from gateway.ledger.sqlite import SqliteStore
from gateway.ledger.writing import defer_sums
from tests.budgets.conftest import Places
from tests.budgets.worlds import DAY_NS, USD
from tests.ledger.books import USERS, bills_of, caught_up, pico, write_bills

BUDGET = Budget(id="b", scope="user", payer="*", limit_pico=100 * USD, span="total")


def ask(
    base: int = 0, wanted: int = 0, *, payer: str = "alice", bills: tuple[tuple[int, int, int], ...] = ()
) -> Ask:
    return Ask(
        budget=BUDGET,
        payer=payer,
        period=FOREVER,
        base_pico=base,
        room_pico=0,
        wanted_pico=wanted,
        least_pico=wanted,
        bills=bills,
        exhausted=False,
    )


class Nothing:
    """A ledger in which nothing was spent."""

    gateway_id = 1

    def read(self, accounts: list[Account]) -> Books:
        return Books(spent_pico=dict.fromkeys(accounts, 0), position=Position({}, {}))


def leasing(control: Control, folder: Path, writer: str, *, alive: bool = True, **more: int) -> Leasing:
    if alive:
        (folder / "writers").mkdir(parents=True, exist_ok=True)
        (folder / "writers" / writer).touch()
    return Leasing(control, cast(Spending, Nothing()), folder, writer, workers=more.pop("workers", 4), **more)


@pytest.mark.parametrize("zone", ["UTC", "America/Los_Angeles", "Asia/Kolkata"])
def test_spent_is_what_the_journal_says_by_any_zones_days(places: Places, zone: str) -> None:
    asyncio.run(write_bills(places.journal, range(300)))
    caught_up(places.journal, places.ledger())
    spending = places.spending()
    place = ZoneInfo(zone)
    bills = bills_of(places.journal)
    ends = [bill["ended"] for bill in bills]
    first = datetime.fromtimestamp(min(ends) // 10**9, place).date()
    days: list[date] = [first + timedelta(days=n) for n in range(5)]
    accounts: list[Account] = [
        ("user", user, Period(midnight_ns(day, place), midnight_ns(day + timedelta(days=1), place)))
        for user in USERS
        for day in days
    ]
    spent = spending.read(accounts).spent_pico
    for scope, user, period in accounts:
        expected = sum(
            pico(bill)
            for bill in bills
            if bill["billing.user.id"] == user and period.start_ns <= bill["ended"] < period.end_ns
        )
        assert spent[scope, user, period] == expected
    assert sum(spent.values()) == sum(pico(bill) for bill in bills) > 0


def test_spending_is_not_believed_before_the_ledger_has_what_was_there(places: Places) -> None:
    asyncio.run(write_bills(places.journal, range(20)))
    spending = places.spending()
    account: Account = ("user", "alice", FOREVER)
    for _ in range(2):
        with pytest.raises(Unknown, match="before the start"):
            spending.read([account])
    store = places.ledger()
    caught_up(places.journal, store)
    before = spending.read([account]).spent_pico[account]
    gateway_id = spending.gateway_id
    store.run(lambda c: defer_sums(c, gateway_id), writes=True)
    with pytest.raises(Unknown, match="sums are being made"):
        spending.read([account])
    caught_up(places.journal, places.ledger())
    assert spending.read([account]).spent_pico[account] == before
    if isinstance(store, SqliteStore):
        store.delete()
        with pytest.raises(Unknown, match="made again"):
            spending.read([account])
        caught_up(places.journal, places.ledger())
        assert spending.read([account]).spent_pico[account] == before


def test_a_bill_leaves_its_lease_exactly_when_the_ledger_has_it(places: Places) -> None:
    asyncio.run(write_bills(places.journal, range(10)))
    caught_up(places.journal, places.ledger())
    (places.journal / "writers" / "b0-0").touch()
    lease = Leasing(places.control(), places.spending(), places.journal, "b0-0")
    (standing,) = lease.exchange(
        [ask(base=60 * USD, bills=((2, 7 * USD, 0), (20, 8 * USD, 0), (9999, USD, 0)))]
    )
    assert standing.projected == 2
    held = places.control().run(lambda c: c.execute(select(leases.c.lease_pico)).scalar_one())
    assert held == 45 * USD


def test_however_many_lease_at_once_it_is_never_more_than_there_is(places: Places) -> None:
    sides = [leasing(places.control(), places.journal, f"b{n}-0") for n in range(4)]
    granted = [0] * len(sides)
    begin = threading.Barrier(len(sides))

    def take(n: int) -> None:
        begin.wait()
        for turn in range(15):
            (standing,) = sides[n].exchange([ask(base=granted[n], wanted=(1 + turn % 3) * USD)])
            granted[n] += standing.granted_pico
            if turn % 5 == 4:
                granted[n] -= granted[n] // 2
                sides[n].exchange([ask(base=granted[n])])

    threads = [threading.Thread(target=take, args=(n,)) for n in range(len(sides))]
    for thread in threads:
        thread.start()
    highest = 0
    total = select(func.coalesce(func.sum(leases.c.lease_pico), 0))
    watching = places.control()
    while any(thread.is_alive() for thread in threads):
        highest = max(highest, int(watching.run(lambda c: c.execute(total).scalar_one())))
    for thread in threads:
        thread.join()
    assert 0 < highest <= 100 * USD
    assert 0 < sum(granted) <= 100 * USD
    assert int(watching.run(lambda c: c.execute(total).scalar_one())) == sum(granted)


def test_a_lease_of_another_folder_is_kept_until_it_is_forgotten(places: Places, tmp_path: Path) -> None:
    now = 10 * DAY_NS
    elsewhere = leasing(places.control(), tmp_path / "elsewhere", "b0-0", now_ns=lambda: now)  # type: ignore[arg-type]
    elsewhere._spending.gateway_id = 2  # type: ignore[misc]
    elsewhere.exchange([ask(wanted=80 * USD)])
    later = now + 2 * 3600 * 10**9
    for forget_after_s, granted in ((None, 0), (3 * 3600, 0), (3600, 90 * USD)):
        here = Leasing(
            places.control(),
            cast(Spending, Nothing()),
            tmp_path,
            "b1-0",
            workers=10**9,
            forget_after_s=forget_after_s,
            now_ns=lambda: later,
        )
        (standing,) = here.exchange([ask(wanted=90 * USD)])
        assert (standing.granted_pico >= granted) == (granted > 0) or standing.granted_pico == granted
        here.exchange([ask()])


def test_budgets_are_made_changed_and_deleted_with_a_note_of_who_did_it(places: Places) -> None:
    one, other = places.control(), places.control()
    assert other.run(lambda c: stored.read_all(c)) == stored.Version(0, ())
    one.run(lambda c: stored.create(c, BUDGET, "admin", 1), writes=True)
    with pytest.raises(stored.AlreadyThere):
        one.run(lambda c: stored.create(c, BUDGET, "admin", 1), writes=True)
    assert other.run(lambda c: stored.read_all(c, 0)) == stored.Version(1, (BUDGET,))
    raised = msgspec.structs.replace(BUDGET, limit_pico=200 * USD)
    assert one.run(lambda c: stored.change(c, raised, "command", 2), writes=True)
    assert other.run(lambda c: stored.read_all(c, 1)) == stored.Version(2, (raised,))
    assert other.run(lambda c: stored.read_all(c, 2)) is None
    assert one.run(lambda c: stored.remove(c, "b", "admin", 3), writes=True)
    assert not one.run(lambda c: stored.remove(c, "b", "admin", 3), writes=True)
    rows = other.run(lambda c: c.execute(select(changes).where(changes.c.kind == "budgets")).all())
    assert [(row.action, row.who, row.fields) for row in rows][1:] == [
        ("change", "command", "limit_pico"),
        ("delete", "admin", ""),
    ]


def test_a_threshold_is_told_once_by_whoever_comes_first(places: Places) -> None:
    period = Period(0, DAY_NS)
    sides = [
        Warnings(places.control(), event_id=lambda: "e", webhook=True, now_ns=lambda: 5) for _ in range(3)
    ]
    for spent in (49, 50, 79, 99):
        for side in sides:
            side.look(BUDGET, "alice", period, spent * USD)
    assert [side.given for side in sides] == [2, 0, 0]
    sides[1].look(BUDGET, "alice", period, 99 * USD, refused=True)
    sides[2].look(BUDGET, "bob", period, 100 * USD)
    assert [side.given for side in sides] == [2, 1, 3]
    rows = places.control().run(lambda c: c.execute(select(warnings)).all())
    assert sorted((row.payer, row.percent) for row in rows) == [
        (payer, percent) for payer in ("alice", "bob") for percent in (50, 80, 100)
    ]


def test_the_overview_says_what_is_spent_reserved_and_left(places: Places) -> None:
    asyncio.run(write_bills(places.journal, range(100)))
    caught_up(places.journal, places.ledger())
    overview = Overview(places.control(), places.spending(), now_ns=lambda: 1)
    single = msgspec.structs.replace(BUDGET, id="one", payer="alice")
    leasing(places.control(), places.journal, "b9-0").exchange([ask(base=3 * USD, payer="bob")])
    spent = dict.fromkeys(USERS, 0)
    for bill in bills_of(places.journal):
        spent[bill["billing.user.id"]] += pico(bill)
    (found,) = overview.of([single, BUDGET])
    assert (found.payer, found.spent_pico, found.reserved_pico) == ("alice", spent["alice"], 0)
    assert found.left_pico == 100 * USD - spent["alice"]
    payers = {one.payer: one for one in overview.payers_of(BUDGET)}
    assert {name: one.spent_pico for name, one in payers.items()} == spent
    assert payers["bob"].reserved_pico == 3 * USD
