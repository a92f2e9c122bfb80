"""Budgets, what processes hold of them, and the warnings that were given."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    kinds = sa.table("control_versions", sa.column("kind", sa.Text()), sa.column("version", sa.BigInteger()))
    op.bulk_insert(kinds, [{"kind": "budgets", "version": 0}, {"kind": "leases", "version": 0}])
    _budgets()
    _leases()
    _warnings()


def _budgets() -> None:
    op.create_table(
        "budgets",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("payer", sa.Text(), nullable=False),
        sa.Column("limit_pico", sa.BigInteger(), nullable=False),
        sa.Column("span", sa.Text(), nullable=False),
        sa.Column("zone", sa.Text(), nullable=False),
        sa.Column("mode", sa.Text(), nullable=False),
        sa.Column("created_unix_ns", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
    )


def _leases() -> None:
    op.create_table(
        "budget_leases",
        sa.Column("budget_id", sa.Text(), primary_key=True),
        sa.Column("payer", sa.Text(), primary_key=True),
        sa.Column("gateway_id", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("writer", sa.Text(), primary_key=True),
        sa.Column("lease_pico", sa.BigInteger(), nullable=False),
        sa.Column("room_pico", sa.BigInteger(), nullable=False),
        sa.Column("wanted_pico", sa.BigInteger(), nullable=False),
        sa.Column("renewed_unix_ns", sa.BigInteger(), nullable=False),
    )


def _warnings() -> None:
    op.create_table(
        "budget_warnings",
        sa.Column("budget_id", sa.Text(), primary_key=True),
        sa.Column("payer", sa.Text(), primary_key=True),
        sa.Column("period_start_ns", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("percent", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("at_unix_ns", sa.BigInteger(), nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("next_unix_ns", sa.BigInteger()),
    )
    op.create_index("budget_warnings_next", "budget_warnings", ["next_unix_ns"])
