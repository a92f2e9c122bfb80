"""Retry: whether a failed attempt is followed by another, where, and after how long.

One pure function of the policy, the failures so far, what was released, the time waited so far and a jitter.
Nothing is tried again after the first byte has been released, nor what only the caller can mend. A provider
of the request that was not tried yet is asked at once; the same one again only after a pause, and only within
the retry budget, so that retries cannot multiply an outage.
"""

from __future__ import annotations

from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from typing import Final, Literal

import msgspec

from gateway.core.errors import UpstreamError

Cause = Literal["timeout", "server_error", "rate_limited", "connection", "unauthorized"]
"""Why an attempt failed, in the words of the configuration."""

CAUSES: Final[tuple[Cause, ...]] = ("timeout", "server_error", "rate_limited", "connection", "unauthorized")
ONCE_ONLY: Final[frozenset[Cause | None]] = frozenset({"timeout", "unauthorized"})
"""After these a target is not asked again: it may still be at work, and charge for it; or refuses again."""
FORBIDDEN: Final = 403
REFUSED: Final = frozenset({401, FORBIDDEN})
"""What says that the operator's key is wrong, or may not do this: the caller's own was checked here."""
SIGNALS: Final = frozenset({429, 503, 529})
"""Statuses on which `Retry-After` is a signal: it also arrives on 200, and on errors of the request."""
_CONNECTION: Final = frozenset({"upstream_unreachable", "upstream_incomplete", "upstream_protocol"})
FACTOR: Final = 2.0
RETRY_AFTER_MAX_S: Final = 86_400.0
"""A longer one is taken for a mistake."""


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """How stubborn to be.

    Args:
        attempts_max: calls of providers for one request, the first one included.
        pause_s: before a provider is asked for the second time; doubles from there, at random by half.
        pause_max_s: its bound.
        waited_max_s: all pauses of one request together.
        on: which failures are followed by another attempt.
    """

    attempts_max: int = 3
    pause_s: float = 0.5
    pause_max_s: float = 8.0
    waited_max_s: float = 10.0
    on: frozenset[Cause] = frozenset(CAUSES)


ONCE: Final = Policy(attempts_max=1)


class Failure(msgspec.Struct, frozen=True):
    """One failed attempt.

    Args:
        target: place in the request's list of targets.
        cause: None where another attempt would fail in the same way.
        retry_after_s: what the provider asks for, only where it is a signal.
    """

    target: int
    cause: Cause | None
    retry_after_s: float | None = None


class Again(msgspec.Struct, frozen=True):
    """Try again: which target, and after how many seconds."""

    target: int
    pause_s: float


def cause_of_fault(fault: UpstreamError) -> Cause | None:
    """Return why an attempt brought no usable reply; None where another would fail in the same way."""
    if fault.code == "upstream_timeout":
        return "timeout"
    return "connection" if fault.code in _CONNECTION else None


def cause_of_status(status: int) -> Cause | None:
    """Return why a reply is a failure; None for an answer, and for what is the caller's to mend.

    529 is how Anthropic says that it is overloaded.
    """
    if status == 429:
        return "rate_limited"
    if status in REFUSED:
        return "unauthorized"
    return "server_error" if status >= 500 or status == 408 else None


def blamed(status: int) -> bool:
    """Say whether a status counts against its target; what is forbidden may be what this caller asks for."""
    return status != FORBIDDEN and cause_of_status(status) is not None


def next_attempt(
    policy: Policy,
    failures: Sequence[Failure],
    *,
    targets: Sequence[bool],
    released: bool,
    waited_s: float,
    affordable: Sequence[bool],
    jitter: float,
) -> Again | None:
    """Return the next attempt after the last of some failures, or None: what came last is the answer.

    Args:
        failures: at least one, in order.
        targets: for each target of the request, in order, whether it may be called now.
        released: something of an answer is with the caller.
        waited_s: its pauses so far.
        affordable: for each target, whether its retry budget has one left.
        jitter: from 0 up to 1.
    """
    last = failures[-1]
    if released or last.cause is None or last.cause not in policy.on:
        return None
    if len(failures) >= policy.attempts_max:
        return None
    tried = {failure.target for failure in failures}
    for target, callable_now in enumerate(targets):
        if callable_now and target not in tried:
            return Again(target, 0.0)
    again = _failed_longest_ago(failures, targets)
    if again is None or not affordable[again.target]:
        return None
    times = sum(failure.target == again.target for failure in failures)
    pause = min(policy.pause_max_s, policy.pause_s * FACTOR ** (times - 1)) * (0.5 + jitter / 2)
    if again.retry_after_s is not None:
        pause = max(pause, again.retry_after_s)
    if waited_s + pause > policy.waited_max_s:
        return None
    return Again(again.target, pause)


def _failed_longest_ago(failures: Sequence[Failure], targets: Sequence[bool]) -> Failure | None:
    """Return the last failure of the target that had most time since; of one in cooldown if all are."""
    last = {failure.target: failure for failure in failures}  # in the order in which they first failed
    order = sorted(
        [target for target in last if last[target].cause not in ONCE_ONLY],
        key=lambda target: max(n for n, f in enumerate(failures) if f.target == target),
    )
    if not order:
        return None
    return last[next((target for target in order if targets[target]), order[0])]


class RetryBudget:
    """Retries that one provider may still be asked: a share of the requests that it is sent, and a few.

    Not a rate: where nobody asks, nothing is retried. Spent when a retry is decided, and not after its pause:
    a herd that decides at once must not find what is there many times over.
    """

    __slots__ = ("_left",)

    SHARE: Final = 0.2
    """Retries for each request in the long run."""
    FEW: Final = 10.0
    """What is there at the beginning, and the most that can be saved up."""

    def __init__(self) -> None:
        self._left = self.FEW

    def request(self) -> None:
        """Note a request that is sent for the first time."""
        self._left = min(self.FEW, self._left + self.SHARE)

    @property
    def affordable(self) -> bool:
        """Whether there is one left."""
        return self._left >= 1

    def spend(self) -> None:
        """Note a retry."""
        self._left -= 1


def retry_after(value: bytes | None, now_unix_s: float) -> float | None:
    """Read `Retry-After`: seconds, or a date of HTTP; None where it is neither, in the past, or absurd.

    Args:
        value: of the header.
    """
    if value is None or len(value) > 64:
        return None
    text = value.strip()
    if text.isdigit():
        seconds = float(text[:9])
    else:
        moment = _http_date(text)
        if moment is None:
            return None
        seconds = moment - now_unix_s
    return seconds if 0 <= seconds <= RETRY_AFTER_MAX_S else None


def _http_date(text: bytes) -> float | None:
    try:
        return parsedate_to_datetime(text.decode("ascii")).timestamp()
    except (UnicodeDecodeError, ValueError, OverflowError):
        return None
