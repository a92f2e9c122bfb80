"""Asking: questions to the ledger from inside the event loop, each in a thread, each bounded in time.

    a door ──ask(work)──▶ room? ──▶ thread ──▶ one read-only transaction ──▶ answer
                           │                     └─ away, broken, too slow ──▶ 503, Retry-After
                           └─ full ──▶ 503, Retry-After

Requests never wait for any of it: the doors of the operator and of reports come here, the inference doors do
not. Every thread has a connection of its own; what one question reads is one state of the ledger.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, TypeVar

from sqlalchemy import Connection

from gateway.core.errors import GatewayFault
from gateway.ledger.store import LedgerBroken, LedgerNewer, LedgerUnavailable, Store

T = TypeVar("T")

THREADS: Final = 4
"""Questions at a time, and connections to PostgreSQL, of each worker."""
WAITING_MAX: Final = 28
"""Questions that wait for a thread; more are refused."""
QUESTION_S: Final = 15.0
"""Longest question; its statements are broken off in the database."""
ANSWER_S: Final = 20.0
"""Longest wait of a caller, for a thread and for the question."""
CLOSE_S: Final = 2.0
"""How long shutdown waits for connections to close."""
AGAIN_S: Final = 2
LOOK_EVERY: Final = 50_000
"""Steps of SQLite's machine, well under a millisecond, between two looks at the clock."""


class Asker:
    """Asks one ledger.

    Args:
        store: makes a store that is not open; called once for each thread.
    """

    def __init__(self, store: Callable[[], Store]) -> None:
        self._make = store
        self._own = threading.local()
        self._stores: list[Store] = []
        self._room = threading.BoundedSemaphore(THREADS + WAITING_MAX)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="ledger-questions")

    async def ask(self, work: Callable[[Connection], T]) -> T:
        """Do some reading in one transaction, and return what it returns.

        Raises:
            GatewayFault: 503 `ledger_busy` or `ledger_unavailable`; waiting helps.
        """
        if not self._room.acquire(blocking=False):
            raise GatewayFault(
                "ledger_busy",
                f"{THREADS + WAITING_MAX} questions are being answered; ask again",
                status=503,
                retry_after_s=AGAIN_S,
            )
        future = self._threads.submit(self._answer, work)
        future.add_done_callback(lambda _: self._room.release())
        try:
            async with asyncio.timeout(ANSWER_S):
                return await asyncio.wrap_future(future)
        except (LedgerUnavailable, LedgerBroken, LedgerNewer, TimeoutError) as fault:
            why = "it took too long" if isinstance(fault, TimeoutError) else str(fault)
            raise GatewayFault(
                "ledger_unavailable",
                f"the ledger cannot be read now ({why}); bills are safe in the journal: ask again",
                status=503,
                retry_after_s=AGAIN_S,
            ) from fault

    def close(self) -> None:
        """Let go of the ledger; questions that wait are refused, those in work end by themselves."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        # In a thread, for the caller may be in a loop; a connection whose question goes on ends with it.
        closing = threading.Thread(target=self._let_go, name="ledger-questions-end", daemon=True)
        closing.start()
        closing.join(CLOSE_S)

    def _let_go(self) -> None:
        for store in self._stores:
            store.close()

    def _answer(self, work: Callable[[Connection], T]) -> T:
        store: Store | None = getattr(self._own, "store", None)
        if store is None:
            store = self._make()
            self._own.store = store
            self._own.open = False
            self._stores.append(store)
        if not self._own.open or store.replaced():
            self._own.open = False
            store.open()
            self._own.open = True
        try:
            return store.run(partial(bounded, work, time.monotonic() + QUESTION_S))
        except (LedgerUnavailable, LedgerBroken):
            self._own.open = False
            raise


def bounded(work: Callable[[Connection], T], deadline: float, connection: Connection) -> T:
    """Do some reading of one state, whose statements end at a time of the monotonic clock."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        left_ms = max(1, round((deadline - time.monotonic()) * 1e3))
        connection.exec_driver_sql(f"SET LOCAL statement_timeout = {left_ms}")
        return work(connection)
    driver = connection.connection.driver_connection
    assert driver is not None  # the connection is in use
    driver.set_progress_handler(lambda: time.monotonic() > deadline, LOOK_EVERY)
    return work(connection)
