"""The reader yields every bill once, whatever order clocks, failed syncs and removals leave behind."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from otel.journal.cursor import Cursor
from otel.journal.files import Files
from otel.journal.lines import GENESIS, Kind, encode_line
from otel.journal.reader import Reader
from otel.journal.segments import SEGMENTS, mark_of, segments_in

A, B = "aa-0", "bb-0"


def line(kind: Kind, number: int) -> bytes:
    return encode_line(kind, f"id-{number}", number, GENESIS, f'{{"id":"{number}"}}')


def segment(folder: Path, day: str, writer: str, number: int, first: int, bills: Sequence[int] = ()) -> Path:
    path = folder / day / f"{writer}-{number:06d}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(line("H", first) + b"".join(line("S", bill) for bill in bills))
    return path


def read(folder: Path, *, lines_max: int = 100, cursor: Cursor | None = None) -> list[int]:
    """Return the numbers of the bills that a reader yields, and move its cursor."""
    cursor = cursor or Cursor(folder / "cursor.json")
    found: list[int] = []
    for batch in Reader(folder, cursor).batches(lines_max, 1 << 20):
        assert len(batch.spans) == len(batch.reaches)
        found += [int(spans.split(b'"')[3]) for spans in batch.spans]
        cursor.move(batch.segment, batch.end, batch.writer, batch.seen)
    return found


@contextmanager
def living(folder: Path, writer: str, mark: int) -> Iterator[None]:
    """Hold a writer's mark, as its process would."""
    path = folder / "writers" / writer
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(struct.pack("<QQ", mark, mark))
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def test_what_a_dead_writer_left_is_durable_before_it_is_delivered(tmp_path: Path) -> None:
    """Else a power loss leaves a Collector with bills that the journal lacks."""
    synced: list[Path] = []

    class Noting(Files):
        def sync_file(self, path: Path) -> None:
            synced.append(path)

    dead = segment(tmp_path, "2026-01-01", A, 1, 1, [1])
    living_one = segment(tmp_path, "2026-01-01", B, 1, 1, [2])
    with living(tmp_path, B, mark_of(1, living_one.stat().st_size)):
        batches = Reader(tmp_path, Cursor(tmp_path / "cursor.json"), Noting()).batches(100, 1 << 20)
        assert next(batches).writer == A
        assert synced == [dead], "a living writer's mark says what is durable"
        assert [batch.writer for batch in batches] == [B]


def test_segments_are_in_the_order_of_their_numbers_though_a_clock_was_set_back(tmp_path: Path) -> None:
    segment(tmp_path, "2026-01-02", A, 1, 1, [1, 2])
    segment(tmp_path, "2026-01-02", A, 2, 3, [3])
    segment(tmp_path, "2026-01-01", A, 3, 4, [4, 5])  # after midnight the clock was set back
    segment(tmp_path, "2026-01-02", A, 4, 6, [6])
    assert [path.name[-7:-6] for path in segments_in(tmp_path, Files())] == ["1", "2", "3", "4"]
    assert read(tmp_path) == [1, 2, 3, 4, 5, 6]


def test_a_writer_whose_first_segment_is_oldest_comes_first_and_each_one_whole(tmp_path: Path) -> None:
    segment(tmp_path, "2026-01-02", A, 1, 1, [11])
    segment(tmp_path, "2026-01-01", B, 1, 1, [21])
    segment(tmp_path, "2026-01-03", B, 2, 2, [22])
    found = [f"{path.name[0]}{path.name[-7:-6]}" for path in segments_in(tmp_path, Files())]
    assert found == ["b1", "b2", "a1"]


def test_a_later_header_hides_no_record_that_comes_again_after_it(tmp_path: Path) -> None:
    lost = segment(tmp_path, "2026-01-01", A, 1, 1)
    lost.write_bytes(lost.read_bytes() + b"\0" * 300 + b"\n")  # 1 and 2 were here; their sync failed
    segment(tmp_path, "2026-01-01", A, 2, 3, [3])
    segment(tmp_path, "2026-01-01", A, 3, 1, [1, 2, 3, 4])
    found = read(tmp_path)
    assert set(found) == {1, 2, 3, 4}
    assert found.count(1) == found.count(2) == found.count(4) == 1


def test_the_oldest_header_says_where_to_begin_when_what_stood_before_was_removed(tmp_path: Path) -> None:
    segment(tmp_path, "2026-01-01", A, 7, 40, [40, 41])
    segment(tmp_path, "2026-01-01", A, 8, 41, [41, 42])  # again: its sync failed
    assert read(tmp_path) == [40, 41, 42]


def test_the_torn_end_of_a_sealed_segment_is_passed_while_its_writer_lives(tmp_path: Path) -> None:
    torn = segment(tmp_path, "2026-01-01", A, 1, 1, [1])
    torn.write_bytes(torn.read_bytes() + line("S", 2)[:50])
    newest = segment(tmp_path, "2026-01-01", A, 2, 2, [2, 3])
    cursor = Cursor(tmp_path / "cursor.json")
    with living(tmp_path, A, mark_of(2, newest.stat().st_size)):
        assert read(tmp_path, cursor=cursor) == [1, 2, 3]
        reader = Reader(tmp_path, cursor)
        assert reader.pending_bytes() == 0
        newest.write_bytes(newest.read_bytes() + line("S", 4)[:50])
        assert reader.pending_bytes() == 0, "not durable yet"


@pytest.mark.parametrize("lines_max", [1, 2, 3])
def test_what_is_reached_bill_by_bill_is_where_reading_goes_on(tmp_path: Path, lines_max: int) -> None:
    segment(tmp_path, "2026-01-01", A, 1, 1, range(1, 8))
    for stop in range(7):
        cursor = Cursor(tmp_path / f"{stop}.json")
        batch = next(Reader(tmp_path, cursor).batches(100, 1 << 20))
        end, seen = batch.reaches[stop]
        cursor.move(batch.segment, end, batch.writer, seen)
        assert read(tmp_path, lines_max=lines_max, cursor=cursor) == list(range(stop + 2, 8))


def test_a_segment_that_is_removed_while_the_folder_is_read_is_passed_over(tmp_path: Path) -> None:
    class Removing(Files):
        fired = 0

        def names(self, directory: Path, pattern: str) -> list[str]:
            found = super().names(directory, pattern)
            self.fired += doomed.exists()
            doomed.unlink(missing_ok=True)
            return found

    doomed = segment(tmp_path, "2026-01-01", A, 1, 1, [1])
    segment(tmp_path, "2026-01-01", A, 2, 2, [2])
    files = Removing()
    (batch,) = Reader(tmp_path, Cursor(tmp_path / "cursor.json"), files).batches(100, 1 << 20)
    assert files.fired == 1, "the fault did not fire"
    assert len(batch.spans) == 1


def test_files_of_other_names_are_no_segments(tmp_path: Path) -> None:
    own = segment(tmp_path, "2026-01-01", A, 1, 1, [1])
    for name in (b"notes.jsonl", b"a-b.jsonl", b"\xff-0-000001.jsonl", "é-0-000001.jsonl".encode()):
        (tmp_path / "2026-01-01" / os.fsdecode(name)).write_bytes(own.read_bytes())
    (tmp_path / "2026-01-01" / "a-0-\N{SUPERSCRIPT TWO}.jsonl").write_bytes(own.read_bytes())
    cursor = Cursor(tmp_path / "cursor.json")
    assert read(tmp_path, cursor=cursor) == [1]
    cursor.save()


def test_names_are_those_that_the_slow_way_finds(tmp_path: Path) -> None:
    segment(tmp_path, "2026-01-01", A, 1, 1)
    segment(tmp_path, "2026-01-02", B, 1, 1)
    segment(tmp_path, "quarantine", B, 2, 1)
    (tmp_path / "2026-01-03").write_text("a file")
    files = Files()
    slow = [str(path.relative_to(tmp_path)) for path in files.find(tmp_path, SEGMENTS)]
    assert sorted(files.names(tmp_path, SEGMENTS)) == slow
    assert len(slow) == 2
    assert files.names(tmp_path / "nowhere", SEGMENTS) == []
