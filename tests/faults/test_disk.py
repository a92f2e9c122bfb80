"""A disk that is full, read-only or broken refuses new work at once, loses none, and is found again."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.stack import wait_until
from otel.journal.audit import Logs, audit_folder
from tests import gateway_process
from tests.faults.paced_upstream import (
    INPUT,
    OUTPUT,
    Call,
    PacedUpstream,
    chat_pieces,
    messages_pieces,
    whole_body,
)
from tests.faults.paced_world import (
    PATHS,
    Caller,
    ask,
    bills,
    configure,
    get,
    intents,
    metric,
    request_id,
)
from tests.gateway_process import Gateway

RESUME_S = 5.0
REFUSAL_CPU_S_MAX = 0.005
"""What one refusal may cost: 503 within 5 ms, said of the gateway's own time because the machine is busy."""
REQUESTS_MAX = 3_000
SMALL_SEGMENT = {"segment_bytes_max": 64 * 1024}
"""So that the space which was set aside for more requests is soon used up."""
BESIDE_CPU_S = 0.1
"""What threads beside requests may take meanwhile."""
CPU_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
NOTES_MAX = 100
"""Pieces of a stream, each of which has to be noted, that find room in what is left of a full disk."""
SEGMENTS_MORE_MAX = 3
"""Segments that an outage may leave behind, however long it is."""
PIECES = {"chat_completions": chat_pieces, "messages": messages_pieces}
ENDS = {"chat_completions": b"[DONE]", "messages": b'"message_stop"'}
TMPFS = """#!/bin/sh
exec unshare -rm sh -c 'mount -t tmpfs -o size=SIZE none data/journal && exec "$@"' - PYTHON "$@"
"""


def answer_whole(call: Call) -> None:
    """Answer at once where no stream was asked for; streams wait for the test."""
    if not call.asked["stream"]:
        call.whole(
            whole_body("messages" if b"/messages" in call.head.split(b"\r\n")[0] else "chat_completions")
        )


class StreamsQueue(PacedUpstream):
    """Answers whole requests itself and queues streams for the test."""

    def __init__(self) -> None:
        super().__init__(self._either)

    def _either(self, call: Call) -> None:
        if call.asked["stream"]:
            with self._some:
                self._waiting.append(call)
                self._some.notify_all()
        else:
            answer_whole(call)


@pytest.fixture
def upstream() -> Iterator[StreamsQueue]:
    with StreamsQueue() as provider:
        yield provider


def squeeze(gateway: Gateway, limit_bytes: int) -> None:
    """Let no file of the gateway grow beyond `limit_bytes`: its writes are cut short, then refused."""
    assert gateway.process is not None
    resource.prlimit(gateway.process.pid, resource.RLIMIT_FSIZE, (limit_bytes, resource.RLIM_INFINITY))


def relieve(gateway: Gateway) -> None:
    squeeze(gateway, resource.RLIM_INFINITY)


def cpu_s(gateway: Gateway) -> float:
    assert gateway.process is not None
    fields = Path(f"/proc/{gateway.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * CPU_TICK_S


def descriptors(gateway: Gateway) -> int:
    assert gateway.process is not None
    return len(os.listdir(f"/proc/{gateway.process.pid}/fd"))


def segments(journal: Path) -> int:
    return len(list(journal.glob("[0-9]*-*/*.jsonl")))


def refusals(gateway: Gateway, count: int) -> None:
    """Send requests to both doors, of which each must be refused at once, in its own envelope."""
    before_s = cpu_s(gateway)
    with Caller(gateway.port) as caller:
        for number in range(count):
            protocol = list(PATHS)[number % 2]
            caller.ask(protocol, stream=number % 4 > 1)
            status, headers, body = caller.read_reply()
            assert status == 503
            assert int(headers["retry-after"]) >= 1
            error = json.loads(body)["error"]
            if protocol == "messages":
                assert json.loads(body)["type"] == "error"
                assert error["type"] == "overloaded_error"
            else:
                assert error["code"] == "journal_unavailable"
    assert cpu_s(gateway) - before_s < count * REFUSAL_CPU_S_MAX + BESIDE_CPU_S + CPU_TICK_S


def serve_until_refused(gateway: Gateway) -> set[str]:
    """Serve out of the space that was set aside, until that is used up too."""
    served = set()
    with Caller(gateway.port) as caller:
        for number in range(REQUESTS_MAX):
            caller.ask(list(PATHS)[number % 2], stream=False)
            status, headers, _ = caller.read_reply()
            if status == 503:
                return served
            assert status == 200
            served.add(headers["x-request-id"])
    raise AssertionError("a full disk refuses nothing")


def says_unwritable(gateway: Gateway) -> bool:
    status, body = get(gateway, "/ready")
    return status == 503 and json.loads(body)["checks"]["journal"] != "ok"


def resumes(gateway: Gateway) -> None:
    """Wait for service to come back by itself: nothing is asked but /ready."""
    assert wait_until(lambda: get(gateway, "/ready")[0] == 200, RESUME_S, 0.02), "it did not resume in time"
    assert metric(gateway, "llm_gateway_journal_writable") == 1


def serve_some(gateway: Gateway, count: int = 3) -> set[str]:
    served = set()
    for number in range(count):
        status, headers, _ = ask(gateway, list(PATHS)[number % 2])
        assert status == 200
        served.add(headers["x-request-id"])
    return served


def check_sound(journal: Path) -> None:
    report = audit_folder(journal, logs=Logs(), strict=True)
    assert report.complete, report.findings
    assert report.intact, report.findings


def check_kept(journal: Path, served: set[str], refused_calls: int, provider_calls: int) -> None:
    """Every answered request has its final bill, each call one bill, and each intent one."""
    found = bills(journal)
    assert {found[record_id]["billing.status"] for record_id in served} == {"final"}
    assert intents(journal) == set(found)
    called = [bill for bill in found.values() if bill["billing.attempts"] > 0]
    assert len(called) == provider_calls, "a call without a bill, or a bill without a call"
    assert len(found) - len(called) <= refused_calls
    check_sound(journal)


def test_a_disk_that_takes_no_byte_refuses_at_once_and_is_found_again(
    tmp_path: Path, upstream: StreamsQueue
) -> None:
    configure(tmp_path, upstream.port)
    with Gateway(tmp_path) as gateway, Caller(gateway.port) as streaming:
        served = serve_some(gateway)
        streaming.ask("chat_completions", stream=True)
        call = upstream.next_call()
        call.start()
        *content, usage, done = chat_pieces(2)
        call.send(content[0])
        streaming.read_until(content[0])
        calls, before, files = upstream.calls, segments(gateway.journal), descriptors(gateway)

        squeeze(gateway, 64)
        refusals(gateway, 1)  # it finds the disk full, and the next ones are refused without trying it
        refusals(gateway, 200)
        assert upstream.calls == calls, "a provider was called without an intent on the disk"
        assert says_unwritable(gateway)
        assert metric(gateway, "llm_gateway_journal_writable") == 0

        call.send(usage)
        call.send(done)
        call.end()
        assert b"[DONE]" not in streaming.read_to_end(), "reported as complete without a bill"
        assert wait_until(lambda: says_unwritable(gateway), 5)
        assert segments(gateway.journal) <= before + SEGMENTS_MORE_MAX
        assert descriptors(gateway) <= files + SEGMENTS_MORE_MAX

        relieve(gateway)
        resumes(gateway)
        served |= serve_some(gateway)
        assert gateway.stop() == 0
        check_kept(gateway.journal, served, 1, upstream.calls)
        stream = bills(gateway.journal)[request_id(streaming.received)]
        assert stream["gen_ai.usage.output_tokens"] == OUTPUT, "what was owed was not written"


def test_a_write_that_is_cut_short_tears_one_line_and_costs_no_bill(
    tmp_path: Path, upstream: StreamsQueue
) -> None:
    configure(tmp_path, upstream.port)
    with Gateway(tmp_path) as gateway:
        served = serve_some(gateway)
        (segment,) = gateway.journal.glob("[0-9]*-*/*.jsonl")
        size = segment.stat().st_size
        squeeze(gateway, size + 100)  # a new segment has room for as much again
        served |= serve_some(gateway, 2)
        assert segment.stat().st_size == size + 100, "the fault did not fire"
        assert not segment.read_bytes().endswith(b"\n")
        relieve(gateway)
        served |= serve_some(gateway)
        assert gateway.stop() == 0
        check_kept(gateway.journal, served, 0, upstream.calls)


def test_stopped_on_a_full_disk_the_gateway_goes_and_its_next_start_writes_the_bill(
    tmp_path: Path, upstream: StreamsQueue
) -> None:
    configure(tmp_path, upstream.port)
    with Gateway(tmp_path) as gateway, Caller(gateway.port) as streaming:
        served = serve_some(gateway)
        streaming.ask("messages", stream=True)
        call = upstream.next_call()
        call.start()
        *content, usage, stop = messages_pieces(2)
        for piece in content:
            call.send(piece)
        streaming.read_until(b"word ", 2)
        squeeze(gateway, 64)
        refusals(gateway, 1)
        call.send(usage + stop)
        call.end()
        assert b'"message_stop"' not in streaming.read_to_end(), "reported as complete without a bill"
        assert says_unwritable(gateway)
        owed = request_id(streaming.received)
        assert gateway.stop() == 0
        assert owed not in bills(gateway.journal), "the fault did not fire"
        assert owed in intents(gateway.journal)
        assert "Traceback" not in gateway.log()
    with Gateway(tmp_path) as gateway:
        assert bills(gateway.journal)[owed]["billing.outcome"] == "interrupted"
        served |= serve_some(gateway)
        assert gateway.stop() == 0
        found = bills(gateway.journal)
        assert {found[record_id]["billing.status"] for record_id in served} == {"final"}
        assert intents(gateway.journal) == set(found)
        check_sound(gateway.journal)


# a small file system of its own


class SmallDisk:
    """A gateway whose journal is a tmpfs of its own; the rest of the world sees it through /proc."""

    def __init__(self, gateway: Gateway) -> None:
        assert gateway.process is not None
        self.gateway = gateway
        self.journal = Path(f"/proc/{gateway.process.pid}/root{gateway.journal}")
        self.filler = self.journal / "filler"

    def fill(self, but_bytes: int = 0) -> None:
        """Fill the disk: to the last byte, or all but some."""
        facts = os.statvfs(self.journal)
        free = facts.f_bavail * facts.f_frsize - but_bytes
        with self.filler.open("wb", buffering=0) as file:
            left = free
            while left > 0:
                left -= file.write(bytes(min(left, 65536)))
        if not but_bytes:
            assert self.is_full(), "the fault did not fire"

    def is_full(self) -> bool:
        """Say whether not a byte more can be had."""
        probe = self.journal / "probe"
        try:
            probe.write_bytes(b"x" * 4096)
        except OSError:
            return True
        finally:
            probe.unlink(missing_ok=True)
        return False

    def empty(self) -> None:
        self.filler.unlink()


@pytest.fixture
def python_on_tmpfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the gateway's process have a tmpfs of its own at data/journal."""
    tried = subprocess.run(["unshare", "-rm", "true"], capture_output=True, text=True)
    if tried.returncode != 0:
        pytest.skip(f"no user namespace can be made here: {tried.stderr.strip()}")
    script = tmp_path / "python-on-tmpfs"
    script.write_text(TMPFS.replace("PYTHON", sys.executable).replace("SIZE", "8m"))
    script.chmod(0o755)
    (tmp_path / "gateway" / "data" / "journal").mkdir(parents=True)
    monkeypatch.setattr(gateway_process.sys, "executable", str(script))
    return tmp_path / "gateway"


@pytest.mark.parametrize("protocol", list(PATHS))
def test_on_a_full_disk_an_open_stream_ends_with_its_bill(
    python_on_tmpfs: Path, upstream: StreamsQueue, protocol: str
) -> None:
    configure(python_on_tmpfs, upstream.port, journal=SMALL_SEGMENT if protocol == "messages" else {})
    with Gateway(python_on_tmpfs) as gateway, Caller(gateway.port) as streaming:
        disk = SmallDisk(gateway)
        served = serve_some(gateway)
        streaming.ask(protocol, stream=True)
        call = upstream.next_call()
        call.start()
        *content, usage, end = PIECES[protocol](2)
        for piece in content:
            call.send(piece)
        streaming.read_until(b"word ", 2)
        disk.fill()
        served |= serve_until_refused(gateway)
        calls = upstream.calls
        refusals(gateway, 100)
        assert upstream.calls == calls
        assert says_unwritable(gateway)
        call.send(usage + end)
        call.end()
        received = streaming.read_to_end()
        assert disk.is_full()
        assert ENDS[protocol] in received, "space for its bill was set aside, and it was cut all the same"
        bill = bills(disk.journal)[request_id(received)]
        assert (bill["gen_ai.usage.input_tokens"], bill["gen_ai.usage.output_tokens"]) == (INPUT, OUTPUT)
        disk.empty()
        resumes(gateway)
        served |= serve_some(gateway)
        check_kept(disk.journal, served, 0, upstream.calls)
        assert gateway.stop() == 0


def test_on_a_full_disk_what_cannot_be_noted_is_not_released(
    python_on_tmpfs: Path, upstream: StreamsQueue
) -> None:
    configure(python_on_tmpfs, upstream.port, journal=SMALL_SEGMENT)
    with Gateway(python_on_tmpfs) as gateway, Caller(gateway.port) as streaming:
        disk = SmallDisk(gateway)
        streaming.ask("chat_completions", stream=True)
        call = upstream.next_call()
        call.start()
        first, *_, usage, done = chat_pieces(2)
        call.send(first)
        streaming.read_until(b"word ")
        disk.fill()
        serve_until_refused(gateway)
        for number in range(NOTES_MAX):
            call.send(chat_pieces(1, f"piece{number:03} " * 500)[0])
            if b"journal_unavailable" in streaming.read_until(b"\n\n", number + 2):
                break
        call.send(usage + done)
        call.end()
        received = streaming.read_to_end()
        assert b"journal_unavailable" in received
        assert f"piece{number:03}".encode() not in received
        assert b"[DONE]" not in received
        assert disk.is_full()
        assert wait_until(lambda: request_id(received) in bills(disk.journal), 5, 0.02)
        bill = bills(disk.journal)[request_id(received)]
        assert bill["billing.outcome"] == "internal_error"
        assert bill["gen_ai.usage.output_tokens"] == OUTPUT, "the provider was paid for it"


def test_the_watermark_stops_admission_while_there_is_room_for_bills(
    python_on_tmpfs: Path, upstream: StreamsQueue
) -> None:
    configure(python_on_tmpfs, upstream.port, journal={"min_free_bytes": 2 * 1024 * 1024})
    with Gateway(python_on_tmpfs) as gateway:
        disk = SmallDisk(gateway)
        served = serve_some(gateway)
        calls = upstream.calls
        disk.fill(but_bytes=1024 * 1024)
        assert wait_until(lambda: says_unwritable(gateway), RESUME_S, 0.02), "nobody looks at the space"
        assert not disk.is_full()
        assert "bytes of the disk are free" in get(gateway, "/ready")[1]
        refusals(gateway, 50)
        assert upstream.calls == calls
        disk.empty()
        resumes(gateway)
        served |= serve_some(gateway)
        check_kept(disk.journal, served, 0, upstream.calls)
