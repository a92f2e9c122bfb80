"""Captures are bounded in memory, a day and on the disk, private, written whole, and removed in time."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from gateway.capture.redaction import Redactor
from gateway.capture.store import DAY_NS, PENDING_MAX, Body, CaptureStore, Tried
from otel.journal.segments import day_of

NOON_NS = 20_454 * DAY_NS + DAY_NS // 2
MEBIBYTE = 1024 * 1024


class Noted:
    """A capture that has ended."""

    def __init__(self, name: str, body: bytes = b"hello", bytes_max: int = 1000) -> None:
        self.name = name
        self.facts: dict[str, object] = {"record_id": name}
        self.request_headers = [(b"authorization", b"Bearer canary-key")]
        self.request = Body(bytes_max)
        self.request.take(body)
        self.tried: list[Tried] = []
        self.status: int | None = 200
        self.reply_headers = [(b"content-type", b"text/plain")]
        self.reply = Body(bytes_max)
        self.ended = True


class Clock:
    ns = NOON_NS

    def __call__(self) -> int:
        return self.ns


@pytest.fixture
def clock() -> Clock:
    return Clock()


def store_in(folder: Path, clock: Clock, **bounds: int) -> CaptureStore:
    given = {"days": 2, "per_day": 1000, "bytes_max": 1024 * MEBIBYTE, "body_bytes_max": 1000, **bounds}
    return CaptureStore(folder, Redactor(), now_ns=clock, **given)


def take(store: CaptureStore, clock: Clock, count: int = 1, body: bytes = b"hello") -> list[str]:
    """Capture some requests; return the names of those for which there was room."""
    names = []
    for _ in range(count):
        take.number += 1  # type: ignore[attr-defined]
        name = store.reserve(clock.ns, f"{take.number:032x}")  # type: ignore[attr-defined]
        if name is not None:
            store.add(Noted(name, body, max(1000, len(body))))
            names.append(name)
    return names


take.number = 0  # type: ignore[attr-defined]


def test_a_capture_is_a_private_file_in_a_private_folder_named_as_the_bill_says(
    tmp_path: Path, clock: Clock
) -> None:
    previous = os.umask(0)
    try:
        store = store_in(tmp_path / "debug", clock)
        (name,) = take(store, clock)
        assert not (tmp_path / "debug").exists(), "nothing beside requests touches the disk"
        store.flush()
    finally:
        os.umask(previous)
    path = tmp_path / "debug" / name
    assert path.parent.name == day_of(NOON_NS)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [stat.S_IMODE(p.stat().st_mode) for p in (path.parent, path.parent.parent)] == [0o700, 0o700]
    found = json.loads(path.read_text())
    assert found["request"]["body"] == {"bytes": 5, "truncated": False, "text": "hello"}
    assert "canary-key" not in path.read_text()
    assert (store.written, store.dropped) == (1, 0)


def test_a_key_of_the_providers_that_its_reply_repeats_is_gone(tmp_path: Path, clock: Clock) -> None:
    store = store_in(tmp_path, clock)
    name = store.reserve(clock.ns, "a")
    assert name
    noted = Noted(name)
    noted.tried.append(Tried("h", 1, b"/v1", [(b"api-key", b"canary-of-the-provider")], 5))
    noted.reply.take(b"you sent canary-of-the-provider")
    store.add(noted)
    store.flush()
    text = (tmp_path / name).read_text()
    assert "canary" not in text
    assert "you sent [redacted]" in text


def test_a_folder_that_cannot_be_read_is_said_at_the_start(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "debug").write_text("no folder")
    with pytest.raises(OSError, match="Not a directory"):
        store_in(tmp_path / "debug", clock)


@pytest.mark.parametrize("size", [999, 1000, 1001, 9191, 9192, 9193, 50_000])
def test_a_body_is_cut_at_its_bound_and_says_so(size: int) -> None:
    body = Body(1000)
    for at in range(0, size, 100):
        body.take(b"x" * min(100, size - at))
    shown = body.shown(Redactor(), (), 0)
    assert shown == {"bytes": size, "truncated": size > 1000, "text": "x" * min(size, 1000)}


def test_a_secret_at_the_cut_is_gone() -> None:
    body = Body(1000)
    body.take(b"x" * 990 + b" sk-canary-0123456789")
    assert b"canary" not in str(body.shown(Redactor(), (), 0)).encode()


def test_a_body_that_grows_when_it_is_written_as_json_is_cut_again(tmp_path: Path, clock: Clock) -> None:
    store = store_in(tmp_path, clock, body_bytes_max=200_000)
    name = store.reserve(clock.ns, "a")
    assert name
    store.add(Noted(name, b"\x01" * 300_000, bytes_max=200_000))  # six characters each
    store.flush()
    found = json.loads((tmp_path / name).read_text())
    assert (tmp_path / name).stat().st_size <= 4 * 200_000 + 64 * 1024
    assert found["request"]["body"]["truncated"]


def test_no_more_are_in_memory_than_there_is_room_for(tmp_path: Path, clock: Clock) -> None:
    store = store_in(tmp_path, clock)
    assert len(take(store, clock, PENDING_MAX + 5)) == PENDING_MAX
    assert store.dropped == 5
    store.flush()
    assert len(take(store, clock, 5)) == 5


def test_no_more_are_taken_of_a_day_than_its_bound_also_by_a_new_process(
    tmp_path: Path, clock: Clock
) -> None:
    store = store_in(tmp_path, clock, per_day=3)
    assert len(take(store, clock, 2)) == 2
    store.flush()
    store.tend()
    assert len(take(store, clock, 2)) == 1
    store.flush()
    again = store_in(tmp_path, clock, per_day=3)
    assert take(again, clock, 1) == []
    clock.ns += DAY_NS
    again.tend()
    assert len(take(again, clock, 4)) == 3


def test_no_more_stand_on_the_disk_than_the_bound_and_old_days_make_room(
    tmp_path: Path, clock: Clock
) -> None:
    store = store_in(tmp_path, clock, bytes_max=256 * 1024, body_bytes_max=10_000)
    for _ in range(40):
        take(store, clock, 1, b"x" * 10_000)
        store.flush()
        store.tend()
    total = sum(path.stat().st_size for path in tmp_path.rglob("*.json"))
    assert total <= 256 * 1024
    assert store.refused > 0
    clock.ns += DAY_NS
    store.tend()
    assert not (tmp_path / day_of(NOON_NS)).exists()
    assert take(store, clock)


def test_old_days_go_and_nothing_that_is_not_a_capture(tmp_path: Path, clock: Clock) -> None:
    store = store_in(tmp_path, clock, days=2)
    take(store, clock, 2)
    store.flush()
    (tmp_path / "notes").mkdir()
    (tmp_path / day_of(NOON_NS) / "notes.txt").write_text("mine")
    (tmp_path / "2020-01-01").symlink_to(tmp_path / "notes")
    (tmp_path / "notes" / "a.json").write_text("mine")
    clock.ns += 2 * DAY_NS
    store.tend()
    assert len(list(tmp_path.glob(f"{day_of(NOON_NS)}/*.json"))) == 2
    clock.ns += DAY_NS
    store.tend()
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == [".lock", f"{day_of(NOON_NS)}/notes.txt", "notes/a.json"]


def test_a_disk_that_refuses_costs_captures_and_nothing_else(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_in(tmp_path, clock)
    real, calls = os.write, []

    def full(fd: int, data: bytes) -> int:
        calls.append(len(data))
        if len(calls) == 1:
            return real(fd, data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    take(store, clock)
    store.flush()
    assert len(calls) == 2
    monkeypatch.undo()
    assert (store.written, store.dropped) == (0, 1)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    take(store, clock)
    store.flush()
    assert store.written == 1
