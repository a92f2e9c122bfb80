"""Log lines of several processes on one pipe: whole, and each with its worker's number."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter

from gateway.logs import DirectLines, LineWriter
from tests.gateway_process import ROOT

WORKERS = 3
LINES = 3000
WRITING = f"""
import sys
from gateway.logs import LineWriter
lines = LineWriter(worker=int(sys.argv[1]))
for number in range({LINES}):
    lines.write(b'{{"number":%d,"filler":"%b"}}' % (number, b"x" * (number % 500)))
lines.close()
lines._thread.join()
"""


def test_lines_of_several_workers_on_one_pipe_stay_whole_and_have_their_number() -> None:
    reading, writing = os.pipe()
    workers = [
        subprocess.Popen([sys.executable, "-c", WRITING, str(number)], cwd=ROOT, stdout=writing)
        for number in range(WORKERS)
    ]
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        lines = [json.loads(line) for line in pipe]
    assert [worker.wait() for worker in workers] == [0] * WORKERS
    assert Counter(line["worker"] for line in lines) == dict.fromkeys(range(WORKERS), LINES)
    for worker in range(WORKERS):
        assert [line["number"] for line in lines if line["worker"] == worker] == list(range(LINES))


def test_lines_of_a_gateway_that_is_one_process_are_as_they_were() -> None:
    reading, writing = os.pipe()
    lines = LineWriter(writing)
    lines.write(b'{"a":1}')
    lines.write(b'{"b":2}')
    lines.close()
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read() == b'{"a":1}\n{"b":2}\n'


def test_a_process_without_threads_never_waits_for_a_reader_of_its_log() -> None:
    reading, writing = os.pipe()
    lines = DirectLines(writing)
    for _ in range(1000):
        lines.write(b'{"filler":"%b"}' % (b"x" * 1000))
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        read = pipe.read().splitlines()
    assert 0 < len(read) < 1000
    assert set(read) == {b'{"filler":"%b"}' % (b"x" * 1000)}
