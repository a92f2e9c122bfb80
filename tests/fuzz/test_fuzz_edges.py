"""Fuzzed edges: headers, keys, a provider's HTTP, compressed bodies, the journal's lines and the settings."""

from __future__ import annotations

import asyncio
import gzip
import os
import random
import re
import zlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from opentelemetry.sdk.resources import Resource

from gateway.admission.virtual_keys import KeyRing, env_keys
from gateway.api.correlation import CLIENT_ID_CHARS_MAX, Ids, begin
from gateway.core.errors import CallerError, UpstreamError
from gateway.providers.connection import Connection
from gateway.providers.decoding import Decoder
from gateway.providers.upstream import HEADERS_MAX, Timeouts
from gateway.settings import Settings, SettingsError, load_settings
from otel.journal.lines import GENESIS, Damage, chain, encode_line, lines_in, parse, spans_of
from otel.traces import parse_traceparent, traces_from_env
from tests.attacks.wires import CHAT, LAST_CHUNK, STREAM_HEAD, chunk, head, sized
from tests.fuzz.mutation import INPUTS, TOKENS, cut, fuzz, mutated

TRACEPARENT = b"00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"
KEY = "sk-fuzz-0001"


def test_no_traceparent_breaks_its_reader() -> None:
    zero = TRACEPARENT.replace(b"0123456789abcdef0123456789abcdef", b"0" * 32)
    seeds = [
        TRACEPARENT,
        zero,
        TRACEPARENT[:36] + b"0" * 16 + b"-01",
        TRACEPARENT + b"-more",
        b"ff" + TRACEPARENT[2:],
        b"01" + TRACEPARENT[2:] + b"-x",
    ]
    valid = 0

    def check(chance: random.Random) -> None:
        nonlocal valid
        value = mutated(chance, seeds)
        parent = parse_traceparent(value)
        if parent is not None:
            valid += 1
            assert re.fullmatch(r"[0-9a-f]{32}", parent.trace_id)
            assert re.fullmatch(r"[0-9a-f]{16}", parent.span_id)
            assert int(parent.trace_id, 16)
            assert int(parent.span_id, 16)
            assert parent.trace_id.encode() == value[3:35]

    assert fuzz(check) >= INPUTS
    assert valid > INPUTS / 20


def test_no_headers_break_the_correlation_or_open_the_door() -> None:
    traces = traces_from_env(Resource.create({}), environ={})
    ring, ids = KeyRing(env_keys(f"alice={KEY}")), Ids()
    names = [b"traceparent", b"x-request-id", b"authorization", b"x-api-key", b"baggage", b"x-odd"]
    seeds = [TRACEPARENT, b"mine", f"Bearer {KEY}".encode(), KEY.encode(), b"Bearer ", b"bearer  x", b""]
    admitted = 0

    def check(chance: random.Random) -> None:
        nonlocal admitted
        headers = [(chance.choice(names), mutated(chance, seeds)) for _ in range(chance.randint(0, 6))]
        correlation = begin(headers, ids, traces, "POST /")
        claimed = correlation.client_request_id
        assert claimed is None or (0 < len(claimed) <= CLIENT_ID_CHARS_MAX and claimed.isprintable())
        for _, value in correlation.headers():
            assert re.fullmatch(rb"[0-9a-f-]+", value)
        try:
            identity = ring.identify(headers)
        except CallerError as refusal:
            if refusal.status != 401:
                raise
        else:
            admitted += 1
            assert identity.user_id == "alice"
            said = [value.split(b" ", 1)[-1].strip() for _, value in headers] + [
                v.strip() for _, v in headers
            ]
            stripped = [value[7:].strip() for _, value in headers]
            assert KEY.encode() in said + stripped

    assert fuzz(check) >= INPUTS
    assert admitted > INPUTS / 50


def test_no_list_of_keys_breaks_its_reader_or_is_repeated_in_its_error() -> None:
    seeds = [b"alice=sk-a,bob=sk-b", b"sk-a", b" sk-a , x=y== ,", b"alice=alice=sk==", b"==", b"a=b,a=c,a=b"]

    def check(chance: random.Random) -> None:
        text = mutated(chance, seeds).decode("utf-8", "surrogateescape")
        try:
            entries = env_keys(text)
            KeyRing(entries)
        except ValueError as refusal:
            assert "sk-" not in str(refusal)  # noqa: PT017  # what the error says is the promise
            return
        for entry in entries:
            assert re.fullmatch(r"key_[0-9a-f]{12}", entry.identity.key_id)
            assert re.fullmatch(r"[A-Za-z0-9_.@+-]{1,64}", entry.identity.user_id)
            assert len(entry.digest) == 32

    assert fuzz(check) >= INPUTS


HTTP_TOKENS = [
    b"content-length: 5\r\n", b"transfer-encoding: chunked\r\n", b"HTTP/1.1 ", b"0\r\n\r\n", b";x=y",
    b" 600 ", b"connection: close\r\n", b"content-encoding: gzip\r\n", b"5\r\nhello\r\n", b"\r\n ",
]  # fmt: skip


class FakeTransport(asyncio.Transport):
    """A transport whose other end is the fuzzer."""

    def __init__(self) -> None:
        super().__init__()
        self.closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass

    def is_closing(self) -> bool:
        return self.closing

    def abort(self) -> None:
        self.closing = True

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


async def replied(pieces: list[bytes]) -> tuple[str, int, bytes, list[tuple[bytes, bytes]], int]:
    """Play a reply into a connection; return (code or `ok`, status, body, headers, times lost)."""
    lost: list[Connection] = []
    loop = asyncio.get_running_loop()
    connection = Connection(loop, lost.append)
    transport = FakeTransport()
    connection.connection_made(transport)

    async def read() -> tuple[str, int, bytes, list[tuple[bytes, bytes]]]:
        body: list[bytes] = []
        try:
            await connection.exchange(b"", Timeouts(total_s=30))
            while piece := await connection.read():
                body.append(piece)
        except UpstreamError as fault:
            return fault.code, connection.status, b"".join(body), []
        return "ok", connection.status, b"".join(body), list(connection.reply_headers)

    reading = asyncio.ensure_future(read())
    await asyncio.sleep(0)
    for piece in pieces:
        if not transport.closing:
            connection.data_received(piece)
            await asyncio.sleep(0)
    connection.connection_lost(None)
    result = await reading
    connection.recycle()
    return (*result, len(lost))


def test_no_reply_of_a_provider_breaks_the_connection_and_no_cut_changes_it() -> None:
    packed = gzip.compress(CHAT.whole())
    seeds = [
        sized(CHAT.whole()), STREAM_HEAD + chunk(CHAT.opening()) + chunk(CHAT.end) + LAST_CHUNK,
        head("200 OK") + CHAT.whole(), sized(packed, "200 OK", "content-encoding: gzip"),
        b"HTTP/1.1 103 Hints\r\nlink: <a>\r\n\r\n" + sized(b"{}", "429 Slow", "retry-after: 1"),
        head("200 OK", "transfer-encoding: chunked") + chunk(b"x" * 300) + b"0\r\nx-trailer: 1\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\nabc", b"HTTP/1.1 204 No\r\n\r\n", sized(b"", "307 Go", "location: /x"),
        sized(b"{}") + sized(b"stolen"), sized(b"{}") + head("200 OK") + b"stolen",
    ]  # fmt: skip
    tokens = [*TOKENS, *HTTP_TOKENS]
    whole = 0

    async def one(chance: random.Random) -> None:
        nonlocal whole
        data = mutated(chance, seeds, tokens)
        code, status, body, headers, lost = await replied([data])
        assert lost == 1 or code == "ok"
        assert code in ("ok", "upstream_protocol", "upstream_incomplete", "upstream_too_large")
        if code == "ok":
            whole += 1
            assert 200 <= status < 300 or 400 <= status < 600
            assert len(headers) <= HEADERS_MAX
            assert all(name == name.lower() and b"\n" not in value for name, value in headers)
        again = await replied(cut(chance, data))
        if code == "ok" or again[0] == "ok":
            assert again[:4] == (code, status, body, headers), data

    with asyncio.Runner() as runner:
        assert fuzz(lambda chance: runner.run(one(chance))) >= INPUTS
    assert whole > INPUTS / 10


@pytest.mark.parametrize(
    ("bits", "pack"), [(31, gzip.compress), (15, zlib.compress)], ids=["gzip", "deflate"]
)
def test_no_compressed_body_breaks_the_decoder_or_ends_early(bits: int, pack: Any) -> None:
    plain = [CHAT.whole(), CHAT.stream() * 3, b"", b"\x00" * 50_000]
    seeds = [pack(body) for body in plain] + [pack(b"a") + pack(b"b")]
    whole = 0

    def check(chance: random.Random) -> None:
        nonlocal whole
        data = mutated(chance, seeds, [b"\x00", b"\xff", b"\x1f\x8b", b"\x78\x9c", b"\x00" * 8])
        results = []
        for pieces in ([data], cut(chance, data)):
            decoder = Decoder(bits)
            try:
                out = b"".join([decoder.feed(piece) for piece in pieces if piece])
                decoder.finish()
            except UpstreamError as fault:
                out = fault.code.encode()
            results.append(out)
        assert results[0] == results[1]
        if results[0] not in (b"upstream_protocol", b"upstream_incomplete") and data:
            whole += 1
            assert results[0] == zlib.decompress(data, bits)

    assert fuzz(check) >= INPUTS
    assert whole > INPUTS / 20


def segment(records: int = 6) -> bytes:
    lines, previous = [], GENESIS
    for number in range(records):
        kind, body = (("I", '{"a":1}'), ("S", '{"scopeSpans":[]}'), ("P", "{}"))[number % 3]
        line = encode_line(kind, f"id-{number}", number + 1, previous, body)  # type: ignore[arg-type]
        previous = chain(line[:-1])
        lines.append(line)
    return b"".join(lines)


def test_no_damage_to_a_segment_hides_a_whole_line_or_breaks_its_reader() -> None:
    whole = segment()
    written = set(whole.splitlines())
    seeds = [whole, whole[:-5], whole + b"\x00" * 64, whole * 2, b""]
    damaged = 0

    def check(chance: random.Random) -> None:
        nonlocal damaged
        data = mutated(chance, seeds)
        at = 0
        seen = []
        for found in lines_in(data, 100):
            if isinstance(found, Damage):
                damaged += 1
                assert found.offset == 100 + at
                assert found.length > 0
                at += found.length
                continue
            offset, line = found
            assert offset == 100 + at
            at += len(line) + 1
            assert line in written, "a line that was never written passed for whole"
            assert parse(line).n > 0
            assert (spans_of(line) is None) == (parse(line).k != "S")
            seen.append(line)
        assert at == len(data), "some bytes are neither line nor damage"
        assert seen == [line for line in data.split(b"\n")[:-1] if line in written]

    assert fuzz(check) >= INPUTS
    assert damaged > INPUTS / 10


def test_no_bytes_break_the_parser_of_a_line() -> None:
    def check(chance: random.Random) -> None:
        line = mutated(chance, segment().splitlines())
        try:
            record = parse(line)
        except ValueError:
            return
        assert record.k in "HIPS"

    assert fuzz(check) >= INPUTS


YAML = [
    b"api_keys: sk-a\nserver:\n  port: 8080\n  max_body_bytes: 5000\njournal:\n  durability: group\n",
    b"keys:\n  - {id: k, key: sk-a, user: u}\nproviders:\n  p: {base_url: 'http://x', models: [m]}\n",
    b"upstream: {total_timeout_s: 1.5}\nprices: {overrides: {a/b: {input: '1'}}}\n",
    b"- 1\n", b"", b"demo: false\nlogging: {level: debug}\n",
]  # fmt: skip
YAML_TOKENS = [
    *TOKENS, b": ", b"- ", b"&a ", b"*a", b"!!python/object:os.system ", b"2001-99-99", b"0x", b"1e5",
    b"<<: ", b"|\n", b"---\n", b"%YAML 9\n", b"inf", b".nan", b"'", b"[", b"? ",
]  # fmt: skip


def test_no_file_of_settings_breaks_the_loader(tmp_path: Path) -> None:
    file = tmp_path / "spanbill.yaml"
    loaded = 0

    def check(chance: random.Random) -> None:
        nonlocal loaded
        file.write_bytes(mutated(chance, YAML, YAML_TOKENS)[:300])
        try:
            settings = load_settings({"SPANBILL_CONFIG": str(file)})
        except SettingsError as refusal:
            behind_names = [line.rpartition("): ")[2] for line in str(refusal).splitlines()]
            assert "sk-" not in "".join(behind_names)
            return
        loaded += 1
        assert isinstance(settings, Settings)
        assert 0 <= settings.server.port <= 65535
        assert "sk-a" not in settings.model_dump_json()

    assert fuzz(check) >= INPUTS
    assert loaded > INPUTS / 20


LEAKS = {
    "bytes that are no UTF-8": b"api_keys: \xff\n",
    "a date that is none": b"demo: 2001-99-99\n",
    "great depth": b"[" * 3000,
}


@pytest.mark.parametrize("leak", LEAKS)
def test_a_file_that_is_no_yaml_is_a_mistake_like_any_other(leak: str, tmp_path: Path) -> None:
    file = tmp_path / "spanbill.yaml"
    file.write_bytes(LEAKS[leak])
    with pytest.raises(SettingsError):
        load_settings({"SPANBILL_CONFIG": str(file)})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"api_keys: *sk-secret-0001\n", "found undefined alias something"),
        (b"api_keys: &sk-secret-0001 a\nkeys: &sk-secret-0001 b\n", "second occurrence"),
        (b"api_keys: !sk-secret-0001 a\n", "could not determine a constructor for the tag something"),
        (b"api_keys: !sk!secret-0001 'a'\n", "found undefined tag handle something"),
        (b"api_keys:\n\t- a\n", r"found character '\t' that cannot start any token"),
        (b"api_keys: [a\nb: c]\n", "expected ',' or ']', but got ':'"),
    ],
)
def test_a_mistake_in_yaml_is_told_without_what_stands_there(text: bytes, told: str, tmp_path: Path) -> None:
    file = tmp_path / "spanbill.yaml"
    file.write_bytes(text)
    with pytest.raises(SettingsError) as refusal:
        load_settings({"SPANBILL_CONFIG": str(file)})
    assert str(refusal.value).endswith(told)
    assert "secret" not in str(refusal.value)


def test_a_variable_that_is_no_json_is_a_mistake_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPANBILL_KEYS", '[{"key": "sk-secret-0001"')
    with pytest.raises(SettingsError, match=r"SPANBILL_KEYS: the variable is not valid JSON$"):
        load_settings({**os.environ, "SPANBILL_CONFIG": os.devnull})


@pytest.mark.parametrize(
    "text",
    [
        'api_keys: "sk-secret-0001\ndemo: false\n', "api_keys: [sk-secret-0001, }\n",
        "api_keys: sk-secret-0001: x\n",
        "api_keys: &a sk-secret-0001\n- a\n", "- sk-secret-0001\n", "api_keys: sk-secret-0001\x07\n",
        "keys:\n  - {id: k, key: [sk-secret-0001], user: u}\n", "sk-secret-0001\n",
    ],
)  # fmt: skip
def test_a_mistake_in_the_file_is_told_without_the_keys_in_it(text: str, tmp_path: Path) -> None:
    file = tmp_path / "spanbill.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError) as told:
        load_settings({"SPANBILL_CONFIG": str(file)})
    assert str(file) in str(told.value) or "keys" in str(told.value)
    assert "sk-secret" not in str(told.value)


def test_the_loader_takes_yaml_for_data_only(tmp_path: Path) -> None:
    file = tmp_path / "spanbill.yaml"
    file.write_text("demo: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(SettingsError):
        load_settings({"SPANBILL_CONFIG": str(file)})
    assert yaml.safe_load("demo: false") == {"demo": False}
