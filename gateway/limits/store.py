"""Store: what is asked of whoever counts, and what it says; the same questions have the same answers.

A request asks once for all that it needs, and gets all of it or nothing. Its id makes it one request however
often it is asked for: once it is in, a repeated question has the first one's answer and uses nothing more; a
refusal used nothing, and is not remembered. When its bill is known it is settled, once: what it did not use
is given back where it was used, what it used beyond counts from then on, and its places are free.

A place is on lease: it comes back when its owner has not said for `lease_ms` that it still needs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal
from typing import Protocol as Interface

import msgspec

Unit = Literal["requests", "tokens", "concurrent"]

PLACE_WAIT_MS: Final = 1_000
"""How long one is told to wait for a place: when one will be free nobody knows."""
RECORD_MS: Final = 2 * 3600 * 1000
"""How long an open request is remembered; of one that goes on longer nothing is given back."""
COUNT_MAX: Final = 10**12
"""Most units of one charge, and the largest limit: sums stay far within what Lua counts exactly."""


class Charge(msgspec.Struct, frozen=True, kw_only=True):
    """What one request needs of one counter.

    Args:
        key: the counter's name; of rule, unit and whose it is.
        units: a place is 1.
        limit: of the counter: units within a minute, or places at a time.
    """

    key: str
    unit: Unit
    units: int
    limit: int


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """May a request in? Its id is of the gateway's own making."""

    request_id: str
    charges: tuple[Charge, ...]


class Standing(msgspec.Struct, frozen=True, array_like=True):
    """How a counter stands after the answer.

    Args:
        used: units, those of the asking request included if it was let in.
        wait_ms: how long until there is room for what was asked; 0 for now, `window.NEVER` for never.
        full_again_ms: how long until all of the limit is there again, if nothing more is used.
    """

    used: int
    wait_ms: int
    full_again_ms: int


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """Whether a request is let in, and how its counters stand, in the order of its charges."""

    admitted: bool
    standings: tuple[Standing, ...]


class Settle(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a request.

    Args:
        charges: those it asked for.
        used: what it used of each in the end, where that is another number.
    """

    request_id: str
    charges: tuple[Charge, ...]
    used: tuple[int, ...]


class Away(Exception):
    """The store cannot be asked now; the message says why, for the operator."""


class SharedStore(Interface):
    """A store that several processes share: asked in one thread, and it may block.

    Every method may raise Away; what was asked may then have been done, or not.
    """

    def run(
        self, settles: Sequence[Settle], beats: Sequence[tuple[str, tuple[str, ...]]], asks: Sequence[Ask]
    ) -> list[Answer]:
        """Settle, renew the places of open requests (id, keys), and answer the questions, in this order."""
        ...

    def look(self, charges: Sequence[Charge]) -> list[Standing]:
        """Return how counters stand, using nothing."""
        ...

    def close(self) -> None:
        """Let go of connections and files; another `run` takes them up again."""
        ...
