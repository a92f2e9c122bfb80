"""Whole gateways with limits: the official SDKs, several workers and gateways, a worker that is killed."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from deploy.stack import wait_until
from tests.gateway_process import KEYS, Gateway
from tests.limits.conftest import redis_needed
from tests.limits.servers import Redis, running_redis

HELLO = [{"role": "user", "content": "Hello"}]
WAIT_S = 60.0
MINUTE_S = 60.0


def limited(folder: Path, rules: list[dict[str, Any]], **environment: str) -> Gateway:
    return Gateway(folder, SPANBILL_LIMITS__RULES=json.dumps(rules), **environment)


def ask(url: str, key: str = KEYS["alice"], model: str = "sim-small", **members: Any) -> httpx.Response:
    return httpx.post(
        f"{url}/v1/chat/completions",
        headers={"authorization": f"Bearer {key}"},
        json={"model": model, "messages": HELLO, **members},
        timeout=WAIT_S,
    )


def metric(url: str, series: str) -> float | None:
    for line in httpx.get(f"{url}/metrics", timeout=WAIT_S).text.splitlines():
        if line.startswith(f"{series} "):
            return float(line.split()[-1])
    return None


class OpenStream:
    """A caller that takes its time over a long answer."""

    def __init__(self, url: str, key: str = KEYS["alice"]) -> None:
        self.broken = threading.Event()
        self.begun = threading.Event()
        self._leave = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(url, key))
        self._thread.start()
        assert self.begun.wait(WAIT_S)

    def _read(self, url: str, key: str) -> None:
        body = {"model": "sim-slow", "messages": [{"role": "user", "content": "Write 20000 words."}],
                "stream": True}  # fmt: skip
        headers = {"authorization": f"Bearer {key}"}
        try:
            with httpx.stream(
                "POST", f"{url}/v1/chat/completions", json=body, headers=headers, timeout=WAIT_S
            ) as reply:
                assert reply.status_code == 200
                for _ in reply.iter_bytes():
                    self.begun.set()
                    if self._leave.is_set():
                        return
        except httpx.HTTPError:
            self.broken.set()

    def leave(self) -> None:
        self._leave.set()
        self._thread.join(WAIT_S)


@pytest.fixture
def one_at_a_time(tmp_path: Path) -> Iterator[Gateway]:
    rules = [
        {"id": "one", "user": "*", "concurrent": 1},
        {"id": "few", "user": "*", "tokens_per_minute": 5_000},
    ]
    with limited(tmp_path, rules, SPANBILL_UPSTREAM__DRAIN_S="0") as gateway:
        yield gateway


Speak = Callable[[str, list[httpx.Response]], None]


def speak_openai(url: str, heard: list[Any]) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEYS["alice"], max_retries=8) as client:
        send = client._client.send
        client._client.send = lambda *a, **k: _noted(send(*a, **k), heard)  # type: ignore[method-assign]
        assert client.chat.completions.create(model="sim-small", messages=HELLO, max_tokens=40).choices  # type: ignore[arg-type]


def speak_anthropic(url: str, heard: list[Any]) -> None:
    with anthropic.Anthropic(base_url=url, api_key=KEYS["alice"], max_retries=8) as client:
        send = client._client.send
        client._client.send = lambda *a, **k: _noted(send(*a, **k), heard)  # type: ignore[method-assign]
        assert client.messages.create(model="sim-small", messages=HELLO, max_tokens=40).content  # type: ignore[arg-type]


def _noted(reply: Any, heard: list[Any]) -> Any:
    heard.append((time.monotonic(), reply))
    return reply


@pytest.mark.parametrize("speak", [speak_openai, speak_anthropic])
def test_the_sdks_wait_as_told_and_then_get_their_answer(one_at_a_time: Gateway, speak: Speak) -> None:
    stream = OpenStream(one_at_a_time.url)
    heard: list[Any] = []
    caller = threading.Thread(target=speak, args=(one_at_a_time.url, heard))
    caller.start()
    try:
        assert wait_until(lambda: len(heard) >= 2, WAIT_S, 0.01)
    finally:
        stream.leave()
        caller.join(WAIT_S)
    statuses = [reply.status_code for _, reply in heard]
    assert statuses[-1] == 200
    assert set(statuses[:-1]) == {429}
    told = [int(reply.headers["retry-after"]) for _, reply in heard[:-1]]
    waited = [after - before for (before, _), (after, _) in itertools.pairwise(heard)]
    assert told == [1] * len(told)
    assert min(waited) >= 1.0  # by themselves they would wait half a second at first, or less


@pytest.mark.parametrize("speak", ["openai", "anthropic"])
def test_the_sdks_raise_their_own_error_and_do_not_repeat_what_can_never_be(
    one_at_a_time: Gateway, speak: str
) -> None:
    url, heard = one_at_a_time.url, list[Any]()
    if speak == "openai":
        with openai.OpenAI(base_url=f"{url}/v1", api_key=KEYS["alice"], max_retries=8) as client:
            send = client._client.send
            client._client.send = lambda *a, **k: _noted(send(*a, **k), heard)  # type: ignore[method-assign]
            with pytest.raises(openai.RateLimitError) as refused:
                client.chat.completions.create(model="sim-small", messages=HELLO, max_tokens=9_000)  # type: ignore[arg-type]
        assert (refused.value.type, refused.value.code) == ("tokens", "rate_limit_exceeded")
    else:
        with anthropic.Anthropic(base_url=url, api_key=KEYS["alice"], max_retries=8) as other:
            send = other._client.send
            other._client.send = lambda *a, **k: _noted(send(*a, **k), heard)  # type: ignore[method-assign]
            with pytest.raises(anthropic.RateLimitError, match="rate_limit_error"):
                other.messages.create(model="sim-small", messages=HELLO, max_tokens=9_000)  # type: ignore[arg-type]
    assert len(heard) == 1
    assert "retry-after" not in heard[0][1].headers


def test_limits_stand_in_each_answer_in_the_words_of_its_door(tmp_path: Path) -> None:
    rules = [{"id": "a", "user": "alice", "requests_per_minute": 100, "tokens_per_minute": 100_000}]
    with limited(tmp_path, rules) as gateway:
        whole = ask(gateway.url, max_tokens=40)
        assert whole.headers["x-ratelimit-limit-requests"] == "100"
        assert whole.headers["x-ratelimit-remaining-requests"] == "99"
        assert whole.headers["x-ratelimit-reset-requests"] == "1m0s"
        assert 99_000 < int(whole.headers["x-ratelimit-remaining-tokens"]) < 100_000 - 40
        stream = ask(gateway.url, stream=True, max_tokens=40)
        assert stream.headers["x-ratelimit-remaining-requests"] == "98"
        failed = ask(gateway.url, model="sim-err-500")
        assert (failed.status_code, failed.headers["x-ratelimit-remaining-requests"]) == (500, "97")
        message = httpx.post(
            f"{gateway.url}/v1/messages",
            headers={"x-api-key": KEYS["alice"], "anthropic-version": "2023-06-01"},
            json={"model": "sim-small", "messages": HELLO, "max_tokens": 40},
        )
        assert message.headers["anthropic-ratelimit-requests-remaining"] == "96"
        assert message.headers["anthropic-ratelimit-tokens-limit"] == "100000"
        assert not [name for name in message.headers if name.startswith("x-ratelimit")]
        bob = ask(gateway.url, KEYS["bob"])
        assert not [name for name in bob.headers if "ratelimit" in name]


def test_the_reservation_is_corrected_with_the_bill(tmp_path: Path) -> None:
    rules = [{"id": "a", "tokens_per_minute": 100_000}]
    with limited(tmp_path, rules) as gateway:
        ask(gateway.url, max_tokens=50_000)
        then = ask(gateway.url, max_tokens=1)
        assert int(then.headers["x-ratelimit-remaining-tokens"]) > 99_000


def test_who_asks_is_told_what_limits_it_and_what_is_left(tmp_path: Path) -> None:
    rules = [
        {"id": "each", "user": "*", "requests_per_minute": 10, "concurrent": 3},
        {"id": "model", "model": "*", "requests_per_minute": 10},
    ]
    with limited(tmp_path, rules) as gateway:
        ask(gateway.url)
        url, mine = f"{gateway.url}/v1/key/limits", {"authorization": f"Bearer {KEYS['alice']}"}
        told = httpx.get(url, headers=mine, timeout=WAIT_S).json()["data"]
        assert [(one["id"], one["kind"], one["used"], one["remaining"]) for one in told] == [
            ("each", "requests", 1, 9),
            ("each", "concurrent", 0, 3),
        ]
        assert 0 < told[0]["reset_s"] <= 60
        assert httpx.get(url, timeout=WAIT_S).status_code == 401


def test_what_is_refused_is_counted_by_rule_and_calls_no_provider(tmp_path: Path) -> None:
    with limited(tmp_path, [{"id": "two", "key": "*", "requests_per_minute": 2}]) as gateway:
        statuses = [ask(gateway.url).status_code for _ in range(5)]
        assert statuses == [200, 200, 429, 429, 429]
        assert metric(gateway.url, 'llm_gateway_limited_total{kind="requests",rule="two"}') == 3
        assert metric(gateway.url, 'llm_gateway_refused_total{code="rate_limit_exceeded"}') == 3
        assert metric(gateway.url, 'llm_gateway_records_total{status="final"}') == 2
        assert metric(gateway.url, "llm_gateway_limits_up") == 1


async def flood(urls: list[str], requests: int) -> list[int]:
    """Ask many times, each on a connection of its own; return the statuses."""
    async with httpx.AsyncClient(
        timeout=WAIT_S, limits=httpx.Limits(max_keepalive_connections=0, max_connections=20)
    ) as client:
        replies = await asyncio.gather(
            *[
                client.post(
                    f"{urls[number % len(urls)]}/v1/chat/completions",
                    headers={"authorization": f"Bearer {KEYS['alice']}"},
                    json={"model": "sim-small", "messages": HELLO},
                )
                for number in range(requests)
            ]
        )
    return [reply.status_code for reply in replies]


def served_by(gateway: Gateway) -> set[int]:
    lines = [json.loads(line) for line in gateway.log().splitlines() if line.startswith("{")]
    return {line["worker"] for line in lines if line["message"].startswith("request ")}


async def test_three_workers_together_let_in_as_many_as_one_would(tmp_path: Path) -> None:
    with limited(
        tmp_path,
        [{"id": "sum", "user": "*", "requests_per_minute": 50}],
        SPANBILL_SERVER__WORKERS="3",
        SPANBILL_LIMITS__WAIT_S="10",
    ) as gateway:
        assert wait_until(lambda: len(worker_pids(gateway)) == 3, WAIT_S, 0.02)
        began = time.monotonic()
        statuses = await flood([gateway.url], 200)
        assert time.monotonic() - began < MINUTE_S, "the machine is too slow to say anything"
        assert len(served_by(gateway)) > 1
        assert statuses.count(200) == 50
        assert statuses.count(429) == 150
        assert (tmp_path / "data" / "limits.db").exists()
        gateway.stop()


async def test_two_gateways_with_one_redis_let_in_as_many_as_one_would(tmp_path: Path) -> None:
    redis_needed()
    with running_redis() as redis:
        there = {"SPANBILL_LIMITS__BACKEND": redis.url, "SPANBILL_LIMITS__WAIT_S": "10"}
        rules = [{"id": "sum", "user": "*", "requests_per_minute": 50}]
        with (
            limited(tmp_path / "a", rules, **there) as one,
            limited(tmp_path / "b", rules, **there) as two,
        ):
            began = time.monotonic()
            statuses = await flood([one.url, two.url], 200)
            assert time.monotonic() - began < MINUTE_S, "the machine is too slow to say anything"
            assert statuses.count(200) == 50
            assert statuses.count(429) == 150


@pytest.mark.parametrize(("policy", "status"), [("open", 200), ("closed", 503)])
def test_while_redis_is_away_requests_go_on_or_are_refused_as_the_operator_says(
    tmp_path: Path, policy: str, status: int
) -> None:
    redis_needed()
    with running_redis() as redis, limited(
        tmp_path,
        [{"id": "one", "user": "alice", "requests_per_minute": 1}],
        SPANBILL_LIMITS__BACKEND=redis.url,
        SPANBILL_LIMITS__WHEN_UNAVAILABLE=policy,
        SPANBILL_LIMITS__WAIT_S="10",
    ) as gateway:  # fmt: skip
        assert [ask(gateway.url).status_code for _ in range(2)] == [200, 429]
        redis.kill()
        replies = [ask(gateway.url) for _ in range(5)]
        assert [reply.status_code for reply in replies] == [status] * 5
        assert ask(gateway.url, KEYS["bob"]).status_code == 200
        assert metric(gateway.url, "llm_gateway_limits_up") == 0
        assert (metric(gateway.url, "llm_gateway_limits_uncounted_total") == 5) is (policy == "open")
        if policy == "closed":
            assert replies[0].json()["error"]["code"] == "limits_unavailable"
            assert replies[0].headers["retry-after"] == "1"
        redis.start()
        assert wait_until(lambda: metric(gateway.url, "llm_gateway_limits_up") == 1, WAIT_S, 0.05)
        assert [ask(gateway.url).status_code for _ in range(2)] == [200, 429]


def test_a_gateway_starts_without_its_redis(tmp_path: Path) -> None:
    redis_needed()
    with running_redis() as redis:
        redis.kill()
        with limited(
            tmp_path, [{"id": "one", "requests_per_minute": 1}], SPANBILL_LIMITS__BACKEND=redis.url
        ) as gateway:
            assert [ask(gateway.url).status_code for _ in range(2)] == [200, 200]
            assert "the store of limits is away: requests go on without limits" in gateway.log()
        redis.start()


def worker_pids(gateway: Gateway) -> list[int]:
    lines = [json.loads(line) for line in gateway.log().splitlines() if line.startswith("{")]
    return [line["pid"] for line in lines if line["message"] == "a worker serves"]


@pytest.mark.parametrize("backend", ["sqlite", "redis"])
def test_the_places_of_a_killed_worker_are_free_again_and_those_of_a_long_stream_are_not(
    tmp_path: Path, backend: str
) -> None:
    with contextlib.ExitStack() as held:
        environment = {}
        if backend == "redis":
            redis_needed()
            redis: Redis = held.enter_context(running_redis())
            environment["SPANBILL_LIMITS__BACKEND"] = redis.url
        gateway = held.enter_context(
            limited(
                tmp_path,
                [{"id": "one", "user": "*", "concurrent": 1}],
                SPANBILL_SERVER__WORKERS="2",
                SPANBILL_LIMITS__LEASE_S="1",
                SPANBILL_LIMITS__WAIT_S="10",
                **environment,
            )
        )
        assert wait_until(lambda: len(worker_pids(gateway)) == 2, WAIT_S, 0.02)
        stream = OpenStream(gateway.url)
        since = time.monotonic()
        refusals = 0
        while time.monotonic() - since < 2.5:  # more than two leases
            assert ask(gateway.url).status_code == 429
            refusals += 1
        assert refusals > 1
        pids = worker_pids(gateway)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert stream.broken.wait(WAIT_S)
        assert wait_until(lambda: _answers(gateway.url) == 200, WAIT_S, 0.05), gateway.log()
        assert worker_pids(gateway) != pids
        gateway.stop()


def _answers(url: str) -> int | None:
    try:
        return ask(url).status_code
    except httpx.HTTPError:
        return None
