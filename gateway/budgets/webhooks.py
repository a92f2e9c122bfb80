"""Webhooks: warnings are told to an address of the operator's, at least once, beside everything else.

    POST  content-type: application/json
          idempotency-key: <id of the warning>                 the same at every try
          x-spanbill-signature: t=<Unix seconds>,v1=<HMAC-SHA256 of "<t>.<body>" with the secret, hex>

What is not answered with 2xx is tried again, later and later, TRIES_MAX times in all. Whoever tries one
takes it first by moving its next time on: of several processes one tries, and if that one dies another does
later.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import httpx
from sqlalchemy import Connection, Row, select, update

from gateway.budgets.leasing import Database
from gateway.control.schema import warnings
from gateway.ledger.store import LedgerNewer, LedgerUnavailable

log = logging.getLogger("spanbill.budgets")

TRIES_MAX: Final = 10
FIRST_WAIT_S: Final = 2
LAST_WAIT_S: Final = 600
"""2, 4, 8 … s between tries: the last one comes about half an hour after the first."""
TIMEOUT_S: Final = 10.0
LOOK_S: Final = 1.0
TURN: Final = 20
"""Warnings that are told before the next look."""


class Webhooks:
    """Delivers warnings.

    Args:
        client: its timeout bounds each try; redirects are not followed.
    """

    def __init__(
        self,
        control: Database,
        url: str,
        secret: str,
        client: httpx.Client,
        *,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._control = control
        self._url = url
        self._secret = secret.encode()
        self._client = client
        self._now_ns = now_ns
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.delivered = 0
        self.failed = 0

    def start(self) -> None:
        """Deliver until `stop`."""
        self._thread = threading.Thread(target=self._run, name="budget-webhooks", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End; what was not told is told by another process, or after the next start."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
        self._client.close()

    def _run(self) -> None:
        while not self._stop.wait(LOOK_S):  # ends with stop()
            try:
                self.step()
            except (LedgerUnavailable, LedgerNewer):
                continue  # the database is looked at again

    def step(self) -> int:
        """Tell what is due; return how many were tried.

        Raises:
            LedgerUnavailable, LedgerNewer: the database cannot be asked.
        """
        due = self._control.run(lambda c: _due(c, self._now_ns()))
        tried = 0
        for row in due:
            if self._stop.is_set():
                break
            if self._control.run(lambda c, row=row: _taken(c, row, self._now_ns()), writes=True):  # type: ignore[misc]
                tried += 1
                self._tell(row)
        return tried

    def _tell(self, row: Row[Any]) -> None:
        if self._posted(row.body.encode(), row.event_id):
            self.delivered += 1
        elif row.tries + 1 < TRIES_MAX:
            return
        else:
            self.failed += 1
            log.error("a webhook was never accepted; it is not tried again", extra={"event": row.event_id})
        self._control.run(lambda c: _move(c, row, None), writes=True)

    def _posted(self, body: bytes, event_id: str) -> bool:
        at = self._now_ns() // 1_000_000_000
        headers = {
            "content-type": "application/json",
            "idempotency-key": event_id,
            "x-spanbill-signature": f"t={at},v1={signature(self._secret, at, body)}",
        }
        try:
            with self._client.stream("POST", self._url, content=body, headers=headers) as answer:
                return 200 <= answer.status_code < 300  # its body is not read
        except (httpx.HTTPError, httpx.InvalidURL, OSError):
            return False


def signature(secret: bytes, at_unix_s: int, body: bytes) -> str:
    """Return what a receiver must find, in hexadecimal."""
    return hmac.new(secret, b"%d." % at_unix_s + body, hashlib.sha256).hexdigest()


def wait_s(tries: int) -> int:
    """Return how long to wait after that many tries."""
    return min(LAST_WAIT_S, FIRST_WAIT_S << min(tries - 1, 20))


def _due(connection: Connection, now_unix_ns: int) -> list[Row[Any]]:
    chosen = select(warnings).where(warnings.c.next_unix_ns <= now_unix_ns)
    return list(connection.execute(chosen.order_by(warnings.c.next_unix_ns).limit(TURN)))


def _taken(connection: Connection, row: Row[Any], now_unix_ns: int) -> bool:
    wait = wait_s(row.tries + 1) + round(TIMEOUT_S)
    return _move(connection, row, now_unix_ns + wait * 1_000_000_000, before=row.next_unix_ns)


def _move(
    connection: Connection, row: Row[Any], to_unix_ns: int | None, *, before: int | None = None
) -> bool:
    keys = [column == getattr(row, column.name) for column in warnings.primary_key.columns]
    statement = update(warnings).where(*keys, warnings.c.event_id == row.event_id)
    if before is not None:
        statement = statement.where(warnings.c.next_unix_ns == before)
    return connection.execute(statement.values(next_unix_ns=to_unix_ns, tries=row.tries + 1)).rowcount == 1
