"""Attempts, at their beginning: a stream that ends before its first event, and a key that is refused."""

from __future__ import annotations

import pytest

from gateway.core.errors import UpstreamError
from gateway.release.relay import CHECK_EVERY_NS
from gateway.routing.cooldown import Rules
from gateway.routing.targets import Target
from tests.test_attempts import CONTENT, CUT, DONE, STREAM, TIMEOUT, USAGE, Answers, World, error, ok

A, B = Target("a", "m-a"), Target("b", "m-b")
PROTOCOL = UpstreamError("upstream_protocol", "chunks", retryable=False, sent=True)


def streams(*reads: bytes | UpstreamError) -> Answers:
    return Answers(200, list(reads), stream=True)


BROKEN: dict[str, tuple[bytes | UpstreamError, ...]] = {
    "cut": (CUT,),
    "empty": (),
    "silent": (TIMEOUT,),
    "garbled": (PROTOCOL,),
    "cut inside its first event": (CONTENT[:-2], CUT),
    "ends inside its first event": (CONTENT[:9], CONTENT[9:-1]),
}


@pytest.mark.parametrize("kind", BROKEN)
async def test_a_stream_that_breaks_before_its_first_event_is_served_by_the_next_target(kind: str) -> None:
    world = World([streams(*BROKEN[kind])], [streams(STREAM)], stream=True)
    bill = await world.serve()
    assert world.called == ["a", "b"]
    assert (world.status, world.sent) == (200, CONTENT + DONE)
    assert world.headers[b"x-spanbill-attempts"] == b"2; a,b"
    assert (bill.outcome, bill.status) == ("ok", "final")
    assert bill.charge is not None
    assert bill.charge.price_id == "b"
    first = bill.attempts[0]
    assert (first.status, first.unsettled) == (200, True)  # it may have made tokens
    assert first.error_type in ("upstream_incomplete", "upstream_timeout", "upstream_protocol")
    standings = world.chooser.standings(world.clock)
    assert (standings[A][0].failures, standings[B][0].failures) == (1, 0)


@pytest.mark.parametrize("kind", BROKEN)
async def test_where_it_was_the_last_target_the_caller_has_an_error_and_no_stream(kind: str) -> None:
    world = World([streams(*BROKEN[kind])], stream=True, attempts_max=1)
    with pytest.raises(UpstreamError):
        await world.serve()
    assert (world.status, world.sent) == (0, b""), "the door answers, with a status of its own"
    (bill,) = world.bills
    assert (bill.status, bill.charge) == ("unmetered", None)
    assert world.chooser.standings(world.clock)[A][0].failures == 1


async def test_an_only_target_whose_stream_did_not_begin_is_asked_again_unless_it_was_too_slow() -> None:
    world = World([streams(CUT), streams(STREAM)], stream=True)
    bill = await world.serve()
    assert (world.called, len(world.pauses), bill.outcome) == (["a", "a"], 1, "ok")
    world = World([streams(TIMEOUT)], stream=True)
    with pytest.raises(UpstreamError):
        await world.serve()
    assert world.called == ["a"]


@pytest.mark.parametrize(
    "reads",
    [
        (CONTENT, CUT),
        (CONTENT[:9], CONTENT[9:], CUT),
        (CONTENT.replace(b"\n", b"\r\n"), CUT),
        (CONTENT.replace(b"\n", b"\r") + b": \r", CUT),
        (b": wait\n\n", CUT),
        (CONTENT[:-1], b"\n", CUT),
    ],
)
async def test_what_breaks_behind_its_first_event_is_tried_nowhere_else(
    reads: tuple[bytes | UpstreamError, ...],
) -> None:
    world = World([streams(*reads)], [streams(STREAM)], stream=True)
    bill = await world.serve()
    assert world.called == ["a"]
    assert world.status == 200
    passed_on, error_event, _ = world.sent.partition(b'data: {"error"')
    assert passed_on
    assert b"".join(read for read in reads if isinstance(read, bytes)).startswith(passed_on)
    assert error_event
    assert (bill.outcome, len(bill.attempts)) == ("upstream_incomplete", 1)


async def test_a_stream_that_comes_in_crumbs_reaches_the_caller_byte_for_byte() -> None:
    world = World([streams(*[STREAM[at : at + 1] for at in range(len(STREAM))])], stream=True)
    bill = await world.serve()
    assert (world.sent, bill.outcome) == (CONTENT + DONE, "ok")
    assert USAGE not in world.sent


async def test_an_event_that_never_ends_is_not_held_for_ever() -> None:
    long = b"data: " + b"x" * 70_000
    world = World([streams(long, CUT)], [streams(STREAM)], stream=True)
    bill = await world.serve()
    assert (world.called, bill.outcome) == (["a"], "upstream_incomplete")


async def test_a_caller_that_leaves_before_the_first_event_is_billed_for_what_still_comes() -> None:
    world = World([streams(STREAM)], [ok("b")], stream=True)
    world.leaves_after = 1
    world.clock += CHECK_EVERY_NS
    bill = await world.serve()
    assert (world.called, bill.outcome) == (["a"], "client_disconnected")
    assert bill.reply.usage is not None
    assert bill.reply.usage.counts["output"] == 2


@pytest.mark.parametrize("status", [401, 403])
async def test_a_key_that_a_provider_refuses_sends_the_request_to_the_next_target(status: int) -> None:
    world = World([error(status)], [ok("b")])
    bill = await world.serve()
    assert world.called == ["a", "b"]
    assert (world.status, bill.outcome, bill.status) == (200, "ok", "final")
    assert (bill.attempts[0].error_type, bill.attempts[0].unsettled) == (str(status), False)
    assert world.refused == [(A, status)]


async def test_a_key_that_is_refused_is_told_once_a_minute_and_its_target_is_left_alone() -> None:
    world = World([], [])
    for _ in range(Rules().attempts_min):
        world.scripts = {"a": [error(401)], "b": [ok("b")]}
        await world.serve()
    assert world.refused == [(A, 401)]
    assert world.chooser.callable([A, B], world.clock) == [False, True]
    world.clock += 61 * 10**9
    world.scripts = {"a": [error(401)], "b": [ok("b")]}
    await world.serve()
    assert world.refused == [(A, 401)] * 2


async def test_what_is_forbidden_may_be_this_callers_doing_and_says_nothing_of_the_target() -> None:
    world = World([], [])
    for _ in range(Rules().attempts_min):
        world.scripts = {"a": [error(403)], "b": [ok("b")]}
        await world.serve()
    assert world.called == ["a", "b"] * Rules().attempts_min
    assert world.chooser.callable([A, B], world.clock) == [True, True]
    assert A not in world.chooser.standings(world.clock)


async def test_where_nobody_else_is_there_a_refused_key_is_passed_on_and_asked_once() -> None:
    world = World([error(401)])
    bill = await world.serve()
    assert (world.called, world.status, world.pauses) == (["a"], 401, [])
    assert (bill.outcome, bill.status) == ("upstream_error", "final")
    assert world.refused == [(A, 401)]


async def test_retry_after_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[bytes | None] = []

    def read(value: bytes | None, now_unix_s: float) -> float | None:
        reads.append(value)
        return 3.0

    monkeypatch.setattr("gateway.attempts.retry_after", read)
    world = World([error(429, (b"retry-after", b"3")), ok("a")])
    await world.serve()
    assert (reads, world.pauses) == ([b"3"], [3.0])
