"""Worlds in which retention is at work beside the shipper: what it takes away was delivered and is proved.

The disk keeps an archive of what was removed, so that the audit of a world sees every bill that ever was;
`spanbill verify` sees what a person would: the segments that are left, and `removed.jsonl`.
"""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

from otel.journal.audit.reconcile import MANIFEST
from otel.journal.cursor import Cursor
from otel.journal.removal import NotSure, Remover, Retention
from otel.journal.segments import MARKS, SEGMENTS
from otel.shipper import Shipper
from tests.simulator.audit import breaches
from tests.simulator.disk import SimDisk, SimFile
from tests.simulator.world import ROOT, World
from tests.verified import verified

BYTES_MAX = (1, 20_000, 60_000)
"""What retention leaves: next to nothing, some segments, most of them."""


class ArchivingDisk(SimDisk):
    """As a disk, with what retention removed."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.archive: dict[Path, SimFile] = {}
        self.removing = False

    def is_plain(self, path: Path) -> bool:
        return path in self.files

    def remove_directory(self, path: Path) -> None:
        pass  # folders are only names here

    def remove(self, path: Path) -> None:
        if self.removing and path in self.files:
            self.archive[path] = copy.deepcopy(self.files[path])
        super().remove(path)


class RetentionWorld(World):
    """A world whose shipper is followed by retention, every other time. Its chances are its own."""

    disk: ArchivingDisk
    disk_type = ArchivingDisk

    def __init__(self, seed: int, *, lives: int, requests: int) -> None:
        super().__init__(seed, lives=lives, requests=requests)
        self._often = random.Random(seed + 1)
        self.removed = 0

    def _shipper(self, cursor: Cursor) -> Shipper:
        shipper = super()._shipper(cursor)
        remover = Remover(
            ROOT,
            Retention(bytes_max=self._often.choice(BYTES_MAX)),
            consumers=frozenset({"otlp"}),
            now_ns=self.wall_ns,
            files=self.disk,
            pause=lambda: None,
        )
        step = shipper.step

        def both() -> float:
            waits_s = step()
            if self._often.random() < 0.5:
                self._remove(remover)
            return waits_s

        shipper.step = both  # type: ignore[method-assign]
        return shipper

    def _remove(self, remover: Remover) -> None:
        before = remover.removed
        self.disk.removing = True
        try:
            remover.run()
        except (OSError, NotSure):
            pass  # the next run finds what is left to do
        finally:
            self.disk.removing = False
            self.removed += remover.removed - before


def retention_breaches(world: RetentionWorld) -> list[str]:
    """Return what is wrong with what is left, and with all that ever was."""
    disk = world.disk
    disk.begin_life(None)
    segments = {
        str(path.relative_to(ROOT)): bytes(disk.files[path].data) for path in disk.find(ROOT, SEGMENTS)
    }
    manifest = disk.files.get(ROOT / MANIFEST)
    lines = [] if manifest is None else bytes(manifest.data).splitlines(keepends=True)
    marks = [path.name for path in disk.files if path.parent.name == MARKS]
    found = verified(segments, marks, lines)
    for path, file in disk.archive.items():
        disk.files.setdefault(path, file)
    return found + breaches(world)
