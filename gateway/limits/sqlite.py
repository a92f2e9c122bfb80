"""SQLite: the counters of one machine's workers, in a file that may be lost at any time.

One transaction for many questions, nothing is ever synced, and a file that is broken or was removed is made
anew: what it held would have been forgotten within a minute. The clock is the machine's monotonic one, which
all its processes share; after a reboot what the file holds lies in the future and counts as nothing.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from gateway.limits.store import (
    PLACE_WAIT_MS,
    RECORD_MS,
    Answer,
    Ask,
    Away,
    Charge,
    Settle,
    Standing,
)
from gateway.limits.window import WINDOW_MS, Window

BUSY_S: Final = 0.25
"""How long a transaction waits for another process's."""
PRUNE_MS: Final = 10_000
"""How often rows that mean nothing any more are removed, by each process."""
SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS windows (key TEXT PRIMARY KEY, entries BLOB, newest_ms INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS places (key TEXT, request TEXT, until_ms INTEGER, PRIMARY KEY (key, request))
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS requests (request TEXT PRIMARY KEY, at_ms INTEGER, answer BLOB) WITHOUT ROWID;
"""
_WINDOW: Final = "SELECT entries FROM windows WHERE key = ?"
_SAVE: Final = "INSERT OR REPLACE INTO windows VALUES (?, ?, ?)"
_TAKEN: Final = "SELECT count(*) FROM places WHERE key = ? AND until_ms > ? AND until_ms <= ?"
_TAKE: Final = "INSERT OR REPLACE INTO places VALUES (?, ?, ?)"
_LEAVE: Final = "DELETE FROM places WHERE key = ? AND request = ?"

_answers: Final = msgspec.msgpack.Decoder(Answer)
_entries: Final = msgspec.msgpack.Decoder(list[int])


class SqliteLimits:
    """Counters in a file.

    Args:
        now_ms: the same clock in all processes.
        lease_ms: see `gateway.limits.store`.
    """

    def __init__(self, path: Path, now_ms: Callable[[], int], lease_ms: int) -> None:
        self._path = path
        self._now_ms = now_ms
        self._lease_ms = lease_ms
        self._pruned_ms: int | None = None
        self._db: sqlite3.Connection | None = None
        self._inode = 0

    def run(
        self, settles: Sequence[Settle], beats: Sequence[tuple[str, tuple[str, ...]]], asks: Sequence[Ask]
    ) -> list[Answer]:
        """See `SharedStore.run`."""
        with self._transaction() as db:
            now = self._now_ms()  # inside, where nobody else's clock can have been read meanwhile
            for settle in settles:
                self._settle(db, settle, now)
            until = now + self._lease_ms
            db.executemany(_TAKE, [(key, request_id, until) for request_id, keys in beats for key in keys])
            answers = [self._ask(db, ask, now) for ask in asks]
            self._prune(db, now)
            return answers

    def look(self, charges: Sequence[Charge]) -> list[Standing]:
        """See `SharedStore.look`."""
        with self._transaction() as db:
            now = self._now_ms()
            standings = []
            for charge in charges:
                if charge.unit == "concurrent":
                    standings.append(Standing(self._taken(db, charge.key, now), 0, 0))
                else:
                    window, at = _window(db, charge.key, now)
                    standings.append(Standing(window.used, 0, window.full_again_ms(at)))
            return standings

    def close(self) -> None:
        """Close the file."""
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
            self._db = None

    # questions

    def _ask(self, db: sqlite3.Connection, ask: Ask, now_ms: int) -> Answer:
        known = db.execute("SELECT answer FROM requests WHERE request = ?", (ask.request_id,)).fetchone()
        if known is not None:
            return _answers.decode(known[0])
        found: list[tuple[Charge, Window | None, int, int, int]] = []
        admitted = True
        for charge in ask.charges:
            window, at, taken = None, now_ms, 0
            if charge.unit == "concurrent":
                taken = self._taken(db, charge.key, now_ms)
                wait = 0 if taken < charge.limit else PLACE_WAIT_MS
            else:
                window, at = _window(db, charge.key, now_ms)
                wait = window.wait_ms(at, charge.limit, charge.units)
            admitted = admitted and wait == 0
            found.append((charge, window, at, taken, wait))
        standings = []
        for charge, window, at, taken, wait in found:
            if window is None:
                if admitted:
                    db.execute(_TAKE, (charge.key, ask.request_id, now_ms + self._lease_ms))
                standings.append(Standing(taken + admitted, wait, 0))
                continue
            if admitted:
                window.add(at, charge.units)
                _save(db, charge.key, window, at)
            standings.append(Standing(window.used, wait, window.full_again_ms(at)))
        answer = Answer(admitted, tuple(standings))
        if admitted:
            row = (ask.request_id, now_ms, msgspec.msgpack.encode(answer))
            db.execute("INSERT INTO requests VALUES (?, ?, ?)", row)
        return answer

    def _settle(self, db: sqlite3.Connection, settle: Settle, now_ms: int) -> None:
        known = db.execute("SELECT at_ms FROM requests WHERE request = ?", (settle.request_id,)).fetchone()
        if known is not None:
            db.execute("DELETE FROM requests WHERE request = ?", (settle.request_id,))
        for charge, used in zip(settle.charges, settle.used, strict=True):
            if charge.unit == "concurrent":
                db.execute(_LEAVE, (charge.key, settle.request_id))
            elif known is not None and used != charge.units:
                window, at = _window(db, charge.key, now_ms)
                if used > charge.units:
                    window.add(at, used - charge.units)
                else:
                    window.give_back(known[0], charge.units - used)
                _save(db, charge.key, window, at)

    def _taken(self, db: sqlite3.Connection, key: str, now_ms: int) -> int:
        row = db.execute(_TAKEN, (key, now_ms, now_ms + 2 * self._lease_ms)).fetchone()
        return int(row[0])

    def _prune(self, db: sqlite3.Connection, now_ms: int) -> None:
        """Remove what counts as nothing; also what lies in the future, which a boot before this one left."""
        if self._pruned_ms is not None and now_ms - self._pruned_ms < PRUNE_MS:
            return
        self._pruned_ms = now_ms
        bounds = (now_ms - WINDOW_MS, now_ms + WINDOW_MS)
        db.execute("DELETE FROM windows WHERE newest_ms <= ? OR newest_ms >= ?", bounds)
        bounds = (now_ms - WINDOW_MS, now_ms + 2 * self._lease_ms)
        db.execute("DELETE FROM places WHERE until_ms <= ? OR until_ms > ?", bounds)
        bounds = (now_ms - RECORD_MS, now_ms + WINDOW_MS)
        db.execute("DELETE FROM requests WHERE at_ms <= ? OR at_ms >= ?", bounds)

    # the file

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Begin and commit.

        Raises:
            Away: the file is locked, or cannot be used.
        """
        try:
            db = self._open()
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # what went wrong says more
                    db.execute("ROLLBACK")
                raise
        except sqlite3.OperationalError as fault:  # locked, full, read-only: the file itself may be well
            raise Away(f"{self._path.name}: {fault}") from fault
        except (sqlite3.DatabaseError, msgspec.MsgspecError) as fault:
            self._discard()
            raise Away(f"{self._path.name}: {fault}; it is made anew") from fault
        except OSError as fault:
            raise Away(f"{self._path.name}: {fault.strerror}") from fault

    def _open(self) -> sqlite3.Connection:
        if self._db is not None and self._same_file():
            return self._db
        self.close()
        db = sqlite3.connect(self._path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = OFF")
            db.executescript(SCHEMA)
        except BaseException:
            db.close()
            raise
        self._inode = os.stat(self._path).st_ino
        self._db = db
        return db

    def _same_file(self) -> bool:
        """Say whether the path still leads to what is open: all workers must count in one file."""
        try:
            return os.stat(self._path).st_ino == self._inode
        except FileNotFoundError:
            return False

    def _discard(self) -> None:
        self.close()
        for end in ("", "-wal", "-shm"):
            with contextlib.suppress(OSError):
                self._path.with_name(self._path.name + end).unlink()


def _window(db: sqlite3.Connection, key: str, now_ms: int) -> tuple[Window, int]:
    row = db.execute(_WINDOW, (key,)).fetchone()
    window = Window() if row is None else Window(_entries.decode(row[0]))
    return window, window.sweep(now_ms)


def _save(db: sqlite3.Connection, key: str, window: Window, at_ms: int) -> None:
    db.execute(_SAVE, (key, msgspec.msgpack.encode(window.flat()), at_ms))
