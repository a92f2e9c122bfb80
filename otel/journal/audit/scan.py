"""Scan: reads segments once, line by line, and holds each line to everything that is known so far.

No I/O: segments come as blocks of bytes, already cut at what their writer says is durable. All segments of
one writer come together, in the order of their numbers (`in_order`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import Final, Literal

import msgspec

from otel.journal.audit.bills import STATUSES, Bill, ResourceSpans, one_span, read_bill
from otel.journal.audit.findings import Facts, Finding, Findings
from otel.journal.audit.pairing import Open, Pairing
from otel.journal.audit.revisions import Revision, Revisions, read_revision
from otel.journal.audit.sequence import UNKNOWN, HeaderFacts, Place, Sequence, name_parts
from otel.journal.lines import FORMAT_VERSION, LINE_BYTES_MAX, WITH_SPANS, Record, is_whole, spans_of
from otel.journal.segments import revises

End = Literal["sealed", "durable", "growing"]
"""sealed: nothing will be added; durable: cut where the writer says it is durable; growing: cut anywhere."""


class WriterFile(msgspec.Struct, frozen=True, kw_only=True):
    """What a writer's own file says.

    Args:
        live: its process runs.
        segment, offset: up to where it had synced; None if everything written may be read.
        everything: it says so; otherwise it may have said nothing yet.
    """

    live: bool
    everything: bool = False
    segment: int | None = None
    offset: int | None = None


class Segment(msgspec.Struct, frozen=True, kw_only=True):
    """One segment to be scanned; `name` is `<day>/<file>`."""

    name: str
    blocks: Iterable[bytes]
    end: End = "sealed"


class _AnyRecord(msgspec.Struct, frozen=True, gc=False):
    k: str
    id: str
    n: int
    p: str
    d: msgspec.Raw = msgspec.Raw(b"null")


class _Loose(msgspec.Struct, frozen=True):
    j: _AnyRecord


class _Strict(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    j: _AnyRecord
    crc: str
    resource_spans: list[ResourceSpans] = []


class _Call(msgspec.Struct, frozen=True, gc=False):
    record_id: str = ""
    trace_id: str = ""
    span_id: str = ""


_strict: Final = msgspec.json.Decoder(_Strict)
_loose: Final = msgspec.json.Decoder(_Loose)
_header: Final = msgspec.json.Decoder(HeaderFacts)
_call: Final = msgspec.json.Decoder(_Call)

OnIntent = Callable[[str, str], None]
"""(id, trace id)"""
OnBill = Callable[[str, Bill, Place], None]
OnRevision = Callable[[str, Revision, Place], None]


def in_order(names: Iterable[str]) -> list[str]:
    """Return segment names, each writer's together in the order of their numbers, oldest writer first.

    Writers of revisions come before all others.
    """
    first: dict[str, tuple[bool, str]] = {}
    keyed = []
    for name in sorted(names):
        day, _, file = name.partition("/")
        writer, number = name_parts(file) or (file, 0)
        first.setdefault(writer, (not revises(writer), day))
        keyed.append((writer, number, name))
    return [name for _, _, _, name in sorted((first[w], w, number, name) for w, number, name in keyed)]


def lines_of(blocks: Iterable[bytes]) -> Iterator[tuple[int, bytes | None, int]]:
    """Yield (offset, line with its newline, length); None for a stretch that is too long to be a line.

    A last line without a newline comes as it is, empty if it is too long. Holds LINE_BYTES_MAX and one
    block at most.
    """
    offset = 0
    rest = b""
    skipped = 0
    for block in blocks:
        data = rest + block
        at = 0
        while (end := data.find(b"\n", at)) >= 0:  # each turn moves `at` forward
            length = skipped + end + 1 - at
            yield offset, None if skipped else data[at : end + 1], length
            offset += length
            at, skipped = end + 1, 0
        rest = data[at:]
        if len(rest) > LINE_BYTES_MAX:
            skipped += len(rest)
            rest = b""
    if rest or skipped:
        yield offset, b"" if skipped else rest, skipped + len(rest)


class Scan:
    """The state of one pass; `otel.journal.audit.folder.audit_folder` drives it.

    Args:
        writers: what the writers' own files say.
        on_intent, on_bill, on_revision: told of each intent, of the first bill of each id, of each revision.
        known: by writer a number and hash as an earlier report has them.
    """

    def __init__(
        self,
        writers: Mapping[str, WriterFile],
        *,
        known: Mapping[str, tuple[int, str]] | None = None,
        findings: Findings | None = None,
        on_intent: OnIntent | None = None,
        on_bill: OnBill | None = None,
        on_revision: OnRevision | None = None,
    ) -> None:
        self.writers = writers
        self.known = known or {}
        self.findings = findings if findings is not None else Findings()
        self.facts = Facts()
        self.pairing = Pairing(self.findings, self.is_live)
        self.sequences: dict[str, Sequence] = {}
        self.sealed: dict[tuple[str, int, str], Place] = {}
        """Heads of dead writers as later boots saw them, and where that is said."""
        self.sizes: dict[str, int] = {}
        self._on_intent = on_intent
        self._on_bill = on_bill
        self._on_revision = on_revision
        self.revisions = Revisions(self.findings)
        self._status: Counter[str] = Counter()
        self._cost: Counter[str] = Counter()
        self._sequence: Sequence | None = None
        self._numbers: set[int] = set()

    def is_live(self, writer: str) -> bool:
        """Say whether the writer's process runs."""
        found = self.writers.get(writer)
        return found is not None and found.live

    def is_dead(self, writer: str) -> bool:
        """Say whether the writer's process is gone, and no later boot has forgotten it yet."""
        found = self.writers.get(writer)
        return found is not None and not found.live

    def segment(self, segment: Segment) -> None:
        """Scan one segment to its end."""
        parts = name_parts(segment.name.rpartition("/")[2])
        if parts is None:
            self._add("stray", "this is not the name of a segment", segment.name)
            return
        writer, number = parts
        sequence = self._sequence_of(writer)
        if number in self._numbers:
            self._add("segment_twice", f"segment {number} of {writer} stands in two folders", segment.name)
            return
        self._numbers.add(number)
        self.facts.segments += 1
        self.pairing.segment(segment.name)
        begun = False
        size = 0
        for offset, raw, length in lines_of(segment.blocks):
            size = offset + length
            if raw is not None and raw.endswith(b"\n") and is_whole(raw[:-1]):
                begun = self._line(sequence, Place(segment.name, offset), raw, begun)
            elif raw is not None and not raw.endswith(b"\n") and not is_whole(raw[:-1]):
                self._tail(segment, offset, length)
            else:
                if not begun:
                    sequence.begin(Place(segment.name, offset), None, None)
                    begun = True
                what = "it is too long for a line" if raw is None else "its checksum does not match"
                sequence.unreadable(
                    Finding(kind="damage", what=what, segment=segment.name, offset=offset, length=length)
                )
        if begun:
            sequence.end(segment.name, number)
        else:
            sequence.never_begun(segment.name.rpartition("/")[2])
            self._add("never_begun", f"{size} bytes and no whole line", segment.name, 0, size)
        self.facts.bytes += size
        self.sizes[segment.name] = size

    def heads(self) -> dict[str, tuple[int, str]]:
        """Return the number and hash of each writer's newest record, if that can be read."""
        return {
            writer: (sequence.top, f"{sequence.head_hash:016x}")
            for writer, sequence in self.sequences.items()
            if sequence.top and sequence.head_hash != UNKNOWN
        }

    def finish(self) -> None:
        """Report what never came, and sum up."""
        self._close_sequence()
        facts = self.facts
        facts.writers = len(self.sequences)
        facts.live_writers = sum(writer.live for writer in self.writers.values())
        facts.bills_by_status = {name: self._status[name] for name in (*STATUSES, *self._status)}
        facts.revisions, facts.revised_pico_usd = len(self.revisions), self.revisions.delta_pico_usd
        facts.cost_pico_usd_by_status = {name: self._cost[name] for name in facts.bills_by_status}

    def _sequence_of(self, writer: str) -> Sequence:
        if self._sequence is None or self._sequence.writer != writer:
            assert writer not in self.sequences, "segments of one writer come together"
            self._close_sequence()
            self._sequence = self.sequences[writer] = Sequence(writer, self.findings, self.known.get(writer))
            self._numbers = set()
        return self._sequence

    def _close_sequence(self) -> None:
        if self._sequence is not None:
            self._sequence.finish()
            self._sequence = None

    def _tail(self, segment: Segment, offset: int, length: int) -> None:
        if segment.end == "sealed":
            self._add("torn_tail", f"{length} bytes without an end", segment.name, offset, length)
        elif segment.end == "durable":
            self._add("watermark", f"it stands {length} bytes into a line", segment.name, offset, length)

    def _line(self, sequence: Sequence, place: Place, raw: bytes, begun: bool) -> bool:
        """Take one whole line; say whether the segment has begun."""
        try:
            line = _strict.decode(raw)
            record, spans, fault = line.j, line.resource_spans, None
        except ValueError as wrong:
            try:
                record, spans, fault = _loose.decode(raw).j, [], str(wrong)
            except ValueError as broken:
                if not begun:
                    sequence.begin(place, None, None)
                self._add("not_a_record", str(broken), place.segment, place.offset, len(raw))
                sequence.broken()
                return True
        if record.k == "H":
            self._header(sequence, place, record, begun)
            return True
        if not begun:
            sequence.begin(place, None, None)
            self.findings.add(place.finding("header", "the segment does not begin with a header"))
        place = Place(place.segment, place.offset, record.n)
        self.facts.records += 1
        digest = int.from_bytes(blake2b(raw, digest_size=8).digest(), "big")
        seen = sequence.line(place, record.n, record.p, digest)
        if seen == "repeat":
            self.facts.again += 1
            return True
        self.pairing.filled = seen == "filled"
        if fault is not None:
            self.findings.add(place.finding("not_otlp", fault, id=record.id))
        elif spans and record.k not in WITH_SPANS:
            what = f"a record of kind {record.k} has spans"
            self.findings.add(place.finding("not_otlp", what, id=record.id))
        self._record(sequence.writer, place, record, spans, raw, readable=fault is None)
        return True

    def _header(self, sequence: Sequence, place: Place, record: _AnyRecord, begun: bool) -> None:
        if begun:
            self.findings.add(place.finding("header", "a second header"))
            return
        try:
            facts = _header.decode(record.d)
        except ValueError as fault:
            self.findings.add(place.finding("header", str(fault)))
            sequence.begin(place, None, None)
            return
        if facts.v != FORMAT_VERSION:
            what = f"format {facts.v}; this version knows {FORMAT_VERSION}"
            self.findings.add(place.finding("header", what))
        sequence.begin(place, Record("H", record.id, record.n, record.p), facts)
        for writer, (number, digest) in facts.sealed.items():
            self.sealed.setdefault((writer, number, digest), place)

    def _record(
        self,
        writer: str,
        place: Place,
        record: _AnyRecord,
        spans: list[ResourceSpans],
        raw: bytes,
        *,
        readable: bool,
    ) -> None:
        match record.k:
            case "I":
                self._intent(writer, place, record)
            case "P":
                self.facts.progress += 1
                self.pairing.progress(record.id, writer, place)
            case "S":
                bill = self._read_bill(place, record.id, spans) if readable else None
                self._bill(writer, place, record.id, bill, raw)
            case "R":
                if readable:
                    self._revision(place, record.id, spans)
            case _:
                self.findings.add(place.finding("unknown_kind", f"kind {record.k!r}", id=record.id))

    def _intent(self, writer: str, place: Place, record: _AnyRecord) -> None:
        self.facts.intents += 1
        try:
            call = _call.decode(record.d)
        except ValueError as fault:
            self.findings.add(place.finding("not_a_record", str(fault), id=record.id))
            call = _Call()
        if call.record_id not in ("", record.id):
            what = f"the intent's call is that of {call.record_id}"
            self.findings.add(place.finding("record_id", what, id=record.id))
        self.pairing.intent(record.id, Open(writer, place, call.trace_id, call.span_id))
        if self._on_intent is not None:
            self._on_intent(record.id, call.trace_id)

    def _read_bill(self, place: Place, record_id: str, spans: list[ResourceSpans]) -> Bill | None:
        span = one_span(spans)
        if span is None:
            self.findings.add(place.finding("not_otlp", "a bill has exactly one span", id=record_id))
            return None
        bill, problems = read_bill(span)
        for kind, what in problems:
            self.findings.add(place.finding(kind, what, id=record_id))
        if bill.record_id != record_id:
            what = f"billing.record.id is {bill.record_id or 'absent'}"
            self.findings.add(place.finding("record_id", what, id=record_id))
        return bill

    def _revision(self, place: Place, record_id: str, spans: list[ResourceSpans]) -> None:
        span = one_span(spans)
        if span is None:
            self.findings.add(place.finding("not_otlp", "a revision has exactly one span", id=record_id))
            return
        revision, problems = read_revision(span)
        for kind, what in problems:
            self.findings.add(place.finding(kind, what, id=record_id))
        if revision.record_id != record_id:
            what = f"billing.revision.of is {revision.record_id or 'absent'}"
            self.findings.add(place.finding("record_id", what, id=record_id))
        self.revisions.take(revision, place)
        if self._on_revision is not None:
            self._on_revision(record_id, revision, place)

    def _bill(self, writer: str, place: Place, record_id: str, bill: Bill | None, raw: bytes) -> None:
        content = spans_of(raw[:-1]) or b""
        digest = int.from_bytes(blake2b(content, digest_size=8).digest(), "big")
        if not self.pairing.bill(record_id, writer, place, bill, digest):
            return
        self.facts.bills += 1
        if bill is not None:
            self.revisions.bill(record_id, bill)
            self._status[bill.status] += 1
            self._cost[bill.status] += bill.cost_pico_usd or 0
            if self._on_bill is not None:
                self._on_bill(record_id, bill, place)

    def _add(
        self, kind: str, what: str, segment: str, offset: int | None = None, length: int | None = None
    ) -> None:
        self.findings.add(Finding(kind=kind, what=what, segment=segment, offset=offset, length=length))
