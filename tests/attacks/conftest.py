"""One hostile provider and one gateway in front of it for all tests of a module."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from tests.attacks.chaos import Chaos
from tests.attacks.inprocess import Attacked, attacked


@pytest.fixture(scope="module")
def chaos() -> Iterator[Chaos]:
    with Chaos() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def patient(tmp_path_factory: pytest.TempPathFactory, chaos: Chaos) -> AsyncIterator[Attacked]:
    async with attacked(tmp_path_factory.mktemp("patient"), chaos) as running:
        yield running
