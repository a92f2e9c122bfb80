"""Opening: which ledger a setting names, and a first look at it that can still refuse the start."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from sqlalchemy.exc import ArgumentError

from gateway.ledger.position import passed_by
from gateway.ledger.postgres import PostgresStore
from gateway.ledger.projection import id_of
from gateway.ledger.sqlite import SqliteStore
from gateway.ledger.store import LedgerBroken, LedgerNewer, LedgerUnavailable, Store
from otel.journal.files import Files
from otel.journal.removed import folder_id

log = logging.getLogger("spanbill.ledger")

FILE: Final = "ledger.db"
_SQLITE: Final = "sqlite:///"
_POSTGRES: Final = ("postgresql://", "postgres://", "postgresql+asyncpg://")


def store_at(url: str, journal: Path) -> Store:
    """Return the ledger of a setting; without one, the file beside the journal's folder.

    Raises:
        ValueError: the setting names no ledger that we know; the message does not repeat it.
    """
    place = place_of(url, "ledger.url") or journal.parent / FILE
    return SqliteStore(place) if isinstance(place, Path) else PostgresStore(place)


def place_of(url: str, setting: str) -> Path | str | None:
    """Return the file of a database, or the URL of a PostgreSQL; None where none is named.

    Raises:
        ValueError: it is neither; the message names the setting and does not repeat it.
    """
    if not url:
        return None
    if url.startswith(_SQLITE) and len(url) > len(_SQLITE):
        return Path(url.removeprefix(_SQLITE))
    if url.startswith(_POSTGRES):
        plain = url.replace("postgres://", "postgresql://", 1)
        try:
            PostgresStore(plain)
        except (ArgumentError, ValueError):
            pass
        else:
            return plain
    raise ValueError(f"{setting} is not `sqlite:///path` or `postgresql://user:password@host/database`")


def first_look(store: Store) -> None:
    """Look at the schema; a ledger that is away or broken is the follower's to see to.

    It is done in another thread, because the caller's may be inside an event loop.

    Raises:
        LedgerNewer: a newer version made it.
    """
    with ThreadPoolExecutor(1) as thread:
        thread.submit(_look, store).result()


def _look(store: Store) -> None:
    try:
        store.open()
    except (LedgerUnavailable, LedgerBroken) as fault:
        log.warning("the ledger cannot be opened yet", extra={"ledger": store.name, "why": str(fault)})
    finally:
        store.close()


def passed_in(store: Store, journal: Path, files: Files) -> Mapping[str, int] | None:
    """Return how far each segment of a journal is in a ledger, for retention; None where that is not known.

    The ledger itself is asked, each time: what it does not hold now, nobody may remove.
    """
    try:
        store.open()
        gateway_id = id_of(folder_id(journal, files))
        return store.run(lambda c: passed_by(c, gateway_id))
    except (LedgerUnavailable, LedgerBroken, LedgerNewer, ValueError):
        return None
    finally:
        store.close()
