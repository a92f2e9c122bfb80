"""Contenders: what `make bench` measures, each on a core of its own, and the load on it.

Of a gateway it is the process that serves which has a core to itself. What comes behind its journal has the
cores of load and provider, as it would have another one in production; its processor time is told, too.
"""

from __future__ import annotations

import array
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from deploy.stack import http_ok, wait_until  # noqa: E402  # after the path is set

TOOL: Final = ROOT / "build" / "loadtool"
CORES: Final = sorted(os.sched_getaffinity(0))
GATEWAY_CORE: Final = {CORES[0]}
OTHER_CORES: Final = set(CORES[1:]) or {CORES[0]}
WAITS: Final = "waits"
CATCH_UP_S: Final = 60.0
"""What the ledger may take for the bills of a quarter of a minute of full load."""


def free_port() -> int:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        return int(holder.getsockname()[1])


@contextmanager
def running(command: list[str], cores: set[int], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, preexec_fn=lambda: os.sched_setaffinity(0, cores), **options)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def load(port: int, seconds: float, **options: object) -> dict[str, float]:
    arguments = [f"-{name}={str(value).lower()}" for name, value in options.items()]
    done = subprocess.run(
        [str(TOOL), "load", f"-to=127.0.0.1:{port}", f"-seconds={seconds}", *arguments],
        preexec_fn=lambda: os.sched_setaffinity(0, OTHER_CORES),
        capture_output=True,
        text=True,
        check=True,
    )
    result: dict[str, float] = json.loads(done.stdout)
    if result["errors"]:
        raise SystemExit(f"{result['errors']} wrong replies ({result['last_error']}): no figure is printed")
    return result


class GatewayUnderTest:
    """One gateway and its journal.

    Attributes:
        process: the one that serves.
        behind: the id of the one behind the journal.
    """

    def __init__(self, stack: ExitStack, mock_port: int, durability: str, writer: str | None = None) -> None:
        self.port = free_port()
        self.writer = writer
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=ROOT / "build")))
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "SPANBILL_"))}
        provider = {"openai": {"base_url": f"http://127.0.0.1:{mock_port}/v1", "api_key": "sk-mock"}}
        log = stack.enter_context((self.folder / "gateway.log").open("wb"))
        self.process = stack.enter_context(
            running(
                [sys.executable, *self.program(), "serve", "--port", str(self.port)],
                GATEWAY_CORE,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                env={
                    **clean,
                    "PYTHONPATH": str(ROOT),
                    "SPANBILL_API_KEYS": "sk-bench",
                    "SPANBILL_PROVIDERS": json.dumps(provider),
                    "SPANBILL_JOURNAL__DURABILITY": durability,
                },
            )
        )
        if not wait_until(lambda: http_ok(f"http://127.0.0.1:{self.port}/ready"), 20, 0.05):
            raise SystemExit((self.folder / "gateway.log").read_text())
        serving = self.process.pid
        (self.behind,) = map(int, Path(f"/proc/{serving}/task/{serving}/children").read_text().split())
        for thread in Path(f"/proc/{self.behind}/task").iterdir():
            os.sched_setaffinity(int(thread.name), OTHER_CORES)
        self.answered = 0

    def program(self) -> list[str]:
        """Return what serves: the product, or the product with another writer (see `durability.py`)."""
        if self.writer is None:
            return ["-m", "gateway"]
        return [str(ROOT / "benchmarks" / "durability.py"), self.writer, str(self.folder / WAITS)]

    def stop(self) -> list[int]:
        """End it; return how long each bill was waited for, in ns, where that was timed."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=60)
        waits = array.array("q")
        waits.frombytes((self.folder / WAITS).read_bytes())
        return sorted(waits)

    @property
    def pids(self) -> tuple[int, ...]:
        """Its processes."""
        return self.process.pid, self.behind

    def cpu_s(self) -> float:
        """Return the processor time of the process that serves."""
        return _cpu_s(self.process.pid)

    def behind_cpu_s(self) -> float:
        """Return that of the process behind the journal."""
        return _cpu_s(self.behind)

    def rss_mib(self) -> float:
        """Return the memory of the process that serves."""
        return _memory_mib(self.process.pid, "Rss")

    def own_mib(self) -> tuple[float, float]:
        """Return what each of the two has that the other one has not, the one that serves first."""
        serving, behind = (
            _memory_mib(pid, "Private_Clean") + _memory_mib(pid, "Private_Dirty") for pid in self.pids
        )
        return serving, behind

    def caught_up(self) -> None:
        """Wait until the ledger has all bills."""
        name = "llm_gateway_ledger_bills_total"
        if not wait_until(lambda: f"{name} {float(self.answered)}" in self.page(), CATCH_UP_S, 0.1):
            raise SystemExit(f"the ledger does not catch up with {self.answered} bills")

    def page(self) -> str:
        """Return its metrics."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as page:
            return str(page.read().decode())

    def bills(self) -> int:
        segments = (self.folder / "data" / "journal").glob("2*/*.jsonl")
        return sum(path.read_bytes().count(b'{"j":{"k":"S"') for path in segments)

    def check(self) -> None:
        """Every answer has its bill, and no bill is without an answer."""
        if self.writer != "neither" and self.bills() != self.answered:
            raise SystemExit(f"{self.answered} answers but {self.bills()} bills in the journal")
        if f'llm_gateway_records_total{{status="final"}} {float(self.answered)}' not in self.page():
            raise SystemExit("the gateway's own count of bills differs from the answers")


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory_mib(pid: int, kind: str) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:")) / 1024


def paused(pids: Iterable[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)


def resumed(pids: Iterable[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
