"""Selectors, by simulation: the better target is found and followed; none starves, none is run over."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable

import pytest

from gateway.routing.choosing import Chooser
from gateway.routing.cooldown import Rules
from gateway.routing.rolling import Sample, Standing
from gateway.routing.selectors import Candidate, Ranking, Selector, rank

S = 10**9


def chance(seed: int) -> Callable[[], float]:
    return random.Random(seed).random


def firsts(selector: Selector, candidates: list[Candidate], draws: int = 10_000) -> Counter[int]:
    toss = chance(1)
    return Counter(rank(selector, candidates, toss).order[0] for _ in range(draws))


def test_order_decides_in_order() -> None:
    candidates = [Candidate(order=2), Candidate(order=1), Candidate(order=3)]
    assert rank("in_order", candidates, chance(1)) == Ranking((1, 0, 2), "in_order")


def test_chance_goes_by_weight_and_a_weight_of_nothing_is_the_last_resort() -> None:
    found = firsts("random", [Candidate(weight=3), Candidate(weight=1), Candidate(weight=0)])
    assert 0.73 < found[0] / 10_000 < 0.77
    assert found[2] == 0
    assert rank("random", [Candidate(weight=0), Candidate(weight=1)], chance(2)).order == (1, 0)


def test_the_cheapest_is_first_and_what_has_no_price_last() -> None:
    candidates = [Candidate(cost=None), Candidate(cost=5), Candidate(cost=0), Candidate(cost=3)]
    assert rank("cost", candidates, chance(1)).order == (2, 3, 1, 0)
    assert set(firsts("cost", [Candidate(cost=4), Candidate(cost=4)], 100)) == {0, 1}
    assert rank("cost", [Candidate(), Candidate()], chance(1)).by == "random"


@pytest.mark.parametrize("selector", ["latency", "throughput", "performance"])
def test_what_was_not_measured_is_drawn_by_weight(selector: Selector) -> None:
    known = Standing(requests=50, latency_p50_s=1.0, tokens_per_s=50.0, usd_per_million=1.0)
    ranking = rank(selector, [Candidate(standing=known), Candidate()], chance(1))
    assert ranking.by == "random"


@pytest.mark.parametrize("selector", ["latency", "throughput", "performance"])
def test_the_twice_as_good_one_gets_nearly_all_and_the_other_stays_measured(selector: Selector) -> None:
    good = Standing(requests=50, latency_p50_s=1.0, tokens_per_s=100.0, usd_per_million=1.0)
    less = Standing(requests=50, latency_p50_s=2.0, tokens_per_s=50.0, usd_per_million=1.0)
    found = firsts(selector, [Candidate(standing=less), Candidate(standing=good)])
    assert found[1] > 9_000
    assert found[0] > 50


@pytest.mark.parametrize("selector", ["latency", "throughput", "performance"])
def test_one_that_only_fails_gets_only_what_exploring_takes(selector: Selector) -> None:
    good = Standing(requests=50, latency_p50_s=1.0, tokens_per_s=100.0, usd_per_million=1.0)
    dead = Standing(requests=50, failures=50)
    found = firsts(selector, [Candidate(standing=dead), Candidate(standing=good)])
    assert 100 < found[0] < 500


def sampled(latency_ns: int) -> Sample:
    return Sample(ok=True, latency_ns=latency_ns, output_tokens=500, tokens=600, cost_pico_usd=10**9)


class Farm:
    """Providers whose speed changes, asked through a chooser; time is simulated."""

    def __init__(self, selector: Selector, latencies: list[float], rate: float) -> None:
        self.rng = random.Random(3)
        self.chooser = Chooser(Rules(), 300.0, self.rng.random)
        self.selector, self.latencies, self.rate = selector, latencies, rate
        self.now = 10**15
        self.pending: list[tuple[int, int, int]] = []

    def run(self, seconds: float) -> list[int]:
        """Return which provider each request went to first."""
        went: list[int] = []
        candidates = [Candidate() for _ in self.latencies]
        until = self.now + round(seconds * S)
        while self.now < until:
            self.now += round(self.rng.expovariate(self.rate) * S)
            for ended in sorted(one for one in self.pending if one[0] <= self.now):
                self.pending.remove(ended)
                sample = Sample(
                    ok=True, latency_ns=ended[2], output_tokens=500, tokens=600, cost_pico_usd=10**9
                )
                self.chooser.measured(ended[1], sample, ended[0])
            targets = list(range(len(self.latencies)))
            choice = self.chooser.choose(self.selector, targets, candidates, self.now, stream=False)
            target = choice.order[0]
            went.append(target)
            took = round(self.latencies[target] * self.rng.uniform(0.8, 1.25) * S)
            self.pending.append((self.now + took, target, took))
        return went


@pytest.mark.parametrize("selector", ["latency", "throughput", "performance"])
def test_requests_follow_a_change_in_which_one_is_better(selector: Selector) -> None:
    farm = Farm(selector, [1.0, 3.0, 4.0], rate=20)
    farm.run(60)
    before = Counter(farm.run(120))
    assert before[0] > 0.85 * before.total()
    assert min(before[place] for place in range(3)) > 0.005 * before.total()  # nobody starves
    farm.latencies = [6.0, 1.0, 4.0]
    farm.run(300)
    after = Counter(farm.run(120))
    assert after[1] > 0.85 * after.total()
    assert after[0] > 0.005 * after.total()


def test_equal_targets_share_and_none_is_run_over() -> None:
    farm = Farm("latency", [1.0, 1.0, 1.0, 1.0], rate=50)
    farm.run(60)
    went = farm.run(120)
    for start in range(0, len(went) - 200, 200):
        share = Counter(went[start : start + 200])
        assert max(share.values()) < 0.75 * 200, share


def test_a_decision_is_cheap() -> None:
    chooser = Chooser(Rules(), 300.0, chance(1))
    candidates = [Candidate() for _ in range(4)]
    for target in range(4):
        for turn in range(200):
            chooser.measured(target, sampled(S + turn), 10**12 + turn * S)
    rounds = 5_000
    best = float("inf")
    for _ in range(5):
        started = time.process_time()
        for turn in range(rounds):
            chooser.choose(
                "performance", [0, 1, 2, 3], candidates, 10**12 + 200 * S + turn * 10**6, stream=False
            )
        best = min(best, (time.process_time() - started) / rounds)
    assert best < 20e-6


def test_a_last_resort_that_nobody_measured_keeps_no_selector_from_measuring_the_others() -> None:
    fast, slow = (
        Standing(requests=50, latency_p50_s=latency, tokens_per_s=10.0, usd_per_million=1.0)
        for latency in (0.1, 1.0)
    )
    candidates = [Candidate(standing=slow), Candidate(standing=fast), Candidate(weight=0)]
    found = firsts("latency", candidates)
    assert found[1] > 9_500
    assert found[2] == 0
