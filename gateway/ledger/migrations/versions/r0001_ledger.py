"""The ledger's first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

CURRENT_BILLS = """
CREATE VIEW current_bills AS
SELECT b.record_id, b.revision, g.folder, b.started_unix_ns, b.ended_unix_ns, b.trace_id, b.span_id,
    a.key_id, a.user_id, a.user_name, a.user_source, a.team, a.project, a.tags,
    r.operation, r.protocol, r.provider, r.model, r.requested_model, r.served_model, r.alias,
    b.status, b.outcome, b.error_type, b.http_status, b.attempts, b.providers_tried, b.stream,
    b.input_tokens, b.output_tokens, b.cache_read_tokens, b.cache_write_tokens, b.reasoning_tokens,
    b.usage_source, b.cost_pico, b.reported_cost_usd,
    p.price_id, p.catalog, p.tier, p.service_tier, p.source,
    b.latency_us, b.first_chunk_us, b.client_request_id, b.session_id, b.end_user
FROM bills b
JOIN gateways g ON g.id = b.gateway_id
JOIN accounts a ON a.id = b.account_id
JOIN routes r ON r.id = b.route_id
LEFT JOIN rates p ON p.id = b.rate_id
WHERE b.current
"""
LINES_SQLITE = """
CREATE VIEW lines AS
SELECT b.record_id, b.revision, j.key AS line,
    json_extract(j.value, '$[0]') AS kind, json_extract(j.value, '$[1]') AS dimension,
    json_extract(j.value, '$[2]') AS model, json_extract(j.value, '$[3]') AS units,
    json_extract(j.value, '$[4]') AS rate, json_extract(j.value, '$[5]') AS cost_pico
FROM bills b, json_each(b.cost_lines) j
"""
LINES_POSTGRESQL = """
CREATE VIEW lines AS
SELECT b.record_id, b.revision, (j.number - 1)::integer AS line,
    j.line->>0 AS kind, j.line->>1 AS dimension, j.line->>2 AS model,
    (j.line->>3)::bigint AS units, j.line->>4 AS rate, (j.line->>5)::bigint AS cost_pico
FROM bills b, jsonb_array_elements(b.cost_lines::jsonb) WITH ORDINALITY AS j(line, number)
"""


def upgrade() -> None:
    """Make the tables and the views of the bills that count and of the lines of their costs."""
    _gateways()
    _accounts()
    _routes()
    _rates()
    _bills()
    _costs_hourly()
    _costs_daily()
    _costs_daily_accounts()
    _costs_daily_routes()
    _costs_total()
    _segments()
    _writers()
    _conflicts()
    _waiting()
    _tallies()
    _feed()
    op.execute(CURRENT_BILLS)
    op.execute(LINES_POSTGRESQL if op.get_bind().dialect.name == "postgresql" else LINES_SQLITE)


def _gateways() -> None:
    op.create_table(
        "gateways",
        sa.Column("id", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("folder", sa.Text(), nullable=False),
        sa.Column("rollups_due", sa.Boolean(), nullable=False),
    )
    op.create_index("gateways_folder", "gateways", ["folder"], unique=True)


def _accounts() -> None:
    op.create_table(
        "accounts",
        sa.Column("id", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("user_name", sa.Text()),
        sa.Column("user_source", sa.Text()),
        sa.Column("team", sa.Text()),
        sa.Column("project", sa.Text()),
        sa.Column("tags", sa.Text()),
    )


def _routes() -> None:
    op.create_table(
        "routes",
        sa.Column("id", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("operation", sa.Text()),
        sa.Column("protocol", sa.Text()),
        sa.Column("provider", sa.Text()),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("requested_model", sa.Text(), nullable=False),
        sa.Column("served_model", sa.Text()),
        sa.Column("alias", sa.Text()),
    )


def _rates() -> None:
    op.create_table(
        "rates",
        sa.Column("id", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("price_id", sa.Text()),
        sa.Column("catalog", sa.Text()),
        sa.Column("tier", sa.Text()),
        sa.Column("service_tier", sa.Text()),
        sa.Column("source", sa.Text()),
    )


def _bills() -> None:
    op.create_table(
        "bills",
        sa.Column("record_id", sa.Text(), primary_key=True),
        sa.Column("revision", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("gateway_id", sa.BigInteger(), nullable=False),
        sa.Column("started_unix_ns", sa.BigInteger(), nullable=False),
        sa.Column("ended_unix_ns", sa.BigInteger(), nullable=False),
        sa.Column("trace_id", sa.Text(), nullable=False),
        sa.Column("span_id", sa.Text(), nullable=False),
        sa.Column("account_id", sa.BigInteger(), nullable=False),
        sa.Column("route_id", sa.BigInteger(), nullable=False),
        sa.Column("rate_id", sa.BigInteger()),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("error_type", sa.Text()),
        sa.Column("http_status", sa.Integer()),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("providers_tried", sa.Text()),
        sa.Column("stream", sa.Boolean(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger()),
        sa.Column("output_tokens", sa.BigInteger()),
        sa.Column("cache_read_tokens", sa.BigInteger()),
        sa.Column("cache_write_tokens", sa.BigInteger()),
        sa.Column("reasoning_tokens", sa.BigInteger()),
        sa.Column("usage_source", sa.Text()),
        sa.Column("cost_pico", sa.BigInteger()),
        sa.Column("reported_cost_usd", sa.Text()),
        sa.Column("latency_us", sa.BigInteger()),
        sa.Column("first_chunk_us", sa.BigInteger()),
        sa.Column("client_request_id", sa.Text()),
        sa.Column("session_id", sa.Text()),
        sa.Column("end_user", sa.Text()),
        sa.Column("cost_lines", sa.Text()),
        sa.Column("current", sa.Boolean(), nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("bills_account", "bills", ["account_id", "ended_unix_ns", "record_id"])
    op.create_index("bills_ended", "bills", ["ended_unix_ns", "record_id"])


def _costs_hourly() -> None:
    op.create_table(
        "costs_hourly",
        sa.Column("hour", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("gateway_id", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("account_id", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("route_id", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("status", sa.Text(), primary_key=True),
        sa.Column("bills", sa.BigInteger(), nullable=False),
        sa.Column("priced", sa.BigInteger(), nullable=False),
        sa.Column("errors", sa.BigInteger(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger()),
        sa.Column("output_tokens", sa.BigInteger()),
        sa.Column("cache_read_tokens", sa.BigInteger()),
        sa.Column("cache_write_tokens", sa.BigInteger()),
        sa.Column("reasoning_tokens", sa.BigInteger()),
        sa.Column("cost_milli", sa.BigInteger(), nullable=False),
        sa.Column("cost_rest_pico", sa.BigInteger(), nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("costs_hourly_account", "costs_hourly", ["account_id", "hour"])


def _costs_daily() -> None:
    op.create_table(
        "costs_daily",
        sa.Column("day", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("gateway_id", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("account_id", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("route_id", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("status", sa.Text(), primary_key=True),
        sa.Column("bills", sa.BigInteger(), nullable=False),
        sa.Column("priced", sa.BigInteger(), nullable=False),
        sa.Column("errors", sa.BigInteger(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger()),
        sa.Column("output_tokens", sa.BigInteger()),
        sa.Column("cache_read_tokens", sa.BigInteger()),
        sa.Column("cache_write_tokens", sa.BigInteger()),
        sa.Column("reasoning_tokens", sa.BigInteger()),
        sa.Column("cost_milli", sa.BigInteger(), nullable=False),
        sa.Column("cost_rest_pico", sa.BigInteger(), nullable=False),
        sqlite_with_rowid=False,
    )


def _costs_daily_accounts() -> None:
    op.create_table(
        "costs_daily_accounts",
        sa.Column("day", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("gateway_id", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("account_id", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("status", sa.Text(), primary_key=True),
        sa.Column("bills", sa.BigInteger(), nullable=False),
        sa.Column("priced", sa.BigInteger(), nullable=False),
        sa.Column("errors", sa.BigInteger(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger()),
        sa.Column("output_tokens", sa.BigInteger()),
        sa.Column("cache_read_tokens", sa.BigInteger()),
        sa.Column("cache_write_tokens", sa.BigInteger()),
        sa.Column("reasoning_tokens", sa.BigInteger()),
        sa.Column("cost_milli", sa.BigInteger(), nullable=False),
        sa.Column("cost_rest_pico", sa.BigInteger(), nullable=False),
        sqlite_with_rowid=False,
    )


def _costs_daily_routes() -> None:
    op.create_table(
        "costs_daily_routes",
        sa.Column("day", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("gateway_id", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("route_id", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("status", sa.Text(), primary_key=True),
        sa.Column("bills", sa.BigInteger(), nullable=False),
        sa.Column("priced", sa.BigInteger(), nullable=False),
        sa.Column("errors", sa.BigInteger(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger()),
        sa.Column("output_tokens", sa.BigInteger()),
        sa.Column("cache_read_tokens", sa.BigInteger()),
        sa.Column("cache_write_tokens", sa.BigInteger()),
        sa.Column("reasoning_tokens", sa.BigInteger()),
        sa.Column("cost_milli", sa.BigInteger(), nullable=False),
        sa.Column("cost_rest_pico", sa.BigInteger(), nullable=False),
        sqlite_with_rowid=False,
    )


def _costs_total() -> None:
    op.create_table(
        "costs_total",
        sa.Column("hour", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("gateway_id", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("status", sa.Text(), primary_key=True),
        sa.Column("bills", sa.BigInteger(), nullable=False),
        sa.Column("priced", sa.BigInteger(), nullable=False),
        sa.Column("errors", sa.BigInteger(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger()),
        sa.Column("output_tokens", sa.BigInteger()),
        sa.Column("cache_read_tokens", sa.BigInteger()),
        sa.Column("cache_write_tokens", sa.BigInteger()),
        sa.Column("reasoning_tokens", sa.BigInteger()),
        sa.Column("cost_milli", sa.BigInteger(), nullable=False),
        sa.Column("cost_rest_pico", sa.BigInteger(), nullable=False),
        sqlite_with_rowid=False,
    )


def _segments() -> None:
    op.create_table(
        "segments",
        sa.Column("gateway_id", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("segment", sa.Text(), primary_key=True),
        sa.Column("passed", sa.BigInteger(), nullable=False),
        sa.Column("lost_bills", sa.BigInteger(), nullable=False),
    )


def _writers() -> None:
    op.create_table(
        "writers",
        sa.Column("gateway_id", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("writer", sa.Text(), primary_key=True),
        sa.Column("seen", sa.BigInteger(), nullable=False),
    )


def _conflicts() -> None:
    op.create_table(
        "conflicts",
        sa.Column("gateway_id", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("segment", sa.Text(), primary_key=True),
        sa.Column("line_end", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("record_id", sa.Text()),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("line", sa.Text(), nullable=False),
        sa.Column("noted_unix_ns", sa.BigInteger(), nullable=False),
    )


def _waiting() -> None:
    op.create_table(
        "horizons",
        sa.Column("gateway_id", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("before_unix_ns", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "revisions_waiting",
        sa.Column("record_id", sa.Text(), primary_key=True),
        sa.Column("revision", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("gateway_id", sa.BigInteger(), nullable=False),
        sa.Column("segment", sa.Text(), nullable=False),
        sa.Column("line_end", sa.BigInteger(), nullable=False),
        sa.Column("line", sa.Text(), nullable=False),
    )
    op.create_index("revisions_waiting_gateway", "revisions_waiting", ["gateway_id"])


def _tallies() -> None:
    op.create_table(
        "tallies",
        sa.Column("gateway_id", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("writer", sa.Text(), primary_key=True),
        sa.Column("labels", sa.Text(), primary_key=True),
        sa.Column("tally", sa.Text(), nullable=False),
        sqlite_with_rowid=False,
    )


def _feed() -> None:
    op.create_table(
        "feeds",
        sa.Column("gateway_id", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("epoch", sa.Text(), nullable=False),
        sa.Column("last", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "feed",
        sa.Column("gateway_id", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("number", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("record_id", sa.Text(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("replaces", sa.Integer()),
        sqlite_with_rowid=False,
    )
