"""Folder: takes a journal folder as it stands, running gateways or not, through the audit.

Nothing is written and no lock is kept: a writer's mark is asked for a shared lock, without waiting, to see
whether its process lives. Of a live writer only what it declares durable is read, so that a running
gateway is never taken for a broken one. Order matters: logs, marks, names of segments, marks of writers
that came meanwhile, segments, and last what retention removed meanwhile.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from otel.journal.audit.bills import Bill
from otel.journal.audit.findings import KINDS, Facts, Finding, Findings, Verdict
from otel.journal.audit.ledger_rows import LedgerRows, LedgerSays
from otel.journal.audit.reconcile import MANIFEST, reconcile
from otel.journal.audit.revisions import Revision
from otel.journal.audit.scan import End, Scan, Segment, WriterFile, in_order
from otel.journal.audit.sequence import Place, name_parts
from otel.journal.audit.witnesses import ClientLog, CollectorLog, UpstreamLog
from otel.journal.segments import MARKS, SEGMENTS

BLOCK_BYTES: Final = 1024 * 1024
LOG_LINE_BYTES_MAX: Final = 64 * 1024 * 1024
"""A longer line of a log is taken apart and found unreadable."""
WATERMARK: Final = struct.Struct("<QQ")
OFFSET_BITS: Final = 40
ALL_WRITTEN: Final = 2**64 - 1
MARK_LISTS_MAX: Final = 100
"""Tries to read all marks without one of them going meanwhile; one goes when a dead writer was recovered."""
READS_MAX: Final = 1000
"""Tries to find both halves of a watermark equal; each is one read beside a writer that stores 16 bytes."""


class NoJournal(Exception):
    """There is no journal folder to read; the message says why."""


class Logs(msgspec.Struct, frozen=True, kw_only=True):
    """What else is known of the same requests; see `otel.journal.audit.witnesses`."""

    collector: Path | None = None
    upstream: Path | None = None
    client: Path | None = None
    ledger: LedgerSays | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What an audit came to; `counts` has every kind, `findings` the first of each.

    Args:
        heads: by writer the number and hash of its newest record; kept elsewhere, they prove later what was
            here, as `known` of another audit.
    """

    facts: Facts
    heads: dict[str, tuple[int, str]]
    counts: dict[str, int]
    findings: list[Finding]

    def breaches(self, verdict: Verdict) -> int:
        """Return how many findings break a verdict."""
        return sum(count for kind, count in self.counts.items() if KINDS[kind].verdict == verdict)

    @property
    def complete(self) -> bool:
        """Nothing that was recorded is missing, and nothing that should have been recorded."""
        return not self.breaches("completeness")

    @property
    def intact(self) -> bool:
        """What is there is what was written, and does not contradict itself."""
        return not self.breaches("integrity")


def audit_folder(
    directory: Path,
    *,
    logs: Logs | None = None,
    known: Mapping[str, tuple[int, str]] | None = None,
    strict: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Audit a journal folder.

    Args:
        known: heads of an earlier report.
        strict: an intent that waits for recovery is a breach; for a folder whose gateway has been restarted.
        progress: told of (bytes done, bytes in all) now and then.

    Raises:
        NoJournal: there is no folder, or it has never held a journal.
        OSError: the folder or a log cannot be read.
    """
    findings = Findings()
    logs = logs or Logs()
    collector, upstream, client = _witnesses(logs, findings)
    ledger = None if logs.ledger is None else LedgerRows(logs.ledger, findings)
    before = writers_in(directory)
    names = _names(directory)
    writers = {**_newcomers(writers_in(directory), names), **before}
    if not (names or writers or (directory / MANIFEST).exists()):
        raise NoJournal(f"{directory} has no segments: this is no journal folder")

    def on_bill(record_id: str, bill: Bill, place: Place) -> None:
        if collector is not None:
            collector.bill(record_id, bill, place)
        if client is not None:
            client.bill(record_id, bill, place)
        if ledger is not None:
            ledger.bill(record_id, bill, place)

    def on_revision(record_id: str, revision: Revision, place: Place) -> None:
        if collector is not None:
            collector.bill(record_id, revision, place)
        if ledger is not None:
            ledger.revision(record_id, revision, place)

    scan = Scan(
        writers,
        known=known,
        findings=findings,
        on_intent=upstream.intent if upstream is not None else None,
        on_bill=on_bill if any(witness is not None for witness in (collector, client, ledger)) else None,
        on_revision=on_revision,
    )
    meter = _Meter(sum(names.values()), progress)
    for name in in_order(names):
        _scan_one(scan, directory, name, names, meter)
    reconcile(scan, _lines(directory / MANIFEST, optional=True), strict=strict)
    if collector is not None:
        collector.finish(scan.facts.removed_bills)
    if ledger is not None:
        ledger.finish(scan.facts.removed_bills, scan.facts.removed_cost_pico_usd)
        scan.facts.ledger_pending = ledger.pending
    if upstream is not None:
        upstream.finish()
    if client is not None:
        client.finish(scan.pairing.open)
    return Report(facts=scan.facts, heads=scan.heads(), counts=dict(findings.counts), findings=findings.shown)


def writers_in(directory: Path) -> dict[str, WriterFile]:
    """Return what the writers' marks say.

    A mark that goes meanwhile is that of a dead writer whose bills are durable by now, in another one's
    segments: what was read before is too old for them, and all is read again.

    Raises:
        OSError: one cannot be read.
    """
    for _ in range(MARK_LISTS_MAX):
        found = {}
        folder = directory / MARKS
        try:
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                if path.suffix != ".new":  # else not a mark yet
                    found[path.name] = _writer_file(path)
        except FileNotFoundError:
            continue
        return found
    raise OSError(errno.EAGAIN, "writers come and go faster than they can be read", str(directory / MARKS))


def _newcomers(writers: dict[str, WriterFile], names: dict[str, int]) -> dict[str, WriterFile]:
    """Return what may be read of writers, seen after the names: never a segment that was not listed."""
    known = {name_parts(name.rpartition("/")[2]) for name in names}
    return {
        writer: said
        if said.segment is None or (writer, said.segment) in known
        else msgspec.structs.replace(said, offset=0)
        for writer, said in writers.items()
    }


def _writer_file(path: Path) -> WriterFile:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            live = False  # the lock goes with the descriptor
        except BlockingIOError:
            live = True
        for _ in range(READS_MAX):
            data = os.pread(fd, WATERMARK.size, 0)
            if len(data) < WATERMARK.size:
                return WriterFile(live=live)  # new: nothing was said yet
            first, second = WATERMARK.unpack(data)
            if first == second:
                if first == ALL_WRITTEN:
                    return WriterFile(live=live, everything=True)
                return WriterFile(
                    live=live, segment=first >> OFFSET_BITS, offset=first & ((1 << OFFSET_BITS) - 1)
                )
        return WriterFile(live=live)  # torn by the death of its process
    finally:
        os.close(fd)


def _names(directory: Path) -> dict[str, int]:
    if not directory.is_dir():
        raise NoJournal(f"{directory} is no folder")
    os.listdir(directory)  # a folder that cannot be listed must not look like an empty one
    sizes = {}
    for path in directory.glob(SEGMENTS):
        try:
            sizes[f"{path.parent.name}/{path.name}"] = path.stat().st_size
        except FileNotFoundError:
            continue  # removed by retention since its name was read
    return sizes


def _scan_one(scan: Scan, directory: Path, name: str, names: dict[str, int], meter: _Meter) -> None:
    end, limit = _limit(scan, name, names)
    if limit == 0:
        return
    try:
        with (directory / name).open("rb") as file:
            scan.segment(Segment(name=name, blocks=meter.blocks(file, limit), end=end))
    except FileNotFoundError:
        return  # removed by retention: the manifest, read last, must have it
    except OSError as fault:
        what = f"it cannot be read: {fault.strerror}"
        scan.findings.add(Finding(kind="unreadable", what=what, segment=name))


def _limit(scan: Scan, name: str, names: dict[str, int]) -> tuple[End, int | None]:
    """Return how a segment ends, and how many of its bytes may be read (None: all)."""
    parts = name_parts(name.rpartition("/")[2])
    writer = scan.writers.get(parts[0]) if parts is not None else None
    if parts is None or writer is None or not writer.live:
        return "sealed", None
    if writer.segment is None or writer.offset is None:
        prefix = f"{parts[0]}-"
        newest = max(
            found[1]
            for other in names
            if (found := name_parts(other.rpartition("/")[2])) and other.rpartition("/")[2].startswith(prefix)
        )
        return ("growing" if parts[1] == newest else "sealed"), None
    if parts[1] < writer.segment:
        return "sealed", None
    return "durable", writer.offset if parts[1] == writer.segment else 0


def _witnesses(
    logs: Logs, findings: Findings
) -> tuple[CollectorLog | None, UpstreamLog | None, ClientLog | None]:
    return (
        CollectorLog(logs.collector.name, _lines(logs.collector), findings) if logs.collector else None,
        UpstreamLog(logs.upstream.name, _lines(logs.upstream), findings) if logs.upstream else None,
        ClientLog(logs.client.name, _lines(logs.client), findings) if logs.client else None,
    )


def _lines(path: Path, *, optional: bool = False) -> Iterator[bytes]:
    if optional and not path.exists():
        return
    with path.open("rb") as file:
        while line := file.readline(LOG_LINE_BYTES_MAX):  # ends with the file
            yield line


class _Meter:
    def __init__(self, total: int, progress: Callable[[int, int], None] | None) -> None:
        self._done = 0
        self._total = total
        self._progress = progress

    def blocks(self, file: BinaryIO, limit: int | None) -> Iterator[bytes]:
        """Yield the file up to `limit`, telling how far it is."""
        left = limit
        while block := file.read(BLOCK_BYTES if left is None else min(BLOCK_BYTES, left)):
            if left is not None:
                left -= len(block)
            self._done += len(block)
            if self._progress is not None:
                self._progress(self._done, max(self._done, self._total))
            yield block
