"""Keeping: which files of a log are packed and which go, decided from their names and sizes alone.

Only names that the log itself makes are ever touched, and never those of today or of a day to come: a clock
that was set back must not remove what was written a moment ago.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

PACKED: Final = ".gz"
_DAY: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


class Naming(msgspec.Struct, frozen=True):
    """Where a log's files stand: `<folder>/<stem>-<day><suffix>`, with `.gz` when packed."""

    folder: Path
    stem: str
    suffix: str

    def file(self, day: str) -> Path:
        """Return where the lines of a day stand."""
        return self.folder / f"{self.stem}-{day}{self.suffix}"

    def day_of(self, name: str) -> str | None:
        """Return the day of one of the log's files, None if it is none of them."""
        plain = name.removesuffix(PACKED)
        if not plain.startswith(f"{self.stem}-") or not plain.endswith(self.suffix):
            return None
        day = plain[len(self.stem) + 1 : len(plain) - len(self.suffix)]
        return day if _DAY.fullmatch(day) else None


def naming_of(path: Path, stem: str) -> Naming:
    """Return the naming for a configured path: a file's name if it has a suffix, else a folder."""
    if path.suffix:
        return Naming(path.parent, path.stem, path.suffix)
    return Naming(path, stem, ".jsonl")


class Found(msgspec.Struct, frozen=True):
    """One file of a log, or one day of captures."""

    name: str
    day: str
    bytes: int


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept.

    Args:
        today: it and later days stay as they are.
        keep_from: earlier days go.
        pack_before: earlier days are packed; "" packs none.
        bytes_max: while all together hold more, the oldest go.
    """

    today: str
    keep_from: str
    pack_before: str
    bytes_max: int


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done, oldest first, and how many bytes other days than today hold after it."""

    remove: tuple[Found, ...]
    pack: tuple[Found, ...]
    others: int


def plan(found: Iterable[Found], policy: Policy) -> Plan:
    """Return what is to be done with the files of one log."""
    ordered = sorted(found, key=lambda f: (f.day, f.name))
    total = sum(f.bytes for f in ordered)
    remove: list[Found] = []
    stay: list[Found] = []
    for file in ordered:
        if file.day < policy.today and (file.day < policy.keep_from or total > policy.bytes_max):
            remove.append(file)
            total -= file.bytes
        else:
            stay.append(file)
    return Plan(
        remove=tuple(remove),
        pack=tuple(f for f in stay if f.day < policy.pack_before and not f.name.endswith(PACKED)),
        others=sum(f.bytes for f in stay if f.day != policy.today),
    )
