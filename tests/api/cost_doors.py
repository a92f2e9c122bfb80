"""A gateway's doors over a ledger with many kinds of bills, in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
from pydantic import SecretStr

from gateway.app import create_app
from gateway.ledger.asking import Asker
from gateway.ledger.store import Store
from gateway.settings import AdminSettings, JournalSettings, KeySettings, Settings
from tests.ledger.books import USERS, bills_of, caught_up, write_bills

ADMIN = "adm-5f1d9a7c3b2e4f60aa91"
NOBODY = "sk-of-nobody-1"
KEYS = {user: f"sk-of-{user}-0" for user in USERS}


def settings_for(journal: Path, url: str = "", **more: Any) -> Settings:
    return Settings(
        api_keys=SecretStr(NOBODY),
        keys=tuple(
            KeySettings(id=f"key-{user}-0", key=SecretStr(key), user=user) for user, key in KEYS.items()
        ),
        admin=AdminSettings(key=SecretStr(ADMIN)),
        journal=JournalSettings(directory=journal, durability="process"),
        ledger={"url": url},
        **more,
    )


def filled(journal: Path, store: Store, numbers: Iterable[int], *, of: int = 20) -> None:
    """Write bills to a journal, `of` of them in three days, and bring a ledger up to it."""
    asyncio.run(write_bills(journal, numbers, bytes_max=300_000, of=of))
    caught_up(journal, store)
    store.close()


class Doors:
    """Asks the doors as somebody."""

    def __init__(self, journal: Path, url: str = "") -> None:
        askers: list[Asker] = []

        def kept(make: Callable[[], Store]) -> Asker:
            askers.append(Asker(make))
            return askers[-1]

        with patch("gateway.beside.Asker", kept):
            self.app = create_app(settings_for(journal, url), environ={})
        (self.asker,) = askers
        self.journal = journal
        self.bills = bills_of(journal)

    async def get(self, path: str, key: str = ADMIN, **params: Any) -> httpx.Response:
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            return await client.get(path, params=params, headers={"authorization": f"Bearer {key}"})

    async def json(self, path: str, key: str = ADMIN, **params: Any) -> dict[str, Any]:
        answer = await self.get(path, key, **params)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found
