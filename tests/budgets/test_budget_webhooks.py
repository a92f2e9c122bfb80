"""A webhook is told each warning until it takes it, signed, and by one process at a time."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from gateway.budgets.definitions import Budget
from gateway.budgets.warning import Warnings
from gateway.budgets.webhooks import FIRST_WAIT_S, LAST_WAIT_S, TRIES_MAX, Webhooks, wait_s
from gateway.control.schema import warnings
from gateway.ledger.periods import Period
from tests.budgets.worlds import DAY_NS, USD, MemoryControl

SECRET = "a secret of the operator's"
BUDGET = Budget(id="b", scope="user", payer="*", limit_pico=10 * USD, span="day")


class Receiver:
    """Takes what the gateway posts, and answers as it is told to."""

    def __init__(self) -> None:
        self.got: list[httpx.Request] = []
        self.answers: list[int | Exception] = []
        self.now_ns = 1_790_000_000 * 10**9

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.got.append(request)
        answer = self.answers.pop(0) if self.answers else 204
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer, headers={"location": "http://elsewhere.invalid"})


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
def control() -> Iterator[MemoryControl]:
    made = MemoryControl()
    yield made
    made.close()


def webhooks(control: MemoryControl, receiver: Receiver) -> Webhooks:
    client = httpx.Client(transport=httpx.MockTransport(receiver), follow_redirects=False)
    return Webhooks(control, "http://hooks.invalid/x", SECRET, client, now_ns=lambda: receiver.now_ns)


def warn(control: MemoryControl, receiver: Receiver, *, webhook: bool = True) -> None:
    made = Warnings(
        control,
        event_id=iter(f"e{n}" for n in range(9)).__next__,
        webhook=webhook,
        now_ns=lambda: receiver.now_ns,
    )
    made.look(BUDGET, "alice", Period(0, DAY_NS), 6 * USD)


def rows(control: MemoryControl) -> list[Any]:
    return list(control.run(lambda c: c.execute(select(warnings)).all()))


def test_a_warning_is_told_once_with_a_signature(control: MemoryControl, receiver: Receiver) -> None:
    warn(control, receiver)
    hooks = webhooks(control, receiver)
    assert [hooks.step(), hooks.step()] == [1, 0]
    (request,) = receiver.got
    assert request.headers["idempotency-key"] == "e0"
    at, _, signed = request.headers["x-spanbill-signature"].partition(",")
    assert at == f"t={receiver.now_ns // 10**9}"
    expected = hmac.new(SECRET.encode(), at[2:].encode() + b"." + request.content, hashlib.sha256)
    assert signed == f"v1={expected.hexdigest()}"
    body = json.loads(request.content)
    assert body["type"] == "budget.threshold"
    assert (body["budget"], body["payer"], body["percent"]) == ("b", "alice", 50)
    assert (body["limit_usd"], body["spent_usd"]) == ("10", "6")
    assert hooks.delivered == 1


@pytest.mark.parametrize("answer", [500, 404, 302, httpx.ConnectError("refused"), httpx.ReadTimeout("slow")])
def test_what_is_not_taken_is_told_again_later_with_the_same_id(
    control: MemoryControl, receiver: Receiver, answer: int | Exception
) -> None:
    warn(control, receiver)
    receiver.answers = [answer]
    assert webhooks(control, receiver).step() == 1
    assert webhooks(control, receiver).step() == 0, "too soon"
    receiver.now_ns += 60 * 10**9
    after_a_restart = webhooks(control, receiver)
    assert after_a_restart.step() == 1
    assert after_a_restart.delivered == 1
    assert [request.headers["idempotency-key"] for request in receiver.got] == ["e0", "e0"]


def test_it_gives_up_after_so_many_tries_and_says_so(
    control: MemoryControl, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    warn(control, receiver)
    receiver.answers = [503] * 100
    hooks = webhooks(control, receiver)
    for _ in range(TRIES_MAX + 5):
        hooks.step()
        receiver.now_ns += (LAST_WAIT_S + 60) * 10**9
    assert len(receiver.got) == TRIES_MAX
    assert hooks.failed == 1
    assert "never accepted" in caplog.text
    assert rows(control)[0].next_unix_ns is None


def test_of_two_processes_one_tells_it(control: MemoryControl, receiver: Receiver) -> None:
    warn(control, receiver)
    one, other = webhooks(control, receiver), webhooks(control, receiver)
    tried: list[int] = []

    def meanwhile(request: httpx.Request) -> httpx.Response:
        tried.append(other.step())
        return receiver(request)

    one._client = httpx.Client(transport=httpx.MockTransport(meanwhile))
    assert one.step() == 1
    assert tried == [0]


def test_without_a_webhook_nothing_waits_to_be_told(control: MemoryControl, receiver: Receiver) -> None:
    warn(control, receiver, webhook=False)
    assert [row.next_unix_ns for row in rows(control)] == [None]
    assert webhooks(control, receiver).step() == 0


def test_waits_grow_and_are_bounded() -> None:
    waits = [wait_s(tries) for tries in range(1, 40)]
    assert waits[0] == FIRST_WAIT_S
    assert waits == sorted(waits)
    assert waits[-1] == LAST_WAIT_S
