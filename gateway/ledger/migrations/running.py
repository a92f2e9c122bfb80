"""Running: alembic inside the caller's transaction, without files of configuration."""

from __future__ import annotations

from pathlib import Path

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext, RevisionStep
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from gateway.ledger.store import LedgerNewer


class Migrations:
    """The steps of one schema; several schemas may share a database.

    Args:
        folder: holds `versions`, one module for each revision.
        table: where the schema's revision stands.
        what: what has this schema, in words.
        setting: which setting names another database for it.
    """

    def __init__(self, folder: Path, table: str, what: str, setting: str) -> None:
        self.table = table
        self._folder = folder
        self._what = what
        self._setting = setting

    def known_revisions(self) -> list[str]:
        """Return the revisions that this version can make, the newest first."""
        return [script.revision for script in self._scripts().walk_revisions()]

    def revision_of(self, connection: Connection) -> str | None:
        """Return the revision of a database's schema, None where there are no tables yet."""
        context = MigrationContext.configure(connection, opts={"version_table": self.table})
        return context.get_current_revision()

    def upgrade(self, connection: Connection, revision: str = "head") -> None:
        """Bring the tables to a revision.

        Raises:
            LedgerNewer: a newer version made them.
        """
        scripts = self._scripts()
        current = self.revision_of(connection)
        known = self.known_revisions()
        if current is not None and current not in known:
            raise LedgerNewer(
                f"the {self._what}'s schema is revision {current}, and this version knows none after "
                f"{known[0]}: run the newer version, or give this one another {self._what} ({self._setting})"
            )
        if current == scripts.get_current_head():
            return

        def steps(now: object, _: object) -> list[RevisionStep]:
            return scripts._upgrade_revs(revision, now)  # type: ignore[arg-type]  # alembic's own way

        environment = EnvironmentContext(Config(), scripts, fn=steps)
        with environment:
            environment.configure(connection=connection, version_table=self.table, transactional_ddl=True)
            environment.run_migrations()

    def _scripts(self) -> ScriptDirectory:
        return ScriptDirectory(str(self._folder))
