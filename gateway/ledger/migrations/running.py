"""Running: alembic inside the caller's transaction, without files of configuration."""

from __future__ import annotations

from pathlib import Path

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext, RevisionStep
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from gateway.ledger.store import LedgerNewer

VERSION_TABLE = "ledger_schema"


def known_revisions() -> list[str]:
    """Return the revisions that this version can make, the newest first."""
    return [script.revision for script in _scripts().walk_revisions()]


def revision_of(connection: Connection) -> str | None:
    """Return the revision of a ledger's schema, None where there are no tables yet."""
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    return context.get_current_revision()


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Bring the tables to a revision.

    Raises:
        LedgerNewer: a newer version made them.
    """
    scripts = _scripts()
    current = revision_of(connection)
    if current is not None and current not in known_revisions():
        raise LedgerNewer(
            f"the ledger's schema is revision {current}, and this version knows none after "
            f"{known_revisions()[0]}: run the newer version, or give this one another ledger (ledger.url)"
        )
    if current == scripts.get_current_head():
        return

    def steps(now: object, _: object) -> list[RevisionStep]:
        return scripts._upgrade_revs(revision, now)  # type: ignore[arg-type]  # alembic's own way

    environment = EnvironmentContext(Config(), scripts, fn=steps)
    with environment:
        environment.configure(connection=connection, version_table=VERSION_TABLE, transactional_ddl=True)
        environment.run_migrations()


def _scripts() -> ScriptDirectory:
    return ScriptDirectory(str(Path(__file__).parent))
