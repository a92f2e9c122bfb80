"""Makers: who may make, see and change which keys.

The operator may do all. A key that may create keys sees and changes those that it made and no others, and
whatever it does to one, the outcome grants no more than it has itself at that moment.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from sqlalchemy import ColumnElement, Connection, Row, func, select

from gateway.control.records import record_of
from gateway.control.schema import keys
from gateway.control.terms import Terms, beyond
from gateway.core.errors import CallerError

LIVE_MAX: Final = 200_000
"""Keys that are not revoked: each process holds all of them in memory."""
MADE_MAX: Final = 10_000
"""Keys that one key may make in its life; rows are never deleted."""


class Maker(msgspec.Struct, frozen=True, kw_only=True):
    """Who makes or changes keys.

    Args:
        who: for the record: `admin`, `cli:` and a user of the machine, or a key's id.
        key_id: the key that does it; None is the operator, who may do all.
    """

    who: str
    key_id: str | None = None


def terms_of_maker(c: Connection, maker: Maker, now_ns: int) -> Terms | None:
    """Return what the maker has now; None is the operator, who has all.

    Raises:
        CallerError: 403, it has nothing now, or may create no keys.
    """
    if maker.key_id is None:
        return None
    row = first(c, keys.c.id == maker.key_id)
    record = None if row is None else record_of(row)
    if record is None or record.state(now_ns) != "active" or not record.terms.may_create_keys:
        raise may_not()
    return record.terms


def may_not() -> CallerError:
    """Return what a key is told that is not one to make keys."""
    return CallerError(
        "key_creation_not_allowed", "the admin key is needed here, or a key that may create keys", status=403
    )


def check_within(own: Terms | None, terms: Terms) -> None:
    """Look whether terms are within the maker's own.

    Raises:
        CallerError: 403, naming what is beyond them.
    """
    if own is not None and (field := beyond(own, terms)) is not None:
        raise CallerError(
            "beyond_own_key",
            f"`{field}` would grant more than your own key has; GET /v1/key shows what that is",
            status=403,
            param=field,
        )


def check_count(c: Connection, maker: Maker) -> None:
    """Look whether there may be one more key.

    Raises:
        CallerError: 409.
    """
    live = select(func.count()).select_from(keys).where(keys.c.revoked_unix_ns.is_(None))
    made = select(func.count()).select_from(keys).where(keys.c.created_by == maker.key_id)
    if c.execute(live).scalar_one() >= LIVE_MAX:
        raise CallerError("too_many_keys", f"there are {LIVE_MAX} keys; revoke some", status=409)
    if maker.key_id is not None and c.execute(made).scalar_one() >= MADE_MAX:
        raise CallerError("too_many_keys", f"your key has made {MADE_MAX} keys, and may no more", status=409)


def visible(c: Connection, key_id: str, maker: Maker, param: str | None = None) -> Row[Any]:
    """Return the row of a key that the maker may see.

    Raises:
        CallerError: 404; 400 where a parameter of the request names the key.
    """
    row = first(c, keys.c.id == key_id) if key_id.isprintable() else None
    if row is None or maker.key_id not in (None, row.created_by):
        raise CallerError(
            "key_not_found",
            "there is no such key; GET /v1/keys lists those that are there",
            status=404 if param is None else 400,
            param=param,
        )
    return row


def first(c: Connection, condition: ColumnElement[bool]) -> Row[Any] | None:
    """Return the one row that meets a condition of which there can be one, None where there is none."""
    return c.execute(select(keys).where(condition)).one_or_none()
