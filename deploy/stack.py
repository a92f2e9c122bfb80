"""The native stack: the real Collector, Jaeger and Prometheus on loopback, without containers.

`python deploy/stack.py up | down | status | build`. The Collector and Jaeger are built once with Go and kept
in a cache (`SPANBILL_STACK_CACHE`, by default below `~/.cache`); Prometheus is the system's package. State,
logs and process ids stand in `.stack/`. The end-to-end tests start the same class on free ports.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
COLLECTOR_VERSION: Final = "0.155.0"
JAEGER_VERSION: Final = "2.13.0"
JAEGER_MODULE: Final = "github.com/jaegertracing/jaeger@v1.76.0"
BUILDER_MODULE: Final = f"go.opentelemetry.io/collector/cmd/builder@v{COLLECTOR_VERSION}"
PORTS: Final = {
    "otlp_http": 4318,
    "otlp_grpc": 4317,
    "log_hop": 4319,
    "collector_health": 13133,
    "collector_metrics": 8889,
    "collector_own": 8888,
    "jaeger_otlp": 14317,
    "jaeger_ui": 16686,
    "jaeger_grpc": 16685,
    "jaeger_health": 13134,
    "prometheus": 9090,
}
START_S: Final = 60.0
STOP_S: Final = 20.0


class StackError(Exception):
    """The stack cannot be built or started; the message says what to install or where to look."""


def cache() -> Path:
    """Return the folder of the built programs."""
    named = os.environ.get("SPANBILL_STACK_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "spanbill" / "stack"


def have_go() -> bool:
    """Say whether the programs can be built here or are there already."""
    built = all(path.exists() for path in (collector_binary(), jaeger_binary()))
    return built or shutil.which("go") is not None


def collector_binary() -> Path:
    """Return where the Collector stands once built."""
    return cache() / f"otelcol-{COLLECTOR_VERSION}"


def jaeger_binary() -> Path:
    """Return where Jaeger stands once built."""
    return cache() / f"jaeger-{JAEGER_VERSION}"


def prometheus_binary() -> str:
    """Return the system's Prometheus."""
    found = shutil.which("prometheus")
    if found is None:
        raise StackError("Prometheus is missing: install the system's package (`apt-get install prometheus`)")
    return found


def build() -> None:
    """Build what is missing, with a line of progress for each step."""
    cache().mkdir(parents=True, exist_ok=True)
    for name, binary, make in (
        ("Collector", collector_binary(), _build_collector),
        ("Jaeger", jaeger_binary(), _build_jaeger),
    ):
        if binary.exists():
            continue
        if shutil.which("go") is None:
            raise StackError(f"building {name} needs Go, once: install it and run this again")
        started = time.monotonic()
        print(f"building {name} (once; minutes) ...", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            made = make(Path(folder))
            partial = binary.with_suffix(".partial")
            shutil.copy2(made, partial)
            partial.rename(binary)
        print(f"built {name} in {time.monotonic() - started:.0f} s", flush=True)


def _build_collector(folder: Path) -> Path:
    environment = {**os.environ, "GOBIN": str(folder / "bin")}
    _go(["go", "install", BUILDER_MODULE], folder, environment)
    manifest = (ROOT / "deploy" / "collector-manifest.yaml").read_text()
    (folder / "manifest.yaml").write_text(manifest.replace("build/otelcol", str(folder / "source")))
    # Its own `go mod tidy` fails on test-only modules, after the sources were written: that is expected.
    subprocess.run(
        [folder / "bin" / "builder", "--config", "manifest.yaml", "--skip-compilation"],
        cwd=folder,
        env=environment,
        capture_output=True,
        check=False,
    )
    binary = folder / "otelcol"
    command = ["go", "build", "-mod=mod", "-trimpath", "-ldflags=-s -w", "-o", str(binary), "."]
    _go(command, folder / "source", environment)
    return binary


def _build_jaeger(folder: Path) -> Path:
    answer = _go(["go", "mod", "download", "-json", JAEGER_MODULE], folder, dict(os.environ))
    source = Path(json.loads(answer)["Dir"])
    binary = folder / "jaeger"
    _go(
        ["go", "build", "-trimpath", "-ldflags=-s -w", "-o", str(binary), "./cmd/jaeger"],
        source,
        dict(os.environ),
    )
    return binary


def _go(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        ["nice", *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise StackError(f"`{' '.join(command)}` failed:\n{done.stderr[-2000:]}")
    return done.stdout


class Stack:
    """The three programs in one folder.

    Args:
        folder: for state, logs and process ids.
        ports: by role; `PORTS` by default.
        gateway: `host:port` of a gateway whose /metrics Prometheus reads too.
    """

    def __init__(self, folder: Path, ports: dict[str, int] | None = None, gateway: str | None = None) -> None:
        self.folder = folder
        self.ports = ports or dict(PORTS)
        self._gateway = gateway
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def log_file(self) -> Path:
        """Where the Collector writes one line per bill."""
        return self.folder / "log" / "bills.jsonl"

    def url(self, role: str) -> str:
        """Return the base URL of a role that speaks HTTP."""
        return f"http://127.0.0.1:{self.ports[role]}"

    def __enter__(self) -> Stack:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Build if needed, start all three, and wait until each is healthy."""
        build()
        prometheus_binary()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.start_jaeger()
        self.start_collector()
        self.start_prometheus()

    def start_jaeger(self) -> None:
        """Start Jaeger and wait for its query API."""
        address = {name: f"127.0.0.1:{self.ports[role]}" for name, role in _JAEGER_ADDRESSES.items()}
        data = self.folder / "jaeger"
        data.mkdir(parents=True, exist_ok=True)
        self._spawn(
            "jaeger",
            [str(jaeger_binary()), "--config", str(ROOT / "deploy" / "jaeger.yaml")],
            {**address, "JAEGER_DATA": str(data)},
        )
        self._await("jaeger", self.url("jaeger_ui") + "/api/services")

    def start_collector(self) -> None:
        """Start the Collector and wait until it is healthy."""
        address = {name: f"127.0.0.1:{self.ports[role]}" for name, role in _COLLECTOR_ADDRESSES.items()}
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        self._spawn(
            "collector",
            [str(collector_binary()), "--config", str(ROOT / "collector-config.yaml")],
            {
                **address,
                "COLLECTOR_QUEUE_DIR": str(self.folder / "queue"),
                "COLLECTOR_LOG_FILE": str(self.log_file),
                "COLLECTOR_OWN_METRICS_PORT": str(self.ports["collector_own"]),
            },
        )
        self._await("collector", self.url("collector_health") + "/")

    def start_prometheus(self) -> None:
        """Start Prometheus and wait until it is ready."""
        home = self.folder / "prometheus"
        (home / "targets").mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / "deploy" / "prometheus.yml", home / "prometheus.yml")
        groups = [
            {
                "targets": [f"127.0.0.1:{self.ports['collector_metrics']}"],
                "labels": {"component": "collector"},
            }
        ]
        if self._gateway:
            groups.append({"targets": [self._gateway], "labels": {"component": "gateway"}})
        (home / "targets" / "native.yml").write_text(json.dumps(groups))
        self._spawn(
            "prometheus",
            [
                prometheus_binary(),
                f"--config.file={home / 'prometheus.yml'}",
                f"--storage.tsdb.path={home / 'data'}",
                f"--web.listen-address=127.0.0.1:{self.ports['prometheus']}",
                "--log.level=warn",
            ],
            {},
        )
        self._await("prometheus", self.url("prometheus") + "/-/ready")

    def kill(self, name: str) -> None:
        """End one program with SIGKILL, as a power cut would."""
        self._end(name, signal.SIGKILL)

    def stop(self) -> None:
        """End what this stack started, politely."""
        for name in ("prometheus", "collector", "jaeger"):
            self._end(name, signal.SIGTERM)

    def pids(self) -> dict[str, int]:
        """Return the ids of the running programs, also those of an earlier call."""
        found = {name: process.pid for name, process in self._processes.items()}
        for file in self.folder.glob("*.pid"):
            found.setdefault(file.stem, int(file.read_text()))
        return {name: pid for name, pid in found.items() if _alive(pid)}

    def _spawn(self, name: str, command: list[str], environment: dict[str, str]) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        self._processes[name] = process
        (self.folder / f"{name}.pid").write_text(str(process.pid))

    def _await(self, name: str, url: str) -> None:
        def answers() -> bool:
            if self._processes[name].poll() is not None:
                raise StackError(f"{name} ended at once; its last words:\n{self._last_words(name)}")
            return http_ok(url)

        if not wait_until(answers, START_S):
            raise StackError(f"{name} did not answer at {url}; its last words:\n{self._last_words(name)}")

    def _last_words(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")[-2000:]

    def _end(self, name: str, how: signal.Signals) -> None:
        pid = self.pids().get(name)
        if pid is None:
            return
        os.kill(pid, how)
        if not wait_until(lambda: not _alive(pid), STOP_S):
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not _alive(pid), STOP_S)
        process = self._processes.pop(name, None)
        if process is not None:
            process.wait()
        (self.folder / f"{name}.pid").unlink(missing_ok=True)


_JAEGER_ADDRESSES: Final = {
    "JAEGER_OTLP": "jaeger_otlp",
    "JAEGER_UI": "jaeger_ui",
    "JAEGER_QUERY_GRPC": "jaeger_grpc",
    "JAEGER_HEALTH": "jaeger_health",
}
_COLLECTOR_ADDRESSES: Final = {
    "COLLECTOR_OTLP_HTTP": "otlp_http",
    "COLLECTOR_OTLP_GRPC": "otlp_grpc",
    "COLLECTOR_LOG_HOP": "log_hop",
    "COLLECTOR_LOG_HOP_TARGET": "log_hop",
    "COLLECTOR_HEALTH_ENDPOINT": "collector_health",
    "COLLECTOR_METRICS": "collector_metrics",
    "JAEGER_OTLP_GRPC": "jaeger_otlp",
}


def wait_until(condition: Callable[[], bool], timeout_s: float, every_s: float = 0.1) -> bool:
    """Poll until the condition holds; False when the time is up."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every_s)
    return True


def http_ok(url: str) -> bool:
    """Say whether a GET answers 200."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"  # a child that ended and was not yet waited for


def main(arguments: list[str]) -> int:
    """Run one command."""
    stack = Stack(ROOT / ".stack", gateway="127.0.0.1:8080")
    command = arguments[0] if arguments else "status"
    try:
        if command == "build":
            build()
        elif command == "up":
            stack.start()
            _table(stack)
        elif command == "down":
            stack.stop()
            print("stopped")
        else:
            _table(stack)
    except StackError as fault:
        print(f"stack: {fault}", file=sys.stderr)
        stack.stop()
        return 1
    return 0


def _table(stack: Stack) -> None:
    running = stack.pids()
    rows = (
        ("collector", "OTLP/HTTP", stack.url("otlp_http")),
        ("collector", "metrics", stack.url("collector_metrics") + "/metrics"),
        ("collector", "log of bills", str(stack.log_file)),
        ("jaeger", "traces", stack.url("jaeger_ui") + "/api/traces?service=spanbill"),
        ("prometheus", "PromQL", stack.url("prometheus")),
    )
    for name, what, where in rows:
        print(f"{name:<11}{'up' if name in running else 'down':<6}{what:<14}{where}")
    if running:
        print(f"\npoint the gateway at it: OTEL_EXPORTER_OTLP_ENDPOINT={stack.url('otlp_http')} make run")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
