"""Pairing: every bill has one intent before it, and every intent gets one bill.

A bill stands behind its intent in the same writer's sequence, or, if that writer died, anywhere in the
sequence of the one that recovered it. Segments are read writer by writer, so such a bill may be met before
its intent. Memory: one entry for each open intent, one small entry for each settled id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Final

import msgspec

from otel.journal.audit.bills import Bill
from otel.journal.audit.findings import Findings
from otel.journal.audit.sequence import Place, name_parts

SEGMENT_BITS: Final = 40
DIGEST_BITS: Final = 64


class Open(msgspec.Struct, frozen=True, gc=False):
    """An intent without a bill so far; ids as in the intent, "" where it has none."""

    writer: str
    place: Place
    trace_id: str
    span_id: str


class _Orphan(msgspec.Struct, frozen=True, gc=False):
    writer: str
    place: Place
    trace_id: str
    span_id: str
    digest: int


class Pairing:
    """Intents, progress and bills by id.

    Args:
        is_live: whether a writer's process still runs.
    """

    def __init__(self, findings: Findings, is_live: Callable[[str], bool]) -> None:
        self.open: dict[str, Open] = {}
        self.filled = False
        """The record that comes was damaged where it first stood: records that were written after it came."""
        self._findings = findings
        self._is_live = is_live
        self._segments: list[str] = []
        self._index: dict[str, int] = {}
        self._settled: dict[bytes, int] = {}
        self._orphans: dict[str, _Orphan] = {}
        self._strays: dict[str, tuple[str, Place]] = {}

    def segment(self, name: str) -> None:
        """Tell that the lines that follow stand in this segment."""
        self._index[name] = len(self._segments)
        self._segments.append(name)

    def intent(self, record_id: str, found: Open) -> None:
        """Take an intent."""
        if self.filled:
            self._strays.pop(record_id, None)
        orphan = self._orphans.pop(record_id, None)
        if orphan is not None:
            self._settle(record_id, orphan.place, orphan.digest)
            if orphan.writer == found.writer and not self.filled:
                self._add(found.place, "order", "the intent stands behind its own bill", record_id)
            self._match(record_id, found, orphan)
            return
        first = self.open.get(record_id)
        if first is not None:
            what = f"a second intent; the first is record {first.place.record} in {first.place.segment}"
            self._add(found.place, "intent_twice", what, record_id)
        elif _key(record_id) in self._settled:
            self._add(found.place, "intent_twice", "an intent for what is billed already", record_id)
        else:
            self.open[record_id] = found

    def progress(self, record_id: str, writer: str, place: Place) -> None:
        """Take a progress record."""
        intent = self.open.get(record_id)
        if intent is not None and intent.writer == writer:
            return
        if intent is not None:
            self._add(place, "order", "progress by another writer than the intent's", record_id)
        elif (biller := self._biller(record_id)) is None:
            self._strays.setdefault(record_id, (writer, place))
        elif biller == writer and not self.filled:
            self._add(place, "order", "progress behind the bill", record_id)

    def bill(self, record_id: str, writer: str, place: Place, bill: Bill | None, digest: int) -> bool:
        """Take a bill (None: its span cannot be read); say whether it is the first of its id.

        Args:
            digest: 64-bit hash of the bill's content.
        """
        first = self._settled.get(_key(record_id))
        orphan = self._orphans.get(record_id)
        if first is not None or orphan is not None:
            self._again(record_id, place, digest, first, orphan)
            return False
        trace_id, span_id = (bill.trace_id, bill.span_id) if bill is not None else ("", "")
        found = _Orphan(writer, place, trace_id, span_id, digest)
        intent = self.open.pop(record_id, None)
        if intent is None:
            self._orphans[record_id] = found
            return True
        self._settle(record_id, place, digest)
        self._match(record_id, intent, found)
        return True

    def unmatched(self) -> Iterator[tuple[str, str, str, Place]]:
        """Yield (kind, id, writer, place) of every bill and every progress record without an intent."""
        for record_id, orphan in self._orphans.items():
            yield "bill_without_intent", record_id, orphan.writer, orphan.place
        for record_id, (writer, place) in self._strays.items():
            yield "progress_without_intent", record_id, writer, place

    def _match(self, record_id: str, intent: Open, bill: _Orphan) -> None:
        if intent.writer != bill.writer and self._is_live(intent.writer):
            what = f"the intent is record {intent.place.record} of {intent.writer}, which still runs"
            self._add(bill.place, "foreign_bill", what, record_id)
        for name, asked, billed in (
            ("trace", intent.trace_id, bill.trace_id),
            ("span", intent.span_id, bill.span_id),
        ):
            if asked and billed and asked != billed:
                what = f"{name} id {billed} on the bill, {asked} in the intent at {intent.place.segment}"
                self._add(bill.place, "other_ids", what, record_id)

    def _again(
        self, record_id: str, place: Place, digest: int, first: int | None, orphan: _Orphan | None
    ) -> None:
        if orphan is not None:
            segment, offset, known = orphan.place.segment, orphan.place.offset, orphan.digest
        else:
            assert first is not None
            known = first & ((1 << DIGEST_BITS) - 1)
            packed = first >> DIGEST_BITS
            segment = self._segments[packed >> SEGMENT_BITS]
            offset = packed & ((1 << SEGMENT_BITS) - 1)
        same = known == digest
        what = f"{'the same bill' if same else 'another bill for this id'} stands at {segment}:{offset}"
        self._add(place, "bill_twice" if same else "conflict", what, record_id)

    def _biller(self, record_id: str) -> str | None:
        """Return who billed an id so far: another writer than the intent's may be read before that one."""
        orphan = self._orphans.get(record_id)
        if orphan is not None:
            return orphan.writer
        packed = self._settled.get(_key(record_id))
        if packed is None:
            return None
        parts = name_parts(self._segments[packed >> DIGEST_BITS >> SEGMENT_BITS].rpartition("/")[2])
        return parts[0] if parts is not None else None

    def _settle(self, record_id: str, place: Place, digest: int) -> None:
        packed = self._index[place.segment] << SEGMENT_BITS | place.offset
        self._settled[_key(record_id)] = packed << DIGEST_BITS | digest

    def _add(self, place: Place, kind: str, what: str, record_id: str) -> None:
        self._findings.add(place.finding(kind, what, id=record_id))


def _key(record_id: str) -> bytes:
    """Return 16 bytes for an id; UUIDs are what they are, anything else is hashed."""
    if len(record_id) == 36:
        try:
            return bytes.fromhex(record_id.replace("-", ""))
        except ValueError:
            pass
    return blake2b(record_id.encode("utf-8", "replace"), digest_size=16).digest()
