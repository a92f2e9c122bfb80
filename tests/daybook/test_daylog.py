"""Logs by days: whole lines in the file of their day, packed and removed in time, within their bound."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.daybook import daylog, packing
from gateway.daybook.daylog import DAY_NS, PACK_AFTER_NS, DayLog
from gateway.daybook.keeper import Keeper
from gateway.daybook.keeping import Found, Policy, naming_of, plan
from gateway.settings.logs import LogFileSettings
from otel.journal.segments import day_of
from otel.journal.turn import Lock
from tests.gateway_process import ROOT

NOON_NS = 20_454 * DAY_NS + DAY_NS // 2
TODAY, YESTERDAY = day_of(NOON_NS), day_of(NOON_NS - DAY_NS)


class Clock:
    def __init__(self) -> None:
        self.ns = NOON_NS

    def __call__(self) -> int:
        return self.ns


@pytest.fixture
def clock() -> Clock:
    return Clock()


def log_in(folder: Path, clock: Clock, *, days: int = 3, bytes_max: int = 1_000_000) -> DayLog:
    return DayLog(naming_of(folder, "errors"), days=days, bytes_max=bytes_max, now_ns=clock)


def write(log: DayLog, *numbers: int) -> None:
    for number in numbers:
        log.write(b'{"number":%d}' % number)
    log.flush()


def numbers_in(path: Path) -> list[int]:
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [line["number"] for line in map(json.loads, text.splitlines()) if "number" in line]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


# the decision

DAYS = st.integers(1, 20).map(lambda n: f"2026-01-{n:02d}")
FILES = st.lists(
    st.builds(
        lambda day, packed, size: Found(f"errors-{day}.jsonl{'.gz' if packed else ''}", day, size),
        DAYS,
        st.booleans(),
        st.integers(0, 100),
    ),
    unique_by=lambda found: found.name,
)


@given(FILES, DAYS, st.integers(1, 20), st.integers(0, 500))
def test_today_and_days_to_come_stay_and_the_bound_is_kept_by_the_oldest(
    found: list[Found], today: str, days: int, bytes_max: int
) -> None:
    keep_from = f"2026-01-{max(1, int(today[-2:]) - days):02d}"
    made = plan(found, Policy(today=today, keep_from=keep_from, pack_before=today, bytes_max=bytes_max))
    removed, stay = set(made.remove), set(found) - set(made.remove)
    assert all(file.day < today for file in removed)
    assert not [file for file in stay if file.day < keep_from and file.day < today]
    past = [file for file in stay if file.day < today]
    assert sum(file.bytes for file in stay) <= bytes_max or not past
    young = [file for file in removed if file.day >= keep_from]
    assert not past or max([file.day for file in young], default="") <= min(file.day for file in past)
    for last in sorted(young, key=lambda file: (file.day, file.name))[-1:]:  # it had to go
        assert sum(file.bytes for file in stay) + last.bytes > bytes_max
    assert set(made.pack) == {file for file in past if not file.name.endswith(".gz")}
    assert made.others == sum(file.bytes for file in stay if file.day != today)


def test_only_names_that_the_log_makes_are_its_own() -> None:
    naming = naming_of(Path("logs"), "errors")
    assert naming.day_of(f"errors-{TODAY}.jsonl") == naming.day_of(f"errors-{TODAY}.jsonl.gz") == TODAY
    for name in ("errors.jsonl", f"errors-{TODAY}.log", f"usage-{TODAY}.jsonl", f"my-errors-{TODAY}.jsonl"):
        assert naming.day_of(name) is None
    named = naming_of(Path("logs/gateway.log"), "errors")
    assert named.file(TODAY) == Path(f"logs/gateway-{TODAY}.log")


# lines


def test_a_line_stands_in_the_file_of_the_day_on_which_it_is_written(tmp_path: Path, clock: Clock) -> None:
    log = log_in(tmp_path / "logs", clock)
    write(log, 1, 2)
    clock.ns += DAY_NS
    write(log, 3)
    assert numbers_in(tmp_path / "logs" / f"errors-{TODAY}.jsonl") == [1, 2]
    assert numbers_in(tmp_path / "logs" / f"errors-{day_of(clock.ns)}.jsonl") == [3]


def test_a_file_that_is_moved_away_is_made_anew(tmp_path: Path, clock: Clock) -> None:
    log = log_in(tmp_path, clock)
    write(log, 1)
    file = tmp_path / f"errors-{TODAY}.jsonl"
    file.rename(tmp_path / "taken")
    write(log, 2)
    assert (numbers_in(tmp_path / "taken"), numbers_in(file)) == ([1], [2])


def test_a_queue_that_is_full_drops_counts_and_says_so_in_the_file(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daylog, "LINES_MAX", 2)
    log = log_in(tmp_path, clock)
    write(log, 1, 2, 3, 4)
    assert log.dropped == 2
    lines = [json.loads(line) for line in (tmp_path / f"errors-{TODAY}.jsonl").read_text().splitlines()]
    assert [line.get("dropped") for line in lines] == [2, None, None]
    write(log, 5)
    assert (tmp_path / f"errors-{TODAY}.jsonl").read_text().count('"dropped"') == 1


def test_when_todays_file_takes_all_there_may_be_lines_are_dropped_and_tomorrow_says_so(
    tmp_path: Path, clock: Clock
) -> None:
    log = log_in(tmp_path, clock, bytes_max=4096)
    write(log, *range(1000))
    write(log, *range(1000))
    file = tmp_path / f"errors-{TODAY}.jsonl"
    assert log.dropped == 2000  # a batch is written whole or not at all
    write(log, 1)
    assert file.stat().st_size <= 4096
    clock.ns += DAY_NS
    write(log, 2)
    assert numbers_in(tmp_path / f"errors-{day_of(clock.ns)}.jsonl") == [2]


def test_the_oldest_file_goes_when_the_bound_leaves_no_room(tmp_path: Path, clock: Clock) -> None:
    log = log_in(tmp_path, clock, bytes_max=4096, days=30)
    for day in range(3):
        clock.ns = NOON_NS + day * DAY_NS
        write(log, *range(1000, 1060))  # 16 bytes each
    log.tend()
    assert sorted(path.suffix for path in tmp_path.glob("errors-*")) == [".gz", ".gz", ".jsonl"]
    for path in tmp_path.glob("*.gz"):  # as large as if it could not be packed
        path.write_bytes(os.urandom(1500))
    log.tend()
    assert [day_of(NOON_NS) in name for name in names(tmp_path)] == [False, False]
    assert not log.dropped


def test_a_disk_that_refuses_costs_lines_and_nothing_else(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "logs").write_text("no folder")
    log = log_in(tmp_path / "logs", clock)
    write(log, 1, 2)
    log.tend()
    assert log.dropped == 2
    (tmp_path / "logs").unlink()
    write(log, 3)
    assert numbers_in(tmp_path / "logs" / f"errors-{TODAY}.jsonl") == [3]


def test_a_line_that_a_full_disk_cut_off_spoils_no_other(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = log_in(tmp_path, clock)
    real, calls = os.write, []

    def short(fd: int, data: bytes) -> int:
        calls.append(len(data))
        if len(calls) == 1:
            return real(fd, data[:5])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", short)
    write(log, 1)
    assert len(calls) == 2
    monkeypatch.setattr(os, "write", real)
    write(log, 2)
    lines = (tmp_path / f"errors-{TODAY}.jsonl").read_bytes().splitlines()
    assert lines[0] == b'{"num'
    assert json.loads(lines[-1]) == {"number": 2}
    assert log.dropped == 1


WRITING = """
import sys
from pathlib import Path
from gateway.daybook.daylog import DayLog
from gateway.daybook.keeping import naming_of
log = DayLog(naming_of(Path(sys.argv[1]), "usage"), days=3, bytes_max=1 << 30)
for number in range(2000):
    filler = b"x" * (number % 900)
    log.write(b'{"number":%d,"of":"%b","filler":"%b"}' % (number, sys.argv[2].encode(), filler))
    if number % 50 == 0:
        log.flush()
log.flush()
assert not log.dropped
"""


def test_lines_of_several_workers_in_one_file_stay_whole(tmp_path: Path) -> None:
    workers = [
        subprocess.Popen([sys.executable, "-c", WRITING, str(tmp_path), name], cwd=ROOT) for name in "abc"
    ]
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    texts = [file.read_text() for file in tmp_path.glob("usage-*")]
    lines = [json.loads(line) for text in texts for line in text.splitlines()]
    for name in "abc":  # a file a day, in order, should midnight pass
        assert sorted(line["number"] for line in lines if line["of"] == name) == list(range(2000))


# packing and removal


def test_a_finished_day_is_packed_and_an_old_one_goes(tmp_path: Path, clock: Clock) -> None:
    log = log_in(tmp_path, clock, days=2)
    (tmp_path / "errors.jsonl").write_text("not ours")
    write(log, 1)
    log.tend()
    assert names(tmp_path) == [f"errors-{TODAY}.jsonl", "errors.jsonl"]
    clock.ns = 20_455 * DAY_NS + PACK_AFTER_NS - 1
    log.tend()
    assert f"errors-{TODAY}.jsonl" in names(tmp_path), "a writer may have it in hand for some minutes more"
    clock.ns += 1
    log.tend()
    assert names(tmp_path) == [f"errors-{TODAY}.jsonl.gz", "errors.jsonl"]
    assert numbers_in(tmp_path / f"errors-{TODAY}.jsonl.gz") == [1]
    clock.ns = NOON_NS + 2 * DAY_NS
    log.tend()
    assert f"errors-{TODAY}.jsonl.gz" in names(tmp_path)
    clock.ns = NOON_NS + 3 * DAY_NS
    log.tend()
    assert names(tmp_path) == ["errors.jsonl"]


def test_while_another_process_tends_the_folder_nothing_is_packed_or_removed(
    tmp_path: Path, clock: Clock
) -> None:
    log = log_in(tmp_path, clock)
    write(log, 1)
    clock.ns += 10 * DAY_NS
    other = Lock(tmp_path / ".errors.lock")
    assert other.take()
    log.tend()
    assert names(tmp_path) == [f"errors-{TODAY}.jsonl"]
    other.release()
    log.tend()
    assert names(tmp_path) == []


class Killed(BaseException):
    """The process is gone."""


def test_packing_that_is_killed_anywhere_loses_no_line_and_is_finished_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Die before each call to the system, in turn, until a run gets through."""
    passed: list[str] = []
    step = 0

    def dying(module: object, name: str) -> None:
        real = getattr(module, name)

        def call(*args: object, **named: object) -> object:
            if len(passed) == step:
                raise Killed
            passed.append(name)
            return real(*args, **named)

        monkeypatch.setattr(module, name, call)

    packed = tmp_path / "errors-2026-01-01.jsonl.gz"
    path = tmp_path / "errors-2026-01-01.jsonl"
    for step in range(20):
        packed.unlink(missing_ok=True)
        path.write_bytes(b'{"number":1}\n')
        passed.clear()
        for module, name in (
            (os, "fsync"),
            (os, "replace"),
            (os, "fchmod"),
            (Path, "unlink"),
            (Path, "open"),
        ):
            dying(module, name)
        try:
            packing.pack(path)
            break
        except Killed:
            assert len(passed) == step
        finally:
            monkeypatch.undo()
        assert path.exists() or numbers_in(packed) == [1]
        if path.exists():
            packing.pack(path)
        assert (numbers_in(packed), path.exists()) == ([1], False)
    assert passed == ["open", "fchmod", "open", "fsync", "replace", "unlink"]


def test_a_line_that_comes_after_its_day_was_packed_is_added_to_it(tmp_path: Path) -> None:
    path = tmp_path / "errors-2026-01-01.jsonl"
    for number in (1, 2):
        path.write_bytes(b'{"number":%d}\n' % number)
        packed = packing.pack(path)
    assert numbers_in(packed) == [1, 2]


# the threads


def test_a_keeper_writes_what_is_queued_before_and_while_it_runs(tmp_path: Path, clock: Clock) -> None:
    log = log_in(tmp_path, clock)
    log.write(b'{"number":1}')
    keeper = Keeper([log])
    keeper.start()
    log.write(b'{"number":2}')
    keeper.stop()
    assert numbers_in(tmp_path / f"errors-{TODAY}.jsonl") == [1, 2]


def test_without_anything_to_keep_there_is_no_thread() -> None:
    before = threading.active_count()
    keeper = Keeper([])
    keeper.start()
    assert threading.active_count() == before
    keeper.stop()


def test_retention_days_may_be_written_in_both_ways() -> None:
    assert LogFileSettings.model_validate({"retentionDays": 5}).retention_days == 5
    assert LogFileSettings.model_validate({"retention_days": 6}).retention_days == 6
    with pytest.raises(ValidationError):
        LogFileSettings.model_validate({"retention": 6})
