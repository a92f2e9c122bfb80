"""Keys of the database: found without asking it, and never set back by what is older."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from gateway.admission.permission import Holder
from gateway.admission.stored_keys import StoredKey, StoredKeys
from gateway.admission.virtual_keys import STORED_BYTES, KeyEntry, KeyRing
from gateway.core.errors import CallerError, GatewayFault
from gateway.core.exchange import Identity

SECRET = "sk-sb-" + "a" * 43


def digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def holder(key_id: str = "key_1", **facts: Any) -> Holder:
    return Holder(identity=Identity(key_id=key_id, user_id="alice", source="key"), stored=True, **facts)


def key(changed: int, *secrets: str, key_id: str = "key_1", **facts: Any) -> StoredKey:
    return StoredKey(
        id=key_id, changed=changed, holders={digest(secret): holder(key_id, **facts) for secret in secrets}
    )


def shown(secret: str = SECRET) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", b"Bearer " + secret.encode())]


def opens(stored: StoredKeys, secret: str) -> bool:
    return stored.find(digest(secret)) is not None


def test_what_is_older_never_undoes_what_is_newer() -> None:
    stored = StoredKeys()
    stored.change(key(7, "new"))
    stored.change(key(6, "old"))
    assert opens(stored, "new")
    assert not opens(stored, "old")
    stored.replace([key(6, "old")], 6)
    assert opens(stored, "new")
    assert not opens(stored, "old")


def test_all_that_is_not_there_any_more_is_gone_unless_it_is_newer() -> None:
    stored = StoredKeys()
    stored.change(key(3, "three", key_id="key_3"))
    stored.change(key(9, "nine", key_id="key_9"))
    stored.replace([key(4, "four", key_id="key_4")], 5)
    assert [opens(stored, secret) for secret in ("three", "four", "nine")] == [False, True, True]


def test_another_database_counts_whatever_its_versions_are() -> None:
    stored = StoredKeys()
    stored.change(key(100, "before"))
    stored.change(key(100, "elsewhere", key_id="key_2"))
    stored.replace([key(2, "now")], None)
    assert [opens(stored, secret) for secret in ("before", "elsewhere", "now")] == [False, False, True]
    assert len(stored) == 1


def test_a_key_that_opens_nothing_any_more_is_none_of_ours() -> None:
    stored = StoredKeys()
    stored.change(key(1, SECRET))
    ring = KeyRing([], stored)
    assert ring.identify(shown()).key_id == "key_1"
    stored.change(key(2))
    stored.replace([], 2)
    with pytest.raises(CallerError) as refused:
        ring.holder(shown())
    assert refused.value.code == "invalid_api_key"


def test_a_disabled_or_expired_key_is_told_so() -> None:
    stored = StoredKeys()
    now = 1_000
    ring = KeyRing([], stored, lambda: now)
    for changed, facts, code in (
        (1, {"disabled": True}, "key_disabled"),
        (2, {"until_unix_ns": 1_000}, "key_expired"),
    ):
        stored.change(key(changed, SECRET, **facts))
        with pytest.raises(CallerError) as refused:
            ring.holder(shown())
        assert (refused.value.status, refused.value.code) == (401, code)
    stored.change(key(3, SECRET, until_unix_ns=1_001))
    assert ring.holder(shown()).stored
    now = 1_001
    with pytest.raises(CallerError):
        ring.holder(shown())


def test_a_key_that_opens_something_goes_before_one_that_does_not() -> None:
    stored = StoredKeys()
    stored.change(key(1, SECRET, disabled=True))
    bob = Identity(key_id="bob", user_id="bob", source="key")
    ring = KeyRing([KeyEntry("sk-bob", bob)], stored)
    assert ring.identify([*shown(), (b"x-api-key", b"sk-bob")]) is bob


def test_until_the_database_was_read_a_key_that_may_be_in_it_is_asked_to_wait() -> None:
    stored = StoredKeys()
    bob = Identity(key_id="bob", user_id="bob", source="key")
    ring = KeyRing([KeyEntry("sk-bob", bob)], stored)
    with pytest.raises(GatewayFault) as waits:
        ring.holder(shown())
    assert (waits.value.status, waits.value.code) == (503, "keys_unavailable")
    assert waits.value.retry_after_s
    assert ring.identify(shown("sk-bob")) is bob
    assert ring.identify([*shown(), (b"x-api-key", b"sk-bob")]) is bob
    for other in ("sk-else", SECRET + "a", SECRET[:-1], "x" * STORED_BYTES):
        with pytest.raises(CallerError) as refused:  # it is none of ours, whatever the database says
            ring.holder(shown(other))
        assert refused.value.status == 401
    stored.replace([], 0)
    with pytest.raises(CallerError) as refused:
        ring.holder(shown())
    assert refused.value.status == 401


class Watched(dict[bytes, tuple[bytes, Holder]]):
    """Keeps what was there after each of its changes, as a reader in another thread may see it."""

    def __init__(self) -> None:
        super().__init__()
        self.moments: list[set[bytes]] = []

    def __setitem__(self, digest: bytes, found: tuple[bytes, Holder]) -> None:
        super().__setitem__(digest, found)
        self.moments.append(set(self))

    def pop(self, digest: bytes, *default: Any) -> Any:
        found = super().pop(digest, *default)
        self.moments.append(set(self))
        return found


def test_a_rotation_leaves_no_moment_without_a_secret() -> None:
    stored = StoredKeys()
    stored._by_digest = watched = Watched()
    stored.change(key(1, "old"))
    stored.change(key(2, "new", "old"))
    assert all(digest("old") in moment for moment in watched.moments)
    watched.moments.clear()
    stored.change(key(3, "newest", "new"))
    stored.change(key(4, "last"))
    assert len(watched.moments) >= 4
    assert all(watched.moments), "there was always one"
    assert set(watched) == {digest("last")}
