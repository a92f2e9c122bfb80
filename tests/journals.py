"""A real journal folder, made by the real writer, and the tools to spoil it."""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

from gateway.core.charge import Charge, Line
from gateway.core.exchange import Attempt, Call, Exchange, Identity, Reply
from gateway.core.usage import Usage
from gateway.recorder import JournalRecorder
from otel.journal import Bounds, JournalWriter
from otel.journal.audit.scan import in_order
from otel.journal.files import Files
from otel.journal.lines import GENESIS, Header, chain, encode_header, encode_line, parse, previous_of
from otel.journal.recovery import retire, scan
from otel.journal.segments import mark_path, segment_path, segments_in

DAY_NS = 86_400 * 10**9
NOON_NS = 20_000 * DAY_NS + DAY_NS // 2
DEAD, LAST = "b0-0", "b1-0"
"""The two writers of `make_journal`: one that died with open intents, and the one that recovered them."""
EVERYTHING_WRITTEN = b"\xff" * 16
"""What a writer's mark says that has no watermark."""
CRC_BYTES = len(',"crc":"12345678"}')


class Row(NamedTuple):
    segment: str
    index: int
    offset: int
    raw: bytes

    @property
    def kind(self) -> str:
        return str(json.loads(self.raw)["j"]["k"])

    @property
    def id(self) -> str:
        return str(json.loads(self.raw)["j"]["id"])

    @property
    def n(self) -> int:
        return int(json.loads(self.raw)["j"]["n"])


class FailingSync(Files):
    """A disk whose n-th sync fails; says so in `failed`."""

    def __init__(self, failing: int) -> None:
        self._failing = failing
        self.failed = 0

    def sync(self, fd: int) -> None:
        self._failing -= 1
        if self._failing == 0:
            self.failed += 1
            raise OSError(errno.EIO, "bad disk")
        super().sync(fd)


def record_id(number: int) -> str:
    return f"01890000-0000-7000-8000-{number:012x}"


def call(number: int) -> Call:
    return Call(
        record_id=record_id(number),
        trace_id=f"{number + 1:032x}",
        span_id=f"{number + 1:016x}",
        server_span_id="c" * 16,
        protocol="chat_completions",
        operation="chat",
        model="m",
        stream=True,
        identity=Identity(key_id="k1", user_id="alice", source="key"),
        started_unix_ns=NOON_NS,
    )


def exchange(number: int, *, recovered: bool = False) -> Exchange:
    """Return a bill whose status follows from its number, so that every status occurs."""
    priced = number % 7 != 3 and not recovered
    metered = number % 7 not in (4, 5) and not recovered
    lines = (
        Line(
            dimension="input", units=100 + number, rate_atto_per_million=1, cost_pico_usd=1_000_003 * number
        ),
        Line(dimension="output", units=number, rate_atto_per_million=1, cost_pico_usd=7 * number + 1),
    )
    usage = Usage(counts={"input": 100 + number, "output": number})
    status = "unmetered" if not metered else "final" if priced else "unpriced"
    return Exchange(
        call=call(number),
        attempts=(
            Attempt(
                span_id="d" * 16,
                provider="p",
                model="m",
                host="h",
                port=443,
                path="/",
                started_unix_ns=NOON_NS,
                ended_unix_ns=NOON_NS + 1,
                status=200,
            ),
        ),
        reply=Reply(usage=usage if metered else None, complete=not recovered),
        outcome="interrupted" if recovered else "ok",
        status=status,  # type: ignore[arg-type]
        ended_unix_ns=NOON_NS + 5,
        latency_ns=5,
        charge=Charge(lines=lines, price_id="p/m", catalog="c") if priced and metered else None,
    )


class Book:
    """A writer and its recorder."""

    def __init__(
        self,
        folder: Path,
        boot: str,
        *,
        files: Files | None = None,
        bytes_max: int = 11_800,
        now_ns: Callable[[], int] = lambda: NOON_NS,
    ) -> None:
        ids = itertools.count()
        self.writer = JournalWriter(
            folder,
            boot=boot,
            now_ns=now_ns,
            segment_id=lambda: f"{boot}{next(ids):030x}",
            bounds=Bounds(segment_bytes_max=bytes_max),
            files=files,
        )
        self.sealed: dict[str, tuple[int, str]] = {}
        self.recorder = JournalRecorder(self.writer, {"service.name": "spanbill"}, "cache_write")

    def __enter__(self) -> Book:
        self.writer.open(self.sealed)
        return self

    def __exit__(self, *_: object) -> None:
        self.writer.close()

    def intent(self, number: int) -> int:
        return self.recorder.intent(call(number))

    def progress(self, number: int) -> int:
        return self.writer.append("P", record_id(number), '{"released_bytes":4096}')

    def bill(self, number: int, *, recovered: bool = False) -> int:
        return self.recorder.settle(exchange(number, recovered=recovered))

    async def durable(self, number: int) -> None:
        await self.writer.durable(number)


async def _write(folder: Path) -> None:
    files = FailingSync(7)
    with Book(folder, "b0", files=files) as book:
        for number in range(24):
            await book.durable(book.intent(number))
            await book.durable(book.progress(number))
            if number not in (8, 21):
                await book.durable(book.bill(number))
    assert files.failed == 1
    found = scan(folder, Files())
    assert [intent.record_id for intent in found.open_intents] == [record_id(8), record_id(21)]
    book = Book(folder, "b1")
    book.sealed = found.heads
    with book:
        for number in (8, 21):
            await book.durable(book.bill(number, recovered=True))
        retire(folder, found.dead, Files())
        for number in range(30, 48):
            book.intent(number)
            await book.durable(book.bill(number))


def make_journal(folder: Path) -> Path:
    """Make a sound folder of two writers: a sync that failed, two recovered intents, several segments."""
    asyncio.run(_write(folder))
    mark_path(folder, LAST).write_bytes(EVERYTHING_WRITTEN)
    return folder


def copy_of(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def rows(folder: Path, writer: str = "", *, headers: bool = False) -> list[Row]:
    """Return all lines of a folder (or writer) in the order in which they were written."""
    return [row for row in _rows(folder) if (headers or row.kind != "H") and _of(row.segment, writer)]


def _of(segment: str, writer: str) -> bool:
    return segment.partition("/")[2].startswith(writer)


def names(folder: Path, writer: str = "") -> list[str]:
    found = [f"{path.parent.name}/{path.name}" for path in segments_in(folder, Files())]
    return [name for name in in_order(found) if _of(name, writer)]


def _rows(folder: Path) -> Iterator[Row]:
    for name in names(folder):
        offset = 0
        for index, raw in enumerate((folder / name).read_bytes().splitlines(keepends=True)):
            yield Row(name, index, offset, raw)
            offset += len(raw)


def replace(folder: Path, row: Row, *raws: bytes) -> None:
    """Put other lines, or none, in a line's place."""
    path = folder / row.segment
    lines = path.read_bytes().splitlines(keepends=True)
    assert lines[row.index] == row.raw
    lines[row.index : row.index + 1] = raws
    path.write_bytes(b"".join(lines))


def resealed(raw: bytes, old: bytes, new: bytes) -> bytes:
    """Return a line with one thing altered and a checksum that hides it."""
    assert raw.count(old) >= 1, old
    data = raw[: -CRC_BYTES - 1].replace(old, new, 1)
    return b'%b,"crc":"%08x"}\n' % (data, crc32(data))


def reheader(folder: Path, row: Row, *, n: int | None = None, p: str | None = None, **facts: Any) -> Row:
    """Change facts of a header; it is outside the chain."""
    record = parse(row.raw)
    body = json.dumps({**json.loads(bytes(record.d)), **facts}, separators=(",", ":"))
    raw = encode_line("H", record.id, record.n if n is None else n, record.p if p is None else p, body)
    replace(folder, row, raw)
    return row._replace(raw=raw)


def header_of(folder: Path, segment: str) -> Row:
    return next(row for row in _rows(folder) if row.segment == segment and row.kind == "H")


class Laid(NamedTuple):
    """A segment to be laid out: its number, where its header takes up, and the records that are left in it.

    `follows` is the number of the segment that its header names.
    """

    number: int
    first: int
    records: Sequence[int]
    follows: int | None = None
    durable: int = 0
    oldest_open: int = 1


def lay_out(folder: Path, boot: str, *segments: Laid) -> None:
    """Put the records of a writer's only segment into others, as failed syncs and power losses leave them."""
    assert len(names(folder, boot)) == 1
    lines = {row.n: row.raw for row in rows(folder, boot)}
    for laid in segments:
        path = segment_path(folder, NOON_NS, f"{boot}-0", laid.number)
        follows = (
            None if laid.follows is None else segment_path(folder, NOON_NS, f"{boot}-0", laid.follows).name
        )
        header = Header(
            boot=boot,
            worker=0,
            segment=laid.number,
            previous_segment=follows,
            created_unix_ns=str(NOON_NS),
            oldest_open=laid.oldest_open,
            durable=laid.durable,
        )
        start = encode_header("s" * 32, laid.first, previous_of(lines[laid.first].rstrip(b"\n")), header)
        path.write_bytes(b"".join([start, *[lines[number] for number in laid.records]]))


def append(folder: Path, kind: str, bill: int | str, body: str) -> Row:
    """Add a well-made line at the end of the last writer."""
    last = rows(folder, LAST)[-1]
    name = record_id(bill) if isinstance(bill, int) else bill
    raw = encode_line(kind, name, last.n + 1, chain(last.raw), body)  # type: ignore[arg-type]
    with (folder / last.segment).open("ab") as file:
        file.write(raw)
    return rows(folder, LAST)[-1]


def body_of(folder: Path, number: int) -> str:
    """Return the spans of a bill, to be written again."""
    row = next(row for row in rows(folder) if row.kind == "S" and row.id == record_id(number))
    text = row.raw[: -CRC_BYTES - 1].decode()
    return text[text.index('"resourceSpans":[') + len('"resourceSpans":[') : -1]


def append_bill(folder: Path, number: int, alter: Callable[[str], str]) -> Row:
    """Add an intent and its bill, whose spans are those of bill 30, altered."""
    fresh = 1000 + number
    intent = json.loads(bytes(parse(rows(folder, LAST)[-2].raw).d))
    trace, span = f"{fresh:032x}", f"{fresh:016x}"
    facts = {**intent, "record_id": record_id(fresh), "trace_id": trace, "span_id": span}
    append(folder, "I", fresh, json.dumps(facts, separators=(",", ":")))
    text = body_of(folder, 30).replace(record_id(30), record_id(fresh))
    text = text.replace(f"{31:032x}", trace).replace(f'"spanId":"{31:016x}"', f'"spanId":"{span}"')
    altered = alter(text)
    return append(folder, "S", fresh, altered)


def manifest_line(folder: Path, segment: str) -> dict[str, Any]:
    """Return what retention writes down about a segment."""
    own = [row for row in rows(folder) if row.segment == segment]
    return {
        "segment": segment,
        "bytes": (folder / segment).stat().st_size,
        "first": own[0].n,
        "last": own[-1].n,
        "hash": chain(own[-1].raw),
        "bills": sum(row.kind == "S" for row in own),
        "cost_pico_usd": 0,
        "removed_unix_ns": str(NOON_NS),
    }


def remove(folder: Path, *segments: str) -> None:
    """Remove segments as retention does."""
    for segment in segments:
        with (folder / "removed.jsonl").open("a") as file:
            file.write(json.dumps(manifest_line(folder, segment)) + "\n")
    for segment in segments:
        (folder / segment).unlink()


def make_backlog(
    folder: Path, count: int, *, boot: str = "ba", segment_bytes: int = 32 * 1024 * 1024
) -> None:
    """Make what a dead gateway left that could not ship: `count` bills of usual size, in sealed segments."""
    model = 0x7777_7777_7777
    marks = {f"{model + 1:032x}": "<trace>", f"{model + 1:016x}": "<span>", record_id(model): "<id>"}

    async def write_model() -> None:
        with Book(folder / "model", "bm") as book:
            book.intent(model)
            book.bill(model)

    asyncio.run(write_model())
    intent, bill = (row.raw[: -CRC_BYTES - 1].decode() for row in rows(folder / "model"))
    shutil.rmtree(folder / "model")
    texts = [intent[intent.index('"d":') + 4 : -1], bill[bill.index('"resourceSpans":[') + 17 : -1]]
    for old, new in marks.items():
        texts = [text.replace(old, new) for text in texts]
    assert all(text.count("<") >= 3 for text in texts)
    previous, number, segment = GENESIS, 0, 0
    lines: list[bytes] = []
    size, last = 0, None
    for index in range(count):
        name, trace, span = record_id(index), f"{index + 1:032x}", f"{index + 1:016x}"
        for kind, text in zip("IS", texts, strict=True):
            body = text.replace("<id>", name).replace("<trace>", trace).replace("<span>", span)
            if size == 0:
                segment += 1
                path = segment_path(folder, NOON_NS, f"{boot}-0", segment)
                header = Header(
                    boot=boot, worker=0, segment=segment, previous_segment=last, created_unix_ns=str(NOON_NS)
                )
                lines, last = [encode_header("s" * 32, number + 1, previous, header)], path.name
            number += 1
            raw = encode_line(kind, name, number, previous, body)  # type: ignore[arg-type]
            previous = chain(raw)
            lines.append(raw)
            size += len(raw)
        if size > segment_bytes or index == count - 1:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"".join(lines))
            size = 0
