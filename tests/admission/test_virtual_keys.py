"""A key becomes its owner or a 401; it is never kept, and never shown."""

from __future__ import annotations

import gc
import hashlib

import pytest

from gateway.admission.virtual_keys import KEY_BYTES_MAX, KeyEntry, KeyRing, env_keys, key_id_of
from gateway.core.errors import CallerError
from gateway.core.exchange import Identity

ALICE = Identity(key_id="laptop", user_id="alice", source="key", user_name="Alice", team="red")
BOB = Identity(key_id="ci", user_id="bob", source="key")
RING = KeyRing([KeyEntry("sk-alice", ALICE), KeyEntry("sk-bob", BOB)])

Headers = list[tuple[bytes, bytes]]


def refusal(headers: Headers, ring: KeyRing = RING) -> CallerError:
    with pytest.raises(CallerError) as caught:
        ring.identify(headers)
    assert caught.value.status == 401
    return caught.value


@pytest.mark.parametrize(
    "headers",
    [
        [(b"authorization", b"Bearer sk-alice")],
        [(b"authorization", b"bearer  sk-alice ")],
        [(b"x-api-key", b"sk-alice")],
        [(b"host", b"h"), (b"authorization", b"Basic eDp5"), (b"x-api-key", b"sk-alice")],
        # an SDK with both variables set: the provider's key is not ours
        [(b"authorization", b"Bearer sk-ant-else"), (b"x-api-key", b"sk-alice")],
        [(b"x-api-key", b"sk-ant-else"), (b"authorization", b"Bearer sk-alice")],
        [(b"x-api-key", b"sk-bob"), (b"authorization", b"Bearer sk-alice")],
    ],
)
def test_a_key_is_found_where_both_sdks_put_it(headers: Headers) -> None:
    assert RING.identify(headers) is ALICE


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"")],
        [(b"authorization", b"Bearer ")],
        [(b"authorization", b"sk-alice")],
        [(b"authorization", b"Basic sk-alice")],
        [(b"x-api-key", b" ")],
        [(b"cookie", b"sk-alice")],
    ],
)
def test_no_key_is_told_apart_from_a_wrong_one(headers: Headers) -> None:
    assert refusal(headers).code == "missing_api_key"


@pytest.mark.parametrize(
    "key",
    [b"sk-alicf", b"sk-alic", b"sk-alice2", b"SK-ALICE", b"sk-alice\x00", b"\xff" * 9, b"x" * 100_000],
)
def test_a_wrong_key_is_refused_and_not_repeated(key: bytes) -> None:
    for headers in ([(b"authorization", b"Bearer " + key)], [(b"x-api-key", key)]):
        error = refusal(headers)
        assert error.code == "invalid_api_key"
        assert key.decode("latin-1") not in error.message


def test_a_credential_of_any_size_costs_no_more_than_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[int] = []
    sha256 = hashlib.sha256
    monkeypatch.setattr(hashlib, "sha256", lambda data: hashed.append(len(data)) or sha256(data))
    refusal([(b"x-api-key", b"x" * (KEY_BYTES_MAX + 1))])
    assert hashed == []
    refusal([(b"x-api-key", b"x" * KEY_BYTES_MAX)])
    assert hashed == [KEY_BYTES_MAX]


def test_only_the_first_of_repeated_headers_counts() -> None:
    headers = [(b"x-api-key", b"wrong"), (b"x-api-key", b"sk-alice")]
    assert refusal(headers).code == "invalid_api_key"


def test_a_ring_without_keys_admits_nobody() -> None:
    ring = KeyRing([])
    assert len(ring) == 0
    assert refusal([(b"authorization", b"Bearer x")], ring).code == "invalid_api_key"
    assert refusal([(b"x-api-key", b"")], ring).code == "missing_api_key"
    assert env_keys("") == env_keys(" , ,") == []


def test_a_bare_key_of_the_environment_is_anonymous_and_a_named_one_is_its_users() -> None:
    ring = KeyRing(env_keys(" sk-one , alice=sk-two,\nbob@example.com=sk-three\n"))
    one = ring.identify([(b"x-api-key", b"sk-one")])
    digest = hashlib.sha256(b"sk-one").hexdigest()
    assert one == Identity(key_id=f"key_{digest[:12]}", user_id="anonymous_env_key", source="env_key")
    two = ring.identify([(b"x-api-key", b"sk-two")])
    assert (two.user_id, two.user_name, two.source) == ("alice", "alice", "env_key")
    assert two.key_id == key_id_of("sk-two")
    assert ring.identify([(b"x-api-key", b"sk-three")]).user_id == "bob@example.com"
    assert refusal([(b"x-api-key", b"alice=sk-two")], ring).code == "invalid_api_key"


@pytest.mark.parametrize("key", ["YWJjZGVm==", "YWJjZA=", "=x", "a b=c", "/p+q=r"])
def test_an_equals_sign_that_follows_no_name_belongs_to_the_key(key: str) -> None:
    if " " in key:
        with pytest.raises(ValueError, match="key 1"):
            env_keys(key)
        return
    (entry,) = env_keys(key)
    assert entry.identity.user_id == "anonymous_env_key"
    assert KeyRing([entry]).identify([(b"x-api-key", key.encode())]) == entry.identity


@pytest.mark.parametrize("key", ["", "two words", "ключ", "a\nb", "x" * (KEY_BYTES_MAX + 1)])
def test_a_key_that_no_header_can_carry_is_refused_at_the_start(key: str) -> None:
    with pytest.raises(ValueError, match="laptop") as caught:
        KeyEntry(key, ALICE)
    assert not key or key not in str(caught.value)
    assert KeyEntry("x" * KEY_BYTES_MAX, ALICE)


def test_one_key_has_one_owner_and_one_id_one_key() -> None:
    with pytest.raises(ValueError, match="laptop and ci") as caught:
        KeyRing([KeyEntry("same", ALICE), KeyEntry("same", BOB)])
    assert "same key" in str(caught.value)
    with pytest.raises(ValueError, match="laptop stands for two keys"):
        KeyRing([KeyEntry("one", ALICE), KeyEntry("two", ALICE)])
    assert len(KeyRing([*env_keys("k,k")])) == 1


def test_neither_ring_nor_entry_keeps_or_shows_a_key() -> None:
    key = "sk-" + "secret" * 5
    entries = env_keys(key)
    ring = KeyRing(entries)
    for shown in (ring, entries, entries[0].identity):
        assert "secret" not in repr(shown)
    reached: list[object] = [ring, *entries]
    for _ in range(6):
        reached += [
            found for found in gc.get_referents(*reached) if isinstance(found, dict | tuple | str | bytes)
        ]
        reached = list({id(found): found for found in reached}.values())
    texts = [found for found in reached if isinstance(found, str | bytes)]
    assert hashlib.sha256(key.encode()).digest() in texts
    assert key not in texts
    assert key.encode() not in texts
