"""A real PostgreSQL of the tests' own: Debian's package, a folder in /tmp, a Unix socket, no port."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OPTIONS = "-c listen_addresses= -c fsync=off -c full_page_writes=off -c synchronous_commit=off -c jit=off"


def programs() -> Path | None:
    """Return the folder of the newest PostgreSQL's programs, None where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
    return found[-1].parent if found else None


class Postgres:
    """A running server; each `database` is new and empty."""

    def __init__(self, folder: Path, owner: pwd.struct_passwd | None) -> None:
        self.folder = folder
        self._owner = owner
        self._numbers = itertools.count(1)

    def database(self) -> str:
        name = f"ledger{next(self._numbers)}"
        self.call("createdb", "-h", str(self.folder), "-U", "spanbill", name)
        return f"postgresql://spanbill@/{name}?host={self.folder}"

    def call(self, program: str, *arguments: str) -> None:
        bin_folder = programs()
        assert bin_folder is not None
        done = subprocess.run(
            [str(bin_folder / program), *arguments],
            user=None if self._owner is None else self._owner.pw_uid,
            group=None if self._owner is None else self._owner.pw_gid,
            extra_groups=None if self._owner is None else [],
            cwd=self.folder,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> None:
        log = str(self.folder / "log")
        data = str(self.folder / "data")
        self.call("pg_ctl", "-D", data, "-l", log, "-o", f"{OPTIONS} -k {self.folder}", "-w", "start")

    def stop(self, mode: str = "immediate") -> None:
        self.call("pg_ctl", "-D", str(self.folder / "data"), "-m", mode, "-w", "stop")


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """Start a server, as another user where this one is root, which PostgreSQL refuses."""
    owner = pwd.getpwnam("nobody") if os.getuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="spanbill-pg-"))
    try:
        if owner is not None:
            os.chown(folder, owner.pw_uid, owner.pw_gid)
        server = Postgres(folder, owner)
        server.call("initdb", "-D", str(folder / "data"), "-U", "spanbill", "-A", "trust", "-N", "-E", "UTF8")
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
