"""What a gateway says in its logs by days: a line per bill, one per failure with whose it was, no content."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.settings.logs import LogFileSettings, LoggingSettings
from tests.attacks.chaos import Chaos, Reset
from tests.attacks.inprocess import KEY, PROVIDER_KEY, attacked
from tests.attacks.wires import WIRES, sized

CHAT = WIRES[0]
STRANGER = "sk-stranger-0001"


def lines_of(folder: Path, stem: str) -> list[dict[str, Any]]:
    files = sorted(folder.glob(f"{stem}-*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


async def test_each_bill_is_a_line_of_usage_and_each_failure_one_of_errors(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logging = LoggingSettings(
        requests=False, usage=LogFileSettings(path=logs), errors=LogFileSettings(path=logs)
    )
    with Chaos() as chaos:
        chaos.script("chaos-fine", sized(CHAT.whole().replace(b'"hi"', b'"reply-canary"')))
        chaos.script("chaos-busy", sized(b'{"error":{"message":"error-canary"}}', "503 Busy"))
        chaos.script("chaos-cut", Reset())
        async with attacked(tmp_path / "journal", chaos, logging=logging) as gateway:
            prompt = [{"role": "user", "content": "prompt-canary"}]

            async def ask(model: str, key: str = KEY) -> Any:
                body = CHAT.request(model, stream=False, messages=prompt)
                return await gateway.ask(CHAT, body, key=key, headers=[(b"x-odd", b"header-canary")])

            fine, busy, cut = [await ask(f"chaos-{name}") for name in ("fine", "busy", "cut")]
            unknown, stranger = await ask("no-such-model"), await ask("chaos-fine", STRANGER)
    usage, errors = lines_of(logs, "usage"), lines_of(logs, "errors")
    assert [line["request_id"] for line in usage] == [a.request_id for a in (fine, busy, cut)]
    failed = {line["request_id"]: line for line in errors}
    assert list(failed) == [a.request_id for a in (busy, cut, unknown, stranger)]
    for answer in (busy, cut, unknown):
        line = failed[answer.request_id]
        assert (line["user"], line["key"], line["status"]) == ("mallory", usage[0]["key"], answer.status)
        assert line["error_type"]
    assert [failed[a.request_id]["provider"] for a in (busy, cut)] == ["chaos", "chaos"]
    assert "user" not in failed[stranger.request_id]
    assert failed[stranger.request_id]["status"] == 401
    written = b"".join(file.read_bytes() for file in logs.iterdir())
    for secret in (
        KEY,
        PROVIDER_KEY,
        STRANGER,
        "prompt-canary",
        "reply-canary",
        "error-canary",
        "header-canary",
    ):
        assert secret.encode() not in written


@pytest.mark.parametrize("stem", ["usage", "errors"])
async def test_a_log_without_a_path_is_no_file(tmp_path: Path, stem: str) -> None:
    other = "errors" if stem == "usage" else "usage"
    logging = LoggingSettings(requests=False, **{other: LogFileSettings(path=tmp_path / "logs")})
    with Chaos() as chaos:
        chaos.script("chaos-busy", sized(b"{}", "503 Busy"))
        async with attacked(tmp_path / "journal", chaos, logging=logging) as gateway:
            await gateway.ask(CHAT, CHAT.request("chaos-busy", stream=False))
    assert len(lines_of(tmp_path / "logs", other)) == 1
    assert lines_of(tmp_path / "logs", stem) == []
