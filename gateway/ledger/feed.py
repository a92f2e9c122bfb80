"""Feed: every bill and every correction once, in the order in which they came to count, for billing systems.

A bill can be settled long before it gets here: a gateway that was killed is recovered when it starts again,
and another one's journal catches up late. A cursor in the order of time would pass over it, so each gateway's
rows are numbered as they are written, in the transaction that writes them. When a ledger is made again its
numbers are others, under another epoch: a cursor of the old ones begins anew, and what comes again has the
ids that it had.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Select, Table, case, delete, func, insert, literal, null, select, update

from gateway.ledger import schema
from gateway.ledger.inserting import insert_rows
from gateway.ledger.projection import SETTLED_REVISION, Row
from gateway.ledger.upserting import upsert_for

CURSOR_CHARS_MAX: Final = 16_384
"""Some 300 gateways."""
NUMBER_MAX: Final = 2**63 - 1

_COLUMN: Final = {name: at for at, name in enumerate(schema.bills.c.keys())}
_ID: Final = _COLUMN["record_id"]
_REVISION: Final = _COLUMN["revision"]


class Place(msgspec.Struct, frozen=True, array_like=True):
    """How far the feed of one gateway was read."""

    gateway_id: int
    epoch: str
    number: int


Cursor = tuple[Place, ...]


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A bill, or a correction of one.

    Args:
        row: the bill as it counts from here on, by the names of the columns.
        before_pico: what it cost before, None if it had no cost or was none.
    """

    row: Mapping[str, Any]
    before_pico: int | None

    @property
    def is_correction(self) -> bool:
        """Say whether it takes the place of an earlier revision."""
        return self.row["replaces"] is not None

    @property
    def delta_pico(self) -> int | None:
        """Return by how much the sum of all costs changes; None where neither cost is known."""
        now = self.row["cost_pico"]
        if now is None and self.before_pico is None:
            return None
        return (now or 0) - (self.before_pico or 0)


class Stretch(msgspec.Struct, frozen=True, kw_only=True):
    """Some of the feed; `cursor` goes on behind it, now or later."""

    entries: tuple[Entry, ...]
    cursor: Cursor
    more: bool


def token_of(cursor: Cursor) -> str:
    """Return a cursor as text that a caller can hand back."""
    return base64.urlsafe_b64encode(msgspec.json.encode(cursor)).decode()


def cursor_of(token: str) -> Cursor:
    """Return what a caller handed back.

    Raises:
        ValueError: it is no token of ours.
    """
    try:
        if len(token) > CURSOR_CHARS_MAX:
            raise ValueError
        found = msgspec.json.decode(
            base64.b64decode(token, altchars=b"-_", validate=True), type=tuple[Place, ...]
        )
        if any(not 0 <= place.number <= NUMBER_MAX for place in found):
            raise ValueError
        return found
    except (ValueError, binascii.Error, msgspec.MsgspecError) as fault:
        raise ValueError("the cursor is none that this door gave out") from fault


def append(connection: Connection, gateway_id: int, settled: Sequence[Row], touched: Sequence[Row]) -> None:
    """Number what counts from now on.

    Args:
        settled: rows of new bills.
        touched: for each bill that was revised the row that counted, and the one that counts now.
    """
    found: list[tuple[Any, ...]] = [(bill[_ID], bill[_REVISION], None) for bill in settled]
    for before, now in zip(touched[::2], touched[1::2], strict=True):
        found.append((now[_ID], now[_REVISION], before[_REVISION]))
    if not found:
        return
    feeds = schema.feeds
    own = feeds.c.gateway_id == gateway_id
    last = connection.execute(select(feeds.c.last).where(own)).scalar()
    if last is None:
        last = 0
        _begin(connection, gateway_id)
    rows: list[Row] = [(gateway_id, number, *entry) for number, entry in enumerate(found, last + 1)]
    insert_rows(connection, schema.feed, rows)
    connection.execute(update(feeds).where(own).values(last=last + len(rows)))


def trim(connection: Connection, gateway_id: int, count_max: int) -> None:
    """Let the oldest entries go whose bills went before; their numbers are not used again."""
    feed, bills = schema.feed, schema.bills
    own = feed.c.gateway_id == gateway_id
    held = select(bills.c.record_id).where(bills.c.record_id == feed.c.record_id).exists()
    oldest = select(feed.c.number, held.label("held")).where(own).order_by(feed.c.number).limit(count_max)
    gone = 0
    for entry in connection.execute(oldest):
        if entry.held:
            break
        gone = entry.number
    connection.execute(delete(feed).where(own, feed.c.number <= gone))


def number_more(connection: Connection, gateway_id: int, bills: Table) -> None:
    """Number bills of a table like `schema.bills`, none of them revised; `begin_again` must follow."""
    feed = schema.feed
    last = connection.execute(_last(gateway_id)).scalar() or 0
    chosen = select(
        literal(gateway_id, feed.c.gateway_id.type),
        literal(last, feed.c.number.type) + func.row_number().over(order_by=bills.c.record_id),
        bills.c.record_id,
        bills.c.revision,
        null(),
    )
    connection.execute(insert(feed).from_select(list(feed.c.keys()), chosen))


def number_again(connection: Connection, gateway_id: int) -> None:
    """Number all that counts, or ever counted, of a gateway anew."""
    bills, feed = schema.bills, schema.feed
    connection.execute(delete(feed).where(feed.c.gateway_id == gateway_id))
    order = (bills.c.record_id, bills.c.revision)  # as they stand in the table: about the order of time
    older = bills.alias("older")
    before = select(func.max(older.c.revision)).where(
        older.c.record_id == bills.c.record_id, older.c.revision < bills.c.revision
    )
    replaced = case((bills.c.revision == SETTLED_REVISION, null()), else_=before.scalar_subquery())
    chosen = select(
        literal(gateway_id, schema.feed.c.gateway_id.type),
        func.row_number().over(order_by=order),
        *order,
        replaced,
    ).where(bills.c.gateway_id == gateway_id)
    connection.execute(insert(feed).from_select(list(feed.c.keys()), chosen))
    begin_again(connection, gateway_id)


def begin_again(connection: Connection, gateway_id: int) -> None:
    """Give the feed of a gateway, as it was numbered, a name of its own: to who reads it all of it is new."""
    _begin(connection, gateway_id)
    feeds, last = schema.feeds, _last(gateway_id).scalar_subquery()
    connection.execute(
        update(feeds).where(feeds.c.gateway_id == gateway_id).values(last=func.coalesce(last, 0))
    )


def _last(gateway_id: int) -> Select[Any]:
    return select(func.max(schema.feed.c.number)).where(schema.feed.c.gateway_id == gateway_id)


def _begin(connection: Connection, gateway_id: int) -> None:
    values = {"epoch": secrets.token_hex(6), "last": 0}
    statement = upsert_for(connection, schema.feeds, values)
    connection.execute(statement, [{"gateway_id": gateway_id, **values}])


def read(connection: Connection, cursor: Cursor, count: int) -> Stretch:
    """Return what comes behind a cursor, one gateway after another, at most `count` entries."""
    feeds = schema.feeds
    known = {place.gateway_id: place for place in cursor}
    entries: list[Entry] = []
    reached: list[Place] = []
    more = False
    for own in connection.execute(select(feeds).order_by(feeds.c.gateway_id)).all():
        place = known.get(own.gateway_id)
        if place is None or place.epoch != own.epoch:
            place = Place(own.gateway_id, own.epoch, 0)
        room = count - len(entries)
        if place.number < own.last:
            rows = [dict(row) for row in connection.execute(_behind(place, room)).mappings()] if room else []
            entries += [_entry(row) for row in rows]
            number = rows[-1]["number"] if rows else place.number
            number = own.last if room and len(rows) < room else number  # what retention took has no row
            more |= number < own.last
            place = Place(own.gateway_id, own.epoch, number)
        reached.append(place)
    return Stretch(entries=tuple(entries), cursor=tuple(reached), more=more)


def _entry(row: Mapping[str, Any]) -> Entry:
    return Entry(row=row, before_pico=row["before_pico"])


def _behind(place: Place, count: int) -> Select[Any]:
    feed, bills = schema.feed, schema.bills
    before = bills.alias("before")
    tables: Iterable[Any] = (schema.accounts, schema.routes)
    return (
        select(
            feed.c.number,
            feed.c.replaces,
            before.c.cost_pico.label("before_pico"),
            *bills.c,
            *[column for table in tables for column in table.c if column.name != "id"],
        )
        .join(bills, (bills.c.record_id == feed.c.record_id) & (bills.c.revision == feed.c.revision))
        .join(schema.accounts, schema.accounts.c.id == bills.c.account_id)
        .join(schema.routes, schema.routes.c.id == bills.c.route_id)
        .outerjoin(before, (before.c.record_id == feed.c.record_id) & (before.c.revision == feed.c.replaces))
        .where(feed.c.gateway_id == place.gateway_id, feed.c.number > place.number)
        .order_by(feed.c.number)
        .limit(count)
    )
