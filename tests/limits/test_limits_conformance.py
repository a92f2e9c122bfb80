"""One suite for memory, SQLite and Redis: the same questions at the same times have the same answers."""

from __future__ import annotations

import contextlib
import random
import threading

import pytest

from gateway.limits.memory import MemoryStore
from gateway.limits.store import COUNT_MAX, PLACE_WAIT_MS, Ask, Away, Charge, Settle, SharedStore
from gateway.limits.window import NEVER
from tests.limits.conftest import LEASE_MS, Clock, InMemory, MakeStore

MINUTE_MS = 60_000


def requests(limit: int, whose: str = "alice") -> Charge:
    return Charge(key=f"rule requests {whose}", unit="requests", units=1, limit=limit)


def tokens(units: int, limit: int, whose: str = "alice") -> Charge:
    return Charge(key=f"rule tokens {whose}", unit="tokens", units=units, limit=limit)


def place(limit: int, whose: str = "alice") -> Charge:
    return Charge(key=f"rule concurrent {whose}", unit="concurrent", units=1, limit=limit)


class Asker:
    """One process's way to ask, one request after another."""

    def __init__(self, store: SharedStore) -> None:
        self.store = store
        self._charges: dict[str, tuple[Charge, ...]] = {}

    def ask(self, request_id: str, *charges: Charge) -> bool:
        self._charges[request_id] = charges
        answer = self.store.run([], [], [Ask(request_id=request_id, charges=charges)])[0]
        self.standings = answer.standings
        return answer.admitted

    def settle(self, request_id: str, *used: int) -> None:
        charges = self._charges[request_id]
        self.store.run([Settle(request_id=request_id, charges=charges, used=used)], [], [])

    def used(self, charge: Charge) -> int:
        return self.store.look([charge])[0].used


@pytest.fixture
def asker(make_store: MakeStore) -> Asker:
    return Asker(make_store())


def test_as_many_as_the_limit_are_let_in_and_told_what_is_left(asker: Asker, clock: Clock) -> None:
    for number in range(3):
        assert asker.ask(f"r{number}", requests(3))
        assert asker.standings[0].used == number + 1
        clock.now_ms += 5_000
    assert not asker.ask("r3", requests(3))
    assert asker.standings[0].used == 3
    assert asker.standings[0].wait_ms == MINUTE_MS - 15_000
    assert asker.standings[0].full_again_ms == MINUTE_MS - 5_000


def test_who_waits_as_told_is_let_in_and_a_moment_sooner_is_not(asker: Asker, clock: Clock) -> None:
    assert asker.ask("a", requests(1))
    clock.now_ms += 21_234
    assert not asker.ask("b", requests(1))
    wait_ms = asker.standings[0].wait_ms
    clock.now_ms += wait_ms - 1
    assert not asker.ask("c", requests(1))
    clock.now_ms += 1
    assert asker.ask("d", requests(1))


def test_no_minute_has_more_however_it_lies_on_the_clock(asker: Asker, clock: Clock) -> None:
    clock.now_ms -= clock.now_ms % MINUTE_MS
    clock.now_ms += MINUTE_MS - 1  # the last moment of a minute of the clock
    assert [asker.ask(f"a{number}", requests(5)) for number in range(6)] == [True] * 5 + [False]
    clock.now_ms += 1
    assert not asker.ask("b", requests(5))


def test_a_request_gets_all_that_it_asks_for_or_nothing(asker: Asker) -> None:
    assert asker.ask("a", requests(10), place(1), tokens(10, 1000))
    assert not asker.ask("b", requests(10), place(1), tokens(10, 1000))
    assert [standing.wait_ms for standing in asker.standings] == [0, PLACE_WAIT_MS, 0]
    assert asker.used(requests(10)) == 1
    assert asker.used(tokens(0, 1000)) == 10


def test_a_repeated_question_has_the_first_answer_and_uses_nothing(asker: Asker, clock: Clock) -> None:
    assert asker.ask("a", requests(5), place(5), tokens(7, 100))
    first = asker.standings
    assert asker.ask("b", requests(5), place(5), tokens(7, 100))
    clock.now_ms += 700
    assert asker.ask("a", requests(5), place(5), tokens(7, 100))
    assert asker.standings == first
    assert [asker.used(charge) for charge in (requests(5), place(5), tokens(0, 100))] == [2, 2, 14]


def test_a_refusal_uses_nothing_and_may_be_asked_again(asker: Asker, clock: Clock) -> None:
    assert asker.ask("a", requests(1))
    assert not asker.ask("b", requests(1))
    clock.now_ms += MINUTE_MS
    assert asker.ask("b", requests(1))


def test_unused_tokens_are_given_back_where_they_were_used_and_once(asker: Asker, clock: Clock) -> None:
    assert asker.ask("a", tokens(80, 100))
    clock.now_ms += 10_000
    assert asker.ask("b", tokens(20, 100))
    for _ in range(3):
        asker.settle("a", 30)
    assert asker.used(tokens(0, 100)) == 50
    clock.now_ms += 50_000  # what a used falls out; what b used stays
    assert asker.used(tokens(0, 100)) == 20


def test_tokens_beyond_what_was_reserved_count_from_when_they_are_known(asker: Asker, clock: Clock) -> None:
    assert asker.ask("a", tokens(10, 100))
    clock.now_ms += 50_000
    for _ in range(3):
        asker.settle("a", 250)
    assert asker.used(tokens(0, 100)) == 250
    assert not asker.ask("b", tokens(1, 100))
    assert asker.standings[0].wait_ms == MINUTE_MS
    clock.now_ms += MINUTE_MS
    assert asker.ask("b", tokens(100, 100))


def test_what_fell_out_is_not_given_back_to_the_cost_of_others(asker: Asker, clock: Clock) -> None:
    assert asker.ask("long", tokens(90, 100))
    clock.now_ms += 2 * MINUTE_MS
    assert asker.ask("b", tokens(60, 100))
    asker.settle("long", 0)
    assert asker.used(tokens(0, 100)) == 60


def test_a_released_request_leaves_nothing(asker: Asker) -> None:
    assert asker.ask("a", requests(1), tokens(5, 10), place(1))
    asker.settle("a", 0, 0, 0)
    assert [asker.used(charge) for charge in (requests(1), tokens(0, 10), place(1))] == [0, 0, 0]
    assert asker.ask("b", requests(1), tokens(5, 10), place(1))


def test_what_was_never_let_in_is_settled_without_effect(asker: Asker) -> None:
    assert asker.ask("a", requests(2), tokens(5, 10), place(2))
    assert not asker.ask("b", requests(2), tokens(6, 10), place(2))
    asker.settle("b", 0, 0, 0)
    assert [asker.used(charge) for charge in (requests(2), tokens(0, 10), place(2))] == [1, 5, 1]


def test_what_is_more_than_the_limit_is_never_let_in_and_told_so(asker: Asker) -> None:
    assert not asker.ask("a", tokens(101, 100))
    assert asker.standings[0].wait_ms == NEVER
    assert asker.ask("b", tokens(100, 100))


def test_a_place_is_free_when_its_request_ends(asker: Asker, clock: Clock) -> None:
    assert asker.ask("a", place(2))
    assert asker.ask("b", place(2))
    assert asker.standings[0].used == 2
    assert not asker.ask("c", place(2))
    asker.settle("a", 1)
    asker.settle("a", 1)
    assert asker.ask("c", place(2))
    assert not asker.ask("d", place(2))


def test_a_place_that_is_not_renewed_comes_back_after_its_lease(asker: Asker, clock: Clock) -> None:
    assert asker.ask("a", place(2))
    assert asker.ask("b", place(2))
    for _ in range(4):
        clock.now_ms += LEASE_MS // 2
        asker.store.run([], [("a", ("rule concurrent alice",))], [])
    assert asker.ask("c", place(2))  # b's, whose process died
    assert not asker.ask("d", place(2))


def test_a_renewed_place_is_one_place_also_where_the_store_had_lost_it(asker: Asker) -> None:
    asker.store.run([], [("a", ("rule concurrent alice",))] * 3, [])
    assert asker.used(place(2)) == 1
    asker._charges["a"] = (place(2),)
    asker.settle("a", 1)
    assert asker.used(place(2)) == 0


def test_counters_of_others_are_others(asker: Asker) -> None:
    assert asker.ask("a", requests(1, "alice"))
    assert asker.ask("b", requests(1, "bob"))
    assert not asker.ask("c", requests(1, "bob"))


def test_two_processes_have_one_count(make_store: MakeStore) -> None:
    one, two = Asker(make_store()), Asker(make_store())
    assert one.ask("a", requests(2), place(3))
    assert two.ask("b", requests(2), place(3))
    assert not one.ask("c", requests(2), place(3))
    two.settle("b", 1, 1)
    assert one.used(place(3)) == 1


def test_a_clock_that_goes_back_a_little_forgets_nothing_and_stands_still(asker: Asker, clock: Clock) -> None:
    assert asker.ask("a", requests(2))
    clock.now_ms -= 30_000
    assert asker.ask("b", requests(2))
    assert not asker.ask("c", requests(2))
    clock.now_ms += 30_000
    assert asker.store.look([requests(2)])[0].full_again_ms == MINUTE_MS
    clock.now_ms += MINUTE_MS
    assert asker.ask("d", requests(2))


def test_a_clock_that_goes_back_an_hour_locks_nobody_out(asker: Asker, clock: Clock) -> None:
    assert asker.ask("a", requests(1), place(1))
    clock.now_ms -= 3_600_000
    assert asker.ask("b", requests(1), place(1))


def test_the_largest_units_are_counted_exactly(asker: Asker) -> None:
    assert asker.ask("a", tokens(COUNT_MAX - 1, COUNT_MAX))
    assert asker.ask("b", tokens(1, COUNT_MAX))
    assert not asker.ask("c", tokens(1, COUNT_MAX))
    assert asker.used(tokens(0, COUNT_MAX)) == COUNT_MAX


def test_names_of_any_form_are_names(asker: Asker) -> None:
    for number, whose in enumerate(["a b", "ü{x}", "a\x1fb", "*", "x" * 256, "'; DROP TABLE windows; --"]):
        assert asker.ask(f"i{number}", requests(1, whose))
        assert not asker.ask(f"j{number}", requests(1, whose))


@pytest.mark.parametrize("seed", range(6))
def test_a_long_story_has_the_same_answers_everywhere(make_store: MakeStore, clock: Clock, seed: int) -> None:
    """Hold each store to the one in memory, which the window's own tests hold to a log of all uses."""
    chance = random.Random(seed)
    ours, model = Asker(make_store()), Asker(InMemory(MemoryStore(clock, LEASE_MS)))
    opened: list[str] = []
    admitted = 0
    for number in range(250):
        clock.now_ms += chance.choice([0, 1, 7, 300, 999, 1000, 1001, 4_000, 20_000])
        whose = chance.choice(["a", "b"])
        if opened and chance.random() < 0.4:
            request_id = opened.pop(chance.randrange(len(opened)))
            used = [chance.choice([0, charge.units, chance.randrange(400)])
                    if charge.unit == "tokens" else chance.choice([0, 1])
                    for charge in ours._charges[request_id]]  # fmt: skip
            ours.settle(request_id, *used)
            model.settle(request_id, *used)
            continue
        charges = [
            charge
            for charge in (requests(8, whose), tokens(chance.randrange(1, 300), 900, whose), place(6, whose))
            if chance.random() < 0.8
        ]
        request_id = f"s{number}"
        assert ours.ask(request_id, *charges) is model.ask(request_id, *charges)
        assert ours.standings == model.standings
        if model.standings and all(standing.wait_ms == 0 for standing in model.standings):
            admitted += 1
            opened.append(request_id)
    assert 20 < admitted < 250


def test_many_at_once_from_several_processes_get_no_more_than_there_is(make_store: MakeStore) -> None:
    stores = [Asker(make_store()) for _ in range(4)]
    got: list[bool] = []

    def ask(asker: Asker, number: int) -> None:
        for turn in range(25):
            for _ in range(100):  # a machine under load may keep the file locked for longer than one waits
                with contextlib.suppress(Away):
                    got.append(asker.ask(f"{number}-{turn}", requests(40), place(30)))
                    break

    if isinstance(stores[0].store, InMemory):
        for number, asker in enumerate(stores):  # one process has one thread that asks
            ask(asker, number)
    else:
        threads = [threading.Thread(target=ask, args=(asker, n)) for n, asker in enumerate(stores)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(got) == 100
    assert sum(got) == 30
