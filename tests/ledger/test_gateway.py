"""The whole gateway with its ledger: served in any case, and caught up afterwards."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import urllib.request
from pathlib import Path

import httpx
import pytest

from deploy.stack import wait_until
from gateway.ledger.opening import store_at
from gateway.ledger.store import LedgerUnavailable, Store
from tests.gateway_process import KEYS, Gateway
from tests.ledger.books import bills_of, rows_by_status, status, summed
from tests.ledger.servers import Postgres

SOON_S = 60.0


def served(gateway: Gateway, count: int) -> None:
    for _ in range(count):
        answer = httpx.post(
            f"{gateway.url}/v1/chat/completions",
            headers={"authorization": f"Bearer {KEYS['alice']}"},
            json={"model": "sim-small", "messages": [{"role": "user", "content": "Hello"}]},
            timeout=30,
        )
        assert answer.status_code == 200, answer.text


def metric(gateway: Gateway, name: str) -> float:
    with urllib.request.urlopen(f"{gateway.url}/metrics", timeout=30) as page:
        lines = page.read().decode().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))


def holds(store: Store, *journals: Path) -> bool:
    """Say whether a ledger has the bills of some journals, and no others."""
    try:
        return rows_by_status(store) == summed((b for j in journals for b in bills_of(j)), status)
    except LedgerUnavailable:
        return False


def test_two_gateways_share_one_postgresql(tmp_path: Path, postgres: Postgres) -> None:
    url = postgres.database()
    with (
        Gateway(tmp_path / "one", SPANBILL_LEDGER__URL=url) as one,
        Gateway(tmp_path / "two", SPANBILL_LEDGER__URL=url, SPANBILL_SERVER__WORKERS="2") as two,
    ):
        served(one, 4)
        served(two, 6)
        store = store_at(url, one.journal)
        store.open()
        assert wait_until(lambda: holds(store, one.journal, two.journal), SOON_S, 0.1)
        assert sum(count for count, _ in rows_by_status(store).values()) == 10
        store.close()
        assert (one.stop(), two.stop()) == (0, 0)


def test_a_locked_ledger_fails_and_delays_no_request(tmp_path: Path) -> None:
    with Gateway(tmp_path / "g") as gateway:
        path = gateway.journal.parent / "ledger.db"
        assert wait_until(path.exists, SOON_S, 0.05)
        store = store_at("", gateway.journal)
        store.open()
        served(gateway, 1)
        assert wait_until(lambda: holds(store, gateway.journal), SOON_S, 0.05)
        other = sqlite3.connect(path, isolation_level=None, timeout=30)
        other.execute("BEGIN IMMEDIATE")
        served(gateway, 5)
        assert wait_until(lambda: metric(gateway, "llm_gateway_ledger_following") == 0, SOON_S, 0.1)
        assert metric(gateway, "llm_gateway_ledger_lag_seconds") > 0
        served(gateway, 1)
        other.execute("ROLLBACK")
        other.close()
        assert wait_until(lambda: holds(store, gateway.journal), SOON_S, 0.1)
        assert wait_until(lambda: metric(gateway, "llm_gateway_ledger_following") == 1, SOON_S, 0.1)
        assert metric(gateway, "llm_gateway_ledger_bills_total") == 7
        store.close()
        assert gateway.stop() == 0


def test_a_killed_gateway_and_a_deleted_ledger_leave_the_same_rows(tmp_path: Path) -> None:
    with Gateway(tmp_path / "g") as gateway:
        served(gateway, 5)
        gateway.kill()
        for path in gateway.journal.parent.glob("ledger.db*"):
            path.unlink()
        gateway.start()
        served(gateway, 2)
        assert gateway.stop() == 0  # with the last bills in the ledger
        store = store_at("", gateway.journal)
        store.open()
        assert holds(store, gateway.journal)
        assert sum(count for count, _ in rows_by_status(store).values()) == 7
        store.close()


@pytest.mark.parametrize(
    ("url", "why"), [(None, "revision 9999"), ("mysql://u:secret@h/d", "ledger.url is not")]
)
def test_a_ledger_that_cannot_be_used_refuses_the_start(tmp_path: Path, url: str | None, why: str) -> None:
    gateway = Gateway(tmp_path, **({} if url is None else {"SPANBILL_LEDGER__URL": url}))
    if url is None:
        store = store_at("", gateway.journal)
        store.open()
        store.run(lambda c: c.exec_driver_sql("UPDATE ledger_schema SET version_num = '9999'"), writes=True)
        store.close()
    done = subprocess.run(
        [sys.executable, "-m", "gateway", *gateway.arguments],
        cwd=tmp_path,
        env=gateway.whole_environment(),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 78, done.stdout + done.stderr
    assert why in done.stderr
    assert "secret" not in done.stdout + done.stderr
