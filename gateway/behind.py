"""Behind: what comes after the journal, beside requests: delivery, the ledger, retention, and log files.

Each runs in a thread of its own, and of several workers one at a time. Retention goes by what the others say
that they have; they stop after it, with the journal's last bills.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import httpx

from gateway.capture.capture import Captures
from gateway.capture.redaction import Header, Redactor
from gateway.capture.store import CaptureStore
from gateway.core.errors import CannotStartError
from gateway.daybook.daylog import DayLog
from gateway.daybook.keeper import Keeper
from gateway.daybook.keeping import naming_of
from gateway.ledger.asking import Asker
from gateway.ledger.expiry import Expiry
from gateway.ledger.follower import Follower
from gateway.ledger.opening import first_look, passed_in, store_at
from gateway.ledger.store import LedgerNewer, Store
from gateway.recorder import starting
from gateway.selfcheck import LOADED, SelfCheck
from gateway.settings import Settings, SettingsError
from gateway.settings.logs import DebugSettings, LogFileSettings
from otel.journal.archive import Archive
from otel.journal.cursor import Cursor
from otel.journal.files import Files
from otel.journal.reader import Reader
from otel.journal.removal import TURN_S, Remover, Retention
from otel.journal.turn import Lock
from otel.metrics import Metrics, Reading, counter, gauge
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
    """Shipper, ledger and retention of one journal folder, and the files of the logs.

    Args:
        operator: whether the headers of a request show the operator's key.

    Attributes:
        usage: takes a line per bill; None without a path.
        errors: takes a line per refusal, error of a provider and fault; None without a path.
        captures: chooses requests whose content is kept; None where nobody's is.

    Raises:
        SettingsError: the Collector's address or the ledger's cannot be used.
        CannotStartError: a newer version made the ledger.
    """

    def __init__(
        self,
        settings: Settings,
        files: Files,
        environ: Mapping[str, str],
        *,
        operator: Callable[[Sequence[Header]], bool] = lambda _: False,
    ) -> None:
        self._settings = settings
        self._files = files
        self._shipper = _shipper(settings, files, environ)
        self._follower = _follower(settings, files)
        self.asker = Asker(lambda: _ledger(settings))
        self._remover = _remover(settings, files, shipped=self._shipper is not None)
        self.usage = _day_log(settings.logging.usage, "usage")
        self.errors = _day_log(settings.logging.errors, "errors")
        self._logs = [log for log in (self.usage, self.errors) if log is not None]
        self._store = _capture_store(settings.logging.debug)
        self.captures = _captures(settings, self._store, operator)
        self._keeper = Keeper(self._logs if self._store is None else [*self._logs, self._store])

    def start(self) -> None:
        """Begin, with the journal open."""
        self._keeper.start()
        if self._shipper is not None:
            self._shipper.start()
        self._follower.start()
        if self._remover is not None:
            self._remover.start()

    def stop(self) -> None:
        """End, with the journal closed."""
        self.asker.close()
        if self._remover is not None:
            self._remover.stop(STOP_REMOVING_S)
        self._follower.stop(STOP_FOLLOWING_S)
        if self._shipper is not None:
            self._shipper.stop(STOP_SHIPPING_S)
        self._keeper.stop()

    def totals(self) -> Totals | None:
        """Return what bills of writers that are gone come to, as this process's ledger has it."""
        return self._follower.stats.totals

    def check(self, metrics: Callable[[], Metrics]) -> SelfCheck:
        """Return the check of journal, ledger, delivery, and the counters that `metrics` returns."""
        directory = self._settings.journal.directory
        cursor = None if self._shipper is None else directory / "cursors" / f"{SHIPPER}.json"
        return SelfCheck(directory, self._files, _ledger(self._settings), cursor, metrics)

    def health(self) -> Iterable[Reading]:
        """Yield what the metrics say of it."""
        yield from _ledger_health(self._follower)
        if self._logs:
            dropped = sum([log.dropped for log in self._logs])
            yield counter("llm_gateway_log_file_lines_dropped", "Lines that no log file has.", dropped)
        if self._store is not None:
            store = self._store
            yield counter("llm_gateway_debug_captures", "Requests whose content was kept.", store.written)
            yield counter("llm_gateway_debug_captures_dropped", "Captures without room.", store.dropped)
        if self._remover is not None:
            removed, archive = self._remover.removed, self._remover.archive
            if archive is not None:
                yield counter("llm_gateway_journal_archived", "Segments with a new copy.", archive.kept)
            yield counter("llm_gateway_journal_removed", "Segments that retention removed.", removed)
        if self._shipper is not None:
            yield from _export_health(self._shipper)


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
        cursor = Cursor(directory / "cursors" / f"{SHIPPER}.json", files)
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


def _day_log(settings: LogFileSettings, stem: str) -> DayLog | None:
    if settings.path is None:
        return None
    naming = naming_of(settings.path, stem)
    return DayLog(naming, days=settings.retention_days, bytes_max=settings.bytes_max)


def _capture_store(settings: DebugSettings) -> CaptureStore | None:
    """Return the store of captures, also where no key is chosen any more: what is there still grows old."""
    if settings.path is None:
        return None
    try:
        return CaptureStore(
            settings.path,
            Redactor(settings.redact_fields),
            days=settings.retention_days,
            per_day=settings.captures_per_day,
            bytes_max=settings.bytes_max,
            body_bytes_max=settings.capture_bytes_max,
        )
    except OSError as fault:
        raise SettingsError(
            f"logging.debug.path: {settings.path} cannot be read: {fault.strerror}"
        ) from fault


def _captures(
    settings: Settings, store: CaptureStore | None, operator: Callable[[Sequence[Header]], bool]
) -> Captures | None:
    debug = settings.logging.debug
    if store is None or not (debug.keys or debug.header_keys or settings.admin.key is not None):
        return None
    return Captures(
        store,
        keys=debug.keys,
        header_keys=debug.header_keys,
        operator=operator,
        bytes_max=debug.capture_bytes_max,
    )


def _ledger(settings: Settings) -> Store:
    try:
        return store_at(settings.ledger.url.get_secret_value(), settings.journal.directory)
    except ValueError as fault:
        raise SettingsError(str(fault)) from fault


def _follower(settings: Settings, files: Files) -> Follower:
    store = _ledger(settings)
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
    ledger = _ledger(settings)
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
    yield gauge(LOADED, "1 once counters hold what earlier runs counted.", loaded)
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
