"""The gateway with its ledger or its journal taken out or its waits timed, to say what durability costs.

    python benchmarks/durability.py journal FILE serve … no ledger follows the journal
    python benchmarks/durability.py neither FILE serve … nor is a record written, and nothing waits for a disk
    python benchmarks/durability.py timed FILE serve …   at its end FILE holds each wait for a bill's sync

All else is the product, started by its own command line.
"""

from __future__ import annotations

import array
import sys
import time
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from gateway import app, behind  # noqa: E402  # after the path is set
from gateway.cli.main import main  # noqa: E402
from gateway.ledger.follower import Follower  # noqa: E402
from otel.journal import JournalWriter  # noqa: E402
from otel.journal.lines import Kind  # noqa: E402

WAITS_MAX: Final = 5_000_000
"""How many waits are kept: minutes of full load."""
waits_ns: array.array[int] = array.array("q")
bills: set[int] = set()
"""Numbers of the bills that nobody has waited for yet."""


class Without(JournalWriter):
    """Numbers records and keeps none."""

    def append(self, kind: Kind, record_id: str, body: str) -> int:
        del kind, record_id, body
        self._number += 1
        return self._number

    async def durable(self, number: int) -> None:
        del number


class Idle(Follower):
    """Follows nothing."""

    def start(self) -> None:
        pass

    def stop(self, timeout_s: float) -> None:
        del timeout_s


class Timed(JournalWriter):
    """Notes how long each bill's last event was held."""

    def append(self, kind: Kind, record_id: str, body: str) -> int:
        number = super().append(kind, record_id, body)
        if kind == "S":
            bills.add(number)
        return number

    async def durable(self, number: int) -> None:
        if number not in bills:  # an intent: its wait runs beside the provider's work
            await super().durable(number)
            return
        bills.remove(number)
        began = time.perf_counter_ns()
        await super().durable(number)
        if len(waits_ns) < WAITS_MAX:
            waits_ns.append(time.perf_counter_ns() - began)


def run(mode: str, out: str, arguments: list[str]) -> None:
    """Serve, and write the waits when it is over."""
    writer = {"journal": JournalWriter, "neither": Without, "timed": Timed}[mode]
    app.__dict__["JournalWriter"] = writer
    if mode != "timed":
        behind.__dict__["Follower"] = Idle
    sys.argv = ["spanbill", *arguments]
    try:
        main()
    finally:
        with Path(out).open("wb") as file:
            waits_ns.tofile(file)


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], sys.argv[3:])
