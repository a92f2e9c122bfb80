"""Limiting: what the settings come to, and which of them are refused at the start."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from gateway.core.exchange import Identity
from gateway.limiting import Limiting, rules_of
from gateway.limits.desk import OwnDesk, SharedDesk
from gateway.limits.shared import RedisLimits
from gateway.limits.sqlite import SqliteLimits
from gateway.settings import Settings, SettingsError, load_settings

RULE = {"id": "a", "key": "*", "requests_per_minute": 1}


def settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *rules: dict[str, Any], **more: str
) -> Settings:
    environ = {"SPANBILL_JOURNAL__DIRECTORY": str(tmp_path / "journal"), **more}
    if rules:
        environ["SPANBILL_LIMITS__RULES"] = json.dumps(rules)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    return load_settings(environ)


def limiting(found: Settings) -> Limiting:
    return Limiting(found, lambda rule, unit: None)


def test_without_rules_there_is_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = limiting(settings(tmp_path, monkeypatch))
    assert (found.guard, found.desk, list(found.health())) == (None, None, [])


@pytest.mark.parametrize(
    ("workers", "backend", "store"),
    [
        ("1", "", None),
        ("3", "", SqliteLimits),
        ("1", "sqlite", SqliteLimits),
        ("1", "redis://127.0.0.1:1/0", RedisLimits),
        ("3", "valkey://127.0.0.1:1", RedisLimits),
        ("3", "unix:///nowhere", RedisLimits),
    ],
)
def test_counters_are_where_the_workers_can_share_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: str, backend: str, store: type | None
) -> None:
    environ = {"SPANBILL_SERVER__WORKERS": workers, "SPANBILL_LIMITS__BACKEND": backend}
    desk = limiting(settings(tmp_path, monkeypatch, RULE, **environ)).desk
    if store is None:
        assert isinstance(desk, OwnDesk)
    else:
        assert isinstance(desk, SharedDesk)
        assert isinstance(desk._store, store)


def test_several_workers_that_count_by_themselves_are_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    environ = {"SPANBILL_SERVER__WORKERS": "2", "SPANBILL_LIMITS__BACKEND": "memory"}
    with caplog.at_level(logging.WARNING, "spanbill.limits"):
        limiting(settings(tmp_path, monkeypatch, RULE, **environ))
    assert ["by each worker for itself" in record.getMessage() for record in caplog.records] == [True]


def test_limits_of_a_key_are_a_rule_in_place_of_that_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = {"id": "k1", "key": "sk-one-0001", "user": "alice", "limits": {"requests_per_minute": 7}}
    found = settings(tmp_path, monkeypatch, RULE, SPANBILL_KEYS=json.dumps([key]))
    matches = rules_of(found).matches_of(Identity(key_id="k1", user_id="alice", source="key"))
    assert [(match.rule, match.limit) for match in matches] == [("key:k1", 7)]


@pytest.mark.parametrize(
    ("rules", "backend", "said"),
    [
        ([RULE, RULE], "", "limits.rules: each rule needs an id of its own"),
        ([{"id": "a", "key": "*"}], "", "give `requests_per_minute`"),
        ([{**RULE, "requests_per_minute": 0}], "", "limits.rules.0.requests_per_minute"),
        ([{**RULE, "colour": "red"}], "", "limits.rules.0.colour"),
        ([RULE], "http://secret-canary@host", "limits.backend is not"),
        ([RULE], "redis://:secret-canary@host:port", "limits.backend: it is no address"),
    ],
)
def test_a_mistake_is_told_at_the_start_and_no_secret_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rules: list[dict[str, Any]], backend: str, said: str
) -> None:
    with pytest.raises(SettingsError) as mistake:
        limiting(settings(tmp_path, monkeypatch, *rules, SPANBILL_LIMITS__BACKEND=backend))
    assert said in str(mistake.value)
    assert "canary" not in str(mistake.value)
