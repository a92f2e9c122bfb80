"""Usage that lies: no count, however odd, makes a negative, impossible or invented bill."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from tests.attacks.chaos import Step
from tests.attacks.inprocess import RATES, UNCOUNTED, Attacked
from tests.attacks.wires import WIRES, Wire, sized, streamed

pytestmark = pytest.mark.asyncio(loop_scope="module")

ODD = [
    "-1", "-1000000", "1e30", "1.5", "7.0", '"7"', "NaN", "Infinity", "-Infinity", "null", "true", "false",
    "9007199254740992", "18446744073709551616", "9" * 5000, "1e400", "[]", "{}", '"\\ud800"', '"-5"',
]  # fmt: skip
ATTRIBUTE = {
    "prompt": "gen_ai.usage.input_tokens",
    "output": "gen_ai.usage.output_tokens",
    "cached": "gen_ai.usage.cache_read.input_tokens",
}
DIMENSION = {"prompt": "input", "output": "output", "cached": "cache_read"}
BOTH = pytest.mark.parametrize("wire", WIRES, ids=[wire.name for wire in WIRES])
EITHER = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


async def billed(gateway: Attacked, wire: Wire, stream: bool, *steps: Step) -> tuple[bytes, dict[str, Any]]:
    """Play the script once; return what the caller got and the bill."""
    name = gateway.chaos.script(f"chaos-usage-{len(gateway.chaos.calls)}", *steps)
    answer = await gateway.ask(wire, wire.request(name, stream=stream))
    assert len(gateway.chaos.called(name)) == 1
    assert (answer.status, answer.ended) == (200, True)
    return answer.body, gateway.bill(answer)


async def played(gateway: Attacked, wire: Wire, stream: bool, usage: str | None) -> dict[str, Any]:
    """Play an answer with this usage; the caller must get the official bytes."""
    if stream:
        official = wire.stream(usage)
        body, bill = await billed(gateway, wire, stream, *streamed(official))
        assert body == wire.shown(official) or (usage is not None and body == official)
    else:
        official = wire.whole(usage)
        body, bill = await billed(gateway, wire, stream, sized(official))
        assert body == official
    assert (bill["billing.outcome"], bill.get("error.type")) == ("ok", None)
    return bill


def assert_absent(bill: dict[str, Any], field: str) -> None:
    """Check that a count which nobody reported is not on the bill, unless it is an estimate that says so."""
    if bill.get("billing.usage.source") != "estimated":
        assert ATTRIBUTE[field] not in bill


@BOTH
@EITHER
@pytest.mark.parametrize("field", ATTRIBUTE)
@pytest.mark.parametrize("odd", ODD, ids=[odd[:22] for odd in ODD])
async def test_a_count_that_is_none_is_absent_and_said_so(
    odd: str, field: str, wire: Wire, stream: bool, patient: Attacked
) -> None:
    bill = await played(patient, wire, stream, wire.usage_of(**{field: odd}))
    unsaid = wire.name == "messages" and stream and odd == "null" and field == "prompt"
    if unsaid:  # message_start has said it, and null overrides nothing
        assert bill[ATTRIBUTE[field]] == 8 + 3
        return
    anomalies = bill.get("billing.usage.anomalies", ())
    if odd != "null":
        assert f"{DIMENSION[field]}_unusable" in anomalies
    if field == "cached":
        assert ATTRIBUTE[field] not in bill
        assert "billing.cache_hit" not in bill
        assert bill["billing.status"] == "final"
    else:
        assert_absent(bill, field)
        assert bill["billing.status"] in UNCOUNTED


@BOTH
@EITHER
@pytest.mark.parametrize("usage", [None, "null", "{}", "[]", '"none"', "7", "true"])
async def test_missing_usage_is_never_free(
    usage: str | None, wire: Wire, stream: bool, patient: Attacked
) -> None:
    bill = await played(patient, wire, stream, usage)
    assert bill["billing.status"] in UNCOUNTED
    assert bill.get("billing.cost.usd") != "0"
    assert_absent(bill, "output")


@BOTH
@EITHER
async def test_more_cached_than_asked_is_flagged_and_costs_no_less_than_nothing(
    wire: Wire, stream: bool, patient: Attacked
) -> None:
    bill = await played(patient, wire, stream, wire.usage_of(prompt="5", cached="900"))
    cached_usd = Decimal(str(RATES["cache_read"])) * 900 / 1_000_000
    assert Decimal(bill["billing.cost.usd"]) >= cached_usd
    if wire.name != "messages":
        assert "cache_exceeds_input" in bill["billing.usage.anomalies"]
    else:  # there plain input is counted apart from what was cached
        assert bill["gen_ai.usage.input_tokens"] == 905


@EITHER
async def test_a_total_that_is_no_sum_changes_no_count(stream: bool, patient: Attacked) -> None:
    wire = WIRES[0]
    for total, flagged in (("900", True), ("3", False), ("-5", False), ("1e30", False)):
        usage = wire.usage_of()[:-1] + f',"total_tokens":{total}}}'
        bill = await played(patient, wire, stream, usage)
        assert (bill["gen_ai.usage.input_tokens"], bill["gen_ai.usage.output_tokens"]) == (11, 7)
        assert ("total_exceeds_sum" in bill.get("billing.usage.anomalies", ())) is flagged


@BOTH
@EITHER
async def test_the_largest_counts_are_priced_exactly(wire: Wire, stream: bool, patient: Attacked) -> None:
    most = 2**53 - 1
    bill = await played(patient, wire, stream, wire.usage_of(prompt=str(most), output=str(most), cached="0"))
    assert bill["gen_ai.usage.output_tokens"] == most
    assert Decimal(bill["billing.cost.usd"]) == Decimal(most) * 3 / 1_000_000


@pytest.mark.parametrize("wire", WIRES[:2], ids=[wire.name for wire in WIRES[:2]])
async def test_of_several_usages_the_last_one_counts(wire: Wire, patient: Attacked) -> None:
    events = [wire.usage_event(wire.usage_of(output=str(units))) for units in (1, 3, 5, 9)]
    official = wire.opening() + wire.content() + b"".join(events) + wire.end
    _, bill = await billed(patient, wire, True, *streamed(official))
    assert (bill["billing.status"], bill["gen_ai.usage.output_tokens"]) == ("final", 9)


async def test_a_message_delta_overrides_only_what_it_reports(patient: Attacked) -> None:
    wire = WIRES[1]
    deltas = [
        wire.usage_event('{"input_tokens":20,"output_tokens":2}'),
        wire.usage_event('{"output_tokens":6}'),
        wire.usage_event('{"input_tokens":null,"output_tokens":9,"cache_read_input_tokens":4}'),
    ]
    official = wire.opening() + wire.content() + b"".join(deltas) + wire.end
    body, bill = await billed(patient, wire, True, *streamed(official))
    assert body == official
    assert bill["gen_ai.usage.input_tokens"] == 24
    assert (bill["billing.status"], bill["gen_ai.usage.output_tokens"]) == ("final", 9)


async def test_the_placeholder_of_message_start_is_never_billed(patient: Attacked) -> None:
    wire = WIRES[1]
    official = wire.opening() + wire.content() + wire.closing(None) + wire.end
    _, bill = await billed(patient, wire, True, *streamed(official))
    assert bill["billing.status"] in UNCOUNTED
    assert_absent(bill, "output")


@BOTH
async def test_usage_inside_an_error_body_is_not_billed(wire: Wire, patient: Attacked) -> None:
    name = patient.chaos.script(
        f"chaos-{wire.name}-error", sized(wire.whole(wire.usage_of(output="99999")), "500 Oops")
    )
    bill = patient.bill(await patient.ask(wire, wire.request(name, stream=False)))
    assert (bill["billing.status"], bill["billing.cost.usd"]) == ("final", "0")
    assert "gen_ai.usage.output_tokens" not in bill


@BOTH
async def test_text_that_looks_like_usage_is_not_usage(wire: Wire, patient: Attacked) -> None:
    bait = '"usage":{"prompt_tokens":1,"completion_tokens":1},"output_tokens":1}\n\ndata: [DONE]\n\n'
    official = wire.opening() + wire.content(bait) + wire.closing() + wire.end
    body, bill = await billed(patient, wire, True, *streamed(official))
    assert body == wire.shown(official)
    assert bill["gen_ai.usage.output_tokens"] == 7
