"""Policy: the bounds of the writer, and when it seals, refuses and tries again. Pure."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

Durability = Literal["group", "process", "strict"]

TRIES_MAX: Final = 3
"""New segments, or syncs, tried in a row before the writer gives up until `retry_after_ns`."""
RETRY_NS: Final = 250_000_000
RETRY_NS_MAX: Final = 4_000_000_000
"""How long a broken writer waits before it tries the disk again: the first time, and at most."""
UNDURABLE_MAX: Final = 65_536
"""Records that may wait for a sync; one more intent or progress and the disk is not keeping up: refuse."""
AGE_NS_MAX: Final = 3600 * 1_000_000_000
"""A segment is sealed after an hour, so that day folders close and retention can work."""
SETTLE_BYTES: Final = 8192
"""Space set aside for the bill of an open intent; bills of real traffic take 3 to 5 KiB."""
LINE_BYTES: Final = 512
"""More than a line has beside its body."""
_DAY_NS: Final = 86_400 * 1_000_000_000


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """When a segment is full, and when the disk is.

    Args:
        free_bytes_min: below this much free space no intent is admitted.
    """

    segment_bytes_max: int = 64 * 1024 * 1024
    free_bytes_min: int = 0


def retry_after_ns(breaks: int) -> int:
    """Return how long to leave the disk alone after `breaks` (>= 1) failures in a row, in nanoseconds."""
    return min(RETRY_NS_MAX, RETRY_NS << min(breaks - 1, 10))


def seal_at_ns(unix_ns: int) -> int:
    """Return when a segment made at `unix_ns` is sealed: after AGE_NS_MAX or with the UTC day."""
    return min(unix_ns + AGE_NS_MAX, unix_ns - unix_ns % _DAY_NS + _DAY_NS)
