"""Window: never more than the limit in any 60 seconds, wherever they begin.

Units are kept with the time at which they were used, and count until 60 s later; there is no clock edge at
which a counter starts over, and no burst of twice the limit around one:

    entries   [12:00:07.950 | 3]  [12:00:08.991 | 9]  [12:00:31.204 | 1]      used = 13
              ──── 60 s later each falls out, the oldest first ────▶

What is used within one second shares an entry, whose time is the newest of its uses: so a window has at most
61 entries, units count up to a second longer than they must, and never shorter. A token bucket of the same
limit would be one number, and would let twice as much through in a minute that begins with a full bucket.

Times are milliseconds of whatever clock the store has. A clock that goes back a little stands still here; one
that goes back a minute or more begins anew.
"""

from __future__ import annotations

from collections import deque
from typing import Final

WINDOW_MS: Final = 60_000
SLOT_MS: Final = 1_000
"""What is used in one slot shares an entry."""
NEVER: Final = -1
"""How long to wait for what is more than the limit by itself."""


class Window:
    """The last minute of one counter.

    Args:
        flat: what `flat` of another one returned.
    """

    __slots__ = ("_entries", "used")

    def __init__(self, flat: list[int] | tuple[int, ...] = ()) -> None:
        self._entries = deque([[flat[i], flat[i + 1]] for i in range(0, len(flat), 2)])
        self.used = sum([units for _, units in self._entries])

    def flat(self) -> list[int]:
        """Return all of it as [time, units, time, units, …], the oldest first."""
        return [number for entry in self._entries for number in entry]

    def sweep(self, now_ms: int) -> int:
        """Let fall out what is a minute old; return the time that it is here, which never goes back."""
        entries = self._entries
        if not entries:
            return now_ms
        newest = entries[-1][0]
        if newest - now_ms >= WINDOW_MS:
            entries.clear()
            self.used = 0
            return now_ms
        now_ms = max(now_ms, newest)
        while entries and entries[0][0] <= now_ms - WINDOW_MS:  # bounded by the entries
            self.used -= entries.popleft()[1]
        return now_ms

    def wait_ms(self, now_ms: int, limit: int, units: int) -> int:
        """Return how long until so many units have room: 0 for now, NEVER for more than the limit.

        Args:
            now_ms: as `sweep` returned it.
        """
        too_many = self.used + units - limit
        if too_many <= 0:
            return 0
        for at_ms, freed in self._entries:
            too_many -= freed
            if too_many <= 0:
                return at_ms + WINDOW_MS - now_ms
        return NEVER

    def add(self, now_ms: int, units: int) -> None:
        """Use units, whether or not there is room.

        Args:
            now_ms: as `sweep` returned it.
        """
        if not units:
            return
        entries = self._entries
        if entries and entries[-1][0] // SLOT_MS == now_ms // SLOT_MS:
            entries[-1][0] = now_ms
            entries[-1][1] += units
        else:
            entries.append([now_ms, units])
        self.used += units

    def give_back(self, at_ms: int, units: int) -> None:
        """Take back what was used at a time and turned out not to be; what has fallen out stays out."""
        slot = at_ms // SLOT_MS
        for number, entry in enumerate(self._entries):
            if entry[0] // SLOT_MS == slot:
                given = min(entry[1], units)
                entry[1] -= given
                self.used -= given
                if not entry[1]:
                    del self._entries[number]
                return

    def full_again_ms(self, now_ms: int) -> int:
        """Return how long until nothing is used, if nothing more is."""
        return self._entries[-1][0] + WINDOW_MS - now_ms if self._entries else 0
