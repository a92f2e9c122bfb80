"""Reconcile: what the folder should hold by other evidence, against what the scan has found in it.

Evidence is what retention wrote down about segments it removed, the heads of dead writers that later boots
noted in their headers, the writers' own watermarks, and the headers that name the segment before them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Final

import msgspec

from otel.journal.audit.findings import Finding
from otel.journal.audit.scan import Scan
from otel.journal.audit.sequence import Gap, Missing, Sequence, gap_finding, hash_of, name_parts

MANIFEST: Final = "removed.jsonl"


class Removed(msgspec.Struct, frozen=True):
    """One line of the manifest: what retention says of a segment that it removed.

    `first` and `last` are record numbers; `hash` is the chain hash of its last record; `durable` is what its
    header called durable, None where that was not written down.
    """

    segment: str
    first: int | None = None
    last: int | None = None
    hash: str = ""
    bytes: int = 0
    bills: int = 0
    cost_pico_usd: int | str = 0
    removed_unix_ns: int | str = 0
    durable: int | None = None

    @property
    def file(self) -> str:
        """The name without its day."""
        return self.segment.rpartition("/")[2]


_removed: Final = msgspec.json.Decoder(Removed)


def reconcile(scan: Scan, manifest: Iterable[bytes], *, strict: bool = False) -> None:
    """Finish a scan; adds findings and facts to it.

    Args:
        manifest: the lines of removed.jsonl, read after the segments were.
        strict: an intent of a dead writer without a bill is a breach, too.
    """
    removed = _read_manifest(scan, manifest)
    by_writer: dict[str, list[tuple[int, Removed]]] = defaultdict(list)
    for entry in removed.values():
        parts = name_parts(entry.file)
        if parts is not None:
            by_writer[parts[0]].append((parts[1], entry))
    for sequence in scan.sequences.values():
        for missing in sequence.missing:
            _judge_missing(scan, missing, removed.get(missing.file))
    for writer in sorted(by_writer.keys() | scan.sequences.keys()):
        _continuity(scan, writer, sorted(by_writer[writer], key=lambda pair: pair[0]))
    for writer, sequence in scan.sequences.items():  # a later segment goes back to what a removed one had
        for _, entry in by_writer[writer]:
            sequence.gaps = [rest for gap in sequence.gaps for rest in _without(gap, entry)]
    lost = {writer: _losses(scan, sequence) for writer, sequence in scan.sequences.items()}
    _heads(scan, by_writer)
    _known(scan, by_writer)
    _watermarks(scan, removed)
    _open_intents(scan, strict=strict)
    _without_intent(scan, by_writer, lost)
    scan.revisions.finish(removed=bool(removed))
    scan.finish()


def _read_manifest(scan: Scan, manifest: Iterable[bytes]) -> dict[str, Removed]:
    removed: dict[str, Removed] = {}
    offset = 0
    for line in manifest:
        at, offset = offset, offset + len(line)
        if not line.endswith(b"\n"):
            what = "a line without an end"
            scan.findings.add(Finding(kind="log_torn", what=what, segment=MANIFEST, offset=at))
            break
        try:
            entry = _removed.decode(line)
            cost = int(entry.cost_pico_usd)
        except ValueError as fault:
            _manifest(scan, at, f"a line cannot be read: {fault}")
            continue
        before = removed.get(entry.file)
        if before is not None:
            if before != msgspec.structs.replace(entry, removed_unix_ns=before.removed_unix_ns):
                _manifest(scan, at, f"{entry.segment} was removed twice, differently")
            continue
        if name_parts(entry.file) is None:
            _manifest(scan, at, f"{entry.segment!r} is not the name of a segment")
            continue
        removed[entry.file] = entry
        if entry.segment not in scan.sizes:
            scan.facts.removed_segments += 1
            scan.facts.removed_bills += entry.bills
            scan.facts.removed_cost_pico_usd += cost
    return removed


def _manifest(scan: Scan, offset: int | None, what: str) -> None:
    scan.findings.add(Finding(kind="manifest", what=what, segment=MANIFEST, offset=offset))


def _judge_missing(scan: Scan, missing: Missing, entry: Removed | None) -> None:
    """A header names a segment that is not here: removed by retention, or gone."""
    if entry is None:
        what = f"{missing.file}, with records up to {missing.n - 1}, is not here and not in {MANIFEST}"
        scan.findings.add(missing.named_at.finding("segment_missing", what))
    elif entry.last == missing.n - 1 and hash_of(entry.hash) != hash_of(missing.p):
        what = f"{MANIFEST} has another last record of {missing.file} than the next segment's header"
        scan.findings.add(missing.named_at.finding("manifest", what))


def _continuity(scan: Scan, writer: str, entries: list[tuple[int, Removed]]) -> None:
    """Hold the removed segments to one another and to those that are here: numbers without gaps."""
    sequence = scan.sequences.get(writer)
    spans = [(number, entry.first, entry.last, entry) for number, entry in entries]
    here = {summary.number: summary for summary in sequence.summaries} if sequence is not None else {}
    reach = 0
    for _, first, last, entry in sorted(
        [(s.number, None, s.last, None) for s in here.values()] + [s for s in spans if s[0] not in here],
        key=lambda span: span[0],
    ):
        if entry is not None and first is not None and first > reach + 1:
            what = f"records {reach + 1} to {first - 1} of {writer} are missing before {entry.segment}"
            heads = {head for name, head, _ in scan.sealed if name == writer}
            taken = entry.durable is not None and entry.durable <= reach and (not heads or reach in heads)
            kind = "lost_unpromised" if taken else "gap"
            scan.findings.add(Finding(kind=kind, what=what, segment=MANIFEST, record=reach + 1))
        reach = max(reach, last or 0)
    for number, entry in entries:
        found = here.get(number)
        if found is not None and entry.last == found.last and hash_of(entry.hash) != found.hash:
            _manifest(scan, None, f"{entry.segment} is here, with another last record")
    if sequence is None:
        return
    for missing in sequence.missing:
        entry = next((entry for _, entry in entries if entry.file == missing.file), None)
        last_removed = entry.last if entry is not None else None
        if last_removed is not None and last_removed < missing.n - 1:
            what = f"records {last_removed + 1} to {missing.n - 1} are missing before this segment"
            kind = "lost_unpromised" if _ended_at(scan, sequence, last_removed) else "gap"
            scan.findings.add(missing.named_at.finding(kind, what))


def _without(gap: Gap, entry: Removed) -> list[Gap]:
    """Return what of a gap a removed segment did not have."""
    low, high = entry.first, entry.last
    if low is None or high is None or high < gap.first or gap.last < low:
        return [gap]
    parts = (Gap(gap.first, low - 1, gap.place), Gap(high + 1, gap.last, gap.place))
    return [part for part in parts if part.first <= part.last]


def _ended_at(scan: Scan, sequence: Sequence, number: int) -> bool:
    """Say whether a power loss took what stood behind `number`: see `_losses`."""
    heads = {head for name, head, _ in scan.sealed if name == sequence.writer}
    seen = number in heads or (not heads and scan.is_dead(sequence.writer))
    return seen and number >= sequence.durable


def _losses(scan: Scan, sequence: Sequence) -> int | None:
    """Report what lacks and what is damaged; return the number from which a power loss took records.

    It did if the next boot saw the sequence end right there, and nothing says that it had been durable.
    """
    writer = sequence.writer
    heads = {number for name, number, _ in scan.sealed if name == writer}
    lacking = [(gap.first, gap.place.segment, gap.place.offset) for gap in sequence.gaps]
    lacking += [(bad.number, bad.finding.segment, bad.finding.offset or 0) for bad in sequence.damaged]
    lost = min(
        (
            first
            for first, segment, offset in lacking
            if first > sequence.durable
            and (first - 1 in heads or (not heads and scan.is_dead(writer)))
            and not _promised(scan, writer, segment, offset)
        ),
        default=None,
    )
    for gap in sequence.gaps:
        kind = "gap" if lost is None or gap.first < lost else "lost_unpromised"
        scan.findings.add(gap_finding(gap, kind))
    for damaged in sequence.damaged:
        taken = lost is not None and damaged.number >= lost
        finding = damaged.finding
        scan.findings.add(msgspec.structs.replace(finding, kind="lost_unpromised") if taken else finding)
    return lost


def _promised(scan: Scan, writer: str, segment: str, offset: int) -> bool:
    """Say whether the writer's own mark covers a place."""
    said = scan.writers.get(writer)
    if said is None or said.segment is None or said.offset is None:
        return said is not None and said.everything
    parts = name_parts(segment.rpartition("/")[2])
    return parts is not None and (parts[1], offset) < (said.segment, said.offset)


def _heads(scan: Scan, by_writer: dict[str, list[tuple[int, Removed]]]) -> None:
    """Hold each dead writer to the head that a later boot saw."""
    for (writer, number, digest), place in scan.sealed.items():
        sequence = scan.sequences.get(writer)
        if sequence is not None and any(gap.first == number + 1 for gap in sequence.gaps):
            continue  # it ended in a gap, and that is reported
        if sequence is not None and any(
            entry.file == missing.file and entry.last == number and missing.n > number + 1
            for missing in sequence.missing
            for _, entry in by_writer.get(writer, [])
        ):
            continue  # the same, and the segment before the gap was removed
        last = sequence.top if sequence is not None else 0
        found = sequence.head_hash if sequence is not None else hash_of("0" * 16)
        for _, entry in by_writer.get(writer, []):
            # What stands behind records that a power loss took is no part of the head that was seen.
            if entry.last is not None and entry.last > last and (entry.first or 0) <= last + 1:
                last, found = entry.last, hash_of(entry.hash)
        if last < number:
            what = f"records {last + 1} to {number} of {writer} are missing at its end"
            scan.findings.add(place.finding("tail_missing", what))
        elif last > number:
            what = f"{writer} ended at record {number}; now it has {last}"
            scan.findings.add(place.finding("head", what))
        elif number and found != hash_of(digest):
            at = sequence.summaries[-1].name if sequence is not None and sequence.summaries else MANIFEST
            what = f"the last record of {writer} is not the one that a later boot saw"
            scan.findings.add(Finding(kind="head", what=what, segment=at, record=number))


def _known(scan: Scan, by_writer: dict[str, list[tuple[int, Removed]]]) -> None:
    """What an earlier report names must be here, or noted as removed."""
    for writer, (number, digest) in scan.known.items():
        sequence = scan.sequences.get(writer)
        if sequence is not None and sequence.known is None:
            continue
        ends = [entry for _, entry in by_writer.get(writer, []) if (entry.last or 0) >= number]
        if not ends:
            what = f"record {number} of {writer}, which an earlier report names, is not here"
            scan.findings.add(Finding(kind="tail_missing", what=what, segment=writer, record=number))
        elif any(entry.last == number and hash_of(entry.hash) != hash_of(digest) for entry in ends):
            _manifest(scan, None, f"record {number} of {writer} is another than an earlier report names")


def _watermarks(scan: Scan, removed: dict[str, Removed]) -> None:
    """What a writer said to be durable must be here."""
    names = {name_parts(name.rpartition("/")[2]): name for name in scan.sizes}
    for writer, said in scan.writers.items():
        if said.segment is None or not said.offset:
            continue
        name = names.get((writer, said.segment))
        if name is None:
            if not any(name_parts(file) == (writer, said.segment) for file in removed):
                what = f"segment {said.segment} of {writer} was durable up to {said.offset} and is not here"
                scan.findings.add(Finding(kind="segment_missing", what=what, segment=f"writers/{writer}"))
        elif scan.sizes[name] < said.offset:
            what = f"it was durable up to {said.offset} and ends at {scan.sizes[name]}"
            scan.findings.add(Finding(kind="tail_missing", what=what, segment=name, offset=scan.sizes[name]))


def _open_intents(scan: Scan, *, strict: bool) -> None:
    """An intent may wait for its bill while its writer lives, or while recovery still has to read it."""
    for record_id, intent in scan.pairing.open.items():
        if scan.is_live(intent.writer):
            scan.facts.in_flight += 1
            continue
        if intent.writer not in scan.writers:
            what = "its writer was retired, and there is no bill"
            scan.findings.add(intent.place.finding("open_intent", what, id=record_id))
            continue
        scan.facts.awaiting_recovery += 1
        kind = "open_intent" if strict else "awaiting_recovery"
        scan.findings.add(intent.place.finding(kind, "its writer is dead and there is no bill", id=record_id))


def _without_intent(
    scan: Scan, by_writer: dict[str, list[tuple[int, Removed]]], lost: dict[str, int | None]
) -> None:
    """A bill without an intent is a breach, unless the intent was removed, or taken by a power loss."""
    for kind, record_id, writer, place in scan.pairing.unmatched():
        if (first := lost.get(writer)) is not None and place.record is not None and place.record > first:
            what = f"{kind.replace('_', ' ')}: that was taken"
            scan.findings.add(place.finding("lost_unpromised", what, id=record_id))
        elif _may_be_removed(scan, writer, by_writer):
            scan.findings.add(place.finding("intent_removed", f"{kind.replace('_', ' ')}", id=record_id))
        else:
            scan.findings.add(place.finding(kind, "there is none with this id", id=record_id))


def _may_be_removed(scan: Scan, writer: str, by_writer: dict[str, list[tuple[int, Removed]]]) -> bool:
    if any(other != writer and entries for other, entries in by_writer.items()):
        return True  # it may have been recovered for a dead writer
    own = by_writer.get(writer)
    if not own:
        return False
    oldest = scan.sequences[writer].first_oldest_open
    return oldest is None or oldest <= own[-1][0]
