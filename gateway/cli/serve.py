"""Serve: uvicorn with the gateway in it, in one process or in several, set for speed and for honest ends."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Final

import msgspec
import uvicorn

from gateway.admission.virtual_keys import KeyEntry
from gateway.apart import Publishing, Worker, be_behind
from gateway.api.inference import Doors
from gateway.app import create_app
from gateway.assembly import configured_keys
from gateway.cli.supervisor import QUICK, RELOAD, Supervisor, listen
from gateway.core.errors import CannotStartError
from gateway.core.exchange import Identity
from gateway.forking import HANGUP, READY, forked
from gateway.front import FrontBounds, front_protocol
from gateway.inforce import checked
from gateway.logs import DirectLines, LineWriter, configure
from gateway.recorder import starting
from gateway.reloading import Source
from gateway.settings import Settings, SettingsError
from otel.journal.segments import locked
from otel.shared_metrics import Board

try:
    import resource
except ImportError:  # Windows counts no files
    resource = None  # type: ignore[assignment]

log = logging.getLogger("spanbill.serve")

LEFTOVERS_S: Final = 1
"""How long connections with nothing admitted on them may last beyond the grace: half-sent bodies, scrapes."""
BACKLOG: Final = 2048
FILES_KEPT: Final = 64
"""Files that are not for connections: journal, log, listener, libraries."""
DEMO_USER: Final = "demo"
Demo = tuple[str, KeyEntry]
EVERYWHERE: Final = ("0.0.0.0", "::")  # noqa: S104  # recognised, not bound


def serve_forever(source: Source) -> str | None:
    """Serve until told to stop; return why serving could not begin, or None.

    The stable HTTP conventions are chosen for the SERVER spans unless the operator chose otherwise.
    """
    os.environ.setdefault("OTEL_SEMCONV_STABILITY_OPT_IN", "http")
    os.environ.setdefault("OTEL_SERVICE_NAME", "spanbill")
    if HANGUP is not None:  # until it can be heard: a file that changes meanwhile is noticed all the same
        signal.signal(HANGUP, signal.SIG_IGN)
    settings = source.settings
    directory = settings.journal.directory
    with contextlib.ExitStack() as held:
        try:
            with starting(directory):
                lock = held.enter_context(locked(directory))
                demo = _demo_key(settings)
        except (SettingsError, CannotStartError) as fault:
            return str(fault)
        if settings.server.workers > 1:
            return _supervise(source, demo, lock)
    # It was a first look, so that a folder in use is said plainly before anything starts.
    return _serve_alone(source, demo)


def _serve_alone(source: Source, demo: Demo | None) -> str | None:
    """Serve with this process, and another one behind the journal."""
    settings, board = source.settings, Board(2)
    try:
        child = forked(lambda wire: be_behind(settings, os.environ, wire, Publishing(board, 1)))
    except OSError as fault:
        return f"the gateway cannot start a second process: {fault.strerror}"
    with child.wire:  # it ends with this process, and with its service
        return _serve(source, demo, Post(Worker(number=0, board=board, behind=child)))


def _supervise(source: Source, demo: Demo | None, lock: int) -> str | None:
    """Serve with several processes; all that serve keep the folder's lock, which the caller has."""
    settings = source.settings
    server = settings.server
    configure(settings.logging.level, DirectLines())
    try:
        listeners = listen(server.host, server.port, BACKLOG)
    except OSError as fault:
        return f"the gateway cannot listen on {server.host}:{server.port}: {fault.strerror}"
    board = Board(server.workers + 1)

    def work(number: int, wire: socket.socket) -> str | None:
        return _serve(source, demo, Post(Worker(number=number, board=board), listeners, wire))

    def renew(told: bool) -> bool:
        if told or source.settled():
            source.renew(lambda changed: checked(changed, os.environ))
            return True
        return False

    def behind(wire: socket.socket) -> str | None:
        os.close(lock)
        for listener in listeners:
            listener.close()
        return be_behind(settings, os.environ, wire, Publishing(board, server.workers))

    def begun() -> None:
        log.info("serving", extra={"workers": server.workers, "address": f"{server.host}:{server.port}"})
        if demo:
            _greet(settings, demo[0])

    return Supervisor(work, server.workers, behind, listeners, server.shutdown_grace_s, begun, renew).run()


class Post(msgspec.Struct, frozen=True):
    """What a process that serves was given.

    Args:
        listeners: its supervisor's; None where it has none, as `wire` to it.
    """

    worker: Worker
    listeners: list[socket.socket] | None = None
    wire: socket.socket | None = None


def _serve(source: Source, demo: Demo | None, post: Post) -> str | None:
    """Serve with this process; return why serving could not begin, or None."""
    settings = source.settings
    alone = post.wire is None
    lines = LineWriter(worker=None if alone else post.worker.number)
    configure(settings.logging.level, lines)  # what is found on the way in is told like all else
    keys = [demo[1]] if demo else ()
    try:
        app = create_app(settings, keys=keys, lines=lines, worker=post.worker, source=source)
    except (SettingsError, CannotStartError) as fault:
        lines.close()
        return str(fault)
    if demo and alone:
        _greet(settings, demo[0])
    config = uvicorn.Config(
        app,
        host=settings.server.host,
        port=settings.server.port,
        loop="uvloop" if sys.platform != "win32" else "asyncio",
        http=front_protocol(_bounds(settings), ids=app.ids, refused=app.refused),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=LEFTOVERS_S,
    )
    grace_s = settings.server.shutdown_grace_s
    for told in (signal.SIGINT, signal.SIGTERM):
        # uvicorn raises the signal once more after its orderly stop; that must not end the process by it.
        signal.signal(told, lambda *_: None)
    server = (
        Server(config, app, grace_s) if post.wire is None else WorkerServer(config, app, grace_s, post.wire)
    )
    if HANGUP is not None:
        signal.signal(HANGUP, lambda *_: server.tell_to_reload())
    try:
        server.run(post.listeners)
    except SystemExit:  # uvicorn's way to say that it could not start
        if app.start_fault is None:
            return f"cannot serve on {settings.server.host}:{settings.server.port}; the log above says why"
    finally:
        lines.close()
    return app.start_fault


class Server(uvicorn.Server):
    """uvicorn, which is told to stop in two steps: nothing new is admitted, then what is inside may end.

    Args:
        grace_s: how long requests that are inside may go on.
    """

    def __init__(self, config: uvicorn.Config, app: Doors, grace_s: float) -> None:
        super().__init__(config)
        self._gate = app.gate
        self._reload = app.reload
        self._told_to_reload = False
        self._grace_s = grace_s
        self._stop_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Close the gate at the first signal; the second one does not wait."""
        if self._stop_at is not None:
            super().handle_exit(sig, frame)
            return
        self._gate.closed = True
        self._stop_at = time.monotonic() + self._grace_s

    def tell_to_reload(self) -> None:
        """Have the configuration read at the next tick; for a signal's handler."""
        self._told_to_reload = True

    async def on_tick(self, counter: int) -> bool:
        """Stop once nothing is inside, or the grace is over."""
        if self._told_to_reload and self._reload is not None:
            self._told_to_reload = False
            self._reload()
        if self._stop_at is not None and (self._gate.inside == 0 or time.monotonic() >= self._stop_at):
            self.should_exit = True
        return await super().on_tick(counter)


class WorkerServer(Server):
    """A server among several, which listens to its supervisor.

    A signal only ever begins the orderly stop: a terminal or a service manager sends one to every process,
    and the supervisor passes on what it got. Only the supervisor's word makes an end of it.

    Args:
        wire: to the supervisor, see there.
    """

    def __init__(self, config: uvicorn.Config, app: Doors, grace_s: float, wire: socket.socket) -> None:
        super().__init__(config, app, grace_s)
        self._wire = wire
        self._wire.setblocking(False)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Say when requests are served."""
        await super().startup(sockets)
        if self.started:
            with contextlib.suppress(OSError):  # the supervisor is gone: the first tick finds that out
                self._wire.send(READY)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the orderly stop, once."""
        if self._stop_at is None:
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Do what the supervisor says, and stop when it is gone."""
        try:
            word = self._wire.recv(16)
        except BlockingIOError:
            return await super().on_tick(counter)
        except OSError:
            word = b""
        if RELOAD in word:
            self.tell_to_reload()
            word = word.replace(RELOAD, b"")
            if not word:
                return await super().on_tick(counter)
        if not word and self._stop_at is None:
            log.error("the supervisor is gone; this worker stops")
        self.handle_exit(signal.SIGTERM, None)
        if QUICK in word:
            self.should_exit = True
        return await super().on_tick(counter)


def _bounds(settings: Settings) -> FrontBounds:
    """Return the front's bounds; a connection takes a file, and another one for its provider.

    The limit on files is raised as far as that needs and the system lets it.
    """
    server = settings.server
    room = server.max_connections
    if resource is not None:
        files, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = 2 * room + FILES_KEPT
        if resource.RLIM_INFINITY != files < wanted:
            files = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
        if resource.RLIM_INFINITY != files < wanted:
            room = max(1, (files - FILES_KEPT) // 2)
    if room < server.max_connections:
        log.warning("the process may open too few files", extra={"connections": room})
    return FrontBounds(
        head_bytes_max=server.max_header_bytes,
        connections_max=room,
        head_s=server.header_timeout_s,
        keep_alive_s=server.keep_alive_s,
        body_idle_s=server.body_idle_timeout_s,
        body_total_s=server.body_timeout_s,
        write_idle_s=server.write_idle_timeout_s,
    )


def _demo_key(settings: Settings) -> Demo | None:
    """Return the demo key if no key is configured at all, not even the admin's; kept beside the journal.

    Raises:
        CannotStartError: its file is there, and holds none.
        OSError: its file cannot be written or read.
    """
    operated = settings.admin.key is not None
    if not settings.demo or operated or configured_keys(settings, os.environ):
        return None
    path: Path = settings.journal.directory / "demo-key"
    identity = Identity(key_id="demo", user_id=DEMO_USER, user_name="Demo", source="key")
    if not path.exists():
        _make_demo_key(path)
    try:
        key = path.read_text(encoding="ascii").strip()
        return key, KeyEntry(key, identity)
    except ValueError as fault:  # so is the error of a text that is not ASCII
        raise CannotStartError(
            f"{path} holds no key that can be used; remove it, and a new one is made, or configure keys"
        ) from fault


def _make_demo_key(path: Path) -> None:
    """Write a new key, whole or not at all: a full disk must not leave an empty file for the next start."""
    new = path.with_suffix(".new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w", encoding="ascii") as file:
        file.write(f"sk-demo-{secrets.token_hex(16)}\n")
        file.flush()
        os.fsync(fd)
    os.replace(new, path)


def _greet(settings: Settings, key: str) -> None:
    host = settings.server.host if settings.server.host not in EVERYWHERE else "127.0.0.1"
    base = f"http://{host}:{settings.server.port}"
    print(
        f"Spanbill is starting on {base}\n"
        f"No key is configured, so here is a demo key; the simulated provider needs no account. Try:\n\n"
        f"  curl -s {base}/v1/chat/completions \\\n"
        f"    -H 'authorization: Bearer {key}' -H 'content-type: application/json' \\\n"
        f'    -d \'{{"model":"sim-small","messages":[{{"role":"user","content":"Hello"}}]}}\'\n\n'
        f"The bill of every request stands in {settings.journal.directory}; {base}/docs lists the doors.\n",
        flush=True,
    )
