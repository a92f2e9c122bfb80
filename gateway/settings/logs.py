"""Settings of the logs: what goes to standard output, and where files stand, how long and how large."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from pydantic import AliasChoices, Field

from gateway.settings.section import Section

MEBIBYTE: Final = 1024 * 1024
_DAYS: Final = AliasChoices("retention_days", "retentionDays")


class LogFileSettings(Section):
    """One log by days."""

    path: Path | None = Field(
        None,
        description="Folder of the log, or a file's name to which each day is added "
        "(`errors.jsonl`: `errors-2026-11-21.jsonl`); without it there are no files.",
    )
    retention_days: int = Field(
        30,
        ge=1,
        validation_alias=_DAYS,
        description="Files older than so many days are removed; also `retentionDays`.",
    )
    bytes_max: int = Field(
        1024 * MEBIBYTE,
        ge=4096,
        description="What its files may take, in bytes: the oldest go first, and when today's alone takes "
        "that much, lines are dropped and counted.",
    )


class DebugSettings(Section):
    """Capture of requests and replies, with their content: off without a path, and for nobody by default."""

    path: Path | None = Field(
        None, description="Folder of the captures, one file a request; without it nothing is captured."
    )
    retention_days: int = Field(
        7,
        ge=1,
        validation_alias=_DAYS,
        description="Captures older than so many days are removed; also `retentionDays`.",
    )
    keys: tuple[str, ...] = Field((), description="Ids of the keys whose requests are all captured.")
    header_keys: tuple[str, ...] = Field(
        (),
        description="Ids of the keys that may ask for it with the header `x-spanbill-debug: 1`; of others it "
        "is ignored, unless the request shows the admin key beside its own.",
    )
    capture_bytes_max: int = Field(
        256 * 1024,
        ge=1024,
        description="How much of a request's body, and as much of its reply's, is kept, in bytes; what is "
        "cut is marked.",
    )
    captures_per_day: int = Field(
        1000,
        ge=1,
        description="Captures of one day; further ones are counted and dropped. Workers see those of others "
        "once a minute.",
    )
    bytes_max: int = Field(
        1024 * MEBIBYTE,
        ge=4096,
        description="What all captures may take, in bytes; when they do, the oldest days go, and then new "
        "ones are dropped.",
    )
    redact_fields: tuple[str, ...] = Field(
        (),
        description="Names of JSON fields whose values are taken out of bodies, besides those of secrets, "
        "which always are.",
    )


class LoggingSettings(Section):
    """What is written to standard output, and to files by days."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe level to log."
    )
    requests: bool = Field(True, description="One JSON line per request on standard output.")
    usage: LogFileSettings = LogFileSettings()  # type: ignore[call-arg]
    errors: LogFileSettings = LogFileSettings()  # type: ignore[call-arg]
    debug: DebugSettings = DebugSettings()  # type: ignore[call-arg]
