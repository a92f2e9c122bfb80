"""The real server, killed at random moments of mixed traffic, starts again with every bill, once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import httpx
import pytest

from tests.faults.kill_audit import audit
from tests.faults.kill_forks import Forks
from tests.faults.kill_world import World
from tests.gateway_process import KEYS, ROOT, Gateway, free_port

TORTURE = os.environ.get("SPANBILL_TORTURE") == "1"
KILLS = 1_000 if TORTURE else 50
FOLDERS = 4
"""Gateways side by side, each with a folder, a provider and callers of its own."""
PIECES_MAX = 600
"""A kill comes after at most so many pieces of the provider: within a second or so of traffic."""
AFTER = 20


class Quick(Gateway):
    """A gateway that can be started from a process which has imported everything already."""

    def fork(self, forks: Forks) -> None:
        log = self.folder / "gateway.log"
        self.process = forks.start(self.arguments, self.folder, self.whole_environment(), log)  # type: ignore[assignment]
        self.await_ready()


async def tortured(folder: Path, seed: int, kills: int, forks: Forks) -> tuple[Counter[str], list[str]]:
    """Kill a gateway again and again, let the last one end well; return outcomes, and what is wrong.

    The first and the last are fresh processes of `python -m gateway serve`.
    """
    draw = random.Random(seed)
    async with World() as world:
        durability = ("group", "process", "strict")[seed % 3]
        gateway = Quick(
            folder,
            port=None,
            **world.environment(),
            SPANBILL_JOURNAL__DURABILITY=durability,
            SPANBILL_JOURNAL__SEGMENT_BYTES_MAX="65536",
        )
        for number in range(kills):
            await (asyncio.to_thread(gateway.fork, forks) if number else asyncio.to_thread(gateway.start))
            async with world.traffic(gateway.url, seed + number):
                await world.moment(draw.randint(1, PIECES_MAX))
                gateway.kill()
            if TORTURE and number % 25 == 0:
                sys.stderr.write(f"folder {seed}: {number} of {kills} kills, {len(world.calls)} calls\n")
        await asyncio.to_thread(gateway.start)
        async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as client:
            for _ in range(AFTER):
                await world.ask(client, draw)
        assert await asyncio.to_thread(gateway.stop) == 0
        facts = world.facts(gateway.journal)
        return Counter(bill.outcome for bill in facts.journal.bills), audit(facts, None)


@pytest.mark.timeout(3600 if TORTURE else 300)
async def test_no_kill_of_the_real_server_loses_or_doubles_a_bill(tmp_path: Path) -> None:
    shares = [len(range(number, KILLS, FOLDERS)) for number in range(FOLDERS)]
    assert sum(shares) == KILLS
    with contextlib.closing(Forks()) as forks:
        results = await asyncio.gather(
            *(tortured(tmp_path / f"{number}", number, share, forks) for number, share in enumerate(shares))
        )
    outcomes: Counter[str] = Counter()
    for found, wrong in results:
        assert wrong == []
        outcomes.update(found)
    assert outcomes["interrupted"] >= KILLS, "the kills did not land in the middle of answers"
    assert outcomes["ok"] >= KILLS
    assert outcomes["client_disconnected"] > 0


def test_a_second_gateway_on_one_folder_does_not_start_and_names_the_first(tmp_path: Path) -> None:
    with Gateway(tmp_path) as first:
        assert first.process is not None
        second = subprocess.run(
            [sys.executable, "-m", "gateway", "serve", "--port", str(free_port())],
            cwd=tmp_path,
            env={**first.clean_environment(), "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert second.returncode == 78
        assert f"held by the gateway with process id {first.process.pid};" in second.stderr
        answered = httpx.post(
            f"{first.url}/v1/chat/completions",
            headers={"authorization": f"Bearer {KEYS['alice']}"},
            json={"model": "sim-small", "messages": [{"role": "user", "content": "Hello"}]},
            timeout=30,
        )
        assert answered.status_code == 200
