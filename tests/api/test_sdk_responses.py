"""The official OpenAI SDK at the doors of responses and embeddings of a real gateway."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pydantic
import pytest

from tests.gateway_process import KEYS, Gateway, bills_in_journal

TOOL: Any = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": False,
}


class Place(pydantic.BaseModel):
    city: str
    days: int


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with Gateway(tmp_path_factory.mktemp("responses")) as running:
        yield running
        assert running.stop() == 0


@pytest.fixture
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=KEYS["alice"], max_retries=0) as client:
        yield client


def bill_of(gateway: Gateway, request_id: str | None) -> dict[str, Any]:
    assert request_id is not None
    return bills_in_journal(gateway.journal)[request_id]


# responses


def test_a_response_is_answered_and_billed_to_the_owner(gateway: Gateway, client: openai.OpenAI) -> None:
    reply = client.responses.create(
        model="sim-large", input="Hello", max_output_tokens=50, safety_identifier="end-user-7"
    )
    assert "Hello" in reply.output_text
    assert reply.usage is not None
    bill = bill_of(gateway, reply._request_id)
    assert (bill["billing.status"], bill["billing.protocol"]) == ("final", "responses")
    assert (bill["billing.user.id"], bill["user.id"]) == ("alice", "end-user-7")
    assert (bill["gen_ai.operation.name"], bill["gen_ai.request.max_tokens"]) == ("chat", 50)
    assert bill["gen_ai.response.id"] == reply.id
    assert bill["gen_ai.response.finish_reasons"] == ["completed"]
    assert bill["gen_ai.usage.input_tokens"] == reply.usage.input_tokens
    assert bill["gen_ai.usage.output_tokens"] == reply.usage.output_tokens
    assert bill["billing.cache_hit"] is False


def test_a_stream_ends_with_the_bills_numbers(gateway: Gateway, client: openai.OpenAI) -> None:
    with client.responses.stream(model="sim-reasoning", input="Hello, 40 words") as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
        request_id = stream._response.headers["x-request-id"]
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert kinds.count("response.output_text.delta") == 40
    assert final.usage is not None
    bill = bill_of(gateway, request_id)
    assert bill["billing.status"] == "final"
    assert bill["gen_ai.usage.output_tokens"] == final.usage.output_tokens
    assert bill["gen_ai.usage.reasoning.output_tokens"] == final.usage.output_tokens_details.reasoning_tokens
    assert bill["gen_ai.response.time_to_first_chunk"] > 0


def test_an_incomplete_stream_ends_as_such(gateway: Gateway, client: openai.OpenAI) -> None:
    stream = client.responses.create(model="sim-small", input="Hello", max_output_tokens=2, stream=True)
    last = list(stream)[-1]
    assert last.type == "response.incomplete"
    bill = bill_of(gateway, stream.response.headers["x-request-id"])
    assert (bill["billing.outcome"], bill["billing.status"]) == ("ok", "final")
    assert bill["gen_ai.response.finish_reasons"] == ["max_output_tokens"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_wanted_form_is_parsed(client: openai.OpenAI, stream: bool) -> None:
    if stream:
        with client.responses.stream(model="sim-small", input="Where?", text_format=Place) as events:
            reply = events.get_final_response()
    else:
        reply = client.responses.parse(model="sim-small", input="Where?", text_format=Place)
    assert isinstance(reply.output_parsed, Place)


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_and_its_result_answered(client: openai.OpenAI, stream: bool) -> None:
    asked: Any = {"model": "sim-small", "tools": [TOOL]}
    if stream:
        with client.responses.stream(input="Hello", **asked) as events:
            reply: Any = events.get_final_response()
    else:
        reply = client.responses.create(input="Hello", **asked)
    (call,) = reply.output
    assert (call.type, call.name, call.arguments) == ("function_call", "weather", '{"city":"text"}')
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    again = client.responses.create(
        input=[{"role": "user", "content": "Hello"}, call.model_dump(exclude_none=True), result], **asked
    )
    assert again.output_text


def test_a_compaction_is_billed_and_a_count_is_free(gateway: Gateway, client: openai.OpenAI) -> None:
    compacted = client.responses.with_raw_response.compact(model="sim-large", input="Hello " * 50)
    usage = compacted.parse().usage
    bill = bill_of(gateway, compacted.headers["x-request-id"])
    assert (bill["billing.status"], bill["billing.protocol"]) == ("final", "responses_compact")
    assert bill["gen_ai.usage.input_tokens"] == usage.input_tokens
    counted = client.responses.input_tokens.with_raw_response.count(model="sim-large", input="Hello " * 50)
    assert counted.parse().input_tokens == usage.input_tokens
    bill = bill_of(gateway, counted.headers["x-request-id"])
    assert (bill["billing.status"], bill["billing.cost.usd"]) == ("final", "0")
    assert bill["gen_ai.operation.name"] == "count_tokens"
    assert "gen_ai.usage.input_tokens" not in bill


# embeddings


@pytest.mark.parametrize("form", ["float", "base64", None])
def test_an_embedding_is_answered_and_billed_by_its_input(
    gateway: Gateway, client: openai.OpenAI, form: Any
) -> None:
    options = {} if form is None else {"encoding_format": form}
    reply = client.embeddings.create(model="sim-small", input=["Hello", "world"], user="u", **options)
    raw = client.embeddings.with_raw_response.create(model="sim-small", input=["Hello", "world"], **options)
    assert [item.index for item in reply.data] == [0, 1]
    assert all(reply.data)
    bill = bill_of(gateway, raw.headers["x-request-id"])
    assert (bill["billing.status"], bill["billing.protocol"]) == ("final", "embeddings")
    assert bill["gen_ai.operation.name"] == "embeddings"
    assert bill["gen_ai.usage.input_tokens"] == reply.usage.prompt_tokens
    assert "gen_ai.usage.output_tokens" not in bill
    assert "billing.cost.output_usd" not in bill
    assert bill["billing.cost.usd"] == bill["billing.cost.input_usd"] != "0"
    assert raw.headers["x-spanbill-cost-usd"] == bill["billing.cost.usd"]


def test_tokens_and_many_inputs_are_embedded(gateway: Gateway, client: openai.OpenAI) -> None:
    raw = client.embeddings.with_raw_response.create(model="sim-small", input=[[1, 2, 3], [4]], dimensions=8)
    assert [len(item.embedding) for item in raw.parse().data] == [8, 8]
    assert bill_of(gateway, raw.headers["x-request-id"])["gen_ai.usage.input_tokens"] == 4
    many = client.embeddings.create(model="sim-small", input=["x" * 500] * 2048, dimensions=256)
    assert len(many.data) == 2048


def test_an_embedding_without_usage_is_estimated(gateway: Gateway, client: openai.OpenAI) -> None:
    raw = client.embeddings.with_raw_response.create(model="sim-nousage", input="Hello")
    bill = bill_of(gateway, raw.headers["x-request-id"])
    assert (bill["billing.status"], bill["billing.usage.source"]) == ("estimated", "estimated")
    assert bill["gen_ai.usage.input_tokens"] > 0
    assert "gen_ai.usage.output_tokens" not in bill


# errors


def ask(client: openai.OpenAI, door: str, model: str) -> Any:
    if door == "embeddings":
        return client.embeddings.create(model=model, input="Hello")
    return client.responses.create(model=model, input="Hello", stream=door == "stream")


@pytest.mark.parametrize("door", ["responses", "stream", "embeddings"])
@pytest.mark.parametrize(
    ("model", "status", "kind"),
    [
        ("no-such-model", 404, openai.NotFoundError),
        ("sim-err-400", 400, openai.BadRequestError),
        ("sim-err-429", 429, openai.RateLimitError),
        ("sim-err-503", 503, openai.InternalServerError),
    ],
)
def test_errors_are_the_sdks_own(
    client: openai.OpenAI, door: str, model: str, status: int, kind: type[openai.APIStatusError]
) -> None:
    with pytest.raises(kind) as caught:
        ask(client, door, model)
    assert caught.value.status_code == status
    assert caught.value.request_id


def test_a_stream_that_is_cut_off_is_raised_and_billed(gateway: Gateway, client: openai.OpenAI) -> None:
    stream = client.responses.create(model="sim-cut", input="Hello", stream=True)
    with pytest.raises(openai.APIError, match="send the request again"):
        list(stream)
    bill = bill_of(gateway, stream.response.headers["x-request-id"])
    assert (bill["billing.outcome"], bill["billing.status"]) == ("upstream_incomplete", "estimated")
    assert bill["gen_ai.usage.output_tokens"] > 0


def test_an_error_inside_a_stream_is_handed_on(gateway: Gateway, client: openai.OpenAI) -> None:
    stream = client.responses.create(model="sim-midstream-error", input="Hello", stream=True)
    last = list(stream)[-1]
    assert (last.type, last.code) == ("error", "server_error")
    bill = bill_of(gateway, stream.response.headers["x-request-id"])
    assert (bill["billing.outcome"], bill["error.type"]) == ("upstream_error", "server_error")
    with (
        client.responses.stream(model="sim-midstream-error", input="Hello") as helped,
        pytest.raises(RuntimeError, match=r"response\.completed"),
    ):
        helped.get_final_response()


@pytest.mark.parametrize("stream", [False, True])
def test_background_is_refused_with_what_to_do_instead(client: openai.OpenAI, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError, match="stream") as caught:
        client.responses.create(model="sim-small", input="Hello", background=True, stream=stream)
    assert (caught.value.code, caught.value.param) == ("background_not_supported", "background")


def test_stored_responses_are_refused_and_continued_ones_are_not(client: openai.OpenAI) -> None:
    first = client.responses.create(model="sim-small", input="Hello")
    for refused in (
        lambda: client.responses.retrieve(first.id),
        lambda: client.responses.cancel(first.id),
        lambda: client.responses.delete(first.id),
        lambda: client.responses.input_items.list(first.id),
    ):
        with pytest.raises(openai.NotFoundError, match="previous_response_id") as caught:
            refused()
        assert caught.value.code == "not_supported"
        assert caught.value.request_id
    assert client.responses.create(model="sim-small", input="More", previous_response_id=first.id).output_text


def test_stored_responses_tell_nothing_to_a_stranger(gateway: Gateway) -> None:
    with (
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="sk-wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.responses.retrieve("resp_1")


def test_the_websocket_mode_is_refused(gateway: Gateway) -> None:
    headers = {
        "authorization": f"Bearer {KEYS['alice']}",
        "connection": "upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    reply = httpx.get(f"{gateway.url}/v1/responses", headers=headers)
    assert (reply.status_code, reply.headers["allow"]) == (405, "POST")
    assert reply.json()["error"]["code"] == "method_not_allowed"


def test_both_doors_count_in_the_metrics(gateway: Gateway, client: openai.OpenAI) -> None:
    def requests() -> float:
        lines = httpx.get(f"{gateway.url}/metrics").text.splitlines()
        return sum(
            float(line.split()[-1]) for line in lines if line.startswith("llm_gateway_requests_total{")
        )

    before = requests()
    client.responses.create(model="sim-small", input="Hello")
    client.embeddings.create(model="sim-small", input="Hello")
    assert requests() == before + 2


def test_the_openapi_document_names_the_doors(gateway: Gateway) -> None:
    paths = httpx.get(f"{gateway.url}/openapi.json").json()["paths"]
    assert {"/v1/responses", "/v1/responses/compact", "/v1/responses/input_tokens", "/v1/embeddings"} <= set(
        paths
    )
