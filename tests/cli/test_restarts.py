"""When a worker that ended is started again: at once, ever later, or not at all."""

from __future__ import annotations

from gateway.cli.restarts import (
    DELAY_FIRST_S,
    DELAY_MAX_S,
    FAILURES_MAX,
    STABLE_S,
    End,
    GiveUp,
    Restart,
    after,
)


def end(**facts: object) -> End:
    usual: dict[str, object] = {
        "served_s": 1.0,
        "killed": True,
        "failures": 0,
        "ever_served": True,
        "others_serve": True,
    }
    return End(**{**usual, **facts})  # type: ignore[arg-type]


def test_the_first_end_is_answered_at_once() -> None:
    assert after(end()) == Restart(0.0, 1)


def test_further_ends_are_answered_ever_later_up_to_a_bound() -> None:
    delays = []
    failures = 0
    for _ in range(20):
        step = after(end(failures=failures))
        assert isinstance(step, Restart)
        failures = step.failures
        delays.append(step.delay_s)
    assert delays[:3] == [0.0, DELAY_FIRST_S, 2 * DELAY_FIRST_S]
    assert delays == sorted(delays)
    assert delays[-1] == DELAY_MAX_S


def test_a_worker_that_served_for_long_has_not_failed_before() -> None:
    assert after(end(served_s=STABLE_S, failures=4)) == Restart(0.0, 1)
    assert after(end(served_s=STABLE_S - 1, failures=4)) != Restart(0.0, 1)
    assert after(end(served_s=None, failures=4)) == after(end(served_s=0.0, failures=4))


def test_a_gateway_that_has_never_served_gives_up_unless_somebody_killed_the_worker() -> None:
    assert after(end(served_s=None, ever_served=False, killed=False)) == GiveUp()
    assert after(end(served_s=None, ever_served=False, killed=True)) == Restart(0.0, 1)


def test_a_gateway_gives_up_when_the_last_worker_keeps_ending_and_not_while_another_serves() -> None:
    assert after(end(failures=FAILURES_MAX, others_serve=False)) == GiveUp()
    assert isinstance(after(end(failures=FAILURES_MAX - 1, others_serve=False)), Restart)
    assert isinstance(after(end(failures=FAILURES_MAX, others_serve=True)), Restart)
