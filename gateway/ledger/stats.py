"""Stats: what the follower has done, in numbers."""

from __future__ import annotations

import msgspec

from otel.totals import Totals


class Stats(msgspec.Struct, kw_only=True):
    """What the follower has done since it started, and what is left to do; read by the metrics.

    Args:
        conflicts: second, different bills of one id.
        refused: bills that a ledger cannot hold.
        totals: of writers that are gone; None until they were read to their ends.
        behind_s: how long ago the ledger last had all of the journal; 0 while it has.
    """

    bills: int = 0
    revisions: int = 0
    again: int = 0
    conflicts: int = 0
    refused: int = 0
    rebuilt: int = 0
    failures_in_a_row: int = 0
    last_error: str | None = None
    stopped: bool = False
    totals: Totals | None = None
    pending_bytes: int = 0
    behind_s: float = 0.0
