"""Plane: what one process has of the control plane: its keys, and the thread that keeps them fresh."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from gateway.admission.stored_keys import StoredKeys
from gateway.control.following import Following
from gateway.control.keys import Keys
from gateway.control.store import Control, control_store_at
from gateway.core.errors import CannotStartError
from gateway.ledger.store import LedgerNewer
from otel.metrics import Reading, gauge

STOP_S: Final = 2.0
"""How long shutdown waits for a read of the database to end."""


class Plane:
    """Keys of the database, to be found and to be changed.

    Args:
        url, ledger_url, journal: see `control_store_at`.

    Raises:
        ValueError: a setting names no database that we know.
    """

    def __init__(self, url: str, ledger_url: str, journal: Path) -> None:
        def control() -> Control:
            return Control(control_store_at(url, ledger_url, journal))

        self.stored = StoredKeys()
        self._changing = control()
        self.keys = Keys(self._changing, applied=self.stored.change)
        self._following = Following(control(), self.stored)

    def start(self) -> None:
        """Read the keys, and follow them; not in the thread of an event loop.

        Raises:
            CannotStartError: a newer version made the database.
        """
        try:
            self._following.start()
        except LedgerNewer as fault:
            raise CannotStartError(str(fault)) from fault

    def stop(self) -> None:
        """Follow no longer; not in the thread of an event loop."""
        self._following.stop(STOP_S)
        self.close()

    def close(self) -> None:
        """Let go of the database, where nothing was started."""
        self._changing.close()

    def health(self) -> Iterable[Reading]:
        """Yield what the metrics say of it."""
        following = self._following
        readable = int(following.fault is None)
        yield gauge("llm_gateway_keys_readable", "1 while keys can be read.", readable, least=True)
        yield gauge(
            "llm_gateway_keys_read_timestamp_seconds",
            "When the keys of the database were last read.",
            following.read_unix_s,
            least=True,
        )
        yield gauge(
            "llm_gateway_keys_secrets", "Secrets of keys of the database.", len(self.stored), least=True
        )
