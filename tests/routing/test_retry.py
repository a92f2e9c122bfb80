"""Retry: what follows a failure, as a table; and what holds for every story."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import UpstreamError
from gateway.routing.retry import (
    CAUSES,
    Again,
    Failure,
    Policy,
    RetryBudget,
    cause_of_fault,
    cause_of_status,
    next_attempt,
    retry_after,
)

POLICY = Policy()


def after(*failures: Failure, targets: tuple[bool, ...] = (True,), **given_: object) -> Again | None:
    facts: dict[str, object] = {"released": False, "waited_s": 0.0, "affordable": (True,) * 4, "jitter": 0.5}
    return next_attempt(POLICY, failures, targets=targets, **{**facts, **given_})  # type: ignore[arg-type]


def test_another_target_is_asked_at_once() -> None:
    assert after(Failure(0, "server_error"), targets=(True, True)) == Again(1, 0.0)
    assert after(Failure(0, "server_error"), targets=(True, False, True)) == Again(2, 0.0)


def test_the_only_target_is_asked_again_after_a_pause_that_doubles() -> None:
    first = after(Failure(0, "server_error"))
    second = after(Failure(0, "server_error"), Failure(0, "connection"))
    assert first == Again(0, 0.375)
    assert second == Again(0, 0.75)


def test_there_is_an_end() -> None:
    assert after(*[Failure(0, "server_error")] * 3) is None
    assert after(Failure(0, "server_error"), waited_s=9.7) is None


def test_a_provider_that_was_too_slow_is_not_asked_again_but_another_one_is() -> None:
    assert after(Failure(0, "timeout")) is None
    assert after(Failure(0, "timeout"), targets=(True, True)) == Again(1, 0.0)


def test_what_a_provider_asks_for_is_respected_or_nothing_is_tried() -> None:
    assert after(Failure(0, "rate_limited", 3.0)) == Again(0, 3.0)
    assert after(Failure(0, "rate_limited", 60.0)) is None
    assert after(Failure(0, "rate_limited", 60.0), targets=(True, True)) == Again(1, 0.0)


def test_without_budget_only_others_are_asked() -> None:
    assert after(Failure(0, "server_error"), affordable=(False,) * 4) is None
    assert after(Failure(0, "server_error"), affordable=(False,) * 4, targets=(True, True)) == Again(1, 0.0)


def test_the_budget_is_that_of_the_target_that_is_asked_again() -> None:
    failures = (Failure(0, "server_error"), Failure(1, "server_error"))
    assert after(*failures, targets=(True, True), affordable=(False, True)) is None
    assert after(*failures, targets=(True, True), affordable=(True, False)) is not None


def test_of_several_that_failed_the_one_that_had_most_time_is_asked_again() -> None:
    failures = (Failure(0, "server_error"), Failure(1, "server_error"))
    again = after(*failures, targets=(True, True))
    assert again is not None
    assert again.target == 0
    assert again.pause_s > 0


@pytest.mark.parametrize("failure", [Failure(0, None), Failure(0, "timeout")])
def test_what_the_policy_leaves_out_is_final(failure: Failure) -> None:
    policy = Policy(on=frozenset({"server_error"}))
    assert (
        next_attempt(
            policy,
            [failure],
            targets=(True, True),
            released=False,
            waited_s=0,
            affordable=(True, True),
            jitter=0,
        )
        is None
    )


failures_of = st.lists(
    st.builds(
        Failure,
        st.integers(0, 3),
        st.sampled_from([*CAUSES, None]),
        st.one_of(st.none(), st.floats(0, 100)),
    ),
    min_size=1,
    max_size=6,
)


@given(
    failures=failures_of,
    targets=st.lists(st.booleans(), min_size=4, max_size=4),
    released=st.booleans(),
    waited_s=st.floats(0, 20),
    affordable=st.lists(st.booleans(), min_size=4, max_size=4),
    jitter=st.floats(0, 1, exclude_max=True),
)
def test_no_story_breaks_a_bound(
    failures: list[Failure],
    targets: list[bool],
    released: bool,
    waited_s: float,
    affordable: list[bool],
    jitter: float,
) -> None:
    again = after(
        *failures,
        targets=tuple(targets),
        released=released,
        waited_s=waited_s,
        affordable=affordable,
        jitter=jitter,
    )
    if again is None:
        return
    assert not released
    assert len(failures) < POLICY.attempts_max
    assert failures[-1].cause is not None
    tried = {failure.target for failure in failures}
    if again.target in tried:
        last = [failure for failure in failures if failure.target == again.target][-1]
        assert affordable[again.target]
        assert again.pause_s >= max(POLICY.pause_s / 2, last.retry_after_s or 0)
        assert waited_s + again.pause_s <= POLICY.waited_max_s
        assert last.cause not in ("timeout", "unauthorized")
    else:
        assert targets[again.target]
        assert again.pause_s == 0


@pytest.mark.parametrize(
    ("status", "cause"),
    [
        (200, None),
        (400, None),
        (401, "unauthorized"),
        (403, "unauthorized"),
        (404, None),
        (408, "server_error"),
        (429, "rate_limited"),
        (500, "server_error"),
        (503, "server_error"),
        (529, "server_error"),
    ],
)
def test_a_status_is_a_failure_or_an_answer(status: int, cause: str | None) -> None:
    assert cause_of_status(status) == cause


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("upstream_unreachable", "connection"),
        ("upstream_incomplete", "connection"),
        ("upstream_protocol", "connection"),
        ("upstream_timeout", "timeout"),
        ("upstream_too_large", None),
        ("invalid_target", None),
        ("client_disconnected", None),
    ],
)
def test_a_fault_is_one_that_another_attempt_may_mend_or_not(code: str, cause: str | None) -> None:
    assert cause_of_fault(UpstreamError(code, "", retryable=False, sent=True)) == cause


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        (b"3", 3.0),
        (b" 0 ", 0.0),
        (b"Sat, 21 Nov 2026 00:00:05 GMT", 5.0),
        (b"Fri, 20 Nov 2026 23:59:59 GMT", None),
        (b"-1", None),
        (b"1e3", None),
        (b"99999999999999999999", None),
        (b"soon", None),
        (b"\xff", None),
        (b"9" * 100, None),
    ],
)
def test_retry_after_is_seconds_or_a_date_or_nothing(value: bytes | None, seconds: float | None) -> None:
    assert retry_after(value, 1_795_219_200.0) == seconds


def test_retries_are_a_share_of_the_requests_and_a_few() -> None:
    budget = RetryBudget()
    retries = 0
    for _ in range(10_000):
        budget.request()
        while budget.affordable:
            budget.spend()
            retries += 1
    assert 0.2 * 10_000 <= retries <= 0.2 * 10_000 + RetryBudget.FEW
