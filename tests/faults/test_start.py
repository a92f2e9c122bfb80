"""A gateway that cannot use its journal's folder or its address says so in one line, and exits with 78.

All starts but one are forks of one process that has imported everything and has no superuser's right to
override the modes of files.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.gateway_process import ROOT, Gateway

DROP_OVERRIDE = """import ctypes, os, sys
libc = ctypes.CDLL(None)
for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    libc.prctl(24, capability, 0, 0, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
START_ALL = """import os, sys
from gateway.cli.main import app
children = {}
for folder in sys.stdin.read().splitlines():
    pid = os.fork()
    if not pid:
        os.chdir(folder)
        for fd, name in ((1, "../out-"), (2, "../err-")):
            os.dup2(os.open(name + os.path.basename(folder), os.O_CREAT | os.O_WRONLY), fd)
        code = 1
        try:
            app(["serve", "--port", os.environ["PORT"]])
        except SystemExit as told:
            code = told.code
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    children[pid] = folder
for pid, folder in children.items():
    print(os.path.basename(folder), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "PYTHONPATH": str(ROOT),
    "SPANBILL_API_KEYS": "a=sk-b-0001",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
}
TIMEOUT_S = 120


class Start(NamedTuple):
    """How one start ended."""

    code: int
    out: str
    err: str


def no_right_to_write(folder: Path, dead: Path) -> None:
    (folder / "data" / "journal").mkdir(parents=True)
    (folder / "data" / "journal").chmod(0o555)


def no_right_to_make(folder: Path, dead: Path) -> None:
    (folder / "data").mkdir()
    (folder / "data").chmod(0o555)


def no_right_to_lock(folder: Path, dead: Path) -> None:
    (folder / "data" / "journal").mkdir(parents=True)
    (folder / "data" / "journal" / "lock").write_text("")
    (folder / "data" / "journal" / "lock").chmod(0o444)


def a_file_above(folder: Path, dead: Path) -> None:
    (folder / "data").write_text("a file")


def a_file_instead(folder: Path, dead: Path) -> None:
    (folder / "data").mkdir()
    (folder / "data" / "journal").write_text("a file")


def marks_not_to_be_written(folder: Path, dead: Path) -> None:
    (folder / "data" / "journal" / "writers").mkdir(parents=True)
    (folder / "data" / "journal" / "writers").chmod(0o555)


def a_file_for_marks(folder: Path, dead: Path) -> None:
    (folder / "data" / "journal").mkdir(parents=True)
    (folder / "data" / "journal" / "writers").write_text("a file")


def a_file_for_cursors(folder: Path, dead: Path) -> None:
    (folder / "data" / "journal").mkdir(parents=True)
    (folder / "data" / "journal" / "cursors").write_text("a file")


def a_folder_for_the_turn(folder: Path, dead: Path) -> None:
    (folder / "data" / "journal" / "recovering").mkdir(parents=True)


def a_segment_not_to_be_read(folder: Path, dead: Path) -> None:
    shutil.copytree(dead / "data", folder / "data")
    (segment,) = folder.glob("data/journal/[0-9]*-*/*.jsonl")
    segment.chmod(0)


def a_mark_not_to_be_read(folder: Path, dead: Path) -> None:
    shutil.copytree(dead / "data", folder / "data")
    (mark,) = folder.glob("data/journal/writers/*")
    mark.chmod(0)


def a_day_not_to_be_written(folder: Path, dead: Path) -> None:
    shutil.copytree(dead / "data", folder / "data")
    (day,) = folder.glob("data/journal/[0-9]*-*")
    day.chmod(0o555)


def nothing_wrong(folder: Path, dead: Path) -> None:
    """Only the address is in use; the journal of a dead gateway is taken over without a fault."""
    shutil.copytree(dead / "data", folder / "data")


DENIED, IN_THE_WAY = "EACCES: Permission denied", "move away the file"
SPOILT: list[tuple[Callable[[Path, Path], None], str]] = [
    (no_right_to_write, DENIED),
    (no_right_to_make, DENIED),
    (no_right_to_lock, DENIED),
    (a_file_above, IN_THE_WAY),
    (a_file_instead, IN_THE_WAY),
    (marks_not_to_be_written, DENIED),
    (a_file_for_marks, IN_THE_WAY),
    (a_file_for_cursors, IN_THE_WAY),
    (a_folder_for_the_turn, "move away the folder"),
    (a_segment_not_to_be_read, DENIED),
    (a_mark_not_to_be_read, DENIED),
    (a_day_not_to_be_written, DENIED),
]


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Start]:
    """Start a gateway in each spoilt folder, side by side, at an address that is in use."""
    base = tmp_path_factory.mktemp("starts")
    with Gateway(base / "dead") as gateway:
        gateway.kill()
    folders = []
    for spoil in [*[spoil for spoil, _ in SPOILT], nothing_wrong]:
        folders.append(base / spoil.__name__)
        folders[-1].mkdir()
        spoil(folders[-1], base / "dead")
    with socket.create_server(("127.0.0.1", 0)) as holder:
        ended = subprocess.run(
            [sys.executable, "-c", DROP_OVERRIDE, "-c", START_ALL],
            input="\n".join(map(str, folders)),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            env={**ENVIRONMENT, "PORT": str(holder.getsockname()[1])},
        )
    assert ended.returncode == 0, ended.stderr
    codes = dict(line.split() for line in ended.stdout.splitlines())
    return {
        folder.name: Start(
            int(codes[folder.name]),
            (base / f"out-{folder.name}").read_text(),
            (base / f"err-{folder.name}").read_text(),
        )
        for folder in folders
    }


@pytest.mark.parametrize(("spoil", "reason"), SPOILT)
def test_a_folder_that_cannot_be_used_is_said_plainly(
    starts: dict[str, Start], spoil: Callable[[Path, Path], None], reason: str
) -> None:
    start = starts[spoil.__name__]
    assert start.code == 78, start.err
    assert "Traceback" not in start.out + start.err
    (line,) = start.err.splitlines()
    assert line.startswith("spanbill: the journal's folder data/journal cannot be used: ")
    assert reason in line
    assert "journal.directory" in line


def test_an_address_in_use_is_said_plainly(starts: dict[str, Start]) -> None:
    start = starts[nothing_wrong.__name__]
    assert start.code == 78
    assert "Traceback" not in start.out + start.err
    (line,) = start.err.splitlines()
    assert line.startswith("spanbill: cannot serve on 127.0.0.1:")
    errors = [told for told in map(json.loads, start.out.splitlines()) if told["level"] == "error"]
    assert any("address already in use" in told["message"].lower() for told in errors)


def test_a_read_only_file_system_is_said_plainly(tmp_path: Path) -> None:
    tried = subprocess.run(["unshare", "-rm", "true"], capture_output=True, text=True)
    if tried.returncode != 0:
        pytest.skip(f"no user namespace can be made here: {tried.stderr.strip()}")
    (tmp_path / "data" / "journal").mkdir(parents=True)
    mounted = 'mount -t tmpfs -o ro none data/journal && exec "$@"'
    started = subprocess.run(
        ["unshare", "-rm", "sh", "-c", mounted, "-", sys.executable, "-m", "gateway", "serve", "--port", "0"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env=ENVIRONMENT,
    )
    assert started.returncode == 78
    (line,) = started.stderr.splitlines()
    assert "EROFS: Read-only file system" in line
    assert "mount its file system for writing" in line
