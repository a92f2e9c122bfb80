"""Instants: Unix nanoseconds as text that every machine reads (RFC 3339, UTC), without losing one."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

SECOND_NS: Final = 10**9


def instant(unix_ns: int) -> str:
    """Return `2026-11-21T09:30:00.123456789Z`; nine digits always, so that text sorts as time does."""
    seconds, rest = divmod(unix_ns, SECOND_NS)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


def second(unix_ns: int) -> str:
    """Return `2026-11-21T09:30:00Z`, the second in which an instant is."""
    return f"{datetime.fromtimestamp(unix_ns // SECOND_NS, UTC):%Y-%m-%dT%H:%M:%S}Z"
