"""Keys: the doors through which virtual keys are made, changed and ended, by whoever may do that.

A body is read here and not by FastAPI, so that it is bounded, an unknown field is refused, and what is wrong
with it is said in the envelope of all other doors. A secret is in the one answer that makes it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from time import time_ns
from typing import Any, Final, TypeVar, cast, get_args

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from gateway.api.access import Access
from gateway.api.documents import body_of
from gateway.api.inference import read_body
from gateway.control.following import SPREAD_S
from gateway.control.keys import PAGE_MAX, Keys, Made, Wanted
from gateway.control.makers import Maker, may_not
from gateway.control.records import Record, State, shown
from gateway.control.terms import Fields
from gateway.core.errors import CallerError
from gateway.release.relay import Receive

T = TypeVar("T")

BODY_BYTES_MAX: Final = 64 * 1024
SAID_CHARS_MAX: Final = 200
"""Of what the reader of a body says is wrong with it; the name of an unknown field may be long."""
OPERATOR: Final = Maker(who="admin")
STATES: Final = get_args(State)
_PLACE: Final = re.compile(r"at `\$\.(\w+)|unknown field `(\w+)")


class Rotation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to rotate a key.

    Args:
        grace_s: how long the old secret is good, too.
    """

    grace_s: int = 0


class Nothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A body that has nothing to say."""


def keys_router(access: Access, keys: Keys) -> APIRouter:
    """Return the doors."""
    router = APIRouter(prefix="/v1/keys", tags=["keys"])
    _add_many(router, access, keys)
    _add_one(router, access, keys)
    return router


def _add_many(router: APIRouter, access: Access, keys: Keys) -> None:
    @router.post(
        "",
        status_code=201,
        summary="Make a key; the answer is the only one with its secret",
        responses={
            **_refusals(409, 413, 415),
            200: {"description": "It was made before, with this Idempotency-Key; its secret was told then"},
        },
        openapi_extra={
            **body_of(Fields),
            "parameters": [
                {"name": "Idempotency-Key", "in": "header", "schema": {"type": "string", "maxLength": 255}}
            ],
        },
    )
    async def create(request: Request) -> JSONResponse:
        maker = _maker(access, request)
        fields = await _body(request, Fields)
        made = await _done(keys.create, fields, maker, request.headers.get("idempotency-key"))
        return _made(made, 200 if made.secret is None else 201)

    @router.get(
        "",
        summary="List keys, newest first",
        responses=_refusals(),
        openapi_extra={"parameters": [_parameter(name) for name in Wanted.__struct_fields__]},
    )
    async def listed(request: Request) -> JSONResponse:
        maker = _maker(access, request)
        page = await asyncio.to_thread(keys.listed, _wanted(request), maker)
        data = [shown(record, time_ns()) for record in page.records]
        last = page.records[-1].id if page.records else None
        return _answer({"object": "list", "data": data, "has_more": page.more, "last_id": last})


def _add_one(router: APIRouter, access: Access, keys: Keys) -> None:
    @router.get("/{key_id}", summary="One key", responses=_refusals(404), openapi_extra=_of_one())
    async def get(request: Request) -> JSONResponse:
        return _one(await asyncio.to_thread(keys.get, _id(request), _maker(access, request)))

    @router.patch(
        "/{key_id}",
        summary="Change what a key is for; what is left out stays",
        responses=_refusals(404, 409, 413, 415),
        openapi_extra=_of_one(body_of(Fields)),
    )
    async def change(request: Request) -> JSONResponse:
        maker = _maker(access, request)
        return _one(await _done(keys.update, _id(request), await _body(request, Fields), maker))

    @router.post(
        "/{key_id}/rotate",
        summary="Give a key another secret; the answer is the only one with it",
        responses=_refusals(404, 409, 413, 415),
        openapi_extra=_of_one(body_of(Rotation, required=False)),
    )
    async def rotate(request: Request) -> JSONResponse:
        maker = _maker(access, request)
        grace_s = (await _body(request, Rotation, empty=True)).grace_s
        return _made(await _done(keys.rotate, _id(request), maker, grace_s), 200)

    @router.post(
        "/{key_id}/disable",
        summary="Let a key open nothing, until it is enabled",
        responses=_refusals(404, 409),
        openapi_extra=_of_one(),
    )
    async def disable(request: Request) -> JSONResponse:
        maker = _maker(access, request)
        await _body(request, Nothing, empty=True)
        return _one(await _done(keys.disable, _id(request), maker))

    @router.post(
        "/{key_id}/enable",
        summary="Let a disabled key open again",
        responses=_refusals(404, 409),
        openapi_extra=_of_one(),
    )
    async def enable(request: Request) -> JSONResponse:
        maker = _maker(access, request)
        await _body(request, Nothing, empty=True)
        return _one(await _done(keys.enable, _id(request), maker))

    @router.delete(
        "/{key_id}",
        summary="Revoke a key, for good; its record stays",
        responses=_refusals(404),
        openapi_extra=_of_one(),
    )
    async def revoke(request: Request) -> JSONResponse:
        return _one(await _done(keys.revoke, _id(request), _maker(access, request)))


def _id(request: Request) -> str:
    return str(request.path_params["key_id"])


def _maker(access: Access, request: Request) -> Maker:
    holder = access.holder(request)
    if holder is None:
        return OPERATOR
    if not (holder.stored and holder.may_create_keys):
        raise may_not()
    return Maker(who=holder.identity.key_id, key_id=holder.identity.key_id)


async def _done(change: Callable[..., T], *arguments: Any) -> T:
    """Make a change; return what it came to once everybody has heard of it."""
    outcome = await asyncio.to_thread(change, *arguments)
    await asyncio.sleep(SPREAD_S)
    return outcome


async def _body(request: Request, kind: type[T], *, empty: bool = False) -> T:
    """Read a body.

    Args:
        empty: none at all is as good as `{}`.

    Raises:
        CallerError: 400, naming the field; 413, 415.
    """
    # Starlette's word for a message is wider than the server's.
    receive = cast(Receive, request.receive)
    body = await read_body(receive, request.scope["headers"], BODY_BYTES_MAX)
    try:
        return msgspec.json.decode(body or b"{}" if empty else body, type=kind)
    except msgspec.ValidationError as fault:
        said = str(fault)
        place = _PLACE.search(said)
        param = None if place is None else (place[1] or place[2])[:SAID_CHARS_MAX]
        raise CallerError("invalid_request", said[:SAID_CHARS_MAX], status=400, param=param) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
        raise CallerError("invalid_json", str(fault)[:SAID_CHARS_MAX], status=400) from None


def _wanted(request: Request) -> Wanted:
    """Return what a list is asked for.

    Raises:
        CallerError: 400, naming the parameter.
    """
    said: dict[str, Any] = {}
    for name, value in request.query_params.multi_items():
        if name not in Wanted.__struct_fields__ or name in said:
            raise _wrong(
                name[:SAID_CHARS_MAX], f"is none of {', '.join(Wanted.__struct_fields__)}, or comes twice"
            )
        said[name] = value
    if "limit" in said:
        if not re.fullmatch(r"[0-9]{1,9}", said["limit"]):
            raise _wrong("limit", f"must be 1 to {PAGE_MAX}")
        said["limit"] = int(said["limit"])
    if "state" in said and said["state"] not in STATES:
        raise _wrong("state", f"must be one of {', '.join(STATES)}")
    return Wanted(**said)


def _wrong(name: str, what: str) -> CallerError:
    return CallerError("invalid_request", f"`{name}` {what}", status=400, param=name)


def _one(record: Record) -> JSONResponse:
    return _answer(shown(record, time_ns()))


def _made(made: Made, status: int) -> JSONResponse:
    secret = None if made.secret is None else made.secret.reveal()
    return _answer({**shown(made.record, time_ns()), "key": secret}, status)


def _answer(document: dict[str, Any], status: int = 200) -> JSONResponse:
    return JSONResponse(document, status, {"cache-control": "no-store"})


# the OpenAPI document


def _of_one(more: dict[str, Any] | None = None) -> dict[str, Any]:
    """Describe the id in the path; FastAPI would add an answer 422 to it, which there is not."""
    named = {"name": "key_id", "in": "path", "required": True, "schema": {"type": "string"}}
    return {"parameters": [named], **(more or {})}


def _parameter(name: str) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    if name == "limit":
        schema = {"type": "integer", "minimum": 1, "maximum": PAGE_MAX, "default": 100}
    elif name == "state":
        schema = {"type": "string", "enum": list(STATES)}
    return {"name": name, "in": "query", "schema": schema}


def _refusals(*more: int) -> dict[int | str, dict[str, Any]]:
    told = {
        400: "The request is wrong; `param` names the field",
        401: "Missing or unknown key",
        403: "The key may not do this",
        404: "No such key",
        409: "It cannot be done to this key now",
        413: "The body is too large",
        415: "The body is encoded",
        503: "The keys' database is away",
    }
    stated: Sequence[int] = (400, 401, 403, 503, *more)
    return {status: {"description": told[status]} for status in sorted(stated)}
