"""Virtual keys: a request's key becomes the identity that pays, or a 401; no key is kept or shown.

Only SHA-256 digests stay in memory. The digest finds the entry and is then compared in constant time, so
timing tells nothing about a key. A ring without keys admits nobody.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence
from typing import Final

from gateway.core.errors import CallerError
from gateway.core.exchange import Identity

Header = tuple[bytes, bytes]

KEY_BYTES_MAX: Final = 512
"""A longer credential is none of ours and is not hashed."""
KEY_ID_HEX: Final = 12
ANONYMOUS: Final = "anonymous_env_key"

_KEY: Final = re.compile(r"[\x21-\x7e]{1,512}")
_NAME: Final = re.compile(r"[A-Za-z0-9_.@+-]{1,64}")


class KeyEntry:
    """A key's digest and its owner; the key itself is dropped at once."""

    __slots__ = ("digest", "identity")

    def __init__(self, key: str, identity: Identity) -> None:
        """Take the digest of a key.

        Raises:
            ValueError: the key can't travel in a header, or is too long; the message names its id only.
        """
        if not _KEY.fullmatch(key):
            raise ValueError(
                f"key {identity.key_id}: must be 1 to {KEY_BYTES_MAX} visible ASCII characters without spaces"
            )
        self.digest = hashlib.sha256(key.encode()).digest()
        self.identity = identity

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
    """All keys of one gateway; immutable once made."""

    __slots__ = ("_entries",)

    def __init__(self, entries: Iterable[KeyEntry]) -> None:
        """Index the entries.

        Raises:
            ValueError: one key with two owners, or one id for two keys; the message names ids only.
        """
        self._entries: dict[bytes, tuple[bytes, Identity]] = {}
        ids: set[str] = set()
        for entry in entries:
            known = self._entries.get(entry.digest)
            if known is not None:
                if known[1] == entry.identity:
                    continue
                raise ValueError(
                    f"{known[1].key_id} and {entry.identity.key_id} are the same key with two owners"
                )
            if entry.identity.key_id in ids:
                raise ValueError(f"the id {entry.identity.key_id} stands for two keys")
            ids.add(entry.identity.key_id)
            self._entries[entry.digest] = (entry.digest, entry.identity)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"KeyRing({len(self._entries)} keys)"

    def identify(self, headers: Sequence[Header]) -> Identity:
        """Return who pays: the owner of `authorization: Bearer`, else of `x-api-key`.

        Both may be present (an SDK with two variables set): the first one that is a key of ours counts.

        Raises:
            CallerError: 401 `missing_api_key` or `invalid_api_key`.
        """
        bearer = direct = None
        for name, value in headers:
            if name == b"authorization":
                if bearer is None and value[:7].lower() == b"bearer ":
                    bearer = value[7:].strip()
            elif name == b"x-api-key" and direct is None:
                direct = value.strip()
        if bearer:
            identity = self._find(bearer)
            if identity is not None:
                return identity
        if direct:
            identity = self._find(direct)
            if identity is not None:
                return identity
        raise _refusal(presented=bool(bearer or direct))

    def _find(self, key: bytes) -> Identity | None:
        if len(key) > KEY_BYTES_MAX:
            return None
        digest = hashlib.sha256(key).digest()
        entry = self._entries.get(digest)
        if entry is None or not hmac.compare_digest(entry[0], digest):
            return None
        return entry[1]


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
