"""Who is let in, who is refused and how it is said, and what one process does for another."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.budgets import stored
from gateway.budgets.definitions import Budget
from gateway.budgets.leasing import Leasing
from gateway.core.errors import CallerError, GatewayFault, SpanbillError
from tests.budgets.worlds import DAY_NS, USD, Process, World, identity

DAY = Budget(id="day", scope="user", payer="*", limit_pico=10 * USD, span="day")
TOTAL = msgspec.structs.replace(DAY, id="total", span="total")
TEAM = Budget(id="team", scope="team", payer="a", limit_pico=15 * USD, span="month")
ALICE = identity("alice", team="a")
BOB = identity("bob", team="a")
CAROL = identity("carol")


def world(folder: Path, *budgets: Budget) -> World:
    return World(folder, budgets or (DAY,))


async def refused(process: Process, amount: int | None, who: Any = ALICE) -> SpanbillError:
    with pytest.raises(SpanbillError) as error:
        await process.begin(who, amount)
    return error.value


async def test_of_two_hundred_at_once_no_more_get_in_than_there_is_money_for(tmp_path: Path) -> None:
    there = world(tmp_path)
    process = there.start()
    found = await asyncio.gather(*[process.begin(ALICE, USD) for _ in range(200)], return_exceptions=True)
    assert sum(isinstance(one, int) for one in found) == 10
    refusals = [one for one in found if not isinstance(one, int)]
    assert {type(one) for one in refusals} == {CallerError}
    there.check(ALICE)


async def test_where_there_is_room_nothing_is_awaited_and_nothing_asked(tmp_path: Path) -> None:
    there = world(tmp_path)
    process = there.start()
    process.end(await process.begin(ALICE, USD), USD)
    there.control.away = there.ledger_away = True  # nobody would answer
    for _ in range(9):
        entering = process.begin(ALICE, USD)
        with pytest.raises(StopIteration):
            entering.send(None)  # it ends without having waited once


async def test_a_request_without_a_budget_is_never_affected(tmp_path: Path) -> None:
    there = world(tmp_path, TEAM)
    process = there.start()
    there.control.away = there.ledger_away = True
    process.end(await process.begin(CAROL, 10**9 * USD), USD)
    assert (await refused(process, 1)).code == "budget_unknown"


async def test_a_spent_period_is_429_until_its_end_and_sdks_do_not_try_again(tmp_path: Path) -> None:
    there = world(tmp_path)
    process = there.start()
    process.end(await process.begin(ALICE, 10 * USD), 9 * USD)
    error = await refused(process, 2 * USD)
    assert (error.status, error.code) == (429, "budget_exceeded")
    assert (b"x-should-retry", b"false") in error.headers
    assert error.retry_after_s is not None
    ends_at = there.now_ns + error.retry_after_s * 10**9
    assert DAY.period_at(ends_at).start_ns == DAY.period_at(there.now_ns).end_ns
    assert DAY.period_at(ends_at - 10**9).start_ns == DAY.period_at(there.now_ns).start_ns
    for part in ("day", "alice", "10 USD", "9 USD are spent", "up to 2 USD", "begins anew at 20"):
        assert part in error.message, error.message
    there.now_ns = ends_at

    async def project() -> None:
        there.project()

    process.on_sleep = project  # the ledger is a moment behind
    process.end(await process.begin(ALICE, 2 * USD), USD)


async def test_a_spent_total_is_402(tmp_path: Path) -> None:
    process = world(tmp_path, TOTAL).start()
    process.end(await process.begin(ALICE, 10 * USD), 9 * USD)
    error = await refused(process, 2 * USD)
    assert (error.status, error.code, error.retry_after_s) == (402, "budget_exceeded", None)


async def test_a_request_above_the_limit_is_402_and_told_to_ask_for_less(tmp_path: Path) -> None:
    process = world(tmp_path).start()
    error = await refused(process, 11 * USD)
    assert (error.status, error.code) == (402, "budget_exceeded")
    assert "max_tokens" in error.message


async def test_what_is_only_reserved_is_worth_another_try(tmp_path: Path) -> None:
    process = world(tmp_path).start()
    request = await process.begin(ALICE, 9 * USD)
    error = await refused(process, 2 * USD)
    assert (error.status, error.code, error.retry_after_s) == (429, "budget_in_use", 1)
    assert not error.headers
    process.end(request, USD)
    await process.begin(ALICE, 2 * USD)


async def test_of_several_budgets_all_must_have_room_or_none_is_touched(tmp_path: Path) -> None:
    there = world(tmp_path, DAY, TEAM)
    process = there.start()
    await process.begin(ALICE, 8 * USD)
    await process.begin(BOB, 6 * USD)
    error = await refused(process, 2 * USD, BOB)
    assert "budget team" in error.message
    await process.begin(BOB, USD)
    assert [there.reserved(DAY, name) for name in ("alice", "bob")] == [8 * USD, 7 * USD]
    assert there.reserved(TEAM, "a") == 15 * USD


async def test_a_lowered_limit_holds_for_what_becomes_free(tmp_path: Path) -> None:
    there = World(tmp_path, ())
    process = there.start()
    there.control.run(lambda c: stored.create(c, DAY, "me", 1), writes=True)
    await process.keeper.tend()
    first, second = await process.begin(ALICE, 8 * USD), await process.begin(ALICE, USD)
    lower = msgspec.structs.replace(DAY, limit_pico=6 * USD)
    there.control.run(lambda c: stored.change(c, lower, "me", 2), writes=True)
    await process.keeper.tend()
    await refused(process, 2 * USD)
    process.end(first, None)
    await refused(process, 6 * USD)
    process.end(await process.begin(ALICE, 5 * USD), None)
    process.end(second, None)


async def test_a_release_gives_all_of_it_back(tmp_path: Path) -> None:
    process = world(tmp_path).start()
    for _ in range(5):
        process.end(await process.begin(ALICE, 10 * USD), None)


async def test_a_bill_above_its_reservation_counts_in_full(tmp_path: Path) -> None:
    there = world(tmp_path)
    process = there.start()
    process.end(await process.begin(ALICE, 8 * USD), 9 * USD)
    assert process.keeper.overdrawn_pico == USD
    assert (await refused(process, 2 * USD)).code == "budget_exceeded"
    await process.begin(ALICE, USD)


async def test_money_that_lies_idle_with_one_process_comes_to_another(tmp_path: Path) -> None:
    there = world(tmp_path)
    one, other = there.start(), there.start()
    one.end(await one.begin(ALICE, USD), None)  # it holds all that there is
    tended = 0

    async def tend() -> None:
        nonlocal tended
        tended += 1
        await one.keeper.tend()

    other.on_sleep = tend
    await other.begin(ALICE, 9 * USD)
    assert tended
    there.check(ALICE)
    assert (await refused(one, 2 * USD)).code == "budget_in_use"


async def test_an_idle_lease_is_given_back_unasked(tmp_path: Path) -> None:
    there = world(tmp_path)
    process = there.start()
    process.end(await process.begin(ALICE, USD), None)
    assert there.leased() == 10 * USD
    there.now_ns += 6 * 10**9
    await process.keeper.tend()
    assert (there.leased(), there.lease_rows()) == (0, 0)


async def test_what_a_dead_process_held_is_free_only_when_its_bills_are_in_the_ledger(tmp_path: Path) -> None:
    there = world(tmp_path)
    one = there.start()
    await one.begin(ALICE, 8 * USD)
    one.die()
    other = there.start()
    assert (await refused(other, 3 * USD)).code == "budget_in_use"
    there.recover(one, other, lambda: 0.75)
    there.now_ns += 10**9
    assert (await refused(other, 3 * USD)).code == "budget_in_use"  # written, and not yet in the ledger
    there.check(ALICE)
    there.project()
    there.now_ns += 10**9
    await other.begin(ALICE, 3 * USD)
    there.check(ALICE)
    assert (await refused(other, 2 * USD)).code == "budget_in_use"


async def test_leases_of_the_dead_are_swept_though_nobody_asks(tmp_path: Path) -> None:
    there = world(tmp_path)
    one, other = there.start(), there.start()
    await one.begin(ALICE, 8 * USD)
    one.die()
    there.recover(one, other, lambda: 1.0)
    await other.keeper.tend()
    assert there.lease_rows() == 1
    there.project()
    there.now_ns += 2 * 10**9
    await other.keeper.tend()
    assert there.lease_rows() == 0


async def test_a_clock_that_goes_back_finds_the_old_period_as_it_was(tmp_path: Path) -> None:
    there = world(tmp_path)
    process = there.start()
    process.end(await process.begin(ALICE, 10 * USD), 9 * USD)
    there.project()
    there.now_ns += DAY_NS
    process.end(await process.begin(ALICE, 5 * USD), None)  # a new day, with room
    there.now_ns -= DAY_NS
    assert (await refused(process, 2 * USD)).code == "budget_exceeded"


@pytest.mark.parametrize("policy", ["refuse", "admit"])
async def test_while_spending_is_unknown_the_policy_decides(tmp_path: Path, policy: str) -> None:
    there = world(tmp_path)
    process = there.start(when_unknown=policy)
    there.ledger_away = True
    if policy == "admit":
        process.end(await process.begin(ALICE, USD), USD)
    else:
        error = await refused(process, USD)
        assert isinstance(error, GatewayFault)
        assert (error.status, error.code, error.retry_after_s) == (503, "budget_unknown", 1)
        there.ledger_away = False
        there.now_ns += 10**9
        await process.begin(ALICE, USD)


@pytest.mark.parametrize("policy", ["refuse", "admit"])
async def test_a_cost_without_a_bound_is_refused_or_let_in(tmp_path: Path, policy: str) -> None:
    process = world(tmp_path).start(when_unpriced=policy)
    if policy == "admit":
        process.end(await process.begin(ALICE, None), 0)
    else:
        error = await refused(process, None)
        assert (error.status, error.code) == (402, "model_unpriced")


async def test_a_budget_that_only_warns_refuses_nobody(tmp_path: Path) -> None:
    process = world(tmp_path, msgspec.structs.replace(DAY, mode="warn")).start()
    for amount in (9 * USD, 90 * USD, None):
        process.end(await process.begin(ALICE, amount), 9 * USD)


async def test_a_changed_limit_holds_with_the_next_look(tmp_path: Path) -> None:
    there = World(tmp_path, ())
    process = there.start()
    there.control.run(lambda c: stored.create(c, DAY, "me", 1), writes=True)
    await process.keeper.tend()
    process.end(await process.begin(ALICE, 5 * USD), 5 * USD)
    lower = msgspec.structs.replace(DAY, limit_pico=6 * USD)
    there.control.run(lambda c: stored.change(c, lower, "me", 2), writes=True)
    await process.keeper.tend()
    assert (await refused(process, 2 * USD)).code == "budget_exceeded"
    there.control.run(lambda c: stored.change(c, DAY, "me", 3), writes=True)
    await process.keeper.tend()
    process.end(await process.begin(ALICE, 2 * USD), 0)
    there.control.run(lambda c: stored.remove(c, DAY.id, "me", 4), writes=True)
    await process.keeper.tend()
    process.end(await process.begin(ALICE, 999 * USD), 0)
    there.project()
    there.now_ns += 10**10
    for _ in range(3):
        await process.keeper.tend()
    assert there.lease_rows() == 0


async def test_a_lease_that_was_granted_and_not_heard_of_is_not_spent(tmp_path: Path) -> None:
    there = world(tmp_path)
    process = there.start()
    there.control.lose_answer = True
    await process.begin(ALICE, 4 * USD)
    assert there.leased() <= 10 * USD
    await process.begin(ALICE, 6 * USD)
    there.check(ALICE)


async def test_the_writing_statement_itself_keeps_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = world(tmp_path)
    one, other = there.start(), there.start()
    await one.begin(ALICE, 8 * USD)
    monkeypatch.setattr(Leasing, "_others", lambda self, c, me, asks: ())  # it believes to be alone
    await refused(other, 3 * USD)
    there.check(ALICE)


async def test_each_threshold_is_told_once_whoever_sees_it_and_however_often(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    there = world(tmp_path)

    def told() -> list[int]:
        return [record.percent for record in caplog.records if "threshold" in record.message]  # type: ignore[attr-defined]

    for spend, expected in ((4, []), (1, [50]), (3, [50, 80]), (1, [50, 80])):
        process = there.start()
        process.end(await process.begin(ALICE, spend * USD), spend * USD)
        there.project()
        for _ in range(2):
            await process.keeper.tend()
        assert told() == expected
        await process.stop()
        there.recover(process, there.start(), lambda: 0.0)
        await there.processes[-1].keeper.tend()
    process = there.processes[-1]
    await refused(process, 2 * USD)  # the rest is too little
    await process.keeper.tend()
    assert told() == [50, 80, 100]
    there.now_ns += DAY_NS
    process.end(await process.begin(ALICE, 9 * USD), 9 * USD)
    there.project()
    await process.keeper.tend()
    assert told() == [50, 80, 100, 50, 80]


async def test_a_start_without_the_database_knows_the_budgets_of_before(tmp_path: Path) -> None:
    there = World(tmp_path, ())
    memo = stored.Memo(tmp_path / "known.json")
    assert memo.recall() == ()
    memo.remember((DAY,))
    there.control.away = True
    process = there.start(memo=memo)
    assert (await refused(process, 1)).code == "budget_unknown"
    (tmp_path / "known.json").write_text("{")
    assert memo.recall() == ()
