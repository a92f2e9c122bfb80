"""Follower: one thread that brings the ledger after the journal, and never stands in a request's way.

    following ──the database is away─────▶ waiting: backs off, then catches up
        │    ──its file is damaged───────▶ set aside, and made again from the journal
        └────bills were removed unread,
             or its schema is newer──────▶ stopped, loudly, until that is mended

It works in small bounded steps and gives way between them. What it has read it says in the ledger itself, in
the rows' own transaction: a crash at any point repeats nothing and leaves out nothing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

import msgspec

from gateway.ledger.batches import write_batch
from gateway.ledger.expiry import Expiry
from gateway.ledger.position import Position, lost, passed_by, position_of
from gateway.ledger.projection import Projector, Rows
from gateway.ledger.stats import Stats
from gateway.ledger.store import LedgerBroken, LedgerNewer, LedgerUnavailable, Store
from gateway.ledger.tallying import Remembered, totals
from gateway.ledger.writing import Overtaken, enrol, refill, sums_due
from otel.journal.files import Files, reason_of
from otel.journal.reader import Batch, Reader
from otel.journal.recovery import living_writers
from otel.journal.removed import UnreadableManifest, folder_id, removed_from
from otel.otlp import backoff_s

log = logging.getLogger("spanbill.ledger")

LINES_MAX: Final = 512
"""Bills in one transaction."""
BYTES_MAX: Final = 2 * 1024 * 1024
LINES_A_TURN: Final = 64
TURN_S: Final = 0.001
"""After so many bills projected, about a millisecond, the processor belongs to requests for so long."""
BATCHES_A_STEP: Final = 50
INTERVAL_S: Final = 0.2
STANDBY_S: Final = 1.0
"""How often a follower that another one leads looks whether that one is gone."""
STOPPED_S: Final = 30.0
"""How often a follower that only an operator can help looks whether somebody has."""


class Lead(Protocol):
    """Of several processes on one journal the one that has it follows; see `otel.journal.turn`."""

    def take(self) -> bool:
        """Take it if nobody has it."""
        ...

    def release(self) -> None:
        """Give it up."""
        ...


class _Stopped(Exception):
    """Only an operator can help; the message says how."""


class _Open(msgspec.Struct):
    """An open ledger, and the place in the journal that it has reached.

    Args:
        wrote: writers whose bills were taken up since the totals were made.
        living: writers that lived then; None before.
    """

    gateway_id: int
    position: Position
    reader: Reader
    projector: Projector
    known: set[int]
    remembered: Remembered
    wrote: set[str]
    living: frozenset[str] | None = None


class Follower:
    """Follows one journal folder.

    Args:
        lead: None where no other process follows the same folder.
        jitter: returns a number in [0, 1).
        pause: gives way to other threads.
        expiry: lets old rows go while there is nothing to follow; None keeps all.
    """

    def __init__(
        self,
        directory: Path,
        store: Store,
        *,
        jitter: Callable[[], float],
        files: Files | None = None,
        lead: Lead | None = None,
        now_ns: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
        pause: Callable[[], None] = lambda: time.sleep(TURN_S),
        expiry: Expiry | None = None,
    ) -> None:
        self.stats = Stats()
        self.expiry = expiry
        self._directory = directory
        self._store = store
        self._files = files or Files()
        self._lead = lead
        self._jitter = jitter
        self._now_ns = now_ns
        self._monotonic = monotonic
        self._pause = pause
        self._open: _Open | None = None
        self._checked = False
        self._level_at = monotonic()
        self._stop = threading.Event()
        self._stop_by = 0.0
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Run `step` in a thread until `stop`."""
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Take up what is there, for at most `timeout_s`; the rest stays for later."""
        self._stop_by = self._monotonic() + timeout_s
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=timeout_s)

    def _run(self) -> None:
        wait_s = 0.0
        while not self._stop.wait(wait_s):  # ends with stop()
            wait_s = self.step()
        while not self._late() and self.step() == 0.0:  # ends when all is in, or a step fails
            pass
        self._close()

    def _late(self) -> bool:
        return self._stop.is_set() and self._monotonic() >= self._stop_by

    def _close(self) -> None:
        self._open = None
        self._store.close()
        if self._lead is not None:
            self._lead.release()

    def step(self) -> float:
        """Take up what there is; return how many seconds to wait before the next step."""
        try:
            if self._lead is not None and not self._lead.take():
                self._level_at = self._monotonic()  # how far behind it is, the one that leads says
                return STANDBY_S
            opened = self._opened()
            living = living_writers(self._directory, self._files)
            more = self._take_up(opened)
            if not more:
                self._total(opened, living)
        except _Stopped as fault:
            return self._failed(str(fault), stopped=True)
        except LedgerNewer as fault:
            return self._failed(str(fault), stopped=True)
        except LedgerBroken as fault:
            return self._make_again(str(fault))
        except Overtaken:
            self._open = None
            return INTERVAL_S
        except (LedgerUnavailable, OSError) as fault:
            return self._failed(reason_of(fault) if isinstance(fault, OSError) else str(fault))
        finally:
            self.stats.behind_s = self._monotonic() - self._level_at
        if self.stats.failures_in_a_row:
            log.info("the ledger is followed again")
        self.stats.failures_in_a_row = 0
        self.stats.last_error = None
        self.stats.stopped = False
        if more:
            return 0.0
        self._level_at = self._monotonic()
        self.stats.behind_s = 0.0
        return INTERVAL_S

    def _opened(self) -> _Open:
        if self._open is not None and not self._store.replaced():
            return self._open
        if self._open is not None:
            log.error("the ledger is gone or was replaced; going on with what is there", extra=self._named())
            self._checked = False
        self._open = None
        self._store.open()
        if not self._checked:  # once: it reads all of the file, and the ledger may be away often
            self._store.check()
            self._checked = True
        folder = self._folder()
        gateway_id = self._store.run(lambda c: enrol(c, folder), writes=True)
        if self._store.run(lambda c: sums_due(c, gateway_id)):
            self._store.run(lambda c: refill(c, gateway_id), writes=True)
        self._look_for_losses(gateway_id)
        position = self._store.run(lambda c: position_of(c, gateway_id))
        self._open = _Open(
            gateway_id=gateway_id,
            position=position,
            reader=Reader(self._directory, position, self._files),
            projector=Projector(gateway_id),
            known=set(),
            remembered={},
            wrote=set(),
        )
        return self._open

    def _folder(self) -> str:
        try:
            return folder_id(self._directory, self._files)
        except ValueError as fault:
            raise _Stopped(str(fault)) from fault

    def _look_for_losses(self, gateway_id: int) -> None:
        try:
            removed = removed_from(self._directory, self._files)
        except UnreadableManifest as fault:
            raise _Stopped(f"{fault}, so the ledger may lack bills: see `spanbill verify`") from fault
        missing = lost(self._store.run(lambda c: passed_by(c, gateway_id)), removed)
        if missing:
            count = sum(bills for _, bills in missing.values())
            raise _Stopped(
                f"the ledger lacks {count} bills of {len(missing)} segments that retention has removed from "
                "the journal: restore the ledger from a copy; or, if there is none, go on without them by "
                "`spanbill ledger rebuild --accept-loss`"
            )

    def _take_up(self, opened: _Open) -> bool:
        """Take up some batches; say whether there may be more."""
        for count, batch in enumerate(opened.reader.batches(LINES_MAX, BYTES_MAX), start=1):
            self._write(opened, batch)
            self.stats.pending_bytes = opened.reader.pending_bytes()
            if count >= BATCHES_A_STEP or self._late():
                return True
            if self._store.replaced():
                return True
        self.stats.pending_bytes = opened.reader.pending_bytes()
        if self.expiry is None or self._stop.is_set():
            return False
        return self.expiry.step(self._store, opened.gateway_id, opened)

    def _total(self, opened: _Open, living: frozenset[str]) -> None:
        """Make the totals of writers that were gone before all that is there was read.

        Args:
            living: writers that lived before that.
        """
        living |= living_writers(self._directory, self._files)  # one may have begun meanwhile
        if living == opened.living and opened.wrote <= living:
            return
        found = self._store.run(lambda c: totals(c, opened.gateway_id, living), writes=True)
        opened.remembered = {key: tally for key, tally in opened.remembered.items() if key[0] in living}
        opened.living = living
        opened.wrote.clear()
        self.stats.totals = found

    def _write(self, opened: _Open, batch: Batch) -> None:
        rows = Rows()
        for at in range(0, len(batch.spans), LINES_A_TURN):
            opened.projector.add(rows, batch.spans[at : at + LINES_A_TURN], at)
            self._pause()
        written = write_batch(
            self._store,
            opened.gateway_id,
            opened.position,
            batch,
            rows,
            opened.known,
            opened.remembered,
            self._now_ns(),
        )
        opened.wrote.add(batch.writer)
        self.stats.bills += written.bills
        self.stats.revisions += written.revisions
        self.stats.again += written.again
        self.stats.conflicts += written.conflicts
        self.stats.refused += written.refused
        if written.conflicts or written.refused:
            log.error(
                "bills of the journal are not in the ledger; its table `conflicts` has them",
                extra={
                    "segment": batch.segment,
                    "conflicts": written.conflicts,
                    "refused": written.refused,
                },
            )

    def _make_again(self, why: str) -> float:
        """Set a broken ledger aside; the next step makes another one, if nothing is lost by that."""
        self._open = None
        self._checked = False
        log.error("the ledger is damaged", extra={**self._named(), "why": why})
        try:
            aside = self._store.set_aside()
        except (LedgerUnavailable, OSError) as fault:
            return self._failed(f"it cannot be set aside: {fault}")
        if aside is None:
            return self._failed(why)
        self.stats.rebuilt += 1
        log.error("the ledger is made again from the journal", extra={**self._named(), "aside": aside})
        return 0.0

    def _failed(self, why: str, *, stopped: bool = False) -> float:
        self._open = None
        self.stats.failures_in_a_row += 1
        if self.stats.last_error != why:
            (log.error if stopped else log.warning)(
                "the ledger is not followed" if stopped else "the ledger is away; it will catch up",
                extra={**self._named(), "why": why},
            )
        self.stats.last_error = why
        self.stats.stopped = stopped
        return STOPPED_S if stopped else backoff_s(self.stats.failures_in_a_row, self._jitter())

    def _named(self) -> dict[str, str]:
        return {"ledger": self._store.name}
