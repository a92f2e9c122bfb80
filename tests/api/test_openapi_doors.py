"""Every door keeps to the OpenAPI document, whatever it is sent: no server error, nothing undocumented."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.api.cost_doors import ADMIN
from tests.gateway_process import KEYS, Gateway

ANSWER_S = 60.0
EXAMPLES = 2_000 if os.environ.get("SPANBILL_TORTURE") else 60
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
BOUNDED = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
SERVED = ("sim-small", "sim-large", "sim-cache", "sim-nousage")
DOORS = ("/v1/costs", "/v1/costs/records", "/v1/costs/events", "/v1/costs/focus", "/v1/costs/records/x")
NAMES = (
    "user",
    "model",
    "team",
    "status",
    "start",
    "end",
    "tz",
    "cursor",
    "limit",
    "order",
    "format",
    "group_by",
)
ASKED = {"messages": [{"role": "user", "content": "Hello"}], "input": "Hello", "max_tokens": 5}
HOSTILE = st.one_of(
    st.text(max_size=40),
    st.binary(max_size=40),
    st.sampled_from(
        [
            "' OR 1=1 --", "\0", "%00", "../../etc/passwd", "🦆" * 100, "a" * 5_000, "NaN", "-1", "1e999",
            "9" * 40, "2026-02-30", "0000-00-00", "9999-12-31T23:59:60Z", "{}", "[]", "W10=", "[[1,2,3]]",
        ]
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("doors")
    with Gateway(folder, SPANBILL_ADMIN__KEY=ADMIN, SPANBILL_LOGGING__LEVEL="warning") as running:
        for user in KEYS:  # so that there are costs to ask for
            asked = httpx.post(
                f"{running.url}/v1/chat/completions",
                headers={"authorization": f"Bearer {KEYS[user]}"},
                json={"model": "sim-small", "messages": [{"role": "user", "content": "Hello"}]},
            )
            assert asked.status_code == 200
        yield running
        assert running.stop() == 0


@pytest.fixture(scope="module")
def document(gateway: Gateway) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{gateway.url}/openapi.json").json()
    return found


def test_every_cost_door_is_in_the_document_with_its_parameters(document: dict[str, Any]) -> None:
    named = {
        path: {p["name"] for p in document["paths"][path]["get"].get("parameters", ())}
        for path in document["paths"]
        if path.startswith("/v1/costs")
    }
    filters = {"api_key", "user", "team", "project", "provider", "model", "status", "start", "end", "tz"}
    assert named == {
        "/v1/costs": {*filters, "group_by"},
        "/v1/costs/records": {*filters, "format", "limit", "cursor", "order"},
        "/v1/costs/records/{request_id}": {"request_id"},
        "/v1/costs/events": {"format", "subject", "cursor", "limit"},
        "/v1/costs/focus": {"start", "end", "format", "billing_account"},
    }
    assert not [
        path for path, doors in document["paths"].items() for d in doors.values() if "422" in d["responses"]
    ]


def exercise(gateway: Gateway, operation: Any, key: str, mode: GenerationMode) -> set[int]:
    """Send many requests to one door; return the statuses that came."""
    seen: set[int] = set()

    @BOUNDED
    @given(case=operation.as_strategy(generation_mode=mode), model=st.sampled_from(SERVED))
    def send(case: Any, model: str) -> None:
        if isinstance(case.body, dict) and mode is GenerationMode.POSITIVE:
            case.body |= {**ASKED, "model": model}  # or no provider would ever see it
        answer = case.call(base_url=gateway.url, headers={"authorization": f"Bearer {key}"}, timeout=ANSWER_S)
        seen.add(answer.status_code)
        case.validate_response(answer, checks=CHECKS)

    try:
        send()
    except Unsatisfiable:  # a door without parameters has nothing that could be wrong
        assert mode is GenerationMode.NEGATIVE, operation.label
    return seen


@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize("key", [ADMIN, KEYS["alice"]], ids=["operator", "user"])
def test_no_door_breaks_or_says_what_is_not_documented(
    gateway: Gateway, document: dict[str, Any], key: str, mode: GenerationMode
) -> None:
    statuses: dict[str, set[int]] = {}
    for result in schemathesis.openapi.from_dict(document).get_all_operations():
        operation = result.ok()
        statuses[operation.label] = exercise(gateway, operation, key, mode)
    assert len(statuses) >= 18
    wanted = {GenerationMode.POSITIVE: 200, GenerationMode.NEGATIVE: 400}[mode]
    assert wanted in statuses["GET /v1/costs"]
    assert wanted in statuses["GET /v1/costs/records"]
    if key != ADMIN:
        assert wanted in statuses["POST /v1/chat/completions"], "the provider was reached"


@BOUNDED
@given(
    path=st.sampled_from(sorted(DOORS)),
    names=st.lists(st.one_of(st.sampled_from(NAMES), HOSTILE), min_size=1, max_size=4),
    values=st.lists(HOSTILE, min_size=4, max_size=4),
)
def test_hostile_names_values_and_cursors_are_refused_in_the_envelope(
    hostile: httpx.Client, path: str, names: list[str | bytes], values: list[str | bytes]
) -> None:
    pairs = zip(names, values, strict=False)
    query = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in pairs)
    answer = hostile.get(httpx.URL(path, query=query.encode()))
    assert answer.status_code in {200, 400, 404, 414}, (query, answer.text)
    if answer.status_code == 400:
        assert answer.json()["error"]["message"]


@pytest.fixture(scope="module")
def hostile(gateway: Gateway) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=gateway.url, headers={"authorization": f"Bearer {ADMIN}"}, timeout=ANSWER_S
    ) as client:
        yield client
