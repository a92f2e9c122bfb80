"""Redaction: secrets leave a capture before it is written; of headers only listed ones are ever in it.

Three nets, one behind the other, over the bytes as they came, whether JSON, a stream of it, cut off, or none:
the values of headers that are not listed (the caller's key and the provider's among them), tokens that look
like keys, and the values of named JSON fields, also inside JSON that stands in a string of JSON. Rather too
much is taken out than too little. What a model says a few letters an event is not put together for this.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

Header = tuple[bytes, bytes]

GONE: Final = b"[redacted]"
HEADERS: Final = frozenset(
    {
        b"accept",
        b"accept-encoding",
        b"anthropic-beta",
        b"anthropic-version",
        b"cache-control",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"date",
        b"host",
        b"idempotency-key",
        b"openai-beta",
        b"openai-processing-ms",
        b"openai-version",
        b"request-id",
        b"retry-after",
        b"retry-after-ms",
        b"server",
        b"traceparent",
        b"traceresponse",
        b"transfer-encoding",
        b"user-agent",
        b"x-request-id",
        b"x-should-retry",
        b"x-spanbill-attempts",
        b"x-spanbill-cost-status",
        b"x-spanbill-cost-usd",
        b"x-spanbill-debug",
        b"x-spanbill-latency-ms",
        b"x-spanbill-model",
        b"x-spanbill-provider",
        b"x-trace-id",
    }
)
HEADER_BEGINNINGS: Final = (b"anthropic-ratelimit-", b"x-ratelimit-", b"x-stainless-")
HEADERS_MAX: Final = 256
HEADER_CHARS_MAX: Final = 1024

FIELDS: Final = (
    "access_token",
    "api-key",
    "api_key",
    "apikey",
    "authorization",
    "client_secret",
    "cookie",
    "credentials",
    "id_token",
    "passwd",
    "password",
    "private_key",
    "refresh_token",
    "secret",
    "secret_key",
    "set-cookie",
    "x-api-key",
)
"""JSON fields whose values never stay, whatever the operator adds."""

CREDENTIALS: Final = frozenset(
    {b"authorization", b"proxy-authorization", b"x-api-key", b"api-key", b"cookie"}
)
SECRETS_MAX: Final = 64
SECRET_BYTES_MIN: Final = 12
CREDENTIAL_BYTES_MIN: Final = 6
"""What is shorter is left where it stands in a body: every word could be one."""
_TOKENS: Final = (
    (b"sk-", 8),
    (b"pk-", 16),
    (b"rk_live_", 8),
    (b"sk_live_", 8),
    (b"hf_", 16),
    (b"gsk_", 16),
    (b"xai-", 16),
    (b"ghp_", 16),
    (b"gho_", 16),
    (b"ghs_", 16),
    (b"github_pat_", 16),
    (b"glpat-", 16),
    (b"xoxb-", 10),
    (b"xoxp-", 10),
    (b"AKIA", 16),
    (b"ASIA", 16),
    (b"AIza", 30),
    (b"ya29.", 16),
    (b"eyJ", 40),
    (b"bearer ", 8),
    (b"Bearer ", 8),
)
"""How keys begin, and how many characters follow at least."""
_TAIL: Final = re.compile(rb"[A-Za-z0-9_.~+/=-]*")
_SCHEMES: Final = frozenset({b"Bearer", b"bearer", b"Basic"})
_DIGIT: Final = re.compile(rb"[0-9]")
_MARKS: Final = re.compile(rb'["{}\[\]]')
_SCALAR: Final = re.compile(rb"[^,}\]\s]*")
_SPACE: Final = re.compile(rb"[ \t\r\n]*")
_WORDS: Final = re.compile(rb"[^\s;,=\"']+")
_BEGIN, _PRIVATE, _END = b"-----BEGIN ", b"PRIVATE KEY", b"-----END "

Range = tuple[int, int, bytes]
"""From, until before, and what stands there instead."""


def shown_headers(headers: Sequence[Header]) -> tuple[dict[str, str], list[str]]:
    """Return the listed headers with their values, and the names of the others."""
    shown: dict[str, str] = {}
    others: list[str] = []
    for name, value in headers[:HEADERS_MAX]:
        text = redacted(name[:HEADER_CHARS_MAX], ()).decode("latin-1")
        if _listed(name):
            shown[text] = redacted(value[:HEADER_CHARS_MAX], ()).decode("latin-1")
        else:
            others.append(text)
    return shown, others


def secrets_in(headers: Iterable[Header]) -> list[bytes]:
    """Return what may be secret: values of headers that are not listed, and their words, if they are long."""
    found: dict[bytes, None] = {}
    for name, value in headers:
        if not _listed(name):
            least = CREDENTIAL_BYTES_MIN if name in CREDENTIALS else SECRET_BYTES_MIN
            for secret in (value, *_WORDS.findall(value)):
                if len(secret) >= least and secret not in _SCHEMES and len(found) < SECRETS_MAX:
                    found[secret] = None
    return list(found)


class Redactor:
    """Takes secrets out of bodies.

    Args:
        fields: names of JSON fields besides FIELDS; case does not matter.
    """

    def __init__(self, fields: Iterable[str] = ()) -> None:
        self._fields = tuple(dict.fromkeys(name.lower().encode() for name in (*FIELDS, *fields) if name))

    def body(self, data: bytes, secrets: Iterable[bytes]) -> bytes:
        """Return a body, or its beginning, without what is secret."""
        return redacted(data, secrets, self._fields)


def redacted(data: bytes, secrets: Iterable[bytes], fields: Sequence[bytes] = ()) -> bytes:
    """Return `data` without `secrets`, tokens that look like keys, and the values of JSON `fields`."""
    found = [*_exact(data, secrets), *_tokens(data), *_private_keys(data), *_values(data, fields)]
    if not found:
        return data
    pieces: list[bytes] = []
    at = 0
    for start, end, instead in sorted(found):
        if start >= at:
            pieces += (data[at:start], instead)
        at = max(at, end)
    pieces.append(data[at:])
    return b"".join(pieces)


def _listed(name: bytes) -> bool:
    return name in HEADERS or name.startswith(HEADER_BEGINNINGS)


def _each(data: bytes, needle: bytes) -> Iterator[int]:
    at = data.find(needle)
    while at >= 0:  # each turn goes on behind the last one
        yield at
        at = data.find(needle, at + len(needle))


def _exact(data: bytes, secrets: Iterable[bytes]) -> Iterator[Range]:
    for secret in secrets:
        for at in _each(data, secret):
            yield at, at + len(secret), GONE


def _tokens(data: bytes) -> Iterator[Range]:
    for beginning, least in _TOKENS:
        behind = 0
        for at in _each(data, beginning):
            if at < behind:
                continue  # inside the last one
            tail = _TAIL.match(data, at + len(beginning))
            assert tail is not None  # it may be empty
            behind = tail.end()
            if len(tail[0]) >= least and (_begins(data, at) or _DIGIT.search(tail[0])):
                yield at, behind, GONE


def _begins(data: bytes, at: int) -> bool:
    """Say whether a word begins here; an escaped line break in a string of JSON ends one."""
    return at == 0 or not data[at - 1 : at].isalnum() or data[at - 2 : at - 1] == b"\\"


def _private_keys(data: bytes) -> Iterator[Range]:
    behind = 0
    for at in _each(data, _BEGIN):
        if at >= behind and _PRIVATE in data[at : at + 64]:
            end = data.find(_END, at)
            behind = len(data) if end < 0 else end
            yield at, behind, GONE


def _values(data: bytes, fields: Sequence[bytes]) -> Iterator[Range]:
    """Yield the values of named fields; nothing inside one that is taken out is looked at again."""
    lower = data.lower()
    starts = sorted((at, len(name)) for name in fields for at in _each(lower, name))
    behind = 0
    for at, length in starts:
        if at < behind:
            continue
        depth = _backslashes(data, at - 1)
        quote = b"\\" * depth + b'"'
        if data[at - 1 : at] != b'"' or not data.startswith(quote, at + length):
            continue
        colon = _after_space(data, at + length + len(quote))
        if data[colon : colon + 1] != b":":
            continue
        value = _after_space(data, colon + 1)
        behind = _end_of_value(data, value, depth)
        yield value, behind, quote + GONE + quote


def _after_space(data: bytes, at: int) -> int:
    space = _SPACE.match(data, at)
    assert space is not None  # it may be empty
    return space.end()


def _backslashes(data: bytes, at: int) -> int:
    """Return how many backslashes stand before `at`."""
    start = at
    while start > 0 and data[start - 1] == 0x5C:  # bounded by the data
        start -= 1
    return max(0, at - start)


def _end_of_value(data: bytes, at: int, depth: int) -> int:
    """Return where a JSON value ends; the end of the data where it was cut off.

    Args:
        depth: how many backslashes stand before each of its quotes: 0, or 1 for JSON in a string, or 3, …
    """
    if data.startswith(b"\\" * depth + b'"', at):
        return _end_of_string(data, at + depth + 1, depth)
    if data[at : at + 1] not in (b"{", b"["):
        scalar = _SCALAR.match(data, at)
        assert scalar is not None  # it may be empty
        return scalar.end()
    inside, behind = 0, at
    for mark in _MARKS.finditer(data, at):
        if mark.start() < behind:
            continue  # inside a string
        if mark[0] == b'"':
            behind = _end_of_string(data, mark.end(), depth)
            continue
        inside += 1 if mark[0] in b"{[" else -1
        if inside == 0:
            return mark.end()
    return len(data)


def _end_of_string(data: bytes, at: int, depth: int) -> int:
    for quote in _each_from(data, at):
        if _backslashes(data, quote) % (2 * (depth + 1)) == depth:
            return quote + 1
    return len(data)


def _each_from(data: bytes, at: int) -> Iterator[int]:
    at = data.find(b'"', at)
    while at >= 0:  # each turn goes on behind the last one
        yield at
        at = data.find(b'"', at + 1)
