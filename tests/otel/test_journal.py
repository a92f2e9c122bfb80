"""The journal keeps its word: whole lines survive any cut, syncs precede promises, faults lose nothing."""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel.journal import Bounds, JournalUnavailable, JournalWriter
from otel.journal.cursor import Cursor
from otel.journal.files import EVERYTHING, Files
from otel.journal.lines import (
    GENESIS,
    Damage,
    chain,
    encode_line,
    header_of,
    lines_in,
    parse,
    previous_of,
    spans_of,
)
from otel.journal.reader import Reader
from otel.journal.segments import JournalLocked, locked, mark_path, segments_in

DAY_NS = 86_400 * 10**9
NOON_NS = 20_000 * DAY_NS + DAY_NS // 2


class FaultyFiles(Files):
    """A real file system whose operations can be broken to order; `log` says what happened in which order."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.short_writes = 0
        self.failing_writes = 0
        self.failing_syncs = 0
        self.failing_creates = 0
        self.gate: threading.Event | None = None

    def create(self, path: Path) -> int:
        if self.failing_creates:
            self.failing_creates -= 1
            self.log.append("create!")
            raise OSError(errno.ENOSPC, "full")
        return super().create(path)

    def write(self, fd: int, data: bytes) -> int:
        if data.startswith(b'{"j":{"k":"H"'):
            return super().write(fd, data)
        if self.short_writes:
            self.short_writes -= 1
            self.log.append("short!")
            return super().write(fd, data[: len(data) // 2])
        if self.failing_writes:
            self.failing_writes -= 1
            self.log.append("write!")
            raise OSError(errno.EIO, "bad disk")
        self.log.append("write")
        return super().write(fd, data)

    def sync(self, fd: int) -> None:
        if self.gate is not None:
            assert self.gate.wait(10)
        if self.failing_syncs:
            self.failing_syncs -= 1
            self.log.append("sync!")
            raise OSError(errno.EIO, "bad disk")
        super().sync(fd)
        self.log.append("sync")


def writer_in(folder: Path, files: Files, **options: object) -> JournalWriter:
    ids = itertools.count()
    options.setdefault("now_ns", lambda: NOON_NS)
    writer = JournalWriter(
        folder,
        boot="b0",
        segment_id=lambda: f"{next(ids):032x}",
        files=files,
        **options,  # type: ignore[arg-type]
    )
    writer.open()
    return writer


def readable_mark(folder: Path, writer: JournalWriter) -> int | None:
    return Files().held(mark_path(folder, writer.name))


def whole_lines(folder: Path) -> list[bytes]:
    """Return all whole records of all segments, headers left out, duplicates included."""
    items = [item for path in segments_in(folder, Files()) for item in lines_in(path.read_bytes())]
    lines = [item[1] for item in items if not isinstance(item, Damage)]
    return [line for line in lines if parse(line).k != "H"]


def bodies(folder: Path) -> list[str]:
    unique = list(dict.fromkeys(whole_lines(folder)))
    return [parse(line).id for line in unique]


LINES = [encode_line("S", f"id-{n}", n, GENESIS, json.dumps({"n": n, "text": "ü" * n})) for n in range(1, 6)]
SEGMENT = b"".join(LINES)


@given(st.integers(min_value=0, max_value=len(SEGMENT)))
def test_a_segment_cut_at_any_byte_keeps_every_whole_line(cut: int) -> None:
    found = list(lines_in(SEGMENT[:cut]))
    kept = [item[1] for item in found if not isinstance(item, Damage)]
    ends = list(itertools.accumulate(map(len, LINES)))
    assert kept == [line[:-1] for line, end in zip(LINES, ends, strict=True) if end <= cut]
    torn = [item for item in found if isinstance(item, Damage)]
    assert bool(torn) is (cut not in (0, *ends))


@given(st.integers(min_value=0, max_value=len(SEGMENT) - 1), st.integers(min_value=1, max_value=255))
def test_a_changed_byte_is_found_and_named_and_hides_no_later_line(at: int, change: int) -> None:
    data = bytearray(SEGMENT)
    data[at] ^= change
    found = list(lines_in(bytes(data)))
    damage = [item for item in found if isinstance(item, Damage)]
    assert damage
    assert any(item.offset <= at < item.offset + item.length for item in damage)
    kept = {item[1] for item in found if not isinstance(item, Damage)}
    hit = sum(1 for end in itertools.accumulate(map(len, LINES)) if end <= at)
    assert {line[:-1] for line in LINES[hit + 2 :]} <= kept


def test_a_settled_line_is_plain_otlp_json_and_others_hold_no_span() -> None:
    line = encode_line("S", "id", 1, GENESIS, '{"a":1}')[:-1]
    assert json.loads(line)["resourceSpans"] == [{"a": 1}]
    assert spans_of(line) == b'{"a":1}'
    intent = encode_line("I", "id", 1, GENESIS, '{"x":"resourceSpans"}')[:-1]
    assert "resourceSpans" not in json.loads(intent)
    assert spans_of(intent) is None


async def test_records_are_numbered_and_chained_without_a_gap(tmp_path: Path) -> None:
    writer = writer_in(tmp_path, Files(), bounds=Bounds(segment_bytes_max=4096))
    for n in range(50):
        await writer.durable(writer.append("I", f"r{n}", json.dumps({"pad": "x" * 300})))
    writer.close()
    assert len(segments_in(tmp_path, Files())) > 3
    lines = [line + b"\n" for line in whole_lines(tmp_path)]
    assert [parse(line).n for line in lines] == list(range(1, 51))
    assert [previous_of(line) for line in lines[1:]] == [chain(line) for line in lines[:-1]]


async def test_durable_returns_only_after_a_sync_that_began_after_the_write(tmp_path: Path) -> None:
    files = FaultyFiles()
    writer = writer_in(tmp_path, files)
    files.gate = threading.Event()
    waiting = asyncio.ensure_future(writer.durable(writer.append("I", "first", "{}")))
    await asyncio.sleep(0)  # the first sync is under way and stands at the gate
    later = asyncio.ensure_future(writer.durable(writer.append("I", "second", "{}")))
    await asyncio.sleep(0)
    assert not waiting.done()
    assert readable_mark(tmp_path, writer) == 0
    files.gate.set()
    await asyncio.gather(waiting, later)
    assert files.log == ["write", "write", "sync", "sync"]
    writer.close()


async def test_many_waiters_share_a_sync(tmp_path: Path) -> None:
    writer = writer_in(tmp_path, Files())
    await asyncio.gather(*(writer.durable(writer.append("I", f"r{n}", "{}")) for n in range(500)))
    assert writer.syncs < 10
    writer.close()


async def test_process_durability_waits_for_no_sync(tmp_path: Path) -> None:
    writer = writer_in(tmp_path, Files(), durability="process")
    await writer.durable(writer.append("I", "r", "{}"))
    assert writer.syncs == 0
    assert readable_mark(tmp_path, writer) == EVERYTHING
    writer.close()


async def test_bills_of_a_turn_are_one_write_at_process_and_nobody_is_told_before_it(tmp_path: Path) -> None:
    files = FaultyFiles()
    writer = writer_in(tmp_path, files, durability="process")
    waiting = [writer.durable(writer.append("S", f"r{n}", "{}")) for n in range(3)]
    assert files.log == []
    await waiting[0]
    assert files.log == ["write"]
    await asyncio.gather(*waiting[1:])
    assert files.log == ["write"]
    assert bodies(tmp_path) == ["r0", "r1", "r2"]
    writer.close()


async def test_an_intent_takes_the_bills_of_its_turn_along_at_process(tmp_path: Path) -> None:
    files = FaultyFiles()
    writer = writer_in(tmp_path, files, durability="process")
    bill = writer.append("S", "before", "{}")
    writer.append("I", "after", "{}")
    assert files.log == ["write"]
    assert bodies(tmp_path) == ["before", "after"]
    await writer.durable(bill)
    assert files.log == ["write"]
    writer.close()


async def test_a_bill_whose_write_fails_at_process_is_told_once_the_next_segment_has_it(
    tmp_path: Path,
) -> None:
    files = FaultyFiles()
    writer = writer_in(tmp_path, files, durability="process")
    files.failing_writes = 1
    await writer.durable(writer.append("S", "hit", "{}"))
    assert "write!" in files.log, "the fault did not fire"
    assert bodies(tmp_path) == ["hit"]
    files.failing_writes, files.failing_creates = 1, 10
    with pytest.raises(JournalUnavailable):
        await writer.durable(writer.append("S", "owed", "{}"))
    assert files.log.count("create!") == 3, "the fault did not fire"
    assert bodies(tmp_path) == ["hit"]
    files.failing_creates = 0
    writer.close()
    assert bodies(tmp_path) == ["hit", "owed"]


async def test_strict_durability_syncs_each_record(tmp_path: Path) -> None:
    writer = writer_in(tmp_path, Files(), durability="strict")
    await asyncio.gather(*(writer.durable(writer.append("I", f"r{n}", "{}")) for n in range(20)))
    assert writer.syncs == 20
    writer.close()


@pytest.mark.parametrize("fault", ["short_writes", "failing_writes"])
async def test_after_a_failed_write_the_record_stands_whole_in_the_next_segment(
    tmp_path: Path, fault: str
) -> None:
    files = FaultyFiles()
    writer = writer_in(tmp_path, files)
    await writer.durable(writer.append("I", "before", "{}"))
    setattr(files, fault, 1)
    await writer.durable(writer.append("I", "hit", "{}"))
    await writer.durable(writer.append("I", "after", "{}"))
    writer.close()
    assert {"short!", "write!"} & set(files.log), "the fault did not fire"
    assert len(segments_in(tmp_path, Files())) == 2
    assert bodies(tmp_path) == ["before", "hit", "after"]


async def test_after_a_failed_sync_the_same_lines_are_written_again_byte_for_byte(tmp_path: Path) -> None:
    files = FaultyFiles()
    writer = writer_in(tmp_path, files)
    await writer.durable(writer.append("I", "kept", "{}"))
    files.failing_syncs = 1
    await asyncio.gather(*(writer.durable(writer.append("I", f"r{n}", "{}")) for n in range(3)))
    writer.close()
    assert "sync!" in files.log, "the fault did not fire"
    kept, *lines = whole_lines(tmp_path)
    assert b'"kept"' in kept
    assert len(lines) == 6
    assert lines[:3] == lines[3:]


async def test_a_full_disk_refuses_at_once_and_service_resumes_by_itself(tmp_path: Path) -> None:
    files, now = FaultyFiles(), [NOON_NS]
    writer = writer_in(tmp_path, files, now_ns=lambda: now[0])
    await writer.durable(writer.append("I", "before", "{}"))
    files.failing_writes, files.failing_creates = 1, 10
    with pytest.raises(JournalUnavailable, match="ENOSPC") as first:
        writer.append("I", "tried", "{}")
    assert first.value.owed, "it was numbered, and may be on the disk"
    assert files.log.count("create!") == 3, "the fault did not fire"
    assert writer.fault is not None
    with pytest.raises(JournalUnavailable) as second:
        writer.append("I", "refused-at-once", "{}")
    assert not second.value.owed
    assert files.log.count("create!") == 3, "an unavailable writer must not touch the disk for every request"
    files.failing_creates = 0
    now[0] += 10**9
    await writer.durable(writer.append("I", "after", "{}"))
    assert writer.fault is None
    writer.close()
    assert bodies(tmp_path) == ["before", "tried", "after"]


class SmallDisk(Files):
    """A disk with room for one file of `ROOM` bytes and what was set aside for it."""

    ROOM = 200_000
    refused = 0
    taken = 0

    def free_bytes(self, directory: Path) -> int:
        return self.ROOM - self.taken

    def _take(self, end: int) -> None:
        if end > self.ROOM:
            self.refused += 1
            raise OSError(errno.ENOSPC, "full")
        self.taken = max(self.taken, end)

    def reserve(self, fd: int, offset: int, length: int) -> bool:
        self._take(offset + length)
        return True

    def write(self, fd: int, data: bytes) -> int:
        self._take(os.fstat(fd).st_size + len(data))
        return super().write(fd, data)


async def test_what_was_admitted_before_the_disk_was_full_has_room_for_all_its_bills(tmp_path: Path) -> None:
    files = SmallDisk()
    writer = writer_in(tmp_path, files)
    admitted: list[str] = []

    def admit(count: int) -> None:
        for number in range(count):
            writer.append("I", f"r{number}", "{}")
            admitted.append(f"r{number}")

    with pytest.raises(JournalUnavailable, match="ENOSPC"):
        admit(1000)
    assert len(admitted) > 10
    refused = files.refused
    assert refused, "the disk was never full"
    for record_id in admitted:
        await writer.durable(writer.append("S", record_id, json.dumps({"pad": "x" * 7500})))
    assert files.refused == refused
    assert len(segments_in(tmp_path, files)) == 1
    writer.close()


async def test_what_bills_leave_of_a_full_disk_is_for_progress_and_admits_no_intent(tmp_path: Path) -> None:
    files = SmallDisk()
    writer = writer_in(tmp_path, files)

    def admit(count: int) -> None:
        for number in range(count):
            writer.append("I", f"r{number}", "{}")

    with pytest.raises(JournalUnavailable, match="ENOSPC"):
        admit(1000)
    for number in range(10):
        writer.append("S", f"r{number}", "{}")
    files.taken = files.ROOM  # others took the rest
    for _ in range(3):
        writer.tend()
        with pytest.raises(JournalUnavailable, match="ENOSPC"):
            writer.append("I", "r", "{}")
    refused = files.refused
    for _ in range(20):
        writer.append("P", "r10", "{}")
    assert files.refused == refused
    files.ROOM *= 2
    writer.tend()
    await writer.durable(writer.append("I", "r", "{}"))
    writer.close()


class NeverSynced:
    """A syncer of a disk that answers no sync."""

    def submit(self, job: object) -> None:
        pass

    def soon(self, act: Callable[[], None]) -> None:
        act()

    def close(self) -> None:
        pass


async def test_what_waits_for_a_disk_that_does_not_answer_is_bounded_and_bills_are_taken_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("otel.journal.writer.UNDURABLE_MAX", 5)
    writer = writer_in(tmp_path, Files(), syncer=lambda files, done: NeverSynced())
    for number in range(5):
        writer.append("I", f"r{number}", "{}")
    for kind in ("I", "P"):
        with pytest.raises(JournalUnavailable, match="5 records wait for the disk") as refused:
            writer.append(kind, "r0", "{}")  # type: ignore[arg-type]
        assert not refused.value.owed
    assert writer.append("S", "r0", "{}") == 6
    writer.close()


async def test_a_disk_that_cannot_sync_fails_those_who_wait(tmp_path: Path) -> None:
    files = FaultyFiles()
    writer = writer_in(tmp_path, files)
    number = writer.append("I", "r", "{}")
    files.failing_syncs = 100
    with pytest.raises(JournalUnavailable):
        await writer.durable(number)
    assert files.log.count("sync!") >= 3, "the fault did not fire"
    files.failing_syncs = 0
    writer.close()


def test_a_second_gateway_on_the_folder_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(JournalLocked, match=str(os.getpid())), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


async def test_a_reader_stops_at_the_durable_position(tmp_path: Path) -> None:
    files = FaultyFiles()
    writer = writer_in(tmp_path, files)
    reader = Reader(tmp_path, Cursor(tmp_path / "cursor.json"))
    await writer.durable(writer.append("S", "synced", '{"a":1}'))
    files.gate = threading.Event()
    waiting = asyncio.ensure_future(writer.durable(writer.append("S", "not-synced", '{"b":2}')))
    await asyncio.sleep(0)
    assert [batch.spans for batch in reader.batches(10, 10**6)] == [(b'{"a":1}',)]
    files.gate.set()
    await waiting
    assert [batch.spans for batch in reader.batches(1, 10**6)] == [(b'{"a":1}',), (b'{"b":2}',)]
    writer.close()


@pytest.mark.parametrize(
    "contents",
    [b"garbage", b'{"v":2,"offsets":{"segment":77}}', b'{"v":1,"offsets":{"segment":-1}}', b'{"v":1}'],
)
def test_a_cursor_that_cannot_be_read_starts_over(tmp_path: Path, contents: bytes) -> None:
    path = tmp_path / "cursor.json"
    cursor = Cursor(path)
    cursor.move("segment", 77)
    cursor.save()
    assert Cursor(path)["segment"] == 77
    path.write_bytes(contents)
    assert Cursor(path)["segment"] == 0
    assert path.with_suffix(".unreadable").read_bytes() == contents


def sealed_in(folder: Path) -> list[dict[str, object]]:
    """Return what each segment's header says of dead writers."""
    found = []
    for path in segments_in(folder, Files()):
        header = header_of(parse(path.read_bytes().split(b"\n", 1)[0]))
        found.append({writer: tuple(head) for writer, head in header.sealed.items()})
    return found


async def test_heads_that_are_taken_over_are_durable_at_once_and_stay(tmp_path: Path) -> None:
    files = FaultyFiles()
    writer = writer_in(tmp_path, files)
    await writer.durable(writer.append("I", "a", "{}"))
    files.log.clear()
    writer.take_over({"dead-1": (7, "a" * 16)})
    assert files.log[0] == "sync"
    files.failing_syncs = 1
    await writer.durable(writer.append("S", "a", "{}"))
    assert files.failing_syncs == 0, "the fault did not fire"
    writer.close()
    # What the segment held was written again to the next one; but it is the one that has the heads.
    assert sealed_in(tmp_path) == [{}, {"dead-1": (7, "a" * 16)}, {}]


@pytest.mark.parametrize("fault", ["failing_creates", "failing_syncs"])
async def test_a_writer_takes_nothing_over_that_the_disk_does_not(tmp_path: Path, fault: str) -> None:
    files = FaultyFiles()
    writer = writer_in(tmp_path, files)
    await writer.durable(writer.append("I", "a", "{}"))
    setattr(files, fault, 1)
    with pytest.raises(JournalUnavailable):
        writer.take_over({"dead-1": (7, "a" * 16)})
    assert getattr(files, fault) == 0, "the fault did not fire"
    await writer.durable(writer.append("S", "a", "{}"))
    writer.tend()
    writer.take_over({"dead-1": (7, "a" * 16)})
    writer.close()
    assert sealed_in(tmp_path)[-1] == {"dead-1": (7, "a" * 16)}
    assert bodies(tmp_path) == ["a", "a"]
