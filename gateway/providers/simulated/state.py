"""State: the little that the simulated provider remembers, every part of it bounded."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Final

REMEMBERED_MAX: Final = 1024
"""Prompt prefixes, and contents that failed once: the oldest is forgotten first."""
SEEN_MAX: Final = 256


class State:
    """What one simulated provider has seen; the same calls in the same order give the same replies."""

    def __init__(self) -> None:
        self.calls = 0
        self.seen: dict[tuple[str, str], int] = {}
        """Calls by (path, model), for tests that count what reached the provider."""
        self._prefixes: OrderedDict[bytes, None] = OrderedDict()
        self._failed: OrderedDict[bytes, None] = OrderedDict()

    def count(self, path: str, model: str) -> None:
        """Count a call; once there are SEEN_MAX pairs, new ones are counted as ("*", "*")."""
        key = (path, model)
        if key not in self.seen and len(self.seen) >= SEEN_MAX:
            key = ("*", "*")
        self.seen[key] = self.seen.get(key, 0) + 1

    def next_id(self, body: bytes) -> str:
        """Return 24 hex digits, another one for each call."""
        self.calls += 1
        return hashlib.sha256(b"%d:" % self.calls + body).hexdigest()[:24]

    def fails_now(self, content: bytes) -> bool:
        """Return True for the first of every two calls with the same content."""
        key = hashlib.sha256(content).digest()
        if self._failed.pop(key, self) is None:
            return False
        _remember(self._failed, key)
        return True

    def knows_prefix(self, key: bytes) -> bool:
        """Return whether the prefix was written before."""
        return key in self._prefixes

    def write_prefix(self, key: bytes) -> None:
        """Remember a prefix, as the most recent one."""
        _remember(self._prefixes, key)


def _remember(memory: OrderedDict[bytes, None], key: bytes) -> None:
    memory[key] = None
    memory.move_to_end(key)
    if len(memory) > REMEMBERED_MAX:
        memory.popitem(last=False)
