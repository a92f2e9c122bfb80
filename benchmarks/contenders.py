"""Contenders: what `make bench` measures, each a process on a core of its own, and the load on it."""

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
from collections.abc import Iterator
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
    """One gateway process and its journal."""

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

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss_mib(self) -> float:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def bills(self) -> int:
        segments = (self.folder / "data" / "journal").glob("2*/*.jsonl")
        return sum(path.read_bytes().count(b'{"j":{"k":"S"') for path in segments)

    def check(self) -> None:
        """Every answer has its bill, and no bill is without an answer."""
        if self.writer != "neither" and self.bills() != self.answered:
            raise SystemExit(f"{self.answered} answers but {self.bills()} bills in the journal")
        page = urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10).read().decode()
        if f'llm_gateway_records_total{{status="final"}} {float(self.answered)}' not in page:
            raise SystemExit("the gateway's own count of bills differs from the answers")


def paused(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGSTOP)


def resumed(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGCONT)
