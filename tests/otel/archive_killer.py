"""Retention with an archive, killed by SIGKILL at each operation on the disk in turn, and finished each time.

Called with a journal folder and one to work in. For each operation, and for each write also in its middle, a
process dies there; then every segment must be whole in the journal or whole in the archive, and a run that
nobody kills must leave all of them in the archive. One line a kill on standard output: where it was.
"""

from __future__ import annotations

import gzip
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from otel.journal.archive import Archive
from otel.journal.audit import audit_folder
from otel.journal.files import Files
from otel.journal.removal import Remover, Retention
from tests.journals import DAY_NS, NOON_NS

OPERATIONS = (
    "append",
    "close",
    "create",
    "make_directory",
    "read",
    "remove",
    "remove_directory",
    "rename",
    "replace",
    "sync",
    "sync_directory",
    "sync_file",
)
KILLS_MAX = 2000


def killing(at: int, trace: int) -> Files:
    """Return a disk whose process dies before its `at`-th operation."""
    files = Files()
    done = 0

    def reached(name: str) -> bool:
        nonlocal done
        done += 1
        if done == at:
            os.write(trace, name.encode())
        return done == at

    def dying(name: str) -> Any:
        real = getattr(files, name)

        def call(*args: Any) -> Any:
            if reached(name):
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args)

        return call

    def write(fd: int, data: bytes) -> int:
        if reached("write"):
            os.kill(os.getpid(), signal.SIGKILL)
        if reached("half a write"):
            os.write(fd, data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return os.write(fd, data)

    for name in OPERATIONS:
        setattr(files, name, dying(name))
    files.write = write  # type: ignore[method-assign]
    return files


def run(folder: Path, archive: Path, files: Files, leave: int) -> int:
    return Remover(
        folder,
        Retention(bytes_max=leave),
        consumers=frozenset({"otlp"}),
        archive=Archive(archive, files=files),
        now_ns=lambda: NOON_NS + 3 * DAY_NS,
        files=files,
        pause=lambda: None,
    ).run()


def segments(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob("2*/*.jsonl"))}


def copies(archive: Path) -> dict[str, bytes]:
    paths = sorted(archive.glob("2*/*.jsonl.gz"))
    return {
        str(path.relative_to(archive)).removesuffix(".gz"): gzip.decompress(path.read_bytes())
        for path in paths
    }


def main(sound: Path, work: Path) -> None:
    original = segments(sound)
    leave = sum(len(data) for data in list(original.values())[2:])
    for at in range(1, KILLS_MAX):
        folder, archive = work / "journal", work / "archive"
        for old in (folder, archive):
            shutil.rmtree(old, ignore_errors=True)
        shutil.copytree(sound, folder)
        told, trace = os.pipe()
        child = os.fork()
        if child == 0:
            run(folder, archive, killing(at, trace), leave)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        os.close(trace)
        where = os.read(told, 100).decode()
        os.close(told)
        if not os.WIFSIGNALED(status):
            assert os.waitstatus_to_exitcode(status) == 0
            break
        left, kept = segments(folder), copies(archive)
        for name, data in original.items():
            assert left.get(name) == data or kept.get(name) == data, f"{name} is lost by a kill at {where}"
            assert name not in kept or kept[name] == data, f"{name} is torn by a kill at {where}"
        run(folder, archive, Files(), leave)
        left, kept = segments(folder), copies(archive)
        assert len(left) == len(original) - 2, where
        assert {**left, **kept} == original, where
        report = audit_folder(folder)
        assert report.complete, (where, report.findings)
        assert report.intact, (where, report.findings)
        sys.stdout.write(f"{where}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
