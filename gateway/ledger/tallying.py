"""Tallying: what the metrics count of each writer's bills, kept in the transaction that adds the bills.

    a writer lives       its process counts its bills; here they stand under its name
    it is gone, and all
    of it was read       its tallies are merged into those of all that are gone, under no name: `Totals`

Bills are tallied as they were settled: a counter never falls, so a revision changes none. Rows are written
whole, not added to: only who moves the cursor writes them, and knows what stands there.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Table, delete, select

from gateway.ledger import schema
from gateway.ledger.upserting import Upsert, upsert
from otel.metrics import Metrics
from otel.observation import Tally, TallyLabels
from otel.totals import Totals

GONE: Final = ""
"""The name under which all stand that are gone."""
REMEMBERED_MAX: Final = 20_000
"""Tallies in memory; callers choose some of the labels, so the memo starts over when it is full."""
_LOOK_UP: Final = 500
"""Labels in one statement: SQLite takes 32,766 parameters."""

Remembered = dict[tuple[str, TallyLabels], Tally]
"""By writer and labels what surely stands in the ledger; to be forgotten when a transaction fails."""

_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(Tally).decode
_decode_labels: Final = msgspec.json.Decoder(TallyLabels).decode


def add_tallies(
    connection: Connection,
    gateway_id: int,
    writer: str,
    more: dict[TallyLabels, Tally],
    remembered: Remembered,
) -> None:
    """Add tallies of a writer's bills."""
    if not more:
        return
    if len(remembered) + len(more) > REMEMBERED_MAX:
        remembered.clear()
    unknown = [labels for labels in more if (writer, labels) not in remembered]
    _remember(connection, gateway_id, writer, unknown, remembered)
    for labels, tally in more.items():
        remembered[writer, labels].add(tally)
    _put(connection, gateway_id, writer, {labels: remembered[writer, labels] for labels in more})


def totals(connection: Connection, gateway_id: int, living: Collection[str]) -> Totals:
    """Merge the tallies of writers that are gone, all of whose bills were read, and return what they come to.

    Args:
        living: writers that are not gone.
    """
    table = schema.tallies
    own = table.c.gateway_id == gateway_id
    gone: dict[TallyLabels, Tally] = {}
    merged: set[str] = set()
    found = connection.execute(
        select(table.c.writer, table.c.labels, table.c.tally).where(own, table.c.writer.not_in(living))
    )
    for row in found:  # all of it in one statement: another one could merge meanwhile
        labels = _decode_labels(row.labels)
        merged.add(row.writer)
        gone.setdefault(labels, Tally()).add(_decode(row.tally))
    merged.discard(GONE)
    if merged:
        connection.execute(delete(table).where(own, table.c.writer.in_(merged)))
        _put(connection, gateway_id, GONE, gone)
    metrics = Metrics()
    for labels in sorted(gone, key=repr):
        metrics.take(labels, gone[labels])
    writers = schema.writers
    known = connection.execute(
        select(writers.c.writer).where(writers.c.gateway_id == gateway_id, writers.c.writer.not_in(living))
    ).scalars()
    return Totals(writers=frozenset(known), bills=metrics.bills()[0], state=metrics.state())


def tallied(connection: Connection, gateway_id: int) -> tuple[int, int]:
    """Return how many bills of a gateway are tallied, and their cost in pico-USD, as they were settled."""
    table = schema.tallies
    texts = connection.execute(select(table.c.tally).where(table.c.gateway_id == gateway_id)).scalars()
    found = [_decode(text) for text in texts]
    return sum(tally.bills for tally in found), sum(tally.cost_pico_usd or 0 for tally in found)


def _remember(
    connection: Connection,
    gateway_id: int,
    writer: str,
    labels: list[TallyLabels],
    remembered: Remembered,
) -> None:
    table = schema.tallies
    for at in range(0, len(labels), _LOOK_UP):
        some = labels[at : at + _LOOK_UP]
        chosen = select(table.c.labels, table.c.tally).where(
            table.c.gateway_id == gateway_id,
            table.c.writer == writer,
            table.c.labels.in_([_text(own) for own in some]),
        )
        held = {row.labels: _decode(row.tally) for row in connection.execute(chosen)}
        for own in some:
            remembered[writer, own] = held.get(_text(own)) or Tally()


def _put(connection: Connection, gateway_id: int, writer: str, tallies: dict[TallyLabels, Tally]) -> None:
    texts = sorted((_text(labels), labels) for labels in tallies)
    rows = [(gateway_id, writer, text, _encode(tallies[labels]).decode()) for text, labels in texts]
    upsert(connection, schema.tallies, _whole, rows)


def _whole(_table: Table, new: Upsert) -> dict[str, Any]:
    return {"tally": new.excluded.tally}


def _text(labels: TallyLabels) -> str:
    return _encode(labels).decode()
