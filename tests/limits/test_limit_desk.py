"""Desk: a store that is killed, paused, restarted or locked costs bounded time, and heals by itself."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.limits.desk import SETTLES_MAX, SharedDesk
from gateway.limits.shared import RedisLimits
from gateway.limits.sqlite import SqliteLimits
from gateway.limits.store import Answer, Ask, Away, Charge, Settle, SharedStore, Standing
from tests.limits.conftest import redis_needed
from tests.limits.servers import Redis, running_redis

LEASE_MS = 60_000
PLACES = (Charge(key="rule concurrent alice", unit="concurrent", units=1, limit=2),)
REQUESTS = (Charge(key="rule requests alice", unit="requests", units=1, limit=3),)
PATIENCE_S = 30.0


def monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000


@pytest.fixture
def own_redis() -> Iterator[Redis]:
    redis_needed()
    with running_redis() as server:
        yield server


@asynccontextmanager
async def desk_at(
    store: SharedStore, wait_s: float = PATIENCE_S, beat_s: float = 20.0
) -> AsyncIterator[SharedDesk]:
    desk = SharedDesk(store, wait_s=wait_s, beat_s=beat_s, told="told so", start_s=PATIENCE_S)
    await desk.start()
    try:
        yield desk
    finally:
        await asyncio.to_thread(desk.stop)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not true():  # noqa: ASYNC110 - what is waited for is another process's, or a thread's
            await asyncio.sleep(0.005)


async def admitted(desk: SharedDesk, request_id: str, charges: Sequence[Charge] = PLACES) -> bool:
    return (await desk.ask(Ask(request_id=request_id, charges=tuple(charges)))).admitted


def over(request_id: str, used: int = 1, charges: tuple[Charge, ...] = PLACES) -> Settle:
    return Settle(request_id=request_id, charges=charges, used=(used,))


async def used(desk: SharedDesk, charges: Sequence[Charge] = PLACES) -> int:
    return (await desk.look(charges))[0].used


async def refused_at_once(desk: SharedDesk) -> None:
    """A store that is away costs nothing: a thousand requests are told so in no time of the store's."""
    for number in range(1_000):
        with pytest.raises(Away):
            await desk.ask(Ask(request_id=f"x{number}", charges=PLACES))
    assert not desk._questions


async def test_requests_of_many_are_asked_in_rounds(tmp_path: Path) -> None:
    store = SqliteLimits(tmp_path / "limits.db", monotonic_ms, LEASE_MS)
    charges = (Charge(key="rule requests alice", unit="requests", units=1, limit=40),)
    async with desk_at(store) as desk:
        got = await asyncio.gather(*[admitted(desk, f"r{n}", charges) for n in range(100)])
        assert sum(got) == 40
        assert await used(desk, charges) == 40


async def test_a_killed_redis_is_away_and_a_new_one_is_used(
    own_redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "spanbill.limits")
    async with desk_at(RedisLimits(own_redis.url, LEASE_MS)) as desk:
        assert await admitted(desk, "a")
        own_redis.kill()
        with pytest.raises(Away):
            await admitted(desk, "b")
        assert not desk.up
        await refused_at_once(desk)
        desk.settle(over("a"))
        own_redis.start()
        await until(lambda: desk.up)
        assert await admitted(desk, "c")
        assert await used(desk) == 1
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "the store of limits is away: told so",
        "the store of limits answers again, and limits hold",
    ]


async def test_a_restarted_redis_learns_of_the_places_that_are_taken(own_redis: Redis) -> None:
    async with desk_at(RedisLimits(own_redis.url, LEASE_MS), beat_s=0.05) as desk:
        assert await admitted(desk, "a")
        assert await admitted(desk, "b")
        own_redis.kill()
        await until(lambda: not desk.up)
        own_redis.start()
        await until(lambda: desk.up)
        async with asyncio.timeout(PATIENCE_S):
            while await used(desk) != 2:  # noqa: ASYNC110 - the same
                await asyncio.sleep(0.01)
        assert not await admitted(desk, "c")


async def test_a_paused_redis_is_waited_for_a_bounded_time_and_leaves_no_place_behind(
    own_redis: Redis,
) -> None:
    async with desk_at(RedisLimits(own_redis.url, LEASE_MS), wait_s=0.2) as desk:
        own_redis.pause()
        began = time.monotonic()
        with pytest.raises(Away, match="no answer in time"):
            await admitted(desk, "a")
        assert time.monotonic() - began < PATIENCE_S / 2
        assert not desk.up
        await refused_at_once(desk)
        own_redis.resume()  # and it finds what was asked while it was paused
        await until(lambda: desk.up)
        await until(lambda: not desk._settles)
        desk._wait_s = PATIENCE_S
        assert await used(desk) == 0


async def test_what_a_broken_connection_brings_late_counts_for_nothing(own_redis: Redis) -> None:
    """A question whose request is known to be over by the time it arrives."""
    store = RedisLimits(own_redis.url, LEASE_MS)
    store.run([over("late", 0)], [], [])
    assert store.run([], [], [Ask(request_id="late", charges=PLACES)]) == [Answer(False, ())]
    assert store.look(PLACES)[0].used == 0
    store.close()


async def test_a_redis_that_forgot_the_scripts_is_told_them(own_redis: Redis) -> None:
    store = RedisLimits(own_redis.url, LEASE_MS)
    asks = [Ask(request_id=f"a{n}", charges=REQUESTS) for n in range(4)]
    assert [answer.admitted for answer in store.run([], [], asks[:2])] == [True, True]
    store._exchange([("SCRIPT", "FLUSH")])
    assert [answer.admitted for answer in store.run([], [], asks[2:])] == [True, False]
    assert store.look(REQUESTS)[0].used == 3
    store.close()


async def test_the_clock_is_the_servers_own(own_redis: Redis) -> None:
    store = RedisLimits(own_redis.url, LEASE_MS)
    store.run([], [], [Ask(request_id="a", charges=REQUESTS)])
    server_ms = int(store._exchange([("TIME",)])[0][0]) * 1000
    (key,) = store._exchange([("KEYS", "*rule requests*")])[0]
    assert abs(int(store._exchange([("PTTL", key)])[0]) - 60_000) <= 5_000
    kept = store._exchange([("EVAL", "return cmsgpack.unpack(redis.call('GET', KEYS[1]))[1]", 1, key)])[0]
    assert abs(int(kept) - server_ms) <= 5_000
    store.close()


async def test_nothing_is_kept_in_redis_for_ever(own_redis: Redis) -> None:
    store = RedisLimits(own_redis.url, LEASE_MS)
    store.run(
        [over("unknown")], [("b", ("rule concurrent bob",))], [Ask(request_id="a", charges=PLACES + REQUESTS)]
    )
    keys = store._exchange([("KEYS", "*")])[0]
    assert len(keys) == 5
    for key in keys:
        assert int(store._exchange([("PTTL", key)])[0]) > 0
        assert b"{limits}" in key
    store.close()


async def test_a_refusing_redis_is_away_and_says_why(own_redis: Redis) -> None:
    store = RedisLimits(own_redis.url, LEASE_MS)
    store.run([], [], [])
    store._exchange([("CONFIG", "SET", "requirepass", "secret-canary")])
    with pytest.raises(Away) as away:
        RedisLimits(own_redis.url.replace("//", "//:wrong-canary@"), LEASE_MS).run([], [], [])
    assert "canary" not in str(away.value)
    store.close()


@asynccontextmanager
async def locked(path: Path) -> AsyncIterator[None]:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


async def test_a_locked_file_is_waited_for_a_bounded_time_and_used_again(tmp_path: Path) -> None:
    path = tmp_path / "limits.db"
    async with desk_at(SqliteLimits(path, monotonic_ms, LEASE_MS), wait_s=0.05) as desk:
        async with locked(path):
            with pytest.raises(Away):
                await admitted(desk, "a")
            await until(lambda: not desk.up)
            await refused_at_once(desk)
        await until(lambda: desk.up)
        await until(lambda: not desk._settles)
        desk._wait_s = PATIENCE_S
        assert await used(desk) == 0
        assert await admitted(desk, "b")


@pytest.mark.parametrize("damage", [b"", b"this is no database" * 500])
async def test_a_broken_file_is_made_anew(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "limits.db"
    path.write_bytes(damage)
    async with desk_at(SqliteLimits(path, monotonic_ms, LEASE_MS)) as desk:
        await until(lambda: desk.up)
        assert await admitted(desk, "a")


def test_a_file_that_was_removed_is_made_anew_and_all_count_in_it(tmp_path: Path) -> None:
    path = tmp_path / "limits.db"
    one, two = (SqliteLimits(path, monotonic_ms, LEASE_MS) for _ in range(2))
    for store in (one, two):
        store.run([], [], [Ask(request_id="a", charges=PLACES)])
    for name in tmp_path.glob("limits.db*"):
        name.unlink()
    assert one.run([], [], [Ask(request_id="b", charges=PLACES)])[0].admitted
    assert two.run([], [], [Ask(request_id="c", charges=PLACES)])[0].standings[0].used == 2
    assert path.exists()
    one.close()
    two.close()


def test_a_damaged_row_costs_the_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "limits.db"
    store = SqliteLimits(path, monotonic_ms, LEASE_MS)
    assert store.run([], [], [Ask(request_id="a", charges=REQUESTS)])[0].admitted
    other = sqlite3.connect(path, isolation_level=None)
    assert other.execute("UPDATE windows SET entries = x'c1'").rowcount == 1
    other.close()
    with pytest.raises(Away, match="made anew"):
        store.run([], [], [Ask(request_id="b", charges=REQUESTS)])
    assert store.run([], [], [Ask(request_id="b", charges=REQUESTS)])[0].standings[0].used == 1
    store.close()


async def test_a_folder_that_cannot_be_written_is_a_store_that_is_away(tmp_path: Path) -> None:
    async with desk_at(SqliteLimits(tmp_path / "none" / "limits.db", monotonic_ms, LEASE_MS)) as desk:
        assert not desk.up


class Stuck:
    """A store that answers when it is told to."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.go_on.set()
        self.rounds = 0
        self.settled: list[str] = []
        self.asked: list[str] = []
        self.beats: list[tuple[str, ...]] = []
        self.fault: Away | None = None

    def run(
        self, settles: Sequence[Settle], beats: Sequence[tuple[str, tuple[str, ...]]], asks: Sequence[Ask]
    ) -> list[Answer]:
        self.rounds += 1
        assert self.go_on.wait(PATIENCE_S)
        if self.fault is not None:
            raise self.fault
        self.settled += [settle.request_id for settle in settles]
        self.beats.append(tuple([request_id for request_id, _ in beats]))
        self.asked += [ask.request_id for ask in asks]
        return [Answer(True, (Standing(1, 0, 0),)) for _ in asks]

    def look(self, charges: Sequence[Charge]) -> list[Standing]:
        return []

    def close(self) -> None:
        pass


async def test_a_caller_that_leaves_while_it_waits_holds_no_place() -> None:
    store = Stuck()
    async with desk_at(store) as desk:
        store.go_on.clear()
        rounds = store.rounds
        first = asyncio.create_task(admitted(desk, "in the round"))
        await until(lambda: store.rounds > rounds)
        second = asyncio.create_task(admitted(desk, "in the queue"))
        await until(lambda: bool(desk._questions))
        for task in (first, second):
            task.cancel()
        for task in (first, second):
            with pytest.raises(asyncio.CancelledError):
                await task
        store.go_on.set()
        await until(lambda: len(store.settled) == 2)
        assert store.asked == ["in the round"]
        assert store.settled[0] == "in the round"


async def test_places_are_renewed_as_long_as_their_requests_are_open() -> None:
    store = Stuck()
    async with desk_at(store, beat_s=0.01) as desk:
        assert await admitted(desk, "a")
        assert await admitted(desk, "b")
        await until(lambda: ("a", "b") in store.beats)
        desk.settle(over("a"))
        await until(lambda: "a" in store.settled)
        since = len(store.beats)
        await until(lambda: len(store.beats) > since + 3)
        assert all("a" not in beat for beat in store.beats[since + 1 :])
        assert ("b",) in store.beats[since:]


async def test_what_could_not_be_settled_is_settled_later() -> None:
    store = Stuck()
    async with desk_at(store) as desk:
        store.fault = Away("gone")
        desk.settle(over("a"))
        await until(lambda: not desk.up)
        desk.settle(over("b"))
        store.fault = None
        await until(lambda: len(store.settled) == 2)
        assert store.settled == ["a", "b"]


async def test_what_is_settled_while_the_store_is_away_is_kept_in_order_and_bounded() -> None:
    store = Stuck()
    async with desk_at(store) as desk:
        store.fault = Away("gone")
        desk.settle(over("first"))
        await until(lambda: not desk.up)
        for number in range(SETTLES_MAX + 10):
            desk.settle(over(f"s{number}"))
        assert len(desk._settles) == SETTLES_MAX
        store.fault = None
        await until(lambda: desk.up)
        await until(lambda: not desk._settles)
        assert store.settled[-1] == f"s{SETTLES_MAX + 9}"
        assert store.settled == sorted(store.settled, key=lambda name: int(name[1:].replace("irst", "-1")))


async def test_the_last_settlements_reach_the_store_before_the_end() -> None:
    store = Stuck()
    async with desk_at(store) as desk:
        assert await admitted(desk, "a")
        for number in range(1_000):
            desk.settle(over(f"s{number}"))
    assert len(store.settled) == 1_000
    assert not desk._thread.is_alive()


async def test_a_store_that_comes_and_goes_is_one_line_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "spanbill.limits")
    store = Stuck()
    async with desk_at(store) as desk:
        for _ in range(3):
            store.fault = Away("gone")
            desk.settle(over("s"))
            await until(lambda: not desk.up)
            store.fault = None
            await until(lambda: desk.up)
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    assert caplog.records[0].__dict__["why"] == "gone"
