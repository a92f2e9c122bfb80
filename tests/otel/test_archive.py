"""What retention takes away is in the archive before it goes, byte for byte, whatever dies in between."""

from __future__ import annotations

import errno
import gzip
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from pydantic import SecretStr

from gateway.behind import Behind
from gateway.ledger.opening import store_at
from gateway.ledger.rebuilding import WouldLose, rebuild
from gateway.settings import JournalSettings, LedgerSettings, Settings, SettingsError
from otel.journal.archive import Archive, NotTheSame
from otel.journal.audit import audit_folder
from otel.journal.files import Files
from otel.journal.removal import Remover, Retention
from otel.journal.segments import mark_path
from tests.gateway_process import ROOT
from tests.journals import DAY_NS, LAST, NOON_NS, copy_of, make_journal, names
from tests.otel.archive_killer import copies, segments
from tests.otel.test_retention import ship

LATER_NS = NOON_NS + 3 * DAY_NS


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose writers are retired and whose bills were delivered."""
    folder = make_journal(tmp_path_factory.mktemp("archived") / "journal")
    mark_path(folder, LAST).unlink()
    ship(folder)
    return folder


@pytest.fixture
def many(sound: Path) -> int:
    """How many segments the folder has; it follows from the size of its records."""
    count = len(names(sound))
    assert count >= 10
    return count


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return copy_of(sound, tmp_path / "journal")


def remover(
    folder: Path,
    archive: Path,
    *,
    files: Files | None = None,
    days: int | None = None,
    now_ns: int = LATER_NS,
) -> Remover:
    files = files or Files()
    return Remover(
        folder,
        Retention(days=1),
        consumers=frozenset({"otlp"}),
        archive=Archive(archive, days=days, files=files),
        now_ns=lambda: now_ns,
        files=files,
        pause=lambda: None,
    )


def documented_restore() -> str:
    """Return the commands that docs/retention.md gives."""
    page = (ROOT / "docs" / "retention.md").read_text()
    return page.partition("```sh\n")[2].partition("```")[0]


def test_every_segment_that_goes_is_in_the_archive_and_the_documented_command_restores_it(
    many: int, sound: Path, tmp_path: Path
) -> None:
    folder, restored, archive = (tmp_path / "data" / name for name in ("journal", "restored", "archive"))
    copy_of(sound, folder)
    before = segments(folder)
    bills = audit_folder(folder).facts.bills
    removed = remover(folder, archive)
    assert removed.run() == len(before) == many
    assert segments(folder) == {}
    assert copies(archive) == before
    assert removed.archive is not None
    assert removed.archive.kept == many
    subprocess.run(["sh", "-ec", documented_restore()], cwd=tmp_path, check=True)
    assert segments(restored) == before
    report = audit_folder(restored)
    assert report.complete, report.findings
    assert report.intact, report.findings
    assert report.facts.bills == bills > 0


def test_a_ledger_is_made_again_from_a_restored_journal(folder: Path, tmp_path: Path) -> None:
    remover(folder, tmp_path / "archive").run()
    store = store_at(f"sqlite:///{tmp_path}/ledger.db", folder)
    store.open()
    try:
        with pytest.raises(WouldLose):
            rebuild(folder, store)
        for name, data in copies(tmp_path / "archive").items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)
        assert rebuild(folder, store).bills == audit_folder(folder).facts.bills > 0
    finally:
        store.close()


def test_a_kill_at_any_operation_loses_nothing_and_is_finished_by_the_next_run(
    sound: Path, tmp_path: Path
) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.otel.archive_killer", str(sound), str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    kills = Counter(ended.stdout.splitlines())
    for operation in ("create", "write", "half a write", "sync", "sync_file", "rename", "append", "remove"):
        assert kills[operation] >= 2, (operation, kills)


class Spoiling(Files):
    """A disk that keeps other bytes of a copy than it was given."""

    def __init__(self) -> None:
        self.spoiled = 0

    def write(self, fd: int, data: bytes) -> int:
        self.spoiled += 1
        return super().write(fd, data[:-9] + bytes([data[-9] ^ 1]) + data[-8:] if len(data) > 20 else data)


def test_a_copy_that_cannot_be_read_back_keeps_its_segment(many: int, folder: Path, tmp_path: Path) -> None:
    files = Spoiling()
    with pytest.raises(NotTheSame):
        remover(folder, tmp_path / "archive", files=files).run()
    assert files.spoiled
    assert len(names(folder)) == many
    assert copies(tmp_path / "archive") == {}
    assert not (folder / "removed.jsonl").exists()


def test_an_archive_that_is_full_keeps_its_segment(many: int, folder: Path, tmp_path: Path) -> None:
    class Full(Files):
        writes = 0

        def write(self, fd: int, data: bytes) -> int:
            self.writes += 1
            if self.writes > 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(fd, data[:7])

    files = Full()
    with pytest.raises(OSError, match="No space"):
        remover(folder, tmp_path / "archive", files=files).run()
    assert files.writes == 2
    assert len(names(folder)) == many
    assert remover(folder, tmp_path / "archive").run() == many


def test_a_disk_that_takes_little_at_a_time_gets_all_of_it(many: int, folder: Path, tmp_path: Path) -> None:
    class Slow(Files):
        short = 0

        def write(self, fd: int, data: bytes) -> int:
            self.short += len(data) > 7
            return super().write(fd, data[:7])

    files = Slow()
    before = segments(folder)
    assert remover(folder, tmp_path / "archive", files=files).run() == many
    assert copies(tmp_path / "archive") == before
    assert files.short > 100


SPOILED = {
    "cut off": lambda data: data[:-5],
    "something behind it": lambda data: data + b"x",
    "another bit": lambda data: data[:100] + bytes([data[100] ^ 4]) + data[101:],
    "another segment": lambda data: gzip.compress(b"other"),
    "empty": lambda data: b"",
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_copy_that_is_not_the_segment_does_not_count_and_is_set_aside(
    folder: Path, tmp_path: Path, how: str
) -> None:
    name = names(folder)[0]
    before = segments(folder)
    copy = tmp_path / "archive" / f"{name}.gz"
    copy.parent.mkdir(parents=True)
    spoiled = SPOILED[how](gzip.compress(before[name]))
    copy.write_bytes(spoiled)
    remover(folder, tmp_path / "archive").run()
    assert copies(tmp_path / "archive") == before
    assert copy.with_suffix(".unlike").read_bytes() == spoiled


def test_old_copies_go_and_nothing_else(many: int, folder: Path, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    remover(folder, archive, days=30).run()
    (archive / "2020-01-01").mkdir()
    strangers = [archive / "notes.txt", archive / "2020-01-01" / "notes.txt"]
    linked = archive / "2020-01-01" / "b0-0-000001.jsonl.gz"
    linked.symlink_to(strangers[0])
    for stranger in strangers:
        stranger.write_text("mine")
    assert len(list(archive.glob("2*/b*.gz"))) == many + 1
    remover(folder, archive, days=30, now_ns=NOON_NS + 30 * DAY_NS).run()
    assert len(list(archive.glob("2*/b*.gz"))) == many + 1
    remover(folder, archive, days=30, now_ns=NOON_NS + 31 * DAY_NS).run()
    assert list(archive.glob("2*/b*.gz")) == [linked]
    assert all(stranger.read_text() == "mine" for stranger in strangers)


@pytest.mark.parametrize(
    ("journal", "why"),
    [
        ({"archive": "archive"}, "retention_days"),
        ({"archive": "journal", "retention_days": 1}, "folder of its own"),
        ({"archive": "archive", "retention_days": 9, "archive_retention_days": 8}, "before their segments"),
    ],
)
def test_an_archive_that_could_keep_nothing_refuses_to_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, journal: dict[str, object], why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings(
        journal=JournalSettings.model_validate({"directory": "journal", **journal}),
        ledger=LedgerSettings(url=SecretStr("sqlite:///ledger.db")),
    )
    with pytest.raises(SettingsError, match=why):
        Behind(settings, Files(), {})


def test_a_folder_that_is_copied_elsewhere_keeps_its_copies(many: int, folder: Path, tmp_path: Path) -> None:
    """A run that finds its copy already made proves it again, and goes on."""
    archive = tmp_path / "archive"
    twin = Path(shutil.copytree(folder, tmp_path / "twin"))
    first, second = remover(folder, archive), remover(twin, archive)
    assert first.run() == second.run() == many
    assert first.archive is not None
    assert second.archive is not None
    assert (first.archive.kept, second.archive.kept) == (many, 0)
