"""The turn to recover, and the lock of the one that delivers: one process at a time, whoever dies when."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from otel.journal.files import Files
from otel.journal.recovery import dead_writers
from otel.journal.segments import JournalLocked, locked, mark_path
from otel.journal.turn import Lock, turn_to_recover
from tests.gateway_process import ROOT

FILES = Files()
HOLDER = """
import pathlib, sys
from otel.journal.files import Files
from otel.journal.segments import mark_path
from otel.journal.turn import Lock
folder = pathlib.Path(sys.argv[1])
mark = Files().hold(mark_path(folder, "a-1"))
lock = Lock(folder / "recovering")
assert lock.take()
print("held", flush=True)
sys.stdin.read()
"""


def mark(folder: Path, name: str) -> int:
    return FILES.hold(mark_path(folder, name))


def test_only_one_has_the_turn_and_the_next_gets_it_after_it(tmp_path: Path) -> None:
    with turn_to_recover(tmp_path, FILES) as first:
        assert first is not None
        with turn_to_recover(tmp_path, FILES) as second:
            assert second is None
    with turn_to_recover(tmp_path, FILES) as third:
        assert third is not None


def test_a_killed_process_gives_up_turn_and_mark(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with turn_to_recover(tmp_path, FILES) as turn:
            assert turn is None
        assert dead_writers(tmp_path, FILES) == ()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with turn_to_recover(tmp_path, FILES) as turn:
        assert turn is not None
    assert dead_writers(tmp_path, FILES) == ("a-1",)


def test_nobody_has_the_turn_while_one_that_wrote_bills_is_still_dying(tmp_path: Path) -> None:
    dying = mark(tmp_path, "a-1")
    with turn_to_recover(tmp_path, FILES) as turn:
        assert turn is not None
        turn.begin("a-1")
    # Its lock is free, its mark is not: what it wrote does not count as a dead writer's yet.
    with turn_to_recover(tmp_path, FILES) as turn:
        assert turn is None
    os.close(dying)
    with turn_to_recover(tmp_path, FILES) as turn:
        assert turn is not None


def test_one_that_ended_its_recovery_well_stands_in_nobodys_way(tmp_path: Path) -> None:
    living = mark(tmp_path, "a-1")
    with turn_to_recover(tmp_path, FILES) as turn:
        assert turn is not None
        turn.begin("a-1")
        turn.end()
    with turn_to_recover(tmp_path, FILES) as turn:
        assert turn is not None
    os.close(living)


def test_whatever_stands_in_the_turns_file_leads_nowhere_else(tmp_path: Path) -> None:
    for name in ("../lock", "x\0y", "no-such-writer", "\n"):
        (tmp_path / "recovering").write_text(name)
        with turn_to_recover(tmp_path, FILES) as turn:
            assert turn is not None


def test_a_writer_that_is_just_starting_is_not_dead(tmp_path: Path) -> None:
    """Between the making of its mark and the lock on it the mark has another name."""
    seen: list[tuple[str, ...]] = []

    class Watching(Files):
        def sync_directory(self, path: Path) -> None:
            seen.append(dead_writers(tmp_path, FILES))
            super().sync_directory(path)

    (tmp_path / "writers").mkdir()
    (tmp_path / "writers" / "b-2.new").write_bytes(bytes(16))  # made, and not locked yet
    assert dead_writers(tmp_path, FILES) == ()
    fd = Watching().hold(mark_path(tmp_path, "b-2"))
    assert seen == [()]
    os.close(fd)
    assert dead_writers(tmp_path, FILES) == ("b-2",)


def test_a_lock_that_was_taken_is_kept_and_given_up(tmp_path: Path) -> None:
    lock, other = Lock(tmp_path / "c" / "lock"), Lock(tmp_path / "c" / "lock")
    assert lock.take()
    assert lock.take()
    assert not other.take()
    lock.release()
    lock.release()
    assert other.take()
    assert fcntl.fcntl(other.fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    other.release()


def test_a_folder_whose_gateway_was_killed_is_held_by_its_workers_and_that_is_said(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with locked(tmp_path):
        (tmp_path / "lock").write_text(f"{gone.pid}\n")
        with pytest.raises(JournalLocked, match=f"process id {gone.pid}, which is gone"), locked(tmp_path):
            pass
        (tmp_path / "lock").write_text("nobody\n")
        with pytest.raises(JournalLocked, match="process id nobody; stop it"), locked(tmp_path):
            pass


def test_a_mark_is_locked_before_anybody_can_see_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a sibling that looks in between takes a writer that begins for a dead one."""
    seen: list[str] = []
    rename = os.rename

    def watched(old: Path, new: Path) -> None:
        with old.open("rb") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
        seen.append(new.name)
        rename(old, new)

    monkeypatch.setattr("otel.journal.files.os.rename", watched)
    os.close(mark(tmp_path, "a-1"))
    assert seen == ["a-1"]
