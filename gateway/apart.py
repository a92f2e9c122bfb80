"""Apart: what comes behind the journal has a process of its own, and requests the interpreter to themselves.

    serving process(es) ──bills──▶ journal ──▶ follower, shipper, retention ──readings──▶ Board ──▶ /metrics
            │                                            this process
            └──wire: `g` begin, `s` stop; end of file: the gateway is gone, and so is this process, at once

It may be killed at any moment, for nothing that it writes can be torn by that: where there is a supervisor,
that begins another one; where one process serves alone, threads of that one go on in its place. It has
neither the folder's lock nor a listening socket: what began it can be killed and started again at once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from gateway.behind import STOP_FOLLOWING_S, STOP_REMOVING_S, STOP_SHIPPING_S, Behind
from gateway.core.errors import CannotStartError
from gateway.forking import FAULT, FAULT_BYTES_MAX, GO, HANGUP, READY, STOP, Child
from gateway.logs import LineWriter, configure, lines_health
from gateway.settings import Settings, SettingsError
from otel.journal.files import Files
from otel.metrics import Metrics, Reading
from otel.shared_metrics import PUBLISH_S, Board, SharedMetrics

log = logging.getLogger("spanbill.behind")

NAME: Final = "behind"
"""What its log lines have for a worker's number."""
NICE: Final = 3
"""Where there are not processors enough, it gets a third of one beside a process that serves at its limit. A
bill costs it up to a third of what its request cost there (70 to 120 of 350 us), a quarter of both: with less
than that the ledger would stay behind, and budgets with it, for as long as the load lasts."""
STOP_S: Final = STOP_REMOVING_S + STOP_FOLLOWING_S + STOP_SHIPPING_S + 3.0
"""How long its end may take, log lines included; then it is killed."""
IGNORED: Final = tuple(told for told in (signal.SIGINT, signal.SIGTERM, HANGUP) if told is not None)
"""A terminal or a service manager sends them to every process; when to end, the gateway says."""


class Publishing(msgspec.Struct, frozen=True):
    """Where the process tells its readings: a board of the gateway's, and its place there."""

    board: Board
    place: int


def be_behind(
    settings: Settings, environ: Mapping[str, str], wire: socket.socket, publishing: Publishing
) -> str | None:
    """Be that process, until the gateway says stop or is gone; return why it could not, or None."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    if wire.recv(1) != GO:
        return None  # the gateway could not start
    os.nice(NICE)
    lines = LineWriter(worker=NAME)
    configure(settings.logging.level, lines)
    try:
        _work(Behind(settings, Files(), environ), wire, publishing, lines)
    except (SettingsError, CannotStartError) as fault:
        return str(fault)
    finally:
        lines.close()
    return None


def _work(behind: Behind, wire: socket.socket, publishing: Publishing, lines: LineWriter) -> None:
    def readings() -> Iterable[Reading]:
        yield from behind.health()
        yield from lines_health(lines)

    board, place = publishing.board, publishing.place
    shared = SharedMetrics(Metrics(readings), board, place, time.monotonic, NAME, behind.totals)
    behind.start()
    shared.publish()
    with contextlib.suppress(OSError):  # it is gone: the next line finds that out
        wire.send(READY)
    log.info("what comes behind the journal has a process of its own", extra={"pid": os.getpid()})
    word = READY
    while word and STOP not in word:  # ends when the gateway says so, or with it
        shared.tend()
        if select.select([wire], [], [], PUBLISH_S)[0]:
            word = _word(wire)
    if not word:
        log.error("the gateway is gone; so is what comes behind its journal")
        return
    threading.Thread(target=_go_along, args=(wire,), daemon=True).start()
    behind.stop()
    shared.publish()


def _word(wire: socket.socket) -> bytes:
    """Return what was said, or nothing if there is nobody any more at the other end."""
    with contextlib.suppress(OSError):
        return wire.recv(FAULT_BYTES_MAX)
    return b""


def _go_along(wire: socket.socket) -> None:
    """End at once, should the gateway be gone before all is delivered."""
    while _word(wire):  # ends with the gateway, or with this process
        pass
    os._exit(0)


class Apart:
    """That process, as the one that serves alone has it; and this one in its place, should it die.

    Args:
        child: does `be_behind`.
        behind: begins where that one ended.
    """

    def __init__(self, child: Child, behind: Behind) -> None:
        self._child = child
        self._behind = behind
        self._stopping = False
        self._given_up = False
        self._stands_in = False
        self._thread = threading.Thread(target=self._attend, name=NAME, daemon=True)

    def start(self) -> None:
        """Begin, with the journal open."""
        with contextlib.suppress(OSError):  # it has died: the thread finds that out
            self._child.wire.send(GO)
        self._thread.start()

    def stop(self) -> None:
        """End, with the journal closed; what is left after STOP_S is for the next start."""
        self._stopping = True
        with contextlib.suppress(OSError):  # the same
            self._child.wire.send(STOP)
        self._thread.join(STOP_S)
        if self._thread.is_alive():
            log.error("what comes behind the journal does not end and is killed", extra=self._named())
            self._given_up = True
            os.kill(self._child.pid, signal.SIGKILL)
        elif self._stands_in:
            self._behind.stop()

    def _attend(self) -> None:
        why = None
        while word := _word(self._child.wire):  # ends with that process
            why = word.removeprefix(FAULT).decode(errors="replace") if word.startswith(FAULT) else why
        _, status = os.waitpid(self._child.pid, 0)  # its locks are free from here on
        code = os.waitstatus_to_exitcode(status)
        if self._given_up or (self._stopping and code == 0):
            return
        log.error(
            "what comes behind the journal has lost its process; this one goes on with it",
            extra={**self._named(), "status": code, "why": why},
        )
        self._behind.start()
        self._stands_in = True

    def _named(self) -> dict[str, object]:
        return {"pid": self._child.pid}


class Worker(msgspec.Struct, frozen=True, kw_only=True):
    """What this process has, of several of its gateway.

    Args:
        number: among the workers.
        board: where all processes publish their metrics.
        behind: the process behind the journal, where this is the only worker. None where there is a
            supervisor, which sees to that process, and holds the journal's folder.
    """

    number: int
    board: Board
    behind: Child | None = None


def whose(behind: Behind, worker: Worker | None) -> Behind | Apart | None:
    """Return what this process starts and stops of what comes behind the journal."""
    if worker is None:
        return behind
    return None if worker.behind is None else Apart(worker.behind, behind)
