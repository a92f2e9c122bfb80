"""Beside: what a process that serves has beside its requests: files of the logs, questions to the ledger."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from gateway.behind import ledger_of
from gateway.capture.capture import Captures
from gateway.capture.redaction import Header, Redactor
from gateway.capture.store import CaptureStore
from gateway.daybook.daylog import DayLog
from gateway.daybook.keeper import Keeper
from gateway.daybook.keeping import naming_of
from gateway.ledger.asking import Asker
from gateway.selfcheck import SelfCheck
from gateway.settings import Settings, SettingsError
from gateway.settings.logs import DebugSettings, LogFileSettings
from otel.journal.files import Files
from otel.metrics import Metrics, Reading, counter


class Beside:
    """Files of the logs, and what is asked of the ledger.

    Args:
        operator: whether the headers of a request show the operator's key.

    Attributes:
        asker: for questions about costs.
        usage: takes a line per bill; None without a path.
        errors: takes a line per refusal, error of a provider and fault; None without a path.
        captures: chooses requests whose content is kept; None where nobody's is.

    Raises:
        SettingsError: a folder or the ledger's address cannot be used.
    """

    def __init__(
        self, settings: Settings, files: Files, *, operator: Callable[[Sequence[Header]], bool]
    ) -> None:
        self._settings = settings
        self._files = files
        self.asker = Asker(lambda: ledger_of(settings))
        self.usage = _day_log(settings.logging.usage, "usage")
        self.errors = _day_log(settings.logging.errors, "errors")
        self._logs = [log for log in (self.usage, self.errors) if log is not None]
        self._store = _capture_store(settings.logging.debug)
        self.captures = _captures(settings, self._store, operator)
        self._keeper = Keeper(self._logs if self._store is None else [*self._logs, self._store])

    def start(self) -> None:
        """Begin to write."""
        self._keeper.start()

    def stop(self) -> None:
        """End, with all requests answered."""
        self.asker.close()
        self._keeper.stop()

    def check(self, cursor: Path | None, metrics: Callable[[], Metrics]) -> SelfCheck:
        """Return the check of journal, ledger, delivery, and the counters that `metrics` returns.

        Args:
            cursor: the shipper's; None where nothing is delivered.
        """
        settings = self._settings
        return SelfCheck(settings.journal.directory, self._files, ledger_of(settings), cursor, metrics)

    def health(self) -> Iterable[Reading]:
        """Yield what the metrics say of it."""
        if self._logs:
            dropped = sum([log.dropped for log in self._logs])
            yield counter("llm_gateway_log_file_lines_dropped", "Lines that no log file has.", dropped)
        if self._store is not None:
            store = self._store
            yield counter("llm_gateway_debug_captures", "Requests whose content was kept.", store.written)
            yield counter("llm_gateway_debug_captures_dropped", "Captures without room.", store.dropped)


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
