"""Budgets: the doors at which the operator makes them and everybody sees what is left of the own ones.

Those of the configuration are shown and cannot be changed here. Changes hold within a second, in all
gateways.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, TypeVar, cast

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from gateway.api.access import Access
from gateway.api.documents import body_of
from gateway.api.inference import read_body
from gateway.budgets.definitions import Budget
from gateway.budgets.desk import Desk, invalid
from gateway.budgets.shown import Changes, Fields
from gateway.core.errors import CallerError
from gateway.release.relay import Receive

T = TypeVar("T")

BODY_BYTES_MAX: Final = 16 * 1024
PAGE_MAX: Final = 100
SAID_CHARS_MAX: Final = 200
WHO: Final = "admin"


def budgets_router(access: Access, desk: Desk) -> APIRouter:
    """Return the doors."""
    router = APIRouter(prefix="/v1/budgets", tags=["budgets"])
    _add_many(router, access, desk)
    _add_one(router, access, desk)
    return router


def _add_many(router: APIRouter, access: Access, desk: Desk) -> None:
    @router.post(
        "",
        status_code=201,
        summary="Make a budget",
        responses=_refusals(409, 413, 415),
        openapi_extra=body_of(Fields),
    )
    async def create(request: Request) -> JSONResponse:
        access.admin_only(request)
        fields = await _body(request, Fields)
        return JSONResponse(await asyncio.to_thread(desk.create, fields, WHO), 201)

    @router.get(
        "",
        summary="List budgets by id: all for the admin key, those that it is held against for another",
        responses=_refusals(),
        openapi_extra={
            "parameters": [
                {"name": "after", "in": "query", "schema": {"type": "string", "maxLength": 64}},
                {
                    "name": "limit",
                    "in": "query",
                    "schema": {"type": "integer", "minimum": 1, "maximum": PAGE_MAX, "default": PAGE_MAX},
                },
            ]
        },
    )
    async def listed(request: Request) -> JSONResponse:
        identity = access.who(request)
        count = _count(request.query_params.get("limit"))
        after = request.query_params.get("after")

        def wanted(budget: Budget) -> bool:
            return identity is None or budget.payer_of(identity) is not None

        data, more = await asyncio.to_thread(desk.listed, wanted, after, count)
        last = data[-1]["id"] if data else None
        return JSONResponse({"object": "list", "data": data, "has_more": more, "last_id": last})


def _add_one(router: APIRouter, access: Access, desk: Desk) -> None:
    @router.get("/{budget_id}", summary="One budget, and what is left of it", responses=_refusals(404))
    async def get(budget_id: str, request: Request) -> JSONResponse:
        return JSONResponse(await asyncio.to_thread(desk.get, budget_id, access.who(request)))

    @router.patch(
        "/{budget_id}",
        summary="Change a budget; what is left out stays",
        responses=_refusals(404, 409, 413, 415),
        openapi_extra=body_of(Changes),
    )
    async def change(budget_id: str, request: Request) -> JSONResponse:
        access.admin_only(request)
        changes = await _body(request, Changes)
        return JSONResponse(await asyncio.to_thread(desk.change, budget_id, changes, WHO))

    @router.delete("/{budget_id}", summary="Delete a budget", responses=_refusals(404, 409))
    async def remove(budget_id: str, request: Request) -> JSONResponse:
        access.admin_only(request)
        await asyncio.to_thread(desk.remove, budget_id, WHO)
        return JSONResponse({"object": "budget", "id": budget_id, "deleted": True})


async def _body(request: Request, kind: type[T]) -> T:
    data = await read_body(cast(Receive, request.receive), request.scope["headers"], BODY_BYTES_MAX)
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as fault:
        raise invalid(str(fault)[:SAID_CHARS_MAX]) from fault


def _count(text: str | None) -> int:
    if text is None:
        return PAGE_MAX
    if not text.isascii() or not text.isdigit() or len(text) > 4 or not 1 <= int(text) <= PAGE_MAX:
        raise CallerError(
            "invalid_request", f"limit is a number from 1 to {PAGE_MAX}", status=400, param="limit"
        )
    return int(text)


def _refusals(*more: int) -> dict[int | str, dict[str, Any]]:
    what = {
        400: "It cannot be read, or used",
        401: "Missing or unknown key",
        403: "The admin key is needed",
        404: "There is none of that id",
        409: "It is there already, or stands in the configuration",
        413: "The body is too large",
        415: "The body is encoded",
        503: "The control database does not answer",
    }
    return {code: {"description": what[code]} for code in (400, 401, 403, 503, *more)}
