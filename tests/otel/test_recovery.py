"""What outlives a writer: evidence of its end, no promise on a removed segment, and no bill written twice."""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from otel.journal import Bounds, JournalWriter
from otel.journal.files import EVERYTHING, Files
from otel.journal.lines import GENESIS, Header, chain, encode_header, encode_line, header_of, parse
from otel.journal.recovery import retire, scan
from otel.journal.segments import mark_of, mark_path, segment_path, segments_in
from otel.journal.syncing import Done, SyncJob, do
from tests.journals import NOON_NS, Book


class FailingWrites(Files):
    """A disk that refuses the next `failing` records; headers it takes."""

    failing = 0
    syncs = 0

    def sync(self, fd: int) -> None:
        super().sync(fd)
        self.syncs += 1

    def write(self, fd: int, data: bytes) -> int:
        if self.failing and not data.startswith(b'{"j":{"k":"H"'):
            self.failing -= 1
            raise OSError(errno.EIO, "bad disk")
        return super().write(fd, data)


class Steps:
    """A syncer that does its next job when it is told to."""

    def __init__(self, files: Files, done: Done) -> None:
        self._files = files
        self._done = done
        self.jobs: list[SyncJob] = []

    def submit(self, job: SyncJob) -> None:
        self.jobs.append(job)

    def soon(self, act: Callable[[], None]) -> None:
        act()

    def step(self) -> None:
        job = self.jobs.pop(0)
        self._done(job, do(self._files, job))

    def close(self) -> None:
        while self.jobs:
            self.step()


class Stepped:
    """A writer whose syncs are done one by one."""

    def __init__(self, folder: Path, files: Files, *, bytes_max: int = 1 << 20) -> None:
        self.syncers: list[Steps] = []
        ids = itertools.count()

        def make(files: Files, done: Done) -> Steps:
            self.syncers.append(Steps(files, done))
            return self.syncers[0]

        self.writer = JournalWriter(
            folder,
            boot="b0",
            now_ns=lambda: NOON_NS,
            segment_id=lambda: f"{next(ids):032x}",
            bounds=Bounds(segment_bytes_max=bytes_max),
            files=files,
            syncer=make,
        )

    def step(self) -> None:
        self.syncers[0].step()


@pytest.fixture
def files() -> Iterator[FailingWrites]:
    files = FailingWrites()
    yield files
    assert files.failing == 0, "the fault did not fire"


def headers(folder: Path) -> list[Header]:
    return [header_of(parse(p.read_bytes().split(b"\n")[0])) for p in segments_in(folder, Files())]


async def test_a_sync_of_a_segment_that_is_removed_promises_nothing(
    tmp_path: Path, files: FailingWrites
) -> None:
    stepped = Stepped(tmp_path, files)
    writer = stepped.writer
    writer.open()
    first = writer.append("I", "first", "{}")
    files.failing = 1
    writer.append("I", "second", "{}")
    assert [path.name for path in segments_in(tmp_path, files)] == ["b0-0-000002.jsonl"]
    waiting = asyncio.ensure_future(writer.durable(first))
    await asyncio.sleep(0)
    stepped.step()  # it began before the write failed, and its segment's name is gone
    await asyncio.sleep(0)
    assert not waiting.done()
    assert files.held(mark_path(tmp_path, writer.name)) == 0
    stepped.step()
    await waiting
    assert (files.held(mark_path(tmp_path, writer.name)) or 0) > mark_of(2, 0)
    writer.close()


async def test_what_a_boot_saw_of_the_dead_is_durable_and_stays(tmp_path: Path, files: FailingWrites) -> None:
    stepped = Stepped(tmp_path, files)
    stepped.writer.open({"dead-0": (7, "a" * 16)})
    assert files.syncs == 1
    files.failing = 1
    stepped.writer.append("I", "r", "{}")
    stepped.writer.close()
    assert [header.sealed for header in headers(tmp_path)] == [{"dead-0": (7, "a" * 16)}, {}]


async def test_a_header_says_how_much_was_durable_before_it(tmp_path: Path) -> None:
    stepped = Stepped(tmp_path, Files(), bytes_max=2300)
    writer = stepped.writer
    writer.open()
    body = json.dumps({"pad": "x" * 500})
    writer.append("I", "r1", body)
    stepped.step()
    writer.append("I", "r2", body)
    writer.append("I", "r3", body)
    writer.close()
    assert [(header.segment, header.durable) for header in headers(tmp_path)] == [(1, 0), (2, 1)]


@pytest.mark.parametrize(("mark", "head"), [(0, 1), (mark_of(2, 1), 3), (EVERYTHING, 3)])
async def test_what_lacks_at_a_writers_end_was_lost_only_if_it_was_never_promised(
    tmp_path: Path, mark: int, head: int
) -> None:
    """Record 2 lacks, 3 stands in the next segment: a power loss does that to what no sync has reached."""
    stepped = Stepped(tmp_path, Files(), bytes_max=2300)
    stepped.writer.open()
    for number in (1, 2, 3):
        stepped.writer.append("I", f"r{number}", json.dumps({"pad": "x" * 500}))
    stepped.writer.close()
    first, _ = segments_in(tmp_path, Files())
    first.write_bytes(b"".join(first.read_bytes().splitlines(keepends=True)[:2]))
    mark_path(tmp_path, "b0-0").write_bytes(mark.to_bytes(8, "little") * 2)
    found = scan(tmp_path, Files())
    assert {writer: number for writer, (number, _) in found.heads.items()} == {"b0-0": head}
    assert [intent.record_id for intent in found.open_intents] == ["r1", "r3"]


async def test_a_copy_of_older_progress_does_not_take_the_newer_ones_place(tmp_path: Path) -> None:
    """After a failed sync records are written again; a kill within that leaves only the first of them."""
    stepped = Stepped(tmp_path, Files(), bytes_max=1100)
    stepped.writer.open()
    stepped.writer.append("I", "r", "{}")
    stepped.writer.append("P", "r", '{"n":1}')
    stepped.writer.append("P", "r", '{"n":2}')
    stepped.writer.append("I", "s", json.dumps({"pad": "x" * 500}))
    stepped.writer.close()
    first, second = segments_in(tmp_path, Files())
    lines = first.read_bytes().splitlines(keepends=True)
    assert [parse(line.rstrip()).k for line in lines] == ["H", "I", "P", "P"]
    second.write_bytes(second.read_bytes().splitlines(keepends=True)[0] + lines[2])
    (found,) = scan(tmp_path, Files()).open_intents
    assert (found.record_id, found.progress) == ("r", b'{"n":2}')


@pytest.mark.parametrize(("mark", "head"), [(0, 1), (EVERYTHING, 2)])
async def test_a_promised_record_that_is_damaged_at_the_end_is_counted(
    tmp_path: Path, mark: int, head: int
) -> None:
    stepped = Stepped(tmp_path, Files())
    stepped.writer.open()
    for number in (1, 2):
        stepped.writer.append("I", f"r{number}", "{}")
    stepped.writer.close()
    (path,) = segments_in(tmp_path, Files())
    path.write_bytes(path.read_bytes()[:-20] + b"?" * 19 + b"\n")
    mark_path(tmp_path, "b0-0").write_bytes(mark.to_bytes(8, "little") * 2)
    assert scan(tmp_path, Files()).heads["b0-0"][0] == head


async def test_a_recovery_that_died_is_forgotten_after_those_whom_it_billed(tmp_path: Path) -> None:
    """Its bills are found only for as long as its mark is there, and retiring can be killed half-way."""
    with Book(tmp_path, "z") as book:
        await book.durable(book.intent(1))
    with Book(tmp_path, "a") as book:
        await book.durable(book.bill(1, recovered=True))
    found = scan(tmp_path, Files())
    assert found.dead == ("z-0", "a-0")
    for count in (1, 2):
        retire(tmp_path, found.dead[:count], Files())
        assert scan(tmp_path, Files()).open_intents == ()


class EmptiedBySync(Files):
    """A disk that never had what stands in the cache of one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.emptied = 0

    def sync_file(self, path: Path) -> None:
        super().sync_file(path)
        if path == self.path and path.stat().st_size:
            path.write_bytes(b"")
            self.emptied += 1


def test_a_header_that_a_power_loss_could_still_take_hides_nothing_before_it(tmp_path: Path) -> None:
    """It says that recovery may begin with it; then the sync shows that the disk never had it."""
    paths = [segment_path(tmp_path, NOON_NS, "b0-0", number) for number in (1, 2)]
    previous = GENESIS
    for number, path in enumerate(paths, start=1):
        header = Header(
            boot="b0",
            worker=0,
            segment=number,
            previous_segment=None if number == 1 else paths[0].name,
            created_unix_ns=str(NOON_NS),
            oldest_open=number,
        )
        line = encode_line("I", f"r{number}", number, previous, "{}")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode_header(f"{number:032x}", number, previous, header) + line)
        previous = chain(line)
    files = EmptiedBySync(paths[1])
    files.close(files.hold(mark_path(tmp_path, "b0-0")))
    assert [intent.record_id for intent in scan(tmp_path, files).open_intents] == ["r1"]
    assert files.emptied == 1


def test_a_segment_that_was_passed_over_says_nothing_of_how_far_its_writer_came(tmp_path: Path) -> None:
    """Its writer removed it, and a power loss brought it back."""
    files = Files()

    def write(number: int, first: int, previous: str, previous_segment: str | None, count: int) -> str:
        header = Header(
            boot="b0",
            worker=0,
            segment=number,
            previous_segment=previous_segment,
            created_unix_ns=str(NOON_NS),
            oldest_open=1,
            durable=2,
        )
        data = [encode_header(f"{number:032x}", first, previous, header)]
        for n in range(first, first + count):
            data.append(encode_line("I", f"r{n}", n, previous, "{}"))
            previous = chain(data[-1])
        path = segment_path(tmp_path, NOON_NS, "b0-0", number)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"".join(data))
        return previous

    second = write(1, 1, GENESIS, None, 2)
    write(2, 5, "0123456789abcdef", "b0-0-000001.jsonl", 1)
    third = write(3, 3, second, "b0-0-000001.jsonl", 1)
    newest = segment_path(tmp_path, NOON_NS, "b0-0", 3)
    fd = files.hold(mark_path(tmp_path, "b0-0"))
    files.mark(fd, mark_of(3, newest.stat().st_size))
    files.close(fd)
    assert scan(tmp_path, files).heads == {"b0-0": (3, third)}
