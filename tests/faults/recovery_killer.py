"""A gateway whose recoveries are killed, once at each of two places, whichever worker does them.

It is started like `python -m gateway`. `FIRED` names files: where one is not there yet, the process that
passes its place makes it and dies by SIGKILL. Workers recover nothing when they start: what is killed are
recoveries beside requests.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import gateway.recorder
from gateway.cli import main
from gateway.recorder import JournalRecorder
from gateway.siblings import Siblings

AFTER_FIRST_BILL = Path("killed-after-first-bill")
BEFORE_RETIRING = Path("killed-before-retiring")
FIRED = (AFTER_FIRST_BILL, BEFORE_RETIRING)

settle = JournalRecorder.settle
retire = gateway.recorder.retire


def die_once(fired: Path) -> None:
    with contextlib.suppress(FileExistsError):
        fired.open("x").close()
        os.kill(os.getpid(), signal.SIGKILL)


def settle_and_die(self: JournalRecorder, exchange: Any) -> int:
    number = settle(self, exchange)
    if exchange.outcome == "interrupted":
        die_once(AFTER_FIRST_BILL)
    return number


def die_or_retire(directory: Path, writers: tuple[str, ...], files: Any) -> None:
    if writers:
        die_once(BEFORE_RETIRING)
    retire(directory, writers, files)


async def open_only(self: Siblings) -> None:
    self._writer.open()


if __name__ == "__main__":
    Siblings.start = open_only  # type: ignore[method-assign]
    JournalRecorder.settle = settle_and_die  # type: ignore[method-assign]
    gateway.recorder.retire = die_or_retire
    main()
