r"""Lines: one record is one line, and one line is at once a journal record and plain OTLP/JSON.

    {"j":{"k":"S","id":"…","n":12,"p":"…"},"resourceSpans":[…],"crc":"1a2b3c4d"}\n
     │     │   │        │      │             │                    └ CRC-32 of all that stands before `,"crc"`
     │     │   │        │      │             └ kinds S and R only: what a Collector reads
     │     │   │        │      └ hash of the line before: a removed or altered line breaks the chain
     │     │   │        └ number of the record in its writer's sequence, without gaps
     │     │   └ id of the bill
     │     └ H header, I intent, P progress, S settled, R revision of a settled bill
     └ ours; stock consumers ignore `j` and `crc`, and H, I and P decode to no span at all

H, I and P carry their facts as `"d":{…}` inside `j`. A header is not part of the sequence: it says with `n`
and `p` where its segment takes the sequence up, so a record that is written again after a failed sync is
the same line byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from hashlib import blake2b
from typing import Final, Literal
from zlib import crc32

import msgspec

Kind = Literal["H", "I", "P", "S", "R"]
WITH_SPANS: Final = ("S", "R")
"""Kinds whose lines a Collector reads."""

FORMAT_VERSION: Final = 1
LINE_BYTES_MAX: Final = 512 * 1024
"""Stock readers of JSON lines split at 1 MiB; half of that leaves room for wrapping."""
GENESIS: Final = "0" * 16
"""The `p` of a writer's first record."""

_CRC: Final = b',"crc":"'
_CRC_BYTES: Final = len(_CRC) + 8 + 2
_SPANS: Final = b'"resourceSpans":['
_SPAN_KINDS: Final = (b'{"j":{"k":"S"', b'{"j":{"k":"R"')
_OURS: Final = re.compile(
    rb'\{"j":\{"k":"[HIPSR]","id":"[0-9a-zA-Z_.:-]{1,128}","n":[0-9]{1,18},"p":"[0-9a-f]{16}"'
)
_KIND_AT: Final = len('{"j":{"k":"')


class Damage(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch of a segment that is not a valid line.

    Args:
        offset: of its first byte in the segment.
        length: in bytes, newline included where there is one.
        reason: `torn` (no newline at the end of the segment), `checksum` or `not_a_record`.
    """

    offset: int
    length: int
    reason: Literal["torn", "checksum", "not_a_record"]


class Record(msgspec.Struct, frozen=True):
    """The `j` member of a line."""

    k: Kind
    id: str
    n: int
    p: str
    d: msgspec.Raw = msgspec.Raw(b"null")


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What the header of a segment says.

    Args:
        previous_segment: file name of the writer's segment before this one.
        oldest_open: number of the writer's oldest segment that may hold an intent without its bill.
        durable: number up to which every record was durable: none of them may lack.
        sealed: by dead writer the number and hash of its newest record before the first that lacks, as found
            when this writer began: a tail that was removed later can be proved.
    """

    v: int = FORMAT_VERSION
    boot: str
    worker: int
    segment: int
    previous_segment: str | None
    created_unix_ns: str
    oldest_open: int = 1
    durable: int = 0
    sealed: dict[str, tuple[int, str]] = {}


class _Line(msgspec.Struct, frozen=True):
    j: Record


_decoder = msgspec.json.Decoder(_Line)


def encode_line(kind: Kind, record_id: str, number: int, previous: str, body: str) -> bytes:
    """Return one line with its newline.

    Args:
        body: for S and R, `ResourceSpans` objects joined by commas; otherwise a JSON object.

    Raises:
        ValueError: the line would be larger than LINE_BYTES_MAX.
    """
    text = f'{{"j":{{"k":"{kind}","id":"{record_id}","n":{number},"p":"{previous}"'
    text += f'}},"resourceSpans":[{body}]' if kind in WITH_SPANS else f',"d":{body}}}'
    data = text.encode()
    if len(data) + _CRC_BYTES + 1 > LINE_BYTES_MAX:
        raise ValueError(f"a journal line of {len(data)} bytes is over {LINE_BYTES_MAX}")
    return b'%b,"crc":"%08x"}\n' % (data, crc32(data))


def encode_header(segment_id: str, first: int, previous: str, header: Header) -> bytes:
    """Return the first line of a segment whose next record is `first` and follows the hash `previous`."""
    return encode_line("H", segment_id, first, previous, msgspec.json.encode(header).decode())


def header_of(record: Record) -> Header:
    """Return what a header says.

    Raises:
        ValueError: it is none that can be read.
    """
    try:
        return msgspec.json.decode(record.d, type=Header)
    except ValueError as fault:
        raise ValueError("not a header") from fault


def chain(line: bytes) -> str:
    """Return what the next record carries as `p`."""
    return blake2b(line, digest_size=8).hexdigest()


def previous_of(line: bytes) -> str:
    """Return the `p` of a line of ours: nothing before it in `j` can hold the member's name."""
    start = line.index(b'"p":"') + 5
    return line[start : start + len(GENESIS)].decode()


def kind_of(line: bytes) -> str:
    """Return the kind of a whole line of ours, by its place."""
    return chr(line[_KIND_AT])


def number_of(line: bytes) -> int:
    """Return the `n` of a whole line of ours: nothing before it in `j` can hold the member's name."""
    start = line.index(b'"n":', _KIND_AT) + 4
    return int(line[start : line.index(b",", start)])


def is_whole(line: bytes) -> bool:
    """Say whether a line (without its newline) is what was written, by its checksum."""
    at = len(line) - _CRC_BYTES
    return at > 0 and line[at:] == b',"crc":"%08x"}' % crc32(line[:at])


def parse(line: bytes) -> Record:
    """Return the `j` member of a whole line.

    Raises:
        ValueError: the checksum holds, but it is no record of ours.
    """
    try:
        return _decoder.decode(line).j
    except ValueError as fault:
        raise ValueError("not a journal record") from fault


def spans_of(line: bytes) -> bytes | None:
    """Return the inside of `resourceSpans` of a whole line, by byte search; None for other kinds.

    Nothing in `j` of such a line can hold the member's name: it has a UUID and numbers only.
    """
    if not line.startswith(_SPAN_KINDS):
        return None
    start = line.find(_SPANS) + len(_SPANS)
    return line[start : len(line) - _CRC_BYTES - 1]


def lines_in(data: bytes, offset: int = 0) -> Iterator[tuple[int, bytes] | Damage]:
    """Yield each whole line with its offset, and each damaged stretch, in order; damage stops nothing.

    Args:
        data: bytes of a segment, from a line's start.
        offset: of `data` in the segment.
    """
    at = 0
    while at < len(data):  # each turn moves `at` forward
        end = data.find(b"\n", at)
        if end < 0:
            yield Damage(offset=offset + at, length=len(data) - at, reason="torn")
            return
        line = data[at:end]
        if not is_whole(line):
            yield Damage(offset=offset + at, length=end + 1 - at, reason="checksum")
        elif not _OURS.match(line):
            yield Damage(offset=offset + at, length=end + 1 - at, reason="not_a_record")
        else:
            yield offset + at, line
        at = end + 1
