"""Cursor: how far one reader of the journal has got, per segment; it moves only when it is told to.

The file is replaced whole, so that it is never half written, and has a checksum: an altered digit could pass
over a bill. A file that is not what was saved is set aside and reading starts over: a bill may then be
delivered twice, recognisable by its id, and never not at all.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Protocol
from zlib import crc32

import msgspec

from otel.journal.files import Files

log = logging.getLogger("spanbill.journal")

VERSION: Final = 2
BYTES_MAX: Final = 64 * 1024 * 1024
"""A cursor file is read up to this size: half a million segments."""


_Offset = Annotated[int, msgspec.Meta(ge=0)]


class Passed(Protocol):
    """What a reader of the journal asks its cursor, wherever that is kept."""

    def __getitem__(self, segment: str) -> int:
        """Return the offset up to which `segment` is done; 0 if it is new."""
        ...

    def seen(self, writer: str) -> int:
        """Return the number up to which the records of `writer` have been passed without a gap."""
        ...

    def keep_only(self, segments: set[str], writers: set[str]) -> None:
        """Forget what is no longer in the folder."""
        ...


class _State(msgspec.Struct, frozen=True):
    v: int
    offsets: dict[str, _Offset]
    seen: dict[str, _Offset] = {}
    crc: str = ""

    def checksum(self) -> str:
        return f"{crc32(msgspec.json.encode(msgspec.structs.replace(self, crc=''))):08x}"


def _state_of(data: bytes) -> _State:
    """Return what was saved.

    Raises:
        ValueError: this is not what was saved (so are msgspec's errors, and a string that is no UTF-8).
    """
    state = msgspec.json.decode(data, type=_State)
    if state.v != VERSION or state.crc != state.checksum():
        raise ValueError("the cursor's checksum is wrong")
    return state


def passed(path: Path, files: Files) -> Mapping[str, int] | None:
    """Return the offsets that a cursor's file holds now; None where there is none or it cannot be read.

    For others than the reader whose cursor it is: nothing is set aside.
    """
    try:
        return _state_of(files.read(path, 0, BYTES_MAX)).offsets
    except (OSError, ValueError):
        return None


class Cursor:
    """Offsets by segment, and by writer the number up to which every record has been passed.

    Args:
        path: the cursor's own file.
    """

    def __init__(self, path: Path, files: Files | None = None) -> None:
        self._path = path
        self._files = files or Files()
        self._offsets: dict[str, int] = {}
        self._seen: dict[str, int] = {}
        self.load()

    def load(self) -> None:
        """Take up what the file says, which another process may have written since."""
        state = self._load()
        self._moved = False
        self._offsets = dict(state.offsets)
        self._seen = dict(state.seen)

    def __getitem__(self, segment: str) -> int:
        """Return the offset up to which `segment` is done; 0 if it is new."""
        return self._offsets.get(segment, 0)

    def seen(self, writer: str) -> int:
        """Return the number up to which the records of `writer` have been passed without a gap."""
        return self._seen.get(writer, 0)

    def move(self, segment: str, offset: int, writer: str = "", seen: int = 0) -> None:
        """Note that `segment` is done up to `offset`, and `writer` up to `seen`; `save` makes it durable."""
        self._moved = True
        self._offsets[segment] = offset
        if seen:
            self._seen[writer] = seen

    def keep_only(self, segments: set[str], writers: set[str]) -> None:
        """Forget what is no longer in the folder: bounds the file by what the folder holds."""
        self._offsets = {name: offset for name, offset in self._offsets.items() if name in segments}
        self._seen = {name: number for name, number in self._seen.items() if name in writers}

    def save(self) -> None:
        """Make the cursor durable, if it was moved since it last was.

        Raises:
            OSError: it is not; the same bills will be read again after a restart.
        """
        if not self._moved:
            return
        self._files.make_directory(self._path.parent)
        state = _State(v=VERSION, offsets=self._offsets, seen=self._seen)
        whole = msgspec.structs.replace(state, crc=state.checksum())
        self._files.replace(self._path, msgspec.json.encode(whole))
        self._moved = False

    def _load(self) -> _State:
        try:
            return _state_of(self._files.read(self._path, 0, BYTES_MAX))
        except FileNotFoundError:
            return _State(v=VERSION, offsets={})
        except (OSError, ValueError):
            aside = self._path.with_suffix(".unreadable")
            log.error(
                "the cursor cannot be read and is set aside; all bills in the folder are delivered once more",
                extra={"cursor": str(self._path), "aside": str(aside)},
            )
            self._files.rename(self._path, aside)
            return _State(v=VERSION, offsets={})
