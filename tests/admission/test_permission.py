"""A key opens what it is allowed, by the names that its caller writes."""

from __future__ import annotations

import pytest

from gateway.admission.permission import EVERYTHING, Permission, permission_of
from gateway.core.errors import CallerError


def test_a_key_without_bounds_opens_everything() -> None:
    for name in ("gpt-4o", "", "*", "a/b/c"):
        assert EVERYTHING.allows(name)
        EVERYTHING.ask_model(name)
        EVERYTHING.ask_endpoint(name)


@pytest.mark.parametrize("name", ["gpt-4o", "gpt-4o-mini", "sim-small", "sim-", "a/x/b"])
def test_a_model_that_is_named_or_meant_is_allowed(name: str) -> None:
    Permission(("gpt-4o", "gpt-4o-mini", "sim-*", "a/*/b")).ask_model(name)


@pytest.mark.parametrize(
    "name",
    ["gpt-4", "gpt-4o-2024", "GPT-4O", "openai/gpt-4o", " gpt-4o", "gpt-4o\n", "xsim-", "si", "", "*", "a/b"],
)
def test_a_model_that_is_written_in_any_other_way_is_refused(name: str) -> None:
    with pytest.raises(CallerError) as refused:
        Permission(("gpt-4o", "gpt-4o-mini", "sim-*", "a/*/b")).ask_model(name)
    assert (refused.value.status, refused.value.code, refused.value.param) == (
        403,
        "model_not_allowed",
        "model",
    )


def test_an_endpoint_is_allowed_by_its_name() -> None:
    permission = Permission(endpoints=("embeddings",))
    permission.ask_endpoint("embeddings")
    with pytest.raises(CallerError) as refused:
        permission.ask_endpoint("chat_completions")
    assert (refused.value.status, refused.value.code) == (403, "endpoint_not_allowed")
    assert "embeddings" in refused.value.message


def test_a_refusal_of_many_models_is_no_longer_than_one_of_few() -> None:
    with pytest.raises(CallerError, match="and 59 more") as refused:
        Permission(tuple(f"model-{number}" for number in range(64))).ask_model("other")
    assert len(refused.value.message) < 300


def test_keys_with_the_same_permission_share_it() -> None:
    assert permission_of(("a",), None) is permission_of(("a",), None)
