"""Shared metrics: whichever worker is asked, `/metrics` tells the whole gateway's counts; none ever falls.

    worker 0 ──publish──▶ │ place 0 │                 memory that the supervisor made before it forked
    worker 1 ──publish──▶ │ place 1 │ ──collect──▶ sum of all places, in whoever is asked

Only what was published is told, also of the worker that is asked: so a later page is never behind an earlier
one, whoever answered. A worker that takes the place of a dead one goes on from that one's counts. They are
as old as PUBLISH_S when a process is killed: that much of its last counts is missing here, and in no bill.

prometheus_client's own multi-process mode keeps one file of doubles for each process and value class and
would double each count; this way counts stay the exact integers that they are, and nothing is left on a disk.
"""

from __future__ import annotations

import logging
import mmap
import pickle
import struct
from collections.abc import Callable, Iterable
from typing import Final
from zlib import crc32

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from otel.metrics import Metrics, State

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


class SharedMetrics(Collector):
    """What one worker publishes, and what it tells of all.

    Args:
        monotonic_s: seconds, the same clock in all workers.
    """

    def __init__(self, metrics: Metrics, board: Board, place: int, monotonic_s: Callable[[], float]) -> None:
        self._metrics = metrics
        self._board = board
        self._place = place
        self._monotonic_s = monotonic_s
        self._publish_at = 0.0
        self._too_much = False
        before = self._read(place)
        if before is not None:
            metrics.add(before[1], gauges=False)

    def tend(self) -> None:
        """Publish, if it is time to; call it each PUBLISH_S."""
        if self._monotonic_s() >= self._publish_at:
            self.publish()

    def publish(self) -> None:
        """Let the others know."""
        began = self._monotonic_s()
        fits = self._board.write(self._place, pickle.dumps((began, self._metrics.state())))
        if not fits and not self._too_much:
            log.error("too many series: this worker's counts stand still on the page")
        self._too_much = not fits
        now = self._monotonic_s()
        self._publish_at = now + (now - began) * SHARE

    def collect(self) -> Iterable[Metric]:
        """Yield every family, with the counts of all workers."""
        self.publish()
        now = self._monotonic_s()
        whole = Metrics()
        for place in range(self._board.places):
            found = self._read(place)
            if found is not None:
                whole.add(found[1], gauges=now - found[0] < FRESH_S)
        yield from whole.collect()

    def _read(self, place: int) -> tuple[float, State] | None:
        data = self._board.read(place)
        if data is None:
            return None
        found: tuple[float, State] = pickle.loads(data)  # noqa: S301  # by our own kin, in memory of ours
        return found
