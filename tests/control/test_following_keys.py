"""A process's keys are as they are in the database within a second, and go on while it is away."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, update

from deploy.stack import wait_until
from gateway.admission.stored_keys import StoredKeys
from gateway.admission.virtual_keys import KeyRing
from gateway.control import following, schema
from gateway.control.following import Following
from gateway.control.keys import Keys, Made
from gateway.control.makers import Maker
from gateway.control.plane import Plane
from gateway.control.store import Control
from gateway.control.terms import Fields
from gateway.core.errors import CannotStartError, SpanbillError
from gateway.ledger.store import LedgerUnavailable
from tests.control.conftest import MakeControl

ADMIN = Maker(who="admin")
BOUND_S = 1.0
"""What is promised; the tests wait longer, because the machine may be busy, and say what they measured."""
PATIENCE_S = 30.0


class Process:
    """What another process has in memory, and its thread."""

    def __init__(self, control: Control) -> None:
        self.stored = StoredKeys()
        self.following = Following(control, self.stored)
        self.ring = KeyRing([], self.stored)

    def opens(self, made: Made) -> str:
        assert made.secret is not None
        try:
            return self.ring.identify([(b"x-api-key", made.secret.reveal().encode())]).user_id
        except SpanbillError as refused:
            return refused.code


def eventually(met: Callable[[], bool]) -> None:
    assert wait_until(met, PATIENCE_S, 0.005)


@pytest.fixture
def keys(control: MakeControl) -> Keys:
    return Keys(control())


def test_what_is_changed_elsewhere_holds_here(control: MakeControl, keys: Keys) -> None:
    made = keys.create(Fields(user="alice"), ADMIN)
    process = Process(control())
    process.following.step()
    assert process.opens(made) == "alice"
    other = keys.create(Fields(user="bob"), ADMIN)
    keys.disable(made.record.id, ADMIN)
    process.following.step()
    assert (process.opens(made), process.opens(other)) == ("key_disabled", "bob")
    rotated = keys.rotate(other.record.id, ADMIN)
    keys.revoke(made.record.id, ADMIN)
    process.following.step()
    assert (process.opens(made), process.opens(other)) == ("invalid_api_key", "invalid_api_key")
    assert process.opens(rotated) == "bob"


def test_only_what_is_newer_is_read(
    control: MakeControl, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    whole = following._opening

    def counted(rows: Any) -> Any:
        read.append(len(rows))
        return whole(rows)

    for _ in range(20):
        keys.create(Fields(user="alice"), ADMIN)
    process = Process(control())
    monkeypatch.setattr(following, "_opening", counted)
    process.following.step()
    process.following.step()
    made = keys.create(Fields(user="bob"), ADMIN)
    process.following.step()
    assert read == [20, 0, 1]
    assert process.opens(made) == "bob"


def test_a_thread_does_it_within_the_bound(control: MakeControl, keys: Keys) -> None:
    processes = [Process(control()) for _ in range(3)]
    for process in processes:
        process.following.start()
    try:
        made = keys.create(Fields(user="alice"), ADMIN)
        eventually(lambda: all(process.opens(made) == "alice" for process in processes))
        keys.disable(made.record.id, ADMIN)
        eventually(lambda: all(process.opens(made) == "key_disabled" for process in processes))
    finally:
        for process in processes:
            process.following.stop(PATIENCE_S)
    assert following.INTERVAL_S * 3 < BOUND_S, "with room for a slow machine"


class Faulty(Control):
    """A database that can be taken away."""

    away = False
    asked = 0

    def run(self, *arguments: Any, **options: Any) -> Any:
        self.asked += 1
        if self.away:
            raise LedgerUnavailable("no route")
        return super().run(*arguments, **options)


def test_a_database_that_is_away_at_the_start_is_waited_for(control: MakeControl, keys: Keys) -> None:
    made = keys.create(Fields(user="alice"), ADMIN)
    faulty = Faulty(control()._store)
    faulty.away = True
    process = Process(faulty)
    process.following.start()
    try:
        assert faulty.asked == 1
        assert process.following.fault == "no route"
        assert process.opens(made) == "keys_unavailable"
        faulty.away = False
        eventually(lambda: process.opens(made) == "alice")
        assert process.following.fault is None
    finally:
        process.following.stop(PATIENCE_S)


def test_a_database_that_goes_away_leaves_what_is_known(
    control: MakeControl, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    made = keys.create(Fields(user="alice"), ADMIN)
    faulty = Faulty(control()._store)
    stored = StoredKeys()
    follow = Following(faulty, stored, now=lambda: 100 + now, monotonic=lambda: now)
    ring = KeyRing([], stored)
    follow.step()
    faulty.away = True
    keys.disable(made.record.id, ADMIN)
    assert made.secret is not None
    with caplog.at_level(logging.INFO):
        for at in (1.0, 2.0, 59.0, 61.5, 62.0, 123.0):
            now = at
            follow.step()
            assert ring.identify([(b"x-api-key", made.secret.reveal().encode())]).user_id == "alice"
        assert follow.read_unix_s == 100
        faulty.away = False
        follow.step()
    assert follow.read_unix_s == 223
    with pytest.raises(SpanbillError, match="disabled"):
        ring.identify([(b"x-api-key", made.secret.reveal().encode())])
    said = [record.message for record in caplog.records if record.name == "spanbill.control"]
    assert said == ["the keys cannot be read; those that are known go on"] * 3 + [
        "the keys can be read again"
    ]


def test_a_row_that_nobody_of_ours_wrote_opens_nothing_and_stops_nothing(
    control: MakeControl, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    odd = [keys.create(Fields(user="alice"), ADMIN) for _ in range(4)]
    good = keys.create(Fields(user="bob"), ADMIN)
    process = Process(control())
    process.following.step()
    for made, values in zip(
        odd,
        ({"digest": "xyz"}, {"tags": "no json"}, {"models": '{"a":1}'}, {"endpoints": "[1]"}),
        strict=True,
    ):
        statement = (
            update(schema.keys).where(schema.keys.c.id == made.record.id).values(**values, changed=100)
        )
        control().run(lambda c, s=statement: c.execute(s), writes=True)
    control().run(lambda c: c.execute(update(schema.versions).values(version=100)), writes=True)
    process.following.step()
    assert [process.opens(made) for made in odd] == ["invalid_api_key"] * 4
    assert process.opens(good) == "bob"
    said = [vars(record).get("key_id") for record in caplog.records if "cannot be read" in record.message]
    assert said == [made.record.id for made in odd]
    fresh = Process(control())
    fresh.following.step()
    assert fresh.opens(good) == "bob"


def test_a_database_that_was_set_back_counts_as_it_is(control: MakeControl, keys: Keys) -> None:
    first = keys.create(Fields(user="alice"), ADMIN)
    later = keys.create(Fields(user="bob"), ADMIN)
    process = Process(control())
    process.following.step()
    control().run(
        lambda c: c.execute(delete(schema.keys).where(schema.keys.c.id == later.record.id)), writes=True
    )
    control().run(lambda c: c.execute(update(schema.versions).values(version=1)), writes=True)
    process.following.step()
    assert (process.opens(first), process.opens(later)) == ("alice", "invalid_api_key")


def test_a_file_that_was_put_back_from_a_copy_counts_as_it_is(tmp_path: Path) -> None:
    plane = Plane("", "", tmp_path / "journal")
    keys = plane.keys
    made = keys.create(Fields(user="alice"), ADMIN)
    with sqlite3.connect(tmp_path / "control.db") as source, sqlite3.connect(tmp_path / "copy.db") as target:
        source.backup(target)
    lost = keys.create(Fields(user="bob"), ADMIN)
    keys.disable(made.record.id, ADMIN)
    process = Process(plane._following._control)
    process.following.step()
    assert (process.opens(made), process.opens(lost)) == ("key_disabled", "bob")
    for end in ("", "-wal", "-shm"):
        (tmp_path / f"control.db{end}").unlink(missing_ok=True)
    process.following.step()
    assert process.following.fault is not None
    assert (process.opens(made), process.opens(lost)) == ("key_disabled", "bob"), "what is known goes on"
    with closing(sqlite3.connect(tmp_path / "copy.db")) as copy, copy:
        copy.execute("UPDATE control_versions SET version = 100")  # whatever its version says
    (tmp_path / "copy.db").rename(tmp_path / "control.db")
    process.following.step()
    assert (process.opens(made), process.opens(lost)) == ("alice", "invalid_api_key")
    plane.close()


def test_a_newer_schema_refuses_to_start(control: MakeControl, tmp_path: Path) -> None:
    plane = Plane("", "", tmp_path / "journal")
    plane._changing.run(
        lambda c: c.exec_driver_sql("UPDATE control_schema SET version_num = '9999'"), writes=True
    )
    with pytest.raises(CannotStartError, match=r"control\.url"):
        plane.start()
    plane.close()
