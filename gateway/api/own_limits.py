"""Own limits: what limits the key that asks, and what is left of it."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter, Request

from gateway.admission.limits import LimitGuard
from gateway.api.access import Access
from gateway.core.errors import GatewayFault
from gateway.limits.store import Away


def own_limits_router(access: Access, limits: Callable[[], LimitGuard | None]) -> APIRouter:
    """Return the door.

    Args:
        limits: the limits in force.
    """
    router = APIRouter()

    @router.get(
        "/v1/key/limits",
        tags=["account"],
        summary="What limits this key whatever the model, and what is left",
        responses={
            401: {"description": "Missing or unknown key"},
            503: {"description": "Nobody can say now"},
        },
    )
    async def own_limits(request: Request) -> dict[str, object]:
        identity, guard = access.who(request), limits()
        if identity is None or guard is None:
            return {"object": "list", "data": []}
        try:
            found = await guard.standing(identity)
        except Away as fault:
            raise GatewayFault("limits_unavailable", "limits cannot be counted now", status=503) from fault
        return {
            "object": "list",
            "data": [
                {
                    "object": "limit",
                    "id": match.rule,
                    "kind": match.unit,
                    "limit": match.limit,
                    "used": standing.used,
                    "remaining": max(0, match.limit - standing.used),
                    "reset_s": standing.full_again_ms / 1000,
                }
                for match, standing in found
            ],
        }

    return router
