"""Providers from the command line: each card's own door is called, and every fault says what to do next."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from gateway.cli.main import app
from gateway.cli.trial import words_of
from tests.attacks.chaos import Chaos, Close, Step
from tests.attacks.wires import CHAT, MESSAGES, RESPONSES, sized, streamed

KEY = "0123456789abcdef0123456789abcdef"
SSE_OF = {wire.name: streamed(wire.stream()) for wire in (CHAT, MESSAGES, RESPONSES)}
DOORS = {
    "openai": ("/v1", "/v1/chat/completions", "authorization", CHAT),
    "azure": ("", "/openai/v1/chat/completions", "api-key", CHAT),
    "anthropic": ("", "/v1/messages", "x-api-key", MESSAGES),
    "deepseek": ("", "/chat/completions", "authorization", CHAT),
    "bedrock": ("/v1", "/v1/chat/completions", "authorization", CHAT),
    "fireworks": ("/inference/v1", "/inference/v1/chat/completions", "authorization", CHAT),
    "gemini": ("/v1beta/openai", "/v1beta/openai/chat/completions", "authorization", CHAT),
    "groq": ("/openai/v1", "/openai/v1/chat/completions", "authorization", CHAT),
    "huggingface": ("/v1", "/v1/chat/completions", "authorization", CHAT),
    "mistral": ("/v1", "/v1/chat/completions", "authorization", CHAT),
    "ollama": ("", "/v1/chat/completions", "authorization", CHAT),
    "openrouter": ("/api", "/api/v1/chat/completions", "authorization", CHAT),
    "together": ("/v1", "/v1/chat/completions", "authorization", CHAT),
    "vllm": ("", "/v1/chat/completions", "authorization", CHAT),
    "xai": ("/v1", "/v1/chat/completions", "authorization", CHAT),
}
"""Provider -> path of its base URL, where it must be called, the header of its key, what it speaks."""
UNASKED = {"anthropic", "fireworks", "mistral"}
"""Providers whose streams are not asked for usage: it comes anyway."""


@pytest.fixture(scope="module")
def chaos() -> Iterator[Chaos]:
    with Chaos() as running:
        yield running


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPANBILL_CONFIG", raising=False)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["providers", *arguments])


def configured(name: str, base_url: str, **more: Any) -> None:
    own = {"base_url": base_url, "api_key": KEY, **more}
    settings = {"providers": {name: own}, "upstream": {"connect_timeout_s": 20, "first_byte_timeout_s": 20}}
    Path("spanbill.yaml").write_text(json.dumps(settings))


def tried(
    chaos: Chaos, *steps: Step, name: str = "groq", model: str, options: tuple[str, ...] = ()
) -> Result:
    """Try a provider that does this."""
    base, _, _, _ = DOORS[name]
    configured(name, chaos.url + base)
    chaos.script(model, *steps)
    before = len(chaos.calls)
    result = run("test", name, "--model", model, *options)
    assert len(chaos.calls) == before + 1, "one call, whatever came of it"
    assert KEY not in result.output
    return result


def test_every_built_in_provider_of_text_is_tried_here() -> None:
    rows = json.loads(run("list", "--json").stdout)
    assert {row["provider"] for row in rows} == {*DOORS, "simulated"}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", DOORS)
def test_a_provider_is_asked_at_its_own_door_with_its_own_key(chaos: Chaos, name: str, stream: bool) -> None:
    _, path, header, wire = DOORS[name]
    steps = SSE_OF[wire.name] if stream else [sized(wire.whole())]
    model, options = f"fine-{name}-{stream}", ("--stream",) if stream else ()
    result = tried(chaos, *steps, name=name, model=model, options=options)
    assert result.exit_code == 0, result.output
    (call,) = chaos.called(model)
    assert call.path == path
    assert call.headers[header] == (f"Bearer {KEY}" if header == "authorization" else KEY)
    sent = {"authorization", "x-api-key", "api-key"} & set(call.headers)
    assert sent == {header}
    body = json.loads(call.body)
    assert [body.get(limit) for limit in ("max_tokens", "max_completion_tokens")].count(16) == 1
    asked = stream and name not in UNASKED
    assert body.get("stream_options") == ({"include_usage": True} if asked else None)
    assert "output 7" in result.stdout
    assert f"{name} serves" in result.stdout


def test_what_was_found_is_told_row_by_row_and_as_json(chaos: Chaos) -> None:
    whole = json.loads(CHAT.whole()) | {"model": "llama-3.3-70b-versatile"}
    whole["usage"] |= {"cost": 0.0000123}
    result = tried(chaos, sized(json.dumps(whole).encode()), model="priced")
    assert "priced, served by llama-3.3-70b-versatile" in result.stdout
    assert "that of providers.groq.api_key: accepted" in result.stdout
    assert "USD, by groq/llama-3.3-70b-versatile" in result.stdout
    assert "0.0000123 USD" in result.stdout
    found = json.loads(
        tried(chaos, sized(json.dumps(whole).encode()), model="priced", options=("--json",)).stdout
    )
    assert (found["provider"], found["door"], found["served"], found["next"]) == (
        "groq",
        "chat_completions",
        True,
        None,
    )


def test_what_cannot_be_priced_serves_and_says_so(chaos: Chaos) -> None:
    result = tried(chaos, sized(CHAT.whole()), name="ollama", model="free")
    assert (result.exit_code, "no rate for model" in result.stdout) == (0, True)
    assert "prices.overrides" in result.stdout


ERRORS: dict[str, tuple[bytes, str, str]] = {
    "401": (sized(b'{"detail":"Invalid API Key"}', "401 No"), "renew it", "Invalid API Key"),
    "403": (sized(b'{"error":{"message":"not for you"}}', "403 No"), "what it may do", "not for you"),
    "404": (
        sized(b'{"error":{"message":"no model","code":"model_not_found"}}', "404 No"),
        "name another with --model",
        "no model",
    ),
    "400": (sized(b'[{"error":{"message":"bad key"}}]', "400 No"), "another model", "bad key"),
    "402": (sized(b'{"code":"x","error":"pay"}', "402 No"), "no credit", "pay"),
    "429": (sized(b'{"message":"slow"}', "429 No"), "try again later", "slow"),
    "500": (sized(b"<h1>oops</h1>", "500 No", kind="text/html"), "try again later", ""),
    "garbage": (sized(b"<html>hello</html>", kind="text/html"), "not to a page", ""),
    "empty": (sized(b""), "not to a page", ""),
    "redirect": (sized(b"{}", "302 Moved", "location: http://127.0.0.1:9/"), "never followed", ""),
    "other": (sized(b'{"hello":"world"}'), "no usage", ""),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_a_fault_is_told_with_what_to_do_next(chaos: Chaos, kind: str) -> None:
    step, advice, words = ERRORS[kind]
    result = tried(chaos, step, model=f"error-{kind}")
    assert result.exit_code == 1
    assert advice in result.stdout.splitlines()[-1]
    assert "groq does not serve as it should" in result.stdout
    if words:
        assert f"the provider says  {words}" in result.stdout.replace("says   ", "says  ")
    assert "none, without an answer" in result.stdout or kind == "other"


def test_a_reply_without_usage_would_be_estimated_and_is_not_what_is_wanted(chaos: Chaos) -> None:
    whole = json.loads(CHAT.whole())
    del whole["usage"]
    result = tried(chaos, sized(json.dumps(whole).encode()), model="unmetered")
    assert (result.exit_code, "not reported" in result.stdout) == (1, True)
    assert "reports no usage" in result.stdout.splitlines()[-1]


@pytest.mark.parametrize("cut", [False, True])
def test_a_stream_that_stops_is_told(chaos: Chaos, cut: bool) -> None:
    steps = streamed(CHAT.opening(), CHAT.content())[: 3 if cut else 1]
    result = tried(chaos, *steps, Close(), model=f"stops-{cut}", options=("--stream",))
    assert result.exit_code == 1
    assert "upstream_incomplete" in result.stdout


def test_nobody_there_is_told_with_the_address() -> None:
    with socket.socket() as closed:  # bound and not listening: it refuses
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        configured("vllm", url)
        result = run("test", "vllm", "--model", "m")
    assert result.exit_code == 1
    assert f"{url}/v1/chat/completions" in result.stdout
    assert "cannot be reached" in result.stdout.splitlines()[-1]
    assert "providers.vllm.base_url" in result.stdout.splitlines()[-1]


def test_no_tls_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        met: list[bytes] = []

        def answer() -> None:
            peer, _ = server.accept()
            with peer:
                met.append(peer.recv(4096))
                peer.sendall(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        configured("vllm", f"https://127.0.0.1:{server.getsockname()[1]}")
        result = run("test", "vllm", "--model", "m")
        thread.join(20)
    assert met
    assert met[0][:1] == b"\x16", "it did not try TLS"
    assert result.exit_code == 1
    assert "TLS failed" in result.stdout


def test_a_key_that_a_provider_repeats_is_not_shown(chaos: Chaos) -> None:
    said = json.dumps({"error": {"message": f"Incorrect key: {KEY}\x1b[31m"}}).encode()
    result = tried(chaos, sized(said, "401 No"), model="repeats")
    assert "Incorrect key" in result.stdout
    assert "\x1b" not in result.stdout


def test_questions_that_cannot_be_asked_are_wrong_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GROQ_API_KEY", raising=False)
    for arguments, said in (
        (("nobody",), "there is no provider nobody"),
        (("groq",), "set GROQ_API_KEY"),
        (("azure",), "set AZURE_OPENAI_API_KEY and AZURE_OPENAI_ENDPOINT"),
    ):
        result = run("test", *arguments)
        assert (result.exit_code, said in result.stderr) == (2, True), result.output
    monkeypatch.setenv("GROQ_API_KEY", KEY)
    result = run("test", "groq")
    assert (result.exit_code, "name one of yours with --model" in result.stderr) == (2, True)


def test_the_list_names_variables_and_shows_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROQ_API_KEY", KEY)
    for variable in ("AZURE_OPENAI_API_KEY", "AZURE_OPENAI_ENDPOINT", "OLLAMA_BASE_URL"):
        monkeypatch.delenv(variable, raising=False)
    result = run("list")
    lines = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert "GROQ_API_KEY (set)" in lines["groq"]
    assert "https://api.groq.com/openai/v1" in lines["groq"]
    assert "set AZURE_OPENAI_API_KEY and AZURE_OPENAI_ENDPOINT" in lines["azure"]
    assert "needs none" in lines["ollama"]
    assert "set OLLAMA_BASE_URL" in lines["ollama"]
    assert KEY not in run("list").output + run("list", "--json").output


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", None),
        (b"[]", None),
        (b"{}", None),
        (b"\xff", None),
        (b'{"error":{"code":1}}', None),
        (b"[[[[[[1]]]]]]", None),
        (b'data: {"error":{"message":"late"}}\n\n', "late"),
        (b'{"message":{"detail":"deep"}}', "deep"),
        (b'{"error":"' + b"x" * 5000 + b'"}', "x" * 300),
    ],
)
def test_the_words_of_an_error_are_found_in_any_envelope(body: bytes, words: str | None) -> None:
    assert words_of(body) == words


def test_the_simulated_provider_needs_nothing() -> None:
    result = run("test", "simulated", "--stream")
    assert (result.exit_code, "simulated serves" in result.stdout) == (0, True)


def test_other_doors_are_tried_where_a_card_has_no_chat(chaos: Chaos) -> None:
    settings = {
        "providers": {
            "own": {"base_url": chaos.url, "api_key": KEY, "protocols": ["embeddings", "responses"]}
        }
    }
    Path("spanbill.yaml").write_text(json.dumps(settings))
    chaos.script("r", sized(RESPONSES.whole()))
    result = run("test", "own", "--model", "r")
    assert result.exit_code == 0, result.output
    assert chaos.called("r")[-1].path == "/v1/responses"
    settings["providers"]["own"]["protocols"] = ["embeddings"]
    Path("spanbill.yaml").write_text(json.dumps(settings))
    assert run("test", "own", "--model", "r").exit_code == 2
