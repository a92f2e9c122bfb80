"""Cost documents: the parameters and answers of the cost doors, for the OpenAPI document."""

from __future__ import annotations

from typing import Any, Final

from gateway.api.cost_answers import CostsAnswer, Page, ReceiptAnswer
from gateway.api.cost_questions import (
    FILTERS,
    GROUPINGS,
    MAY_BE_UNKNOWN,
    PAGE,
    STATUSES,
    VALUE_CHARS_MAX,
)
from gateway.api.documents import answers, query, schema_of
from gateway.ledger.queries import RECORDS_MAX, TOKEN_CHARS_MAX

TEXT: Final = {"type": "string", "minLength": 1, "maxLength": VALUE_CHARS_MAX}
WHEN: Final = "a day (`2026-11-01`, in `tz`) or an instant (`2026-11-01T09:30:00Z`)"


def _filters() -> list[dict[str, Any]]:
    found = []
    for name in FILTERS:
        schema = {"type": "string", "enum": list(STATUSES)} if name == "status" else TEXT
        more = "; empty: those that name none" if name in MAY_BE_UNKNOWN else ""
        if name in MAY_BE_UNKNOWN:
            schema = {"type": "string", "maxLength": VALUE_CHARS_MAX}
        found.append(query(name, f"Only bills of this {name}; repeated: of any{more}", schema, repeats=True))
    return found


RANGE: Final = [
    query("start", f"From this moment on: {WHEN}", {"type": "string"}),
    query("end", f"Until before this moment: {WHEN}", {"type": "string"}),
    query("tz", "Time zone of days", {"type": "string", "default": "UTC"}),
]
COSTS: Final[dict[str, Any]] = {
    "summary": "What bills come to, in all and by group",
    "description": "The operator sees all bills, a key those of its user. Amounts are exact decimal strings.",
    "responses": answers(
        {"application/json": schema_of(CostsAnswer)},
        "Totals with their counts by status",
        (400, 401, 403, 503),
    ),
    "openapi_extra": {
        "parameters": [
            *RANGE,
            *_filters(),
            query(
                "group_by",
                "Only these groupings; repeated or with commas. All of them by default",
                {"type": "string", "enum": list(GROUPINGS)},
                repeats=True,
            ),
        ]
    },
}
RECORDS: Final[dict[str, Any]] = {
    "summary": "Bills one by one, by when they were settled",
    "description": "`json` is a page; `csv` and `jsonl` are everything from the cursor on, as a stream.",
    "responses": answers(
        {
            "application/json": schema_of(Page),
            "text/csv": {"type": "string"},
            "application/jsonl": {"type": "string"},
        },
        "Records",
        (400, 401, 403, 503),
    ),
    "openapi_extra": {
        "parameters": [
            *RANGE,
            *_filters(),
            query("format", "Shape of the answer", {"enum": ["json", "csv", "jsonl"], "default": "json"}),
            query(
                "limit",
                "Records of a page, of `json` only",
                {"type": "integer", "minimum": 1, "maximum": RECORDS_MAX, "default": PAGE},
            ),
            query(
                "cursor", "`next_cursor` of the page before", {"type": "string", "maxLength": TOKEN_CHARS_MAX}
            ),
            query("order", "Which come first", {"enum": ["newest", "oldest"], "default": "newest"}),
        ]
    },
}
RECEIPT: Final[dict[str, Any]] = {
    "summary": "One request's bill, with all lines and revisions",
    "description": "The key of the request suffices. The id is `x-request-id` of its answer.",
    "responses": answers({"application/json": schema_of(ReceiptAnswer)}, "The receipt", (400, 401, 404, 503)),
}
