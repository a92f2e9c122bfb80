"""Bounds of the front: how much and how long a caller may take before it has proved to be one."""

from __future__ import annotations

from typing import Final

import msgspec

TIMER_S_MAX: Final = 0.5
"""How often all connections are looked at, at least; a deadline is kept to within two such looks."""
TIMER_S_MIN: Final = 0.01
WRITE_PROGRESS_BYTES_MIN: Final = 4096
"""What a reading client takes in `write_idle_s`, at least: a byte now and then is no reading."""
DISCARD_BYTES_MAX: Final = 1024 * 1024
"""How much of a body is read to its end, for the sake of the connection, after it was answered already."""
CHUNK_OVERHEAD_BYTES_MAX: Final = 64 * 1024
"""Chunk sizes and extensions, in bytes; and eight more for each byte of content."""
OVERFLOW_MAX: Final = 256
"""Connections beyond the bound that still get an answer; further ones are cut off."""


class FrontBounds(msgspec.Struct, frozen=True, kw_only=True):
    """What one connection may take.

    Args:
        head_bytes_max: request line and headers together; above it 431.
        target_bytes_max: request target; above it 414.
        connections_max: open connections; above it 503.
        pipelined_max: requests that wait for the answers before them; above it 503.
        head_s: to a complete head, from the connection's or the request's first byte.
        keep_alive_s: between an answer and the next request.
        body_idle_s: without a byte of a body.
        body_total_s: for a whole body.
        write_idle_s: without the client reading what was written.
        linger_s: how long the rest of a refused request is read and thrown away, so that its answer is not
            destroyed by a reset.
    """

    head_bytes_max: int = 32 * 1024
    headers_max: int = 100
    target_bytes_max: int = 8 * 1024
    connections_max: int = 4096
    pipelined_max: int = 16
    head_s: float = 10.0
    keep_alive_s: float = 75.0
    body_idle_s: float = 30.0
    body_total_s: float = 300.0
    write_idle_s: float = 60.0
    linger_s: float = 2.0

    @property
    def timer_s(self) -> float:
        """How often deadlines are looked at, in seconds."""
        shortest = min(
            self.head_s,
            self.keep_alive_s,
            self.body_idle_s,
            self.body_total_s,
            self.write_idle_s,
            self.linger_s,
        )
        return min(TIMER_S_MAX, max(TIMER_S_MIN, shortest / 8))
