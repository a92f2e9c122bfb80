"""Siblings: what dead writers of the folder left is recovered once, by whoever of the living comes first.

    start    recovers what is there, or waits for the sibling that is at it
    watch    looks every second, for as long as the worker lives

A bill that was written and is not yet durable is in this process alone. So the turn is kept until all bills
are durable and the dead are forgotten; if this process ends before, it is one of the dead itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from gateway.billing import Prices
from gateway.core.exchange import Exchange
from gateway.recorder import JournalRecorder, forget, recover, write_bills
from otel.journal import JournalUnavailable, JournalWriter
from otel.journal.files import Files
from otel.journal.owed import Head
from otel.journal.recovery import Findings, dead_writers, scan
from otel.journal.turn import Turn, turn_to_recover

log = logging.getLogger("spanbill.recovery")

LOOK_S: Final = 1.0
"""How often a worker looks for dead siblings."""
WAIT_S: Final = 30.0
"""How long a start waits for a sibling that recovers; then it serves, and looks again every LOOK_S."""
POLL_S: Final = 0.05
HEADS_MAX: Final = 200
"""Dead writers whose heads fit into a segment's header; there is hardly ever more than one."""


class Siblings:
    """What one process does about dead writers."""

    def __init__(
        self,
        directory: Path,
        files: Files,
        writer: JournalWriter,
        recorder: JournalRecorder,
        prices: Prices,
        observe: Callable[[Exchange, int], None],
    ) -> None:
        self._directory = directory
        self._files = files
        self._writer = writer
        self._recorder = recorder
        self._prices = prices
        self._observe = observe

    async def start(self) -> None:
        """Open the writer, with what dead writers left recovered.

        Raises:
            OSError, JournalUnavailable: the folder cannot be used; refuse to start.
        """
        for _ in range(round(WAIT_S / POLL_S)):
            with turn_to_recover(self._directory, self._files) as turn:
                if turn is not None:
                    await self._recover_first(turn)
                    return
            if not dead_writers(self._directory, self._files):
                break
            await asyncio.sleep(POLL_S)
        self._writer.open()

    async def watch(self) -> None:
        """Recover siblings that die."""
        told = ""
        while True:  # ends with the gateway
            await asyncio.sleep(LOOK_S)
            try:
                await self.look()
            except (OSError, JournalUnavailable) as fault:
                if str(fault) != told:
                    log.warning("a worker that died waits for its recovery", extra={"why": str(fault)})
                told = str(fault)

    async def look(self) -> int:
        """Recover what dead siblings left, if there are any and nobody else is at it; return the bills.

        Raises:
            OSError, JournalUnavailable: not now; nothing was begun.
        """
        if not dead_writers(self._directory, self._files):
            return 0
        with turn_to_recover(self._directory, self._files) as turn:
            if turn is None:
                return 0
            findings = await asyncio.to_thread(scan, self._directory, self._files)
            if not findings.dead:
                return 0
            turn.begin(self._writer.name)
            try:
                self._writer.take_over(_heads(findings))
            except JournalUnavailable:
                turn.end()  # nothing was begun
                raise
            number, bills = await write_bills(
                findings, self._writer, self._recorder, self._prices, self._observe
            )
            await self._forget(findings, number)
            turn.end()
            return bills

    async def _recover_first(self, turn: Turn) -> None:
        findings = scan(self._directory, self._files)  # nothing is served yet
        self._writer.open(_heads(findings))
        turn.begin(self._writer.name)
        await recover(
            self._directory,
            findings,
            self._writer,
            self._recorder,
            self._prices,
            self._observe,
            self._files,
        )
        turn.end()

    async def _forget(self, findings: Findings, number: int) -> None:
        while True:  # ends when the disk takes what is owed, or with the process
            try:
                await forget(self._directory, findings, self._writer, number, self._files)
            except (OSError, JournalUnavailable):
                await asyncio.sleep(LOOK_S)
            else:
                return


def _heads(findings: Findings) -> dict[str, Head]:
    return dict(list(findings.heads.items())[-HEADS_MAX:])
