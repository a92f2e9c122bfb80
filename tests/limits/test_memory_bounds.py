"""Memory: bounded, whatever callers name, and nobody gets a fresh limit by it."""

from __future__ import annotations

from gateway.limits.memory import COUNTERS_MAX, SWEEP_MS, MemoryStore
from gateway.limits.store import Ask, Charge, Settle
from tests.limits.conftest import Clock


def charge(name: str, limit: int = 1) -> tuple[Charge, ...]:
    return (Charge(key=f"rule requests {name}", unit="requests", units=1, limit=limit),)


def test_a_hundred_thousand_names_are_a_bounded_number_of_counters() -> None:
    store = MemoryStore(Clock())
    for number in range(100_000):
        ask = Ask(request_id=f"r{number}", charges=charge(f"m{number}"))
        if store.ask(ask).admitted:
            store.settle(Settle(request_id=ask.request_id, charges=ask.charges, used=(1,)))
    assert len(store) == COUNTERS_MAX + 1
    assert not store._open


def test_names_that_come_when_there_is_no_room_share_one_limit_and_make_none_forgotten() -> None:
    store = MemoryStore(Clock(), counters_max=10)
    for number in range(10):
        assert store.ask(Ask(request_id=f"a{number}", charges=charge(f"m{number}"))).admitted
    got = [store.ask(Ask(request_id=f"b{n}", charges=charge(f"new{n}", 3))).admitted for n in range(50)]
    assert sum(got) == 3
    assert not store.ask(Ask(request_id="c", charges=charge("m0"))).admitted


def test_there_is_room_again_a_minute_later() -> None:
    clock = Clock()
    store = MemoryStore(clock, counters_max=10)
    for number in range(20):
        store.ask(Ask(request_id=f"a{number}", charges=charge(f"m{number}")))
    clock.now_ms += 60_000 + SWEEP_MS
    assert all(store.ask(Ask(request_id=f"b{n}", charges=charge(f"new{n}"))).admitted for n in range(10))


def test_nothing_is_kept_of_requests_that_are_over() -> None:
    store = MemoryStore(Clock())
    charges = (Charge(key="rule concurrent alice", unit="concurrent", units=1, limit=1),)
    for number in range(1_000):
        assert store.ask(Ask(request_id=f"r{number}", charges=charges)).admitted
        store.settle(Settle(request_id=f"r{number}", charges=charges, used=(1,)))
    assert len(store) == 0
    assert not store._open
