"""The table of hostile replies: each with what the caller and the bill must say of it.

Three things may reach the caller, and nothing else: `official` the provider's own bytes, `refused` an error
of ours, `broken` a true prefix of the provider's stream and then our error event.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.providers.decoding import DECODED_BYTES_MAX
from tests.attacks.chaos import AfterPause, Close, Repeat, Reset, Stall, Step
from tests.attacks.wires import LAST_CHUNK, STREAM_HEAD, Wire, chunk, head, sized, streamed

Script = Callable[[Wire], Sequence[Step]]
SSE = "text/event-stream"
KILO = b"x" * 65536
BAIT = "http://127.0.0.1:9"


@dataclass(frozen=True)
class Case:
    """One fault: its script, and what must come of it."""

    name: str
    script: Script
    caller: str
    outcome: str
    error_type: str | None = None
    stream: bool = True
    status: int = 200
    hasty: bool = False
    body: Callable[[Wire], bytes] | None = None
    """Official bytes, where they are not the plain reply's or stream's."""
    free: bool = False
    ends_with_error: bool = False
    """The stream's error event is the last thing sent; of responses it is a terminal event."""
    steps: int | None = None
    """How many steps must have begun; all, unless the gateway hangs up on the fault."""


def cut(at: str, how: Step) -> Script:
    """Return a chunked stream that stops at a point of interest."""

    def script(wire: Wire) -> Sequence[Step]:
        usage = wire.closing()
        parts = {
            "behind the head": [],
            "inside the first event": [wire.opening()[:20]],
            "behind content": [wire.opening(), wire.content()],
            "inside content": [wire.opening(), wire.content(), wire.content()[:-9]],
            "between CR and LF": [wire.opening(), wire.content().replace(b"\n", b"\r\n")[:-1]],
            "inside usage": [wire.opening(), wire.content(), usage[:-12]],
            "before the end event": [wire.opening(), wire.content(), usage],
            "inside the end event": [wire.opening(), wire.content(), usage, wire.end[: len(wire.end) // 2]],
        }[at]
        return [STREAM_HEAD, *[chunk(part) for part in parts], how]

    return script


POINTS = [
    "behind the head",
    "inside the first event",
    "behind content",
    "inside content",
    "between CR and LF",
    "inside usage",
    "before the end event",
    "inside the end event",
]
BEFORE_THE_FIRST_EVENT = POINTS[:2]
CUTS = [
    Case(f"cut {at} by {type(how).__name__}", cut(at, how),
         "refused" if at in BEFORE_THE_FIRST_EVENT else "broken", "upstream_incomplete",
         "upstream_incomplete", status=502 if at in BEFORE_THE_FIRST_EVENT else 200)
    for at in POINTS
    for how in (Close(), Reset())
]  # fmt: skip


STREAMS = [
    Case("in order", lambda w: streamed(w.stream()), "official", "ok"),
    Case("cut behind the end event", lambda w: [STREAM_HEAD, chunk(w.stream()), Close()], "official", "ok"),
    Case("reset behind the end event", lambda w: [STREAM_HEAD, chunk(w.stream()), Reset()], "official", "ok"),
    Case(
        "end event without its blank line",
        lambda w: [head("200 OK", "connection: close", kind=SSE), w.stream()[:-2], Close()],
        "official", "ok", body=lambda w: w.stream()[:-2],
    ),
    Case(
        "closed without an end event, in order",
        lambda w: streamed(w.opening() + w.content()),
        "broken", "upstream_incomplete", "upstream_incomplete",
    ),
    Case(
        "close-delimited and cut",
        lambda w: [head("200 OK", "connection: close", kind=SSE), w.opening(), w.content(), Close()],
        "broken", "upstream_incomplete", "upstream_incomplete",
    ),
    Case(
        "no bytes at all", lambda w: streamed(),
        "refused", "upstream_incomplete", "upstream_incomplete", status=502,
    ),
    Case(
        "an empty body by its length",
        lambda w: [sized(b"", kind=SSE)],
        "refused", "upstream_incomplete", "upstream_incomplete", status=502,
    ),
    Case(
        "stall behind the head", lambda w: [STREAM_HEAD, Stall()],
        "refused", "upstream_timeout", "upstream_timeout", hasty=True, status=504,
    ),
    Case(
        "stall behind content", lambda w: [STREAM_HEAD, chunk(w.opening() + w.content()), Stall()],
        "broken", "upstream_timeout", "upstream_timeout", hasty=True,
    ),
    Case("stall behind the end event", lambda w: [STREAM_HEAD, chunk(w.stream()), Stall()], "official", "ok"),
    Case(
        "a drip of one byte", lambda w: [STREAM_HEAD, Repeat(chunk(b":"), every_s=0.05)],
        "refused", "upstream_timeout", "upstream_timeout", hasty=True, steps=2, status=504,
    ),
    Case(
        "a drip of events",
        lambda w: [STREAM_HEAD, chunk(w.opening()), Repeat(chunk(w.content()), every_s=0.05)],
        "broken", "upstream_timeout", "upstream_timeout", hasty=True, steps=3,
    ),
    Case(
        "an endless stream", lambda w: [STREAM_HEAD, chunk(w.opening()), Repeat(chunk(w.content() * 50))],
        "broken", "upstream_timeout", "upstream_timeout", hasty=True, steps=3,
    ),
    Case(
        "a line of 40 MB", lambda w: [STREAM_HEAD, chunk(w.opening()), Repeat(chunk(b"data: " + KILO), 640)],
        "broken", "upstream_error", "upstream_protocol", steps=3,
    ),
    Case(
        "an endless tail behind the end event",
        lambda w: [STREAM_HEAD, chunk(w.stream()), Repeat(chunk(b":" + KILO))],
        "official", "ok", steps=3, body=lambda w: w.stream(),
    ),
    Case(
        "malformed JSON in a chunk",
        lambda w: streamed(w.opening(), b'data: {"choices":[{"delta":\n\n', w.closing(), w.end),
        "official", "ok",
        body=lambda w: w.opening() + b'data: {"choices":[{"delta":\n\n' + w.closing() + w.end,
    ),
    Case(
        "bytes that are no text in a chunk",
        lambda w: streamed(w.opening(), b"data: \xff\xfe\x00\n\n", w.closing(), w.end),
        "official", "ok", body=lambda w: w.opening() + b"data: \xff\xfe\x00\n\n" + w.closing() + w.end,
    ),
    Case(
        "an error event and then the end of the body",
        lambda w: streamed(w.opening(), w.content(), w.error),
        "official", "upstream_error", "provider's", body=lambda w: w.opening() + w.content() + w.error,
    ),
    Case(
        "an error event at once", lambda w: streamed(w.error),
        "official", "upstream_error", "provider's", body=lambda w: w.error,
    ),
    Case(
        "an error event and then a reset",
        lambda w: [STREAM_HEAD, chunk(w.opening() + w.content() + w.error), AfterPause(b""), Reset()],
        "broken", "upstream_incomplete", "upstream_incomplete", ends_with_error=True,
        body=lambda w: w.opening() + w.content() + w.error,
    ),
    Case(
        "a second reply in one segment",
        lambda w: [STREAM_HEAD + chunk(w.stream()) + LAST_CHUNK + sized(b'{"stolen":1}'), Close()],
        "official", "ok",
    ),
    Case(
        "JSON that calls itself a stream", lambda w: [sized(w.whole(), kind=SSE)],
        "refused", "upstream_incomplete", "upstream_incomplete", status=502,
    ),
    *[
        Case(
            f"chunk framing: {name}",
            lambda w, bad=bad: [STREAM_HEAD, chunk(w.opening()), bad, Close()],
            "broken", "upstream_error", "upstream_protocol", steps=3,
        )
        for name, bad in {
            "no number": b"zz\r\nhello\r\n",
            "negative": b"-5\r\nhello\r\n",
            "longer than said": b"2\r\nhello\r\n0\r\n\r\n",
            "beyond 64 bits": b"fffffffffffffffff\r\nhello\r\n",
        }.items()
    ],
    Case(
        "deflate that is none",
        lambda w: [head("200 OK", "content-encoding: gzip", kind=SSE), w.stream(), Close()],
        "refused", "upstream_error", "upstream_protocol", steps=2, status=502,
    ),
]  # fmt: skip


def many(count: int) -> tuple[str, ...]:
    return tuple(f"x-{number}: y" for number in range(count))


def refused(name: str, script: Script, error: str = "upstream_protocol", **options: Any) -> Case:
    outcome = error if error in ("upstream_incomplete", "upstream_timeout") else "upstream_error"
    status = 504 if error == "upstream_timeout" else 502
    return Case(name, script, "refused", outcome, error, stream=False, status=status, **options)


def official(
    name: str, script: Script, outcome: str = "ok", error: str | None = None, **options: Any
) -> Case:
    return Case(name, script, "official", outcome, error, stream=False, **options)


WHOLES = [
    official("in order", lambda w: [sized(w.whole())]),
    official("malformed JSON", lambda w: [sized(b"{,}")], "upstream_error", "upstream_protocol",
             body=lambda w: b"{,}"),
    refused("JSON that stops", lambda w: [sized(w.whole()[:20])]),
    refused("an empty body", lambda w: [sized(b"")]),
    refused("a page", lambda w: [sized(b"<h1>hello</h1>", kind="text/html")]),
    refused("no JSON object", lambda w: [sized(b"[1]")]),
    refused("JSON of great depth that stops", lambda w: [sized(b'{"a":' + b"[" * 100_000)]),
    official("JSON of great depth", lambda w: [sized(DEEP)], "upstream_error", "upstream_protocol",
             body=lambda w: DEEP),
    official("an integer of 5,000 digits", lambda w: [sized(w.whole()[:-1] + b',"n":' + b"9" * 5000 + b"}")],
             body=lambda w: w.whole()[:-1] + b',"n":' + b"9" * 5000 + b"}"),
    official("an error inside a 200", lambda w: [sized(w.error.split(b"data: ")[1].strip())],
             "upstream_error", "provider's", body=lambda w: w.error.split(b"data: ")[1].strip()),
    official("status 204", lambda w: [b"HTTP/1.1 204 No Content\r\n\r\n"], "upstream_error",
             "upstream_protocol", status=204, body=lambda w: b""),
    official("status 299", lambda w: [sized(w.whole(), "299 Odd")], status=299),
    official("status 429 with usage", lambda w: [sized(w.whole(), "429 Slow", "retry-after: 7")],
             "upstream_error", "upstream_error", status=429, free=True),
    official("status 500 with a page", lambda w: [sized(b"<h1>oops</h1>", "500 Oops", kind="text/html")],
             "upstream_error", "500", status=500, free=True, body=lambda w: b"<h1>oops</h1>"),
    refused("SSE that calls itself JSON", lambda w: [sized(w.stream())]),
    refused("a length that is too short", lambda w: [head("200 OK", "content-length: 9") + w.whole()]),
    official("a second reply in one segment", lambda w: [sized(w.whole()) + sized(b'{"stolen":1}')]),
    official("trailers", lambda w: [head("200 OK", "transfer-encoding: chunked"),
             chunk(w.whole()) + b"0\r\nx-spanbill-cost-usd: lie\r\nx-trailer: 1\r\n\r\n"]),
    official("bytes above 0x7f in a header", lambda w: [sized(w.whole(), "200 OK", "x-odd: \xe9\xff")]),
    official("headers that speak for the gateway", lambda w: [sized(w.whole(), "200 OK", "x-request-id: lie",
             "X-Spanbill-Cost-USD: lie", "x-spanbill-provider: lie", "x-trace-id: lie")]),
    official("an interim reply", lambda w: [b"HTTP/1.1 103 Hints\r\nlink: <a>\r\n\r\n", sized(w.whole())]),
    refused("a length that is too long", lambda w: [head("200 OK", "content-length: 9999") + w.whole(),
            Close()], "upstream_incomplete"),
    refused("two lengths", lambda w: [sized(w.whole(), "200 OK", "content-length: 5")]),
    refused("a length and chunks", lambda w: [sized(w.whole(), "200 OK", "transfer-encoding: chunked")]),
    refused("a negative length", lambda w: [head("200 OK", "content-length: -1") + w.whole()]),
    refused("a length of 30 digits", lambda w: [head("200 OK", "content-length: " + "9" * 30) + w.whole()]),
    refused("status 600", lambda w: [sized(w.whole(), "600 Beyond")]),
    refused("status 99", lambda w: [sized(w.whole(), "099 Below")]),
    refused("status 1000", lambda w: [sized(w.whole(), "1000 Long")]),
    refused("status 101", lambda w: [
        b"HTTP/1.1 101 Switching\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n"]),
    *[
        refused(f"redirect {status}", lambda w, s=status: [sized(b"{}", f"{s} Moved", f"location: {BAIT}/x")])
        for status in (301, 302, 303, 307, 308)
    ],
    refused("a flood of interim replies", lambda w: [Repeat(b"HTTP/1.1 100 Continue\r\n\r\n")], steps=1),
    refused("a header of 1 MB", lambda w: [head("200 OK", "x-big: " + "y" * 2**20)], steps=1),
    refused("a header without end", lambda w: [b"HTTP/1.1 200 OK\r\nx-big: ", Repeat(KILO)], steps=2),
    refused("a status line without end", lambda w: [b"HTTP/1.1 200 ", Repeat(KILO)], steps=2),
    refused("a header name without end", lambda w: [b"HTTP/1.1 200 OK\r\n", Repeat(KILO)], steps=2),
    refused("thousands of headers", lambda w: [sized(w.whole(), "200 OK", *many(4000))]),
    refused("a control character in a header", lambda w: [sized(w.whole(), "200 OK", "x-odd: a\x01b\x00c")]),
    refused("no HTTP", lambda w: [b"\x15\x03\x03\x00\x02\x02\x28 and so on\r\n\r\n", Close()], steps=1),
    refused("HTTP/0.9", lambda w: [w.whole(), Close()], steps=1),
    refused("an unknown encoding", lambda w: [sized(w.whole(), "200 OK", "content-encoding: br")]),
    refused("gzip that is none", lambda w: [sized(w.whole(), "200 OK", "content-encoding: gzip")]),
    refused("a gzip bomb", lambda w: [sized(BOMB, "200 OK", "content-encoding: gzip")], "upstream_too_large"),
    refused("two encodings", lambda w: [sized(w.whole(), "200 OK", "content-encoding: gzip, gzip")]),
    refused("a body of 80 MB", lambda w: [head("200 OK", "connection: close"), Repeat(KILO, 1280), Close()],
            "upstream_too_large", steps=2),
    refused("reset before the head", lambda w: [Reset()], "upstream_incomplete"),
    refused("close before the head", lambda w: [Close()], "upstream_incomplete"),
    refused("reset in the status line", lambda w: [b"HTTP/1.", AfterPause(b"1 2"), Reset()],
            "upstream_incomplete"),
    refused("close in the head", lambda w: [b"HTTP/1.1 200 OK\r\nconte", Close()], "upstream_incomplete"),
    refused("reset in the body", lambda w: [sized(w.whole())[:-5], AfterPause(b""), Reset()],
            "upstream_incomplete"),
    refused("reset in chunks", lambda w: [head("200 OK", "transfer-encoding: chunked"), chunk(w.whole()),
            Reset()], "upstream_incomplete"),
    refused("reset in a body without length", lambda w: [head("200 OK"), w.whole(), AfterPause(b""), Reset()],
            "upstream_incomplete"),
    refused("silence before the head", lambda w: [Stall()], "upstream_timeout", hasty=True),
    refused("silence in the body", lambda w: [sized(w.whole())[:-5], Stall()], "upstream_timeout",
            hasty=True),
    refused("a drip in the head", lambda w: [b"HTTP/1.1 200 OK\r\nx: ", Repeat(b"y", every_s=0.05)],
            "upstream_timeout", hasty=True, steps=2),
    refused("a drip in the body", lambda w: [head("200 OK"), Repeat(b"y", every_s=0.05)],
            "upstream_timeout", hasty=True, steps=2),
]  # fmt: skip
DEEP = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
BOMB = gzip.compress(bytes(DECODED_BYTES_MAX + 2**20), 9)
CASES = [*CUTS, *STREAMS, *WHOLES]
