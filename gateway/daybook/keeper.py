"""Keeper: the two threads that all files of a daybook have: one writes, one packs and removes.

They are two because to pack a large day takes seconds, and a queue must not run over meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Final, Protocol

FLUSH_S: Final = 0.1
TEND_S: Final = 60.0
STOP_S: Final = 2.0
"""How long the stop waits for the last lines; a file that is being packed stays as it is."""


class Kept(Protocol):
    """Files by days, whatever is in them."""

    def flush(self) -> None:
        """Write what is queued."""
        ...

    def tend(self) -> None:
        """Pack and remove what is due."""
        ...

    def close(self) -> None:
        """Give up what is held, after the last flush."""
        ...


class Keeper:
    """Runs what is kept in the background; without anything kept it has no thread."""

    def __init__(self, kept: Sequence[Kept]) -> None:
        self._kept = tuple(kept)
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin to write and to tend."""
        if not self._kept:
            return
        for name, work, every_s in (("log-files", self._flush, FLUSH_S), ("log-keeping", self._tend, TEND_S)):
            thread = threading.Thread(target=self._run, args=(work, every_s), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """Write what is queued and end; safe to call without a start."""
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=STOP_S)
        if any(thread.is_alive() for thread in self._threads):
            return  # a disk that hangs: what its thread has in hand is not to be taken from it
        self._flush()
        for kept in self._kept:
            kept.close()

    def _run(self, work: Callable[[], None], every_s: float) -> None:
        work()
        while not self._stop.wait(every_s):  # ends with stop()
            work()

    def _flush(self) -> None:
        for kept in self._kept:
            kept.flush()

    def _tend(self) -> None:
        for kept in self._kept:
            kept.tend()
