"""Keys where processes die, are several, or are at work: no key is lost, lingers, or is refused wrongly."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.control.keys import Wanted
from gateway.control.makers import Maker
from gateway.control.plane import Plane
from gateway.control.terms import Fields
from gateway.core.errors import GatewayFault
from tests.faults.test_workers import Crew
from tests.gateway_process import KEYS, ROOT, Gateway, bills_in_journal

ADMIN = "9f3c1f0f6b0e4f6a8f3f7f0a6d2b1c5e"
WAIT_S = 60.0
PROBES = 24
"""Requests on connections of their own: one worker of three is missed by all of them once in 10^4 times."""
CREATE_AND_DIE = """
import os, signal, sys
from pathlib import Path
from gateway.control.makers import Maker
from gateway.control.plane import Plane
from gateway.control.terms import Fields

plane = Plane("", "", Path(sys.argv[1]))
plane.keys._applied = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # after the commit, before the answer
plane.keys.create(Fields(user="alice"), Maker(who="admin"), "once")
"""


def ask(url: str, method: str, path: str, key: str, body: Any = None) -> httpx.Response:
    return httpx.request(method, url + path, json=body, headers={"x-api-key": key}, timeout=60)


def models(url: str, key: str) -> int:
    """Ask on a connection of its own; return the status."""
    return ask(url, "GET", "/v1/models", key).status_code


def test_a_process_that_dies_between_a_key_and_its_answer_leaves_one_key_and_no_secret(
    tmp_path: Path,
) -> None:
    journal = tmp_path / "journal"
    ended = subprocess.run(
        [sys.executable, "-c", CREATE_AND_DIE, str(journal)],
        env={**Gateway.clean_environment(), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=60,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    plane = Plane("", "", journal)
    admin = Maker(who="admin")
    again = plane.keys.create(Fields(user="alice"), admin, "once")
    assert again.secret is None
    listed = plane.keys.listed(Wanted(), admin).records
    assert [record.id for record in listed] == [again.record.id]
    assert plane.keys.rotate(again.record.id, admin).secret is not None, "that is how to go on"
    plane.close()


@pytest.fixture
def crew(tmp_path: Path) -> Any:
    with Crew(tmp_path, SPANBILL_ADMIN__KEY=ADMIN) as running:
        yield running


def test_an_answer_to_a_change_comes_when_all_workers_know(crew: Crew) -> None:
    made = ask(crew.url, "POST", "/v1/keys", ADMIN, {"user": "alice"}).json()
    asked: set[int] = set()
    for _ in range(3):
        began = time.monotonic()
        assert {models(crew.url, made["key"]) for _ in range(PROBES)} == {200}
        assert ask(crew.url, "POST", f"/v1/keys/{made['id']}/disable", ADMIN).status_code == 200
        assert {models(crew.url, made["key"]) for _ in range(PROBES)} == {401}
        assert ask(crew.url, "POST", f"/v1/keys/{made['id']}/enable", ADMIN).status_code == 200
        assert time.monotonic() - began < WAIT_S
    for line in crew.log().splitlines():
        if '"path":"/v1/models"' in line:
            asked.add(json.loads(line)["worker"])
    assert asked == {0, 1, 2}, "a worker that was not asked proves nothing"


def test_the_command_line_changes_keys_under_running_workers(crew: Crew) -> None:
    def command(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "gateway", "keys", *arguments],
            cwd=crew.folder,
            env=crew.whole_environment(),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    key = command("create", "--user", "alice").strip()
    assert {models(crew.url, key) for _ in range(PROBES)} == {200}
    listed = json.loads(command("list", "--json"))["data"]
    command("revoke", listed[0]["id"])
    assert {models(crew.url, key) for _ in range(PROBES)} == {401}


async def test_rotation_under_load_refuses_nobody(crew: Crew) -> None:
    made = ask(crew.url, "POST", "/v1/keys", ADMIN, {"user": "alice"}).json()
    secrets = [made["key"]]
    quick = slow = secrets[0]
    statuses: list[int] = []
    counted = asyncio.Condition()
    done = False

    async def caller(number: int) -> None:
        async with httpx.AsyncClient(base_url=crew.url, timeout=60) as client:
            while not done:  # ends with the rotations
                key = quick if number % 2 else slow
                answer = await client.post(
                    "/v1/chat/completions",
                    json={"model": "sim-small", "messages": [{"role": "user", "content": "Hi"}]},
                    headers={"authorization": f"Bearer {key}"},
                )
                async with counted:
                    statuses.append(answer.status_code)
                    counted.notify_all()

    async def some_more() -> None:
        count = len(statuses) + 5 * len(callers)
        async with asyncio.timeout(WAIT_S), counted:
            await counted.wait_for(lambda: len(statuses) >= count)

    callers = [asyncio.create_task(caller(number)) for number in range(8)]
    async with httpx.AsyncClient(base_url=crew.url, timeout=60) as admin:
        for _ in range(5):
            answer = await admin.post(
                f"/v1/keys/{made['id']}/rotate", json={"grace_s": 600}, headers={"x-api-key": ADMIN}
            )
            secrets.append(answer.json()["key"])
            quick = secrets[-1]
            await some_more()  # half of the callers are slow to hear of the new secret
            slow = secrets[-1]
            await some_more()
    done = True
    await asyncio.gather(*callers)
    assert set(statuses) == {200}
    assert len(set(secrets)) == 6
    assert models(crew.url, secrets[0]) == 401, "the grace is for one secret"
    bills = bills_in_journal(crew.journal).values()
    assert {bill["billing.key.id"] for bill in bills} == {made["id"]}, "all on one account"
    assert len(bills) == len(statuses)


def test_a_database_that_is_away_leaves_the_keys_of_the_configuration(tmp_path: Path) -> None:
    away = f"postgresql://nobody@/none?host={tmp_path}"
    with Gateway(tmp_path / "g", SPANBILL_ADMIN__KEY=ADMIN, SPANBILL_CONTROL__URL=away) as gateway:
        assert models(gateway.url, KEYS["alice"]) == 200
        stored = ask(gateway.url, "GET", "/v1/models", "sk-sb-" + "a" * 43)
        assert (stored.status_code, stored.json()["error"]["code"]) == (503, "keys_unavailable")
        assert stored.headers["retry-after"]
        chat = ask(gateway.url, "POST", "/v1/chat/completions", "sk-sb-" + "a" * 43, {"model": "sim-small"})
        assert (chat.status_code, chat.headers["retry-after"]) == (503, "1")
        assert models(gateway.url, "sk-nobody") == 401
        refused = ask(gateway.url, "POST", "/v1/keys", ADMIN, {"user": "alice"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "keys_unavailable")
        metrics = httpx.get(f"{gateway.url}/metrics", timeout=60).text
        assert "llm_gateway_keys_readable 0" in metrics
        assert "only those of the configuration are served" in gateway.log()
        assert gateway.stop() == 0


def test_writers_from_several_processes_lose_nothing(tmp_path: Path) -> None:
    """Twenty keys from each of four processes' worth of stores, at once, on one file."""
    planes = [Plane("", "", tmp_path / "journal") for _ in range(4)]
    made: list[str] = []

    def create(plane: Plane) -> None:
        made.extend([created(plane) for _ in range(20)])

    def created(plane: Plane) -> str:
        for _ in range(50):  # whoever finds the file busy for too long is told to ask again
            try:
                return plane.keys.create(Fields(user="alice"), Maker(who="admin")).record.id
            except GatewayFault as fault:
                if fault.code != "keys_unavailable":
                    raise
        raise AssertionError("one of them never had its turn")

    threads = [threading.Thread(target=create, args=(plane,)) for plane in planes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    page = planes[0].keys.listed(Wanted(limit=1000), Maker(who="admin"))
    assert {record.id for record in page.records} == set(made)
    assert len(made) == 80
    assert sorted(record.changed for record in page.records) == list(range(1, 81))
    for plane in planes:
        plane.close()


def started(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gateway", "serve", "--port", "0"],
        cwd=folder,
        env={**Gateway.clean_environment(), "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_admin_key_is_nobodys_virtual_key(tmp_path: Path) -> None:
    ended = started(tmp_path, SPANBILL_ADMIN__KEY=ADMIN, SPANBILL_API_KEYS=f"alice={ADMIN}")
    assert ended.returncode == 78
    assert "also a virtual key" in ended.stderr
    assert ADMIN not in ended.stdout + ended.stderr


def test_a_database_of_a_newer_version_refuses_to_start_in_one_line(tmp_path: Path) -> None:
    plane = Plane("", "", tmp_path / "data" / "journal")
    plane.keys.create(Fields(user="alice"), Maker(who="admin"))
    plane.close()
    with closing(sqlite3.connect(tmp_path / "data" / "control.db")) as file, file:
        file.execute("UPDATE control_schema SET version_num = '9999'")
    ended = started(tmp_path)
    assert ended.returncode == 78
    assert "control.url" in ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr


def test_a_key_of_the_configuration_with_unusable_bounds_refuses_to_start(tmp_path: Path) -> None:
    for bound, said in (
        ({"models": []}, "`models` names none"),
        ({"models": ["*a*b*c*d*"]}, "more than 4 stars"),
        ({"endpoints": ["chat"]}, "`endpoints` must be some of"),
        ({"expires_at": "2027-01-01"}, "keys.0.expires_at"),
        ({"expires_at": "9999-01-01T00:00:00Z"}, "before 2262"),
    ):
        keys = json.dumps([{"id": "k", "key": "sk-canary-start", "user": "u", **bound}])
        ended = started(tmp_path, SPANBILL_KEYS=keys)
        assert ended.returncode == 78
        assert said in ended.stderr
        assert "sk-canary" not in ended.stdout + ended.stderr
