"""Schema: the tables of the control plane's database, as the newest migration leaves them.

A key is stored as the SHA-256 of its 256 random bits, never as itself. Rows are never deleted, because bills
refer to them. Whoever changes a kind of thing raises that kind's version first, in the same transaction, and
writes the new version into each row that it changes: so a reader that knows the version up to which it has
read finds all that is new by one comparison, and changes come one after another.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Boolean, Column, Connection, Index, Integer, MetaData, Table, Text, update

metadata: Final = MetaData()

versions: Final = Table(
    "control_versions",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("version", BigInteger, nullable=False),
)
"""How often each kind of thing was changed; a migration adds the row of a new kind."""

changes: Final = Table(
    "control_changes",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("subject", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("who", Text, nullable=False),
    Column("at_unix_ns", BigInteger, nullable=False),
    Column("fields", Text, nullable=False),
    Index("control_changes_subject", "kind", "subject"),
)
"""Who did what to what, and when; `fields` are names, separated by commas, and no values."""

keys: Final = Table(
    "keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("digest", Text, nullable=False),
    Column("old_digest", Text),
    Column("old_until_unix_ns", BigInteger),
    Column("name", Text),
    Column("user_id", Text, nullable=False),
    Column("user_name", Text),
    Column("team", Text),
    Column("project", Text),
    Column("tags", Text, nullable=False),
    Column("models", Text),
    Column("endpoints", Text),
    Column("on_disconnect", Text, nullable=False),
    Column("unpriced", Text),
    Column("may_create_keys", Boolean, nullable=False),
    Column("disabled", Boolean, nullable=False),
    Column("expires_unix_ns", BigInteger),
    Column("revoked_unix_ns", BigInteger),
    Column("created_unix_ns", BigInteger, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("rotated_unix_ns", BigInteger),
    Column("idempotency", Text),
    Column("asked", Text),
    Column("changed", BigInteger, nullable=False),
    Index("keys_digest", "digest", unique=True),
    Index("keys_changed", "changed"),
    Index("keys_created", "created_unix_ns", "id"),
    Index("keys_created_by", "created_by"),
    Index("keys_user", "user_id"),
    Index("keys_idempotency", "idempotency", unique=True),
)
"""Virtual keys. Digests are hexadecimal; `tags`, `models` and `endpoints` are JSON arrays, null for all;
`old_digest` is the secret before the last rotation, good until `old_until_unix_ns`; `idempotency` is the hash
of a maker and its Idempotency-Key, and `asked` of what it asked for; `changed` is the version of the row."""

budgets: Final = Table(
    "budgets",
    metadata,
    Column("id", Text, primary_key=True),
    Column("scope", Text, nullable=False),
    Column("payer", Text, nullable=False),
    Column("limit_pico", BigInteger, nullable=False),
    Column("span", Text, nullable=False),
    Column("zone", Text, nullable=False),
    Column("mode", Text, nullable=False),
    Column("created_unix_ns", BigInteger, nullable=False),
    Column("created_by", Text, nullable=False),
)
"""Budgets made by command or over the API; those of the configuration stand there alone."""

leases: Final = Table(
    "budget_leases",
    metadata,
    Column("budget_id", Text, primary_key=True),
    Column("payer", Text, primary_key=True),
    Column("gateway_id", BigInteger, primary_key=True, autoincrement=False),
    Column("writer", Text, primary_key=True),
    Column("lease_pico", BigInteger, nullable=False),
    Column("room_pico", BigInteger, nullable=False),
    Column("wanted_pico", BigInteger, nullable=False),
    Column("renewed_unix_ns", BigInteger, nullable=False),
)
"""What each process holds of a budget beside what the ledger has as spent; `room_pico` of it was free when
the row was written. `gateway_id` and `writer` are the names of its journal, which tell whether its bills
are in."""

warnings: Final = Table(
    "budget_warnings",
    metadata,
    Column("budget_id", Text, primary_key=True),
    Column("payer", Text, primary_key=True),
    Column("period_start_ns", BigInteger, primary_key=True, autoincrement=False),
    Column("percent", Integer, primary_key=True, autoincrement=False),
    Column("at_unix_ns", BigInteger, nullable=False),
    Column("event_id", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("tries", Integer, nullable=False),
    Column("next_unix_ns", BigInteger),
    Index("budget_warnings_next", "next_unix_ns"),
)
"""Thresholds that were passed, each once; `next_unix_ns` is when its webhook is to be tried (again), null
when that is over."""


def next_version(connection: Connection, kind: str) -> int:
    """Raise a kind's version and return it; the first statement of each transaction that changes the kind."""
    statement = update(versions).where(versions.c.kind == kind).values(version=versions.c.version + 1)
    return int(connection.execute(statement.returning(versions.c.version)).scalar_one())
