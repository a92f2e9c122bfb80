"""Stored keys: the keys of the database as they were last read, found by digest without asking it.

Changes come from two sides, from whoever makes them in this process and from whoever reads the database, so
each says which version it is of, and an older one never undoes a newer.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping

import msgspec

from gateway.admission.permission import Holder


class StoredKey(msgspec.Struct, frozen=True, kw_only=True):
    """What one row of the database opens.

    Args:
        changed: the version that last changed it.
        holders: by digest; none for a key that opens nothing any more.
    """

    id: str
    changed: int
    holders: Mapping[bytes, Holder]


class StoredKeys:
    """The keys of one process; any thread may look, and change.

    Attributes:
        read: whether the database was read at all; until then nobody can say that a key is none of ours.
        find: digest -> digest and holder, None where there is no such key.
    """

    __slots__ = ("_by_digest", "_changing", "_known", "find", "read")

    def __init__(self) -> None:
        self.read = False
        self._by_digest: dict[bytes, tuple[bytes, Holder]] = {}
        self._known: dict[str, tuple[int, tuple[bytes, ...]]] = {}
        self._changing = threading.Lock()
        self.find = self._by_digest.get

    def __len__(self) -> int:
        return len(self._by_digest)

    def __repr__(self) -> str:
        return f"StoredKeys({len(self)} secrets)"

    def change(self, key: StoredKey) -> None:
        """Take up a key as it is now, unless something newer is known of it."""
        with self._changing:
            self._change(key)

    def replace(self, keys: Iterable[StoredKey], version: int | None) -> None:
        """Take up all keys as they were at a version: what is older and not among them is gone.

        Args:
            version: None where this is another database than before, whose versions cannot be compared.
        """
        with self._changing:
            if version is None:
                self._known = {key_id: (-1, digests) for key_id, (_, digests) in self._known.items()}
            found = set()
            for key in keys:
                found.add(key.id)
                self._change(key)
            newest = -1 if version is None else version
            for key_id, (changed, digests) in list(self._known.items()):
                if key_id not in found and changed <= newest:
                    del self._known[key_id]
                    for digest in digests:
                        self._by_digest.pop(digest, None)
            self.read = True

    def _change(self, key: StoredKey) -> None:
        known, digests = self._known.get(key.id, (-1, ()))
        if known > key.changed:
            return
        for digest, holder in key.holders.items():  # the new secret first: no moment without one
            self._by_digest[digest] = (digest, holder)
        for digest in digests:
            if digest not in key.holders:
                self._by_digest.pop(digest, None)
        self._known[key.id] = (key.changed, tuple(key.holders))
