"""Keys: make, find, change and end virtual keys; each change is one transaction, on record, and in the log.

A secret is 256 random bits. Its hash is stored, and it is returned once, by the call that makes it; nobody
can have it again. Who may do what is decided in `gateway.control.makers`, in the transaction that does it.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import re
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import msgspec
from sqlalchemy import Connection, Row, insert, select, tuple_, update

from gateway.admission.stored_keys import StoredKey
from gateway.admission.virtual_keys import STORED
from gateway.control.makers import Maker, check_count, check_within, first, terms_of_maker, visible
from gateway.control.records import Record, State, columns_of, in_state, record_of, stored_key
from gateway.control.schema import changes, keys, next_version
from gateway.control.store import Control
from gateway.control.terms import Fields, Terms, changed_terms, check_fields, check_text, new_terms
from gateway.core.errors import CallerError, GatewayFault
from gateway.ledger.store import LedgerNewer, LedgerUnavailable

log = logging.getLogger("spanbill.audit")

T = TypeVar("T")

KIND: Final = "keys"
SECRET_BYTES: Final = 32
GRACE_S_MAX: Final = 30 * 86_400
PAGE_MAX: Final = 1000
RETRY_AFTER_S: Final = 1
_IDEMPOTENCY: Final = re.compile(r"[\x21-\x7e]{1,255}")


class NewSecret:
    """A key that was just made; what prints it shows nothing."""

    __slots__ = ("_value", "digest")

    def __init__(self, random: bytes) -> None:
        self._value = STORED.decode() + base64.urlsafe_b64encode(random).rstrip(b"=").decode()
        self.digest = hashlib.sha256(self._value.encode()).hexdigest()

    def __repr__(self) -> str:
        return "NewSecret(...)"

    def __reduce__(self) -> str:
        raise TypeError("a secret is never serialised")

    def reveal(self) -> str:
        """Return the key itself."""
        return self._value


class Made(msgspec.Struct, frozen=True):
    """A key and its secret; None where it was made by an earlier request, which alone was told it."""

    record: Record
    secret: NewSecret | None


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Which keys to list, newest first.

    Args:
        after: the last key of the page before.
    """

    user: str | None = None
    team: str | None = None
    project: str | None = None
    created_by: str | None = None
    state: State | None = None
    after: str | None = None
    limit: int = 100


class Page(msgspec.Struct, frozen=True):
    """Some of the keys, and whether there are more."""

    records: Sequence[Record]
    more: bool


class Keys:
    """The keys of one control database; called from any thread without an event loop.

    Every method raises CallerError for what is asked (400, 403, 404, 409), and GatewayFault 503
    `keys_unavailable` while the database is away: then nothing was changed, or a connection was lost and it
    may have been.

    Args:
        applied: told of each change, after it is durable.
    """

    def __init__(
        self,
        control: Control,
        *,
        now_ns: Callable[[], int] = time.time_ns,
        random: Callable[[int], bytes] = secrets.token_bytes,
        applied: Callable[[StoredKey], None] = lambda _: None,
    ) -> None:
        self._control = control
        self._now_ns = now_ns
        self._random = random
        self._applied = applied

    def create(self, fields: Fields, maker: Maker, idempotency: str | None = None) -> Made:
        """Make a key.

        Args:
            idempotency: of a request that may come again: it makes one key, whose secret is told once.
        """
        if idempotency is not None and not _IDEMPOTENCY.fullmatch(idempotency):
            raise CallerError(
                "invalid_request", "Idempotency-Key must be 1 to 255 visible characters", status=400
            )
        check_fields(fields)
        once = None if idempotency is None else _hash(f"{maker.who}\n{idempotency}".encode())
        asked = _hash(msgspec.json.encode(fields))
        secret = NewSecret(self._random(SECRET_BYTES))
        key_id = f"key_{self._random(8).hex()}"

        def work(c: Connection) -> tuple[Row[Any], bool]:
            version = next_version(c, KIND)
            own = terms_of_maker(c, maker, self._now_ns())
            if once is not None and (made := first(c, keys.c.idempotency == once)) is not None:
                if made.asked != asked:
                    raise CallerError(
                        "idempotency_conflict",
                        "this Idempotency-Key was sent before, with another body",
                        status=409,
                    )
                return made, False
            terms = new_terms(fields, own)
            check_within(own, terms)
            self._check_end(terms)
            check_count(c, maker)
            now_ns = self._now_ns()
            row = {
                **columns_of(terms),
                "id": key_id,
                "digest": secret.digest,
                "disabled": False,
                "created_unix_ns": now_ns,
                "created_by": maker.who,
                "idempotency": once,
                "asked": None if once is None else asked,
                "changed": version,
            }
            c.execute(insert(keys).values(**row))
            _note(c, version, key_id, "create", maker, now_ns, _names(fields))
            return _there(c, key_id), True

        row, new = self._run(work, writes=True)
        if new:
            self._tell("a key was created", row, maker, _names(fields))
        return Made(record_of(row), secret if new else None)

    def get(self, key_id: str, maker: Maker) -> Record:
        """Return a key."""
        return record_of(self._run(lambda c: visible(c, key_id, maker)))

    def listed(self, wanted: Wanted, maker: Maker) -> Page:
        """Return a page of keys."""
        if not 1 <= wanted.limit <= PAGE_MAX:
            raise CallerError(
                "invalid_request", f"`limit` must be 1 to {PAGE_MAX}", status=400, param="limit"
            )
        query = select(keys).order_by(keys.c.created_unix_ns.desc(), keys.c.id.desc()).limit(wanted.limit + 1)
        for column, value in (
            (keys.c.user_id, wanted.user),
            (keys.c.team, wanted.team),
            (keys.c.project, wanted.project),
            (keys.c.created_by, wanted.created_by),
            (keys.c.created_by, maker.key_id),
        ):
            if value is not None:
                check_text(column.name, value)
                query = query.where(column == value)
        if wanted.state is not None:
            query = query.where(in_state(wanted.state, self._now_ns()))

        def work(c: Connection) -> Sequence[Row[Any]]:
            if wanted.after is None:
                return c.execute(query).all()
            last = visible(c, wanted.after, maker, param="after")
            place = tuple_(keys.c.created_unix_ns, keys.c.id)
            return c.execute(query.where(place < (last.created_unix_ns, last.id))).all()

        rows = self._run(work)
        return Page([record_of(row) for row in rows[: wanted.limit]], len(rows) > wanted.limit)

    def update(self, key_id: str, fields: Fields, maker: Maker) -> Record:
        """Change what a key is for; what is left out stays as it is."""
        if not (said := _names(fields)):
            raise CallerError("invalid_request", "nothing is to be changed", status=400)

        def change(row: Row[Any]) -> dict[str, Any]:
            terms = changed_terms(record_of(row).terms, fields)
            if isinstance(fields.expires_at, str):
                self._check_end(terms)
            return columns_of(terms)

        return self._change(key_id, maker, "update", change, said)

    def disable(self, key_id: str, maker: Maker) -> Record:
        """Let a key open nothing, until it is enabled."""
        return self._change(key_id, maker, "disable", lambda _: {"disabled": True})

    def enable(self, key_id: str, maker: Maker) -> Record:
        """Let a disabled key open again what it did."""
        return self._change(key_id, maker, "enable", lambda _: {"disabled": False})

    def revoke(self, key_id: str, maker: Maker) -> Record:
        """End a key for good; its row stays, for its bills."""
        return self._change(
            key_id,
            maker,
            "revoke",
            lambda row: {
                "revoked_unix_ns": self._now_ns() if row.revoked_unix_ns is None else row.revoked_unix_ns,
                "old_digest": None,
                "old_until_unix_ns": None,
            },
        )

    def rotate(self, key_id: str, maker: Maker, grace_s: int = 0) -> Made:
        """Give a key another secret; its id, and all that goes by it, stays.

        Args:
            grace_s: how long the secret before it is good, too; one before that ends at once.
        """
        if not 0 <= grace_s <= GRACE_S_MAX:
            raise CallerError(
                "invalid_request", f"`grace_s` must be 0 to {GRACE_S_MAX}", status=400, param="grace_s"
            )
        secret = NewSecret(self._random(SECRET_BYTES))

        def change(row: Row[Any]) -> dict[str, Any]:
            now_ns = self._now_ns()
            return {
                "digest": secret.digest,
                "old_digest": row.digest if grace_s else None,
                "old_until_unix_ns": now_ns + grace_s * 1_000_000_000 if grace_s else None,
                "rotated_unix_ns": now_ns,
            }

        return Made(self._change(key_id, maker, "rotate", change), secret)

    def _change(
        self,
        key_id: str,
        maker: Maker,
        action: str,
        change: Callable[[Row[Any]], dict[str, Any]],
        fields: Sequence[str] = (),
    ) -> Record:
        def work(c: Connection) -> Row[Any]:
            version = next_version(c, KIND)
            now_ns = self._now_ns()
            own = terms_of_maker(c, maker, now_ns)
            row = visible(c, key_id, maker)
            if row.revoked_unix_ns is not None and action != "revoke":
                raise CallerError(
                    "key_revoked", "this key is revoked, for good; make another one", status=409
                )
            c.execute(update(keys).where(keys.c.id == key_id).values(**change(row), changed=version))
            _note(c, version, key_id, action, maker, now_ns, fields)
            after = _there(c, key_id)
            if action not in ("disable", "revoke"):  # an operator may have given it more since it was made
                check_within(own, record_of(after).terms)
            return after

        row = self._run(work, writes=True)
        self._tell(f"a key was changed: {action}", row, maker, fields)
        return record_of(row)

    def _run(self, work: Callable[[Connection], T], *, writes: bool = False) -> T:
        try:
            return self._control.run(work, writes=writes)
        except (LedgerUnavailable, LedgerNewer) as fault:
            log.warning("the keys cannot be read or changed", extra={"why": str(fault)})
            raise GatewayFault(
                "keys_unavailable",
                "the keys' database is away; ask again, and to create a key with the same Idempotency-Key",
                status=503,
                retry_after_s=RETRY_AFTER_S,
            ) from fault

    def _check_end(self, terms: Terms) -> None:
        if terms.expires_unix_ns is not None and terms.expires_unix_ns <= self._now_ns():
            raise CallerError("invalid_request", "`expires_at` is past", status=400, param="expires_at")

    def _tell(self, what: str, row: Row[Any], maker: Maker, fields: Sequence[str]) -> None:
        self._applied(stored_key(row))
        log.info(what, extra={"key_id": row.id, "who": maker.who, "fields": list(fields)})


def _there(c: Connection, key_id: str) -> Row[Any]:
    return c.execute(select(keys).where(keys.c.id == key_id)).one()


def _note(
    c: Connection, version: int, key_id: str, action: str, maker: Maker, now_ns: int, fields: Sequence[str]
) -> None:
    c.execute(
        insert(changes).values(
            kind=KIND,
            version=version,
            subject=key_id,
            action=action,
            who=maker.who,
            at_unix_ns=now_ns,
            fields=",".join(fields),
        )
    )


def _names(fields: Fields) -> list[str]:
    return [name for name in fields.__struct_fields__ if getattr(fields, name) is not msgspec.UNSET]


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
