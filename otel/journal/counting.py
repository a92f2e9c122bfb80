"""Counting: how many bills a journal holds and what they come to, taken up in bounded steps.

Nothing but the journal itself is asked, so that all that was counted elsewhere can be held to it. What was
counted once is not read again; what retention removed counts by what it wrote down.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Final

import msgspec

from otel.journal.files import Files
from otel.journal.reader import Reader
from otel.journal.removed import removed_from

LINES_MAX: Final = 2_000
BATCH_BYTES: Final = 2 * 1024 * 1024
_COST: Final = b'"key":"billing.cost.usd","value":{"stringValue":"'
_REVISES: Final = b'"key":"billing.revision.of"'
_DELTA: Final = b'"key":"billing.revision.delta_usd","value":{"stringValue":"'
_PICO: Final = 10**12


class Count(msgspec.Struct, kw_only=True):
    """Bills and revisions of bills; money in pico-USD, where what has no cost adds nothing."""

    bills: int = 0
    cost_pico_usd: int = 0
    revisions: int = 0
    revised_pico_usd: int = 0

    def add(self, other: Count) -> None:
        """Add what others come to."""
        self.bills += other.bills
        self.cost_pico_usd += other.cost_pico_usd
        self.revisions += other.revisions
        self.revised_pico_usd += other.revised_pico_usd

    def line(self, spans: bytes) -> None:
        """Add a line, given the inside of its `resourceSpans`.

        A quote inside a JSON string is escaped, so that no caller's text can look like a member.
        """
        if _REVISES in spans:
            self.revisions += 1
            self.revised_pico_usd += _amount(spans, _DELTA)
        else:
            self.bills += 1
            self.cost_pico_usd += _amount(spans, _COST)


class Places:
    """How far has been counted; see `otel.journal.cursor.Passed`."""

    def __init__(self, offsets: Mapping[str, int] | None = None) -> None:
        self._offsets = dict(offsets or {})
        self._seen: dict[str, int] = {}

    def __getitem__(self, segment: str) -> int:
        """Return the offset up to which `segment` is counted."""
        return self._offsets.get(segment, 0)

    def seen(self, writer: str) -> int:
        """Return the number up to which the records of `writer` are counted."""
        return self._seen.get(writer, 0)

    def keep_only(self, segments: set[str], writers: set[str]) -> None:
        """Forget what is no longer in the folder."""
        self._offsets = {name: offset for name, offset in self._offsets.items() if name in segments}
        self._seen = {name: number for name, number in self._seen.items() if name in writers}

    def move(self, segment: str, offset: int, writer: str, seen: int) -> None:
        """Note what is counted."""
        self._offsets[segment] = offset
        self._seen[writer] = max(seen, self.seen(writer))


class JournalCount:
    """The count of one folder; belongs to one thread at a time.

    Args:
        places: where to begin.

    Attributes:
        taken: bytes that were counted.
    """

    def __init__(self, directory: Path, files: Files, places: Places | None = None) -> None:
        self._directory = directory
        self._files = files
        self._places = places or Places()
        self._reader = Reader(directory, self._places, files)
        self.taken = 0
        self._own: dict[str, Count] = {}

    def step(self, bytes_max: int) -> int:
        """Count some `bytes_max` more; return how many bytes that are durable are not counted yet.

        Raises:
            OSError: the journal cannot be read now.
        """
        upto = self.taken + bytes_max
        for batch in self._reader.batches(LINES_MAX, BATCH_BYTES):
            count = self._own.setdefault(batch.segment, Count())
            for spans in batch.spans:
                count.line(spans)
            self.taken += batch.end - self._places[batch.segment]
            self._places.move(batch.segment, batch.end, batch.writer, batch.seen)
            if self.taken >= upto:
                break
        return self._reader.pending_bytes()

    def here(self) -> Count:
        """Return what was counted."""
        whole = Count()
        for count in self._own.values():
            whole.add(count)
        return whole

    def whole(self) -> Count:
        """Return what was counted, and what was removed.

        Raises:
            UnreadableManifest, OSError: what was removed cannot be known.
        """
        gone = removed_from(self._directory, self._files)
        for entry in gone:
            # Of revisions in it nothing is written down: they are known only if they were counted here.
            before = self._own.get(entry.segment, Count())
            before.bills, before.cost_pico_usd = entry.bills, int(entry.cost_pico_usd)
            self._own[entry.segment] = before
        return self.here()


def _amount(spans: bytes, name: bytes) -> int:
    start = spans.find(name)
    if start < 0:
        return 0
    start += len(name)
    return int(Decimal(spans[start : spans.index(b'"', start)].decode()) * _PICO)
