"""Cooldown: which targets are left alone for a while, and how one of them comes back.

    warm ──too many failures, or told to wait──▶ cooling ──its time is over──▶ probing
     ▲                                              ▲                            │  │
     └────── enough probes brought an answer ───────┼────────────────────────────┘  │
                                                    └──────── one failed ───────────┘

While it is probed a target takes one request at a time, then two, four, eight: it does not meet a herd.
Pure: the time and the jitter come in as arguments.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Literal

import msgspec

State = Literal["warm", "cooling", "probing"]


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """When a target is left alone.

    Args:
        failures: share of recent attempts that failed.
        attempts_min: fewer recent attempts than this say nothing.
        recent_s: what is recent.
        pause_s: the first pause; doubles with each failed probe, at random by a quarter. Where a provider
            asks for a time, that is the pause, and ASKED_MIN_S is what doubles.
        pause_max_s: its bound, also of what a provider asks for.
    """

    failures: float = 0.5
    attempts_min: int = 5
    recent_s: float = 30.0
    pause_s: float = 5.0
    pause_max_s: float = 300.0


RECENT_MAX: Final = 200
"""Recent attempts that are remembered of a target."""
ASKED_MIN_S: Final = 1.0
"""Least pause where a provider asks for one: "0" and "1" are what servers say that do not know, too."""
PROBES: Final = 4
"""Rounds of probes that must go well: 1, 2, 4, 8 at a time."""


class Cooldown:
    """The state of one target."""

    __slots__ = ("_bad", "_passed", "_pauses", "_recent", "_until_ns", "probes", "rules")

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self._recent: deque[tuple[int, bool]] = deque(maxlen=RECENT_MAX)
        self._bad = 0
        self._until_ns: int | None = None
        self._pauses = 0
        self._passed = 0
        self.probes = 0

    def state(self, now_ns: int) -> State:
        """Return the state at a moment."""
        if self._until_ns is None:
            return "warm"
        return "cooling" if now_ns < self._until_ns else "probing"

    def callable(self, now_ns: int) -> bool:
        """Say whether a request may be sent there now."""
        state = self.state(now_ns)
        return state == "warm" or (state == "probing" and self.probes < 1 << self._passed_rounds())

    def left_s(self, now_ns: int) -> float:
        """Return how long it will still be left alone, in seconds."""
        return 0.0 if self._until_ns is None else max(0.0, (self._until_ns - now_ns) / 1e9)

    def began(self, now_ns: int) -> bool:
        """Note an attempt; return whether it is a probe, which `ended` must be told."""
        if self.state(now_ns) == "probing":
            self.probes += 1
            return True
        return False

    def ended(
        self, ok: bool, now_ns: int, *, probe: bool, jitter: float, wait_s: float | None = None
    ) -> State | None:
        """Note the end of an attempt; return the new state if it changed now.

        Args:
            wait_s: how long the provider asks to be left alone, where it does.
            jitter: from 0 up to 1.
        """
        before = self.state(now_ns)
        if probe:
            self.probes -= 1
        if before == "probing" and probe:
            return self._probed(ok, now_ns, jitter, wait_s)
        self._remember(ok, now_ns)
        if before != "warm":
            return None
        if wait_s is not None and not ok:
            self._cool(now_ns, jitter, wait_s)
            return "cooling"
        enough = len(self._recent) >= self.rules.attempts_min
        if not ok and enough and self._bad >= self.rules.failures * len(self._recent):
            self._cool(now_ns, jitter, None)
            return "cooling"
        return None

    def broke(self, now_ns: int, *, jitter: float) -> State | None:
        """Note that an answer broke off whose head had been noted as one; return the new state if it changed.

        Args:
            jitter: from 0 up to 1.
        """
        before = self.state(now_ns)
        if before == "probing":
            return self._probed(False, now_ns, jitter, None)
        for place in range(len(self._recent) - 1, -1, -1):  # at most RECENT_MAX
            if self._recent[place][1]:
                del self._recent[place]
                break
        return self.ended(False, now_ns, probe=False, jitter=jitter)

    def given_up(self, *, probe: bool) -> None:
        """Note an attempt that says nothing of the target: the caller went, or the gateway stopped it."""
        if probe:
            self.probes -= 1

    def _passed_rounds(self) -> int:
        return (self._passed + 1).bit_length() - 1

    def _probed(self, ok: bool, now_ns: int, jitter: float, wait_s: float | None) -> State | None:
        if not ok:
            self._cool(now_ns, jitter, wait_s)
            return "cooling"
        self._passed += 1
        if self._passed_rounds() < PROBES:
            return None
        self._until_ns, self._pauses, self._passed, self._bad = None, 0, 0, 0
        self._recent.clear()
        return "warm"

    def _cool(self, now_ns: int, jitter: float, wait_s: float | None) -> None:
        doublings = 2.0 ** min(self._pauses, 30)
        if wait_s is None:
            pause = self.rules.pause_s * doublings * (0.75 + jitter / 2)
        else:
            least = min(ASKED_MIN_S, self.rules.pause_s) * doublings
            pause = max(least, wait_s) * (1 + jitter / 4)
        self._until_ns = now_ns + round(min(pause, self.rules.pause_max_s) * 1e9)
        self._pauses += 1
        self._passed = 0
        self._recent.clear()
        self._bad = 0

    def _remember(self, ok: bool, now_ns: int) -> None:
        if len(self._recent) == RECENT_MAX:
            self._bad -= not self._recent[0][1]
        self._recent.append((now_ns, ok))
        self._bad += not ok
        oldest = now_ns - round(self.rules.recent_s * 1e9)
        while self._recent[0][0] < oldest:
            self._bad -= not self._recent.popleft()[1]
