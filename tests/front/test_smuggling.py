"""Smuggling: what two parties could read differently gets one refusal, and nothing behind it is served."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator

import pytest

from tests.front.raw_http import (
    CHAT,
    CountingProvider,
    Response,
    assert_own_answer,
    counting_provider,
    dial,
    read_to_end,
    request,
    talk,
)
from tests.gateway_process import KEYS, Gateway, bills_in_journal

AUTH = f"Authorization: Bearer {KEYS['alice']}\r\n".encode()
BODY = json.dumps({"model": "counted-1", "messages": [{"role": "user", "content": "hi"}]}).encode()
CHUNK = b"%x\r\n%s\r\n" % (len(BODY), BODY)
CHUNKS = CHUNK + b"0\r\n\r\n"
START = b"POST /v1/chat/completions HTTP/1.1\r\n"
HEAD = START + b"Host: gateway.test\r\n" + AUTH
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
HIDDEN = request(user="bob")
"""What an attacker hides in a body; served to nobody."""


def with_length(value: bytes) -> bytes:
    return HEAD + b"Content-Length:" + value + b"\r\n\r\n" + BODY


def with_coding(value: bytes) -> bytes:
    return HEAD + b"Transfer-Encoding:" + value + b"\r\n\r\n" + CHUNKS


def with_header(line: bytes) -> bytes:
    return HEAD + line + LENGTH + b"\r\n" + BODY


def with_chunks(chunks: bytes) -> bytes:
    return HEAD + CHUNKED + b"\r\n" + chunks


def to(target: bytes, host: bytes = b"gateway.test") -> bytes:
    return b"POST " + target + b" HTTP/1.1\r\nHost: " + host + b"\r\n" + AUTH + LENGTH + b"\r\n" + BODY


N = b"%d" % len(BODY)
REFUSED = {
    # two framings
    "length then chunked": HEAD + LENGTH + CHUNKED + b"\r\n" + CHUNKS,
    "chunked then length": HEAD + CHUNKED + LENGTH + b"\r\n" + CHUNKS,
    "length 0 and chunked": HEAD + b"Content-Length: 0\r\n" + CHUNKED + b"\r\n" + CHUNKS,
    "length 4 and chunked, a request hidden": HEAD
    + b"Content-Length: 4\r\n"
    + CHUNKED
    + b"\r\n0\r\n\r\n"
    + HIDDEN,
    "two lengths, equal": HEAD + LENGTH + LENGTH + b"\r\n" + BODY,
    "two lengths, different": HEAD + LENGTH + b"Content-Length: 0\r\n\r\n" + BODY,
    "two lengths, different, the other first": HEAD + b"Content-Length: 0\r\n" + LENGTH + b"\r\n" + BODY,
    "two codings, equal": HEAD + CHUNKED + CHUNKED + b"\r\n" + CHUNKS,
    "two codings, different": HEAD + CHUNKED + b"Transfer-Encoding: identity\r\n\r\n" + CHUNKS,
    # one length, written strangely
    "length with plus": with_length(b" +" + N),
    "length with minus": with_length(b" -" + N),
    "length with a space inside": with_length(b" 1 " + N),
    "length with a comma": with_length(b" " + N + b", " + N),
    "length in hex": with_length(b" 0x%x" % len(BODY)),
    "length with a fraction": with_length(b" " + N + b".0"),
    "length with an underscore": with_length(b" 1_0"),
    "length empty": with_length(b""),
    "length overflowing": with_length(b" 99999999999999999999999"),
    "length folded": with_length(b"\r\n " + N),
    "length with trailing tab": with_length(b" " + N + b"\t"),
    # one coding, written strangely
    "coding identity": with_coding(b" identity"),
    "coding xchunked": with_coding(b" xchunked"),
    "coding in capitals": with_coding(b" CHUNKED"),
    "coding with vertical tab": with_coding(b" \x0bchunked"),
    "coding quoted": with_coding(b' "chunked"'),
    "coding with parameter": with_coding(b" chunked;q=1"),
    "coding with trailing tab": with_coding(b" chunked\t"),
    "coding with trailing space": with_coding(b" chunked "),
    "coding list": with_coding(b" gzip, chunked"),
    "coding list the other way": with_coding(b" chunked, identity"),
    "coding with leading comma": with_coding(b" ,chunked"),
    "coding with trailing comma": with_coding(b" chunked,"),
    "coding twice in a list": with_coding(b" chunked, chunked"),
    "coding folded": with_coding(b"\r\n chunked"),
    "coding of HTTP/1.0": with_coding(b" chunked").replace(b"HTTP/1.1", b"HTTP/1.0"),
    # lines
    "folded header": with_header(b"X-A: a\r\n b\r\n"),
    "bare LF after every line": (HEAD + LENGTH + b"\r\n").replace(b"\r\n", b"\n") + BODY,
    "bare LF after a header": with_header(b"X-A: a\n"),
    "bare LF after the request line": HEAD.replace(b"HTTP/1.1\r\n", b"HTTP/1.1\n") + LENGTH + b"\r\n" + BODY,
    "bare LF as the empty line": HEAD + LENGTH + b"\n" + BODY,
    "bare CR in a header": with_header(b"X-A: a\rX-B: b\r\n"),
    "bare CR after a header": with_header(b"X-A: a\r"),
    "NUL in a value": with_header(b"X-A: a\0b\r\n"),
    "NUL in a name": with_header(b"X-\0A: a\r\n"),
    "control character in a value": with_header(b"X-A: a\x01b\r\n"),
    "DEL in a value": with_header(b"X-A: a\x7fb\r\n"),
    "CRLF and a header in the client's id": with_header(b"X-Request-Id: a\r\n: evil\r\n"),
    "header without colon": with_header(b"X-A\r\n"),
    "header without name": with_header(b": a\r\n"),
    "space before colon": with_header(b"X-A : a\r\n"),
    "space before the colon of the length": HEAD + b"Content-Length : " + N + b"\r\n\r\n" + BODY,
    "tab before the colon of the coding": HEAD + b"Transfer-Encoding\t: chunked\r\n\r\n" + CHUNKS,
    "space before the first header": START + b" Host: a\r\n" + AUTH + LENGTH + b"\r\n" + BODY,
    # hosts
    "no host": START + AUTH + LENGTH + b"\r\n" + BODY,
    "two hosts, equal": with_header(b"Host: gateway.test\r\n"),
    "two hosts, different": with_header(b"Host: other.test\r\n"),
    "empty host": to(CHAT.encode(), b""),
    "host with a path": to(CHAT.encode(), b"gateway.test/v1/models"),
    "host with a user": to(CHAT.encode(), b"alice@gateway.test"),
    "host list": to(CHAT.encode(), b"gateway.test, other.test other"),
    # targets
    "absolute form": to(b"http://gateway.test/v1/chat/completions"),
    "absolute form with another host": to(b"http://other.test/v1/chat/completions"),
    "authority form": to(b"gateway.test:80"),
    "asterisk form": to(b"*"),
    "target with a fragment": to(b"/v1/chat/completions#x"),
    "target with a space": to(b"/v1/chat/completions x"),
    "target with a byte beyond ASCII": to(b"/v1/chat/completions\xff"),
    "CONNECT": b"CONNECT gateway.test:80 HTTP/1.1\r\nHost: gateway.test:80\r\n" + AUTH + b"\r\n",
    # versions
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/2.0 in the request line": HEAD.replace(b"HTTP/1.1", b"HTTP/2.0") + LENGTH + b"\r\n" + BODY,
    "HTTP/1.2": HEAD.replace(b"HTTP/1.1", b"HTTP/1.2") + LENGTH + b"\r\n" + BODY,
    "HTTP/0.9": b"GET /v1/models\r\n",
    "TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    # chunks
    "chunk size negative": with_chunks(b"-1\r\n" + CHUNKS),
    "chunk size with 0x": with_chunks(b"0x%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)),
    "chunk size no number": with_chunks(b"zz\r\n" + CHUNKS),
    "chunk size overflowing": with_chunks(b"FFFFFFFFFFFFFFFFFF\r\n" + CHUNKS),
    "chunk size empty": with_chunks(b"\r\n" + CHUNKS),
    "chunk size with space before": with_chunks(b" " + CHUNKS),
    "chunk size with space behind": with_chunks(b"%x \r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)),
    "chunk size ended by LF": with_chunks(b"%x\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)),
    "chunk without CRLF": with_chunks(b"%x\r\n%s0\r\n\r\n" % (len(BODY), BODY)),
    "chunk longer than said": with_chunks(b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY) - 1, BODY)),
    "chunk extension with LF": with_chunks(b"%x;a\nb\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)),
    "chunk extension of 200 KB": with_chunks(
        b"%x;a=%s\r\n%s\r\n0\r\n\r\n" % (len(BODY), b"b" * 200_000, BODY)
    ),
    "trailer": with_chunks(CHUNK + b"0\r\nX-A: a\r\n\r\n"),
    "trailer with a key": with_chunks(CHUNK + b"0\r\n" + AUTH + b"\r\n"),
    "trailer with a length": with_chunks(CHUNK + b"0\r\nContent-Length: 5\r\n\r\n"),
    # sizes
    "header of 40 KB": with_header(b"X-A: " + b"a" * 40_000 + b"\r\n"),
    "headers of 40 KB together": with_header(b"".join(b"X-%d: %s\r\n" % (n, b"a" * 900) for n in range(45))),
    "101 headers": with_header(b"".join(b"X-%d: a\r\n" % n for n in range(101))),
    "target of 10 KB": to(b"/v1/" + b"a" * 10_000),
    "target of 40 KB": to(b"/v1/" + b"a" * 40_000),
    "5 MB of one header": HEAD + b"X-A: " + b"a" * 5_000_000,
}
STATUS = {
    "HTTP/2.0 in the request line": 505,
    "header of 40 KB": 431,
    "headers of 40 KB together": 431,
    "101 headers": 431,
    "target of 10 KB": 414,
    "target of 40 KB": 414,
    "5 MB of one header": 431,
}

SERVED = {
    "plain": HEAD + LENGTH + b"\r\n" + BODY,
    "chunked": HEAD + CHUNKED + b"\r\n" + CHUNKS,
    "chunked, a byte each": HEAD
    + CHUNKED
    + b"\r\n"
    + b"".join(b"1\r\n%c\r\n" % byte for byte in BODY)
    + b"0\r\n\r\n",
    "chunked with an extension": with_chunks(b"%x;a=b\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)),
    "coding after a tab": with_coding(b"\tchunked"),
    "coding name in another case": HEAD + b"tRANSFER-eNCODING: chunked\r\n\r\n" + CHUNKS,
    "length with leading zeros": with_length(b" 000" + N),
    "length after many spaces": with_length(b"      " + N),
    "empty lines before": b"\r\n\r\n" + HEAD + LENGTH + b"\r\n" + BODY,
    "host with a port": to(CHAT.encode(), b"gateway.test:8080"),
    "host of IPv6": to(CHAT.encode(), b"[::1]:8080"),
    "target with a query": to(CHAT.encode() + b"?api-version=2024-10-21"),
    "byte beyond ASCII in a value": with_header(b"X-A: \xff\r\n"),
    "upgrade offered": with_header(b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"),
    "upgrade offered, chunked": HEAD
    + b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
    + CHUNKED
    + b"\r\n"
    + CHUNKS,
    "upgrade without connection": with_header(b"Upgrade: websocket\r\n"),
    "100 headers": HEAD + b"".join(b"X-%d: a\r\n" % n for n in range(97)) + LENGTH + b"\r\n" + BODY,
    "expectation, body at once": with_header(b"Expect: 100-continue\r\n"),
}


@pytest.fixture(scope="module")
def provider() -> Iterator[CountingProvider]:
    with counting_provider() as counting:
        yield counting


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, provider: CountingProvider) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("smuggling")
    with Gateway(
        folder, SPANBILL_PROVIDERS=provider.settings(), SPANBILL_SERVER__HEADER_TIMEOUT_S="1"
    ) as running:
        yield running


def test_the_matrix_has_the_probes_that_were_asked_for() -> None:
    assert len(REFUSED) + len(SERVED) >= 44


@pytest.mark.parametrize("name", REFUSED)
def test_a_doubtful_request_gets_one_refusal_and_nothing_behind_it_is_served(
    gateway: Gateway, provider: CountingProvider, name: str
) -> None:
    before = provider.calls
    answers = talk(gateway.port, REFUSED[name] + request(close=True))
    assert [answer.status for answer in answers] == [STATUS.get(name, 400)]
    assert_own_answer(answers[0])
    assert provider.calls == before


@pytest.mark.parametrize("cut", [1, 7, 64])
@pytest.mark.parametrize("name", [name for name, payload in REFUSED.items() if len(payload) <= 1000])
def test_a_refusal_does_not_depend_on_how_the_request_was_cut(
    gateway: Gateway, provider: CountingProvider, name: str, cut: int
) -> None:
    payload = REFUSED[name]
    pieces = [payload[at : at + cut] for at in range(0, len(payload), cut)]
    before = provider.calls
    answers = talk_in_pieces(gateway.port, [*pieces, request(close=True)])
    assert [answer.status for answer in answers] == [STATUS.get(name, 400)]
    assert_own_answer(answers[0])
    assert provider.calls == before


@pytest.mark.parametrize("name", SERVED)
def test_a_clear_request_is_served_once_and_so_is_the_one_behind_it(
    gateway: Gateway, provider: CountingProvider, name: str
) -> None:
    before = provider.calls
    answers = talk(gateway.port, SERVED[name] + request(close=True))
    assert [answer.status for answer in answers if answer.status != 100] == [200, 200]
    assert provider.calls == before + 2


def test_a_refused_request_takes_back_no_answer_to_those_before_it(
    gateway: Gateway, provider: CountingProvider
) -> None:
    before = provider.calls
    answers = talk(
        gateway.port, request() + request() + REFUSED["two hosts, different"] + request(close=True)
    )
    assert [answer.status for answer in answers] == [200, 200, 400]
    assert provider.calls == before + 2


def test_a_body_that_breaks_behind_another_request_is_refused_in_its_turn(
    gateway: Gateway, provider: CountingProvider
) -> None:
    before = provider.calls
    answers = talk(gateway.port, request() + REFUSED["chunk size no number"] + request(close=True))
    assert [answer.status for answer in answers] == [200, 400]
    assert_own_answer(answers[1])
    assert provider.calls == before + 1


@pytest.mark.parametrize("count", range(2, 21))
def test_each_pipelined_request_has_its_own_key_answer_and_bill(
    gateway: Gateway, provider: CountingProvider, count: int
) -> None:
    users = ["alice", "nobody", "bob", "carol"]
    before, known = provider.calls, set(bills_in_journal(gateway.journal))
    asked = [users[n % len(users)] for n in range(count)]
    payload = b"".join(request(user=user, close=n == count - 1) for n, user in enumerate(asked))
    answers = talk(gateway.port, payload)
    served = asked[:17]  # one is answered and 16 wait
    expected = [401 if user == "nobody" else 200 for user in served] + [503] * (count > 17)
    assert [answer.status for answer in answers] == expected
    if count > 17:
        assert_own_answer(answers[-1], "too_many_pipelined")
        assert int(answers[-1].headers["retry-after"]) > 0
    paid = [user for user in served if user != "nobody"]
    assert provider.calls == before + len(paid)
    bills = bills_in_journal(gateway.journal)
    mine = [bills[answer.headers["x-request-id"]] for answer in answers if answer.status == 200]
    assert [bill["billing.user.id"] for bill in mine] == paid
    assert len(bills) == len(known) + len(paid)


def talk_in_pieces(port: int, pieces: list[bytes]) -> list[Response]:
    with dial(port) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for piece in pieces:
                connection.sendall(piece)
        return read_to_end(connection)
