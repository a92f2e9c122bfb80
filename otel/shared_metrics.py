"""Shared metrics: whichever worker is asked, `/metrics` tells the whole gateway's counts; none ever falls.

    worker 0 ──publish──▶ │ place 0 │                 memory that was made before the first fork
    worker 1 ──publish──▶ │ place 1 │ ──collect──▶ sum of all places, in whoever is asked

Only what was published is told, also of the worker that is asked: so a later page is never behind an earlier
one, whoever answered. A worker that takes the place of a dead one carries that one's counts along, which are
as old as PUBLISH_S if it was killed, until they are in the totals (`otel.totals`) and exact again.

prometheus_client's own multi-process mode keeps one file of doubles for each process and value class and
would double each count; this way counts stay the exact integers that they are, and nothing is left on a disk.
"""

from __future__ import annotations

import logging
import mmap
import pickle
import struct
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple
from zlib import crc32

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from otel.metrics import Metrics, State, bills_only, without_bills
from otel.totals import Totals

log = logging.getLogger("spanbill.metrics")

PUBLISH_S: Final = 0.25
"""How old what is told of another worker may be, in seconds."""
SHARE: Final = 50
"""Publishing takes at most one part in so many of a worker's time: with very many series it is rarer."""
FRESH_S: Final = 5.0
"""A worker that has not published for so long does not count in gauges: it is dead, or as good as."""
STATE_BYTES_MAX: Final = 8 * 1024 * 1024
"""More than 50,000 series; memory that is never written takes none."""
READS_MAX: Final = 10
"""Tries to read a place beside its writer, who would have to publish twice meanwhile."""
_HEAD: Final = struct.Struct("<QQI")


class Board:
    """Memory with a place for each worker; make it before the first fork.

    A place has two halves, and the older one is written: a writer that dies in the middle leaves the other.

    Args:
        bytes_max: how much one worker may publish.
    """

    def __init__(self, places: int, bytes_max: int = STATE_BYTES_MAX) -> None:
        self.places = places
        self._bytes_max = bytes_max
        self._half = _HEAD.size + bytes_max
        self._memory = mmap.mmap(-1, places * 2 * self._half)

    def write(self, place: int, data: bytes) -> bool:
        """Replace what stands at `place`, whose only writer is the caller; False if it is too much."""
        if len(data) > self._bytes_max:
            return False
        number = self._newest(place)[0] + 1
        at = self._at(place, number)
        self._memory[at + _HEAD.size : at + _HEAD.size + len(data)] = data
        self._memory[at : at + _HEAD.size] = _HEAD.pack(number, len(data), _checksum(number, data))
        return True

    def read(self, place: int) -> bytes | None:
        """Return what was last written at `place`, None if that is nothing."""
        number, data = 0, b""
        for _ in range(READS_MAX):
            number, data, torn = self._newest(place)
            if not torn:
                break  # a half that stays torn was its writer's last word; the other one counts
        return data if number else None

    def _at(self, place: int, number: int) -> int:
        return (2 * place + number % 2) * self._half

    def _newest(self, place: int) -> tuple[int, bytes, bool]:
        """Return the newer half's number and content, and whether a half is being written."""
        number, data, torn = 0, b"", False
        for half in (0, 1):
            at = self._at(place, half)
            found, length, checksum = _HEAD.unpack_from(self._memory, at)
            if not found:
                continue
            content = self._memory[at + _HEAD.size : at + _HEAD.size + min(length, self._bytes_max)]
            if _checksum(found, content) != checksum:
                torn = True
            elif found > number:
                number, data = found, content
        return number, data, torn


def _checksum(number: int, data: bytes) -> int:
    return crc32(data, number & 0xFFFFFFFF)


class _Published(NamedTuple):
    """What stands at a worker's place.

    Args:
        writer: whose bills `state` counts.
        carried: by dead writer what was last told of its bills here.
        totals: bills in them, and the pickled `Totals`.
    """

    at_s: float
    writer: str
    state: State
    carried: dict[str, State]
    totals: tuple[int, bytes] | None


class SharedMetrics(Collector):
    """What one worker publishes, and what it tells of all.

    Args:
        monotonic_s: seconds, the same clock in all workers.
        writer: the name of this process's journal writer.
        totals: what is known here of writers that are gone; of several workers' the largest counts.
    """

    def __init__(
        self,
        metrics: Metrics,
        board: Board,
        place: int,
        monotonic_s: Callable[[], float],
        writer: str,
        totals: Callable[[], Totals | None] = lambda: None,
    ) -> None:
        self._metrics = metrics
        self._board = board
        self._place = place
        self._monotonic_s = monotonic_s
        self._writer = writer
        self._totals = totals
        self._packed: tuple[Totals | None, tuple[int, bytes] | None] = (None, None)
        self._publish_at = 0.0
        self._too_much = False
        self._carried: dict[str, State] = {}
        before = self._read(place)
        if before is not None:
            metrics.add(without_bills(before.state), gauges=False)
            gone = self._gone(self._all())
            self._packed = (None, before.totals)
            self._carried = {
                name: state
                for name, state in (before.carried | {before.writer: before.state}).items()
                if gone is None or name not in gone.writers
            }

    def tend(self) -> None:
        """Publish, if it is time to; call it each PUBLISH_S."""
        if self._monotonic_s() >= self._publish_at:
            self.publish()

    def publish(self) -> None:
        """Let the others know."""
        began = self._monotonic_s()
        published = (began, self._writer, self._metrics.state(), self._carried, self._packed_totals())
        fits = self._board.write(self._place, pickle.dumps(published))
        if not fits and not self._too_much:
            log.error("too many series: this worker's counts stand still on the page")
        self._too_much = not fits
        now = self._monotonic_s()
        self._publish_at = now + (now - began) * SHARE

    def collect(self) -> Iterable[Metric]:
        """Yield every family, with the counts of all workers."""
        yield from self.whole().collect()

    def whole(self) -> Metrics:
        """Return the counts of all workers, and of those that are gone."""
        self.publish()
        now = self._monotonic_s()
        places = self._all()
        gone = self._gone(places)
        known = frozenset() if gone is None else gone.writers
        whole = Metrics()
        if gone is not None:
            whole.add(gone.state, gauges=False)
        for found in places:
            state = without_bills(found.state) if found.writer in known else found.state
            whole.add(state, gauges=now - found.at_s < FRESH_S)
            for writer, carried in found.carried.items():
                if writer not in known:
                    whole.add(bills_only(carried), gauges=False)
        return whole

    def _packed_totals(self) -> tuple[int, bytes] | None:
        """Return this worker's totals, or those that its predecessor had; packed once."""
        totals = self._totals()
        if totals is not None and totals is not self._packed[0]:
            self._packed = (totals, (totals.bills, pickle.dumps(totals)))
        return self._packed[1]

    def _all(self) -> list[_Published]:
        return [found for place in range(self._board.places) if (found := self._read(place)) is not None]

    @staticmethod
    def _gone(places: list[_Published]) -> Totals | None:
        packed = max((found.totals for found in places if found.totals is not None), default=None)
        if packed is None:
            return None
        totals: Totals = pickle.loads(packed[1])  # noqa: S301  # by our own kin, in memory of ours
        return totals

    def _read(self, place: int) -> _Published | None:
        data = self._board.read(place)
        if data is None:
            return None
        return _Published(*pickle.loads(data))  # noqa: S301  # the same
