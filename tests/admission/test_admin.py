"""The admin key: refused at the start if it can be guessed, and never told apart by more than its digest."""

from __future__ import annotations

import secrets

import pytest

from gateway.admission.admin import AdminKey

KEY = "9f3c1f0f6b0e4f6a8f3f7f0a6d2b1c5e"


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("", "empty"),
        ("short-9f3c1f0f6b0e", "guessed"),
        ("change-me-please-change-me", "guessed"),
        ("sk-1234567890-admin-master-key", "guessed"),
        ("your-secret-admin-key-goes-here".replace("goes-", ""), "guessed"),
        ("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "guessed"),
        ("with a space 9f3c1f0f6b0e4f6a8f3f", "visible"),
        ("9f3c1f0f6b0e4f6a8f3f7f0a6d2b1c5e" * 17, "visible"),
    ],
)
def test_a_key_that_can_be_guessed_or_not_be_sent_is_refused_without_being_repeated(
    key: str, why: str
) -> None:
    with pytest.raises(ValueError, match=why) as refused:
        AdminKey(key)
    assert not key or key not in str(refused.value)


def test_random_keys_are_taken() -> None:
    for make in (lambda: secrets.token_hex(16), lambda: secrets.token_urlsafe(24)):
        for _ in range(500):
            assert AdminKey(make())


@pytest.mark.parametrize("name", ["authorization", "x-api-key"])
def test_the_key_is_known_in_either_header_and_no_other_is(name: str) -> None:
    scheme = "Bearer " if name == "authorization" else ""
    admin = AdminKey(KEY)
    assert admin.shown_in([(name.encode(), f"{scheme}{KEY}".encode())])
    for other in (KEY[:-1], KEY + "0", "", "x" * 5000):
        assert not admin.shown_in([(name.encode(), f"{scheme}{other}".encode())])


def test_without_a_key_nobody_is_the_operator() -> None:
    assert not AdminKey(None)
    assert not AdminKey(None).shown_in([(b"x-api-key", b""), (b"authorization", b"Bearer ")])


def test_the_key_is_not_shown() -> None:
    assert KEY not in repr(AdminKey(KEY))
