"""Reloading: a changed configuration is read, checked and put in force while requests are served.

    file changes ──▶ stands still for a look ─┐
    SIGHUP ───────────────────────────────────┴▶ thread: read, check ──▶ event loop: one step, in force
                                                       │
                                                       └▶ a mistake: one line of the log, nothing changes

Beside the file of settings the operator's catalogue is watched. A file that was there and is gone is a
mistake, not a configuration that says nothing. What a variable says cannot change while a process lives.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Final

from gateway.settings import Settings, SettingsError
from gateway.settings.live import merged
from otel.metrics import Reading, gauge

log = logging.getLogger("spanbill.config")

LOOK_S: Final = 1.0
"""How often files are looked at."""

Stamp = tuple[int, int, int, int] | None
"""Time of change of a file's content and of its inode (a copy may keep the first), inode and size; None where
there is no file."""


class Source:
    """Where the configuration stands, and what was read of it last; for one thread at a time.

    A supervisor looks and keeps one, so that workers hear of a change together, and one that it starts later
    begins with what holds by then.

    Args:
        load: reads all settings; raises SettingsError.
        path: the file of settings, which need not be there.
        seen: its stamp before `started` was read.

    Attributes:
        settings: in force.
        fault: why what was read last is not; None where it is.
    """

    def __init__(self, started: Settings, load: Callable[[], Settings], path: Path, seen: Stamp) -> None:
        self.settings = started
        self.fault: str | None = None
        self._started = started
        self._load = load
        self._path = path
        self._there = seen is not None
        self._catalog = started.prices.catalog
        self._seen = self._before = (seen, stamp_of(self._catalog))

    def settled(self) -> bool:
        """Say whether a file changed, and stands still since the last look: nobody is writing it."""
        now = self._stamps()
        still, self._before = now == self._before, now
        return still and now != self._seen

    def read(self) -> tuple[Settings, tuple[str, ...]]:
        """Return what is to be in force, and the names of changed keys that need a restart.

        Raises:
            SettingsError: it cannot be used.
        """
        stamp = stamp_of(self._path)
        self._seen = self._before = (stamp, stamp_of(self._catalog))
        if self._there and stamp is None:
            raise SettingsError(f"{self._path}: the file is gone")
        found = merged(self._started, self._load())
        self._there = stamp is not None
        self._catalog = found.settings.prices.catalog
        self._seen = self._before = (stamp, stamp_of(self._catalog))
        return found.settings, found.waiting

    def renew(self, check: Callable[[Settings], object]) -> None:
        """Read and check it, in a process that serves nothing; what cannot be used leaves all as it was."""
        try:
            settings, _ = self.read()
            check(settings)
        except SettingsError as fault:
            self.fault = str(fault)
        else:
            self.settings, self.fault = settings, None

    def _stamps(self) -> tuple[Stamp, Stamp]:
        return stamp_of(self._path), stamp_of(self._catalog)


class Reloading:
    """Follows a source for one process that serves.

    Args:
        take: checks settings beside the event loop, and puts them in force; raises SettingsError.
        counted: told of each result, `taken` or `refused`.
        looks: at files, by itself; else it is told.
    """

    def __init__(
        self,
        source: Source,
        take: Callable[[Settings], Awaitable[None]],
        counted: Callable[[str], None],
        *,
        looks: bool,
    ) -> None:
        self._source = source
        self._looks = looks
        self._take = take
        self._counted = counted
        self._asked = asyncio.Event()

    def ask(self) -> None:
        """Have the configuration read now; in the event loop's thread."""
        self._asked.set()

    async def run(self) -> None:
        """Look, for as long as the gateway lives."""
        while True:  # ends with the gateway
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._asked.wait()
            if self._asked.is_set():
                self._asked.clear()
                await self._reload("it was asked for")
            elif self._looks and await asyncio.to_thread(self._source.settled):
                await self._reload("a file changed")

    async def _reload(self, why: str) -> None:
        source = self._source
        try:
            settings, waiting = await asyncio.to_thread(source.read)
            await self._take(settings)
        except SettingsError as fault:
            source.fault = str(fault)
            self._counted("refused")
            log.error(
                "the changed configuration cannot be used; the one before stays in force",
                extra={"why": str(fault), "because": why},
            )
            return
        source.settings, source.fault = settings, None
        self._counted("taken")
        log.info("the configuration is in force", extra={"because": why})
        if waiting:
            log.warning("changed settings need a restart", extra={"keys": list(waiting)})

    def health(self) -> Iterable[Reading]:
        """Yield what the metrics say of it."""
        usable = int(self._source.fault is None)
        text = "1 while the configuration that was read last is in force."
        yield gauge("llm_gateway_config_usable", text, usable, least=True)


def stamp_of(path: Path | None) -> Stamp:
    """Return what tells one version of a file from another."""
    if path is None:
        return None
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size
