"""A gateway that is told to stop lets nobody in, lets what is inside end, settles the rest, and goes."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from deploy.stack import wait_until
from otel.journal.audit import audit_folder
from tests.faults.paced_upstream import (
    INPUT,
    OUTPUT,
    WAIT_S,
    Call,
    PacedUpstream,
    chat_pieces,
    messages_pieces,
    whole_body,
)
from tests.faults.paced_world import PATHS, Caller, bills, configure, get, request_id
from tests.gateway_process import Gateway

LONG_S = 120
"""A grace that no test waits for."""
SOON_S = 15.0
"""What a stop may take on a busy machine where nothing holds it up."""
HELLO = [{"role": "user", "content": "hello"}]
PIECES = {"chat_completions": chat_pieces, "messages": messages_pieces}
ENDS = {"chat_completions": b"[DONE]", "messages": b'"message_stop"'}
ERRORS = {"chat_completions": b'data: {"error"', "messages": b"event: error\n"}


@pytest.fixture
def upstream() -> Iterator[PacedUpstream]:
    with PacedUpstream() as provider:
        yield provider


def started(folder: Path, upstream: PacedUpstream, grace_s: int) -> Gateway:
    configure(folder, upstream.port, server={"shutdown_grace_s": grace_s})
    return Gateway(folder)


def tell(gateway: Gateway, told: signal.Signals = signal.SIGTERM) -> float:
    """Tell the gateway to stop, and wait until it knows; return when that was."""
    assert gateway.process is not None
    at = time.monotonic()
    gateway.process.send_signal(told)
    assert wait_until(lambda: is_stopping(gateway), WAIT_S, 0.01)
    return at


def is_stopping(gateway: Gateway) -> bool:
    status, body = get(gateway, "/ready")
    return status == 503 and json.loads(body)["checks"]["admission"] == "stopping"


def ended(gateway: Gateway) -> float:
    """Wait for the process to end in order; return when that was."""
    assert gateway.process is not None
    assert gateway.process.wait(timeout=LONG_S / 2) == 0, gateway.log()
    at = time.monotonic()
    assert "Traceback" not in gateway.log()
    report = audit_folder(gateway.journal, strict=True)
    assert report.complete, report.findings
    assert report.intact, report.findings
    return at


def begin(stack: ExitStack, gateway: Gateway, upstream: PacedUpstream, protocol: str) -> tuple[Caller, Call]:
    """Begin a stream of which two content events came through."""
    caller = stack.enter_context(Caller(gateway.port))
    caller.ask(protocol, stream=True, case=protocol)
    call = upstream.next_call(protocol)
    call.start()
    for piece in PIECES[protocol](2)[:-2]:
        call.send(piece)
    caller.read_until(b"word ", 2)
    return caller, call


def finish(call: Call, protocol: str) -> None:
    for piece in PIECES[protocol](0)[-2:]:
        call.send(piece)
    call.end()


def assert_refused(caller: Caller, protocol: str) -> None:
    status, headers, body = caller.read_reply()
    assert status == 503
    assert headers["connection"] == "close"
    assert int(headers["retry-after"]) >= 1
    assert len(headers["x-request-id"]) == 36
    error = json.loads(body)["error"]
    if protocol == "messages":
        assert json.loads(body)["type"] == "error"
        assert error["type"] == "overloaded_error"
        assert "stopping" in error["message"]
    else:
        assert error["code"] == "shutting_down"
    assert caller.socket.recv(1) == b"", "the connection stays"


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_nobody_is_let_in_and_open_streams_end_as_usual(
    tmp_path: Path, upstream: PacedUpstream, told: signal.Signals
) -> None:
    with started(tmp_path, upstream, LONG_S) as gateway, ExitStack() as stack:
        streams = {protocol: begin(stack, gateway, upstream, protocol) for protocol in PATHS}
        kept = stack.enter_context(Caller(gateway.port))
        kept.ask("chat_completions", stream=False, model="sim-small", messages=HELLO)
        assert kept.read_reply()[0] == 200
        tell(gateway, told)
        calls = upstream.calls
        kept.ask("chat_completions", stream=False)
        assert_refused(kept, "chat_completions")
        for protocol in PATHS:
            for stream in (True, False):
                late = stack.enter_context(Caller(gateway.port))
                late.ask(protocol, stream=stream)
                assert_refused(late, protocol)
        assert upstream.calls == calls
        assert get(gateway, "/health")[0] == 200
        for protocol, (caller, call) in streams.items():
            call.send(PIECES[protocol](1)[-3])
            caller.read_until(b"word ", 3)
            finish(call, protocol)
            assert ENDS[protocol] in caller.read_to_end()
        last_at = time.monotonic()
        assert ended(gateway) - last_at < SOON_S
        found = bills(gateway.journal)
        assert len(found) == 3
        for caller, _ in streams.values():
            bill = found[request_id(caller.received)]
            assert (bill["billing.outcome"], bill["billing.status"]) == ("ok", "final")


def test_past_the_grace_the_rest_is_settled_and_its_callers_are_told(
    tmp_path: Path, upstream: PacedUpstream
) -> None:
    grace_s = 1
    with started(tmp_path, upstream, grace_s) as gateway, ExitStack() as stack:
        streams = {protocol: begin(stack, gateway, upstream, protocol) for protocol in PATHS}
        waiting = {protocol: stack.enter_context(Caller(gateway.port)) for protocol in PATHS}
        for protocol, caller in waiting.items():
            caller.ask(protocol, stream=False, case="whole")
            upstream.next_call("whole")
        left, _ = begin(stack, gateway, upstream, "chat_completions")
        left.leave(gateway)
        told_at = tell(gateway)
        for protocol, (caller, _) in streams.items():
            received = caller.read_to_end()
            assert received.endswith(b"\r\n0\r\n\r\n"), "cut off without a word"
            assert ERRORS[protocol] in received
            assert b"stopping" in received
            assert ENDS[protocol] not in received
        for protocol, caller in waiting.items():
            assert_refused(caller, protocol)
        assert grace_s <= ended(gateway) - told_at < grace_s + SOON_S
        found = bills(gateway.journal)
        assert len(found) == upstream.calls == 5
        told = [json.loads(line) for line in gateway.log().splitlines() if '"request billed"' in line]
        assert sorted(line["status"] for line in told) == [200, 200, 200, 503, 503], "not what callers saw"
        for bill in found.values():
            assert (bill["billing.outcome"], bill["error.type"]) == ("interrupted", "interrupted")
            assert bill["billing.attempts"] == 1
            streamed = bill["gen_ai.request.stream"]
            assert bill["billing.status"] == ("estimated" if streamed else "unmetered")
            assert ("billing.cost.usd" in bill) is streamed
            assert ("gen_ai.usage.output_tokens" in bill) is streamed


@pytest.mark.parametrize("again", [signal.SIGTERM, signal.SIGINT])
def test_told_twice_the_gateway_does_not_wait(
    tmp_path: Path, upstream: PacedUpstream, again: signal.Signals
) -> None:
    with started(tmp_path, upstream, LONG_S) as gateway, ExitStack() as stack:
        caller, _ = begin(stack, gateway, upstream, "chat_completions")
        tell(gateway)
        assert gateway.process is not None
        assert gateway.process.poll() is None
        again_at = time.monotonic()
        gateway.process.send_signal(again)
        received = caller.read_to_end()
        assert ERRORS["chat_completions"] in received
        assert b"[DONE]" not in received
        assert ended(gateway) - again_at < SOON_S
        (bill,) = bills(gateway.journal).values()
        assert (bill["billing.outcome"], bill["billing.status"]) == ("interrupted", "estimated")


def test_a_drain_may_end_within_the_grace(tmp_path: Path, upstream: PacedUpstream) -> None:
    with started(tmp_path, upstream, LONG_S) as gateway, ExitStack() as stack:
        caller, call = begin(stack, gateway, upstream, "messages")
        caller.leave(gateway)
        tell(gateway)
        call.send(messages_pieces(1)[1])
        finish(call, "messages")
        last_at = time.monotonic()
        assert ended(gateway) - last_at < SOON_S
        (bill,) = bills(gateway.journal).values()
        assert (bill["billing.outcome"], bill["billing.status"]) == ("client_disconnected", "final")
        assert bill["billing.usage.source"] == "drained"
        assert (bill["gen_ai.usage.input_tokens"], bill["gen_ai.usage.output_tokens"]) == (INPUT, OUTPUT)


@pytest.mark.parametrize("idle", [0, 20])
def test_with_nothing_inside_the_gateway_goes_at_once(
    tmp_path: Path, upstream: PacedUpstream, idle: int
) -> None:
    with started(tmp_path, upstream, LONG_S) as gateway, ExitStack() as stack:
        for _ in range(idle):
            caller = stack.enter_context(Caller(gateway.port))
            caller.ask("chat_completions", stream=False, model="sim-small", messages=HELLO)
            assert caller.read_reply()[0] == 200
        assert gateway.process is not None
        told_at = time.monotonic()
        gateway.process.send_signal(signal.SIGTERM)
        assert ended(gateway) - told_at < SOON_S
        assert len(bills(gateway.journal)) == idle


def test_in_the_middle_of_traffic_every_answer_has_its_bill_and_every_call_too(
    tmp_path: Path,
) -> None:
    answered: list[str] = []
    refused: list[int] = []
    going = threading.Event()

    def answer(call: Call) -> None:
        protocol = "messages" if b"/messages" in call.head.split(b"\r\n")[0] else "chat_completions"
        if not call.asked["stream"]:
            call.whole(whole_body(protocol))
            return
        call.start()
        for piece in PIECES[protocol](20):
            call.send(piece)
        call.end()

    def ask_on(gateway: Gateway, number: int) -> None:
        protocol, stream = list(PATHS)[number % 2], number % 4 > 1
        while True:  # ends with the gateway
            try:
                with Caller(gateway.port) as caller:
                    caller.ask(protocol, stream=stream)
                    if stream:
                        received = caller.read_to_end()
                        whole = ENDS[protocol] in received
                    else:
                        status, _, _ = caller.read_reply()
                        whole = status == 200
                    if whole:
                        answered.append(request_id(caller.received))
                    elif b" 503 " in caller.received[:20]:
                        refused.append(1)
                    if len(answered) > 100:
                        going.set()
            except (OSError, ValueError):
                return

    with PacedUpstream(answer) as upstream, started(tmp_path, upstream, LONG_S) as gateway:
        with ThreadPoolExecutor(8) as pool:
            callers = [pool.submit(ask_on, gateway, number) for number in range(8)]
            assert going.wait(WAIT_S)
            assert gateway.process is not None
            gateway.process.send_signal(signal.SIGTERM)
            for caller in callers:
                caller.result()
        ended(gateway)
        found = bills(gateway.journal)
        assert {outcome(found[id_]) for id_ in answered} == {("ok", "final")}
        assert len(found) == upstream.calls


def outcome(bill: dict[str, Any]) -> tuple[str, str]:
    return bill["billing.outcome"], bill["billing.status"]
