"""A real gateway in a process of its own, for the tests that need one."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from deploy.stack import PORTS as PORTS_OF_STACK
from deploy.stack import _alive, http_ok, wait_until

ROOT = Path(__file__).resolve().parent.parent
KEYS = {"alice": "sk-test-alice-0001", "bob": "sk-test-bob-0002", "carol": "sk-test-carol-0003"}
START_S = 30.0
END_S = 30.0
"""What takes a moment on a machine with nothing else to do."""
PORTS = range(10_000, 32_000)
"""Below those that Linux chooses itself (32768 and up)."""
TEST_PROCESSES_MAX = 16
PORTS_EACH = len(PORTS) // TEST_PROCESSES_MAX


def _ports() -> Iterator[int]:
    """Yield ports again and again: other ones than other test processes, and none that connections get."""
    test_process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % TEST_PROCESSES_MAX
    first = PORTS.start + test_process * PORTS_EACH
    skipped = os.getpid() % PORTS_EACH  # two runs on one machine hardly choose alike at one time
    return itertools.cycle([first + (skipped + number) % PORTS_EACH for number in range(PORTS_EACH)])


def free_port() -> int:
    """Return a port of loopback that nobody listens on, and that nobody is given before it is used."""
    for _ in range(PORTS_EACH):
        port = next(_next_ports)
        with socket.socket() as holder, contextlib.suppress(OSError):
            holder.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def stack_ports() -> dict[str, int]:
    """Return a port for each program of a stack."""
    return {role: free_port() for role in PORTS_OF_STACK}


_next_ports = _ports()


class Gateway:
    """`python -m gateway serve` in `folder`, with a key for each of KEYS."""

    def __init__(self, folder: Path, *, port: int | None = None, **environment: str) -> None:
        self.folder = folder
        self.port = port or free_port()
        self.environment = environment
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def journal(self) -> Path:
        return self.folder / "data" / "journal"

    def start(self) -> Gateway:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "gateway.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self.program, *self.arguments],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                env=self.whole_environment(),
            )
        return self.await_ready()

    @property
    def program(self) -> list[str]:
        return ["-m", "gateway"]

    @property
    def arguments(self) -> list[str]:
        return ["serve", "--port", str(self.port)]

    def whole_environment(self) -> dict[str, str]:
        return {
            **self.clean_environment(),
            "PYTHONPATH": str(ROOT),
            "SPANBILL_API_KEYS": ",".join(f"{user}={key}" for user, key in KEYS.items()),
            "SPANBILL_ROUTING__RETRIES__ATTEMPTS_MAX": "1",  # a test of one call; others say otherwise
            **self.environment,
        }

    def await_ready(self) -> Gateway:
        assert wait_until(self._ready, START_S, 0.05), self.log()
        return self

    @staticmethod
    def clean_environment() -> dict[str, str]:
        """Return this process's environment without what would configure a gateway."""
        return {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("OTEL_", "SPANBILL_")) and not name.lower().endswith("_proxy")
        }

    def _ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the gateway ended:\n{self.log()}"
        return http_ok(f"{self.url}/ready")

    def log(self) -> str:
        return (self.folder / "gateway.log").read_text()

    def stop(self) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def kill(self) -> None:
        """Kill it, and see that what comes behind its journal ends by itself."""
        assert self.process is not None
        behind = self.behind()
        self.process.kill()
        self.process.wait(timeout=60)
        assert behind is None or wait_until(lambda: not _alive(behind), END_S, 0.002), (
            "it outlives the gateway"
        )

    def children(self) -> dict[int, int]:
        """Return the processes that it has begun, with how far each gives way to others."""
        assert self.process is not None
        pid = self.process.pid
        pids = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return {child: os.getpriority(os.PRIO_PROCESS, child) for child in pids if _alive(child)}

    def behind(self) -> int | None:
        """Return the process behind the journal; None before it is at work, and when it is gone."""
        assert self.process is not None
        own = os.getpriority(os.PRIO_PROCESS, self.process.pid)
        return next((pid for pid, nice in self.children().items() if nice > own), None)

    def __enter__(self) -> Gateway:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()


def journal_lines(journal: Path) -> Iterator[dict[str, Any]]:
    """Yield every line of a journal folder as JSON."""
    for segment in sorted(journal.glob("[0-9]*-*/*.jsonl")):
        for line in segment.read_bytes().splitlines():
            yield json.loads(line)


def attributes(span: dict[str, Any]) -> dict[str, Any]:
    """Return a span's attributes as plain values."""
    return {pair["key"]: _value(pair["value"]) for pair in span["attributes"]}


def _value(value: dict[str, Any]) -> Any:
    ((kind, inner),) = value.items()
    if kind == "intValue":
        return int(inner)
    if kind == "arrayValue":
        return [_value(item) for item in inner.get("values", [])]
    return inner


def spans_in(line: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the spans of one OTLP/JSON line."""
    for resource in line.get("resourceSpans", ()):
        for scope in resource["scopeSpans"]:
            yield from scope["spans"]


def bills_in_journal(journal: Path) -> dict[str, dict[str, Any]]:
    """Return the bills of a journal by record id; no id may stand twice."""
    bills: dict[str, dict[str, Any]] = {}
    for line in journal_lines(journal):
        for span in spans_in(line):
            bill = attributes(span)
            if "billing.revision.of" in bill:
                continue
            assert bill["billing.record.id"] not in bills
            bills[bill["billing.record.id"]] = bill
    return bills
