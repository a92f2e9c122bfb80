"""Of any two configurations: after a swap the gateway is what a start with both their parts in force is."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as profile
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr

from gateway.api.inference import Doors
from gateway.app import create_app
from gateway.reloading import Source, stamp_of
from gateway.settings import Settings, load_settings
from gateway.settings.live import LIVE, is_live, merged
from tests.reloading.likeness import differences, likeness

KEY: Final = {"id": "k1", "user": "u"}
BUDGET: Final = {"id": "b", "scope": "user", "period": "day"}
MINE: Final = {"base_url": "http://127.0.0.1:9/v1", "models": ["mine-1"]}
CATALOGUE: Final = (
    "format: spanbill-prices/1\nproviders: {mine: {models: [{id: a, prices: [{rates: {input: %s}}]}]}}\n"
)
FILES: Final = {"one.yaml": CATALOGUE % 1, "two.yaml": CATALOGUE % 2}

VALUES: Final[Mapping[str, tuple[Any, Any]]] = {
    "api_keys": ("alice=sk-test-0001", "bob=sk-test-0002"),
    "keys": ([{**KEY, "key": "sk-one-0001"}], [{**KEY, "key": "sk-two-0001", "limits": {"concurrent": 2}}]),
    "providers": ({"mine": MINE}, {"mine": {**MINE, "api_key": "sk-mine"}, "mistral": {"enabled": False}}),
    "routing.default_provider": ("openai", "anthropic"),
    "routing.selector": ("random", "latency"),
    "routing.retries": ({"attempts_max": 2}, {"pause_s": 0.1, "waited_max_s": 3}),
    "routing.cooldown": ({"failures": 0.3}, {"recent_s": 7, "pause_s": 2}),
    "routing.aliases": (
        {"a": {"targets": [{"model": "simulated/sim-small"}]}},
        {"a": {"targets": [{"model": "simulated/sim-large"}], "selector": "random", "idle_timeout_s": 3}},
    ),
    "upstream.connect_timeout_s": (1.5, 2.5),
    "upstream.first_byte_timeout_s": (3.5, 4.5),
    "upstream.idle_timeout_s": (5.5, 6.5),
    "upstream.total_timeout_s": (7.5, 8.5),
    "upstream.max_reply_bytes": (1_000_001, 1_000_002),
    "budgets.definitions": ([{**BUDGET, "limit_usd": "1"}], [{**BUDGET, "limit_usd": "2"}]),
    "budgets.when_unavailable": ("admit", "refuse"),
    "budgets.unpriced": ("admit", "refuse"),
    "budgets.assumed_output_tokens": (11, 12),
    "prices.catalog": tuple(FILES),
    "prices.overrides": ({"openai/gpt-4o": {"input": "1"}}, {"openai/gpt-4o": {"input": "2"}}),
    "prices.exchange": ({"sat": "0.1"}, {"sat": "0.2"}),
    "prices.adjustments": (
        [{"id": "d", "kind": "discount", "percent": "5"}],
        [{"id": "d", "kind": "discount", "percent": "6"}],
    ),
    "prices.unpriced": ("serve", "refuse"),
    "prices.fallback": ({"input": "1"}, {"input": "2"}),
    "limits.rules": ([{"id": "r", "concurrent": 1}], [{"id": "r", "tokens_per_minute": 5, "model": "*"}]),
    "limits.assumed_output_tokens": (21, 22),
    # and what needs a restart
    "demo": (True, False),
    "admin.key": ("an-operators-key-of-31-characters", "another-key-of-an-operator-000001"),
    "server.port": (1001, 1002),
    "server.workers": (2, 3),
    "server.max_body_bytes": (2001, 2002),
    "server.shutdown_grace_s": (3, 4),
    "journal.durability": ("process", "strict"),
    "journal.min_free_bytes": (1, 2),
    "ledger.url": ("sqlite:///one.db", "sqlite:///two.db"),
    "ledger.retention_days": (40, 50),
    "control.url": ("sqlite:///three.db", "sqlite:///four.db"),
    "routing.window_s": (60.0, 70.0),
    "upstream.transport": ("fast", "httpx"),
    "upstream.drain_s": (1.0, 2.0),
    "upstream.drains_max": (1, 2),
    "upstream.drain_bytes_max": (2001, 2002),
    "budgets.forget_after_h": (30, 40),
    "limits.when_unavailable": ("open", "closed"),
    "limits.wait_s": (0.25, 0.5),
    "limits.lease_s": (20.0, 30.0),
    "estimates.tokenizer": ("o200k_base", "none"),
    "telemetry.cache_write_name": ("cache_write", "cache_creation"),
    "logging.level": ("warning", "error"),
    "logging.requests": (True, False),
}
"""Two values of each; beside them a key may say nothing."""

Choice = Mapping[str, int]
choices = st.fixed_dictionaries({}, optional={key: st.sampled_from((0, 1)) for key in VALUES})


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.startswith("SPANBILL_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)


def written(choice: Choice, path: Path = Path("spanbill.yaml")) -> Settings:
    """Write a configuration, and return what it is read as."""
    tree: dict[str, Any] = {"limits": {"backend": "memory"}}  # another one would begin a thread
    for key, place in choice.items():
        section, _, name = key.partition(".")
        if name:
            tree.setdefault(section, {})[name] = VALUES[key][place]
        else:
            tree[section] = VALUES[key][place]
    path.write_text(yaml.safe_dump(tree))
    return load_settings({"SPANBILL_CONFIG": str(path)})


def values_of(settings: Settings) -> dict[str, Any]:
    """Return all settings by `section.key`, for what is no section by `key`."""
    found: dict[str, Any] = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            found |= {f"{name}.{key}": getattr(value, key) for key in type(value).model_fields}
        else:
            found[name] = value
    return {
        key: value.get_secret_value() if isinstance(value, SecretStr) else value
        for key, value in found.items()
    }


def test_the_table_of_values_has_every_live_key() -> None:
    assert set(VALUES) >= LIVE
    assert {key for key in VALUES if is_live(key)} == LIVE


@given(choices, choices)
def test_of_two_configurations_each_key_comes_from_the_new_one_if_it_is_live_and_else_is_named(
    first: Choice, second: Choice
) -> None:
    started, new = written(first), written(second)
    old, other, found = values_of(started), values_of(new), merged(started, new)
    assert values_of(found.settings) == {key: (other if is_live(key) else old)[key] for key in old}
    assert list(found.waiting) == [key for key in old if not is_live(key) and old[key] != other[key]]


async def swapped(first: Choice, second: Choice) -> Doors:
    """Return a gateway that was started with one configuration and took over another."""
    started = written(first)
    path = Path("spanbill.yaml")
    source = Source(started, lambda: load_settings({"SPANBILL_CONFIG": str(path)}), path, stamp_of(path))
    app = create_app(started, environ={}, source=source)
    written(second)
    assert app.reload is not None
    await app.reload.__self__._reload("a test says so")  # type: ignore[attr-defined]
    assert source.fault is None, source.fault
    return app


@profile(
    max_examples=20,
    phases=[Phase.generate],  # an example takes half a second: to make one smaller would take minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    deadline=None,
)
@given(choices, choices)
def test_a_swap_comes_to_what_a_start_with_the_same_settings_comes_to(first: Choice, second: Choice) -> None:
    app = asyncio.run(swapped(first, second))
    fresh = create_app(merged(written(first), written(second)).settings, environ={})
    assert differences(likeness(app), likeness(fresh)) == []


@pytest.mark.parametrize("key", sorted(LIVE))
def test_a_live_key_is_taken_over(key: str) -> None:
    before, after = create_app(written({key: 0}), environ={}), create_app(written({key: 1}), environ={})
    assert differences(likeness(before), likeness(after)), "it says nothing of requests"
    assert differences(likeness(asyncio.run(swapped({key: 0}, {key: 1}))), likeness(after)) == []
