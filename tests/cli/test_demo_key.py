"""The demo key is made whole or not at all, and a file that holds none is said plainly."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from pydantic import SecretStr

from gateway.cli.serve import _demo_key
from gateway.core.errors import CannotStartError
from gateway.settings import AdminSettings, JournalSettings, Settings


def settings_in(folder: Path) -> Settings:
    return Settings(journal=JournalSettings(directory=folder))


def test_the_demo_key_is_made_once_and_is_for_its_owner_only(tmp_path: Path) -> None:
    first, again = _demo_key(settings_in(tmp_path)), _demo_key(settings_in(tmp_path))
    assert first is not None
    assert again is not None
    assert first[0] == again[0]
    assert (tmp_path / "demo-key").stat().st_mode & 0o077 == 0


def test_a_full_disk_leaves_no_empty_demo_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs = 0

    def full(fd: int) -> None:
        nonlocal syncs
        syncs += 1
        os.ftruncate(fd, 0)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("gateway.cli.serve.os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            _demo_key(settings_in(tmp_path))
    assert syncs == 1
    made = _demo_key(settings_in(tmp_path))
    assert made is not None
    assert made[0].startswith("sk-demo-")


@pytest.mark.parametrize("held", [b"", b"\n", b"\xff\xfe", b"two words\n"])
def test_a_demo_key_that_cannot_be_used_is_said_plainly(tmp_path: Path, held: bytes) -> None:
    (tmp_path / "demo-key").write_bytes(held)
    with pytest.raises(CannotStartError, match="demo-key holds no key that can be used; remove it"):
        _demo_key(settings_in(tmp_path))


def test_a_gateway_with_an_operator_has_no_demo_key(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    operated = settings.model_copy(update={"admin": AdminSettings(key=SecretStr("9f3c1f0f6b0e4f6a8f3f7f0a"))})
    assert _demo_key(operated) is None
    assert not (tmp_path / "demo-key").exists()
    assert _demo_key(settings) is not None
