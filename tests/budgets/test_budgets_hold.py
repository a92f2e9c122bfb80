"""Whatever happens to whichever process: spent and reserved never pass the limit, and nothing leaks."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from gateway.budgets.definitions import Budget
from gateway.core.errors import SpanbillError
from tests.budgets.worlds import DAY_NS, USD, Process, World, identity

WHO = [identity("alice", team="a"), identity("bob", team="a"), identity("carol", team="b"), identity("dave")]
BUDGETS = (
    Budget(id="each", scope="user", payer="*", limit_pico=120 * USD, span="day"),
    Budget(id="key", scope="key", payer="key-dave", limit_pico=300 * USD, span="total"),
    Budget(id="team", scope="team", payer="a", limit_pico=200 * USD, span="day", zone="Asia/Kolkata"),
    Budget(id="told", scope="team", payer="*", limit_pico=10 * USD, span="week", mode="warn"),
)
FAULTS = ("killed", "stopped", "recovered", "ledger away", "control away", "answer lost", "ledger lost")
RUNS = 4
REQUESTS = 10_000 // RUNS


class Chance:
    """One seeded run: every step is a request, an end, or a fault, and after each the books are looked at."""

    def __init__(self, world: World, toss: random.Random) -> None:
        self.world = world
        self.toss = toss
        self.happened: Counter[str] = Counter()

    async def run(self, requests: int) -> None:
        for _ in range(3):
            self.world.start(workers=self.toss.choice((1, 3)))
        while self.happened["asked"] < requests:  # each turn asks with a chance of a half
            await self.step()
            for who in WHO:
                self.world.check(who)

    async def step(self) -> None:
        world, toss = self.world, self.toss
        process = toss.choice(world.processes)
        if toss.random() < 0.1:
            world.ledger_away = world.control.away = False
        dice = toss.random()
        if dice < 0.5:
            await self.ask(process)
        elif dice < 0.86:
            if process.open:
                request = toss.choice(list(process.open))
                most = process.open[request][1]
                self.happened["ended"] += 1
                process.end(request, toss.choice((None, 0, most // 7, most // 2, most, most + most // 9)))
        elif dice < 0.91:
            world.project(toss.randrange(1, 40))
        elif dice < 0.96:
            await process.keeper.tend()
        elif dice < 0.97:
            self.move_clock(toss.choice((10**9, 7 * 10**9, DAY_NS // 3, -DAY_NS // 10)))
        elif dice < 0.975:
            self.fault()
        elif dice < 0.98:
            await self.end(process)
        elif world.dead:
            self.happened["recovered"] += 1
            world.recover(toss.choice(world.dead), process, lambda: toss.choice((0.0, 0.3, 1.0)))

    def move_clock(self, by_ns: int) -> None:
        """Move it; never back into a period that has ended: what is reserved since may be billed there."""
        world = self.world
        if by_ns > 0 or all(
            b.period_at(world.now_ns) == b.period_at(world.now_ns + by_ns) for b in world.budgets
        ):
            world.now_ns += by_ns

    async def ask(self, process: Process) -> None:
        self.happened["asked"] += 1
        who = self.toss.choice(WHO)
        process.on_sleep = self.project
        try:
            await process.begin(who, self.toss.randrange(1, 6 * USD))
            self.happened["admitted"] += 1
        except SpanbillError as refusal:
            self.happened[refusal.code] += 1

    async def project(self) -> None:
        if self.toss.random() < 0.2:
            self.world.project(5)

    def fault(self) -> None:
        what = self.toss.choice(("ledger away", "control away", "answer lost", "ledger lost"))
        self.happened[what] += 1
        world = self.world
        world.ledger_away = what == "ledger away"
        world.control.away = what == "control away"
        world.control.lose_answer = what == "answer lost"
        if what == "ledger lost":
            world.lose_ledger()
            world.project(self.toss.randrange(1 + world.highest))

    async def end(self, process: Process) -> None:
        if self.toss.random() < 0.7:
            self.happened["killed"] += 1
            process.die()
        else:
            self.happened["stopped"] += 1
            for request in list(process.open):
                process.end(request, 0)
            await process.stop()
        self.world.start(workers=self.toss.choice((1, 3)))


@pytest.mark.parametrize("seed", range(RUNS))
async def test_at_every_step_of_ten_thousand_requests_with_crashes_no_budget_is_passed(
    seed: int, tmp_path: Path
) -> None:
    world = World(tmp_path, BUDGETS)
    chance = Chance(world, random.Random(seed))
    await chance.run(REQUESTS)
    assert all(chance.happened[what] > 0 for what in FAULTS), chance.happened
    assert chance.happened["admitted"] > REQUESTS // 5, chance.happened
    await all_is_given_back(world)


async def all_is_given_back(world: World) -> None:
    """When nothing is under way, everything that is not spent can be had again."""
    world.ledger_away = world.control.away = world.control.lose_answer = False
    last = world.start()
    for dead in list(world.dead):
        world.recover(dead, last, lambda: 0.5)
    for process in list(world.processes):
        for request in list(process.open):
            process.end(request, None)
    world.project()
    for process in list(world.processes):
        await process.keeper.tend()
    for process in list(world.processes):
        if process is not last:
            await process.stop()
            world.recover(process, last, lambda: 0.5)
    world.now_ns += 10 * DAY_NS  # a new period: all is there
    for who, most in ((WHO[0], 120), (WHO[2], 120)):
        request = await last.begin(who, most * USD)
        last.end(request, None)
    world.now_ns += 10 * 10**9
    await last.keeper.tend()
    assert world.leased() == 0
    assert world.lease_rows() == 0
    await last.stop()
