"""A key grants no more than its maker has; and nothing that no database takes becomes terms."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gateway.admission.permission import Permission
from gateway.control.terms import ENDPOINTS, Fields, Terms, beyond, changed_terms, new_terms
from gateway.core.errors import CallerError

NAMES = ["".join(letters) for size in range(5) for letters in itertools.product("abc", repeat=size)]
MODELS = st.none() | st.lists(
    st.text("ab*", min_size=1, max_size=4), min_size=1, max_size=3, unique=True
).map(tuple)
SOME = st.none() | st.sampled_from(["x", "y"])
TERMS = st.builds(
    Terms,
    user=st.sampled_from(["alice", "bob"]),
    user_name=SOME,
    team=SOME,
    project=SOME,
    tags=st.lists(st.sampled_from(["s", "t"]), unique=True).map(tuple),
    models=MODELS,
    endpoints=st.none() | st.lists(st.sampled_from(ENDPOINTS), min_size=1, unique=True).map(tuple),
    on_disconnect=st.sampled_from(["drain", "cancel"]),
    unpriced=st.none() | st.sampled_from(["serve", "refuse"]),
    expires_unix_ns=st.none() | st.integers(1, 9),
    may_create_keys=st.booleans(),
)


def granted(terms: Terms) -> set[Any]:
    """Return all that a key with these terms can do: (time, endpoint, model, served without a price?)."""
    permission = Permission(terms.models, terms.endpoints)
    ends = terms.expires_unix_ns or 10
    return {
        (at, endpoint, name, unpriced)
        for at in range(0, ends, 4)
        for endpoint in ENDPOINTS
        if terms.endpoints is None or endpoint in terms.endpoints
        for name in NAMES
        if permission.allows(name)
        for unpriced in {"serve": ("serve",), "refuse": (), None: ("default",)}[terms.unpriced] + ("refuse",)
    }


def narrowed(maker: Terms, child: Terms) -> Terms:
    """Return the child's wishes in the maker's account, where the rule has something to decide."""
    own = ("user", "user_name", "team", "project", "on_disconnect")
    return msgspec.structs.replace(
        child, **{name: getattr(maker, name) for name in own}, tags=maker.tags, may_create_keys=False
    )


@settings(max_examples=400, deadline=None)
@given(TERMS, TERMS)
def test_a_key_within_its_makers_terms_can_do_nothing_that_the_maker_cannot(
    maker: Terms, child: Terms
) -> None:
    for wish in (child, narrowed(maker, child)):
        if beyond(maker, wish) is None:
            assert granted(wish) <= granted(maker)
            assert (wish.user, wish.team, wish.project) == (maker.user, maker.team, maker.project)
            assert not wish.may_create_keys


@settings(max_examples=300, deadline=None)
@given(TERMS, TERMS, TERMS)
def test_what_is_within_what_is_within_is_within(one: Terms, two: Terms, three: Terms) -> None:
    two, three = narrowed(one, two), narrowed(one, three)
    assume(beyond(one, two) is None)
    assume(beyond(two, three) is None)
    assert beyond(one, three) is None


@given(TERMS)
def test_a_maker_may_make_what_it_is_itself_except_a_maker(maker: Terms) -> None:
    assert beyond(maker, new_terms(Fields(), maker)) is None
    assert new_terms(Fields(), maker).may_create_keys is False


@pytest.mark.parametrize(
    ("field", "maker", "child"),
    [
        ("user", {}, {"user": "bob"}),
        ("user_name", {}, {"user_name": "Bob"}),
        ("team", {"team": "red"}, {"team": "blue"}),
        ("team", {"team": "red"}, {"team": None}),
        ("project", {}, {"project": "p"}),
        ("tags", {"tags": ("t",)}, {"tags": ()}),
        ("models", {"models": ("gpt-*",)}, {"models": None}),
        ("models", {"models": ("gpt-*",)}, {"models": ("gp*",)}),
        ("models", {"models": ("gpt-4o",)}, {"models": ("gpt-4*",)}),
        ("models", {"models": ("a*", "b*")}, {"models": ("a*", "*")}),
        ("endpoints", {"endpoints": ("messages",)}, {"endpoints": None}),
        ("endpoints", {"endpoints": ("messages",)}, {"endpoints": ("messages", "embeddings")}),
        ("on_disconnect", {"on_disconnect": "cancel"}, {"on_disconnect": "drain"}),
        ("on_disconnect", {}, {"on_disconnect": "cancel"}),
        ("unpriced", {"unpriced": "refuse"}, {"unpriced": None}),
        ("unpriced", {}, {"unpriced": "serve"}),
        ("expires_at", {"expires_unix_ns": 5}, {"expires_unix_ns": 6}),
        ("expires_at", {"expires_unix_ns": 5}, {"expires_unix_ns": None}),
        ("may_create_keys", {"may_create_keys": True}, {"may_create_keys": True}),
    ],
)
def test_what_goes_beyond_is_named(field: str, maker: dict[str, Any], child: dict[str, Any]) -> None:
    own = Terms(user="alice", **maker)
    assert beyond(own, msgspec.structs.replace(own, may_create_keys=False)) is None
    assert beyond(own, msgspec.structs.replace(own, **{"may_create_keys": False, **child})) == field


WRONG: list[tuple[str, dict[str, Any]]] = [
    ("user", {}),
    ("user", {"user": ""}),
    ("user", {"user": "x" * 257}),
    ("user", {"user": "a\x00b"}),
    ("user", {"user": "\ud800"}),
    ("name", {"name": "two\nlines"}),
    ("team", {"team": ""}),
    ("tags", {"tags": ["a", "a"]}),
    ("tags", {"tags": [str(n) for n in range(33)]}),
    ("tags", {"tags": ["x" * 65]}),
    ("models", {"models": []}),
    ("models", {"models": [""]}),
    ("models", {"models": ["*a*b*c*d*"]}),
    ("models", {"models": [str(n) for n in range(65)]}),
    ("endpoints", {"endpoints": []}),
    ("endpoints", {"endpoints": ["chat"]}),
    ("endpoints", {"endpoints": ["messages", "messages"]}),
    ("expires_at", {"expires_at": "tomorrow"}),
    ("expires_at", {"expires_at": "2027-01-31"}),
    ("expires_at", {"expires_at": "2027-01-31T00:00:00"}),
    ("expires_at", {"expires_at": "2262-01-01T00:00:00Z"}),
    ("expires_at", {"expires_at": "9999-12-31T23:59:59-23:00"}),
    ("expires_at", {"expires_at": "0001-01-01T00:00:00+23:00"}),
    ("expires_at", {"expires_at": "1969-12-31T23:59:59Z"}),
]


@pytest.mark.parametrize(("field", "said"), WRONG)
def test_what_is_wrong_is_named_and_refused(field: str, said: dict[str, Any]) -> None:
    whole = {"user": "alice", **said} if said else said
    with pytest.raises(CallerError) as refused:
        new_terms(Fields(**whole), None)
    assert (refused.value.status, refused.value.param) == (400, field)
    assert f"`{field}`" in refused.value.message


def test_what_is_left_out_stays_and_null_takes_away() -> None:
    terms = Terms(user="alice", team="red", models=("a",), expires_unix_ns=5, tags=("t",))
    assert changed_terms(terms, Fields()) == terms
    assert changed_terms(terms, Fields(team=None, models=None, expires_at=None, tags=[])) == Terms(
        user="alice"
    )


def test_a_time_is_kept_to_the_microsecond() -> None:
    terms = new_terms(Fields(user="a", expires_at="2027-01-31T12:00:00.123456+05:30"), None)
    assert terms.expires_unix_ns == 1_801_377_000_123_456_000
