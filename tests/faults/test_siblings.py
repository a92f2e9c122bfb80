"""A worker recovers a dead sibling beside its own requests: once, whatever the disk does meanwhile."""

from __future__ import annotations

import asyncio
import errno
import itertools
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.core.exchange import Call, Exchange, Identity
from gateway.recorder import JournalRecorder, write_bills
from gateway.siblings import LOOK_S, Siblings
from otel.journal import JournalUnavailable, JournalWriter
from otel.journal.audit import audit_folder
from otel.journal.files import Files
from otel.journal.lines import Damage, kind_of, lines_in, parse
from otel.journal.recovery import dead_writers, scan
from otel.journal.segments import segments_in
from otel.journal.turn import turn_to_recover
from tests.faults.killing import real_prices

PRICES = real_prices()
IDS = itertools.count(1)


class BrokenFiles(Files):
    """A disk whose creations, removals, and syncs from a bill on, fail while they are told to."""

    def __init__(self) -> None:
        self.failing: set[str] = set()
        self.billed = False
        self.failed: Counter[str] = Counter()

    def _meet(self, what: str) -> None:
        if what in self.failing:
            self.failed[what] += 1
            raise OSError(errno.EIO, "planned")

    def write(self, fd: int, data: bytes) -> int:
        self.billed = self.billed or kind_of(data) == "S"
        return super().write(fd, data)

    def sync(self, fd: int) -> None:
        if self.billed:
            self._meet("sync")
        super().sync(fd)

    def create(self, path: Path) -> int:
        self._meet("create")
        return super().create(path)

    def remove(self, path: Path) -> None:
        if path.parent.name == "writers":
            self._meet("retire")
        super().remove(path)


class Process:
    """One worker: its writer, and what it does about siblings."""

    def __init__(self, folder: Path, number: int, files: Files | None = None) -> None:
        self.folder = folder
        self.files = files or Files()
        self.writer = JournalWriter(
            folder,
            boot=f"b{number}",
            worker=number,
            now_ns=time.time_ns,
            segment_id=lambda: f"{next(IDS):032x}",
            files=self.files,
        )
        self.recorder = JournalRecorder(self.writer, {"service.name": "test"}, "cache_write")
        self.observed: list[Exchange] = []
        self.siblings = Siblings(
            folder,
            self.files,
            self.writer,
            self.recorder,
            PRICES,
            lambda exchange, status: self.observed.append(exchange),
        )

    async def admit(self, count: int) -> None:
        number = 0
        for _ in range(count):
            made = next(IDS)
            call = Call(
                record_id=f"r{made}",
                trace_id=f"{made:032x}",
                span_id=f"{made:016x}",
                server_span_id=f"{made + 1:016x}",
                protocol="chat_completions",
                operation="chat",
                model="m",
                stream=True,
                identity=Identity(key_id="k", user_id="u", source="key"),
                started_unix_ns=time.time_ns(),
            )
            number = self.recorder.intent(call)
        await self.writer.durable(number)

    def die(self) -> None:
        """End as a killed process does, as far as the folder can tell."""
        self.writer.close()


def bills(folder: Path) -> Counter[str]:
    found: Counter[str] = Counter()
    for path in segments_in(folder, Files()):
        for item in lines_in(path.read_bytes()):
            if not isinstance(item, Damage) and parse(item[1]).k == "S":
                found[parse(item[1]).id] += 1
    return found


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(3000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it does not come")


async def pair(folder: Path, files: Files | None = None, open_intents: int = 5) -> tuple[Process, Process]:
    """Return a living worker and one that died with open intents."""
    living, dying = Process(folder, 1, files), Process(folder, 2)
    await living.siblings.start()
    await dying.siblings.start()
    await dying.admit(open_intents)
    await living.admit(1)
    dying.die()
    return living, dying


async def test_a_living_worker_bills_what_a_dead_one_left_and_the_audit_can_prove_its_end(
    tmp_path: Path,
) -> None:
    living, dying = await pair(tmp_path)
    assert await living.siblings.look() == 5
    assert set(bills(tmp_path).values()) == {1}
    assert len(living.observed) == 5
    assert dead_writers(tmp_path, Files()) == ()
    assert await living.siblings.look() == 0
    report = audit_folder(tmp_path)
    assert (report.complete, report.intact, report.facts.in_flight) == (True, True, 1)
    living.die()
    newest = max(path for path in segments_in(tmp_path, Files()) if dying.writer.name in path.name)
    newest.write_bytes(newest.read_bytes().rsplit(b"\n", 2)[0] + b"\n")  # its last record is taken away
    assert audit_folder(tmp_path).counts["tail_missing"] == 1


async def test_after_one_worker_has_recovered_another_may(tmp_path: Path) -> None:
    living, _ = await pair(tmp_path)
    assert await living.siblings.look() == 5
    other, third = Process(tmp_path, 3), Process(tmp_path, 4)
    await other.siblings.start()
    await third.siblings.start()
    await third.admit(2)
    third.die()
    assert await other.siblings.look() == 2
    living.die()
    other.die()


async def test_two_workers_that_look_at_once_bill_once(tmp_path: Path) -> None:
    living, _ = await pair(tmp_path)
    other = Process(tmp_path, 3)
    other.writer.open()
    found = await asyncio.gather(living.siblings.look(), other.siblings.look())
    assert sorted(found) == [0, 5]
    assert sum(bills(tmp_path).values()) == 5
    living.die()
    other.die()


async def test_a_worker_that_starts_waits_for_the_recovery_of_another(tmp_path: Path) -> None:
    living, _ = await pair(tmp_path)
    starting = Process(tmp_path, 3)
    with turn_to_recover(tmp_path, Files()) as turn:
        assert turn is not None
        start = asyncio.create_task(starting.siblings.start())
        await asyncio.sleep(0.2)
        assert not start.done()
        assert starting.writer.number == 0
    await start
    assert sum(bills(tmp_path).values()) == 5
    assert await living.siblings.look() == 0
    living.die()
    starting.die()


async def test_while_bills_are_not_durable_nobody_else_recovers(tmp_path: Path) -> None:
    files = BrokenFiles()
    living, dying = await pair(tmp_path, files)
    other = Process(tmp_path, 3)
    other.writer.open()
    files.failing = {"sync"}
    looking = asyncio.create_task(living.siblings.look())
    await until(lambda: files.failed["sync"] > 3 and living.writer.fault is not None)
    assert dead_writers(tmp_path, Files()) == (dying.writer.name,)
    assert await other.siblings.look() == 0
    files.failing = set()
    while not looking.done():
        living.writer.tend()
        await asyncio.sleep(0.02)
    assert await looking == 5
    assert dead_writers(tmp_path, Files()) == ()
    report = audit_folder(tmp_path)
    assert (report.complete, report.intact, report.facts.bills) == (True, True, 5)
    living.die()
    other.die()


async def test_a_dead_writer_that_cannot_be_forgotten_is_not_billed_again(tmp_path: Path) -> None:
    files = BrokenFiles()
    living, _ = await pair(tmp_path, files)
    other = Process(tmp_path, 3)
    other.writer.open()
    files.failing = {"retire"}
    looking = asyncio.create_task(living.siblings.look())
    await until(lambda: files.failed["retire"] > 0)
    assert await other.siblings.look() == 0
    files.failing = set()
    assert await looking == 5
    assert set(bills(tmp_path).values()) == {1}
    living.die()
    other.die()


async def test_a_recovery_that_is_broken_off_is_finished_by_another_and_bills_once(tmp_path: Path) -> None:
    """As at a shutdown: the lock is free before the mark is; the bills in between are the dying one's."""
    files = BrokenFiles()
    living, dying = await pair(tmp_path, files)
    other = Process(tmp_path, 3)
    other.writer.open()
    files.failing = {"retire"}
    looking = asyncio.create_task(living.siblings.look())
    await until(lambda: files.failed["retire"] > 0)
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)
    assert await other.siblings.look() == 0, "what it wrote is not a dead writer's yet"
    living.die()
    assert set(dead_writers(tmp_path, Files())) == {living.writer.name, dying.writer.name}
    assert await other.siblings.look() == 1, "the one that died second had one of its own"
    assert set(bills(tmp_path).values()) == {1}
    assert sum(bills(tmp_path).values()) == 6
    other.die()


async def test_a_start_that_ends_in_its_recovery_is_a_dead_writer_before_anybody_reads_it(
    tmp_path: Path,
) -> None:
    """The same for a worker that begins: it gives up the lock before its mark."""
    dead, files = Process(tmp_path, 1), BrokenFiles()
    dead.writer.open()
    await dead.admit(2)
    dead.die()
    beginning, other = Process(tmp_path, 2, files), Process(tmp_path, 3)
    other.writer.open()
    files.failing = {"retire"}
    with pytest.raises(OSError, match="planned"):
        await beginning.siblings.start()
    assert files.failed["retire"] == 1
    assert await other.siblings.look() == 0, "what it wrote is not a dead writer's yet"
    beginning.die()
    assert await other.siblings.look() == 0, "all was billed"
    assert dead_writers(tmp_path, Files()) == ()
    assert list(bills(tmp_path).values()) == [1, 1]
    other.die()


async def test_a_recovery_that_died_behind_a_new_segment_is_found_whole(tmp_path: Path) -> None:
    """Its newest header sends a recovery back to where it began: else bills of it are written twice."""
    dead = Process(tmp_path, 1)
    dead.writer.open()
    await dead.admit(5)
    dead.die()
    dying, other = Process(tmp_path, 2), Process(tmp_path, 3)
    dying.writer.open()
    found = scan(tmp_path, Files())
    assert len(found.open_intents) == 5
    await write_bills(found, dying.writer, dying.recorder, PRICES, lambda exchange, status: None)
    dying.writer.take_over({})  # any new segment
    assert len(segments_in(tmp_path, Files(), dying.writer.name)) == 2
    dying.die()
    other.writer.open()
    assert await other.siblings.look() == 0, "all were billed"
    assert dead_writers(tmp_path, Files()) == ()
    assert list(bills(tmp_path).values()) == [1] * 5
    other.die()


async def test_without_a_segment_for_it_nothing_is_begun(tmp_path: Path) -> None:
    files = BrokenFiles()
    living, _ = await pair(tmp_path, files)
    files.failing = {"create"}
    with pytest.raises(JournalUnavailable):
        await living.siblings.look()
    assert files.failed["create"] > 0
    assert bills(tmp_path) == Counter()
    files.failing = set()
    living.writer.tend()
    assert await living.siblings.look() == 5
    living.die()


async def test_a_watching_worker_finds_a_dead_sibling_by_itself(tmp_path: Path) -> None:
    living, _ = await pair(tmp_path)
    began = asyncio.get_running_loop().time()
    watching = asyncio.create_task(living.siblings.watch())
    await until(lambda: not dead_writers(tmp_path, Files()))
    assert asyncio.get_running_loop().time() - began >= LOOK_S / 2
    watching.cancel()
    assert set(bills(tmp_path).values()) == {1}
    living.die()


async def test_a_recovery_that_could_not_begin_stands_in_nobodys_way(tmp_path: Path) -> None:
    files = BrokenFiles()
    living, _ = await pair(tmp_path, files)
    other = Process(tmp_path, 3)
    other.writer.open()
    files.failing = {"create"}
    with pytest.raises(JournalUnavailable):
        await living.siblings.look()
    assert await other.siblings.look() == 5
    living.die()
    other.die()
