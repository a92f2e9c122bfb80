"""Migrations: bring a ledger's tables to this version's schema, step by step, all of it or nothing.

A revision that this version does not know was made by a newer one: its ledger is left alone.
"""

from gateway.ledger.migrations.running import known_revisions, revision_of, upgrade

__all__ = ["known_revisions", "revision_of", "upgrade"]
