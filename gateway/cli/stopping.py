"""Stopping: how every command ends where it cannot go on: one plain line, and a stated exit code."""

from __future__ import annotations

import sys
from typing import Final, NoReturn

from gateway.settings import Settings, SettingsError, load_settings

EX_CONFIG: Final = 78


def stop(message: str, code: int = EX_CONFIG) -> NoReturn:
    """Say why on standard error, and end the process."""
    print(f"spanbill: {message}", file=sys.stderr)
    raise SystemExit(code)


def settings_or_stop() -> Settings:
    """Return the settings; end the process if they cannot be used."""
    try:
        return load_settings()
    except SettingsError as fault:
        stop(str(fault))
