"""Rolling: counts and quantiles of the window, against all samples kept in a list."""

from __future__ import annotations

import random

from gateway.routing.rolling import SLICES, Rolling, Sample

S = 10**9


def test_the_window_holds_what_a_list_of_its_samples_holds() -> None:
    rng = random.Random(7)
    rolling = Rolling(300.0)
    slice_ns = 300 * S // SLICES
    samples: list[tuple[int, Sample]] = []
    now = 10**15
    for _ in range(5_000):
        now += rng.randrange(400_000_000)
        sample = Sample(
            ok=rng.random() > 0.1,
            latency_ns=round(rng.lognormvariate(20.7, 0.8)),
            first_chunk_ns=rng.choice([None, round(rng.lognormvariate(19, 0.5))]),
            output_tokens=rng.choice([None, rng.randrange(2_000)]),
            tokens=rng.randrange(1, 4_000),
            cost_pico_usd=rng.choice([None, rng.randrange(10**10)]),
        )
        samples.append((now, sample))
        rolling.add(sample, now)
    live = [s for at, s in samples if now // slice_ns - SLICES < at // slice_ns]
    ok = [s for s in live if s.ok]
    standing = rolling.standing(now)
    assert (standing.requests, standing.failures) == (len(live), len(live) - len(ok))
    latencies = sorted(s.latency_ns / 1e9 for s in ok)
    firsts = sorted(s.first_chunk_ns / 1e9 for s in ok if s.first_chunk_ns is not None)
    for found, exact in (
        (standing.latency_p50_s, latencies[len(latencies) // 2]),
        (standing.latency_p95_s, latencies[int(len(latencies) * 0.95)]),
        (standing.first_chunk_p50_s, firsts[len(firsts) // 2]),
    ):
        assert found is not None
        assert abs(found / exact - 1) < 0.09
    counted = [s for s in ok if s.output_tokens is not None]
    assert standing.tokens_per_s is not None
    made_s = sum(s.latency_ns for s in counted) / 1e9
    assert abs(standing.tokens_per_s - sum(s.output_tokens or 0 for s in counted) / made_s) < 1e-6
    priced = [s for s in ok if s.cost_pico_usd is not None]
    assert standing.usd_per_million is not None
    exact_usd = sum(s.cost_pico_usd or 0 for s in priced) / 1e6 / sum(s.tokens or 0 for s in priced)
    assert abs(standing.usd_per_million / exact_usd - 1) < 1e-9


def test_what_is_older_than_the_window_is_forgotten() -> None:
    rolling = Rolling(60.0)
    rolling.add(Sample(ok=False, latency_ns=S), 1_000 * S)
    assert rolling.standing(1_058 * S).requests == 1
    assert rolling.standing(1_061 * S).requests == 0
    assert rolling.standing(1_061 * S).success is None


def test_odd_durations_are_held() -> None:
    rolling = Rolling()
    for latency_ns in (0, 1, 10**18):
        rolling.add(Sample(ok=True, latency_ns=latency_ns), S)
    assert rolling.standing(S).requests == 3
