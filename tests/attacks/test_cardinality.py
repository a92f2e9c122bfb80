"""Names without end: what callers invent is neither remembered without end nor told apart in metrics."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from gateway.assembly import configured_providers, place_of
from gateway.assembly_routing import routes_of
from gateway.core.errors import CallerError
from gateway.pricing.catalogue import MEMO_MAX, Catalogue, packaged_rates
from gateway.routes import ROUTES_MAX
from gateway.routing.targets import Router
from gateway.settings import Settings
from otel.metrics import MODELS_MAX, SERIES_MAX, Metrics
from otel.observation import Observation

NAMES = 100_000
NAME_BYTES = 300
"""A name of 200 characters, as Python keeps it in a tuple that is a key."""


def name_of(number: int) -> str:
    return f"simulated/{number:06d}".ljust(200, "x")


def growth(use: Callable[[str], object], warm: int, names: int) -> int:
    """Return the memory that names cost once as many as are ever kept have been used."""
    for number in range(warm):
        use(name_of(number))
    gc.collect()
    tracemalloc.start()
    for number in range(warm, names):
        use(name_of(number))
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return grown


def test_routing_remembers_a_bounded_number_of_names() -> None:
    providers = configured_providers(Settings(demo=False), {})
    router = Router([place_of(provider) for provider in providers.values()], None)
    route = routes_of(Settings(demo=False), router, providers).route
    assert route(name_of(1), "chat_completions").lanes[0].provider == "simulated"
    assert (
        growth(lambda name: route(name, "chat_completions"), ROUTES_MAX, 4 * ROUTES_MAX) < ROUTES_MAX * 2000
    )


def test_names_that_nobody_serves_are_not_remembered() -> None:
    providers = configured_providers(Settings(demo=False), {})
    router = Router([place_of(provider) for provider in providers.values()], None)
    route = routes_of(Settings(demo=False), router, providers).route
    refused = 0

    def ask(name: str) -> None:
        nonlocal refused
        try:
            route(f"nobody-{name}", "chat_completions")
        except CallerError:
            refused += 1

    assert growth(ask, 100, 5_000) < 1_000_000
    assert refused == 5_000


def test_the_catalogue_remembers_a_bounded_number_of_names() -> None:
    catalogue = Catalogue(packaged_rates())
    assert catalogue.card("simulated", "simulated", f"sim-{name_of(1)}", 0) is not None
    grown = growth(
        lambda name: catalogue.card("simulated", "simulated", f"sim-{name}", 0), MEMO_MAX, 3 * MEMO_MAX
    )
    assert grown < MEMO_MAX * (NAME_BYTES + 700)


def test_a_hundred_thousand_models_are_a_bounded_page_of_metrics() -> None:
    metrics, registry = Metrics(), CollectorRegistry()
    registry.register(metrics)

    def observe(name: str) -> None:
        metrics.observe(
            Observation(
                api_key_id="k", provider="p", model=name, status="200", bill_status="final", latency_ns=1,
                cost_pico_usd=10**6, tokens={"input": 1}, error_type=name,
            )
        )  # fmt: skip

    assert growth(observe, MODELS_MAX, NAMES) < SERIES_MAX * 1000
    page = generate_latest(registry)
    spent = [line for line in page.splitlines() if line.startswith(b"llm_gateway_cost_total{")]
    assert MODELS_MAX // 2 < len(spent) <= MODELS_MAX + 1
    assert sum(float(line.rsplit(b" ", 1)[1]) for line in spent) == pytest.approx(NAMES / 10**6)
    assert len(page) < 40 * 2**20
