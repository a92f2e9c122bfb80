"""Versions, the list of changes, and virtual keys."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    _versions("keys")
    _changes()
    _keys()


def _versions(kind: str) -> None:
    made = op.create_table(
        "control_versions",
        sa.Column("kind", sa.Text(), primary_key=True),
        sa.Column("version", sa.BigInteger(), nullable=False),
    )
    op.bulk_insert(made, [{"kind": kind, "version": 0}])


def _changes() -> None:
    op.create_table(
        "control_changes",
        sa.Column("kind", sa.Text(), primary_key=True),
        sa.Column("version", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("who", sa.Text(), nullable=False),
        sa.Column("at_unix_ns", sa.BigInteger(), nullable=False),
        sa.Column("fields", sa.Text(), nullable=False),
    )
    op.create_index("control_changes_subject", "control_changes", ["kind", "subject"])


def _keys() -> None:
    op.create_table(
        "keys",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("old_digest", sa.Text()),
        sa.Column("old_until_unix_ns", sa.BigInteger()),
        sa.Column("name", sa.Text()),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("user_name", sa.Text()),
        sa.Column("team", sa.Text()),
        sa.Column("project", sa.Text()),
        sa.Column("tags", sa.Text(), nullable=False),
        sa.Column("models", sa.Text()),
        sa.Column("endpoints", sa.Text()),
        sa.Column("on_disconnect", sa.Text(), nullable=False),
        sa.Column("unpriced", sa.Text()),
        sa.Column("may_create_keys", sa.Boolean(), nullable=False),
        sa.Column("disabled", sa.Boolean(), nullable=False),
        sa.Column("expires_unix_ns", sa.BigInteger()),
        sa.Column("revoked_unix_ns", sa.BigInteger()),
        sa.Column("created_unix_ns", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("rotated_unix_ns", sa.BigInteger()),
        sa.Column("idempotency", sa.Text()),
        sa.Column("asked", sa.Text()),
        sa.Column("changed", sa.BigInteger(), nullable=False),
    )
    op.create_index("keys_digest", "keys", ["digest"], unique=True)
    op.create_index("keys_changed", "keys", ["changed"])
    op.create_index("keys_created", "keys", ["created_unix_ns", "id"])
    op.create_index("keys_created_by", "keys", ["created_by"])
    op.create_index("keys_user", "keys", ["user_id"])
    op.create_index("keys_idempotency", "keys", ["idempotency"], unique=True)
