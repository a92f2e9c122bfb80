"""Stored: budgets in the control database, with who made them; a version says whether anything changed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Row, delete, func, insert, select, update

from gateway.budgets.definitions import BUDGETS_MAX, Budget
from gateway.control.schema import budgets, changes, leases, next_version, versions, warnings
from otel.journal.files import Files

log = logging.getLogger("spanbill.budgets")

KIND: Final = "budgets"
MEMO_BYTES_MAX: Final = 16 * 1024 * 1024


class AlreadyThere(ValueError):
    """There is a budget with that id."""


class Version(msgspec.Struct, frozen=True):
    """All stored budgets at one time."""

    number: int
    budgets: tuple[Budget, ...]


class Memo:
    """What the stored budgets were when they were last read, for a start while the database is away.

    Without it such a start would let everybody spend; it is a copy, and never read beside the database.
    """

    def __init__(self, path: Path, files: Files | None = None) -> None:
        self._path = path
        self._files = files or Files()

    def recall(self) -> tuple[Budget, ...]:
        """Return them; none where nothing was ever remembered, or it cannot be read."""
        try:
            data = self._files.read(self._path, 0, MEMO_BYTES_MAX)
            return msgspec.json.decode(data, type=tuple[Budget, ...])
        except FileNotFoundError:
            return ()
        except (OSError, msgspec.MsgspecError) as fault:
            log.warning("what was known of budgets cannot be read", extra={"why": str(fault)})
            return ()

    def remember(self, found: tuple[Budget, ...]) -> None:
        """Keep them; a disk that takes nothing does not matter to requests."""
        if found == self.recall():
            return
        try:
            self._files.replace(self._path, msgspec.json.encode(found))
        except OSError as fault:
            log.warning("what is known of budgets cannot be kept", extra={"why": str(fault)})


def version_of(connection: Connection) -> int:
    """Return how often budgets were changed."""
    found = select(versions.c.version).where(versions.c.kind == KIND)
    return int(connection.execute(found).scalar_one())


def read_all(connection: Connection, known: int | None = None) -> Version | None:
    """Return all budgets in the order of their ids; None where nothing changed since `known`."""
    number = version_of(connection)
    if number == known:
        return None
    rows = connection.execute(select(budgets).order_by(budgets.c.id).limit(BUDGETS_MAX)).all()
    return Version(number, tuple(_budget(row) for row in rows))


def read_one(connection: Connection, budget_id: str) -> Budget | None:
    """Return one budget, None where there is none."""
    row = connection.execute(select(budgets).where(budgets.c.id == budget_id)).first()
    return None if row is None else _budget(row)


def create(connection: Connection, budget: Budget, who: str, now_unix_ns: int) -> None:
    """Add a budget.

    Raises:
        AlreadyThere: nothing was changed.
        ValueError: there are too many.
    """
    version = next_version(connection, KIND)
    if read_one(connection, budget.id) is not None:
        raise AlreadyThere(f"there is a budget {budget.id} already")
    if int(connection.execute(select(func.count()).select_from(budgets)).scalar_one()) >= BUDGETS_MAX:
        raise ValueError(f"there are {BUDGETS_MAX} budgets already; delete some, or use one for each payer")
    row = {**msgspec.structs.asdict(budget), "created_unix_ns": now_unix_ns, "created_by": who}
    connection.execute(insert(budgets), [row])
    _note(connection, version, budget.id, "create", who, now_unix_ns, tuple(msgspec.structs.asdict(budget)))


def change(connection: Connection, budget: Budget, who: str, now_unix_ns: int) -> bool:
    """Put a budget in the place of the one with its id; say whether there was one."""
    version = next_version(connection, KIND)
    before = read_one(connection, budget.id)
    if before is None:
        return False
    values = msgspec.structs.asdict(budget)
    fields = tuple(name for name, value in values.items() if value != getattr(before, name))
    connection.execute(update(budgets).where(budgets.c.id == budget.id).values(values))
    if budget.limit_pico > before.limit_pico or budget.span != before.span:
        # What was told of the old limit may come to pass again.
        connection.execute(
            delete(warnings).where(warnings.c.budget_id == budget.id, warnings.c.next_unix_ns.is_(None))
        )
    _note(connection, version, budget.id, "change", who, now_unix_ns, fields)
    return True


def remove(connection: Connection, budget_id: str, who: str, now_unix_ns: int) -> bool:
    """Delete a budget with what belongs to it; say whether there was one."""
    version = next_version(connection, KIND)
    if connection.execute(delete(budgets).where(budgets.c.id == budget_id)).rowcount != 1:
        return False
    for table in (leases, warnings):
        connection.execute(delete(table).where(table.c.budget_id == budget_id))
    _note(connection, version, budget_id, "delete", who, now_unix_ns, ())
    return True


def _note(
    connection: Connection,
    version: int,
    subject: str,
    action: str,
    who: str,
    now_unix_ns: int,
    fields: tuple[str, ...],
) -> None:
    row = {
        "kind": KIND,
        "version": version,
        "subject": subject,
        "action": action,
        "who": who,
        "at_unix_ns": now_unix_ns,
        "fields": ",".join(fields),
    }
    connection.execute(insert(changes), [row])


def _budget(row: Row[Any]) -> Budget:
    return Budget(
        id=row.id,
        scope=row.scope,
        payer=row.payer,
        limit_pico=int(row.limit_pico),
        span=row.span,
        zone=row.zone,
        mode=row.mode,
    )
