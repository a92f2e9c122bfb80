"""Behind: what comes after the journal: delivery, the ledger and retention.

Each runs in a thread of its own, and of several processes one at a time: of a gateway that serves the one
that `gateway.apart` makes. Retention goes by what the others say that they have; they stop after it, with
the journal's last bills.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import httpx

from gateway.core.errors import CannotStartError
from gateway.ledger.expiry import Expiry
from gateway.ledger.follower import Follower
from gateway.ledger.opening import first_look, passed_in, store_at
from gateway.ledger.store import LedgerNewer, Store
from gateway.recorder import starting
from gateway.selfcheck import LOADED
from gateway.settings import Settings, SettingsError
from otel.journal.archive import Archive
from otel.journal.cursor import Cursor
from otel.journal.files import Files
from otel.journal.reader import Reader
from otel.journal.removal import TURN_S, Remover, Retention
from otel.journal.turn import Lock
from otel.metrics import Reading, counter, gauge
from otel.otlp import EndpointError, endpoint_from_env
from otel.shipper import Shipper
from otel.totals import Totals

SHIPPER: Final = "otlp"
"""The name of the shipper's cursor."""
LEDGER: Final = "ledger"
"""What retention calls the ledger."""
STOP_REMOVING_S: Final = 2.0
"""How long shutdown waits for a segment that is being removed; it may be left half-way."""
STOP_FOLLOWING_S: Final = 5.0
"""How long shutdown waits for the ledger to have the last bills; the rest is taken up by the next start."""
STOP_SHIPPING_S: Final = 10.0
"""How long shutdown waits for the last bills to be delivered; the rest is delivered after the next start."""


class Behind:
    """Shipper, ledger and retention of one journal folder.

    Attributes:
        cursor: where the shipper notes how far it is; None where nothing is delivered.

    Raises:
        SettingsError: the Collector's address or the ledger's cannot be used.
        CannotStartError: a newer version made the ledger.
    """

    def __init__(self, settings: Settings, files: Files, environ: Mapping[str, str]) -> None:
        self._shipper = _shipper(settings, files, environ)
        self.cursor = None if self._shipper is None else cursor_of(settings)
        self._follower = _follower(settings, files)
        self._remover = _remover(settings, files, shipped=self._shipper is not None)

    def start(self) -> None:
        """Begin, with the journal open."""
        if self._shipper is not None:
            self._shipper.start()
        self._follower.start()
        if self._remover is not None:
            self._remover.start()

    def stop(self) -> None:
        """End, with the journal closed."""
        if self._remover is not None:
            self._remover.stop(STOP_REMOVING_S)
        self._follower.stop(STOP_FOLLOWING_S)
        if self._shipper is not None:
            self._shipper.stop(STOP_SHIPPING_S)

    def totals(self) -> Totals | None:
        """Return what bills of writers that are gone come to, as this process's ledger has it."""
        return self._follower.stats.totals

    def health(self) -> Iterable[Reading]:
        """Yield what the metrics say of it."""
        yield from _ledger_health(self._follower)
        if self._remover is not None:
            removed, archive = self._remover.removed, self._remover.archive
            if archive is not None:
                yield counter("llm_gateway_journal_archived", "Segments with a new copy.", archive.kept)
            yield counter("llm_gateway_journal_removed", "Segments that retention removed.", removed)
        if self._shipper is not None:
            yield from _export_health(self._shipper)


def cursor_of(settings: Settings) -> Path:
    """Return where the shipper's cursor stands."""
    return settings.journal.directory / "cursors" / f"{SHIPPER}.json"


def _shipper(settings: Settings, files: Files, environ: Mapping[str, str]) -> Shipper | None:
    try:
        endpoint = endpoint_from_env(environ)
        if endpoint is None:
            return None
        verify = _verify(endpoint.certificate)
    except EndpointError as fault:
        raise SettingsError(str(fault)) from fault
    except OSError as fault:
        raise SettingsError(f"OTEL_EXPORTER_OTLP_CERTIFICATE cannot be used: {fault}") from fault
    directory = settings.journal.directory
    with starting(directory):
        cursor = Cursor(cursor_of(settings), files)
    return Shipper(
        Reader(directory, cursor, files),
        cursor,
        endpoint,
        lead=Lock(directory / "cursors" / f"{SHIPPER}.lock"),
        quarantine=directory / "quarantine",
        files=files,
        client=httpx.Client(timeout=endpoint.timeout_s, follow_redirects=False, verify=verify),
        jitter=random.random,
        lines_max=settings.telemetry.ship_batch_lines,
        interval_s=settings.telemetry.ship_interval_s,
    )


def _verify(certificate: str | None) -> Any:
    if certificate is None:
        return True
    return httpx.create_ssl_context(verify=certificate)


def ledger_of(settings: Settings) -> Store:
    """Return the ledger that the settings name.

    Raises:
        SettingsError: they name none that we know.
    """
    try:
        return store_at(settings.ledger.url.get_secret_value(), settings.journal.directory)
    except ValueError as fault:
        raise SettingsError(str(fault)) from fault


def _follower(settings: Settings, files: Files) -> Follower:
    store = ledger_of(settings)
    try:
        first_look(store)
    except LedgerNewer as fault:
        raise CannotStartError(str(fault)) from fault
    directory = settings.journal.directory
    lead = Lock(directory / "cursors" / f"{LEDGER}.lock")
    days = settings.ledger.retention_days
    if days is not None and days < (settings.journal.retention_days or 0):
        raise SettingsError("ledger.retention_days: rows would go before the journal's bills do")
    expiry = None if days is None else Expiry(days, time.time_ns)
    return Follower(directory, store, lead=lead, files=files, jitter=random.random, expiry=expiry)


def _remover(settings: Settings, files: Files, *, shipped: bool) -> Remover | None:
    retention = Retention(days=settings.journal.retention_days, bytes_max=settings.journal.retention_bytes)
    if retention == Retention():
        if settings.journal.archive is not None:
            raise SettingsError("journal.archive: set journal.retention_days or retention_bytes, too")
        return None
    consumers = frozenset({SHIPPER} if shipped else ())
    directory = settings.journal.directory
    ledger = ledger_of(settings)
    return Remover(
        directory,
        retention,
        consumers=consumers,
        asked={LEDGER: lambda: passed_in(ledger, directory, files)},
        lead=Lock(directory / "removing"),
        archive=_archive(settings, files),
        files=files,
    )


def _archive(settings: Settings, files: Files) -> Archive | None:
    journal = settings.journal
    if journal.archive is None:
        return None
    if journal.archive.resolve() == journal.directory.resolve():
        raise SettingsError("journal.archive: the archive needs a folder of its own")
    if (journal.retention_days or 0) > (journal.archive_retention_days or sys.maxsize):
        raise SettingsError("journal.archive_retention_days: copies would go before their segments do")
    return Archive(
        journal.archive,
        days=journal.archive_retention_days,
        files=files,
        pause=lambda: time.sleep(TURN_S),
    )


def _ledger_health(follower: Follower) -> Iterable[Reading]:
    stats = follower.stats
    following = int(stats.last_error is None)
    loaded = int(stats.totals is not None)
    yield counter("llm_gateway_ledger_bills", "Bills that became rows of the ledger.", stats.bills)
    yield gauge(LOADED, "1 once counters hold what earlier runs counted.", loaded, most=True)
    yield counter("llm_gateway_ledger_conflicts", "Second, different bills of one id.", stats.conflicts)
    yield counter("llm_gateway_ledger_refused", "Bills that the ledger cannot hold.", stats.refused)
    if follower.expiry is not None:
        expired = follower.expiry.expired
        yield counter("llm_gateway_ledger_expired", "Bills whose rows went, as they were old.", expired)
    yield counter("llm_gateway_ledger_rebuilt", "Times a broken ledger was made again.", stats.rebuilt)
    yield gauge("llm_gateway_ledger_following", "1 while the ledger can be written.", following, least=True)
    yield gauge("llm_gateway_ledger_pending_bytes", "Durable and not yet in the ledger.", stats.pending_bytes)
    yield gauge("llm_gateway_ledger_lag_seconds", "Since the ledger last had all bills.", stats.behind_s)


def _export_health(shipper: Shipper) -> Iterable[Reading]:
    stats = shipper.stats
    yield counter("llm_gateway_export_bills", "Bills that the Collector accepted.", stats.shipped)
    yield counter("llm_gateway_export_quarantined", "Bills that it refused for good.", stats.quarantined)
    yield counter("llm_gateway_journal_damaged", "Stretches of the journal that are no lines.", stats.damaged)
    yield gauge("llm_gateway_export_pending_bytes", "Durable and not yet accepted.", stats.pending_bytes)
