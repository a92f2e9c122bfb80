"""Hostile callers: nothing in a request changes who pays, where it goes, what is counted or what is kept."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

from otel.metrics import MODELS_MAX, Metrics
from otel.observation import Observation
from tests.attacks.chaos import Chaos, Reset
from tests.attacks.inprocess import KEY, PROVIDER_KEY, UNCOUNTED, Attacked, attacked
from tests.attacks.wires import CHAT, MESSAGES, STREAM_HEAD, WIRES, Wire, chunk, sized, streamed
from tests.gateway_process import journal_lines

pytestmark = pytest.mark.asyncio(loop_scope="module")

BOTH = pytest.mark.parametrize("wire", WIRES, ids=[wire.name for wire in WIRES])
EITHER = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
TRACE = "0123456789abcdef" * 2


@pytest.fixture(scope="module")
def bait() -> Iterator[Chaos]:
    """Run a host that no request may ever reach."""
    with Chaos() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory, chaos: Chaos) -> AsyncIterator[Attacked]:
    for wire in WIRES:
        chaos.script(f"chaos-{wire.name}", sized(wire.whole()))
        chaos.script(f"chaos-{wire.name}-stream", *streamed(wire.stream()))
    async with attacked(tmp_path_factory.mktemp("callers"), chaos) as running:
        yield running


def fine(wire: Wire, stream: bool = False, **members: object) -> bytes:
    """Return a request that is served."""
    return wire.request(f"chaos-{wire.name}{'-stream' if stream else ''}", stream=stream, **members)


async def refused(gateway: Attacked, wire: Wire, body: bytes, status: int) -> dict[str, Any]:
    """Send a request that must be refused without a call, an intent or a bill."""
    calls, intents = len(gateway.chaos.calls), gateway.intents()
    answer = await gateway.ask(wire, body)
    assert answer.status == status, answer.body
    assert wire.is_error_body(answer.body)
    assert (len(gateway.chaos.calls), gateway.intents()) == (calls, intents)
    error: dict[str, Any] = json.loads(answer.body)["error"]
    return error


# 1: trace context


@BOTH
@pytest.mark.parametrize(
    "traceparent",
    [
        f"00-{TRACE}-{'b' * 16}-00", f"00-{TRACE}-{'b' * 16}-01", f"00-{TRACE}-{'b' * 16}-ff",
        f"00-{TRACE}-{'b' * 16}-01" + "0" * 60_000, f"01-{TRACE}-{'b' * 16}-01-" + "x" * 60_000,
        f"ff-{TRACE}-{'b' * 16}-01", "00-" + "0" * 32 + f"-{'b' * 16}-01", "", "\x00", "-" * 55, "é" * 55,
    ],
    ids=lambda value: repr(value[:60]),
)  # fmt: skip
async def test_no_trace_context_keeps_a_request_off_the_bill(
    traceparent: str, wire: Wire, gateway: Attacked
) -> None:
    headers = [
        (b"traceparent", traceparent.encode()),
        (b"tracestate", b"a=b," * 5000),
        (b"baggage", b"user=mallory," * 5000),
    ]
    spans = set()
    for _ in range(3):  # the same trace id again and again
        answer = await gateway.ask(wire, fine(wire), headers=headers)
        bill = gateway.bill(answer)
        assert (bill["billing.status"], bill["billing.user.id"]) == ("final", "mallory")
        sent = gateway.chaos.calls[-1].headers
        assert set(sent).isdisjoint({"baggage", "tracestate"})
        assert re.fullmatch(
            rf"00-{answer.header(b'x-trace-id').decode()}-[0-9a-f]{{16}}-0[01]", sent["traceparent"]
        )
        assert "b" * 16 not in sent["traceparent"]
        spans.add(sent["traceparent"])
    assert len(spans) == 3, "two attempts share a span id"


# 3: usage that the caller would rather not have counted


@pytest.mark.parametrize(
    "options",
    [None, {}, {"include_usage": False}, {"include_usage": None}, {"x": 1e308}, {"include_usage": True}],
)
async def test_usage_of_a_stream_is_counted_whether_asked_for_or_not(
    options: dict[str, object] | None, gateway: Attacked
) -> None:
    members = {} if options is None else {"stream_options": options}
    answer = await gateway.ask(CHAT, fine(CHAT, stream=True, **members))
    assert json.loads(gateway.chaos.calls[-1].body)["stream_options"]["include_usage"] is True
    asked = bool(options and options.get("include_usage"))
    assert answer.body == (CHAT.stream() if asked else CHAT.shown(CHAT.stream()))
    bill = gateway.bill(answer)
    assert bill["billing.status"] == "final"
    assert (bill["gen_ai.usage.input_tokens"], bill["gen_ai.usage.output_tokens"]) == (11, 7)


@pytest.mark.parametrize("number", [b"1e999", b"9" * 5000, b"-1e-999", b"[[[]]]", b'"\\n"'])
async def test_odd_stream_options_are_forwarded_as_they_are(number: bytes, gateway: Attacked) -> None:
    body = fine(CHAT, stream=True)[:-1] + b',"stream_options":{"odd":' + number + b"}}"
    answer = await gateway.ask(CHAT, body)
    assert answer.status == 200, answer.body
    assert b'"odd":' + number in gateway.chaos.calls[-1].body
    assert gateway.bill(answer)["billing.status"] == "final"


# 4: greed


@BOTH
async def test_huge_demands_pass_as_they_are_and_are_on_the_bill(wire: Wire, gateway: Attacked) -> None:
    body = fine(wire, n=8, best_of=100, **{wire.bound: 2**53 - 1})
    answer = await gateway.ask(wire, body)
    assert gateway.chaos.calls[-1].body == body
    assert gateway.bill(answer)["gen_ai.request.max_tokens"] == 2**53 - 1


@BOTH
@pytest.mark.parametrize("bound", [-1, 2**53, 10**400, 1.5, "7", True, [], {}])
async def test_an_impossible_max_tokens_is_refused_before_the_provider(
    bound: object, wire: Wire, gateway: Attacked
) -> None:
    await refused(gateway, wire, fine(wire, **{wire.bound: bound}), 400)


# 5: names


@BOTH
@pytest.mark.parametrize(
    ("model", "status"),
    [
        ("nobody-has-this", 404), ("CHAOS-CHAT_COMPLETIONS", 404), (" chaos-x", 404), ("chaos/", 404),
        ("", 400),
        ("chaos-\u0000", 400), ("chaos-\r\nx-evil: 1", 400), ("chaos-\u202e", 400), ("c" * 257, 400),
        (7, 400), (None, 400), ({"a": 1}, 400), (["chaos-x"], 400),
    ],
    ids=lambda value: repr(value)[:30],
)  # fmt: skip
async def test_a_name_that_nobody_serves_is_refused(
    model: object, status: int, wire: Wire, gateway: Attacked
) -> None:
    await refused(
        gateway, wire, json.dumps({"model": model, "max_tokens": 1, "messages": []}).encode(), status
    )


@BOTH
@pytest.mark.parametrize(
    "twice", [b'"model":"chaos-x"', b'"mod\\u0065l":"chaos-x"', b'"stream":false', b'"BOUND":1']
)
async def test_a_member_named_twice_is_refused(twice: bytes, wire: Wire, gateway: Attacked) -> None:
    twice = twice.replace(b"BOUND", wire.bound.encode())
    body = fine(wire, stream=True)
    error = await refused(gateway, wire, body[:-1] + b"," + twice + b"}", 400)
    assert "twice" in error["message"]


@BOTH
@pytest.mark.parametrize(
    "alike", ['"Stream":false', '"\u017ftream":false', '"MODEL":"x"', '"BOUND":1', '"\\u004dodel":"x"']
)
async def test_a_member_that_some_parsers_take_for_another_is_refused(
    alike: str, wire: Wire, gateway: Attacked
) -> None:
    """Go's own parser ignores case: it would stream what the gateway takes for a whole reply."""
    alike = alike.replace("BOUND", wire.bound.title())
    body = fine(wire, stream=True)
    error = await refused(gateway, wire, body[:-1] + b"," + alike.encode() + b"}", 400)
    assert "in another way" in error["message"]


@BOTH
async def test_members_without_end_are_refused(wire: Wire, gateway: Attacked) -> None:
    crowd = {f"m{number}": 1 for number in range(2000)}
    error = await refused(gateway, wire, fine(wire, **crowd), 400)
    assert "members" in error["message"]


async def test_the_question_for_usage_is_asked_once_and_last(gateway: Attacked) -> None:
    options = {"Include_Usage": False, "x": 1, "include_usage": False, "INCLUDE_USAGE": False}
    await gateway.ask(CHAT, fine(CHAT, stream=True, stream_options=options))
    sent = json.loads(gateway.chaos.calls[-1].body)["stream_options"]
    assert list(sent.items()) == [("x", 1), ("include_usage", True)]


@BOTH
@pytest.mark.parametrize("usage", ["default", None], ids=["with usage", "without"])
async def test_a_provider_that_streams_unasked_is_billed_all_the_same(
    usage: str | None, wire: Wire, gateway: Attacked
) -> None:
    name = gateway.chaos.script(f"chaos-unasked-{wire.name}-{usage}", *streamed(wire.stream(usage)))
    answer = await gateway.ask(wire, wire.request(name, stream=False))
    assert (answer.status, answer.body) == (200, wire.stream(usage))
    bill = gateway.bill(answer)
    assert (bill["billing.outcome"], bill["billing.status"]) == ("ok", "final" if usage else "estimated")
    assert bill["billing.cost.usd"] != "0"


@BOTH
async def test_a_reply_from_a_model_without_a_price_has_no_cost(wire: Wire, gateway: Attacked) -> None:
    reply = wire.whole().replace(b'"model":"chaos"', b'"model":"chaos-of-another-kind"')
    name = gateway.chaos.script(f"chaos-unpriced-{wire.name}", sized(reply))
    answer = await gateway.ask(wire, wire.request(name, stream=False))
    bill = gateway.bill(answer)
    assert bill["billing.status"] == "unpriced"
    assert "billing.cost.usd" not in bill
    assert answer.header(b"x-spanbill-cost-usd") is None


# 8: ids


@BOTH
@pytest.mark.parametrize(
    ("claimed", "kept"),
    [
        (b"mine", "mine"), (b"x" * 10_000, "x" * 128), (b"a\r\nset-cookie: b=c", "aset-cookie: b=c"),
        (b"\x1b[31m\x00\xff", "[31m"), (b"", None), (b"\x00", None),
    ],
)  # fmt: skip
async def test_a_claimed_id_is_a_fact_and_never_the_id(
    claimed: bytes, kept: str | None, wire: Wire, gateway: Attacked
) -> None:
    headers = [(b"x-request-id", claimed), (b"idempotency-key", claimed), (b"request-id", claimed)]
    calls = len(gateway.chaos.calls)
    answers = [await gateway.ask(wire, fine(wire), headers=headers) for _ in range(3)]
    assert len(gateway.chaos.calls) == calls + 3
    assert len({answer.request_id for answer in answers}) == 3
    for answer in answers:
        assert UUID.fullmatch(answer.request_id)
        assert gateway.bill(answer).get("billing.client.request_id") == kept
        assert all(b"\r" not in value and b"\n" not in value for _, value in answer.headers)
        assert not claimed or all(value != claimed for _, value in answer.headers)


# 9: failures, as far as one attempt goes


@BOTH
async def test_a_refusal_of_the_provider_is_one_attempt_and_keeps_its_retry_after(
    wire: Wire, gateway: Attacked
) -> None:
    body = wire.error.split(b"data: ")[1].strip()
    name = gateway.chaos.script(f"chaos-429-{wire.name}", sized(body, "429 Slow", "retry-after: 7"))
    answer = await gateway.ask(wire, wire.request(name, stream=True))
    assert (answer.status, answer.body, answer.header(b"retry-after")) == (429, body, b"7")
    bill = gateway.bill(answer)
    assert (bill["billing.attempts"], bill["billing.cost.usd"]) == (1, "0")
    assert len(gateway.chaos.called(name)) == 1


@BOTH
async def test_nothing_is_tried_again_after_the_first_released_byte(wire: Wire, gateway: Attacked) -> None:
    name = gateway.chaos.script(f"chaos-partial-{wire.name}", STREAM_HEAD, chunk(wire.opening()), Reset())
    answer = await gateway.ask(wire, wire.request(name, stream=True))
    assert wire.split_error_event(answer.body) == wire.opening()
    assert len(gateway.chaos.called(name)) == 1
    assert gateway.bill(answer)["billing.status"] in UNCOUNTED


# 15: other people's hosts


@BOTH
async def test_no_member_of_a_body_chooses_the_host_or_the_key(
    wire: Wire, gateway: Attacked, bait: Chaos
) -> None:
    places = ("api_base", "base_url", "endpoint", "proxy", "url", "webhook", "azure_endpoint")
    evil = dict.fromkeys(places, bait.url)
    body = fine(wire, api_key="sk-evil", headers={"authorization": "evil"}, input_cost_per_token=0, **evil)
    headers = [
        (b"host", b"169.254.169.254"), (b"x-forwarded-host", b"evil"), (b"cookie", b"session=1"),
        (b"x-api-base", bait.url.encode()), (b"proxy-authorization", b"evil"),
        (b"openai-organization", b"evil"),
        (b"x-spanbill-cost-usd", b"0"), (b"connection", b"upgrade"), (b"transfer-encoding", b"chunked"),
    ]  # fmt: skip
    answer = await gateway.ask(wire, body, headers=headers)
    call = gateway.chaos.calls[-1]
    key = call.headers.get("authorization") or call.headers.get("x-api-key")
    assert key in (f"Bearer {PROVIDER_KEY}", PROVIDER_KEY)
    assert KEY not in str(call.headers)
    assert "evil" not in str(call.headers)
    assert "session" not in str(call.headers)
    assert call.headers["host"] == f"127.0.0.1:{gateway.chaos.port}"
    assert bait.connections == 0
    assert gateway.bill(answer)["billing.cost.usd"] != "0"


@BOTH
@EITHER
async def test_a_redirect_is_neither_followed_nor_relayed(
    stream: bool, wire: Wire, gateway: Attacked, bait: Chaos
) -> None:
    reply = sized(b"", "307 Moved", f"location: {bait.url}{wire.path}")
    name = gateway.chaos.script(f"chaos-307-{wire.name}", reply)
    answer = await gateway.ask(wire, wire.request(name, stream=stream))
    assert answer.status == 502
    assert answer.header(b"location") is None
    assert wire.is_error_body(answer.body)
    assert bait.connections == 0


# 16: words that are more than words


@BOTH
@pytest.mark.parametrize(
    "user",
    ["a\r\nX: y", "\x1b[31mred", "../../etc/passwd", "u" * 2**20, "<script>", "=cmd()", "\u202e", "\x00"],
)
async def test_a_claimed_user_is_kept_short_and_printable(user: str, wire: Wire, gateway: Attacked) -> None:
    members = {"metadata": {"user_id": user}} if wire is MESSAGES else {"user": user}
    answer = await gateway.ask(wire, fine(wire, **members))
    bill = gateway.bill(answer)
    assert bill["billing.user.id"] == "mallory", "a claim is not an identity"
    assert len(bill["user.id"]) <= 256
    assert bill["user.id"].isprintable()
    assert all(user[:200].encode() not in value for _, value in answer.headers)


@BOTH
async def test_a_models_name_in_a_reply_splits_no_header(wire: Wire, gateway: Attacked) -> None:
    reply = wire.whole().replace(b'"model":"chaos"', b'"model":"a\\r\\nset-cookie: b=c\\u0000\\u00e9"')
    name = gateway.chaos.script(f"chaos-split-{wire.name}", sized(reply))
    answer = await gateway.ask(wire, wire.request(name, stream=False))
    model = answer.header(b"x-spanbill-model")
    assert model is not None
    assert model.decode("ascii").isprintable()
    assert gateway.bill(answer)["gen_ai.response.model"].isprintable()


# 17: cardinality


async def test_callers_cannot_make_series(gateway: Attacked) -> None:
    for number in range(200):
        name = gateway.chaos.script(f"chaos-series-{number}", sized(CHAT.whole()))
        await gateway.ask(CHAT, CHAT.request(name, stream=False, user=f"someone-{number}"))
    metrics = Metrics()
    for number in range(100_000):
        metrics.observe(
            Observation(api_key_id="k", provider="p", model=f"m{number}", status="200", bill_status="final",
                        latency_ns=1, cost_pico_usd=1, tokens={"input": 1})
        )  # fmt: skip
    families = list(metrics.collect())
    assert max(len({str(s.labels) for s in family.samples}) for family in families) <= MODELS_MAX + 100
    spent = sum(s.value for f in families for s in f.samples if s.name == "llm_gateway_cost_total")
    assert spent == pytest.approx(100_000 / 10**12)
    assert not any("user" in label for family in families for s in family.samples for label in s.labels)


# 21: attributes without end


@BOTH
async def test_two_hundred_members_evict_nothing_from_the_bill(wire: Wire, gateway: Attacked) -> None:
    crowd = {f"key-{number}": "value" * 50 for number in range(200)}
    plain = gateway.bill(await gateway.ask(wire, fine(wire)))
    answer = await gateway.ask(wire, fine(wire, metadata={**crowd, "user_id": "u"}, **crowd))
    crowded = gateway.bill(answer)
    assert set(plain) <= set(crowded)
    assert len(crowded) <= 128
    assert not any("key-" in name for name in crowded)


async def test_the_journal_of_all_these_attacks_holds_one_bill_per_intent(gateway: Attacked) -> None:
    lines = list(journal_lines(gateway.journal))
    intents = [line["j"]["id"] for line in lines if line["j"]["k"] == "I"]
    bills = [line["j"]["id"] for line in lines if line["j"]["k"] == "S"]
    assert len(intents) > 200
    assert sorted(intents) == sorted(bills)
    assert len(intents) == len(gateway.chaos.calls), "calls at the provider and bills differ"
