"""The front of a real gateway on real sockets: slow clients, huge bodies, few files, and the end."""

from __future__ import annotations

import contextlib
import json
import resource
import selectors
import signal
import socket
import struct
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from deploy.stack import wait_until
from tests.front.raw_http import (
    CHAT,
    HUGE_BYTES,
    READ_S,
    CountingProvider,
    Response,
    assert_own_answer,
    counting_provider,
    dial,
    read_to_end,
    request,
    talk,
)
from tests.gateway_process import Gateway, bills_in_journal

QUICK = {
    "SPANBILL_SERVER__HEADER_TIMEOUT_S": "1",
    "SPANBILL_SERVER__KEEP_ALIVE_S": "1.5",
    "SPANBILL_SERVER__BODY_IDLE_TIMEOUT_S": "1",
    "SPANBILL_SERVER__WRITE_IDLE_TIMEOUT_S": "1.5",
    "SPANBILL_SERVER__SHUTDOWN_GRACE_S": "2",
}
HEALTH = request(b"", path="/health", method="GET")
HUGE = request(model="counted-huge")
HALF_HEAD = request()[:60]
HALF_BODY = request()[:-10]


@pytest.fixture(scope="module")
def provider() -> Iterator[CountingProvider]:
    with counting_provider() as counting:
        yield counting


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, provider: CountingProvider) -> Iterator[Gateway]:
    with Gateway(
        tmp_path_factory.mktemp("front"), SPANBILL_PROVIDERS=provider.settings(), **QUICK
    ) as running:
        yield running


def proc_status(gateway: Gateway, field: str) -> int:
    assert gateway.process is not None
    for line in Path(f"/proc/{gateway.process.pid}/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise AssertionError(field)


def open_files(gateway: Gateway) -> int:
    assert gateway.process is not None
    return len(list(Path(f"/proc/{gateway.process.pid}/fd").iterdir()))


def cpu_s(gateway: Gateway) -> float:
    assert gateway.process is not None
    fields = Path(f"/proc/{gateway.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


LONG_STREAM = request(
    json.dumps(
        {"model": "sim-small", "stream": True, "messages": [{"role": "user", "content": "20000 words"}]}
    ).encode()
)
"""Its answer is more than the kernel takes for a client that does not read."""
KINDS = {"idle": b"", "head": HALF_HEAD, "body": HALF_BODY, "kept": HEALTH, "never reads": HUGE}


def accepted(gateway: Gateway, connection: socket.socket) -> bool:
    """Say whether the gateway has taken the connection from the kernel: until then it belongs to no inode."""
    ends = f"0100007F:{gateway.port:04X} 0100007F:{connection.getsockname()[1]:04X} 01"
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()]
    return any(" ".join(row[1:4]) == ends and row[9] != "0" for row in rows)


def is_cut_off(connection: socket.socket) -> bool:
    """Say whether less came than a whole answer of HUGE_BYTES, at the end of the connection."""
    total = 0
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(2**20):
            total += len(data)
    return total < HUGE_BYTES


def logged(gateway: Gateway, answer: Response) -> list[dict[str, Any]]:
    """Return the log lines on one request, once there is one."""

    def lines() -> list[str]:
        return [line for line in gateway.log().splitlines() if answer.headers["x-request-id"] in line]

    assert wait_until(lambda: bool(lines()), READ_S, 0.02)
    return [json.loads(line) for line in lines()]


# slow clients


def test_two_hundred_slow_clients_are_gone_by_their_deadline_and_others_are_served(
    gateway: Gateway, provider: CountingProvider
) -> None:
    before = provider.calls
    deaf: list[socket.socket] = []
    waited_s: list[float] = []
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        for kind, sent in KINDS.items():
            for _ in range(20 if kind == "never reads" else 45):
                slow = dial(gateway.port, receive_buffer=4096 if kind == "never reads" else None)
                stack.callback(slow.close)
                slow.sendall(sent)
                if kind == "never reads":
                    deaf.append(slow)
                else:
                    selector.register(slow, selectors.EVENT_READ, time.monotonic())
        give_up = time.monotonic() + READ_S
        served = 0
        while selector.get_map():
            assert time.monotonic() < give_up
            for key, _ in selector.select(0.2):
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                with contextlib.suppress(ConnectionResetError):
                    if connection.recv(65536):
                        continue
                waited_s.append(time.monotonic() - key.data)
                selector.unregister(connection)
            (answer,) = talk(gateway.port, request(close=True))
            assert answer.status == 200
            served += 1
        assert len(waited_s) == 180
        assert min(waited_s) > 0.9  # they were let in, and held a connection until their deadline
        assert wait_until(lambda: provider.calls == before + served + len(deaf), READ_S, 0.05)
        assert wait_until(lambda: not any(accepted(gateway, one) for one in deaf), READ_S, 0.05)
        assert all(is_cut_off(connection) for connection in deaf)
    huge = [
        bill
        for bill in bills_in_journal(gateway.journal).values()
        if bill["gen_ai.request.model"] == "counted-huge"
    ]
    assert len(huge) == len(deaf)


def test_a_slow_client_learns_why(gateway: Gateway, provider: CountingProvider) -> None:
    before = provider.calls
    (answer,) = talk(gateway.port, HALF_HEAD)
    assert answer.status == 408
    assert_own_answer(answer, "header_timeout")
    (answer,) = talk(gateway.port, HALF_BODY)
    assert answer.status == 408
    assert_own_answer(answer, "body_timeout")
    assert provider.calls == before
    assert [line["error_type"] for line in logged(gateway, answer)] == ["body_timeout"]


def test_each_refusal_of_the_front_is_one_line_and_one_count(gateway: Gateway) -> None:
    (answer,) = talk(gateway.port, b"GET /v1/models?key=sk-secret HTTP/1.1\r\nX-Secret: canary\r\n\r\n")
    assert answer.status == 400
    assert [line["error_type"] for line in logged(gateway, answer)] == ["missing_host"]
    assert "sk-secret" not in gateway.log()
    assert "canary" not in gateway.log()
    (page,) = talk(gateway.port, request(b"", path="/metrics", method="GET", close=True))
    assert b'"missing_host"} 1.0' in page.body


def test_a_stream_that_is_not_read_is_cut_off_and_billed(gateway: Gateway) -> None:
    known = set(bills_in_journal(gateway.journal))
    with dial(gateway.port, receive_buffer=4096) as deaf:
        deaf.sendall(LONG_STREAM)
        assert deaf.recv(12) == b"HTTP/1.1 200"
        assert wait_until(lambda: len(bills_in_journal(gateway.journal)) > len(known), READ_S, 0.1)
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while data := deaf.recv(2**20):
                received += data
    assert b"[DONE]" not in received
    (bill,) = (bill for key, bill in bills_in_journal(gateway.journal).items() if key not in known)
    assert (bill["billing.outcome"], bill["error.type"]) == ("client_disconnected", "client_stalled")
    assert (bill["billing.status"], bill["billing.usage.source"]) == ("final", "drained")


# half-close and pipelining


def test_a_client_that_shuts_its_writing_side_is_recorded(
    gateway: Gateway, provider: CountingProvider
) -> None:
    known = set(bills_in_journal(gateway.journal))
    before = provider.calls
    with dial(gateway.port) as connection:
        connection.sendall(request())
        connection.shutdown(socket.SHUT_WR)
        answers = read_to_end(connection)
    assert wait_until(lambda: len(bills_in_journal(gateway.journal)) == len(known) + 1, READ_S, 0.02)
    (bill,) = (bill for key, bill in bills_in_journal(gateway.journal).items() if key not in known)
    assert provider.calls == before + 1
    assert bill["billing.user.id"] == "alice"
    assert [answer.status for answer in answers] in ([200], [])


def test_a_client_that_resets_while_its_requests_wait_leaves_one_bill(
    gateway: Gateway, provider: CountingProvider
) -> None:
    known = set(bills_in_journal(gateway.journal))
    before = provider.calls
    provider.called.clear()
    provider.go.clear()
    connection = dial(gateway.port)
    connection.sendall(request() * 3)
    assert provider.called.wait(READ_S)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    provider.go.set()
    assert wait_until(lambda: len(bills_in_journal(gateway.journal)) > len(known), READ_S, 0.02)
    (answer,) = talk(gateway.port, request(close=True))
    assert answer.status == 200
    calls = provider.calls - before
    bills = bills_in_journal(gateway.journal)
    assert len(bills) == len(known) + calls  # each call has its bill, whatever became of the client
    assert calls <= 4


# bodies


@pytest.mark.parametrize("framing", ["declared", "chunked"])
def test_a_body_of_300_mb_is_refused_and_costs_no_memory(
    tmp_path: Path, provider: CountingProvider, framing: str
) -> None:
    before, limit = provider.calls, 10 * 1024 * 1024
    piece = b"x" * 2**20
    if framing == "declared":
        head = request(b"").replace(b"Content-Length: 0", b"Content-Length: %d" % (300 * len(piece)))
    else:
        head = request(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
        piece = b"%x\r\n%s\r\n" % (len(piece), piece)
    with Gateway(tmp_path, SPANBILL_PROVIDERS=provider.settings()) as gateway:
        talk(gateway.port, request(close=True))
        rss_kb = proc_status(gateway, "VmRSS")
        with dial(gateway.port) as connection:
            connection.sendall(head)
            sent = 0
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                for _ in range(300):
                    connection.sendall(piece)
                    sent += 1
            assert sent > limit / len(piece)
            (answer,) = read_to_end(connection)
        assert answer.status == 413
        assert answer.json()["error"]["code"] == "request_too_large"
        assert proc_status(gateway, "VmHWM") - rss_kb < 2 * limit / 1024
    assert provider.calls == before + 1


HOSTILE_BODIES: dict[str, tuple[bytes, set[int]]] = {
    "a depth of 100,000": (
        b'{"model":"counted-1","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        {400},
    ),
    "objects 100,000 deep": (
        b'{"model":"counted-1","messages":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
        {400},
    ),
    "an integer of 5,000 digits": (
        b'{"model":"counted-1","messages":[],"seed":' + b"9" * 5_000 + b"}",
        {200, 400},
    ),
    "max_tokens of 5,000 digits": (
        b'{"model":"counted-1","messages":[],"max_tokens":' + b"9" * 5_000 + b"}",
        {400},
    ),
    "NaN": (b'{"model":"counted-1","messages":[],"temperature":NaN}', {400}),
    "infinity": (b'{"model":"counted-1","messages":[],"temperature":-Infinity}', {400}),
    "1e999": (b'{"model":"counted-1","messages":[],"temperature":1e999}', {200, 400}),
    "100,000 messages": (
        json.dumps({"model": "counted-1", "messages": [{"role": "user", "content": "a"}] * 100_000}).encode(),
        {200, 400},
    ),
    "a lone surrogate": (b'{"model":"counted-1","messages":[],"user":"\\ud800"}', {200, 400}),
    "no UTF-8": (b'{"model":"counted-1","messages":[],"user":"\xff"}', {400}),
    "two values": (b'{"model":"counted-1","messages":[]}{}', {400}),
    "nothing": (b"", {400}),
}


@pytest.mark.parametrize("name", HOSTILE_BODIES)
def test_a_hostile_body_is_refused_or_served_and_never_a_fault(
    gateway: Gateway, provider: CountingProvider, name: str
) -> None:
    body, allowed = HOSTILE_BODIES[name]
    before = provider.calls
    (answer,) = talk(gateway.port, request(body, close=True))
    assert answer.status in allowed
    assert len(answer.headers["x-request-id"]) == 36
    assert provider.calls - before == (answer.status == 200)


def test_a_compressed_body_is_refused_unread(gateway: Gateway, provider: CountingProvider) -> None:
    before = provider.calls
    for coding in ("gzip", "br", "deflate", "identity, gzip"):
        (answer,) = talk(gateway.port, request(b"\x1f\x8b" * 100, close=True, Content_Encoding=coding))
        assert answer.status == 415
        assert len(answer.headers["x-request-id"]) == 36
    assert provider.calls == before


# methods, targets, ids


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "PROPFIND"])
@pytest.mark.parametrize("path", [CHAT, "/v1/messages"])
def test_another_method_calls_no_provider(
    gateway: Gateway, provider: CountingProvider, method: str, path: str
) -> None:
    before = provider.calls
    with dial(gateway.port) as connection:
        connection.sendall(request(path=path, method=method, close=True))
        raw = b""
        while data := connection.recv(65536):
            raw += data
    head, _, body = raw.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 405 ")
    assert b"\r\nallow: POST" in head
    assert b"\r\nx-request-id: " in head
    assert (body == b"") is (method == "HEAD")
    assert provider.calls == before


@pytest.mark.parametrize(
    "path",
    [
        f"{CHAT}/",
        f"/{CHAT}",
        "//v1//chat//completions",
        "/v1/./chat/completions",
        "/v1/%2e/chat/completions",
        "/v1/x/%2e%2e/chat/completions",
        "/v1/x/../chat/completions",
        f"{CHAT};x=1",
        f"{CHAT}%00",
        f"{CHAT}%20",
        f"{CHAT}%0d%0a",
        "/V1/chat/completions",
        "/v1\\chat\\completions",
    ],
)
def test_another_spelling_of_a_path_is_another_path(
    gateway: Gateway, provider: CountingProvider, path: str
) -> None:
    before = provider.calls
    (answer,) = talk(gateway.port, request(path=path, close=True))
    assert answer.status in (404, 405)
    assert len(answer.headers["x-request-id"]) == 36
    assert provider.calls == before


def test_a_target_is_never_a_way_around_the_key(gateway: Gateway, provider: CountingProvider) -> None:
    before = provider.calls
    for path in (
        CHAT,
        "/v1/chat/completion%73",
        "/v1%2Fchat%2Fcompletions",
        f"{CHAT}?api_key=sk-test-alice-0001",
    ):
        (answer,) = talk(gateway.port, request(path=path, user="nobody", close=True))
        assert answer.status in (401, 404)
    assert provider.calls == before


@pytest.mark.parametrize("client_id", ["the-same", "a" * 10_240, "caf\u00e9 \t x", "'; DROP TABLE bills; --"])
def test_a_clients_own_id_is_a_fact_and_never_the_id(
    gateway: Gateway, provider: CountingProvider, client_id: str
) -> None:
    before = provider.calls
    payload = request(X_Request_Id="@@").replace(b"@@", client_id.encode("latin-1"))
    answers = talk(gateway.port, payload + payload + request(close=True))
    assert [answer.status for answer in answers] == [200, 200, 200]
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert len(set(ids)) == 3
    assert client_id not in ids
    bills = bills_in_journal(gateway.journal)
    assert all(request_id in bills for request_id in ids)
    assert provider.calls == before + 3


# few files


def test_where_few_files_can_be_open_the_rest_waits_or_is_refused_and_service_resumes(
    tmp_path: Path, provider: CountingProvider
) -> None:
    with Gateway(tmp_path, SPANBILL_PROVIDERS=provider.settings()) as gateway:
        assert gateway.process is not None
        few = open_files(gateway) + 20
        resource.prlimit(gateway.process.pid, resource.RLIMIT_NOFILE, (few, few))
        with contextlib.ExitStack() as stack:
            held = []
            for _ in range(60):
                held.append(dial(gateway.port))
                stack.callback(held[-1].close)
            assert wait_until(lambda: open_files(gateway) >= few - 1, READ_S, 0.02)  # the fault is there
            began, busy = time.monotonic(), cpu_s(gateway)
            served = 0
            for connection in held:  # those that were accepted before it are served meanwhile
                with contextlib.suppress(OSError):
                    connection.settimeout(0.05)
                    connection.sendall(HEALTH)
                    served += connection.recv(65536).startswith(b"HTTP/1.1 200")
            assert served >= 10
            assert cpu_s(gateway) - busy < 0.5 * (time.monotonic() - began) + 0.1  # and it does not spin
        assert wait_until(lambda: open_files(gateway) < few - 15, READ_S, 0.02)
        (answer,) = talk(gateway.port, request(close=True))
        assert answer.status == 200
        assert gateway.stop() == 0


def test_beyond_the_bound_on_connections_there_is_a_503_that_says_when_to_come_back(
    tmp_path: Path, provider: CountingProvider
) -> None:
    with (
        Gateway(
            tmp_path, SPANBILL_PROVIDERS=provider.settings(), SPANBILL_SERVER__MAX_CONNECTIONS="5"
        ) as gateway,
        contextlib.ExitStack() as stack,
    ):
        held = [stack.enter_context(dial(gateway.port)) for _ in range(5)]
        for connection in held:  # answered, so certainly accepted
            connection.sendall(HEALTH)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        before = provider.calls
        (answer,) = talk(gateway.port, request(close=True))
        assert answer.status == 503
        assert_own_answer(answer, "too_many_connections")
        assert int(answer.headers["retry-after"]) >= 1
        assert provider.calls == before
        held[0].close()

        def served() -> bool:
            return [answer.status for answer in talk(gateway.port, request(close=True))] == [200]

        assert wait_until(served, READ_S, 0.05)


# the end


@pytest.mark.parametrize("kinds", [*([kind] for kind in KINDS), [*KINDS]], ids="+".join)
def test_told_to_stop_the_gateway_ends_within_its_grace_whatever_its_clients_do(
    tmp_path: Path, provider: CountingProvider, kinds: list[str]
) -> None:
    grace_s = 1
    with (
        Gateway(
            tmp_path,
            SPANBILL_PROVIDERS=provider.settings(),
            SPANBILL_SERVER__SHUTDOWN_GRACE_S=str(grace_s),
        ) as gateway,
        contextlib.ExitStack() as stack,
    ):
        before = provider.calls
        deaf = []
        for kind in kinds:
            connection = stack.enter_context(dial(gateway.port, receive_buffer=4096))
            assert wait_until(partial(accepted, gateway, connection), READ_S, 0.01)
            connection.sendall(KINDS[kind])
            if kind == "kept":
                assert connection.recv(65536).startswith(b"HTTP/1.1 200")
            elif kind == "never reads":
                deaf.append(connection)
        assert wait_until(lambda: len(bills_in_journal(gateway.journal)) == len(deaf), READ_S, 0.01)
        assert gateway.process is not None
        began = time.monotonic()
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.process.wait(timeout=30) == 0
        assert time.monotonic() - began < grace_s + 2
        assert all(is_cut_off(connection) for connection in deaf)
    assert len(bills_in_journal(gateway.journal)) == provider.calls - before == len(deaf)


def test_told_to_stop_the_gateway_bills_a_stream_that_nobody_reads(tmp_path: Path) -> None:
    grace_s = 1
    with (
        Gateway(tmp_path, SPANBILL_SERVER__SHUTDOWN_GRACE_S=str(grace_s)) as gateway,
        dial(gateway.port, receive_buffer=4096) as deaf,
    ):
        deaf.sendall(LONG_STREAM)
        assert deaf.recv(12) == b"HTTP/1.1 200"
        assert gateway.process is not None
        began = time.monotonic()
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.process.wait(timeout=30) == 0
        assert grace_s <= time.monotonic() - began < grace_s + 2  # it did hold the gateway up
        (bill,) = bills_in_journal(gateway.journal).values()
        assert bill["billing.outcome"] != "ok"
