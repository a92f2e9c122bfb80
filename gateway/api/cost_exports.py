"""Cost exports: the feed for billing systems, and FOCUS files; both for the operator alone."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import io
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal, cast, get_args
from zoneinfo import ZoneInfo

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from sqlalchemy import Connection

from gateway.api.access import Access
from gateway.api.cost_documents import RANGE
from gateway.api.cost_questions import PAGE, Items, limit_of, one_of, period_of, single, values_of, wrong
from gateway.api.costs import Ledger, export_headers, json_answer
from gateway.api.documents import answers, query, schema_of
from gateway.ledger.events import Format, Subject, event_of
from gateway.ledger.feed import CURSOR_CHARS_MAX, Cursor, cursor_of, read, token_of
from gateway.ledger.focus import (
    ACCOUNT,
    Charge,
    RowsGone,
    TooManyRows,
    charges_of,
    csv_head,
    csv_rows,
    days_in,
)
from gateway.ledger.lag import AsOf
from gateway.ledger.periods import Period
from gateway.ledger.queries import RECORDS_MAX

FileFormat = Literal["csv", "parquet"]

NO_PARQUET: Final = "needs pyarrow, which is not installed here: pip install 'spanbill[parquet]'"
ACCOUNT_CHARS_MAX: Final = 128
_TYPES: Final = {"csv": "text/csv; charset=utf-8", "parquet": "application/vnd.apache.parquet"}


class EventsQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """What `GET /v1/costs/events` is asked."""

    shape: Format
    subject: Subject
    cursor: Cursor
    count: int


class EventsAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """`GET /v1/costs/events`: `next_cursor` goes on behind these events, now or whenever there are more."""

    format: Format
    data: tuple[dict[str, Any], ...]
    has_more: bool
    next_cursor: str
    as_of: AsOf
    object: Literal["list"] = "list"


class FocusQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """What `GET /v1/costs/focus` is asked."""

    format: FileFormat
    period: Period
    account: str


def events_question(items: Items) -> EventsQuestion:
    """Return the question for events.

    Raises:
        CallerError: 400, naming the parameter.
    """
    values = values_of(items, ("format", "subject", "cursor", "limit"), {"cursor": CURSOR_CHARS_MAX})
    token = single(values, "cursor")
    try:
        cursor = () if not token else cursor_of(token)
    except ValueError as fault:
        raise wrong("cursor", str(fault)) from fault
    return EventsQuestion(
        shape=cast("Format", one_of(values, "format", get_args(Format), "openmeter")),
        subject=cast("Subject", one_of(values, "subject", get_args(Subject), "user")),
        cursor=cursor,
        count=limit_of(values),
    )


def focus_question(items: Items) -> FocusQuestion:
    """Return the question for a FOCUS file; its days are those of UTC.

    Raises:
        CallerError: 400, naming the parameter.
    """
    values = values_of(items, ("start", "end", "format", "billing_account"))
    account = single(values, "billing_account")
    if account is not None and not 1 <= len(account) <= ACCOUNT_CHARS_MAX:
        raise wrong("billing_account", f"has 1 to {ACCOUNT_CHARS_MAX} characters")
    kind = cast("FileFormat", one_of(values, "format", get_args(FileFormat), "csv"))
    if kind == "parquet" and not has_parquet():
        raise wrong("format", NO_PARQUET)
    return FocusQuestion(format=kind, period=period_of(values, ZoneInfo("UTC")), account=account or ACCOUNT)


def has_parquet() -> bool:
    """Say whether Parquet files can be written."""
    return importlib.util.find_spec("pyarrow") is not None


def parquet_to(sink: Any) -> Any:
    """Return a writer of a Parquet file; its library is loaded here, and only here."""
    return importlib.import_module("gateway.ledger.parquet").Parquet(sink)


EVENTS: Final[dict[str, Any]] = {
    "summary": "Bills and their corrections as events of a billing system, in the order of their arrival",
    "description": "Begin without a cursor; hand `next_cursor` back for what follows. The operator's key.",
    "responses": answers({"application/json": schema_of(EventsAnswer)}, "Events", (400, 401, 403, 503)),
    "openapi_extra": {
        "parameters": [
            query("format", "Shape of the events", {"enum": list(get_args(Format)), "default": "openmeter"}),
            query("subject", "Who is metered", {"enum": list(get_args(Subject)), "default": "user"}),
            query("cursor", "`next_cursor` of before", {"type": "string", "maxLength": CURSOR_CHARS_MAX}),
            query(
                "limit",
                "Events of one answer",
                {"type": "integer", "minimum": 1, "maximum": RECORDS_MAX, "default": PAGE},
            ),
        ]
    },
}
FOCUS: Final[dict[str, Any]] = {
    "summary": "Costs as a FOCUS 1.2 file, by UTC day",
    "description": "The operator's key. Corrected bills stand with what they cost now.",
    "responses": answers(
        {"text/csv": {"type": "string"}, _TYPES["parquet"]: {"type": "string", "format": "binary"}},
        "The file, as a stream",
        (400, 401, 403, 503),
    ),
    "openapi_extra": {
        "parameters": [
            *RANGE[:2],
            query("format", "Shape of the file", {"enum": list(get_args(FileFormat)), "default": "csv"}),
            query(
                "billing_account",
                "`BillingAccountId`",
                {"type": "string", "minLength": 1, "maxLength": ACCOUNT_CHARS_MAX, "default": ACCOUNT},
            ),
        ]
    },
}


def exports_router(access: Access, ledger: Ledger) -> APIRouter:
    """Return the doors."""
    router = APIRouter(tags=["costs"])

    @router.get("/v1/costs/events", response_class=Response, **EVENTS)
    async def list_events(request: Request) -> Response:
        access.admin_only(request)
        asked = events_question(request.query_params.multi_items())

        def work(connection: Connection) -> EventsAnswer:
            held = ledger.as_of(connection)
            found = read(connection, asked.cursor, asked.count)
            return EventsAnswer(
                format=asked.shape,
                data=tuple(event_of(entry, asked.shape, asked.subject) for entry in found.entries),
                has_more=found.more,
                next_cursor=token_of(found.cursor),
                as_of=held,
            )

        return json_answer(await ledger.ask(work))

    @router.get("/v1/costs/focus", response_class=Response, **FOCUS)
    async def focus(request: Request) -> Response:
        access.admin_only(request)
        asked = focus_question(request.query_params.multi_items())
        ledger.look_for_room()
        try:
            days, held = await ledger.ask(lambda c: (days_in(c, asked.period), ledger.as_of(c)))
        except RowsGone as fault:
            raise wrong("start", f"is too early: {fault}") from fault

        async def charges(day: Period) -> list[Charge]:
            return await ledger.ask(lambda c: charges_of(c, day, asked.account))

        try:
            first = await charges(days[0]) if days else []
        except TooManyRows as fault:
            raise wrong("start", str(fault)) from fault
        parts = _csv_parts if asked.format == "csv" else _parquet_parts
        head, following = await parts(first, days[1:], charges)
        return StreamingResponse(
            ledger.streamed(head, following),
            media_type=_TYPES[asked.format],
            headers=export_headers(held, f"focus.{asked.format}"),
        )

    return router


Charges = Callable[[Period], Awaitable[list[Charge]]]
Parts = tuple[bytes, Callable[[], Awaitable[bytes | None]]]


async def _csv_parts(first: list[Charge], days: list[Period], charges: Charges) -> Parts:
    waiting = list(reversed(days))

    async def following() -> bytes | None:
        if not waiting:
            return None
        part = csv_rows(await charges(waiting[-1]))
        waiting.pop()
        return part

    return csv_head() + csv_rows(first), following


async def _parquet_parts(first: list[Charge], days: list[Period], charges: Charges) -> Parts:
    waiting = list(reversed(days))
    sink = _Passing()
    writer = await asyncio.to_thread(parquet_to, sink)
    await asyncio.to_thread(writer.add, first)
    ended = False

    async def following() -> bytes | None:
        nonlocal ended
        if ended:
            return None
        if waiting:
            rows = await charges(waiting[-1])
            waiting.pop()
            await asyncio.to_thread(writer.add, rows)
        else:
            writer.close()
            ended = True
        return sink.taken()

    return sink.taken(), following


class _Passing(io.RawIOBase):
    """Keeps what was written until it is taken."""

    def __init__(self) -> None:
        super().__init__()
        self._kept = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self._kept += data
        return len(data)

    def taken(self) -> bytes:
        """Return what was written since the last time."""
        found = bytes(self._kept)
        self._kept.clear()
        return found
