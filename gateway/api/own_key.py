"""Own key: what the gateway knows of the key that asks."""

from __future__ import annotations

from fastapi import APIRouter, Request

from gateway.api.access import Access


def own_key_router(access: Access) -> APIRouter:
    """Return the door."""
    router = APIRouter()

    @router.get(
        "/v1/key",
        tags=["account"],
        summary="Whose key this is",
        responses={401: {"description": "Missing or unknown key"}},
    )
    async def own_key(request: Request) -> dict[str, object]:
        identity = access.who(request)
        if identity is None:
            return {"object": "key", "admin": True}
        return {
            "object": "key",
            "admin": False,
            "id": identity.key_id,
            "user": {"id": identity.user_id, "name": identity.user_name},
            "team": identity.team,
            "project": identity.project,
            "tags": list(identity.tags),
            "on_disconnect": identity.on_disconnect,
        }

    return router
