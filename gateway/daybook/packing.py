"""Packing: a finished file becomes a compressed one, durably, before its plain form goes.

It may be killed at any point. Both forms may then stand beside one another; packing again makes one of them,
with every line of both.
"""

from __future__ import annotations

import gzip
import os
import shutil
import zlib
from pathlib import Path
from typing import BinaryIO, Final, cast

from gateway.daybook.keeping import PACKED

BLOCK_BYTES: Final = 256 * 1024
LEVEL: Final = 6


def pack(path: Path) -> Path:
    """Pack one file; return where it stands now.

    Raises:
        OSError: it stays as it is, or in both forms.
    """
    packed = path.with_name(path.name + PACKED)
    if packed.exists() and _holds(packed, path):
        path.unlink()
        return packed
    new = path.with_name(path.name + ".new")
    with new.open("wb") as out:
        os.fchmod(out.fileno(), path.stat().st_mode & 0o777)
        if packed.exists():  # a line came late: files of this kind may be put end to end (RFC 1952, 2.2)
            with packed.open("rb") as earlier:
                shutil.copyfileobj(earlier, out, BLOCK_BYTES)
        with path.open("rb") as plain, gzip.GzipFile("", "wb", LEVEL, out, mtime=0) as member:
            shutil.copyfileobj(plain, member, BLOCK_BYTES)
        out.flush()
        os.fsync(out.fileno())
    os.replace(new, packed)
    path.unlink()
    return packed


def _holds(packed: Path, path: Path) -> bool:
    """Say whether a packed file is the plain one: the process was killed before it could remove that."""
    try:
        with gzip.open(packed) as there, path.open("rb") as here:
            while True:  # ends with the shorter of the two
                ours = here.read(BLOCK_BYTES)
                if cast(BinaryIO, there).read(BLOCK_BYTES) != ours:
                    return False
                if not ours:
                    return True
    except (EOFError, gzip.BadGzipFile, zlib.error):
        return False
