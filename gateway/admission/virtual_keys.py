"""Virtual keys: a request's key becomes the identity that pays, or a 401; no key is kept or shown.

Only SHA-256 digests stay in memory. The digest finds the entry and is then compared in constant time, so
timing tells nothing about a key. A ring without keys admits nobody. Keys of the configuration go before those
of the database, and need nothing of it.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from gateway.admission.permission import EVERYTHING, Holder, Permission
from gateway.admission.stored_keys import StoredKeys
from gateway.core.errors import CallerError, GatewayFault, SpanbillError
from gateway.core.exchange import Identity

Header = tuple[bytes, bytes]

KEY_BYTES_MAX: Final = 512
"""A longer credential is none of ours and is not hashed."""
KEY_ID_HEX: Final = 12
ANONYMOUS: Final = "anonymous_env_key"
STORED: Final = b"sk-sb-"
"""How keys of the database begin."""
STORED_BYTES: Final = 49
"""How long they are: 256 random bits in base64 behind that."""
RETRY_AFTER_S: Final = 1

_KEY: Final = re.compile(r"[\x21-\x7e]{1,512}")
_NAME: Final = re.compile(r"[A-Za-z0-9_.@+-]{1,64}")


class KeyEntry:
    """A key's digest and its holder; the key itself is dropped at once."""

    __slots__ = ("digest", "holder")

    def __init__(
        self,
        key: str,
        identity: Identity,
        permission: Permission = EVERYTHING,
        *,
        name: str | None = None,
        until_unix_ns: int | None = None,
    ) -> None:
        """Take the digest of a key.

        Raises:
            ValueError: the key can't travel in a header, or is too long; the message names its id only.
        """
        if not _KEY.fullmatch(key):
            raise ValueError(
                f"key {identity.key_id}: must be 1 to {KEY_BYTES_MAX} visible ASCII characters without spaces"
            )
        self.digest = hashlib.sha256(key.encode()).digest()
        self.holder = Holder(identity=identity, permission=permission, name=name, until_unix_ns=until_unix_ns)

    @property
    def identity(self) -> Identity:
        """Who pays."""
        return self.holder.identity

    def __repr__(self) -> str:
        return f"KeyEntry({self.identity.key_id})"


def key_id_of(key: str) -> str:
    """Return the public id of a key that has no configured one: `key_` and the start of its digest."""
    return "key_" + hashlib.sha256(key.encode()).hexdigest()[:KEY_ID_HEX]


def env_keys(text: str) -> list[KeyEntry]:
    """Read `SPANBILL_API_KEYS`: keys separated by commas.

    A bare key belongs to `anonymous_env_key`; `alice=sk-...` belongs to the user alice. What stands before
    the first `=` is a name only if it looks like one and a key follows, so that padded base64 stays a key.

    Raises:
        ValueError: an unusable key, named by its position.
    """
    entries: list[KeyEntry] = []
    for position, part in enumerate(text.split(","), 1):
        item = part.strip()
        if not item:
            continue
        first, _, rest = item.partition("=")
        named = rest.strip("=") and _NAME.fullmatch(first)
        name, key = (first, rest.strip()) if named else (None, item)
        if not _KEY.fullmatch(key):
            raise ValueError(
                f"key {position} of the list: must be 1 to {KEY_BYTES_MAX} visible ASCII characters"
            )
        identity = Identity(
            key_id=key_id_of(key), user_id=name or ANONYMOUS, user_name=name, source="env_key"
        )
        entries.append(KeyEntry(key, identity))
    return entries


class KeyRing:
    """All keys of one gateway.

    Args:
        stored: the keys of the database.
        now_ns: wall clock, in nanoseconds.
    """

    __slots__ = ("_entries", "_now_ns", "_stored")

    def __init__(
        self,
        entries: Iterable[KeyEntry],
        stored: StoredKeys | None = None,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """Index the entries of the configuration.

        Raises:
            ValueError: one key with two owners, or one id for two keys; the message names ids only.
        """
        self._entries: dict[bytes, tuple[bytes, Holder]] = {}
        self._stored = stored
        self._now_ns = now_ns
        ids: set[str] = set()
        for entry in entries:
            known = self._entries.get(entry.digest)
            if known is not None:
                if known[1] == entry.holder:
                    continue
                raise ValueError(
                    f"{known[1].identity.key_id} and {entry.identity.key_id} are the same key with two owners"
                )
            if entry.identity.key_id in ids:
                raise ValueError(f"the id {entry.identity.key_id} stands for two keys")
            ids.add(entry.identity.key_id)
            self._entries[entry.digest] = (entry.digest, entry.holder)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, digest: object) -> bool:
        """Say whether a key of the configuration has this digest."""
        return digest in self._entries

    def __repr__(self) -> str:
        return f"KeyRing({len(self._entries)} keys, {self._stored})"

    def identify(self, headers: Sequence[Header]) -> Identity:
        """Return who pays; see `holder`."""
        return self.holder(headers).identity

    def holder(self, headers: Sequence[Header]) -> Holder:
        """Return the holder of `authorization: Bearer`, else of `x-api-key`.

        Both may be present (an SDK with two variables set): the first one that is a key of ours counts.

        Raises:
            CallerError: 401 `missing_api_key`, `invalid_api_key`, `key_disabled` or `key_expired`.
            GatewayFault: 503 `keys_unavailable`, it may be a key of the database, which was never read.
        """
        bearer = direct = None
        for name, value in headers:
            if name == b"authorization":
                if bearer is None and value[:7].lower() == b"bearer ":
                    bearer = value[7:].strip()
            elif name == b"x-api-key" and direct is None:
                direct = value.strip()
        why: SpanbillError | None = None
        for key in (bearer, direct):
            if not key:
                continue
            found = self._find(key)
            if isinstance(found, Holder):
                return found
            why = why or found
        raise why or _refusal(presented=bool(bearer or direct))

    def _find(self, key: bytes) -> Holder | SpanbillError | None:
        """Return a key's holder, why it opens nothing, or None where it is none of ours."""
        if len(key) > KEY_BYTES_MAX:
            return None
        digest = hashlib.sha256(key).digest()
        entry = self._entries.get(digest)
        if entry is None and self._stored is not None:
            entry = self._stored.find(digest)
            if (
                entry is None
                and not self._stored.read
                and len(key) == STORED_BYTES
                and key.startswith(STORED)
            ):
                return _unavailable()
        if entry is None or not hmac.compare_digest(entry[0], digest):
            return None
        holder = entry[1]
        if holder.disabled:
            return CallerError("key_disabled", "this key is disabled; ask who gave it to you", status=401)
        if holder.until_unix_ns is not None and self._now_ns() >= holder.until_unix_ns:
            return CallerError(
                "key_expired", "this key has expired, or another one has replaced it", status=401
            )
        return holder


def _unavailable() -> GatewayFault:
    return GatewayFault(
        "keys_unavailable",
        "the keys cannot be read now; send the request again",
        status=503,
        retry_after_s=RETRY_AFTER_S,
    )


def _refusal(*, presented: bool) -> CallerError:
    if presented:
        return CallerError(
            "invalid_api_key",
            "the key is not one of this gateway's; check which key the client sends",
            status=401,
        )
    return CallerError(
        "missing_api_key",
        "send a key of this gateway as 'authorization: Bearer <key>' or 'x-api-key: <key>'",
        status=401,
    )
