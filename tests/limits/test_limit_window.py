"""Window: held to a log of all uses, which is what it stands for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.limits.window import NEVER, SLOT_MS, WINDOW_MS, Window

STEPS = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 3_000), st.integers(0, 70_000), st.sampled_from([0, 1, 999, 1_000, 60_000])),
        st.integers(1, 12),
    ),
    min_size=1,
    max_size=200,
)
ENTRIES_MAX = WINDOW_MS // SLOT_MS + 1


def most_in_a_minute(uses: list[tuple[int, int]]) -> int:
    """Return the most units in any 60 seconds: such a stretch ends, at the latest, with one of the uses."""
    return max(
        sum(units for at_ms, units in uses if end_ms - WINDOW_MS < at_ms <= end_ms) for end_ms, _ in uses
    )


@given(steps=STEPS, limit=st.integers(1, 30), start_ms=st.integers(0, 2**41))
def test_no_minute_has_more_than_the_limit(steps: list[tuple[int, int]], limit: int, start_ms: int) -> None:
    window, now_ms = Window(), start_ms
    uses: list[tuple[int, int]] = []
    for step_ms, units in steps:
        now_ms += step_ms
        at_ms = window.sweep(now_ms)
        if window.wait_ms(at_ms, limit, units) == 0:
            window.add(at_ms, units)
            uses.append((now_ms, units))
        assert len(window.flat()) // 2 <= ENTRIES_MAX
    assert not uses or most_in_a_minute(uses) <= limit


@given(steps=STEPS, limit=st.integers(1, 30), start_ms=st.integers(0, 2**41))
def test_nobody_starves_and_nobody_is_let_in_sooner_than_told(
    steps: list[tuple[int, int]], limit: int, start_ms: int
) -> None:
    """Who asks for no more than the limit waits a minute at most, and for uses of the last 61 s."""
    window, now_ms = Window(), start_ms
    uses: list[tuple[int, int]] = []
    for step_ms, units in steps:
        now_ms += step_ms
        at_ms = window.sweep(now_ms)
        wait_ms = window.wait_ms(at_ms, limit, units)
        if units > limit:
            assert wait_ms == NEVER
            continue
        assert 0 <= wait_ms <= WINDOW_MS
        recent = sum(used for used_ms, used in uses if used_ms > now_ms - WINDOW_MS - SLOT_MS)
        if recent + units <= limit:
            assert wait_ms == 0
        if wait_ms:
            before = Window(window.flat())
            before.sweep(now_ms + wait_ms - 1)
            assert before.wait_ms(now_ms + wait_ms - 1, limit, units) > 0
            now_ms += wait_ms
            at_ms = window.sweep(now_ms)
            assert window.wait_ms(at_ms, limit, units) == 0
        window.add(at_ms, units)
        uses.append((now_ms, units))


@given(steps=STEPS, start_ms=st.integers(0, 2**41))
def test_what_is_used_is_the_sum_of_what_did_not_fall_out(
    steps: list[tuple[int, int]], start_ms: int
) -> None:
    """Some of it is given back at odd times: nothing falls below zero, and nobody else's units go."""
    window, now_ms = Window(), start_ms
    uses: list[list[int]] = []
    for number, (step_ms, units) in enumerate(steps):
        now_ms += step_ms
        at_ms = window.sweep(now_ms)
        window.add(at_ms, units)
        uses.append([now_ms, units])
        if number % 3 == 2:
            back = uses[number * 7 % len(uses)]
            window.give_back(back[0], back[1])
            back[1] = 0
        flat = window.flat()
        assert window.used == sum(flat[1::2])
        assert all(left > 0 for left in flat[1::2])
        assert flat[::2] == sorted(flat[::2])
        certain = sum(used for used_ms, used in uses if used_ms > now_ms - WINDOW_MS)
        possible = sum(used for used_ms, used in uses if used_ms > now_ms - WINDOW_MS - SLOT_MS)
        assert certain <= window.used <= possible
        assert Window(flat).flat() == flat


def test_a_bucket_of_the_same_limit_would_let_twice_as_much_through() -> None:
    """The reason for this window: an idle minute, a burst, and then one for each that trickles in."""
    limit, window, now_ms, admitted, level = 60, Window(), 10**6, 0, 60.0
    bucket = 0
    for _ in range(60_000 // 100):
        at_ms = window.sweep(now_ms)
        if window.wait_ms(at_ms, limit, 1) == 0:
            window.add(at_ms, 1)
            admitted += 1
        if level >= 1:
            level -= 1
            bucket += 1
        level = min(60.0, level + 0.1)
        now_ms += 100
    assert admitted == limit
    assert bucket > limit * 1.9


def test_no_more_is_given_back_than_there_is() -> None:
    window = Window()
    window.add(window.sweep(5_000), 3)
    window.add(window.sweep(7_000), 3)
    window.give_back(5_000, 100)
    assert window.used == 3
    assert window.flat() == [7_000, 3]


def test_the_units_of_one_second_fall_out_together_with_its_last() -> None:
    window = Window()
    for at_ms in (5_000, 5_400, 5_999):
        window.add(window.sweep(at_ms), 1)
    window.sweep(5_998 + WINDOW_MS)
    assert window.used == 3
    window.sweep(5_999 + WINDOW_MS)
    assert window.used == 0
