"""Archive: compressed copies of the segments that retention takes away, made and proved before that.

    read, hash ──gzip──▶ <day>/<file>.jsonl.new ──sync, read back from the disk, compare──▶ <file>.jsonl.gz

A copy has its name only when it was read back and is the segment, byte for byte, and its name is durable
before the segment goes. It may be killed at any point: at most both are here, and the next run goes on.
`gzip -dc` gives the segment back.
"""

from __future__ import annotations

import hashlib
import logging
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from otel.journal.files import Files

log = logging.getLogger("spanbill.journal")

SUFFIX: Final = ".gz"
COPIES: Final = "[0-9]*-[0-9]*-[0-9]*/*.jsonl.gz"
BLOCK_BYTES: Final = 256 * 1024
"""How much is read, packed or unpacked at a time; in between the processor belongs to requests."""
GZIP: Final = 16 + zlib.MAX_WBITS
LEVEL: Final = 6
_DAY: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


class NotTheSame(Exception):
    """A copy that was just made is not its segment: the disk, or the memory, cannot be trusted."""


class Archive:
    """A folder of compressed segments, by their days; one process at a time writes it.

    Args:
        days: copies of segments older than so many days are removed; None keeps all.
        pause: gives way to other threads.
    """

    def __init__(
        self,
        directory: Path,
        *,
        days: int | None = None,
        files: Files | None = None,
        pause: Callable[[], None] = lambda: None,
    ) -> None:
        self.days = days
        self.kept = self.expired = 0
        self._directory = directory
        self._files = files or Files()
        self._pause = pause

    def keep(self, path: Path, name: str) -> None:
        """Have a durable copy of a sealed segment, from now on.

        Args:
            name: `<day>/<file>`.

        Raises:
            NotTheSame: the copy could not be read back as it was written.
            OSError: it could not be written or read; the segment must stay.
        """
        files = self._files
        copy = self._directory / (name + SUFFIX)
        digest = self._digest(path)
        if files.is_plain(copy):
            files.sync_file(copy)
            if self._holds(copy, digest):  # a run that died had got so far
                files.sync_directory(copy.parent)
                return
            log.warning(
                "a copy in the archive is not its segment; it is set aside", extra={"copy": str(copy)}
            )
            files.rename(copy, copy.with_suffix(".unlike"))
        files.make_directory(copy.parent)
        new = copy.with_suffix(".new")
        files.remove(new)
        self._pack(path, new)
        files.sync_file(new)
        if not self._holds(new, digest):
            files.remove(new)
            raise NotTheSame(f"a copy of {name} is not the same once it is read back")
        files.rename(new, copy)
        files.sync_directory(copy.parent)
        if not files.is_plain(copy):
            raise NotTheSame(f"the copy of {name} has gone")
        self.kept += 1

    def expire(self, keep_from_day: str) -> int:
        """Remove copies of earlier days; return how many.

        Raises:
            OSError: not all of them are gone.
        """
        gone = 0
        for name in sorted(self._files.names(self._directory, COPIES)):
            day = name.partition("/")[0]
            path = self._directory / name
            if day < keep_from_day and _DAY.fullmatch(day) and self._files.is_plain(path):
                self._files.remove(path)
                self._files.remove_directory(path.parent)
                gone += 1
        self.expired += gone
        return gone

    def _pack(self, path: Path, to: Path) -> None:
        packing = zlib.compressobj(LEVEL, zlib.DEFLATED, GZIP)
        fd = self._files.create(to)
        try:
            for block in self._blocks(path):
                self._write(fd, packing.compress(block))
            self._write(fd, packing.flush())
            self._files.sync(fd)
        finally:
            self._files.close(fd)

    def _write(self, fd: int, data: bytes) -> None:
        while data:  # bounded: each write takes at least one byte or raises
            data = data[self._files.write(fd, data) :]

    def _blocks(self, path: Path) -> Iterator[bytes]:
        offset = 0
        while block := self._files.read(path, offset, BLOCK_BYTES):  # ends with the file
            yield block
            offset += len(block)
            self._pause()

    def _digest(self, path: Path) -> bytes:
        digest = hashlib.sha256()
        for block in self._blocks(path):
            digest.update(block)
        return digest.digest()

    def _holds(self, copy: Path, digest: bytes) -> bool:
        """Say whether a copy unpacks, wholly, to what has this digest; unpacking checks its CRC as well."""
        unpacking = zlib.decompressobj(GZIP)
        found = hashlib.sha256()
        try:
            for block in self._blocks(copy):
                data = block
                while data:  # each turn unpacks a block more, or takes in what is left
                    found.update(unpacking.decompress(data, BLOCK_BYTES))
                    data = unpacking.unconsumed_tail
            found.update(unpacking.flush())
        except zlib.error:
            return False
        return unpacking.eof and not unpacking.unused_data and found.digest() == digest
