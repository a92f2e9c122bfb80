"""Keys from the command line: the secret alone on standard output, plain refusals, stated exit codes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from gateway.admission.stored_keys import StoredKeys
from gateway.admission.virtual_keys import KeyRing
from gateway.cli import keys as command
from gateway.cli.main import app
from gateway.control.following import Following
from gateway.control.store import Control, control_store_at
from gateway.core.exchange import Identity


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPANBILL_CONFIG", raising=False)
    monkeypatch.setattr(command, "SPREAD_S", 0)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["keys", *arguments])


def done(*arguments: str) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def opens(folder: Path, secret: str) -> Identity:
    control = Control(control_store_at("", "", folder / "data" / "journal"))
    stored = StoredKeys()
    Following(control, stored).step()
    control.close()
    return KeyRing([], stored).identify([(b"x-api-key", secret.encode())])


def test_a_new_key_is_the_only_line_on_standard_output(folder: Path) -> None:
    result = run("create", "--user", "alice", "--team", "red")
    assert result.exit_code == 0
    assert re.fullmatch(r"sk-sb-[A-Za-z0-9_-]{43}\n", result.stdout)
    assert "alice" in result.stderr
    assert "shown this once" in result.stderr
    assert opens(folder, result.stdout.strip()).team == "red"


def test_a_key_lives_its_whole_life(folder: Path) -> None:
    made = done(
        *("create", "--user", "alice", "--model", "a", "--model", "b*", "--tag", "t", "--expires", "90d"),
        *("--endpoint", "messages", "--on-disconnect", "cancel", "--unpriced", "refuse", "--name", "n"),
    )
    assert (made["models"], made["tags"], made["endpoints"]) == (["a", "b*"], ["t"], ["messages"])
    assert (made["on_disconnect"], made["unpriced"], made["name"]) == ("cancel", "refuse", "n")
    assert made["expires_at"] > made["created_at"]
    key_id = made["id"]
    changed = done("update", key_id, "--model", "-", "--expires", "-", "--tag", "-", "--unpriced", "-")
    assert (changed["models"], changed["expires_at"], changed["tags"]) == (None, None, [])
    assert changed["endpoints"] == ["messages"]
    rotated = done("rotate", key_id, "--grace", "10m")
    assert opens(folder, made["key"]).key_id == opens(folder, rotated["key"]).key_id == key_id
    assert done("disable", key_id)["state"] == "disabled"
    assert done("enable", key_id)["state"] == "active"
    assert "key" not in done("show", key_id)
    assert [one["id"] for one in done("list", "--user", "alice")["data"]] == [key_id]
    assert done("list", "--user", "bob")["data"] == []
    assert done("revoke", key_id)["state"] == "revoked"
    assert key_id in run("list", "--state", "revoked").stdout
    assert "revoked" in run("show", key_id).stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("create", "--user", ""), "`user` must be"),
        (("create", "--user", "a", "--expires", "soon"), "`expires_at` is no time"),
        (("create", "--user", "a", "--expires", "xd"), "--expires: say it as"),
        (("create", "--user", "a", "--expires", "2020-01-01T00:00:00Z"), "is past"),
        (("create", "--user", "a", "--endpoint", "chat"), "`endpoints` must be some of"),
        (("create", "--user", "a\ud800"), "`user` must be"),
        (("show", "key_none"), "there is no such key"),
        (("rotate", "key_none", "--grace", "soon"), "--grace: say it as"),
        (("rotate", "key_none", "--grace", "9999d"), "`grace_s` must be"),
        (("update", "key_none"), "nothing is to be changed"),
    ],
)
def test_what_is_wrong_is_one_plain_line(arguments: tuple[str, ...], said: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_database_that_is_away_is_said_with_its_reason(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPANBILL_CONTROL__URL", f"postgresql://me:hidden@/none?host={folder}")
    result = run("list")
    assert result.exit_code == 78
    assert "the keys' database is away" in result.stderr
    assert "hidden" not in result.output


def test_no_secret_is_in_a_list() -> None:
    secret = done("create", "--user", "alice")["key"]
    assert secret not in run("list").output
    assert secret not in run("list", "--json").output
