"""Rerating: journaled bills rated anew with a catalogue; where one differs, a revision is written.

    known revisions ──▶ each bill of the range ──▶ facts ──▶ charge ──▶ another one? ──▶ R record

Bills are never changed, and nothing but the journal and the catalogue decides: run again, killed or not, it
writes what is still lacking and then nothing. It runs beside gateways, as one more writer with segments of
its own; only two of its kind exclude one another. Memory: one entry for each bill that was ever revised.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from gateway.core.money import pico_to_usd
from gateway.pricing.selling import Book, Sale
from gateway.recording.facts import PriceFacts, price_facts
from gateway.recording.journaled import Journaled, ended_unix_ns, journaled
from gateway.recording.revision import (
    Rated,
    differs,
    pico_of_usd,
    rated_of_bill,
    rated_of_revision,
    rerated,
    revision,
)
from otel.journal import JournalWriter
from otel.journal.audit.reconcile import MANIFEST, Removed
from otel.journal.cursor import Cursor
from otel.journal.files import Files
from otel.journal.reader import Batch, Reader
from otel.journal.segments import day_of, revises
from otel.journal.turn import Lock
from otel.schema import encode_span

LOCK: Final = "rerating"
FREE: Final = "none"
"""Price id of a bill that provably cost nothing: an error of the provider, or a free door."""
BATCH_LINES: Final = 500
BATCH_BYTES: Final = 4 * 1024 * 1024
UNSYNCED_MAX: Final = 2_000
"""Revisions that wait for a sync before the next is written."""
READS_MAX: Final = 1_000
"""Times that reading goes on after retention took a segment away meanwhile; each time one is gone."""
NS: Final = 1_000_000_000
_MODELS: Final = ("gen_ai.request.model", "billing.target.model", "gen_ai.response.model")

Progress = Callable[[int, int], None]
"""(bytes read, bytes in all)"""


class AlreadyRerating(Exception):
    """Another process writes revisions of this journal."""


class DamagedRevisions(Exception):
    """A revision cannot be read: what its bill came to, and the next number, are not known."""


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """Which bills: by their end, in Unix seconds, until before the second; by model and user, None for all.

    Args:
        model: as requested, as the provider was asked, or as it named the one that served.
        user: id or name.
    """

    from_unix_s: int
    until_unix_s: int
    model: str | None = None
    user: str | None = None


class Sums(msgspec.Struct, kw_only=True):
    """Bills of one row; money in pico-USD. `without_*`: how many have no cost and add nothing to a sum."""

    bills: int = 0
    revised: int = 0
    without_old: int = 0
    without_new: int = 0
    old_pico_usd: int = 0
    new_pico_usd: int = 0

    def add(self, old: Rated, new: Rated, old_pico_usd: int, new_pico_usd: int) -> None:
        """Add one bill."""
        self.bills += 1
        self.revised += old is not new
        self.without_old += old.cost_usd is None
        self.without_new += new.cost_usd is None
        self.old_pico_usd += old_pico_usd
        self.new_pico_usd += new_pico_usd


class Outcome(msgspec.Struct, kw_only=True):
    """What a run came to.

    Args:
        read: bills in the journal, whatever their time.
        skipped: bills of the selection that were not rated, by reason.
        status: (before, after) -> bills of the selection.
        removed: bills in segments of the range's days that retention has removed.
        damaged: stretches that cannot be read.
    """

    catalog: str
    read: int = 0
    total: Sums = msgspec.field(default_factory=Sums)
    by_model: dict[str, Sums] = {}
    by_user: dict[str, Sums] = {}
    by_day: dict[str, Sums] = {}
    status: Counter[tuple[str, str]] = msgspec.field(default_factory=Counter)
    skipped: Counter[str] = msgspec.field(default_factory=Counter)
    removed: int = 0
    damaged: int = 0


class Rerating:
    """One run over one journal; no I/O.

    Args:
        known: by id of the bill what its newest revision comes to.
    """

    def __init__(self, book: Book, selection: Selection, known: dict[str, Rated]) -> None:
        self.outcome = Outcome(catalog=book.catalogue.hash)
        self._book = book
        self._selection = selection
        self._known = known
        self._from_ns = selection.from_unix_s * NS
        self._until_ns = selection.until_unix_s * NS

    def bill(self, spans: bytes) -> tuple[str, str] | None:
        """Take one settled line; return the id of its bill and the revision that is due, as a record's body.

        Raises:
            ValueError: the line is not what a gateway writes.
        """
        self.outcome.read += 1
        if not self._from_ns <= ended_unix_ns(spans) < self._until_ns:
            return None
        bill = journaled(spans)
        if not self._selected(bill):
            return None
        record_id = bill.attributes.get("billing.record.id")
        if not isinstance(record_id, str):
            raise ValueError("a bill without an id")
        old = self._known.get(record_id) or rated_of_bill(bill.attributes)
        facts = self._facts(bill, old)
        if facts is None:
            self._fold(bill, old, old)
            return None
        charge = self._book.charge(sale_of(facts), facts.usage)
        new, stated = rerated(facts.usage, charge, old.number + 1)
        if not differs(old, new):
            self._fold(bill, old, old)
            return None
        self._fold(bill, old, new)
        return record_id, bill.head + encode_span(revision(bill, old, new, stated)) + bill.tail

    def _selected(self, bill: Journaled) -> bool:
        a, wanted = bill.attributes, self._selection
        if wanted.model is not None and wanted.model not in [a.get(name) for name in _MODELS]:
            return False
        return wanted.user is None or wanted.user in (a.get("billing.user.id"), a.get("billing.user.name"))

    def _facts(self, bill: Journaled, old: Rated) -> PriceFacts | None:
        """Return what decides the price; None, counted with the reason, where nothing is to be decided."""
        if old.status == "unmetered":
            self.outcome.skipped["unmetered: nothing was counted"] += 1
            return None
        if old.price_id == FREE:
            self.outcome.skipped["free of charge"] += 1
            return None
        facts = price_facts(bill.attributes, bill.ended_unix_ns)
        if facts is None:
            self.outcome.skipped["without the facts that decide a price"] += 1
        return facts

    def _fold(self, bill: Journaled, old: Rated, new: Rated) -> None:
        a, found = bill.attributes, self.outcome
        old_pico = pico_of_usd(old.cost_usd)
        new_pico = old_pico if new is old else pico_of_usd(new.cost_usd)
        model = a.get("gen_ai.response.model") or a.get("billing.target.model") or a["gen_ai.request.model"]
        day = datetime.datetime.fromtimestamp(bill.ended_unix_ns // NS, datetime.UTC).date().isoformat()
        for rows, key in (
            (found.by_model, f"{a.get('gen_ai.provider.name', '–')}/{model}"),
            (found.by_user, str(a.get("billing.user.id", "–"))),
            (found.by_day, day),
        ):
            rows.setdefault(key, Sums()).add(old, new, old_pico, new_pico)
        found.total.add(old, new, old_pico, new_pico)
        found.status[(old.status, new.status)] += 1


async def rerate(
    directory: Path,
    book: Book,
    selection: Selection,
    writer: Callable[[], JournalWriter] | None,
    *,
    progress: Progress | None = None,
    files: Files | None = None,
) -> Outcome:
    """Rate the selected bills anew, and append a revision of each that comes out otherwise.

    Args:
        writer: makes the writer, asked for once a revision is due; None to write nothing.
        progress: told of (bytes read, bytes in all) now and then.

    Raises:
        AlreadyRerating: another process does this now.
        DamagedRevisions: an earlier revision cannot be read; nothing was written.
        JournalUnavailable: the disk refuses; run again, what is written stays.
        OSError: the journal cannot be read.
    """
    files = files or Files()
    lock = Lock(directory / LOCK)
    if writer is not None and not lock.take():
        raise AlreadyRerating(f"another process rerates the journal in {directory}; wait for its end")
    try:
        run = Rerating(book, selection, known_revisions(directory, files))
        await _write(_due(directory, files, run, progress), writer)
    finally:
        lock.release()
    run.outcome.removed = _removed(directory, selection, files)
    return run.outcome


async def _write(due: Iterator[tuple[str, str]], make: Callable[[], JournalWriter] | None) -> None:
    if make is None:
        for _ in due:
            pass
        return
    writer: JournalWriter | None = None
    try:
        for count, (record_id, body) in enumerate(due):
            if writer is None:
                writer = make()
                writer.open()
                writer.tend()  # a disk that is nearly full is left to the gateways
            number = writer.append("R", record_id, body)
            if count % UNSYNCED_MAX == UNSYNCED_MAX - 1:
                await writer.durable(number)
                writer.tend()
        if writer is not None:
            await writer.durable(writer.number)
    finally:
        if writer is not None:
            writer.close()


def known_revisions(directory: Path, files: Files) -> dict[str, Rated]:
    """Return, by id of the bill, what its newest revision comes to.

    Raises:
        DamagedRevisions: one cannot be read.
        OSError: the journal cannot be read.
    """
    known: dict[str, Rated] = {}
    for batch in _batches(directory, files, revises):
        if any(damage.reason != "torn" for damage in batch.damage):
            raise DamagedRevisions(batch.segment)
        for spans in batch.spans:
            try:
                record_id, rated = rated_of_revision(journaled(spans).attributes)
            except ValueError as fault:
                raise DamagedRevisions(batch.segment) from fault
            before = known.get(record_id)
            if before is None or before.number < rated.number:
                known[record_id] = rated
    return known


def _due(
    directory: Path, files: Files, run: Rerating, progress: Progress | None
) -> Iterator[tuple[str, str]]:
    for batch in _batches(directory, files, lambda writer: not revises(writer), progress):
        run.outcome.damaged += sum(damage.reason != "torn" for damage in batch.damage)
        for spans in batch.spans:
            try:
                due = run.bill(spans)
            except ValueError:  # `spanbill verify` says what is wrong with it
                run.outcome.skipped["not to be read: see `spanbill verify`"] += 1
                continue
            if due is not None:
                yield due


def _batches(
    directory: Path, files: Files, wanted: Callable[[str], bool], progress: Progress | None = None
) -> Iterator[Batch]:
    """Yield what is durable now; what retention removes meanwhile is passed over."""
    cursor = Cursor(directory / "cursors" / "rerate.never-saved", files)  # this process's own: begins anew
    reader = Reader(directory, cursor, files)
    total: int | None = None
    for _ in range(READS_MAX):
        try:
            for batch in reader.batches(BATCH_LINES, BATCH_BYTES, wanted):
                cursor.move(batch.segment, batch.end, batch.writer, batch.seen)
                left = reader.pending_bytes()
                total = left if total is None else max(total, left)
                if progress is not None:
                    progress(total - left, total)
                yield batch
        except FileNotFoundError:
            continue
        return


def _removed(directory: Path, selection: Selection, files: Files) -> int:
    """Return how many bills stood in segments of the range's days that retention has removed."""
    path = directory / MANIFEST
    first, last = day_of(selection.from_unix_s * NS), day_of(selection.until_unix_s * NS - 1)
    bills = 0
    try:
        lines = files.read(path, 0, files.size(path)).splitlines()
    except FileNotFoundError:
        return 0
    for line in lines:
        try:
            entry = msgspec.json.decode(line, type=Removed)
        except ValueError:
            continue  # `spanbill verify` reports it
        if first <= entry.segment.partition("/")[0] <= last:
            bills += entry.bills
    return bills


def sale_of(facts: PriceFacts) -> Sale:
    """Return the facts as a sale."""
    return Sale(
        provider=facts.provider,
        section=facts.section,
        model=facts.model,
        served=facts.served,
        key_id=facts.key_id,
        team=facts.team,
        at_unix_s=facts.at_unix_s,
    )


def usd(sums: Sums) -> tuple[str, str, str]:
    """Return old and new cost and their exact difference in USD."""
    return (
        pico_to_usd(sums.old_pico_usd),
        pico_to_usd(sums.new_pico_usd),
        pico_to_usd(sums.new_pico_usd - sums.old_pico_usd),
    )
