"""Serve: uvicorn with the gateway in it, set for speed and for honest ends."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Final

import uvicorn

from gateway.admission.gate import Gate
from gateway.admission.virtual_keys import KeyEntry
from gateway.app import create_app
from gateway.assembly import configured_keys
from gateway.core.errors import CannotStartError
from gateway.core.exchange import Identity
from gateway.front import FrontBounds, front_protocol
from gateway.logs import LineWriter, configure
from gateway.recorder import starting
from gateway.settings import Settings, SettingsError
from otel.journal.segments import locked

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
EVERYWHERE: Final = ("0.0.0.0", "::")  # noqa: S104  # recognised, not bound


def serve_forever(settings: Settings) -> str | None:
    """Serve until told to stop; return why serving could not begin, or None.

    The stable HTTP conventions are chosen for the SERVER spans unless the operator chose otherwise.
    """
    os.environ.setdefault("OTEL_SEMCONV_STABILITY_OPT_IN", "http")
    os.environ.setdefault("OTEL_SERVICE_NAME", "spanbill")
    lines = LineWriter()
    try:
        with starting(settings.journal.directory):
            with locked(settings.journal.directory):
                pass  # a first look, so that a folder in use is said plainly before anything starts
            demo = _demo_key(settings)
        app = create_app(settings, keys=[demo[1]] if demo else (), lines=lines)
    except (SettingsError, CannotStartError) as fault:
        return str(fault)
    if demo:
        _greet(settings, demo[0])
    configure(settings.logging.level, lines)
    server = Server(
        uvicorn.Config(
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
        ),
        app.gate,
        settings.server.shutdown_grace_s,
    )
    for told in (signal.SIGINT, signal.SIGTERM):
        # uvicorn raises the signal once more after its orderly stop; that must not end the process by it.
        signal.signal(told, lambda *_: None)
    try:
        server.run()
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

    def __init__(self, config: uvicorn.Config, gate: Gate, grace_s: float) -> None:
        super().__init__(config)
        self._gate = gate
        self._grace_s = grace_s
        self._stop_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Close the gate at the first signal; the second one does not wait."""
        if self._stop_at is not None:
            super().handle_exit(sig, frame)
            return
        self._gate.closed = True
        self._stop_at = time.monotonic() + self._grace_s

    async def on_tick(self, counter: int) -> bool:
        """Stop once nothing is inside, or the grace is over."""
        if self._stop_at is not None and (self._gate.inside == 0 or time.monotonic() >= self._stop_at):
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


def _demo_key(settings: Settings) -> tuple[str, KeyEntry] | None:
    """Return the demo key if no key is configured at all; kept beside the journal, for its owner only."""
    if not settings.demo or configured_keys(settings, os.environ):
        return None
    path: Path = settings.journal.directory / "demo-key"
    if path.exists():
        key = path.read_text(encoding="ascii").strip()
    else:
        key = f"sk-demo-{secrets.token_hex(16)}"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "w", encoding="ascii") as file:
            file.write(key + "\n")
    identity = Identity(key_id="demo", user_id=DEMO_USER, user_name="Demo", source="key")
    return key, KeyEntry(key, identity)


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
