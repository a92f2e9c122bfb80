"""Attempts, judged: what an attempt says of its target, what it may cost, and what nothing may exceed."""

from __future__ import annotations

import asyncio

import pytest

from gateway.core.errors import UpstreamError
from gateway.routing.cooldown import Rules
from gateway.routing.retry import RetryBudget
from gateway.routing.rolling import Standing
from gateway.routing.targets import Target
from tests.test_attempts import CONTENT, CUT, STREAM, Answers, World, error, fault, ok, whole

A, B = Target("a", "m-a"), Target("b", "m-b")
LEFT = fault("client_disconnected", sent=True)


def standing(world: World, target: Target) -> Standing:
    standings = world.chooser.standings(world.clock)
    return standings[target][0] if target in standings else Standing()


def cool(world: World, target: Target = A) -> None:
    """Have the target left alone."""
    attempt = world.chooser.began(target, world.clock, again=False)
    world.chooser.answered(attempt, False, world.clock, 1.0)
    assert world.chooser.callable([target, B if target == A else A], world.clock) == [False, True]


async def test_a_target_whose_answers_break_off_is_left_alone_streamed_or_not() -> None:
    whole = World([], [])
    for _ in range(Rules().attempts_min):
        whole.scripts = {"a": [Answers(200, CUT)], "b": [ok("b")]}
        await whole.serve()
    assert whole.chooser.callable([A, B], whole.clock) == [False, True]
    streamed = World([], [], stream=True)
    for _ in range(Rules().attempts_min):
        streamed.scripts = {"a": [Answers(200, [CONTENT, CUT], stream=True)], "b": []}
        await streamed.serve()
    assert streamed.called == ["a"] * 5
    assert streamed.chooser.callable([A, B], streamed.clock) == [False, True]


async def test_a_whole_reply_that_is_no_document_is_tried_elsewhere_and_may_have_been_charged() -> None:
    for body in (b"<html>busy</html>", b"", b'{"cut":', b"[1]", b'data: {"a":1}'):
        world = World([Answers(200, body)], [ok("b")])
        bill = await world.serve()
        assert world.called == ["a", "b"]
        assert (bill.attempts[0].error_type, bill.attempts[0].unsettled) == ("upstream_protocol", True)
        assert standing(world, A).failures == 1
    patient = b"\n" * 5_000 + whole("a") + b"\r\n" * 500  # how some keep a connection alive meanwhile
    for body in (patient, b"\xef\xbb\xbf" + whole("a")):
        world = World([Answers(200, body)], [ok("b")])
        await world.serve()
        assert (world.called, world.sent) == (["a"], body)
    world = World([Answers(200, b"<html>busy</html>")], attempts_max=1)
    with pytest.raises(UpstreamError, match="no JSON") as caught:  # as where any last attempt fails
        await world.serve()
    assert (caught.value.status, caught.value.code, world.sent) == (502, "upstream_protocol", b"")
    (bill,) = world.bills
    assert (bill.outcome, bill.error_type, bill.status) == (
        "upstream_error",
        "upstream_protocol",
        "unmetered",
    )
    assert (bill.charge, bill.attempts[0].error_type) == (None, "upstream_protocol")
    assert standing(world, A).failures == 1


async def test_what_the_caller_got_wrong_says_nothing_of_the_target() -> None:
    world = World([error(400), error(422), error(404)], [])
    for _ in range(3):
        await world.serve()
    assert world.called == ["a"] * 3
    assert standing(world, A) == Standing()


async def test_a_caller_that_left_is_neither_success_nor_failure_and_gives_its_probe_back() -> None:
    world = World([LEFT], [ok("b")], stream=True)
    cool(world)
    world.clock += 30 * 10**9
    with pytest.raises(UpstreamError):
        await world.serve()
    assert world.called == ["a"]
    assert standing(world, A) == Standing()
    _, state, _, inside = world.chooser.standings(world.clock)[A]
    assert (state, inside) == ("probing", 0)
    probe = world.chooser.began(A, world.clock, again=False)
    assert probe.probe
    assert world.chooser.callable([A, B], world.clock) == [
        False,
        True,
    ]  # one at a time: none has passed


async def test_of_many_that_were_sent_to_a_target_on_probation_one_goes_there() -> None:
    world = World([ok("a")], [ok("b")])
    cool(world)
    world.clock += 30 * 10**9
    before = world.chooser.began(A, world.clock, again=False)  # between this request's choice and its call
    assert before.probe
    await world.serve()
    assert world.called == ["b"]


async def test_retries_are_spent_when_they_are_decided_so_that_a_herd_finds_no_more_than_there_are() -> None:
    world = World([error(500) for _ in range(400)])
    gate = asyncio.Event()

    async def pause(seconds: float) -> None:
        world.pauses.append(seconds)
        await gate.wait()

    world.pause = pause  # type: ignore[method-assign]
    herd = [asyncio.create_task(world.served()) for _ in range(100)]
    for _ in range(1000):  # every one of them has either ended or is in its pause
        await asyncio.sleep(0)
    assert len(world.called) == 100, "the herd did not arrive"
    gate.set()
    await asyncio.gather(*herd)
    allowed = RetryBudget.FEW + RetryBudget.SHARE * 100
    assert RetryBudget.FEW <= len(world.called) - 100 <= allowed
    assert world.chooser.affordable([A]) == [False]


async def test_what_is_stopped_in_the_pause_before_another_attempt_costs_nothing() -> None:
    world = World([error(503)])

    async def pause(seconds: float) -> None:
        world.pauses.append(seconds)
        raise asyncio.CancelledError

    world.pause = pause  # type: ignore[method-assign]
    bill = await world.interrupted()
    assert len(world.pauses) == 1
    assert (bill.outcome, bill.status) == ("interrupted", "final")
    assert standing(world, A).requests == 1


async def test_a_caller_that_leaves_in_the_pause_costs_nothing_and_is_asked_about_once() -> None:
    world = World([error(503), ok("a")])

    async def pause(seconds: float) -> None:
        world.pauses.append(seconds)
        world.leaves_after = 1

    world.pause = pause  # type: ignore[method-assign]
    with pytest.raises(UpstreamError, match="left"):
        await world.serve()
    assert world.called == ["a"]
    (bill,) = world.bills
    assert (bill.outcome, bill.status) == ("client_disconnected", "final")
    assert standing(world, A).requests == 1


async def test_a_stream_that_breaks_off_is_measured_once() -> None:
    world = World([Answers(200, CONTENT, stream=True)], [], stream=True)
    bill = await world.serve()
    assert bill.outcome == "upstream_incomplete"
    assert (standing(world, A).requests, standing(world, A).failures) == (1, 1)
    world = World([Answers(200, STREAM, stream=True)], [], stream=True)
    await world.serve()
    assert (standing(world, A).requests, standing(world, A).failures) == (1, 0)
