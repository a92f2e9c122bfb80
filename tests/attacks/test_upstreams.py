"""Hostile providers: whatever one sends, the caller gets its bytes or an honest error, and one honest bill.

Each case is played in both protocols; nothing may look like an end that the provider did not send.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio

from gateway.protocols.base import EVENT_BYTES_MAX
from tests.attacks.chaos import AfterPause, Chaos, Repeat, Step
from tests.attacks.hostile_replies import CASES, Case
from tests.attacks.inprocess import UNCOUNTED, Answer, Attacked, attacked
from tests.attacks.wires import EMBEDDINGS, RESPONSES, WIRES, Wire, sized

pytestmark = pytest.mark.asyncio(loop_scope="module")

HASTY = {"first_byte_timeout_s": 0.6, "idle_timeout_s": 0.6, "total_timeout_s": 1.5}
"""Bounds for the cases whose fault is time; all others have the patience of a slow machine."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hasty(tmp_path_factory: pytest.TempPathFactory, chaos: Chaos) -> AsyncIterator[Attacked]:
    async with attacked(tmp_path_factory.mktemp("hasty"), chaos, **HASTY) as running:
        yield running


PLAYED = [(case, wire) for case in CASES for wire in (*WIRES, EMBEDDINGS) if not case.stream or wire in WIRES]


@pytest.mark.parametrize(
    ("case", "wire"), PLAYED, ids=[f"{'S' if c.stream else 'W'}: {c.name}-{w.name}" for c, w in PLAYED]
)
async def test_a_hostile_reply_is_told_as_it_is_and_billed_once(
    case: Case, wire: Wire, patient: Attacked, hasty: Attacked
) -> None:
    gateway = hasty if case.hasty else patient
    script = case.script(wire)
    name = gateway.chaos.script(f"chaos-{wire.name}-{CASES.index(case)}", *script)
    if case.ends_with_error and wire is RESPONSES:
        case = replace(case, caller="official", outcome="upstream_error", error_type="provider's")
    before = gateway.intents()
    answer = await gateway.ask(wire, wire.request(name, stream=case.stream))
    calls = gateway.chaos.called(name)
    assert len(calls) == 1, "the provider was called more than once, or never"
    assert gateway.intents() == before + 1
    assert await asyncio.to_thread(calls[0].done.wait, 10), "the script is still running"
    assert calls[0].steps >= (len(script) if case.steps is None else case.steps), "the fault did not fire"
    assert_caller(case, wire, answer)
    assert_bill(case, wire, gateway.bill(answer))
    await assert_alive(gateway, wire)


def assert_caller(case: Case, wire: Wire, answer: Answer) -> None:
    assert answer.status == case.status, answer.body[:300]
    assert answer.ended
    assert all(name != b"location" for name, _ in answer.headers)
    names = [name for name, _ in answer.headers]
    assert names.count(b"x-request-id") == 1
    assert b"x-trailer" not in names
    assert answer.header(b"x-spanbill-cost-usd") != b"lie"
    assert all(names.count(name) == 1 for name in names if name.startswith(b"x-spanbill-"))
    if case.caller == "refused":
        assert wire.is_error_body(answer.body)
    elif case.caller == "broken":
        prefix = wire.split_error_event(answer.body)
        assert prefix is not None, answer.body[-300:]
        assert wire.end not in answer.body, "an end that the provider never sent"
        sent = b"".join(_bytes_of(step) for step in case.script(wire))
        assert len(prefix) <= EVENT_BYTES_MAX or case.name == "an endless stream"
        assert wire.shown(prefix) == prefix
        assert prefix[:2000].split(b"\n\n")[0] in sent
    else:
        whole = case.body(wire) if case.body else wire.stream() if case.stream else wire.whole()
        if not case.stream:
            assert answer.body == whole
        elif case.name.startswith("an endless tail"):
            assert answer.body.startswith(wire.shown(whole))
        else:
            assert answer.body == (wire.shown(whole) if whole.endswith(b"\n\n") else _unended(wire, whole))


def _unended(wire: Wire, whole: bytes) -> bytes:
    return wire.shown(whole + b"\n\n")[:-2]


def _bytes_of(step: Step) -> bytes:
    if isinstance(step, bytes):
        return step
    return step.data if isinstance(step, Repeat | AfterPause) else b""


def assert_bill(case: Case, wire: Wire, bill: dict[str, Any]) -> None:
    error = wire.error_type if case.error_type == "provider's" else case.error_type
    assert (bill["billing.outcome"], bill.get("error.type")) == (case.outcome, error)
    if case.free:
        assert (bill["billing.status"], bill["billing.cost.usd"]) == ("final", "0")
        assert "gen_ai.usage.input_tokens" not in bill
    elif case.outcome == "ok":
        assert bill["billing.status"] == "final"
        assert bill["gen_ai.usage.output_tokens"] == 7
        assert bill["billing.cost.usd"] != "0"
    elif bill["billing.status"] == "final":
        assert bill["gen_ai.usage.output_tokens"] == 7, "the provider's own figure had been received"
    else:
        assert bill["billing.status"] in UNCOUNTED
        assert bill.get("billing.cost.usd") != "0", "unknown is not free"


async def assert_alive(gateway: Attacked, wire: Wire) -> None:
    name = gateway.chaos.script("chaos-fine", sized(wire.whole()))
    answer = await gateway.ask(wire, wire.request(name, stream=False))
    assert (answer.status, answer.body) == (200, wire.whole())
