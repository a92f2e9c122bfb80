"""Cooldown: a target that fails is left alone, probed by few, and comes back without a herd."""

from __future__ import annotations

from gateway.routing.cooldown import Cooldown, Rules

S = 10**9
RULES = Rules()


def failed(cooldown: Cooldown, now_ns: int, times: int = 5) -> None:
    for _ in range(times):
        cooldown.ended(False, now_ns, probe=cooldown.began(now_ns), jitter=0.5)


def test_few_failures_say_nothing_and_many_cool_down() -> None:
    cooldown = Cooldown(RULES)
    failed(cooldown, S, 4)
    assert cooldown.state(S) == "warm"
    assert cooldown.ended(False, S, probe=False, jitter=0.5) == "cooling"
    assert not cooldown.callable(S)
    assert cooldown.left_s(S) == 5.0


def test_failures_among_enough_answers_are_borne() -> None:
    cooldown = Cooldown(RULES)
    for turn in range(100):
        cooldown.ended(turn % 3 != 0, S, probe=False, jitter=0.5)
    assert cooldown.state(S) == "warm"


def test_old_failures_are_forgotten() -> None:
    cooldown = Cooldown(RULES)
    failed(cooldown, S, 4)
    failed(cooldown, 40 * S, 4)
    assert cooldown.state(40 * S) == "warm"


def test_what_a_provider_asks_for_is_given_at_once_and_bounded() -> None:
    cooldown = Cooldown(RULES)
    assert cooldown.ended(False, S, probe=False, jitter=0.0, wait_s=20.0) == "cooling"
    assert cooldown.left_s(S) == 20.0
    other = Cooldown(RULES)
    other.ended(False, S, probe=False, jitter=0.9, wait_s=10_000.0)
    assert other.left_s(S) == RULES.pause_max_s
    answered = Cooldown(RULES)
    assert answered.ended(True, S, probe=False, jitter=0.0, wait_s=20.0) is None


def test_it_is_left_alone_for_as_short_as_the_provider_asks_and_longer_where_that_was_not_enough() -> None:
    for asked_s, left_s in ((0.0, 1.0), (1.0, 1.0), (2.0, 2.0)):
        cooldown = Cooldown(RULES)
        assert cooldown.ended(False, S, probe=False, jitter=0.0, wait_s=asked_s) == "cooling"
        assert cooldown.left_s(S) == left_s
    cooldown = Cooldown(RULES)
    cooldown.ended(False, 0, probe=False, jitter=0.0, wait_s=0.0)
    now, lefts = 0, []
    for _ in range(12):  # it goes on asking for no time at all, and refusing
        now += round(cooldown.left_s(now) * S)
        assert cooldown.began(now)
        cooldown.ended(False, now, probe=True, jitter=0.0, wait_s=0.0)
        lefts.append(cooldown.left_s(now))
    assert lefts[:4] == [2.0, 4.0, 8.0, 16.0]
    assert lefts[-1] == RULES.pause_max_s


def test_where_pauses_are_configured_to_be_short_those_that_are_asked_for_may_be_as_short() -> None:
    cooldown = Cooldown(Rules(pause_s=0.2))
    cooldown.ended(False, S, probe=False, jitter=0.0, wait_s=0.0)
    assert cooldown.left_s(S) == 0.2


def test_it_comes_back_by_one_then_two_then_four_then_eight() -> None:
    cooldown = Cooldown(RULES)
    failed(cooldown, S)
    now = 7 * S
    assert cooldown.state(now) == "probing"
    rounds: list[int] = []
    for _ in range(20):  # ends with the return
        inside = 0
        while cooldown.callable(now):
            if not cooldown.began(now):
                break
            inside += 1
        if cooldown.state(now) == "warm":
            break
        rounds.append(inside)
        for _ in range(inside):
            cooldown.ended(True, now, probe=True, jitter=0.5)
    assert cooldown.state(now) == "warm"
    assert rounds == [1, 2, 4, 8]


def test_a_probe_that_fails_doubles_the_pause() -> None:
    cooldown = Cooldown(RULES)
    failed(cooldown, 0)
    assert cooldown.began(6 * S)
    assert cooldown.ended(False, 6 * S, probe=True, jitter=0.5) == "cooling"
    assert cooldown.left_s(6 * S) == 10.0
    assert not cooldown.callable(15 * S)
    assert cooldown.callable(16 * S)


def test_a_probe_that_says_nothing_makes_room_for_another() -> None:
    cooldown = Cooldown(RULES)
    failed(cooldown, 0)
    assert cooldown.began(6 * S)
    assert not cooldown.callable(6 * S)
    cooldown.given_up(probe=True)
    assert cooldown.callable(6 * S)


def test_answers_that_break_off_count_as_failures_and_not_as_answers() -> None:
    cooldown = Cooldown(Rules(failures=0.9))
    states = []
    for _ in range(5):
        cooldown.ended(True, S, probe=cooldown.began(S), jitter=0.5)
        states.append(cooldown.broke(S, jitter=0.5))
    assert states == [None] * 4 + ["cooling"]


def test_a_probe_whose_answer_breaks_off_was_none() -> None:
    cooldown = Cooldown(RULES)
    failed(cooldown, 0)
    assert cooldown.began(6 * S)
    cooldown.ended(True, 6 * S, probe=True, jitter=0.5)
    assert cooldown.broke(6 * S, jitter=0.5) == "cooling"
    assert cooldown.probes == 0
    assert cooldown.left_s(6 * S) == 10.0
