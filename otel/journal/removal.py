"""Removal: takes away what `retention` lets go, and writes down first what it held.

    plan ──▶ read the segment ──▶ a line in removed.jsonl, durable ──▶ the segment's name goes
                          └──▶ a copy in the archive, proved (if there is one)

`verify` proves with that file that nothing else is missing. A crash in between leaves a line for a segment
that is still here; the next run finds both and removes it. It runs in a thread of its own, seldom, and gives
way to requests while it reads. Links, and files that are no segments, are never touched.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from otel.journal import cursor
from otel.journal.archive import Archive, NotTheSame
from otel.journal.audit.reconcile import MANIFEST, Removed
from otel.journal.audit.sequence import name_parts
from otel.journal.files import Files, reason_of
from otel.journal.lines import Damage, Header, chain, kind_of, number_of
from otel.journal.recovery import header_at, items_in
from otel.journal.retention import Folder, Plan, Policy, Segment, Writer, plan
from otel.journal.segments import MARKS, SUFFIX, day_of, name_of, segments_in
from otel.journal.turn import Lock

log = logging.getLogger("spanbill.journal")

EVERY_S: Final = 600.0
SEGMENTS_A_RUN: Final = 64
"""A run removes no more than so many; where more are due, the next one follows after MORE_S."""
MORE_S: Final = 1.0
LINES_A_TURN: Final = 64
TURN_S: Final = 0.002
"""After so many lines read, the processor belongs to requests for so long; reading them takes 1 ms or so."""
SMALL_FILE_BYTES_MAX: Final = 256 * 1024 * 1024
"""The manifest and the quarantine are read up to this size; beyond it nothing is removed."""
DAY_NS: Final = 86_400 * 1_000_000_000

_COST: Final = re.compile(rb'"billing\.cost\.usd","value":\{"stringValue":"([0-9]+)(?:\.([0-9]{1,12}))?"')
"""The amount of a settled line; inside a string of JSON its quotes would be escaped."""
_QUARANTINED: Final = re.compile(rb'"segment":"([^"\\]+)"')


class NotSure(Exception):
    """Something that must be known before anything is removed cannot be; the message says what."""


class Retention(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator wants kept.

    Args:
        days: segments of the last so many days, besides today; None keeps all.
        bytes_max: what all segments together may take; None sets no bound.
    """

    days: int | None = None
    bytes_max: int | None = None


class Remover:
    """Removes segments from one journal folder; the caller holds its lock.

    Args:
        consumers: names of cursors that must exist; others in the folder count as well.
        asked: consumers that keep their cursors elsewhere, by name: each returns what it has passed, durably,
            or None where it cannot say.
        lead: of several workers the one that has it removes; None where there is no other.
        archive: where a segment is copied to before it goes; None where it just goes.
        now_ns: wall clock in Unix nanoseconds.
        pause: gives way to other threads.
    """

    def __init__(
        self,
        directory: Path,
        retention: Retention,
        *,
        consumers: frozenset[str],
        asked: Mapping[str, Callable[[], Mapping[str, int] | None]] | None = None,
        lead: Lock | None = None,
        archive: Archive | None = None,
        now_ns: Callable[[], int] = time.time_ns,
        files: Files | None = None,
        pause: Callable[[], None] = lambda: time.sleep(TURN_S),
    ) -> None:
        self.removed = 0
        self._directory = directory
        self._retention = retention
        self._consumers = consumers
        self._asked = asked or {}
        self._lead = lead
        self.archive = archive
        self._now_ns = now_ns
        self._files = files or Files()
        self._pause = pause
        self._headers: dict[str, Header | None] = {}
        self._damaged: set[str] = set()
        self._told: Mapping[str, str] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Run now and then in a thread until `stop`."""
        self._thread = threading.Thread(target=self._loop, name="retention", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Stop after the segment in hand, for which is waited at most `timeout_s`."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=timeout_s)

    def _loop(self) -> None:
        wait_s = 0.0
        while not self._stop.wait(wait_s):  # ends with stop()
            try:
                if self._lead is not None and not self._lead.take():
                    wait_s = EVERY_S
                    continue
                wait_s = MORE_S if self.run() == SEGMENTS_A_RUN else EVERY_S
            except (OSError, NotSure, NotTheSame) as fault:
                why = reason_of(fault) if isinstance(fault, OSError) else str(fault)
                log.error("old segments cannot be removed now", extra={"why": why})
                wait_s = EVERY_S

    def run(self) -> int:
        """Remove what may go, at most SEGMENTS_A_RUN segments; return how many went.

        Raises:
            OSError: the folder cannot be read or written; what was not noted durably is still here.
            NotTheSame: a copy for the archive is not what it should be; its segment is still here.
        """
        gone = 0
        if self.archive is not None and self.archive.days is not None:
            self.archive.expire(day_of(self._now_ns() - self.archive.days * DAY_NS))
        found = self._plan(SEGMENTS_A_RUN)
        manifest = self._manifest() if found.remove else {}
        todo = list(reversed(found.remove))
        while todo and not self._stop.is_set():  # each turn removes a segment, or finds damage in one
            if self._remove(todo[-1], manifest):
                todo.pop()
                gone += 1
                self.removed += 1
            else:
                found = self._plan(SEGMENTS_A_RUN - gone)
                todo = list(reversed(found.remove))
        if gone:
            log.info("old segments were removed", extra={"segments": gone})
        if found.held and found.held != self._told:
            log.warning("old segments stay, and all behind them", extra={"why": dict(found.held)})
        self._told = found.held
        return gone

    # what is there

    def _plan(self, count_max: int) -> Plan:
        days, bytes_max = self._retention.days, self._retention.bytes_max
        policy = Policy(
            keep_from_day=None if days is None else day_of(self._now_ns() - days * DAY_NS),
            bytes_max=bytes_max,
        )
        segments = self._segments()
        least = plan(_all_may_go(segments), policy, 1)
        if not least.remove:
            return least  # nothing is due: headers, cursors and quarantine need not be read
        return plan(self._folder(segments), policy, count_max)

    def _segments(self) -> tuple[Segment, ...]:
        return tuple(
            Segment(
                name=str(path.relative_to(self._directory)),
                writer=name_of(path).writer,
                number=name_of(path).number,
                bytes=self._files.size(path),
                plain=self._files.is_plain(path),
            )
            for path in segments_in(self._directory, self._files)
        )

    def _folder(self, segments: tuple[Segment, ...]) -> Folder:
        names = {segment.name for segment in segments}
        self._headers = {name: header for name, header in self._headers.items() if name in names}
        self._damaged &= names
        marks = {path.name for path in self._files.find(self._directory, f"{MARKS}/*")}
        oldest_open: dict[str, int] = {}
        billed_for: dict[str, set[str]] = {}
        for segment in sorted(segments, key=lambda s: s.number):  # the newest header is the last to speak
            header = self._header(segment.name)
            own = billed_for.setdefault(segment.writer, set())
            if header is not None:
                oldest_open[segment.writer] = header.oldest_open
                own.update(header.sealed)
        return Folder(
            segments=segments,
            writers={
                writer: Writer(
                    retired=writer not in marks,
                    oldest_open=oldest_open.get(writer),
                    billed_for=frozenset(others),
                )
                for writer, others in billed_for.items()
            },
            consumers=self._passed(),
            quarantined=self._quarantined(),
            damaged=frozenset(self._damaged),
        )

    def _header(self, name: str) -> Header | None:
        if name not in self._headers:
            self._headers[name] = header_at(self._directory / name, self._files)
        return self._headers[name]

    def _passed(self) -> dict[str, Mapping[str, int] | None]:
        found: dict[str, Mapping[str, int] | None] = dict.fromkeys(self._consumers)
        paths = self._files.find(self._directory, "cursors/*.json")
        if paths:
            self._files.sync_directory(
                paths[0].parent
            )  # what is read here must not be undone by a power loss
        for path in paths:
            found[path.stem] = cursor.passed(path, self._files)
        found.update({name: passed() for name, passed in self._asked.items()})
        return found

    def _quarantined(self) -> frozenset[str]:
        found: set[str] = set()
        for path in self._files.find(self._directory, f"quarantine/*{SUFFIX}"):
            found.update(name.decode() for name in _QUARANTINED.findall(self._small_file(path)))
        return frozenset(found)

    def _small_file(self, path: Path) -> bytes:
        size = self._files.size(path)
        if size > SMALL_FILE_BYTES_MAX:
            raise NotSure(f"{path.name} has {size} bytes; at most {SMALL_FILE_BYTES_MAX} are read")
        return self._files.read(path, 0, size)

    # one segment

    def _manifest(self) -> dict[str, Removed]:
        """Return what was removed before; the beginning of a line that a crash cut off is dropped.

        No segment was removed on the strength of such a line, and the next one must not be glued to it.
        """
        path = self._directory / MANIFEST
        try:
            data = self._small_file(path)
        except FileNotFoundError:
            return {}
        if not self._files.is_plain(path):
            raise NotSure(f"{MANIFEST} is a link")
        whole, newline, torn = data.rpartition(b"\n")
        if torn:
            self._files.replace(path, whole + newline)
        found: dict[str, Removed] = {}
        for line in whole.splitlines():
            try:
                entry = msgspec.json.decode(line, type=Removed)
            except msgspec.MsgspecError as fault:
                raise NotSure(f"{MANIFEST} has a line that cannot be read") from fault
            found.setdefault(entry.segment, entry)
        return found

    def _remove(self, segment: Segment, manifest: dict[str, Removed]) -> bool:
        """Note and remove one segment; False if it must stay after all."""
        path = self._directory / segment.name
        held = self._account(segment, path, manifest)
        if held is None:
            self._damaged.add(segment.name)
            return False
        if self.archive is not None:
            self.archive.keep(path, segment.name)
        noted = manifest.get(segment.name)
        if noted is None:
            self._files.append(self._directory / MANIFEST, msgspec.json.encode(held) + b"\n")
            manifest[segment.name] = held
        elif noted != msgspec.structs.replace(held, removed_unix_ns=noted.removed_unix_ns):
            raise NotSure(f"{MANIFEST} has another account of {segment.name}")
        self._files.remove(path)
        if segment.day < day_of(self._now_ns() - DAY_NS):  # nobody makes segments there any more
            self._files.remove_directory(path.parent)
        return True

    def _account(self, segment: Segment, path: Path, manifest: Mapping[str, Removed]) -> Removed | None:
        """Return what a segment holds, None if something in it cannot be read."""
        passed = max(
            (e.last for e in manifest.values() if _before(e, segment) and e.last is not None), default=0
        )
        first: int | None = None
        last: int | None = None
        digest = ""
        bills = cost = 0
        for count, found in enumerate(items_in(path, self._files)):
            if count % LINES_A_TURN == 0:
                self._pause()
            if isinstance(found, Damage):
                if found.reason == "torn":
                    continue  # it was never promised, or stands again in the next segment
                return None
            line = found[1]
            if kind_of(line) == "H":
                continue
            number = number_of(line)
            first = number if first is None else first
            last, digest = number, chain(line + b"\n")
            if kind_of(line) == "S" and number > passed:  # else it stands again here after a failed sync
                bills += 1
                cost += _cost_pico_usd(line)
        return Removed(
            segment=segment.name,
            first=first,
            last=last,
            hash=digest,
            bytes=segment.bytes,
            bills=bills,
            cost_pico_usd=str(cost),
            removed_unix_ns=str(self._now_ns()),
            durable=header.durable if (header := self._header(segment.name)) is not None else None,
        )


def _before(entry: Removed, segment: Segment) -> bool:
    parts = name_parts(entry.file)
    return parts is not None and parts[0] == segment.writer and parts[1] < segment.number


def _all_may_go(segments: tuple[Segment, ...]) -> Folder:
    """Return a folder in which nothing but the policy holds a segment."""
    return Folder(
        segments=tuple(msgspec.structs.replace(segment, plain=True) for segment in segments),
        writers={segment.writer: Writer(retired=True, oldest_open=None) for segment in segments},
        consumers={"": {segment.name: segment.bytes for segment in segments}},
    )


def _cost_pico_usd(line: bytes) -> int:
    """Return what a settled line says that it costs; 0 where it has no cost."""
    found = _COST.search(line)
    if found is None:
        return 0
    whole, fraction = found.groups()
    return int(whole) * 10**12 + int((fraction or b"").ljust(12, b"0"))
