"""Fuzzed files of the journal: headers, a writer's mark, the cursor, and whole folders behind a reader.

The oracle is always what was written: no byte makes a bill that nobody wrote, and whole lines stay readable.
"""

from __future__ import annotations

import fcntl
import os
import random
import struct
from pathlib import Path

from otel.journal import segments
from otel.journal.cursor import Cursor
from otel.journal.files import EVERYTHING, Files
from otel.journal.lines import (
    GENESIS,
    Damage,
    Header,
    chain,
    encode_header,
    encode_line,
    header_of,
    lines_in,
    parse,
    spans_of,
)
from otel.journal.reader import Reader
from otel.journal.recovery import scan
from otel.journal.segments import mark_of, name_of, readable
from tests.fuzz.mutation import INPUTS, fuzz, mutated

WRITER = "b0-0"
DAY = "2026-11-21"
FILES = Files()


def header(number: int, first: int, previous: str, **facts: object) -> bytes:
    value = Header(boot="b0", worker=0, segment=number, previous_segment=None, created_unix_ns="1", **facts)  # type: ignore[arg-type]
    return encode_header(f"{number:032x}", first, previous, value)


def records(first: int, count: int, previous: str) -> tuple[list[bytes], str]:
    lines = []
    for number in range(first, first + count):
        kind, body = (("I", '{"a":1}'), ("P", "{}"), ("S", f'{{"scopeSpans":[{number}]}}'))[number % 3]
        line = encode_line(kind, f"id-{number // 3}", number, previous, body)  # type: ignore[arg-type]
        previous = chain(line)
        lines.append(line)
    return lines, previous


ONE, MIDDLE = records(1, 9, GENESIS)
TWO, _ = records(10, 9, MIDDLE)
SEGMENTS = (header(1, 1, GENESIS) + b"".join(ONE), header(2, 10, MIDDLE) + b"".join(TWO))
BILLS = [spans for line in (*ONE, *TWO) if (spans := spans_of(line[:-1])) is not None]
INTENTS = {parse(line[:-1]).id for line in (*ONE, *TWO) if parse(line[:-1]).k == "I"}


def test_no_header_breaks_its_reader() -> None:
    seeds = [
        header(3, 7, "0123456789abcdef", oldest_open=2, sealed={"b9-0": (4, GENESIS)}),
        header(1, 1, GENESIS),
        SEGMENTS[0],
    ]
    written = set(b"".join(seeds).splitlines())
    good = 0

    def check(chance: random.Random) -> None:
        nonlocal good
        line = mutated(chance, seeds)
        for found in lines_in(line):
            assert isinstance(found, Damage) or found[1] in written, "an altered line passed for whole"
        try:  # and where the checksum holds, as it would after a writer's own fault
            said = header_of(parse(line.split(b"\n")[0]))
        except ValueError:
            return
        good += 1
        assert header_of(parse(encode_header("s", 1, GENESIS, said)[:-1])) == said

    assert fuzz(check) >= INPUTS
    assert good > INPUTS / 50


def test_no_mark_lets_more_be_read_than_its_writer_said(tmp_path: Path) -> None:
    path = tmp_path / WRITER
    said = mark_of(2, 300)
    seeds = [struct.pack("<QQ", said, said), struct.pack("<QQ", EVERYTHING, EVERYTHING), b""]
    fd = FILES.hold(path)
    halves = 0

    def check(chance: random.Random) -> None:
        nonlocal halves
        data = mutated(chance, seeds, [b"\x00", b"\xff", seeds[0][:8], seeds[1][:8]])[:64]
        os.ftruncate(fd, 0)
        os.pwrite(fd, data, 0)
        mark = FILES.held(path)
        assert mark is not None, "its writer lives"
        first, second = data[:8].ljust(8, b"\0"), data[8:16].ljust(8, b"\0")
        assert mark == (int.from_bytes(first, "little") if first == second else 0)
        halves += first != second
        for number in (1, 2, 3):
            limit = readable(name_of(Path(f"{WRITER}-{number:06d}.jsonl")), mark, 1000)
            assert limit >= 0
            assert mark or not limit, "half a mark made something readable"

    assert fuzz(check) >= INPUTS
    assert halves > INPUTS / 10
    fcntl.flock(fd, fcntl.LOCK_UN)
    assert FILES.held(path) is None
    os.close(fd)


def test_no_damage_to_a_cursor_passes_over_a_bill(tmp_path: Path) -> None:
    path = tmp_path / "cursors" / "otlp.json"
    saved = Cursor(path)
    name = f"{DAY}/{WRITER}-000001.jsonl"
    saved.move(name, 777, WRITER, 12)
    saved.save()
    whole = path.read_bytes()
    digits = [b"%d" % digit for digit in range(10)]
    seeds = [whole, whole, b"", b"{}", b'{"v":2,"offsets":{}}', whole.replace(b"777", b"999")]
    kept = 0

    def check(chance: random.Random) -> None:
        nonlocal kept
        data = mutated(chance, seeds, [*digits, b"-", b'"', b"}", b"null", b"\xff", b"9" * 40])
        path.write_bytes(data)
        cursor = Cursor(path)
        if cursor[name] or cursor.seen(WRITER):
            kept += 1
            assert (cursor[name], cursor.seen(WRITER)) == (777, 12), data
        else:
            assert path.with_suffix(".unreadable").read_bytes() == data

    assert fuzz(check) >= INPUTS
    assert kept > INPUTS / 50


class Memory(Files):
    """Segments of a dead writer, in memory; there is no other file."""

    def __init__(self, directory: Path, datas: tuple[bytes, ...]) -> None:
        self._segments = {
            directory / DAY / f"{WRITER}-{number:06d}.jsonl": data for number, data in enumerate(datas, 1)
        }
        self._mark = directory / "writers" / WRITER

    def find(self, directory: Path, pattern: str) -> list[Path]:
        return [self._mark] if pattern.startswith("writers") else list(self._segments)

    def names(self, directory: Path, pattern: str) -> list[str]:
        assert pattern == segments.SEGMENTS
        return [str(path.relative_to(directory)) for path in self._segments]

    def said(self, path: Path) -> int:
        return 0

    def size(self, path: Path) -> int:
        return len(self._segments[path])

    def read(self, path: Path, offset: int, length: int) -> bytes:
        if path not in self._segments:
            raise FileNotFoundError(path)
        return self._segments[path][offset : offset + length]

    def sync_file(self, path: Path) -> None:
        pass

    def held(self, path: Path) -> int | None:
        return None


def test_no_damage_to_a_folder_makes_a_bill_or_hides_a_whole_one(tmp_path: Path) -> None:
    written = {line[:-1] for line in (*ONE, *TWO)}
    damaged = 0

    def check(chance: random.Random) -> None:
        nonlocal damaged
        datas = tuple(mutated(chance, [data]) for data in SEGMENTS)
        files = Memory(tmp_path, datas)
        cursor = Cursor(tmp_path / "none.json", files)
        seen: list[bytes] = []
        places: list[tuple[str, int]] = []
        for batch in Reader(tmp_path, cursor, files).batches(chance.randint(1, 9), 10_000):
            seen += batch.spans
            places += [(batch.segment, damage.offset) for damage in batch.damage]
            cursor.move(batch.segment, batch.end, batch.writer, batch.seen)
        assert set(seen) <= set(BILLS), "a bill that nobody wrote"
        assert len(places) == len(set(places)), "one damage was told twice"
        damaged += bool(places)
        left = [found[1] for data in datas for found in lines_in(data) if isinstance(found, tuple)]
        whole = {spans for line in left if line in written and (spans := spans_of(line)) is not None}
        assert whole <= set(seen), "a whole bill was not delivered"
        findings = scan(tmp_path, files)
        assert findings.dead == (WRITER,)
        billed = {parse(line).id for line in left if line in written and parse(line).k == "S"}
        still_open = [intent.record_id for intent in findings.open_intents]
        assert len(still_open) == len(set(still_open))
        assert set(still_open) <= INTENTS - billed

    assert fuzz(check) >= INPUTS
    assert damaged > INPUTS / 10
