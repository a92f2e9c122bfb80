"""Supervisor: starts the workers of one gateway, replaces those that die, and ends with the last of them.

    supervisor   holds the folder's lock and the listening sockets; no thread, no event loop, no request
        │ fork
        ├──▶ worker 0   a writer with segments of its own; a connection waits in the one queue of all
        ├──▶ worker 1       ▲ `s` stop, `q` stop without waiting, `h` read the configuration again;
        │                   │ end of file: the supervisor is gone
        │                   ▼ `r` serving, `f` and why it cannot serve
        └──▶ behind     what comes behind the journal, for all of them; it ends after the last worker

The first worker begins alone: what is wrong with settings or folder is found, and said, once.

A worker is forked, not a fresh interpreter (`gateway.forking`): it serves two tenths of a second after its
predecessor's death instead of one and a half.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

from gateway.apart import NAME
from gateway.cli.restarts import DELAY_MAX_S, End, GiveUp, after
from gateway.forking import FAULT, FAULT_BYTES_MAX, GO, HANGUP, READY, SIGNALS, STOP, forked
from gateway.reloading import LOOK_S

log = logging.getLogger("spanbill.supervisor")

STRAGGLER_S: Final = 25.0
"""How long a worker may take beyond the grace: leftover connections, settling, the last delivery."""
QUICK, RELOAD = b"q", b"h"
"""Said to a worker, beside the words of every wire: do not wait for requests; read the settings again."""

Work = Callable[[socket.socket], str | None]
"""its end of the wire -> None at its orderly end, else why it could not do what it is for."""


class _Place:
    """One process, living or to be started.

    Args:
        name: a worker's number, or NAME.
    """

    def __init__(self, name: int | str, work: Work) -> None:
        self.name = name
        self.work = work
        self.pid: int | None = None
        self.wire: socket.socket | None = None
        self.serving_since: float | None = None
        self.fault: str | None = None
        self.failures = 0
        self.start_at = 0.0

    def tell(self, order: bytes) -> None:
        if self.wire is not None:
            with contextlib.suppress(OSError):  # it is ending already
                self.wire.send(order)

    def ended(self) -> None:
        self.pid = None
        self.serving_since = None
        if self.wire is not None:
            self.wire.close()
            self.wire = None


class Supervisor:
    """Keeps `count` workers at work; `run` it once.

    Args:
        work: what a worker does, given its number, in its own process.
        behind: what the process behind the journal does.
        listeners: closed when the gateway stops, so that nobody waits in their queue in vain.
        grace_s: how long requests may go on at the end.
        begun: called once, when the first worker serves.
        renew: every LOOK_S, reads the configuration again if it changed, or with True in any case; says
            whether it did. Workers are then told to, and one that is started later begins with it.
    """

    def __init__(
        self,
        work: Callable[[int, socket.socket], str | None],
        count: int,
        behind: Work,
        listeners: Sequence[socket.socket],
        grace_s: float,
        begun: Callable[[], None],
        renew: Callable[[bool], bool] = lambda _: False,
    ) -> None:
        self._workers = [_Place(number, partial(work, number)) for number in range(count)]
        self._behind = _Place(NAME, behind)
        self._places = [*self._workers, self._behind]
        self._listeners = listeners
        self._grace_s = grace_s
        self._begun = begun
        self._renew = renew
        self._ever_served = False
        self._fault: str | None = None
        self._kill_at: float | None = None
        self._look_at = 0.0
        self._wake: tuple[int, int] = (-1, -1)

    def run(self) -> str | None:
        """Return when all workers have ended: None after a stop that was asked for, else what went wrong."""
        with self._signals():
            while True:  # ends with the last worker after a stop
                self._start_due()
                self._wait()
                self._reap()
                self._end_behind()
                if time.monotonic() >= self._look_at:
                    self._look_at = time.monotonic() + LOOK_S
                    self._reload(told=False)
                if self._kill_at is not None and not self._living():
                    return self._fault
                if self._kill_at is not None and time.monotonic() >= self._kill_at:
                    self._kill_stragglers()

    # signals and words of the workers

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        self._wake = os.pipe()
        for fd in self._wake:
            os.set_blocking(fd, False)
        before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
        signal.set_wakeup_fd(self._wake[1], warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in before.items():
                signal.signal(number, handler)
            for fd in self._wake:
                os.close(fd)

    def _wait(self) -> None:
        """Wait for a signal, for a word of a worker, or for the next thing to do."""
        now = time.monotonic()
        dues = [self._look_at, *(place.start_at for place in self._due())]
        if self._kill_at is not None:
            dues.append(self._kill_at)
        wait_s = max(0.0, min(dues) - now)
        wires = {place.wire.fileno(): place for place in self._places if place.wire is not None}
        wake = self._wake[0]
        heard: list[int] = select.select([wake, *wires], [], [], wait_s)[0]
        for fd in heard:
            if fd != wake:
                self._hear(wires[fd])
                continue
            for number in os.read(wake, 256):
                if number == HANGUP:
                    self._reload(told=True)
                elif number != signal.SIGCHLD:
                    self._stop(signal.Signals(number).name)

    def _hear(self, place: _Place) -> None:
        assert place.wire is not None
        word = b""
        with contextlib.suppress(OSError):
            word = place.wire.recv(FAULT_BYTES_MAX)
        if word.startswith(READY):
            place.serving_since = time.monotonic()
            if not self._ever_served:
                self._ever_served = True
                self._begun()
            if place is not self._behind:
                log.info("a worker serves", extra={"worker": place.name, "pid": place.pid})
            word = word[len(READY) :] or READY
        if word.startswith(FAULT):
            place.fault = word[len(FAULT) :].decode(errors="replace")
        elif not word:
            place.wire.close()  # it is ending: the signal says so in a moment
            place.wire = None

    def _reload(self, *, told: bool) -> None:
        """Have every worker read the configuration again, if it changed or somebody said so."""
        if self._kill_at is None and self._renew(told):
            for place in self._workers:
                place.tell(RELOAD)

    def _stop(self, why: str) -> None:
        """Tell all workers to stop; the second time, not to wait for anybody."""
        first = self._kill_at is None
        log.info("stopping" if first else "stopping without waiting", extra={"why": why})
        if first:
            self._kill_at = time.monotonic() + self._grace_s + STRAGGLER_S
            for listener in self._listeners:
                listener.close()
        for place in self._workers:
            place.tell(STOP if first else QUICK)

    def _end_behind(self) -> None:
        """Tell it to stop once no worker writes any more: it ends with the last bills."""
        if self._kill_at is not None and not any(place in self._workers for place in self._living()):
            self._behind.tell(STOP)

    # processes

    def _living(self) -> list[_Place]:
        return [place for place in self._places if place.pid is not None]

    def _due(self) -> list[_Place]:
        """Return the places whose workers are to be started, now or later."""
        if self._kill_at is not None:
            return []
        places = self._places if self._ever_served else self._workers[:1]
        return [place for place in places if place.pid is None]

    def _start_due(self) -> None:
        for place in self._due():
            if place.start_at <= time.monotonic():
                self._start(place)

    def _start(self, place: _Place) -> None:
        try:
            child = forked(partial(self._be, place.work))
        except OSError as fault:
            place.start_at = time.monotonic() + DELAY_MAX_S
            log.error("a worker cannot be started now", extra={"worker": place.name, "why": fault.strerror})
            return
        child.wire.setblocking(False)
        place.pid, place.wire = child.pid, child.wire
        if place is self._behind:
            place.tell(GO)

    def _be(self, work: Work, wire: socket.socket) -> str | None:
        """Be what was started."""
        for fd in self._wake:
            os.close(fd)
        for place in self._places:  # else it would keep the others from seeing the end of this supervisor
            if place.wire is not None:
                place.wire.close()
        return work(wire)

    def _reap(self) -> None:
        while self._living():  # each turn takes one away
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            for place in self._places:
                if place.pid == pid:
                    self._ended(place, status)

    def _ended(self, place: _Place, status: int) -> None:
        if place.wire is not None:
            self._hear(place)  # its last word
        now = time.monotonic()
        end = End(
            served_s=None if place.serving_since is None else now - place.serving_since,
            killed=os.WIFSIGNALED(status),
            failures=place.failures,
            ever_served=self._ever_served,
            others_serve=place is self._behind
            or any(p.serving_since is not None for p in self._workers if p is not place),
        )
        facts: dict[str, object] = {
            "worker": place.name,
            "pid": place.pid,
            "status": os.waitstatus_to_exitcode(status),
        }
        fault, place.fault = place.fault, None
        place.ended()
        if self._kill_at is not None:
            return
        step = after(end)
        if isinstance(step, GiveUp):
            log.error("a worker ended; the gateway gives up", extra=facts)
            self._fault = fault or "the workers cannot serve; the log above says why"
            self._stop("no worker can serve")
            return
        log.warning(
            "a worker ended; it is started again", extra={**facts, "delay_s": step.delay_s, "why": fault}
        )
        place.failures = step.failures
        place.start_at = now + step.delay_s

    def _kill_stragglers(self) -> None:
        living = self._living()
        for place in [place for place in living if place is not self._behind] or living:
            assert place.pid is not None
            log.error("a worker does not end and is killed", extra={"worker": place.name, "pid": place.pid})
            os.kill(place.pid, signal.SIGKILL)
        self._kill_at = time.monotonic() + STRAGGLER_S


def listen(host: str, port: int, backlog: int) -> list[socket.socket]:
    """Return a listening socket for each address of `host`.

    Raises:
        OSError: it has none, or one cannot be listened on.
    """
    flags = socket.AI_PASSIVE
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=flags)
    listeners: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            one = socket.socket(family, kind, protocol)
            listeners.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind(address)
            one.listen(backlog)
            one.setblocking(False)
    except OSError:
        for one in listeners:
            one.close()
        raise
    return listeners
