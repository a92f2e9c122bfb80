"""Target metrics: what is known of targets stands on the page, and callers cannot make it long."""

from __future__ import annotations

import time

from prometheus_client import generate_latest
from prometheus_client.registry import CollectorRegistry

from gateway.api.target_metrics import TargetCollector
from gateway.routing.choosing import SHOWN_MAX, TARGETS_MAX, Chooser
from gateway.routing.cooldown import Rules
from gateway.routing.rolling import Sample
from gateway.routing.targets import Target

S = 10**9
SAMPLE = Sample(ok=True, latency_ns=2 * S, output_tokens=100, tokens=200, cost_pico_usd=4 * 10**8)


def page(chooser: Chooser, now_ns: int) -> list[str]:
    registry = CollectorRegistry()
    registry.register(TargetCollector(lambda: chooser.standings(now_ns)))
    return [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]


def value(lines: list[str], name: str, target: Target) -> float:
    start = f'llm_gateway_target_{name}{{model="{target.model}",provider="{target.provider}"}}'
    (line,) = [line for line in lines if line.startswith(start)]
    return float(line.rsplit(" ", 1)[1])


def test_what_is_known_is_told_and_what_is_not_has_no_series() -> None:
    chooser = Chooser(Rules(), 300.0, lambda: 0.5)
    one, other = Target("p", "m"), Target("q", 'odd"\nname')
    for _ in range(3):
        chooser.measured(one, SAMPLE, S)
    chooser.measured(other, Sample(ok=False, latency_ns=S), S)
    chooser.answered(chooser.began(other, S, again=False), False, S, wait_s=20.0)
    lines = page(chooser, 2 * S)
    assert (value(lines, "requests", one), value(lines, "failures", one)) == (3, 0)
    assert 1.8 < value(lines, "latency_p50_seconds", one) < 2.2
    assert value(lines, "tokens_per_second", one) == 50
    assert value(lines, "usd_per_million_tokens", one) == 2
    assert value(lines, "cooling", one) == 0
    assert not any("first_chunk" in line for line in lines)
    of_other = {line.split("{")[0]: line.rsplit(" ", 1)[1] for line in lines if 'provider="q"' in line}
    assert {name.removeprefix("llm_gateway_target_"): float(told) for name, told in of_other.items()} == {
        "requests": 1,
        "failures": 1,
        "cooling": 1,
    }


def test_names_that_callers_make_up_have_no_series_and_the_busiest_are_told_quickly() -> None:
    chooser = Chooser(Rules(), 300.0, lambda: 0.5)
    for number in range(TARGETS_MAX):
        target = Target("p", f"made-up-{number}")
        chooser.answered(chooser.began(target, S, again=False), True, S)
    assert page(chooser, S) == []
    for number in range(TARGETS_MAX):
        for second in range(0, 300, 10):
            chooser.measured(Target("p", f"m-{number}"), SAMPLE, second * S)
    chooser.measured(Target("p", "m-777"), SAMPLE, 299 * S)
    began = time.thread_time()
    lines = page(chooser, 299 * S)
    took_s = time.thread_time() - began
    told = {line.split("model=")[1].split(",")[0] for line in lines}
    assert len(told) == SHOWN_MAX
    assert '"m-777"' in told
    assert took_s < 0.5
