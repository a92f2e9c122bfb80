"""All three stores, on one clock that the test turns; the real Redis is there in CI."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway.limits.memory import MemoryStore
from gateway.limits.shared import RedisLimits
from gateway.limits.sqlite import SqliteLimits
from gateway.limits.store import Answer, Ask, Charge, Settle, SharedStore, Standing
from tests.limits.servers import Redis, program, running_redis

LEASE_MS = 15_000


@dataclass
class Clock:
    """A clock that stands still until it is turned."""

    now_ms: int = 1_795_000_000_123

    def __call__(self) -> int:
        return self.now_ms


class InMemory:
    """The memory store, asked in rounds like the others."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    def run(
        self, settles: Sequence[Settle], beats: Sequence[tuple[str, tuple[str, ...]]], asks: Sequence[Ask]
    ) -> list[Answer]:
        for settle in settles:
            self._store.settle(settle)
        for request_id, keys in beats:
            self._store.beat(request_id, keys)
        return [self._store.ask(ask) for ask in asks]

    def look(self, charges: Sequence[Charge]) -> list[Standing]:
        return self._store.look(charges)

    def close(self) -> None:
        pass


MakeStore = Callable[[], SharedStore]


def redis_needed() -> None:
    if program() is None:
        assert not os.environ.get("CI"), "CI needs a Redis: apt-get install redis-server"
        pytest.skip("no Redis: apt-get install redis-server")


@pytest.fixture(scope="session")
def redis() -> Iterator[Redis]:
    redis_needed()
    with running_redis() as server:
        yield server


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "sqlite", "redis"])
def make_store(request: pytest.FixtureRequest, clock: Clock, tmp_path: Path) -> Iterator[MakeStore]:
    """Return a way to open one and the same store, of several processes as it were."""
    made: list[SharedStore] = []
    in_memory = InMemory(MemoryStore(clock, LEASE_MS))
    url = request.getfixturevalue("redis").database() if request.param == "redis" else ""

    def make() -> SharedStore:
        store: SharedStore = in_memory
        if request.param == "sqlite":
            store = SqliteLimits(tmp_path / "limits.db", clock, LEASE_MS)
        elif request.param == "redis":
            store = RedisLimits(url, LEASE_MS, clock)
        made.append(store)
        return store

    yield make
    for store in made:
        store.close()
