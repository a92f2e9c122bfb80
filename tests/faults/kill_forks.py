"""Forks: the real server without the second that a fresh Python spends on imports.

A process that has imported everything and started nothing is forked for each start; the child takes folder,
environment and arguments and runs the same command line. What dominates a fresh start is FastAPI with
pydantic: 0.7 of 1.2 seconds.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from gateway.cli.main import main as command_line
from tests.gateway_process import ROOT


class Forked:
    """A process that is not our child, as far as a test needs it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._fd = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """Return None while it lives; what it ended with is not known."""
        return 0 if select.select([self._fd], [], [], 0)[0] else None

    def send_signal(self, number: int) -> None:
        signal.pidfd_send_signal(self._fd, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float) -> int:
        assert select.select([self._fd], [], [], timeout)[0], "the process does not end"
        os.close(self._fd)
        return 0


class Forks:
    """The process that is forked; shared by any number of gateways, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.kill_forks"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def start(self, arguments: list[str], folder: Path, environment: Mapping[str, str], log: Path) -> Forked:
        """Start `python -m gateway` with these arguments."""
        order = {
            "arguments": arguments,
            "folder": str(folder),
            "environment": {**environment},
            "log": str(log),
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
            return Forked(int(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.communicate()
        assert self._process.returncode == 0


def main() -> None:
    """Read orders from standard input, one a line; write the process id of each."""
    gc.collect()
    gc.freeze()
    assert threading.active_count() == 1
    for line in sys.stdin.buffer:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:  # as many turns as there are dead children
                pass
        order = json.loads(line)
        pid = os.fork()
        if not pid:
            _become(order)
        os.write(1, b"%d\n" % pid)


def _become(order: dict[str, object]) -> None:
    code = 70
    try:
        os.chdir(str(order["folder"]))
        log = os.open(str(order["log"]), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.clear()
        os.environ.update(order["environment"])  # type: ignore[call-overload]  # a mapping, from JSON
        sys.argv = ["spanbill", *order["arguments"]]  # type: ignore[misc]  # a list, from JSON
        command_line()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
