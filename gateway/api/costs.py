"""Costs: totals by whatever people ask for, records page by page or as a whole, and a client's own receipt.

The operator sees all; the owner of a key sees what that key's user pays for (`cost_questions.own`). Every
answer says up to when it holds. Nothing here is computed from anything but the ledger.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from sqlalchemy import Connection

from gateway.admission.virtual_keys import ANONYMOUS
from gateway.api import cost_documents as documents
from gateway.api.access import Access
from gateway.api.cost_answers import CostsAnswer, Page, ReceiptAnswer, answer_of
from gateway.api.cost_questions import Records, costs_question, own, records_question, wrong
from gateway.core.errors import CallerError, GatewayFault
from gateway.core.exchange import Identity
from gateway.ledger.asking import AGAIN_S, Asker
from gateway.ledger.lag import AsOf, as_of
from gateway.ledger.queries import RECORDS_MAX, After, records
from gateway.ledger.records import Record, csv_head, csv_rows, jsonl, receipt_of, record_of
from gateway.ledger.totals import TooManyGroups, totals_of
from otel.journal.files import Files

STREAMS_MAX: Final = 8
"""Whole exports at a time, of each worker; each holds a page of records and no connection."""
PATIENCE: Final = 10
"""How often an export that has begun asks again for its next page where the ledger is busy or away."""
FRESH_S: Final = 60
"""How young a request is whose bill may still be on its way."""

_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_TYPES: Final = {"csv": "text/csv; charset=utf-8", "jsonl": "application/jsonl"}

Fetched = tuple[list[Record], After | None, AsOf]
encode: Final = msgspec.json.Encoder().encode


class Ledger:
    """What these doors ask: a ledger, and how far it is behind this gateway's journal."""

    def __init__(self, asker: Asker, journal: Path, files: Files) -> None:
        self.ask = asker.ask
        self._journal = journal
        self._files = files
        self._streams = 0

    def as_of(self, connection: Connection) -> AsOf:
        """Return how far the ledger is."""
        return as_of(connection, self._journal, self._files)

    async def streamed(
        self,
        first: bytes,
        following: Callable[[], Awaitable[bytes | None]],
    ) -> AsyncIterator[bytes]:
        """Yield an export; once begun it asks patiently, and ends early rather than wrongly.

        Args:
            following: returns the next part, None after the last one.
        """
        self._streams += 1
        try:
            yield first
            while True:  # ends with the export
                part = await _patiently(following)
                if part is None:
                    return
                yield part
        finally:
            self._streams -= 1

    def look_for_room(self) -> None:
        """See whether one more export can be made.

        Raises:
            GatewayFault: 503, it cannot.
        """
        if self._streams >= STREAMS_MAX:
            raise GatewayFault(
                "ledger_busy",
                f"{STREAMS_MAX} exports are being made; ask again",
                status=503,
                retry_after_s=AGAIN_S,
            )


async def _patiently(following: Callable[[], Awaitable[bytes | None]]) -> bytes | None:
    for _ in range(PATIENCE):
        try:
            return await following()
        except GatewayFault:
            await asyncio.sleep(AGAIN_S)
    return await following()


def costs_router(access: Access, ledger: Ledger) -> APIRouter:
    """Return the doors of totals, records and receipts."""
    router = APIRouter(tags=["costs"])

    @router.get("/v1/costs", response_class=Response, **documents.COSTS)
    async def costs(request: Request) -> Response:
        identity = access.who(request)
        asked = costs_question(request.query_params.multi_items())
        filters = own(asked.filters, identity, named=named(identity))
        dimensions = asked.dimensions

        def work(connection: Connection) -> CostsAnswer:
            held = ledger.as_of(connection)
            totals = totals_of(connection, dimensions, filters, asked.period, asked.zone)
            return answer_of(asked, filters, totals, held)

        try:
            return json_answer(await ledger.ask(work))
        except TooManyGroups as fault:
            raise wrong(
                "group_by", f"asks for too much: {fault}; narrow it by a filter or a range"
            ) from fault

    @router.get("/v1/costs/records", response_class=Response, **documents.RECORDS)
    async def list_records(request: Request) -> Response:
        identity = access.who(request)
        asked = records_question(request.query_params.multi_items())
        narrowed = own(asked.filters, identity, named=named(identity))
        asked = msgspec.structs.replace(asked, filters=narrowed)
        if asked.format == "json":
            found, after, held = await ledger.ask(lambda c: _page(c, ledger, asked, asked.after, asked.count))
            token = None if after is None else after.token()
            return json_answer(
                Page(data=tuple(found), has_more=token is not None, next_cursor=token, as_of=held)
            )
        return await _export(ledger, asked)

    @router.get("/v1/costs/records/{request_id}", response_class=Response, **documents.RECEIPT)
    async def receipt(request_id: str, request: Request) -> Response:
        identity = access.who(request)
        if request.query_params:
            raise wrong(next(iter(request.query_params))[:64], "is no parameter of this door")
        if _UUID.fullmatch(request_id):
            found, held = await ledger.ask(lambda c: (receipt_of(c, request_id), ledger.as_of(c)))
            if found is not None and _is_own(found.record, identity):
                return json_answer(ReceiptAnswer(record=found.record, revisions=found.revisions, as_of=held))
        raise CallerError(
            "no_such_record",
            "no bill of yours has this id; take it from `x-request-id` of the answer. A bill can be read "
            "about a second after its request has ended",
            status=404,
            retry_after_s=1 if _is_fresh(request_id, time.time()) else None,
        )

    return router


def named(identity: Identity | None) -> bool:
    """Say whether the user of a key is anybody's name."""
    return identity is not None and identity.user_id != ANONYMOUS


def json_answer(answer: object) -> Response:
    """Return an answer as JSON."""
    return Response(encode(answer), media_type="application/json", headers={"cache-control": "no-store"})


def _is_own(record: Record, identity: Identity | None) -> bool:
    if identity is None or record.api_key == identity.key_id:
        return True
    return named(identity) and record.user == identity.user_id


def _is_fresh(request_id: str, now: float) -> bool:
    """Say whether an id is one of ours (UUIDv7: milliseconds since 1970 first) and its request quite new."""
    if not _UUID.fullmatch(request_id):
        return False
    return abs(now - int(request_id.replace("-", "")[:12], 16) / 1e3) < FRESH_S


def _page(connection: Connection, ledger: Ledger, asked: Records, after: After | None, count: int) -> Fetched:
    """Return some records, and the last of them where there are more."""
    held = ledger.as_of(connection)
    statement = records(
        asked.filters, asked.period, count=count, after=after, newest_first=asked.newest_first
    )
    rows = [dict(row) for row in connection.execute(statement).mappings()]
    more = None
    if len(rows) > count:
        more = After(rows[count - 1]["ended_unix_ns"], rows[count - 1]["record_id"])
    return [record_of(row) for row in rows[:count]], more, held


async def _export(ledger: Ledger, asked: Records) -> Response:
    """Return all records from the cursor on; what cannot be read any more cuts the answer off."""
    ledger.look_for_room()
    lines = csv_rows if asked.format == "csv" else jsonl

    async def page(after: After | None) -> Fetched:
        return await ledger.ask(lambda c: _page(c, ledger, asked, after, RECORDS_MAX))

    found, after, held = await page(asked.after)

    async def following() -> bytes | None:
        nonlocal after
        if after is None:
            return None
        more, after, _ = await page(after)
        return lines(more)

    return StreamingResponse(
        ledger.streamed((csv_head() if asked.format == "csv" else b"") + lines(found), following),
        media_type=_TYPES[asked.format],
        headers=export_headers(held, f"costs.{asked.format}"),
    )


def export_headers(held: AsOf, name: str) -> dict[str, Any]:
    """Return the head of an export: up to when it holds, and what to call the file."""
    return {
        "x-ledger-as-of": held.time,
        "x-ledger-complete": str(held.complete).lower(),
        "content-disposition": f'attachment; filename="{name}"',
        "cache-control": "no-store",
    }
