"""Run worlds by seed: `python -m tests.simulator.run [--worlds 100] [--seed 0]`; exits 1 on a breach."""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import sys
import time
from collections import Counter
from typing import NamedTuple

from tests.simulator.audit import breaches
from tests.simulator.world import World

LIVES = 10
REQUESTS = 16
SHOWN_MAX = 20
BREACH = 3
"""Exit code of --until-breach: not to be confused with a Python that could not begin."""


class Outcome(NamedTuple):
    """What one world came to."""

    seed: int
    requests: int
    crashes: int
    power_losses: int
    clock_jumps: int
    joined: int
    fired: dict[str, int]
    breaches: list[str]


def run_world(seed: int) -> Outcome:
    logging.disable(logging.CRITICAL)
    world = World(seed, lives=LIVES, requests=REQUESTS)
    ledger = world.run()
    return Outcome(
        seed=seed,
        requests=ledger.requests,
        crashes=ledger.crashes,
        power_losses=ledger.power_losses,
        clock_jumps=ledger.clock_jumps,
        joined=ledger.joined,
        fired=world.faults.fired,
        breaches=breaches(world),
    )


class Totals:
    """Sums over worlds."""

    def __init__(self) -> None:
        self.worlds = self.requests = self.crashes = self.power_losses = 0
        self.clock_jumps = self.joined = 0
        self.fired: Counter[str] = Counter()
        self.breaches: list[str] = []

    def add(self, outcome: Outcome) -> None:
        self.worlds += 1
        self.requests += outcome.requests
        self.crashes += outcome.crashes
        self.power_losses += outcome.power_losses
        self.clock_jumps += outcome.clock_jumps
        self.joined += outcome.joined
        self.fired.update(outcome.fired)
        self.breaches += [f"seed {outcome.seed}: {breach}" for breach in outcome.breaches]

    def __str__(self) -> str:
        faults = ", ".join(f"{count:,} x {what}" for what, count in sorted(self.fired.items()))
        return (
            f"{self.worlds:,} worlds, {self.requests:,} requests, {self.crashes:,} crashes, "
            f"{self.power_losses:,} power losses, {self.clock_jumps:,} clock jumps, "
            f"{self.joined:,} second writers; {faults}"
        )


def run_worlds(first: int, count: int, jobs: int, *, progress: bool = False) -> Totals:
    """Run `count` worlds from seed `first` in `jobs` processes."""
    totals = Totals()
    told = time.monotonic()
    with multiprocessing.get_context("forkserver").Pool(jobs) as pool:
        for outcome in pool.imap_unordered(run_world, range(first, first + count), chunksize=10):
            totals.add(outcome)
            if progress and time.monotonic() - told > 5:
                told = time.monotonic()
                print(f"{totals}; {len(totals.breaches)} breaches", file=sys.stderr, flush=True)
    return totals


def _until_breach(first: int, count: int) -> int:
    for seed in range(first, first + count):
        try:
            found = run_world(seed).breaches
        except Exception as fault:  # noqa: BLE001  # a planted bug may break anything; that is caught, too
            found = [f"{type(fault).__name__}: {fault}"]
        if found:
            print(f"{seed}: {found[0]}")
            return BREACH
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--until-breach", action="store_true", help="stop at the first world that is wrong")
    options = parser.parse_args()
    if options.until_breach:
        return _until_breach(options.seed, options.worlds)
    if options.worlds == 1:
        totals = Totals()
        totals.add(run_world(options.seed))
    else:
        totals = run_worlds(options.seed, options.worlds, options.jobs, progress=True)
    print(totals)
    for breach in totals.breaches[:SHOWN_MAX]:
        print(breach)
    return 1 if totals.breaches else 0


if __name__ == "__main__":
    raise SystemExit(main())
