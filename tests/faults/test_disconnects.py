"""A caller may leave at any moment and in any way: it is billed once, with the provider's figure.

Each case has one provider call that sends nothing further until the gateway has closed the caller's
connection, so that where the caller left is no accident.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from deploy.stack import wait_until
from gateway.metering import tokenizer
from gateway.metering.estimate import FORM_TOKENS_MAX, METHOD
from otel.journal.audit import Logs, audit_folder
from tests.faults.paced_upstream import (
    INPUT,
    OUTPUT,
    PLACEHOLDER,
    WAIT_S,
    Call,
    PacedUpstream,
    chat_pieces,
    messages_pieces,
    responses_pieces,
    whole_body,
)
from tests.faults.paced_world import (
    ALL_PATHS,
    CANCEL_KEY,
    MAX_TOKENS,
    Caller,
    bill_of,
    bills,
    configure,
    request_id,
)
from tests.gateway_process import KEYS, Gateway

METHODS = (METHOD, f"{tokenizer.NAME}_sample", tokenizer.NAME)
"""How an estimate may be made: the tokenizer is loaded when it is first needed."""
CONTENT = 5
"""Content events of a stream."""
AT_ONCE = 12
"""Cases run at a time."""
PIECES = {"chat_completions": chat_pieces, "messages": messages_pieces, "responses": responses_pieces}
BEFORE_HEAD = -1
WRITE_IDLE_S = 1.0


class Case(NamedTuple):
    """One caller that leaves: after the provider has sent `k` pieces, or BEFORE_HEAD."""

    protocol: str
    stream: bool
    k: int
    reset: bool
    usage_asked: bool = False
    key: str = KEYS["alice"]

    @property
    def name(self) -> str:
        return "/".join(str(part) for part in self)

    @property
    def pieces(self) -> list[bytes]:
        if self.stream:
            return PIECES[self.protocol](CONTENT)
        body = whole_body(self.protocol)
        return [body[:1], body[1:-1], body[-1:]]

    @property
    def whole(self) -> bool:
        """Whether the caller stays to the end."""
        return self.k == len(self.pieces)

    @property
    def visible(self) -> int:
        """How many events of the first `k` pieces reach the caller: the end and unasked usage do not."""
        shown = min(max(self.k, 0), len(self.pieces) - 1)
        if self.protocol == "chat_completions" and not self.usage_asked:
            shown = min(shown, CONTENT)
        return shown


def cases(key: str = KEYS["alice"]) -> list[Case]:
    made = []
    both = (True, False)
    for protocol, stream, reset, asked in itertools.product(ALL_PATHS, both, both, both):
        if asked and (protocol != "chat_completions" or not stream):
            continue
        last = len(Case(protocol, stream, 0, reset).pieces)
        made += [Case(protocol, stream, k, reset, asked, key) for k in range(BEFORE_HEAD, last + 1)]
    return made


class World(NamedTuple):
    gateway: Gateway
    upstream: PacedUpstream


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with served(tmp_path_factory.mktemp("disconnects")) as world:
        yield world


@pytest.fixture(scope="module")
def lean(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A gateway without a tokenizer, which an estimate would have loaded while memory is measured."""
    with served(tmp_path_factory.mktemp("lean"), estimates={"tokenizer": "none"}) as world:
        yield world


@contextlib.contextmanager
def served(folder: Path, **sections: dict[str, Any]) -> Iterator[World]:
    with PacedUpstream() as upstream:
        configure(
            folder,
            upstream.port,
            server={"write_idle_timeout_s": WRITE_IDLE_S},
            upstream={"drain_bytes_max": 2 * PIECES_MANY * len(PIECE)},
            **sections,
        )
        with Gateway(folder) as gateway:
            yield World(gateway, upstream)
            assert gateway.stop() == 0
            report = audit_folder(gateway.journal, logs=Logs(), strict=True)
            assert report.complete, report.findings
            assert report.intact, report.findings


def play(world: World, case: Case) -> str:
    """Let one caller leave, and the provider go on to its end; return the id if the caller learnt it."""
    options = {"stream_options": {"include_usage": True}} if case.usage_asked else {}
    caller = Caller(world.gateway.port)
    caller.ask(case.protocol, stream=case.stream, key=case.key, case=case.name, **options)
    call = world.upstream.next_call(case.name)
    pieces = case.pieces
    if case.k == BEFORE_HEAD:
        caller.leave(world.gateway, reset=case.reset)
        if case.stream and case.key == CANCEL_KEY:
            assert call.was_left(), "the provider works on for nobody"
            call.finished.set()
            return ""
    call.start(stream=case.stream, length=sum(map(len, pieces)))
    send = call.send if case.stream else call.connection.sendall
    for piece in pieces[: max(case.k, 0)]:
        send(piece)
    if case.whole:
        if case.stream:
            call.end()
            caller.read_to_end()
        else:
            caller.read_reply()
            call.finished.set()
        caller.leave(world.gateway, reset=case.reset)
        return request_id(caller.received)
    if case.k != BEFORE_HEAD:
        if case.stream:
            caller.read_until(b"data: ", case.visible)
        caller.leave(world.gateway, reset=case.reset)
    if case.stream and case.key == CANCEL_KEY:
        assert call.was_left(), "the provider works on for nobody"
        call.finished.set()
    else:
        for piece in pieces[max(case.k, 0) :]:
            send(piece)
        if case.stream:
            call.end()
        call.finished.set()
    return request_id(caller.received) if caller.received else ""


def play_all(world: World, played: list[Case]) -> list[tuple[Case, dict[str, Any]]]:
    """Play cases side by side; return each with its bill, found by what its intent says of it."""
    known = set(bills(world.gateway.journal))
    calls = world.upstream.calls
    with ThreadPoolExecutor(AT_ONCE) as pool:
        ids = list(pool.map(lambda case: play(world, case), played))
    assert world.upstream.calls - calls == len(played), "a request was sent twice, or not at all"
    assert wait_until(lambda: len(bills(world.gateway.journal)) == len(known) + len(played), WAIT_S, 0.02)
    found = bills(world.gateway.journal)
    named = [(case, found.pop(id_)) for case, id_ in zip(played, ids, strict=True) if id_]
    # Callers that left before any byte came learnt no id: their bills are alike.
    nameless = [case for case, id_ in zip(played, ids, strict=True) if not id_]
    rest = [bill for id_, bill in found.items() if id_ not in known]
    assert len(rest) == len(nameless)
    for case in nameless:
        bill = next(bill for bill in rest if is_of(case, bill))
        rest.remove(bill)
        named.append((case, bill))
    return named


def is_of(case: Case, bill: dict[str, Any]) -> bool:
    return (case.protocol, case.stream) == (bill["billing.protocol"], bill["gen_ai.request.stream"])


def test_wherever_a_caller_leaves_the_bill_is_the_providers_own_figure(world: World) -> None:
    for case, bill in play_all(world, cases()):
        assert is_of(case, bill), case
        assert bill["gen_ai.usage.input_tokens"] == INPUT, case
        assert bill["gen_ai.usage.output_tokens"] == OUTPUT, case
        assert bill["billing.status"] == "final", case
        assert bill["billing.attempts"] == 1, case
        if case.whole:
            assert bill["billing.outcome"] == "ok", case
            assert bill["billing.usage.source"] == "provider", case
            assert "error.type" not in bill, case
        else:
            assert bill["billing.outcome"] == "client_disconnected", case
            assert bill["billing.usage.source"] == "drained", case
            assert bill["error.type"] == "client_disconnected", case


def test_a_key_that_says_cancel_stops_the_provider_and_bills_an_estimate(world: World) -> None:
    played = [case for case in cases(CANCEL_KEY) if case.stream]
    for case, bill in play_all(world, played):
        start, late = case.protocol != "chat_completions", case.protocol == "responses"
        content = min(max(case.k - start, 0), CONTENT)
        assert bill["billing.outcome"] == ("ok" if case.whole else "client_disconnected"), case
        if case.k > CONTENT + start + late:  # the provider had said what it was
            assert bill["billing.status"] == "final", case
            assert bill["gen_ai.usage.output_tokens"] == OUTPUT, case
        elif case.k <= late:
            assert bill["billing.status"] == "unmetered", case
            assert "gen_ai.usage.output_tokens" not in bill, case
            assert "billing.cost.usd" not in bill, case
        else:
            assert bill["billing.status"] == "estimated", case
            assert bill["billing.usage.source"] == "estimated", case
            assert bill["billing.usage.estimate.method"] in METHODS, case
            output = bill["gen_ai.usage.output_tokens"]
            least = bill["billing.usage.estimate.output_tokens_min"]
            most = bill["billing.usage.estimate.output_tokens_max"]
            assert least <= output <= most <= MAX_TOKENS < PLACEHOLDER, case
            assert content <= output <= content * len("word "), case
            if case.protocol == "messages":
                assert bill["gen_ai.usage.input_tokens"] == INPUT, case


@pytest.mark.parametrize("protocol", list(ALL_PATHS))
def test_an_estimate_is_never_above_what_was_asked_for(world: World, protocol: str) -> None:
    with Caller(world.gateway.port) as caller:
        caller.ask(protocol, stream=True, key=CANCEL_KEY, case="much")
        call = world.upstream.next_call("much")
        call.start()
        for piece in PIECES[protocol](10, "word " * 50)[:-2]:
            call.send(piece)
        caller.read_until(b"word " * 50, 10)
        caller.leave(world.gateway)
    assert call.was_left()
    bill = bill_of(world.gateway, request_id(caller.received))
    assert bill["billing.status"] == "estimated"
    assert bill["gen_ai.usage.output_tokens"] == MAX_TOKENS
    assert bill["billing.usage.estimate.output_tokens_max"] == MAX_TOKENS


@pytest.mark.parametrize("protocol", list(ALL_PATHS))
@pytest.mark.parametrize(
    ("stream", "key"),
    [(True, KEYS["alice"]), (False, KEYS["alice"]), (False, CANCEL_KEY)],
    ids=["stream", "whole", "whole cancel"],
)
def test_an_error_body_is_never_billed_though_its_caller_left(
    world: World, protocol: str, stream: bool, key: str
) -> None:
    known = set(bills(world.gateway.journal))
    body = b'{"error":{"message":"' + b"word " * 1000 + b'","type":"overloaded_error"}}'
    with Caller(world.gateway.port) as caller:
        caller.ask(protocol, stream=stream, key=key, case="error")
        call = world.upstream.next_call("error")
        caller.leave(world.gateway)
    call.connection.sendall(b"HTTP/1.1 529 Overloaded\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
    call.finished.set()
    assert wait_until(lambda: len(bills(world.gateway.journal)) == len(known) + 1, WAIT_S, 0.01)
    (bill,) = (bill for id_, bill in bills(world.gateway.journal).items() if id_ not in known)
    assert (bill["billing.outcome"], bill["billing.status"]) == ("upstream_error", "final")
    assert bill["billing.cost.usd"] == "0"
    assert "gen_ai.usage.output_tokens" not in bill


@pytest.mark.parametrize("protocol", list(ALL_PATHS))
def test_an_error_inside_a_stream_is_no_content_though_its_caller_left(world: World, protocol: str) -> None:
    error = b'{"type":"error","error":{"type":"overloaded_error","message":"' + b"word " * 1000 + b'"}}'
    with Caller(world.gateway.port) as caller:
        caller.ask(protocol, stream=True, case="error event")
        call = world.upstream.next_call("error event")
        call.start()
        for piece in PIECES[protocol](1)[:-2]:
            call.send(piece)
        caller.read_until(b"word ")
        caller.leave(world.gateway)
    call.send((b"event: error\n" if protocol != "chat_completions" else b"") + b"data: " + error + b"\n\n")
    call.end()
    bill = bill_of(world.gateway, request_id(caller.received))
    assert (bill["billing.outcome"], bill["error.type"]) == ("upstream_error", "overloaded_error")
    assert bill["billing.status"] == "estimated"
    assert bill["billing.usage.estimate.output_tokens_max"] <= len("word ") + FORM_TOKENS_MAX


# bounds of the drain


def begin(gateway: Gateway, upstream: PacedUpstream, case: str) -> tuple[Caller, Call]:
    """Begin a stream of which one content event came through."""
    caller = Caller(gateway.port)
    caller.ask("chat_completions", stream=True, case=case)
    call = upstream.next_call(case)
    call.start()
    call.send(chat_pieces(1)[0])
    caller.read_until(b"word ")
    return caller, call


def sent_until_cut(call: Call, piece_bytes: int) -> int:
    """Send until the gateway closes the connection; return how many bytes were sent."""
    for number in range(64):
        try:
            call.send(chat_pieces(1, "x" * piece_bytes)[0])
        except OSError:
            return number * piece_bytes
    raise AssertionError("a provider that talks is listened to without end")


def test_a_drain_is_bounded_in_time_in_bytes_and_in_number(tmp_path: Path) -> None:
    drain_s, bytes_max = 2.0, 256 * 1024
    bounds = {"drain_s": drain_s, "drain_bytes_max": bytes_max, "drains_max": 2}
    with PacedUpstream() as upstream:
        configure(tmp_path, upstream.port, upstream=bounds)
        with Gateway(tmp_path) as gateway:
            began = [begin(gateway, upstream, case) for case in ("ends", "silent", "third")]
            (ends, ends_call), (silent, silent_call), (third, third_call) = began
            ends.leave(gateway)
            silent.leave(gateway)
            left_at = time.monotonic()
            third.leave(gateway)
            assert third_call.was_left(), "there were two drains already"
            for piece in chat_pieces(0):
                ends_call.send(piece)
            ends_call.end()
            assert bill_of(gateway, request_id(ends.received))["billing.status"] == "final"
            assert silent_call.was_left(), "a silent provider is waited for without end"
            took_s = time.monotonic() - left_at
            assert drain_s * 0.8 < took_s < drain_s + 10
            much, much_call = begin(gateway, upstream, "much")
            much.leave(gateway)
            assert bytes_max < sent_until_cut(much_call, bytes_max) < 64 * bytes_max
            for caller in (third, silent, much):
                bill = bill_of(gateway, request_id(caller.received))
                assert bill["billing.outcome"] == "client_disconnected"
                assert bill["billing.status"] == "estimated"
                if caller is not much:  # which sent more than was asked for
                    assert bill["billing.usage.estimate.output_tokens_max"] <= MAX_TOKENS
            # Each bound given back what it took: a drain is to be had again.
            last, last_call = begin(gateway, upstream, "last")
            last.leave(gateway)
            for piece in chat_pieces(0):
                last_call.send(piece)
            last_call.end()
            assert bill_of(gateway, request_id(last.received))["billing.usage.source"] == "drained"
            assert gateway.stop() == 0
        report = audit_folder(gateway.journal, strict=True)
        assert report.complete
        assert report.intact


# callers that do not read

PIECE = b"x" * 65_536
PIECES_MANY = 1536
"""Of PIECE: 96 MiB, where the kernel holds less than HELD_BYTES_MAX, however it is tuned."""
HELD_BYTES_MAX = 64 * 2**20
GATEWAY_BYTES_MAX = 12 * 2**20


class Flood:
    """A provider that sends PIECES_MANY as fast as they are taken, and the usage."""

    def __init__(self, call: Call) -> None:
        self.sent = 0
        self._call = call
        self.thread = threading.Thread(target=self._send)
        self.thread.start()

    def _send(self) -> None:
        self._call.start()
        for _ in range(PIECES_MANY):
            self._call.send(chat_pieces(1, PIECE.decode())[0])
            self.sent += len(PIECE)
        for piece in chat_pieces(0):
            self._call.send(piece)
        self._call.end()

    def is_held(self) -> bool:
        """Wait until no more is taken; False if all was."""
        before = -1
        while before != self.sent:  # bounded by PIECES_MANY
            before = self.sent
            time.sleep(0.1)
        return self.sent < PIECES_MANY * len(PIECE)


def resident_bytes(gateway: Gateway) -> int:
    assert gateway.process is not None
    return int(Path(f"/proc/{gateway.process.pid}/statm").read_text().split()[1]) * 4096


def test_a_slow_reader_slows_its_provider_and_costs_no_memory(lean: World) -> None:
    gateway = lean.gateway
    with Caller(gateway.port, receive_buffer_bytes=65_536) as caller:
        before = resident_bytes(gateway)
        caller.ask("chat_completions", stream=True, case="slow")
        flood = Flood(lean.upstream.next_call("slow"))
        caller.read_until(b"x" * 1000)
        assert flood.is_held(), "the provider was not held back"
        assert flood.sent < HELD_BYTES_MAX
        assert resident_bytes(gateway) - before < GATEWAY_BYTES_MAX
        taken = len(caller.received)
        while data := caller.socket.recv(2**20):
            taken += len(data)
            if data.endswith(b"\r\n0\r\n\r\n"):
                break
        flood.thread.join()
        assert taken > PIECES_MANY * len(PIECE)
        assert resident_bytes(gateway) - before < GATEWAY_BYTES_MAX
    assert bill_of(gateway, request_id(caller.received))["billing.outcome"] == "ok"


def test_a_caller_that_stops_reading_is_cut_off_and_billed_with_the_providers_figure(lean: World) -> None:
    gateway = lean.gateway
    with Caller(gateway.port, receive_buffer_bytes=4096) as caller:
        before = resident_bytes(gateway)
        caller.ask("chat_completions", stream=True, case="deaf")
        flood = Flood(lean.upstream.next_call("deaf"))
        caller.read_until(b"x" * 1000)
        assert flood.is_held(), "the provider was not held back"
        assert resident_bytes(gateway) - before < GATEWAY_BYTES_MAX
        bill = bill_of(gateway, request_id(caller.received))
        flood.thread.join()
        with contextlib.suppress(ConnectionResetError):
            caller.read_until(b"[DONE]")
        assert b"[DONE]" not in caller.received
    assert (bill["billing.outcome"], bill["error.type"]) == ("client_disconnected", "client_stalled")
    assert (bill["billing.status"], bill["billing.usage.source"]) == ("final", "drained")
    assert bill["gen_ai.usage.output_tokens"] == OUTPUT
