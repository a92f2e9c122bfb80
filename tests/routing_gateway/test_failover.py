"""Failover: a primary that fails in every way, a real gateway, and the official SDKs unchanged.

The caller gets the answer of the one that serves and pays its price, once; or an error that its SDK knows.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import anthropic
import httpx
import openai
import pytest

from tests.attacks.chaos import Chaos, Close, Reset, Stall, Step
from tests.attacks.wires import CHAT, MESSAGES, STREAM_HEAD, Wire, chunk, head, sized, streamed
from tests.gateway_process import KEYS, Gateway, bills_in_journal

WAIT_S = 1.0
"""How long the gateway waits at each stage where the fault is that nothing comes."""
HELLO: Any = [{"role": "user", "content": "Hello"}]
GOOD, BAD = {"input": "1", "output": "2", "cache_read": "1"}, {"input": "1000", "output": "2000"}
COST_USD = {"chat": "0.000025", "messages": "0.000028"}
"""At GOOD: 11 prompt tokens, 7 of output, and 3 read from a cache, which only Messages counts besides."""
BUSY = b'{"type":"error","error":{"type":"overloaded_error","message":"busy"}}'
WIRES = {"chat": CHAT, "messages": MESSAGES}
MODES = {"whole": False, "stream": True}


def cut(wire: Wire, *, stream: bool, last: Step) -> list[Step]:
    """Return a reply of status 200 that goes as far as its first words."""
    if stream:
        return [STREAM_HEAD, chunk(wire.opening()), chunk(wire.content("never")), last]
    return [head("200 OK", "content-length: 500"), wire.whole()[:40], last]


def begun(stream: bool) -> list[Step]:
    """Return the head of a reply of status 200, of which nothing follows."""
    return [STREAM_HEAD if stream else head("200 OK", "content-length: 500")]


@dataclass(frozen=True)
class Fault:
    """A way to fail.

    Args:
        steps: what the provider does.
        error_type: of the attempt.
        unsettled: the provider may charge for it.
        begun: a stream that fails in this way has begun.
    """

    steps: Callable[[Wire, bool], list[Step]]
    error_type: str
    unsettled: bool = False
    begun: bool = False


def status(line: str, *lines: str) -> Fault:
    return Fault(lambda wire, stream: [sized(BUSY, line, *lines)], line.split()[0])


FAULTS: dict[str, Fault] = {
    "429": status("429 Too Many Requests"),
    "429-wait": status("429 Too Many Requests", "retry-after: 60"),
    "500": status("500 Internal Server Error"),
    "503": status("503 Service Unavailable"),
    "529": status("529 Overloaded"),
    "401": status("401 Unauthorized"),
    "silent": Fault(lambda wire, stream: [Stall()], "upstream_timeout", unsettled=True),
    "cut-head": Fault(
        lambda wire, stream: [b"HTTP/1.1 200 O", Close()], "upstream_incomplete", unsettled=True
    ),
    "reset": Fault(lambda wire, stream: [Reset()], "upstream_incomplete", unsettled=True),
    "garbage": Fault(
        lambda wire, stream: [b"\x16\x03\x01 SSH-2.0\r\n\r\n", Close()], "upstream_protocol", True
    ),
    "page": Fault(
        lambda wire, stream: [sized(b"<html>hi</html>", kind="text/html")], "upstream_protocol", True
    ),
    "empty": Fault(lambda wire, stream: [*begun(stream), Close()], "upstream_incomplete", True),
    "stuck": Fault(lambda wire, stream: [*begun(stream), Stall()], "upstream_timeout", True),
    "cut-body": Fault(
        lambda wire, stream: cut(wire, stream=stream, last=Close()), "upstream_incomplete", True, begun=True
    ),
    "stuck-body": Fault(
        lambda wire, stream: cut(wire, stream=stream, last=Stall()), "upstream_timeout", True, begun=True
    ),
}
ELSEWHERE = ("refused", "nowhere", "not-tls", "no-accept")
"""Faults before anything is sent: nobody listens, no such name, no TLS there, no room to connect."""


@contextmanager
def not_tls() -> Iterator[int]:
    """Listen on a port that speaks before it is spoken to, and not TLS; yield it."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            while True:  # ends with the server
                try:
                    peer, _ = server.accept()
                except OSError:
                    return
                with peer:
                    peer.sendall(b"220 mail ready\r\n")

        threading.Thread(target=answer, daemon=True).start()
        yield int(server.getsockname()[1])
        server.shutdown(socket.SHUT_RDWR)


@contextmanager
def no_accept() -> Iterator[int]:
    """Listen on a port whose queue is full, so that connecting to it takes for ever; yield it."""
    with ExitStack() as held:
        server = held.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(4):  # more than fit, whatever the system rounds a queue of none to
            caller = held.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(server.getsockname())
        yield int(server.getsockname()[1])


@pytest.fixture(scope="module")
def chaos() -> Iterator[Chaos]:
    with Chaos() as running:
        for name, wire in WIRES.items():
            running.script(f"good-{name}-whole", sized(wire.whole()))
            running.script(
                f"good-{name}-stream",
                *streamed(wire.opening(), wire.content(), wire.closing(), wire.terminal()),
            )
            for mode, stream in MODES.items():
                for kind, fault in FAULTS.items():
                    running.script(f"bad-{kind}-{name}-{mode}", *fault.steps(wire, stream))
                fine = running.scripts[f"good-{name}-{mode}"]
                busy = [sized(BUSY, "503 Service Unavailable")]
                running.turns(f"bad-recovers-{name}-{mode}", busy, fine)
                waits = [sized(BUSY, "429 Too Many Requests", "retry-after: 1")]
                running.turns(f"bad-waits-{name}-{mode}", waits, fine)
        yield running


def configured(chaos: Chaos, ports: dict[str, int]) -> dict[str, Any]:
    """Return the configuration: for each fault an alias that falls back, and one that has nowhere to go."""
    doors = ["chat_completions", "messages"]
    providers = {
        name: {"base_url": url, "api_key": "sk-provider-1", "protocols": doors}
        for name, url in {
            "bad": chaos.url,
            "good": chaos.url,
            "refused": f"http://127.0.0.1:{ports['refused']}",
            "nowhere": "http://provider.invalid",
            "not-tls": f"https://127.0.0.1:{ports['not-tls']}",
            "no-accept": f"http://127.0.0.1:{ports['no-accept']}",
        }.items()
    }
    aliases: dict[str, Any] = {}
    times = {f"{stage}_timeout_s": WAIT_S for stage in ("connect", "first_byte", "idle")}
    for name in WIRES:
        for mode in MODES:
            for kind in (*FAULTS, *ELSEWHERE):
                own = f"{name}-{mode}"  # a target of its own: none is left alone for what another one met
                here = f"{kind}/{own}" if kind in ELSEWHERE else f"bad/bad-{kind}-{own}"
                good = f"good/good-{name}-{mode}"
                aliases[f"{kind}-{name}-{mode}"] = {"targets": [{"model": here}, {"model": good}], **times}
                aliases[f"alone-{kind}-{name}-{mode}"] = {
                    "targets": [{"model": here}],
                    "attempts_max": 1,
                    **times,
                }
            for kind in ("recovers", "waits"):
                aliases[f"{kind}-{name}-{mode}"] = {"targets": [{"model": f"bad/bad-{kind}-{name}-{mode}"}]}
    return {
        "providers": providers,
        "routing": {"aliases": aliases, "retries": {"pause_s": 0.01}},
        "prices": {"overrides": {"good/chaos": GOOD, "bad/chaos": BAD}},
    }


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, chaos: Chaos) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("failover")
    with ExitStack() as held:
        closed = held.enter_context(socket.socket())  # bound and not listening: it refuses
        closed.bind(("127.0.0.1", 0))
        ports = {
            "refused": closed.getsockname()[1],
            "not-tls": held.enter_context(not_tls()),
            "no-accept": held.enter_context(no_accept()),
        }
        config = folder / "spanbill.yaml"
        config.write_text(json.dumps(configured(chaos, ports)))
        own = {"SPANBILL_CONFIG": str(config), "SPANBILL_JOURNAL__DURABILITY": "process"}
        with Gateway(folder, SPANBILL_ROUTING__RETRIES__ATTEMPTS_MAX="3", **own) as running:
            yield running
            assert running.stop() == 0
            assert "unforeseen fault" not in running.log()


class Client:
    """One official SDK."""

    def __init__(self, gateway: Gateway, name: str) -> None:
        self.name = name
        self.errors: Any = openai if name == "chat" else anthropic
        self.sdk: Any
        if name == "chat":
            self.sdk = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=KEYS["alice"], max_retries=0)
            self._create = self.sdk.chat.completions.with_raw_response.create
        else:
            self.sdk = anthropic.Anthropic(base_url=gateway.url, api_key=KEYS["alice"], max_retries=0)
            self._create = self.sdk.messages.with_raw_response.create

    def ask(self, model: str, *, stream: bool) -> tuple[str, httpx.Headers]:
        """Return what was answered, and the headers."""
        more = {"stream": True} if stream else {}
        raw = self._create(model=model, messages=HELLO, max_tokens=50, timeout=30, **more)
        return self._text(raw.parse(), stream=stream), raw.headers

    def _text(self, reply: Any, *, stream: bool) -> str:
        if self.name == "chat":
            if stream:
                return "".join(part.choices[0].delta.content or "" for part in reply if part.choices)
            return str(reply.choices[0].message.content)
        if stream:
            return "".join(event.delta.text for event in reply if event.type == "content_block_delta")
        return str(reply.content[0].text)


@pytest.fixture(scope="module", params=WIRES)
def client(request: pytest.FixtureRequest, gateway: Gateway) -> Iterator[Client]:
    made = Client(gateway, request.param)
    with made.sdk:
        yield made


def bill_of(gateway: Gateway, headers: httpx.Headers) -> dict[str, Any]:
    """Return the one bill of a request; `bills_in_journal` refuses a second one."""
    return bills_in_journal(gateway.journal)[headers["x-request-id"]]


def fallbacks(gateway: Gateway, before: str) -> float:
    page = httpx.get(f"{gateway.url}/metrics").text.splitlines()
    start = "llm_gateway_fallbacks_total{"
    lines = [line for line in page if line.startswith(start) and f'from_provider="{before}"' in line]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", [*FAULTS, *ELSEWHERE])
def test_the_caller_is_answered_by_the_other_and_pays_its_price_once(
    gateway: Gateway, chaos: Chaos, client: Client, kind: str, mode: str
) -> None:
    model = f"{kind}-{client.name}-{mode}"
    fault = FAULTS.get(kind)
    if fault is not None and fault.begun and mode == "stream":
        with pytest.raises(client.errors.APIError):
            client.ask(model, stream=True)
        assert len(chaos.called(f"bad-{model}")) == 1, "the fault did not happen"
        return
    first = "bad" if fault is not None else kind
    counted = fallbacks(gateway, first)
    text, headers = client.ask(model, stream=MODES[mode])
    assert text == "hi"
    assert headers["x-spanbill-attempts"] == f"2; {first},good"
    assert headers["x-spanbill-provider"] == "good"
    bill = bill_of(gateway, headers)
    assert (bill["billing.outcome"], bill["billing.status"]) == ("ok", "final")
    assert (bill["gen_ai.provider.name"], bill["billing.alias"]) == ("good", model)
    assert (bill["billing.attempts"], bill["billing.providers_tried"]) == (2, [first, "good"])
    assert bill["billing.route.selector"] == "in_order"
    assert bill["billing.cost.usd"] == COST_USD[client.name]
    assert bill.get("billing.attempts.unsettled", 0) == (fault is not None and fault.unsettled)
    assert fallbacks(gateway, first) == counted + 1
    if fault is not None:
        assert len(chaos.called(f"bad-{model}")) == 1, "the fault did not happen"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", [*FAULTS, *ELSEWHERE])
def test_where_nobody_answers_the_sdk_raises_its_own_error(client: Client, kind: str, mode: str) -> None:
    errors, fault = client.errors, FAULTS.get(kind)
    expected = {"429": errors.RateLimitError, "401": errors.AuthenticationError}.get(
        kind[:3], errors.InternalServerError
    )
    if fault is not None and fault.begun and mode == "stream":
        expected = errors.APIError
    with pytest.raises(expected):
        client.ask(f"alone-{kind}-{client.name}-{mode}", stream=MODES[mode])


def test_a_refused_key_of_the_operators_is_told_loudly(gateway: Gateway, client: Client) -> None:
    client.ask(f"401-{client.name}-whole", stream=False)
    lines = [line for line in gateway.log().splitlines() if "refuses the gateway's key" in line]
    told = [line for line in lines if f"bad-401-{client.name}-whole" in line]
    assert len(told) == 1, "once a minute and target"
    assert "ERROR" in told[0].upper()
    assert "sk-provider-1" not in told[0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["recovers", "waits"])
def test_who_is_busy_for_a_moment_is_asked_again_and_paid_once(
    gateway: Gateway, chaos: Chaos, client: Client, kind: str, mode: str
) -> None:
    model = f"{kind}-{client.name}-{mode}"
    text, headers = client.ask(model, stream=MODES[mode])
    assert text == "hi"
    assert headers["x-spanbill-attempts"] == "2; bad,bad"
    bill = bill_of(gateway, headers)
    assert (bill["billing.outcome"], bill["billing.attempts"]) == ("ok", 2)
    assert len(chaos.called(f"bad-{model}")) == 2
    if kind == "waits":
        assert bill["billing.latency_ms"] >= 1000
