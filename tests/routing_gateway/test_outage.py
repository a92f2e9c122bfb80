"""Outage: the primary is away under 200 requests/s, nobody notices, and it comes back without a herd.

Real processes: the gateway, the primary that is killed or stopped, and the one that stands in. The primary's
own log shows what it was sent.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from deploy.stack import wait_until
from gateway.routing.cooldown import PROBES
from tests.gateway_process import KEYS, Gateway, bills_in_journal, free_port

TORTURE = os.environ.get("SPANBILL_TORTURE") == "1"
A_SECOND = 200
HEALTHY_S = 2.0
OUTAGE_S = 60.0 if TORTURE else 10.0
RETURN_S_MAX = 30.0
FIRST_BYTE_S = 1.0
ADDED_S_MAX = 10.0
"""More than the wait for a first byte and an answer; a busy machine adds to it."""
SCRIPT = Path(__file__).with_name("logged_provider.py")
RAMP = 2**PROBES - 1
"""Probes that must go well: 1 + 2 + 4 + 8."""

pytestmark = pytest.mark.timeout(180)


class Seen(msgspec.Struct, frozen=True):
    """What one caller got."""

    status: int
    provider: str
    latency_s: float


class Provider:
    """One provider's process; `log` is the file that it writes."""

    def __init__(self, folder: Path, name: str) -> None:
        self.port = free_port()
        self._folder, self._name, self._runs = folder, name, 0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Path:
        """Start it once more; return the log of this run."""
        self._runs += 1
        log = self._folder / f"{self._name}-{self._runs}.log"
        self.process = subprocess.Popen([sys.executable, str(SCRIPT), str(self.port), str(log)])
        assert wait_until(self._listens, 30, 0.02)
        return log

    def _listens(self) -> bool:
        with socket.socket() as peer:
            return peer.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(30)


@contextmanager
def running(folder: Path) -> Iterator[tuple[Gateway, Provider]]:
    primary, secondary = Provider(folder, "primary"), Provider(folder, "secondary")
    config = folder / "spanbill.yaml"
    providers = {
        name: {
            "base_url": f"http://127.0.0.1:{one.port}/v1",
            "api_key": "k",
            "protocols": ["chat_completions"],
        }
        for name, one in {"primary": primary, "secondary": secondary}.items()
    }
    alias = {
        "targets": [{"model": "primary/m"}, {"model": "secondary/m"}],
        "first_byte_timeout_s": FIRST_BYTE_S,
    }
    cooldown = {"pause_s": 1.0, "pause_max_s": 2.0}
    prices = {f"{name}/m": {"input": "1", "output": "2"} for name in providers}
    config.write_text(
        json.dumps(
            {
                "providers": providers,
                "routing": {"aliases": {"chat": alias}, "cooldown": cooldown},
                "prices": {"overrides": prices},
            }
        )
    )
    own = {
        "SPANBILL_CONFIG": str(config),
        "SPANBILL_JOURNAL__DURABILITY": "process",
        "SPANBILL_ROUTING__RETRIES__ATTEMPTS_MAX": "3",
    }
    try:
        primary.start()
        secondary.start()
        with Gateway(folder / "gateway", **own) as gateway:
            yield gateway, primary
            assert gateway.stop() == 0
    finally:
        primary.kill()
        secondary.kill()


class Load:
    """A steady number of requests a second, whatever becomes of them."""

    def __init__(self, gateway: Gateway) -> None:
        self._port = gateway.port
        body = json.dumps({"model": "chat", "messages": [{"role": "user", "content": "hi"}]})
        self._request = (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\n"
            f"authorization: Bearer {KEYS['alice']}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}"
        ).encode()
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.seen: list[Seen] = []

    async def one(self) -> None:
        """Send one request; a plain client, since a good one would need most of a small machine."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        pair = self._free.pop() if self._free else await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = pair
        writer.write(self._request)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:-2])
        await reader.readexactly(int(headers["content-length"]))
        self._free.append(pair)
        provider = headers.get("x-spanbill-provider", "none")
        self.seen.append(Seen(int(lines[0].split()[1]), provider, loop.time() - began))

    def close(self) -> None:
        for _, writer in self._free:
            writer.close()

    async def last(self, seconds: float, until: int = 0) -> list[Seen]:
        """Send for so long; with `until`, only until so many answers in a row are the primary's."""
        loop = asyncio.get_running_loop()
        start, first = loop.time(), len(self.seen)
        async with asyncio.TaskGroup() as sent:
            for turn in range(round(seconds * A_SECOND)):
                await asyncio.sleep(start + turn / A_SECOND - loop.time())  # the pace of the load
                sent.create_task(self.one())
                latest = self.seen[-until:] if until else []
                if (
                    until
                    and len(self.seen) - first >= until
                    and {one.provider for one in latest} == {"primary"}
                ):
                    break
        return self.seen[first:]


def p99_s(seen: list[Seen]) -> float:
    return sorted(one.latency_s for one in seen)[len(seen) * 99 // 100]


async def story(gateway: Gateway, primary: Provider, how: str) -> tuple[Load, Path | None, list[list[Seen]]]:
    """Send through health, outage and return; return the load, the log of the second run, and each phase."""
    load, log = Load(gateway), None
    assert primary.process is not None
    healthy = await load.last(HEALTHY_S)
    if how == "killed":
        await asyncio.to_thread(primary.kill)
    else:
        primary.process.send_signal(signal.SIGSTOP)
    outage = await load.last(OUTAGE_S)
    if how == "killed":
        log = await asyncio.to_thread(primary.start)
    else:
        primary.process.send_signal(signal.SIGCONT)
    after = await load.last(RETURN_S_MAX, until=A_SECOND)
    load.close()
    return load, log, [healthy, outage, after]


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_an_outage_of_the_primary_is_seen_by_nobody_and_it_comes_back_by_few(
    tmp_path: Path, how: str
) -> None:
    with running(tmp_path) as (gateway, primary):
        load, log, (healthy, outage, after) = asyncio.run(story(gateway, primary, how))
    assert {one.status for one in load.seen} == {200}
    assert {one.provider for one in healthy} == {"primary"}
    assert {one.provider for one in outage[-A_SECOND:]} == {"secondary"}, "the fault did not happen"
    assert {one.provider for one in after[-A_SECOND:]} == {"primary"}, "it did not come back"
    added_s = p99_s(outage) - p99_s(healthy)
    sys.stdout.write(
        f"\n{how} for {OUTAGE_S:.0f} s under {A_SECOND}/s: {len(load.seen)} requests, no error; p99 "
        f"{p99_s(healthy) * 1e3:.0f} ms before, {added_s * 1e3:+.0f} ms in the outage; worst "
        f"{max(one.latency_s for one in outage):.2f} s\n"
    )
    assert added_s < ADDED_S_MAX
    bills = bills_in_journal(gateway.journal)
    assert len(bills) == len(load.seen)
    failed_over = [bill for bill in bills.values() if bill["billing.attempts"] > 1]
    assert failed_over, "nothing failed over"
    # Of each probe that failed one request knows, and of those in flight at the beginning.
    assert len(failed_over) < A_SECOND * (FIRST_BYTE_S + 1) + OUTAGE_S
    if log is not None:
        asked = [json.loads(line) for line in log.read_text().splitlines()]
        assert len(asked) > RAMP
        for one in asked[:RAMP]:
            assert one["inside"] <= 1 << ((one["answered"] + 1).bit_length() - 1), asked[: RAMP + 1]
