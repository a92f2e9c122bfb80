"""Self-check: journal, ledger, counters and Collector held to one another, for the operator."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Literal

import msgspec
from fastapi import APIRouter, Request

from gateway.api.access import Access
from gateway.core.money import pico_to_usd

State = Literal["agrees", "behind", "differs", "unknown"]
"""behind: it has less, and says what it waits for; unknown: it cannot be asked now, or does not exist."""


class Amount(msgspec.Struct, frozen=True, kw_only=True):
    """Bills, and their cost in pico-USD as they were settled."""

    bills: int
    cost_pico_usd: int


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """What one of them says.

    Args:
        has: None where that is not known.
        facts: what it waits for, and what explains a difference.
    """

    state: State
    has: Amount | None
    facts: dict[str, Any] = {}


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What the journal holds, and what the others say of it.

    Args:
        pending_bytes: of the journal, not counted yet: the next call goes on with them.
    """

    journal: Amount
    revisions: Amount
    pending_bytes: int
    parts: dict[str, Part]

    @property
    def state(self) -> State:
        """The worst of all."""
        states = {part.state for part in self.parts.values()}
        if "differs" in states:
            return "differs"
        return "behind" if "behind" in states or self.pending_bytes else "agrees"


def selfcheck_router(access: Access, check: Callable[[], Awaitable[Report]]) -> APIRouter:
    """Return the door."""
    router = APIRouter()

    @router.get(
        "/v1/selfcheck",
        tags=["operations"],
        summary="Whether journal, ledger, counters and Collector say the same",
        responses={
            401: {"description": "Missing or unknown key"},
            403: {"description": "Not the admin key"},
        },
    )
    async def selfcheck(request: Request) -> dict[str, object]:
        access.admin_only(request)
        return shown(await check())

    return router


def shown(report: Report) -> dict[str, object]:
    """Return a report as JSON shows it; money as exact decimal strings."""
    return {
        "object": "selfcheck",
        "state": report.state,
        "journal": {
            **_shown(report.journal),
            "revisions": report.revisions.bills,
            "revisions_usd": pico_to_usd(report.revisions.cost_pico_usd),
            "uncounted_bytes": report.pending_bytes,
        },
        **{
            name: {"state": part.state, **_shown(part.has), **part.facts}
            for name, part in report.parts.items()
        },
    }


def _shown(has: Amount | None) -> dict[str, object]:
    if has is None:
        return {"bills": None, "cost_usd": None}
    return {"bills": has.bills, "cost_usd": pico_to_usd(has.cost_pico_usd)}
