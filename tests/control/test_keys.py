"""What holds for virtual keys in both databases."""

from __future__ import annotations

import hashlib
import logging
import pickle
import re
import threading
from typing import Any

import pytest
from sqlalchemy import func, insert, select

from gateway.admission.stored_keys import StoredKey, StoredKeys
from gateway.admission.virtual_keys import KeyRing
from gateway.control import schema
from gateway.control.keys import GRACE_S_MAX, Keys, Made, Wanted
from gateway.control.makers import Maker
from gateway.control.store import Control
from gateway.control.terms import Fields
from gateway.core.errors import CallerError, GatewayFault, SpanbillError
from gateway.ledger.store import LedgerUnavailable
from tests.control.conftest import MakeControl

ADMIN = Maker(who="admin")
SECOND = 1_000_000_000


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000 * SECOND

    def __call__(self) -> int:
        self.now += 1000
        return self.now


class Side:
    """One process's keys, with what it has in memory."""

    def __init__(self, control: Control, clock: Clock) -> None:
        self.stored = StoredKeys()
        self.stored.read = True
        self.keys = Keys(control, now_ns=clock, applied=self.stored.change)
        self.ring = KeyRing([], self.stored, clock)

    def opens(self, made: Made) -> str:
        """Return whose key it is, or why it is refused."""
        assert made.secret is not None
        try:
            return self.ring.identify([(b"x-api-key", made.secret.reveal().encode())]).user_id
        except CallerError as refused:
            return refused.code


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def side(control: MakeControl, clock: Clock) -> Side:
    return Side(control(), clock)


def maker_of(made: Made) -> Maker:
    return Maker(who=made.record.id, key_id=made.record.id)


def refusal(call: Any, *arguments: Any) -> SpanbillError:
    with pytest.raises(SpanbillError) as refused:
        call(*arguments)
    return refused.value


def test_a_key_opens_what_it_was_made_for(side: Side) -> None:
    made = side.keys.create(
        Fields(
            user="alice",
            user_name="Alice",
            team="red",
            project="apollo",
            tags=["a", "b"],
            models=["sim-*"],
            endpoints=["messages"],
            on_disconnect="cancel",
            unpriced="refuse",
            name="laptop",
            expires_at="2030-01-01T00:00:00Z",
        ),
        ADMIN,
    )
    assert made.secret is not None
    assert re.fullmatch(r"sk-sb-[A-Za-z0-9_-]{43}", made.secret.reveal())
    holder = side.ring.holder([(b"x-api-key", made.secret.reveal().encode())])
    identity = holder.identity
    assert (identity.key_id, identity.user_id, identity.user_name) == (made.record.id, "alice", "Alice")
    assert (identity.team, identity.project, identity.tags) == ("red", "apollo", ("a", "b"))
    assert (identity.on_disconnect, identity.unpriced, identity.source) == ("cancel", "refuse", "key")
    assert (holder.permission.models, holder.permission.endpoints) == (("sim-*",), ("messages",))
    assert holder.name == "laptop"
    assert not holder.may_create_keys
    assert side.keys.get(made.record.id, ADMIN) == made.record


def test_no_secret_is_stored_or_shown_in_any_way(
    side: Side, control: MakeControl, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        made = side.keys.create(Fields(user="alice"), ADMIN)
        again = side.keys.rotate(made.record.id, ADMIN, 60)
        side.keys.update(made.record.id, Fields(name="x"), ADMIN)
    secrets = [one.secret.reveal() for one in (made, again) if one.secret is not None]
    assert len(set(secrets)) == 2
    kept = control().run(
        lambda c: [list(row) for table in schema.metadata.tables.values() for row in c.execute(select(table))]
    )
    logged = [str(vars(record)) for record in caplog.records]
    assert len(logged) >= 3
    for text in (repr(kept), repr(made), repr(again), repr(side.keys), repr(side.stored), *logged):
        for secret in secrets:
            assert secret not in text
            assert secret.removeprefix("sk-sb-") not in text
    assert hashlib.sha256(secrets[1].encode()).hexdigest() in repr(kept), "the digest is what is kept"
    with pytest.raises(TypeError):
        pickle.dumps(made.secret)


def test_secrets_have_256_bits_of_the_systems_randomness(control: MakeControl) -> None:
    asked: list[int] = []

    def random(count: int) -> bytes:
        asked.append(count)
        return bytes(range(count))

    made = Keys(control(), random=random).create(Fields(user="alice"), ADMIN)
    assert made.secret is not None
    assert 32 in asked
    assert made.secret.reveal() == "sk-sb-AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"


def test_a_key_that_is_disabled_opens_nothing_until_it_is_enabled(side: Side) -> None:
    made = side.keys.create(Fields(user="alice"), ADMIN)
    assert side.keys.disable(made.record.id, ADMIN).disabled
    assert side.opens(made) == "key_disabled"
    assert not side.keys.enable(made.record.id, ADMIN).disabled
    assert side.opens(made) == "alice"


def test_a_key_that_is_revoked_is_gone_for_good_and_its_record_stays(side: Side) -> None:
    made = side.keys.create(Fields(user="alice"), ADMIN)
    first = side.keys.revoke(made.record.id, ADMIN)
    assert side.opens(made) == "invalid_api_key"
    assert side.keys.revoke(made.record.id, ADMIN).revoked_unix_ns == first.revoked_unix_ns
    for call in (side.keys.enable, side.keys.disable, side.keys.rotate):
        refused = refusal(call, made.record.id, ADMIN)
        assert (refused.status, refused.code) == (409, "key_revoked")
    assert refusal(side.keys.update, made.record.id, Fields(name="x"), ADMIN).status == 409
    assert side.keys.get(made.record.id, ADMIN).terms.user == "alice"


def test_a_key_ends_when_it_expires(side: Side, clock: Clock) -> None:
    made = side.keys.create(Fields(user="alice", expires_at="2027-03-01T00:00:00Z"), ADMIN)
    assert side.opens(made) == "alice"
    assert made.record.terms.expires_unix_ns is not None
    clock.now = made.record.terms.expires_unix_ns
    assert side.opens(made) == "key_expired"
    refused = refusal(side.keys.update, made.record.id, Fields(expires_at="2027-03-01T00:00:00Z"), ADMIN)
    assert refused.param == "expires_at"
    side.keys.update(made.record.id, Fields(name="still expired"), ADMIN)
    assert side.opens(made) == "key_expired"
    side.keys.update(made.record.id, Fields(expires_at=None), ADMIN)
    assert side.opens(made) == "alice"


def test_a_rotated_key_has_the_old_secret_for_its_grace_and_no_longer(side: Side, clock: Clock) -> None:
    first = side.keys.create(Fields(user="alice"), ADMIN)
    second = side.keys.rotate(first.record.id, ADMIN, 60)
    assert second.record.id == first.record.id
    assert (side.opens(first), side.opens(second)) == ("alice", "alice")
    clock.now += 60 * SECOND
    assert (side.opens(first), side.opens(second)) == ("key_expired", "alice")
    third = side.keys.rotate(first.record.id, ADMIN, 60)
    fourth = side.keys.rotate(first.record.id, ADMIN, 60)
    opened = [side.opens(one) for one in (first, second, third, fourth)]
    assert opened == ["invalid_api_key", "invalid_api_key", "alice", "alice"]
    last = side.keys.rotate(first.record.id, ADMIN)
    assert [side.opens(one) for one in (third, fourth, last)] == ["invalid_api_key"] * 2 + ["alice"]
    for grace_s in (-1, GRACE_S_MAX + 1):
        assert refusal(side.keys.rotate, first.record.id, ADMIN, grace_s).param == "grace_s"


def test_the_old_secret_lives_no_longer_than_the_key(side: Side, clock: Clock) -> None:
    old = side.keys.create(Fields(user="alice", expires_at="2027-03-01T00:00:00Z"), ADMIN)
    assert old.record.terms.expires_unix_ns is not None
    clock.now = old.record.terms.expires_unix_ns - 60 * SECOND
    new = side.keys.rotate(old.record.id, ADMIN, 3600)
    assert (side.opens(old), side.opens(new)) == ("alice", "alice")
    clock.now = old.record.terms.expires_unix_ns
    assert (side.opens(old), side.opens(new)) == ("key_expired", "key_expired")
    side.keys.disable(old.record.id, ADMIN)
    assert (side.opens(old), side.opens(new)) == ("key_disabled", "key_disabled")


def test_a_request_that_comes_again_makes_one_key_and_tells_its_secret_once(side: Side) -> None:
    fields = Fields(user="alice", models=["a", "b"])
    first = side.keys.create(fields, ADMIN, "once")
    again = side.keys.create(fields, ADMIN, "once")
    assert again == Made(first.record, None)
    other = refusal(side.keys.create, Fields(user="bob"), ADMIN, "once")
    assert (other.status, other.code) == (409, "idempotency_conflict")
    elsewhere = side.keys.create(fields, Maker(who="cli:root"), "once")
    assert elsewhere.record.id != first.record.id
    for odd in ("", "x" * 256, "two words", "\x00", "é"):
        assert refusal(side.keys.create, fields, ADMIN, odd).status == 400


def test_requests_that_come_at_once_make_one_key(control: MakeControl, clock: Clock) -> None:
    sides = [Side(control(), clock) for _ in range(4)]
    made: list[Made] = []

    def create(side: Side) -> None:
        for attempt in range(50):  # SQLite gives up on its turn after two seconds
            try:
                made.append(side.keys.create(Fields(user="alice"), ADMIN, "once"))
                return
            except GatewayFault:
                assert attempt < 49

    threads = [threading.Thread(target=create, args=(side,)) for side in sides for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 12
    assert len({one.record.id for one in made}) == 1
    assert sum(one.secret is not None for one in made) == 1


def test_keys_are_listed_in_pages_that_lose_and_repeat_none(side: Side) -> None:
    ids = [
        side.keys.create(Fields(user=f"user-{n % 3}", team="red" if n % 2 else None), ADMIN).record.id
        for n in range(25)
    ]
    seen: list[str] = []
    after = None
    for _ in range(10):
        page = side.keys.listed(Wanted(limit=7, after=after), ADMIN)
        seen += [record.id for record in page.records]
        side.keys.create(Fields(user="later"), ADMIN)  # newer ones come before, and not in between
        if not page.more:
            break
        after = page.records[-1].id
    assert seen == ids[::-1]
    by_team = side.keys.listed(Wanted(team="red", limit=1000), ADMIN)
    assert [record.id for record in by_team.records] == ids[1::2][::-1]
    both = side.keys.listed(Wanted(team="red", user="user-0"), ADMIN)
    assert [record.id for record in both.records] == [ids[n] for n in range(24, -1, -1) if n % 6 == 3]


def test_keys_are_listed_by_state(side: Side, clock: Clock) -> None:
    made = [side.keys.create(Fields(user="u", name=name), ADMIN).record.id for name in "adxr"]
    side.keys.disable(made[1], ADMIN)
    side.keys.update(made[2], Fields(expires_at="2027-03-01T00:00:00Z"), ADMIN)
    side.keys.revoke(made[3], ADMIN)
    clock.now = 1_900_000_000 * SECOND
    for state, key_id in zip(("active", "disabled", "expired", "revoked"), made, strict=True):
        listed = side.keys.listed(Wanted(state=state), ADMIN).records  # type: ignore[arg-type]
        assert [record.id for record in listed] == [key_id]
        assert listed[0].state(clock.now) == state


HOSTILE = [
    "' OR 1=1 --",
    '"; DROP TABLE keys; --',
    "%",
    "_",
    "\\",
    "{user}",
    ":user_id",
    "$1",
    "名前",
    "a" * 256,
    "é\u0301",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_names(side: Side, name: str) -> None:
    made = side.keys.create(Fields(user=name, team=name, project=name, tags=[name[:64]], name=name), ADMIN)
    side.keys.create(Fields(user="other"), ADMIN)
    assert side.opens(made) == name
    for wanted in (Wanted(user=name), Wanted(team=name), Wanted(project=name)):
        assert [record.id for record in side.keys.listed(wanted, ADMIN).records] == [made.record.id]
    assert refusal(side.keys.get, name, ADMIN).status == 404
    assert refusal(side.keys.listed, Wanted(after=name), ADMIN).param == "after"


def test_names_that_no_database_takes_are_refused(side: Side) -> None:
    for odd in ("\x00", "a\x00", "\ud800", "", "x" * 257):
        assert refusal(side.keys.create, Fields(user=odd), ADMIN).status == 400
        assert refusal(side.keys.listed, Wanted(user=odd), ADMIN).status == 400
        assert refusal(side.keys.get, odd, ADMIN).status == 404


# makers


def maker(side: Side, **facts: Any) -> Made:
    said = {"user": "alice", "team": "red", "may_create_keys": True, **facts}
    return side.keys.create(Fields(**said), ADMIN)


def test_a_key_that_may_makes_keys_for_its_own_account(side: Side) -> None:
    own = maker(side, models=["sim-*", "gpt-4o"], project="apollo", tags=["t"])
    made = side.keys.create(Fields(models=["sim-small"], tags=["t", "u"]), maker_of(own))
    terms = made.record.terms
    assert (terms.user, terms.team, terms.project, terms.tags) == ("alice", "red", "apollo", ("t", "u"))
    assert made.record.created_by == own.record.id
    assert side.opens(made) == "alice"
    for field, fields in (
        ("models", Fields(models=None)),
        ("models", Fields(models=["gpt-*"])),
        ("team", Fields(team="blue")),
        ("user", Fields(user="bob")),
        ("may_create_keys", Fields(may_create_keys=True)),
    ):
        refused = refusal(side.keys.create, fields, maker_of(own))
        assert (refused.status, refused.code, refused.param) == (403, "beyond_own_key", field)


def test_a_maker_sees_and_changes_what_it_made_and_nothing_else(side: Side) -> None:
    own, other = maker(side), maker(side)
    mine = side.keys.create(Fields(), maker_of(own)).record
    others = side.keys.create(Fields(), maker_of(other)).record
    assert [r.id for r in side.keys.listed(Wanted(), maker_of(own)).records] == [mine.id]
    assert side.keys.listed(Wanted(created_by=other.record.id), maker_of(own)).records == []
    me = maker_of(own)
    for key_id in (others.id, own.record.id, other.record.id, "key_none"):
        for call in (side.keys.get, side.keys.disable, side.keys.enable, side.keys.revoke, side.keys.rotate):
            assert refusal(call, key_id, me).status == 404
        assert refusal(side.keys.update, key_id, Fields(name="x"), me).status == 404
    assert side.keys.get(mine.id, me) == mine
    assert side.keys.update(mine.id, Fields(name="x"), me).terms.name == "x"
    assert refusal(side.keys.update, mine.id, Fields(team=None), me).param == "team"
    assert side.keys.disable(mine.id, me).disabled


def test_a_maker_gets_nothing_out_of_a_key_that_was_given_more_later(side: Side) -> None:
    own = maker(side, models=["sim-*"])
    made = side.keys.create(Fields(), maker_of(own))
    side.keys.update(made.record.id, Fields(models=None, may_create_keys=True), ADMIN)
    before = side.keys.get(made.record.id, ADMIN)
    assert refusal(side.keys.rotate, made.record.id, maker_of(own)).code == "beyond_own_key"
    assert refusal(side.keys.enable, made.record.id, maker_of(own)).code == "beyond_own_key"
    assert refusal(side.keys.update, made.record.id, Fields(name="x"), maker_of(own)).status == 403
    assert side.keys.get(made.record.id, ADMIN) == before, "what is refused changes nothing"
    assert side.opens(made) == "alice"
    assert side.keys.disable(made.record.id, maker_of(own)).disabled, "to take away is always within"


@pytest.mark.parametrize("how", ["disabled", "revoked", "expired", "narrowed"])
def test_a_maker_that_may_no_more_makes_nothing_though_a_process_has_not_heard_of_it(
    control: MakeControl, clock: Clock, how: str
) -> None:
    here, there = Side(control(), clock), Side(control(), clock)
    own = maker(here, expires_at="2027-03-01T00:00:00Z")
    made = here.keys.create(Fields(), maker_of(own))
    match how:
        case "disabled":
            there.keys.disable(own.record.id, ADMIN)
        case "revoked":
            there.keys.revoke(own.record.id, ADMIN)
        case "expired":
            clock.now = own.record.terms.expires_unix_ns or 0
        case "narrowed":
            there.keys.update(own.record.id, Fields(may_create_keys=False), ADMIN)
    for call, arguments in (
        (here.keys.create, (Fields(),)),
        (here.keys.update, (made.record.id, Fields(name="x"))),
        (here.keys.rotate, (made.record.id,)),
        (here.keys.enable, (made.record.id,)),
    ):
        refused = refusal(call, *arguments, maker_of(own))
        assert (refused.status, refused.code) == (403, "key_creation_not_allowed")


def test_there_is_a_bound_on_keys_in_all_and_of_one_maker(
    side: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = maker(side)
    monkeypatch.setattr("gateway.control.makers.MADE_MAX", 2)
    for _ in range(2):
        side.keys.revoke(side.keys.create(Fields(), maker_of(own)).record.id, maker_of(own))
    assert refusal(side.keys.create, Fields(), maker_of(own)).code == "too_many_keys"
    monkeypatch.setattr("gateway.control.makers.LIVE_MAX", 2)
    side.keys.create(Fields(user="bob"), ADMIN)
    assert refusal(side.keys.create, Fields(user="bob"), ADMIN).code == "too_many_keys"


# changes


def test_every_change_is_on_record_and_in_the_log_and_what_is_refused_is_not(
    side: Side, control: MakeControl, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "spanbill.audit"):
        made = side.keys.create(Fields(user="alice"), ADMIN)
        me = Maker(who="cli:root")
        side.keys.update(made.record.id, Fields(team="red", tags=["t"]), me)
        side.keys.rotate(made.record.id, me)
        side.keys.disable(made.record.id, me)
        side.keys.enable(made.record.id, me)
        side.keys.revoke(made.record.id, me)
        refusal(side.keys.enable, made.record.id, me)
        refusal(side.keys.update, made.record.id, Fields(), me)
        refusal(side.keys.create, Fields(user=""), me)
    table = schema.changes
    rows = control().run(lambda c: c.execute(select(table).order_by(table.c.version)).all())
    assert [(row.action, row.who, row.fields) for row in rows] == [
        ("create", "admin", "user"),
        ("update", "cli:root", "team,tags"),
        ("rotate", "cli:root", ""),
        ("disable", "cli:root", ""),
        ("enable", "cli:root", ""),
        ("revoke", "cli:root", ""),
    ]
    assert {row.subject for row in rows} == {made.record.id}
    assert [row.version for row in rows] == [1, 2, 3, 4, 5, 6]
    audit = [record for record in caplog.records if record.name == "spanbill.audit"]
    assert [vars(record)["who"] for record in audit] == ["admin"] + ["cli:root"] * 5
    assert all(vars(record)["key_id"] == made.record.id for record in audit)


def test_a_database_that_is_away_is_said_and_nothing_is_told_to_the_ring(control: MakeControl) -> None:
    told: list[StoredKey] = []

    class Away(Control):
        def run(self, *_: Any, **__: Any) -> Any:
            raise LedgerUnavailable("gone")

    keys = Keys(Away(control()._store), applied=told.append)
    for call, arguments in (
        (keys.create, (Fields(user="a"), ADMIN)),
        (keys.get, ("key_1", ADMIN)),
        (keys.listed, (Wanted(), ADMIN)),
        (keys.rotate, ("key_1", ADMIN)),
    ):
        refused = refusal(call, *arguments)
        assert (refused.status, refused.code) == (503, "keys_unavailable")
        assert refused.retry_after_s
    assert told == []


def test_a_transaction_that_fails_in_its_last_statement_leaves_nothing(
    side: Side, control: MakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = []

    def note(*_: Any) -> None:
        failed.append(1)
        raise LedgerUnavailable("cut")

    with monkeypatch.context() as broken:
        broken.setattr("gateway.control.keys._note", note)
        assert refusal(side.keys.create, Fields(user="alice"), ADMIN).status == 503
    assert failed
    count = select(func.count()).select_from(schema.keys)
    assert control().run(lambda c: c.execute(count).scalar_one()) == 0
    assert len(side.stored) == 0
    side.keys.create(Fields(user="alice"), ADMIN)


def test_a_key_made_by_hand_in_sql_counts_like_any_other(side: Side, control: MakeControl) -> None:
    row = {
        "id": "key_hand",
        "digest": "ab" * 32,
        "user_id": "alice",
        "tags": "[]",
        "on_disconnect": "drain",
        "may_create_keys": False,
        "disabled": False,
        "created_unix_ns": 1,
        "created_by": "sql",
        "changed": 0,
    }
    control().run(lambda c: c.execute(insert(schema.keys).values(**row)), writes=True)
    assert side.keys.get("key_hand", ADMIN).terms.user == "alice"
