"""Records: a key's row as a value, what it opens, and how it is shown; a secret is in none of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final, Literal

import msgspec
from sqlalchemy import ColumnElement, Row, and_, or_

from gateway.admission.permission import Holder, permission_of
from gateway.admission.stored_keys import StoredKey
from gateway.control.schema import keys
from gateway.control.terms import Terms
from gateway.core.exchange import Identity

State = Literal["active", "disabled", "expired", "revoked"]

LISTS_MAX: Final = 4096
"""Different lists of names that are read once for all keys that have the same."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A key as it stands in the database.

    Args:
        old_until_unix_ns: how long the secret before the last rotation is good, None where there is none.
        created_by: `admin`, `cli:` and a user of the machine, or the id of the key that made it.
        changed: the version that last changed it.
    """

    id: str
    terms: Terms
    disabled: bool
    created_unix_ns: int
    created_by: str
    changed: int
    revoked_unix_ns: int | None = None
    rotated_unix_ns: int | None = None
    old_until_unix_ns: int | None = None

    def state(self, now_ns: int) -> State:
        """Return whether it opens anything, and why not."""
        if self.revoked_unix_ns is not None:
            return "revoked"
        if self.disabled:
            return "disabled"
        ends = self.terms.expires_unix_ns
        return "active" if ends is None or now_ns < ends else "expired"


def in_state(state: State, now_ns: int) -> ColumnElement[bool]:
    """Return the condition of a state, for a query."""
    live = keys.c.revoked_unix_ns.is_(None)
    enabled = and_(live, keys.c.disabled.is_(False))
    match state:
        case "revoked":
            return keys.c.revoked_unix_ns.is_not(None)
        case "disabled":
            return and_(live, keys.c.disabled.is_(True))
        case "expired":
            return and_(enabled, keys.c.expires_unix_ns <= now_ns)
        case "active":
            return and_(enabled, or_(keys.c.expires_unix_ns.is_(None), keys.c.expires_unix_ns > now_ns))


def columns_of(terms: Terms) -> dict[str, Any]:
    """Return terms as columns."""
    return {
        "name": terms.name,
        "user_id": terms.user,
        "user_name": terms.user_name,
        "team": terms.team,
        "project": terms.project,
        "tags": _array(terms.tags),
        "models": None if terms.models is None else _array(terms.models),
        "endpoints": None if terms.endpoints is None else _array(terms.endpoints),
        "on_disconnect": terms.on_disconnect,
        "unpriced": terms.unpriced,
        "may_create_keys": terms.may_create_keys,
        "expires_unix_ns": terms.expires_unix_ns,
    }


def record_of(row: Row[Any]) -> Record:
    """Return a row as a value.

    Raises:
        ValueError: somebody else wrote what no version of the gateway writes.
    """
    return Record(
        id=row.id,
        terms=Terms(
            name=row.name,
            user=row.user_id,
            user_name=row.user_name,
            team=row.team,
            project=row.project,
            tags=_names(row.tags) or (),
            models=_names(row.models),
            endpoints=_names(row.endpoints),
            on_disconnect=row.on_disconnect,
            unpriced=row.unpriced,
            expires_unix_ns=row.expires_unix_ns,
            may_create_keys=row.may_create_keys,
        ),
        disabled=row.disabled,
        created_unix_ns=row.created_unix_ns,
        created_by=row.created_by,
        changed=row.changed,
        revoked_unix_ns=row.revoked_unix_ns,
        rotated_unix_ns=row.rotated_unix_ns,
        old_until_unix_ns=row.old_until_unix_ns,
    )


def stored_key(row: Row[Any]) -> StoredKey:
    """Return what a row opens.

    Raises:
        ValueError: somebody else wrote what no version of the gateway writes.
    """
    if row.revoked_unix_ns is not None:
        return StoredKey(id=row.id, changed=row.changed, holders={})
    holder = Holder(
        identity=Identity(
            key_id=row.id,
            user_id=row.user_id,
            source="key",
            on_disconnect=row.on_disconnect,
            unpriced=row.unpriced,
            user_name=row.user_name,
            team=row.team,
            project=row.project,
            tags=_names(row.tags) or (),
        ),
        permission=permission_of(_names(row.models), _names(row.endpoints)),
        name=row.name,
        until_unix_ns=row.expires_unix_ns,
        disabled=row.disabled,
        stored=True,
        may_create_keys=row.may_create_keys,
    )
    holders = {bytes.fromhex(row.digest): holder}
    if row.old_digest is not None and row.old_until_unix_ns is not None:
        ends = (row.old_until_unix_ns, row.expires_unix_ns)
        until = min(end for end in ends if end is not None)
        holders[bytes.fromhex(row.old_digest)] = msgspec.structs.replace(holder, until_unix_ns=until)
    return StoredKey(id=row.id, changed=row.changed, holders=holders)


def shown(record: Record, now_ns: int) -> dict[str, Any]:
    """Return a record as the API and the command line show it."""
    terms = record.terms
    return {
        "object": "key",
        "id": record.id,
        "state": record.state(now_ns),
        "name": terms.name,
        "user": terms.user,
        "user_name": terms.user_name,
        "team": terms.team,
        "project": terms.project,
        "tags": list(terms.tags),
        "models": None if terms.models is None else list(terms.models),
        "endpoints": None if terms.endpoints is None else list(terms.endpoints),
        "on_disconnect": terms.on_disconnect,
        "unpriced": terms.unpriced,
        "may_create_keys": terms.may_create_keys,
        "expires_at": instant(terms.expires_unix_ns),
        "created_at": instant(record.created_unix_ns),
        "created_by": record.created_by,
        "rotated_at": instant(record.rotated_unix_ns),
        "old_secret_until": instant(record.old_until_unix_ns),
        "revoked_at": instant(record.revoked_unix_ns),
    }


def instant(unix_ns: int | None) -> str | None:
    """Return RFC 3339 in UTC, to the microsecond."""
    if unix_ns is None:
        return None
    return (_EPOCH + timedelta(microseconds=unix_ns // 1000)).isoformat().replace("+00:00", "Z")


def _array(names: tuple[str, ...]) -> str:
    return msgspec.json.encode(names).decode()


@lru_cache(LISTS_MAX)
def _names(array: str | None) -> tuple[str, ...] | None:
    return None if array is None else msgspec.json.decode(array, type=tuple[str, ...])
