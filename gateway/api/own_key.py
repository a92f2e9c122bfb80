"""Own key: what the gateway knows of the key that asks."""

from __future__ import annotations

from fastapi import APIRouter, Request

from gateway.api.access import Access
from gateway.control.records import instant


def own_key_router(access: Access) -> APIRouter:
    """Return the door."""
    router = APIRouter()

    @router.get(
        "/v1/key",
        tags=["account"],
        summary="Whose key this is, and what it may be used for",
        responses={401: {"description": "Missing or unknown key"}},
    )
    async def own_key(request: Request) -> dict[str, object]:
        holder = access.holder(request)
        if holder is None:
            return {"object": "key", "admin": True}
        identity, permission = holder.identity, holder.permission
        return {
            "object": "key",
            "admin": False,
            "id": identity.key_id,
            "name": holder.name,
            "user": {"id": identity.user_id, "name": identity.user_name},
            "team": identity.team,
            "project": identity.project,
            "tags": list(identity.tags),
            "models": None if permission.models is None else list(permission.models),
            "endpoints": None if permission.endpoints is None else list(permission.endpoints),
            "on_disconnect": identity.on_disconnect,
            "unpriced": identity.unpriced,
            "expires_at": instant(holder.until_unix_ns),
            "may_create_keys": holder.may_create_keys,
        }

    return router
