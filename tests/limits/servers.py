"""A real Redis of the tests' own: Debian's package, a folder in /tmp, a port of the loopback."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.stack import wait_until
from tests.gateway_process import free_port

START_S = 30.0


def program() -> str | None:
    """Return the server's program, None where there is none."""
    return shutil.which("redis-server") or shutil.which("valkey-server")


class Redis:
    """A server that keeps nothing; it can be killed, paused and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self._databases = 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def database(self) -> str:
        """Return the address of a database that no other test has."""
        self._databases += 1
        return f"redis://127.0.0.1:{self.port}/{self._databases}"

    def start(self) -> None:
        found = program()
        assert found is not None
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [found, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
                 "--dir", str(self.folder), "--databases", "1000"],
                stdout=log,
                stderr=log,
            )  # fmt: skip
        assert wait_until(self._answers, START_S, 0.02), (self.folder / "log").read_text()

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as wire:
                wire.sendall(b"PING\r\n")
                return wire.recv(16).startswith(b"+PONG")
        except OSError:
            return False

    def pause(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(timeout=60)


@contextmanager
def running_redis() -> Iterator[Redis]:
    folder = Path(tempfile.mkdtemp(prefix="spanbill-redis-"))
    try:
        server = Redis(folder)
        server.start()
        try:
            yield server
        finally:
            server.kill()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
