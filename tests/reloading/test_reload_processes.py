"""Real processes read their configuration again: one by itself, three workers by their supervisor's word."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.stack import wait_until
from tests.gateway_process import KEYS, ROOT, Gateway

WAIT_S = 60.0


def write(folder: Path, target: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / "spanbill.new"
    new.write_text(f"routing: {{aliases: {{m: {{targets: [{{model: {target}}}]}}}}}}\n")
    new.replace(folder / "spanbill.yaml")


def served_by(gateway: Gateway) -> str:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
    headers = {"authorization": f"Bearer {KEYS['alice']}"}
    reply = httpx.post(f"{gateway.url}/v1/chat/completions", json=body, headers=headers, timeout=WAIT_S)
    assert reply.status_code == 200, reply.text
    return str(reply.json()["model"])


def told(gateway: Gateway, message: str) -> int:
    return sum(line["message"] == message for line in lines_of(gateway))


def lines_of(gateway: Gateway) -> list[dict[str, Any]]:
    whole = gateway.log().rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]


TAKEN = "the configuration is in force"
REFUSED = "the changed configuration cannot be used; the one before stays in force"


@pytest.mark.parametrize("workers", [1, 3])
def test_a_signal_and_a_changed_file_are_heard_by_every_worker(tmp_path: Path, workers: int) -> None:
    write(tmp_path, "sim-small")
    with Gateway(tmp_path, SPANBILL_SERVER__WORKERS=str(workers)) as gateway:
        assert gateway.process is not None
        if workers > 1:
            assert wait_until(lambda: told(gateway, "a worker serves") == workers, WAIT_S, 0.05)
        assert served_by(gateway) == "sim-small"
        os.kill(gateway.process.pid, signal.SIGHUP)
        assert wait_until(lambda: told(gateway, TAKEN) == workers, WAIT_S, 0.05), gateway.log()
        write(tmp_path, "sim-large")
        assert wait_until(lambda: told(gateway, TAKEN) == 2 * workers, WAIT_S, 0.05), gateway.log()
        assert {served_by(gateway) for _ in range(12)} == {"sim-large"}
        write(tmp_path, "nobody/nothing")
        os.kill(gateway.process.pid, signal.SIGHUP)
        assert wait_until(lambda: told(gateway, REFUSED) == workers, WAIT_S, 0.05), gateway.log()
        assert {served_by(gateway) for _ in range(12)} == {"sim-large"}
        assert httpx.get(f"{gateway.url}/ready", timeout=WAIT_S).status_code == 200
        assert gateway.stop() == 0


def test_a_worker_that_is_started_anew_begins_with_what_is_in_force(tmp_path: Path) -> None:
    write(tmp_path, "sim-small")
    with Gateway(tmp_path, SPANBILL_SERVER__WORKERS="2") as gateway:
        assert wait_until(lambda: told(gateway, "a worker serves") == 2, WAIT_S, 0.05)
        write(tmp_path, "sim-large")
        assert wait_until(lambda: told(gateway, TAKEN) == 2, WAIT_S, 0.05), gateway.log()
        write(tmp_path, "nobody/nothing")
        assert wait_until(lambda: told(gateway, REFUSED) == 2, WAIT_S, 0.05), gateway.log()
        for pid in {line["pid"] for line in lines_of(gateway) if line["message"] == "a worker serves"}:
            os.kill(pid, signal.SIGKILL)
        assert wait_until(lambda: told(gateway, "a worker serves") == 4, WAIT_S, 0.05), gateway.log()
        assert {served_by(gateway) for _ in range(12)} == {"sim-large"}, "the last that could be used"
        scraped = httpx.get(f"{gateway.url}/metrics", timeout=WAIT_S).text
        assert "llm_gateway_config_usable 0.0" in scraped, "what is written in the file is not in force"
        write(tmp_path, "sim-small")
        assert wait_until(lambda: told(gateway, TAKEN) == 4, WAIT_S, 0.05), gateway.log()
        assert {served_by(gateway) for _ in range(12)} == {"sim-small"}
        assert told(gateway, REFUSED) == 2, "new workers need not be told of a mistake again"
        assert gateway.stop() == 0


HANGS_UP = """
import os, signal
from pathlib import Path
from gateway.cli.serve import serve_forever
from gateway.reloading import Source
from gateway.settings import load_settings

class HangsUp(Source):
    @property
    def settings(self):
        os.kill(os.getpid(), signal.SIGHUP)
        return self._started
    @settings.setter
    def settings(self, _): ...

signal.signal(signal.SIGHUP, signal.SIG_DFL)
Path("file").touch()
print(serve_forever(HangsUp(load_settings(), load_settings, Path("none"), None)))
"""


def test_a_gateway_that_is_only_starting_does_not_die_of_a_hangup(tmp_path: Path) -> None:
    unusable = {"SPANBILL_JOURNAL__DIRECTORY": "file/journal"}
    environ = {**Gateway.clean_environment(), "PYTHONPATH": str(ROOT), **unusable}
    done = subprocess.run(
        [sys.executable, "-c", HANGS_UP],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert done.returncode == 0, done.stderr
    assert "file/journal" in done.stdout
