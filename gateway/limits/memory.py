"""Memory: the counters of one process, which end with it.

There is room for COUNTERS_MAX counters that were used within the last minute. Callers choose names of models,
so what comes beyond shares one counter for each rule: nobody gets a fresh limit by making others forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from gateway.limits.store import PLACE_WAIT_MS, Answer, Ask, Charge, Settle, Standing
from gateway.limits.window import Window

COUNTERS_MAX: Final = 10_000
SWEEP_MS: Final = 1_000
"""How often idle counters are looked for at most, when there is no room."""
NO_LEASE_MS: Final = 2**52
"""For a process whose places end with it: none lapses."""


class MemoryStore:
    """Counters in dictionaries.

    Args:
        now_ms: a clock that only goes forward.
        lease_ms: see `gateway.limits.store`.
    """

    def __init__(
        self, now_ms: Callable[[], int], lease_ms: int = NO_LEASE_MS, counters_max: int = COUNTERS_MAX
    ) -> None:
        self._now_ms = now_ms
        self._lease_ms = lease_ms
        self._counters_max = counters_max
        self._swept_ms: int | None = None
        self._windows: dict[str, Window] = {}
        self._places: dict[str, dict[str, int]] = {}
        self._open: dict[str, tuple[int, Answer]] = {}

    def __len__(self) -> int:
        return len(self._windows) + len(self._places)

    def ask(self, ask: Ask) -> Answer:
        """Let a request in, or not."""
        known = self._open.get(ask.request_id)
        if known is not None:
            return known[1]
        now = self._now_ms()
        found: list[tuple[Charge, Window | None, int, int]] = []
        admitted = True
        for charge in ask.charges:
            if charge.unit == "concurrent":
                window, at = None, now
                wait = 0 if self._taken(charge, now) < charge.limit else PLACE_WAIT_MS
            else:
                window = self._window(charge.key, now)
                at = window.sweep(now)
                wait = window.wait_ms(at, charge.limit, charge.units)
            admitted = admitted and wait == 0
            found.append((charge, window, at, wait))
        standings = []
        for charge, window, at, wait in found:
            if window is None:
                if admitted:
                    self._take(charge.key, ask.request_id, now)
                standings.append(Standing(self._taken(charge, now), wait, 0))
            else:
                if admitted:
                    window.add(at, charge.units)
                standings.append(Standing(window.used, wait, window.full_again_ms(at)))
        answer = Answer(admitted, tuple(standings))
        if admitted:
            self._open[ask.request_id] = (now, answer)
        return answer

    def settle(self, settle: Settle) -> None:
        """End a request."""
        known = self._open.pop(settle.request_id, None)
        for charge, used in zip(settle.charges, settle.used, strict=True):
            if charge.unit == "concurrent":
                self._leave(charge.key, settle.request_id)
            elif known is not None and used != charge.units:
                now = self._now_ms()
                window = self._window(charge.key, now)
                at = window.sweep(now)
                if used > charge.units:
                    window.add(at, used - charge.units)
                else:
                    window.give_back(known[0], charge.units - used)

    def beat(self, request_id: str, keys: Sequence[str]) -> None:
        """Renew the places of an open request."""
        now = self._now_ms()
        for key in keys:
            self._take(key, request_id, now)

    def look(self, charges: Sequence[Charge]) -> list[Standing]:
        """Return how counters stand, using nothing."""
        now = self._now_ms()
        standings = []
        for charge in charges:
            if charge.unit == "concurrent":
                standings.append(Standing(self._taken(charge, now), 0, 0))
                continue
            window = self._windows.get(charge.key) or Window()
            at = window.sweep(now)
            standings.append(Standing(window.used, 0, window.full_again_ms(at)))
        return standings

    # windows

    def _window(self, key: str, now_ms: int) -> Window:
        window = self._windows.get(key)
        if window is not None:
            return window
        if len(self._windows) >= self._counters_max:
            self._forget_idle(now_ms)
            if len(self._windows) >= self._counters_max:
                return self._windows.setdefault(shared_key(key), Window())
        window = self._windows[key] = Window()
        return window

    def _forget_idle(self, now_ms: int) -> None:
        if self._swept_ms is not None and now_ms - self._swept_ms < SWEEP_MS:
            return
        self._swept_ms = now_ms
        for key, window in list(self._windows.items()):
            window.sweep(now_ms)
            if not window.used:
                del self._windows[key]

    # places

    def _taken(self, charge: Charge, now_ms: int) -> int:
        places = self._places.get(charge.key)
        if places is None:
            return 0
        if self._lease_ms == NO_LEASE_MS:
            return len(places)
        return sum([now_ms < until <= now_ms + 2 * self._lease_ms for until in places.values()])

    def _take(self, key: str, request_id: str, now_ms: int) -> None:
        self._places.setdefault(key, {})[request_id] = now_ms + self._lease_ms

    def _leave(self, key: str, request_id: str) -> None:
        places = self._places.get(key)
        if places is not None:
            places.pop(request_id, None)
            if not places:
                del self._places[key]


def shared_key(key: str) -> str:
    """Return the counter of a rule that all those share for whom there is no room; see `Charge.key`."""
    rule, unit, _ = key.split(" ", 2)
    return f"{rule} {unit}"
