"""The admin key: who may see all costs and change keys and budgets; without one those doors are shut.

Only its digest stays in memory. A key that is empty, short or known from manuals refuses to start.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Container, Sequence
from typing import Final

from gateway.admission.virtual_keys import KEY_BYTES_MAX

Header = tuple[bytes, bytes]

KEY_BYTES_MIN: Final = 20
_VISIBLE: Final = re.compile(r"[\x21-\x7e]+")
_KNOWN: Final = (
    *("password", "example", "default", "spanbill", "gateway", "replace", "please", "insert", "master"),
    *("secret", "change", "admin", "super", "token", "local", "root", "user", "test", "demo", "goes"),
    *("1234567890", "12345678", "123456", "1234", "123", "here", "with", "very", "long", "your", "this"),
    *("now", "key", "api", "dev", "the", "llm", "sk", "my", "me", "it", "-", "_", "."),
)
"""Words of manuals and of examples."""
RANDOM_MIN: Final = 6
"""Different characters that must be left without them."""


class AdminKey:
    """The operator's key; without a key nobody is the operator.

    Args:
        others: digests of virtual keys, none of which may be the operator's.
    """

    __slots__ = ("_digest",)

    def __init__(self, key: str | None, others: Container[bytes] = ()) -> None:
        """Take the digest of a key.

        Raises:
            ValueError: it can be guessed, is one of the others, or cannot travel in a header; the message
                does not repeat it.
        """
        if key is not None:
            if not key:
                raise ValueError("it is empty; leave it out, or make one: `openssl rand -hex 32`")
            if len(key) > KEY_BYTES_MAX or not _VISIBLE.fullmatch(key):
                raise ValueError(
                    f"it must be at most {KEY_BYTES_MAX} visible ASCII characters without spaces"
                )
            if len(key) < KEY_BYTES_MIN or _left_of(key) < RANDOM_MIN:
                raise ValueError(
                    f"it can be guessed; it must have at least {KEY_BYTES_MIN} characters and be no example: "
                    "`openssl rand -hex 32` makes one"
                )
        self._digest = None if key is None else hashlib.sha256(key.encode()).digest()
        if self._digest is not None and self._digest in others:
            raise ValueError("it is also a virtual key; who has that must not have all")

    def __repr__(self) -> str:
        return f"AdminKey({'none' if self._digest is None else 'set'})"

    def __bool__(self) -> bool:
        return self._digest is not None

    def shown_in(self, headers: Sequence[Header]) -> bool:
        """Say whether a request shows the key, as `authorization: Bearer` or as `x-api-key`."""
        if self._digest is None:
            return False
        for name, value in headers:
            if name == b"authorization" and value[:7].lower() == b"bearer ":
                shown = value[7:].strip()
            elif name == b"x-api-key":
                shown = value.strip()
            else:
                continue
            if len(shown) <= KEY_BYTES_MAX and hmac.compare_digest(
                hashlib.sha256(shown).digest(), self._digest
            ):
                return True
        return False


def _left_of(key: str) -> int:
    left = key.lower()
    for word in _KNOWN:
        left = left.replace(word, "")
    return len(set(left))
