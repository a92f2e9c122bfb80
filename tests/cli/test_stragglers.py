"""A worker that does not end when it is told to is killed in the end, and the gateway with it goes."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.gateway_process import ROOT

SUPERVISE = """
import os, signal, socket, time
from gateway.cli import supervisor
from gateway.forking import READY
from gateway.logs import DirectLines, configure

def work(number, wire):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    wire.send(READY)
    while True:
        time.sleep(60)

def work_behind(wire):
    while wire.recv(1) != b"s":
        pass

configure("info", DirectLines())
supervisor.STRAGGLER_S = 0.2
stop = lambda: os.kill(os.getpid(), signal.SIGTERM)
listener = socket.create_server(("127.0.0.1", 0))
print(supervisor.Supervisor(work, 1, work_behind, [listener], 0.0, stop).run(), listener.fileno())
"""


def test_a_worker_that_does_not_end_is_killed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SUPERVISE], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    *lines, fault = done.stdout.splitlines()
    told = [json.loads(line)["message"] for line in lines]
    assert told == ["a worker serves", "stopping", "a worker does not end and is killed"]
    assert fault == "None -1", "nobody may wait in the queue of a listener that nobody serves"
