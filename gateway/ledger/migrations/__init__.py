"""Migrations: bring a ledger's tables to this version's schema, step by step, all of it or nothing.

A revision that this version does not know was made by a newer one: its ledger is left alone.
"""

from pathlib import Path
from typing import Final

from gateway.ledger.migrations.running import Migrations

LEDGER: Final = Migrations(Path(__file__).parent, "ledger_schema", "ledger", "ledger.url")

known_revisions = LEDGER.known_revisions
revision_of = LEDGER.revision_of
upgrade = LEDGER.upgrade

__all__ = ["LEDGER", "Migrations", "known_revisions", "revision_of", "upgrade"]
