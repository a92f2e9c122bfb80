"""A fault of ours in pricing or telling: nothing is released as complete, and one bill says so."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from gateway.billing import Prices
from gateway.stages import Stages
from tests.attacks.chaos import Chaos
from tests.attacks.inprocess import UNCOUNTED, Attacked, attacked
from tests.attacks.wires import WIRES, Wire, sized, streamed

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Broken:
    """Raises what no code of ours expects, and counts how often."""

    def __init__(self) -> None:
        self.fired = 0

    def __call__(self, *_: object) -> Any:
        self.fired += 1
        raise ZeroDivisionError


def pricing(stages: Stages, broken: Broken) -> Stages:
    prices = Prices(charge=broken, context_window=stages.prices.context_window)
    return msgspec.structs.replace(stages, prices=prices)


def telling(stages: Stages, broken: Broken) -> Stages:
    return msgspec.structs.replace(stages, observe=broken)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory, chaos: Chaos) -> AsyncIterator[Attacked]:
    for wire in WIRES:
        chaos.script(f"chaos-{wire.name}-False", sized(wire.whole()))
        chaos.script(f"chaos-{wire.name}-True", *streamed(wire.stream()))
    async with attacked(tmp_path_factory.mktemp("accounting"), chaos) as running:
        yield running


@pytest.mark.parametrize("wire", WIRES, ids=[wire.name for wire in WIRES])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_fault_in_pricing_releases_no_complete_answer(
    stream: bool, wire: Wire, gateway: Attacked
) -> None:
    answer, fired = await broken_at(pricing, gateway, wire, stream)
    assert fired >= 1
    assert wire.end not in answer.body
    assert wire.whole() not in answer.body
    assert answer.status == 500, "also of a stream: it came all at once, and nothing of it had gone out"
    assert wire.is_error_body(answer.body)
    bill = gateway.bill(answer)
    assert (bill["billing.outcome"], bill["error.type"]) == ("internal_error", "internal_error")
    assert bill["billing.status"] in UNCOUNTED
    assert "billing.cost.usd" not in bill


@pytest.mark.parametrize("wire", WIRES, ids=[wire.name for wire in WIRES])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_fault_in_metrics_or_log_makes_no_second_bill(
    stream: bool, wire: Wire, gateway: Attacked
) -> None:
    answer, fired = await broken_at(telling, gateway, wire, stream)
    assert fired == 1
    assert wire.end not in answer.body
    bill = gateway.bill(answer)
    assert (bill["billing.outcome"], bill["billing.status"]) == ("ok", "final")


async def broken_at(
    place: Callable[[Stages, Broken], Stages], gateway: Attacked, wire: Wire, stream: bool
) -> tuple[Any, int]:
    """Serve one request while something is broken."""
    broken, inforce = Broken(), gateway.app._inforce
    terms = inforce.terms
    inforce.terms = msgspec.structs.replace(terms, stages=place(terms.stages, broken))
    try:
        answer = await gateway.ask(wire, wire.request(f"chaos-{wire.name}-{stream}", stream=stream))
    finally:
        inforce.terms = terms
    return answer, broken.fired
