"""Following: one thread that keeps a process's keys as they are in the database, whoever changes them there.

    asks for the version ──the same──────▶ again after INTERVAL_S
        │ ──a later one──▶ reads the rows that are newer
        │ ──an earlier one, or another file──▶ reads all rows
        └──away──▶ what is known goes on, loudly; backs off

So a change made elsewhere holds here within a second, and no request ever waits for the database.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Row, select

from gateway.admission.stored_keys import StoredKey, StoredKeys
from gateway.control.makers import LIVE_MAX
from gateway.control.records import stored_key
from gateway.control.schema import keys, versions
from gateway.control.store import Control
from gateway.ledger.store import LedgerNewer, LedgerUnavailable

log = logging.getLogger("spanbill.control")

KIND: Final = "keys"
INTERVAL_S: Final = 0.25
SPREAD_S: Final = 2 * INTERVAL_S
"""So long after a change all processes that can read the database have heard of it. Whoever makes one says
that it is done after that time only, so that a new key opens then, and an old one does not."""
AWAY_S: Final = 1.0
"""How often a database that is away is asked."""
TELL_S: Final = 60.0
"""How often it is said again that keys are not as fresh as they should be."""

Rows = Sequence[Row[Any]]


class Following:
    """Follows the keys of one control database.

    Attributes:
        fault: why the database could not be read last time, None where it was.
        read_unix_s: when it was last read; all that was changed before is known.
    """

    def __init__(
        self,
        control: Control,
        stored: StoredKeys,
        *,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.fault: str | None = None
        self._control = control
        self._stored = stored
        self._now = now
        self._monotonic = monotonic
        self._version: int | None = None
        self._opened = 0
        self.read_unix_s = 0
        self._told_at = monotonic()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Read once, if the database is there, and go on in a thread until `stop`.

        Raises:
            LedgerNewer: a newer version made its schema.
        """
        try:
            self._follow()
        except LedgerUnavailable as fault:
            self._away(str(fault))
        self._thread = threading.Thread(target=self._run, name="keys", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End the thread, for at most `timeout_s`."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=timeout_s)

    def _run(self) -> None:
        while not self._stop.wait(INTERVAL_S if self.fault is None else AWAY_S):  # ends with stop()
            self.step()
        self._control.close()

    def step(self) -> None:
        """Take up what was changed; a database that is away changes nothing."""
        try:
            self._follow()
        except (LedgerUnavailable, LedgerNewer) as fault:
            self._away(str(fault))

    def _follow(self) -> None:
        began = int(self._now())
        version, rows, whole = self._control.run(self._new)
        if whole:
            self._stored.replace(_opening(rows), None if self._version is not None else version)
        else:
            for key in _opening(rows):
                self._stored.change(key)
        self._version = version
        self._opened = self._control.opened
        self.read_unix_s = began
        if self.fault is not None:
            log.warning("the keys can be read again", extra={"control": self._control.name})
        self.fault = None

    def _new(self, c: Connection) -> tuple[int, Rows, bool]:
        """Return the version, and what is newer than the known one: perhaps all."""
        version: int = c.execute(select(versions.c.version).where(versions.c.kind == KIND)).scalar_one()
        known = self._version
        if known is None or version < known or self._opened != self._control.opened:
            live = select(keys).where(keys.c.revoked_unix_ns.is_(None)).order_by(keys.c.changed.desc())
            return version, c.execute(live.limit(LIVE_MAX)).all(), True
        if version == known:
            return version, (), False
        return version, c.execute(select(keys).where(keys.c.changed > known)).all(), False

    def _away(self, why: str) -> None:
        again = self._monotonic() - self._told_at >= TELL_S
        if self.fault != why or again:
            self._told_at = self._monotonic()
            known = self._stored.read
            log.error(
                "the keys cannot be read; those that are known go on"
                if known
                else "the keys cannot be read; only those of the configuration are served",
                extra={"control": self._control.name, "why": why, "read_unix_s": self.read_unix_s},
            )
        self.fault = why


def _opening(rows: Rows) -> Iterator[StoredKey]:
    """Yield what rows open; a row that no version of the gateway wrote opens nothing, and is said."""
    for row in rows:
        try:
            yield stored_key(row)
        except (ValueError, TypeError) as fault:
            log.error(
                "a key's row cannot be read; it opens nothing", extra={"key_id": row.id, "why": str(fault)}
            )
            yield StoredKey(id=row.id, changed=row.changed, holders={})
