"""Cursor: how far one reader of the journal has got, per segment; it moves only when it is told to.

The file is replaced whole (write, sync, rename, sync the folder), so that it is never half written. A file
that cannot be read is set aside and reading starts over: a bill may then be delivered twice, recognisable
by its id, and never not at all.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

import msgspec

log = logging.getLogger("spanbill.journal")

VERSION: Final = 1


class _State(msgspec.Struct):
    v: int
    offsets: dict[str, int]


class Cursor:
    """Offsets by segment name, relative to the journal's folder.

    Args:
        path: the cursor's own file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offsets = self._load()

    def __getitem__(self, segment: str) -> int:
        """Return the offset up to which `segment` is done; 0 if it is new."""
        return self._offsets.get(segment, 0)

    def move(self, segment: str, offset: int) -> None:
        """Note that `segment` is done up to `offset`; `save` makes it durable."""
        self._offsets[segment] = offset

    def keep_only(self, segments: set[str]) -> None:
        """Forget segments that are no longer in the folder: bounds the file by what the folder holds."""
        self._offsets = {name: offset for name, offset in self._offsets.items() if name in segments}

    def save(self) -> None:
        """Make the cursor durable.

        Raises:
            OSError: it is not; the same bills will be read again after a restart.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = self._path.with_suffix(".new")
        data = msgspec.json.encode(_State(v=VERSION, offsets=self._offsets))
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
        try:
            os.write(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(new, self._path)
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _load(self) -> dict[str, int]:
        try:
            state = msgspec.json.decode(self._path.read_bytes(), type=_State)
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.MsgspecError):
            aside = self._path.with_suffix(".unreadable")
            log.error(
                "the cursor cannot be read; starting over",
                extra={"cursor": str(self._path), "aside": str(aside)},
            )
            if self._path.exists():
                os.replace(self._path, aside)
            return {}
        return dict(state.offsets)
