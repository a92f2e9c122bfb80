"""Sequence: one writer's numbers and hash chain, over all its segments in the order they were written.

    segment 4   H n=1  │ 1 2 3 4 5 ▒           a write failed: sealed as it is
    segment 5   H n=4  │ 4 5 6 7               4 and 5 again, byte for byte, because no sync covered them

A segment's header says where it takes the sequence up. Numbers that the writer has used before may stand
again only behind such a header, one after the other, and only with the same bytes. What went before is
kept as hashes of the last RING records; a writer holds fewer than that back.

So a failed sync heals: what it damaged stands behind a header that goes back to before the damage. A writer
removes, and its headers pass over, a segment of which every record is written again.
"""

from __future__ import annotations

from array import array
from typing import Final, Literal

import msgspec

from otel.journal.audit.findings import Finding, Findings
from otel.journal.lines import GENESIS, Record
from otel.journal.segments import SUFFIX, day_of

RING: Final = 131_072
"""Hashes kept of the newest records; a writer refuses at half as many records that wait for a sync."""
GAPS_MAX: Final = 10_000
"""Open gaps of one writer that later lines may still fill; beyond it the oldest is final."""
UNKNOWN: Final = 0

Seen = Literal["new", "repeat", "filled"]
"""filled: a number that lacked until now, in a segment that writes it again."""


class Place(msgspec.Struct, frozen=True):
    """Where a line stands: segment, offset, and its number (None for a header)."""

    segment: str
    offset: int
    record: int | None = None

    def finding(self, kind: str, what: str, *, id: str | None = None) -> Finding:  # noqa: A002  # a bill's id
        """Return a finding at this place."""
        return Finding(
            kind=kind, what=what, segment=self.segment, offset=self.offset, record=self.record, id=id
        )


class HeaderFacts(msgspec.Struct, frozen=True):
    """The `d` of a header."""

    v: int
    boot: str
    worker: int
    segment: int
    previous_segment: str | None
    created_unix_ns: str
    oldest_open: int | None = None
    durable: int = 0
    sealed: dict[str, tuple[int, str]] = {}


class Gap(msgspec.Struct, frozen=True):
    """Numbers that no line has, and where the sequence goes on."""

    first: int
    last: int
    place: Place


class Damaged(msgspec.Struct, frozen=True):
    """A stretch that cannot be read; what stood there had numbers from `number` on."""

    number: int
    finding: Finding


class Missing(msgspec.Struct, frozen=True):
    """A segment that a header names and that is not here; `n` and `p` are where that header goes on."""

    file: str
    n: int
    p: str
    named_at: Place


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What one segment came to: its reach in the sequence and the hash there."""

    name: str
    number: int
    last: int
    hash: int


def name_parts(file: str) -> tuple[str, int] | None:
    """Return (`<boot>-<worker>`, number) of a segment's file name, None if it is no such name."""
    stem, dot, _ = file.rpartition(SUFFIX)
    parts = stem.rsplit("-", 2)
    if not dot or file != stem + SUFFIX or len(parts) != 3 or not parts[0]:
        return None
    if not (parts[1].isdecimal() and parts[2].isdecimal() and len(parts[2]) >= 6):
        return None
    return f"{parts[0]}-{parts[1]}", int(parts[2])


def hash_of(text: str) -> int:
    """Return a chain hash as an integer; -1 if it is none."""
    try:
        return int(text, 16) if len(text) == len(GENESIS) else -1
    except ValueError:
        return -1


class Sequence:
    """The numbers of one writer; feed its segments in order, then `finish`."""

    def __init__(self, writer: str, findings: Findings, known: tuple[int, str] | None = None) -> None:
        self.writer = writer
        self.known = known
        """Number and hash of a record as an earlier report has them; None once it was met."""
        self.missing: list[Missing] = []
        self.summaries: list[Summary] = []
        self.gaps: list[Gap] = []
        self.damaged: list[Damaged] = []
        """Stretches that no later segment has healed so far."""
        self.first_oldest_open: int | None = None
        """`oldest_open` of the first segment that is here."""
        self.durable = 0
        """Up to this number a header calls the records durable."""
        self.top = 0
        self._findings = findings
        self._ring = array("Q", bytes(8 * RING))
        self._low = 0
        self._unseen: set[int] = set()
        """Numbers of which no line came, only a header that says their hash; at most one of each segment."""
        self._ring[0] = hash_of(GENESIS)
        self._file: str | None = None
        self._starts: dict[str, int | None] = {}
        """By segment, in order, where its header takes the sequence up; None where that cannot be read."""
        self._number = 0
        self._expected: int | None = 1
        self._hash: int | None = None
        self.head_hash = hash_of(GENESIS)
        """Chain hash of the record with the highest number; UNKNOWN if its line is not readable."""
        self._before = Place("", 0)
        self._broken = False
        self._disputed: tuple[int, Finding] | None = None

    def begin(self, place: Place, record: Record | None, facts: HeaderFacts | None) -> None:
        """Take up a segment whose header is given; None where the header cannot be read."""
        self._broken = False
        file = place.segment.rpartition("/")[2]
        before, self._before = self._before, place
        self._expected, self._hash = None, None
        if record is not None and facts is not None:
            self._expected, self._hash = record.n, hash_of(record.p)
            self._check_name(place, facts)
            if self._file is None:
                self.first_oldest_open = facts.oldest_open
            self.durable = max(self.durable, facts.durable)
            self._heal(record.n)
            self._take_up(place, before, record, facts.previous_segment)
        self._file = file
        self._starts[file] = None if record is None else record.n
        parts = name_parts(file)
        self._number = parts[1] if parts else self._number

    def end(self, name: str, number: int) -> None:
        """Note what the segment came to."""
        self._settle_dispute(None)
        self.head_hash = self._known(self.top) or UNKNOWN
        self.summaries.append(
            Summary(
                name=name,
                number=number,
                last=self.top,
                hash=self.head_hash,
            )
        )

    def never_begun(self, file: str) -> None:
        """Note a segment without a whole line: later headers may name it."""
        self._starts[file] = None

    def broken(self) -> None:
        """A line is none of ours: numbers that lack behind it are explained by it."""
        self._broken = True

    def unreadable(self, finding: Finding) -> None:
        """A stretch cannot be read: numbers that lack behind it are explained by it."""
        self._broken = True
        expected = self._expected if self._expected is not None else self.top + 1
        self.damaged.append(Damaged(expected, finding))
        if len(self.damaged) > GAPS_MAX:
            self._findings.add(self.damaged.pop(0).finding)

    def line(self, place: Place, number: int, previous: str, digest: int) -> Seen:
        """Take the next record's number, its `p` and its own hash; say whether it stood before, the same."""
        self._settle_dispute(hash_of(previous))
        if self.known is not None and number == self.known[0]:
            if digest != hash_of(self.known[1]):
                what = f"record {number} is not the one that an earlier report names, or one before it is not"
                self._findings.add(place.finding("head", what))
            self.known = None
        expected = self._expected if self._expected is not None else min(number, self.top + 1)
        if number < expected:
            return self._late(place, number, digest)
        if number > expected:
            self._skipped(place, expected, number)
        elif self._hash is not None and hash_of(previous) != self._hash:
            self._findings.add(
                self._before.finding("chain", f"record {number} was written after another line than this")
            )
        self._expected, self._hash, self._before = number + 1, digest, place
        if number > self.top:
            self._push(number, digest)
            return "new"
        known = self._known(number)
        if known not in (None, digest):
            self._findings.add(place.finding("rewrite", f"record {number} was written again, differently"))
            return "new"
        if known == digest and number not in self._unseen:
            return "repeat"
        self._fill(number, digest)
        return "filled"

    def finish(self) -> None:
        """Give the hashes back."""
        self._ring = array("Q")

    # how a segment takes the sequence up

    def _check_name(self, place: Place, facts: HeaderFacts) -> None:
        day, _, file = place.segment.rpartition("/")
        said = f"{facts.boot}-{facts.worker}-{facts.segment:06d}{SUFFIX}"
        if said != file:
            self._findings.add(place.finding("header", f"the header says it is {said}"))
        created = facts.created_unix_ns
        if not (created.isdecimal() and len(created) <= 19) or day_of(int(created)) != day:
            self._findings.add(place.finding("header", f"the header was made at {created}, on another day"))

    def _take_up(self, place: Place, before: Place, record: Record, named: str | None) -> None:
        number, previous = record.n, hash_of(record.p)
        if number <= self.durable:
            what = f"it goes back to {number}, and up to {self.durable} all was durable"
            self._findings.add(place.finding("header", what))
        if named is None:
            if number != 1 or previous != hash_of(GENESIS):
                self._findings.add(place.finding("header", f"it says it is first, and begins at {number}"))
                if number > self.top + 1:
                    self._adopt(number - 1, previous)
            return
        if named in self._starts or any(missing.file == named for missing in self.missing):
            over = self._passed_over(named, number)
            if over is not None:
                self._findings.add(place.finding("header", f"it follows {named}, but {over} is before it"))
            self._continue(place, before, number, previous)
            return
        parts = name_parts(named)
        if parts is None or parts[0] != self.writer or parts[1] <= self._number:
            self._findings.add(
                place.finding("header", f"it follows {named}, but {self._file or 'nothing'} is before it")
            )
            if number > self.top + 1:
                self._adopt(number - 1, previous)
            return
        self.missing.append(Missing(named, number, record.p, place))
        if number > self.top + 1:
            self._adopt(number - 1, previous)

    def _passed_over(self, named: str, number: int) -> str | None:
        """Return a segment behind `named` with records before `number`, where a header goes on."""
        for file, start in reversed(self._starts.items()):  # nearly always the first is the one
            if file == named:
                break
            if start is not None and start < number:
                return file
        return None

    def _heal(self, number: int) -> None:
        """A header goes back to `number`: what was damaged from there on is written again."""
        for damaged in self.damaged:
            if damaged.number >= number:
                self._findings.add(msgspec.structs.replace(damaged.finding, kind="damage_healed"))
        self.damaged = [damaged for damaged in self.damaged if damaged.number < number]

    def _continue(self, place: Place, before: Place, number: int, previous: int) -> None:
        if number > self.top + 1:
            if previous == self._known(self.top):
                what = f"it goes on at {number}, behind record {self.top}"
                self._findings.add(place.finding("header", what))
                self._expected = self.top + 1
                return
            self._lack(Gap(self.top + 1, number - 1, place))
            self._adopt(number - 1, previous)
            return
        if number < 1 or self.top - number >= RING:
            self._findings.add(place.finding("header", f"it goes back to {number}: too far"))
            return
        known = self._known(number - 1)
        if known is not None and known != previous:
            at = before if number == self.top + 1 else place
            what = f"{place.segment} goes on at record {number} after another line than this"
            self._disputed = known, at.finding("chain", what)

    def _settle_dispute(self, previous: int | None) -> None:
        """The header contradicts the line before it: the segment's first record says which is wrong."""
        if self._disputed is None:
            return
        known, finding = self._disputed
        self._disputed = None
        if previous == known:
            self._hash = known
            what = "its chain hash is not that of the line before it"
            finding = self._before.finding("header", what)
        self._findings.add(finding)

    def _adopt(self, top: int, digest: int) -> None:
        """Go on from a record that is not here, by what a header says of it.

        What is known of earlier ones stays: a later header may go back to before the gap.
        """
        self._push(top, max(digest, UNKNOWN))
        self._unseen.add(top)

    # numbers

    def _skipped(self, place: Place, expected: int, number: int) -> None:
        first = max(expected, self.top + 1)
        if first < number:
            self._lack(Gap(first, number - 1, place))
        elif not self._broken:
            self._findings.add(place.finding("order", f"record {number} stands where {expected} belongs"))

    def _lack(self, gap: Gap) -> None:
        self.gaps.append(gap)
        if len(self.gaps) > GAPS_MAX:
            self._findings.add(gap_finding(self.gaps.pop(0)))

    def _late(self, place: Place, number: int, digest: int) -> Seen:
        known = self._known(number)
        if known == digest and number not in self._unseen:
            self._findings.add(place.finding("duplicate", f"record {number} stands here a second time"))
            return "repeat"
        if known in (None, digest) and self._fill(number, digest):
            self._findings.add(place.finding("order", f"record {number} stands behind a later one"))
        else:
            self._findings.add(place.finding("rewrite", f"number {number} is used again, on another line"))
        return "new"

    def _push(self, number: int, digest: int) -> None:
        if number - self.top > RING:
            self._low = number
        else:
            for skipped in range(self.top + 1, number):  # at most RING
                self._ring[skipped % RING] = UNKNOWN
        self._ring[number % RING] = digest
        self.top = number

    def _known(self, number: int) -> int | None:
        if not self._low <= number <= self.top or self.top - number >= RING:
            return None
        return self._ring[number % RING] or None

    def _fill(self, number: int, digest: int) -> bool:
        """Take a number that has come after all; say whether it was in a gap."""
        self._unseen.discard(number)
        if self._low <= number <= self.top and self.top - number < RING:
            self._ring[number % RING] = digest
        for index in range(len(self.gaps) - 1, -1, -1):  # at most GAPS_MAX
            gap = self.gaps[index]
            if gap.first <= number <= gap.last:
                parts = [Gap(gap.first, number - 1, gap.place), Gap(number + 1, gap.last, gap.place)]
                self.gaps[index : index + 1] = [part for part in parts if part.first <= part.last]
                return True
        return False


def gap_finding(gap: Gap, kind: str = "gap") -> Finding:
    """Return the finding of numbers that never came."""
    first, last = gap.first, gap.last
    named = f"record {first} is" if first == last else f"records {first} to {last} are"
    return gap.place.finding(kind, f"{named} missing before this line ({last - first + 1})")
