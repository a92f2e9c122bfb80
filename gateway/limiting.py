"""Limiting: the limits of one process, put together from the settings; without rules there is nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Final

from gateway.admission.limit_rules import Rule, RuleBook
from gateway.admission.limits import LimitGuard
from gateway.limits.desk import Desk, OwnDesk, SharedDesk
from gateway.limits.memory import MemoryStore
from gateway.limits.shared import SCHEMES, RedisLimits
from gateway.limits.sqlite import SqliteLimits
from gateway.limits.store import SharedStore
from gateway.metering.estimate import input_tokens
from gateway.settings import Settings, SettingsError
from otel.metrics import Reading, counter, gauge

log = logging.getLogger("spanbill.limits")

FILE: Final = "limits.db"
BEATS_A_LEASE: Final = 3
_TOLD: Final = {
    "open": "requests go on without limits",
    "closed": "requests that have limits are refused",
}


class Limiting:
    """The guard, and what is behind it.

    Args:
        limited: told of each refusal: (rule, unit).

    Raises:
        SettingsError: the rules, or the address of the store, cannot be used.
    """

    def __init__(self, settings: Settings, limited: Callable[[str, str], None]) -> None:
        self._settings = settings
        self._limited = limited
        self.desk: Desk | None = None
        self.guard: LimitGuard | None = None
        book = rules_of(settings)
        if book:
            self.guard = self._open(book)

    def _open(self, book: RuleBook) -> LimitGuard:
        limits = self._settings.limits
        self.desk = _desk(self._settings)
        return LimitGuard(
            book,
            self.desk,
            when_unavailable=limits.when_unavailable,
            input_tokens=input_tokens,
            assumed_output_tokens=limits.assumed_output_tokens,
            limited=self._limited,
            now_unix_ms=_unix_ms,
        )

    async def ready(self, book: RuleBook) -> None:
        """Have counters for rules that are about to hold; where there were none before, they begin now."""
        if book and self.guard is None:
            self.guard = self._open(book)
            await self.start()

    def under(self, settings: Settings, book: RuleBook) -> LimitGuard | None:
        """Return the guard for these rules, which `ready` was told of; None without any.

        Counters stay: what a rule of the same name has counted is counted on.
        """
        if not book or self.guard is None:
            return None
        return self.guard.under(book, settings.limits.assumed_output_tokens)

    async def start(self) -> None:
        """Begin."""
        if self.desk is not None:
            await self.desk.start()

    def stop(self) -> None:
        """End, after the last request."""
        if self.desk is not None:
            self.desk.stop()

    def health(self) -> Iterable[Reading]:
        """Yield what the metrics say of it."""
        if self.desk is not None and self.guard is not None:
            yield gauge("llm_gateway_limits_up", "1 while limits are counted.", int(self.desk.up), least=True)
            text = "Requests let in while their limits could not be counted."
            yield counter("llm_gateway_limits_uncounted", text, self.guard.uncounted)


def rules_of(settings: Settings) -> RuleBook:
    """Return the rules of the configuration, wholly checked; no store is opened.

    Raises:
        SettingsError: two have one id, or the address of their store cannot be used.
    """
    try:
        book = RuleBook(_rules(settings))
    except ValueError as fault:
        raise SettingsError(f"limits.rules: {fault}") from fault
    if book:
        _store(settings)
    return book


def _rules(settings: Settings) -> list[Rule]:
    rules = [Rule(**rule.model_dump()) for rule in settings.limits.rules]
    for key in settings.keys:
        own = {unit: limit for unit, limit in key.limits.model_dump().items() if limit is not None}
        if own:
            rules.append(Rule(id=f"key:{key.id}", key=key.id, **own))
    return rules


def _desk(settings: Settings) -> Desk:
    limits, store = settings.limits, _store(settings)
    if store is None:
        if settings.server.workers > 1:
            log.warning("limits are counted by each worker for itself: limits.backend is `memory`")
        return OwnDesk(MemoryStore(_monotonic_ms))
    return SharedDesk(
        store,
        wait_s=limits.wait_s,
        beat_s=limits.lease_s / BEATS_A_LEASE,
        told=_TOLD[limits.when_unavailable],
    )


def _store(settings: Settings) -> SharedStore | None:
    """Return what counts for all; it is opened when it is first asked. None: each process for itself."""
    limits, lease_ms = settings.limits, round(settings.limits.lease_s * 1000)
    backend = limits.backend.get_secret_value() or ("sqlite" if settings.server.workers > 1 else "memory")
    if backend == "memory":
        return None
    if backend == "sqlite":
        return SqliteLimits(settings.journal.directory.parent / FILE, _monotonic_ms, lease_ms)
    if not backend.startswith(tuple([f"{scheme}://" for scheme in SCHEMES])):
        raise SettingsError("limits.backend is not `memory`, `sqlite` or `redis://host:port/database`")
    try:
        return RedisLimits(backend, lease_ms)
    except ValueError as fault:
        raise SettingsError(f"limits.backend: {fault}") from fault


def _monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000


def _unix_ms() -> int:
    return time.time_ns() // 1_000_000
