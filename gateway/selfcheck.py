"""Self-check: reads journal, ledger, counters and the shipper's cursor at one moment, and compares them.

Each call reads a bounded part of the journal that was not counted before, and goes on from there at the next.
While requests are served there is no such moment: a difference is looked at again before it is said.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final

from gateway.api.selfcheck import Amount, Part, Report, State
from gateway.core.money import pico_to_usd
from gateway.ledger.projection import id_of
from gateway.ledger.store import LedgerBroken, LedgerNewer, LedgerUnavailable, Store
from gateway.ledger.summary import Holds, holds
from otel.journal.counting import Count, JournalCount, Places
from otel.journal.cursor import passed
from otel.journal.files import Files
from otel.journal.reader import Reader
from otel.journal.removed import folder_id
from otel.metrics import Metrics

BYTES_A_LOOK: Final = 16 * 1024 * 1024
"""How much of the journal one look counts: a tenth of a second, in another thread."""
LOADED: Final = "llm_gateway_totals_loaded"
LOOKS: Final = 3
PAUSE_S: Final = 0.3
"""How often a difference is looked at, and how long apart: what workers tell is up to 0.25 s old."""


class SelfCheck:
    """The check of one gateway.

    Args:
        store: a ledger of its own, for nothing else.
        cursor: the shipper's; None where nothing is delivered.
        metrics: the counters, as `/metrics` shows them.
    """

    def __init__(
        self,
        directory: Path,
        files: Files,
        store: Store,
        cursor: Path | None,
        metrics: Callable[[], Metrics],
    ) -> None:
        self._directory = directory
        self._files = files
        self._store = store
        self._cursor = cursor
        self._metrics = metrics
        self._count = JournalCount(directory, files)
        self._turn = asyncio.Lock()

    async def check(self) -> Report:
        """Return what is found; one call at a time.

        Raises:
            OSError, UnreadableManifest: the journal cannot be read.
        """
        async with self._turn:
            for look in range(LOOKS):
                if look:
                    await asyncio.sleep(PAUSE_S)
                report = await asyncio.to_thread(self._look, self._metrics())
                if report.state == "agrees":
                    break
            return report

    def _look(self, counters: Metrics) -> Report:
        left = self._count.step(BYTES_A_LOOK)
        journal = self._count.whole()
        parts = {"ledger": self._ledger(journal, left), "metrics": self._counters(journal, counters, left)}
        if self._cursor is not None:
            parts["collector"] = self._delivered(journal, left)
        return Report(
            journal=Amount(bills=journal.bills, cost_pico_usd=journal.cost_pico_usd),
            revisions=Amount(bills=journal.revisions, cost_pico_usd=journal.revised_pico_usd),
            pending_bytes=left,
            parts=parts,
        )

    def _ledger(self, journal: Count, left: int) -> Part:
        try:
            self._store.open()
            gateway_id = id_of(folder_id(self._directory, self._files))
            found = self._store.run(lambda c: holds(c, gateway_id))
        except (LedgerUnavailable, LedgerBroken, LedgerNewer, ValueError) as fault:
            return Part(state="unknown", has=None, facts={"why": str(fault)})
        finally:
            self._store.close()
        waits = Reader(self._directory, Places(found.passed), self._files).pending_bytes()
        return Part(
            state="unknown" if left else _ledger_state(journal, found, behind=waits > 0),
            has=Amount(bills=found.bills, cost_pico_usd=found.cost_pico),
            facts={
                "current_bills": found.current_bills,
                "current_cost_usd": pico_to_usd(found.current_cost_pico),
                "pending_bytes": waits,
                "revisions_waiting": found.waiting,
                "conflicts": found.conflicts,
                "refused": found.refused,
                "lost": found.lost,
            },
        )

    def _counters(self, journal: Count, counters: Metrics, left: int) -> Part:
        bills, cost_pico_usd = counters.bills()
        has = Amount(bills=bills, cost_pico_usd=cost_pico_usd)
        loaded = any(r.name == LOADED and r.value for r in counters.state().readings)
        state: State = "unknown" if left else _state(journal, has, behind=not loaded)
        return Part(state=state, has=has, facts={"totals_loaded": loaded})

    def _delivered(self, journal: Count, left: int) -> Part:
        """Count what is delivered: all but what is still to be, as far as that is little enough to count."""
        assert self._cursor is not None  # the caller has looked
        offsets = passed(self._cursor, self._files) or {}
        pending = JournalCount(self._directory, self._files, Places(offsets))
        uncounted = pending.step(BYTES_A_LOOK)
        here = pending.here()
        facts = {"pending_bytes": pending.taken + uncounted}
        if uncounted or left:
            return Part(state="behind" if uncounted else "unknown", has=None, facts=facts)
        has = Amount(
            bills=journal.bills - here.bills, cost_pico_usd=journal.cost_pico_usd - here.cost_pico_usd
        )
        return Part(state=_state(journal, has, behind=True), has=has, facts=facts)


def _state(journal: Count, has: Amount, *, behind: bool) -> State:
    """Compare with the journal, where it may be `behind`."""
    if (has.bills, has.cost_pico_usd) == (journal.bills, journal.cost_pico_usd):
        return "agrees"
    return "behind" if behind and has.bills < journal.bills else "differs"


def _ledger_state(journal: Count, found: Holds, *, behind: bool) -> State:
    has = Amount(bills=found.bills, cost_pico_usd=found.cost_pico)
    state = _state(journal, has, behind=behind)
    if state != "agrees":
        return state
    owed = journal.cost_pico_usd + journal.revised_pico_usd
    if (found.current_bills, found.current_cost_pico) == (journal.bills, owed):
        return "agrees"
    return "behind" if behind or found.waiting else "differs"
