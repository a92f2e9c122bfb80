"""Restarts: when a worker that ended is started again, and when it is no use. Pure.

The first death after a quiet time is answered at once, further ones ever later. A gateway none of whose
workers has ever served says why and ends: its configuration or its folder is at fault, not a worker.
"""

from __future__ import annotations

from typing import Final

import msgspec

STABLE_S: Final = 30.0
"""A worker that has served for so long has not failed: its end is the first again."""
DELAY_FIRST_S: Final = 0.5
DELAY_MAX_S: Final = 30.0
FAILURES_MAX: Final = 5
"""Ends of one worker in a row, while no other serves, after which the gateway gives up."""


class End(msgspec.Struct, frozen=True, kw_only=True):
    """What is known when a worker has ended.

    Args:
        served_s: how long it has served; None if it never came to that.
        killed: by a signal; else it ended by itself.
        failures: ends in a row before this one.
        ever_served: some worker of this gateway has served some time.
        others_serve: some other worker serves now.
    """

    served_s: float | None
    killed: bool
    failures: int
    ever_served: bool
    others_serve: bool


class Restart(msgspec.Struct, frozen=True):
    """Start it again in `delay_s`; `failures` ends in a row."""

    delay_s: float
    failures: int


class GiveUp(msgspec.Struct, frozen=True):
    """Stop the gateway."""


def after(end: End) -> Restart | GiveUp:
    """Return what to do about an end that nobody asked for."""
    if not end.ever_served and not end.killed:
        return GiveUp()
    failures = 1 if end.served_s is not None and end.served_s >= STABLE_S else end.failures + 1
    if failures > FAILURES_MAX and not end.others_serve:
        return GiveUp()
    if failures == 1:
        return Restart(0.0, failures)
    return Restart(min(DELAY_MAX_S, DELAY_FIRST_S * 2.0 ** min(failures - 2, 10)), failures)
