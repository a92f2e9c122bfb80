"""Reading by other processes."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from otel.journal.turn import Lock
from tests.journals import make_journal

_READS_AND_WAITS = """
import sys, time
from pathlib import Path
from gateway.ledger.position import Position
from gateway.ledger.reading import projected
from otel.journal.files import Files
from otel.journal.turn import Lock
folder = Path(sys.argv[1])
assert Lock(folder / "cursors" / "ledger.lock").take()
with projected(folder, Position({}, {}), 1, Files(), 2) as read:
    for piece in read:
        assert list(piece.batches)
        print("reading", flush=True)
        sys.stdin.read()
"""


def test_who_reads_for_a_rebuild_that_was_killed_holds_none_of_its_locks(tmp_path: Path) -> None:
    folder = make_journal(tmp_path / "journal")
    lock = Lock(folder / "cursors" / "ledger.lock")
    killed = subprocess.Popen(
        [sys.executable, "-c", _READS_AND_WAITS, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert killed.stdin is not None
    assert killed.stdout is not None
    assert killed.stdout.readline() == b"reading\n"
    assert not lock.take()  # it has it
    killed.kill()
    killed.wait()
    deadline = time.monotonic() + 60
    while not lock.take():
        assert time.monotonic() < deadline, "somebody has its lock still"
        time.sleep(0.01)
    lock.release()
    killed.stdin.close()
    killed.stdout.close()
