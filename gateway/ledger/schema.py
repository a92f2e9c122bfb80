"""Schema: the tables of the ledger, as the newest migration leaves them.

Money is in whole pico-USD (10^-12 USD). One bill fits 64 bits; a sum of bills need not, and SQLite turns an
overflowing `+` into a float without a word: so sums are kept in two parts, whole milli-USD and the rest in
pico-USD, and are put together by `total_pico`. What many bills have in common (who pays, which model, which
rates) stands once, under an id that is a hash of it, so that every ledger makes the same ids.

A bill's hour is the one in which it was settled (`ended_unix_ns`). Rows are only ever added; the revision
with the highest number is the one that counts (`current`), which is what `current_bills` shows.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, MetaData, Table, Text, column, table

PICO_PER_MILLI: Final = 10**9
"""Pico-USD in a milli-USD: where a sum of money is cut in two."""
HOUR_NS: Final = 3_600 * 10**9
DAY_NS: Final = 24 * HOUR_NS
TOKENS: Final = ("input", "output", "cache_read", "cache_write", "reasoning")
"""Dimensions with a column of their own; counts of all others stand in `lines`."""

metadata: Final = MetaData()


def _text(name: str) -> Column[str]:
    return Column(name, Text, nullable=False)


def _maybe_text(name: str) -> Column[str]:
    return Column(name, Text)


def _int(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False)


def _maybe_int(name: str) -> Column[int]:
    return Column(name, BigInteger)


def _id(name: str = "id") -> Column[int]:
    return Column(name, BigInteger, primary_key=True, autoincrement=False)


def _key(name: str) -> Column[str]:
    return Column(name, Text, primary_key=True)


gateways: Final = Table(
    "gateways",
    metadata,
    _id(),
    _text("folder"),
    Column("rollups_due", Boolean, nullable=False),
    Index("gateways_folder", "folder", unique=True),
)
"""Journal folders that this ledger follows; `rollups_due` while a rebuild has not yet made the sums."""

accounts: Final = Table(
    "accounts",
    metadata,
    _id(),
    _text("key_id"),
    _text("user_id"),
    _maybe_text("user_name"),
    _maybe_text("user_source"),
    _maybe_text("team"),
    _maybe_text("project"),
    _maybe_text("tags"),
)
"""Who pays, as the bills say it."""

routes: Final = Table(
    "routes",
    metadata,
    _id(),
    _maybe_text("operation"),
    _maybe_text("protocol"),
    _maybe_text("provider"),
    _text("model"),
    _text("requested_model"),
    _maybe_text("served_model"),
    _maybe_text("alias"),
)
"""What was asked and what served; `model` is the one that served, or else the one that was asked for."""

rates: Final = Table(
    "rates",
    metadata,
    _id(),
    _maybe_text("price_id"),
    _maybe_text("catalog"),
    _maybe_text("tier"),
    _maybe_text("service_tier"),
    _maybe_text("source"),
)
"""By which prices."""

bills: Final = Table(
    "bills",
    metadata,
    _key("record_id"),
    Column("revision", Integer, primary_key=True, autoincrement=False),
    _int("gateway_id"),
    _int("started_unix_ns"),
    _int("ended_unix_ns"),
    _text("trace_id"),
    _text("span_id"),
    _int("account_id"),
    _int("route_id"),
    _maybe_int("rate_id"),
    _text("status"),
    _text("outcome"),
    _maybe_text("error_type"),
    Column("http_status", Integer),
    Column("attempts", Integer, nullable=False),
    _maybe_text("providers_tried"),
    Column("stream", Boolean, nullable=False),
    *[_maybe_int(f"{name}_tokens") for name in TOKENS],
    _maybe_text("usage_source"),
    _maybe_int("cost_pico"),
    _maybe_text("reported_cost_usd"),
    _maybe_int("latency_us"),
    _maybe_int("first_chunk_us"),
    _maybe_text("client_request_id"),
    _maybe_text("session_id"),
    _maybe_text("end_user"),
    _maybe_text("cost_lines"),
    Column("current", Boolean, nullable=False),
    Index("bills_ended", "ended_unix_ns", "record_id"),
    Index("bills_account", "account_id", "ended_unix_ns", "record_id"),
    sqlite_with_rowid=False,
)
"""One row for each revision of each bill. `cost_lines` is what `lines` shows, as `gateway.ledger.packing` has
it; `current` is true for the newest revision, and the one thing that changes in a row."""

lines: Final = table(
    "lines",
    column("record_id", Text),
    column("revision", Integer),
    column("line", Integer),
    column("kind", Text),
    column("dimension", Text),
    column("model", Text),
    column("units", BigInteger),
    column("rate", Text),
    column("cost_pico", BigInteger),
)
"""A view: what the cost is made of, and counts that have no column in `bills`. Three rows a bill, each with
the bill's id, took half of a ledger and of the time to write it."""


def _sums() -> list[Column[int]]:
    return [
        _int("bills"),
        _int("priced"),
        _int("errors"),
        *[_maybe_int(f"{name}_tokens") for name in TOKENS],
        _int("cost_milli"),
        _int("cost_rest_pico"),
    ]


SUMS: Final = tuple(column.name for column in _sums())
"""What is summed, in the roll-ups and in what `gateway.ledger.queries` returns."""

hourly: Final = Table(
    "costs_hourly",
    metadata,
    _id("hour"),
    _id("gateway_id"),
    _id("account_id"),
    _id("route_id"),
    _key("status"),
    *_sums(),
    Index("costs_hourly_account", "account_id", "hour"),
    sqlite_with_rowid=False,
)
"""Sums by UTC hour (hours since 1970), who pays, what served, and status."""

daily: Final = Table(
    "costs_daily",
    metadata,
    _id("day"),
    _id("gateway_id"),
    _id("account_id"),
    _id("route_id"),
    _key("status"),
    *_sums(),
    sqlite_with_rowid=False,
)
"""The same by UTC day (days since 1970)."""

daily_accounts: Final = Table(
    "costs_daily_accounts",
    metadata,
    _id("day"),
    _id("gateway_id"),
    _id("account_id"),
    _key("status"),
    *_sums(),
    sqlite_with_rowid=False,
)
"""The same by UTC day and who pays."""

daily_routes: Final = Table(
    "costs_daily_routes",
    metadata,
    _id("day"),
    _id("gateway_id"),
    _id("route_id"),
    _key("status"),
    *_sums(),
    sqlite_with_rowid=False,
)
"""The same by UTC day and what served."""

totals: Final = Table(
    "costs_total",
    metadata,
    _id("hour"),
    _id("gateway_id"),
    _key("status"),
    *_sums(),
    sqlite_with_rowid=False,
)
"""The same by UTC hour and status alone."""

ROLLUPS: Final = (hourly, daily, daily_accounts, daily_routes, totals)

segments: Final = Table(
    "segments",
    metadata,
    _id("gateway_id"),
    _key("segment"),
    _int("passed"),
    _int("lost_bills"),
)
"""How far each segment was read, for ever: what retention removes must stand here. `lost_bills`: bills that
had been removed before they were read, as the operator has accepted."""

horizons: Final = Table("horizons", metadata, _id("gateway_id"), _int("before_unix_ns"))
"""Since when each gateway's bills have rows; of earlier ones there are only sums: `gateway.ledger.expiry`."""

writers: Final = Table("writers", metadata, _id("gateway_id"), _key("writer"), _int("seen"))
"""Up to which number the records of each writer were read without a gap."""

conflicts: Final = Table(
    "conflicts",
    metadata,
    _id("gateway_id"),
    _key("segment"),
    _id("line_end"),
    _text("kind"),
    _maybe_text("record_id"),
    _text("why"),
    _text("line"),
    _int("noted_unix_ns"),
)
"""Lines of the journal that are not in `bills`, with the reason: a second, different bill of one id
(`conflict`), or a bill that cannot be held (`refused`)."""


waiting: Final = Table(
    "revisions_waiting",
    metadata,
    _key("record_id"),
    Column("revision", Integer, primary_key=True, autoincrement=False),
    _int("gateway_id"),
    _text("segment"),
    _int("line_end"),
    _text("line"),
    Index("revisions_waiting_gateway", "gateway_id"),
)
"""Revisions that were read before their bills: a journal's writers are not read in the order of time."""


tallies: Final = Table(
    "tallies",
    metadata,
    _id("gateway_id"),
    _key("writer"),
    _key("labels"),
    _text("tally"),
    sqlite_with_rowid=False,
)
"""What the gateway's counters count of each writer's bills, as they were settled; under an empty name of all
writers that are gone. Both texts are JSON: see `gateway.ledger.tallying`."""
feeds: Final = Table("feeds", metadata, _id("gateway_id"), _text("epoch"), _int("last"))
"""For each gateway the random name and the last number of its feed; made again, it has another name."""

feed: Final = Table(
    "feed",
    metadata,
    _id("gateway_id"),
    _id("number"),
    _text("record_id"),
    Column("revision", Integer, nullable=False),
    Column("replaces", Integer),
    sqlite_with_rowid=False,
)
"""Rows of `bills` in the order in which they came to count, and which revision each one took the place of."""


def split(pico: int) -> tuple[int, int]:
    """Return an amount as whole milli-USD and the rest in pico-USD."""
    return divmod(pico, PICO_PER_MILLI)


def total_pico(milli: int, rest_pico: int) -> int:
    """Return the amount in pico-USD that two sums of parts come to."""
    return milli * PICO_PER_MILLI + rest_pico
