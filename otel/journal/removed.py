"""Removed: what retention wrote down of segments that are no longer in the folder, and the folder's own name.

For readers beside retention: nothing is repaired. The name is made once and stays with the folder, wherever
it is moved to; a copy has the same one, and is the same journal to everybody who follows it.
"""

from __future__ import annotations

import re
import secrets
from pathlib import Path
from typing import Final

import msgspec

from otel.journal.audit.reconcile import MANIFEST, Removed
from otel.journal.files import Files
from otel.journal.segments import SEGMENTS

MANIFEST_BYTES_MAX: Final = 256 * 1024 * 1024
NAME: Final = "folder-id"
_NAME: Final = re.compile(rb"[0-9a-f]{32}\n?")


class UnreadableManifest(Exception):
    """What was removed cannot be known."""


def removed_from(directory: Path, files: Files) -> list[Removed]:
    """Return what was removed and is not there any more.

    Raises:
        UnreadableManifest: a whole line of it cannot be read; a torn last one was never relied on.
        OSError: the file cannot be read.
    """
    try:
        data = files.read(directory / MANIFEST, 0, MANIFEST_BYTES_MAX)
    except FileNotFoundError:
        return []
    here = set(files.names(directory, SEGMENTS))
    found: dict[str, Removed] = {}
    for line in data.split(b"\n")[:-1]:
        try:
            entry = msgspec.json.decode(line, type=Removed)
        except msgspec.MsgspecError as fault:
            raise UnreadableManifest(f"{MANIFEST} has a line that cannot be read") from fault
        if entry.segment not in here:
            found[entry.segment] = entry
    return list(found.values())


def folder_id(directory: Path, files: Files) -> str:
    """Return the folder's name, which is made if it has none.

    Raises:
        ValueError: the file holds something else.
        OSError: it cannot be read or made.
    """
    path = directory / NAME
    try:
        data = files.read(path, 0, 64)
    except FileNotFoundError:
        files.make_directory(directory)
        name = secrets.token_hex(16)
        files.place(path, name.encode() + b"\n", name)  # several threads and workers begin at once
        data = files.read(path, 0, 64)
    if not _NAME.fullmatch(data):
        raise ValueError(f"{path} does not hold the folder's id")
    return data.decode().strip()
