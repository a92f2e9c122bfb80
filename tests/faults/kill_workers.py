"""Workers: processes that run scenarios side by side, and the reports as they come.

One of them works on the disk of the temporary folder; the others in memory where the system has a folder for
that. A SIGKILL takes nothing from either, and a sync that costs nothing leaves time for more of them.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Iterable
from pathlib import Path

import msgspec

from tests.faults.killing import Report, Scenario
from tests.gateway_process import ROOT

WORKERS = min(4, os.cpu_count() or 1)
IN_MEMORY = Path("/dev/shm")
REPORT_S = 90.0
"""No worker is silent for longer."""


def reports(scenarios: Iterable[Scenario]) -> Generator[Report, None, None]:
    """Run scenarios in WORKERS processes; yield a report of each one, in the order of their ends.

    `scenarios` may go on for ever: close the iterator when enough is known.
    """
    todo: queue.Queue[Scenario | None] = queue.Queue(WORKERS)
    done: queue.Queue[Report | Exception] = queue.Queue()
    threads = [
        threading.Thread(target=_work, args=(number, todo, done), daemon=True) for number in range(WORKERS)
    ]
    for thread in threads:
        thread.start()
    rest = iter(scenarios)
    under_way = 0
    try:
        while True:  # ends with `scenarios`, or when the iterator is closed
            while under_way < 2 * WORKERS and (scenario := next(rest, None)) is not None:
                todo.put(scenario)
                under_way += 1
            if not under_way:
                return
            report = done.get(timeout=REPORT_S)
            under_way -= 1
            if isinstance(report, Exception):
                raise report
            yield report
    finally:
        for _ in threads:
            todo.put(None)
        for thread in threads:
            thread.join(REPORT_S)


def _work(number: int, todo: queue.Queue[Scenario | None], done: queue.Queue[Report | Exception]) -> None:
    in_memory = number > 0 and os.access(IN_MEMORY, os.W_OK)
    with (
        tempfile.TemporaryDirectory(
            prefix="spanbill-kill-", dir=IN_MEMORY if in_memory else None, ignore_cleanup_errors=True
        ) as folder,
        subprocess.Popen(
            [sys.executable, "-m", "tests.faults.killing"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "TMPDIR": folder},
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            while (scenario := todo.get()) is not None:  # `reports` puts one None for each worker
                process.stdin.write(msgspec.json.encode(scenario) + b"\n")
                process.stdin.flush()
                done.put(msgspec.json.decode(process.stdout.readline(), type=Report))
        except (OSError, msgspec.MsgspecError) as fault:
            done.put(RuntimeError(f"a worker ended ({process.poll()}): {fault}"))
