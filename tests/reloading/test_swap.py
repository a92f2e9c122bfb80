"""A configuration is put in force wholly or not at all, and no request hears of it."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import weakref
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.admission.virtual_keys import KeyEntry
from gateway.core.exchange import Identity
from gateway.inforce import checked
from gateway.reloading import Source, stamp_of
from gateway.settings import SettingsError, load_settings
from tests.reloading.living import WAIT_S, Living, Pause, living

SWAPS = 6
CALLERS = 8
ADMIN = "an-operators-key-of-31-characters"
RULES = [{"id": "few", "user": "*", "requests_per_minute": 2}]


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("SPANBILL_"):
            monkeypatch.delenv(name)


def version(number: int) -> dict[str, Any]:
    """Return a configuration; where it sends `m` and what that costs tell which one it is."""
    own, other = ("sim-small", "sim-large") if number % 2 else ("sim-large", "sim-small")
    return {
        "routing": {"aliases": {"m": {"targets": [{"model": f"simulated/{own}"}]}}},
        "prices": {
            "overrides": {
                f"simulated/{own}": {"input": str(number), "output": str(number)},
                f"simulated/{other}": {"input": "1000", "output": "1000"},
            }
        },
    }


async def test_under_load_every_request_is_served_by_one_configuration_from_its_start_to_its_bill(
    tmp_path: Path,
) -> None:
    done = asyncio.Event()
    asked: list[str] = []

    async def call(gateway: Living, *, stream: bool) -> None:
        while not done.is_set():  # ends with the swaps
            status, answer, request_id = await gateway.ask(stream=stream)
            assert status == 200, answer
            asked.append(request_id)

    async with living(tmp_path, version(1)) as gateway:
        callers = [asyncio.create_task(call(gateway, stream=bool(n % 2))) for n in range(CALLERS)]
        for number in range(2, SWAPS + 2):
            seen = len(asked)
            gateway.write(version(number))
            await gateway.reload("taken")
            while len(asked) < seen + 2 * CALLERS:  # ends: all of them ask
                await asyncio.sleep(0.01)
                assert not any(caller.done() for caller in callers)
        done.set()
        await asyncio.gather(*callers)
    bills = gateway.bills()
    assert len(set(asked)) == len(asked)
    assert set(asked) == set(bills)
    rates = {rate_of(bill) for bill in bills.values()}
    assert rates == set(range(1, SWAPS + 2)), "each served some, and none was mixed with another"
    for bill in bills.values():
        assert bill["gen_ai.response.model"] == ("sim-small" if rate_of(bill) % 2 else "sim-large")


def rate_of(bill: dict[str, Any]) -> Decimal:
    tokens: int = bill["gen_ai.usage.input_tokens"] + bill["gen_ai.usage.output_tokens"]
    return Decimal(bill["billing.cost.usd"]) / tokens * 1_000_000


async def test_a_request_under_way_ends_with_the_price_and_the_key_that_it_began_with(tmp_path: Path) -> None:
    first = {**version(1), "routing": {"aliases": {"m": {"targets": [{"model": "simulated/sim-slow"}]}}}}
    first["prices"] = {"overrides": {"simulated/sim-slow": {"input": "3", "output": "3"}}}
    async with living(tmp_path, first) as gateway:
        pause = Pause("answer")
        asked = asyncio.create_task(gateway.ask(stream=True, max_tokens=30, pause=pause))
        await pause.reached.wait()
        await gateway.reload("taken")  # of the same file: a swap, too
        gateway.write({**version(2), "api_keys": "bob=sk-another-0001"})
        await gateway.reload("taken")
        under_way = not asked.done()
        pause.over.set()
        status, _, request_id = await asked
        assert status == 200
        assert (await gateway.ask())[0] == 401
        assert (await gateway.ask(key="sk-another-0001"))[0] == 200
    assert under_way, "it must have been under way at the swap"
    assert rate_of(gateway.bills()[request_id]) == 3


async def test_a_request_whose_body_comes_after_the_swap_is_served_by_what_it_began_with(
    tmp_path: Path,
) -> None:
    async with living(tmp_path, version(1)) as gateway:
        pause = Pause("body")
        asked = asyncio.create_task(gateway.ask(pause=pause))
        await pause.reached.wait()
        gateway.write({**version(2), "api_keys": "bob=sk-another-0001"})
        await gateway.reload("taken")
        pause.over.set()
        status, answer, request_id = await asked
        assert (status, answer["model"]) == (200, "sim-small")
    assert rate_of(gateway.bills()[request_id]) == 1


BAD = {
    "syntax": "api_keys: [",
    "unknown key": "routing: {alias: {}}",
    "option of the reader": "_env_file: 5",
    "wrong value": "prices: {unpriced: sometimes}",
    "alias to nowhere": "routing: {aliases: {m: {targets: [{model: nobody/nothing}]}}}",
    "alias to an alias": "routing: {aliases: {m: {targets: [{model: n}]}, n: {targets: [{model: m}]}}}",
    "bad price": "prices: {overrides: {simulated/sim-small: {input: '-1'}}}",
    "no catalogue": "prices: {catalog: not-there.yaml}",
    "one id twice": "limits: {rules: [{id: a, requests_per_minute: 1}, {id: a, requests_per_minute: 2}]}",
    "bad budget": "budgets: {definitions: [{id: b, scope: key, limit_usd: x, period: day}]}",
    "bad address": "providers: {mine: {base_url: 'ftp://x', models: [y]}}",
    "no key": "keys: [{id: k, user: u, key_env: NOT_SET_ANYWHERE}]",
    "not UTF-8": "\udcff",
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
async def test_a_bad_file_is_refused_in_one_line_and_the_old_one_stays(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with living(tmp_path, version(1)) as gateway:
        terms = gateway.app._inforce.terms
        gateway.file.write_bytes(text.encode(errors="surrogateescape"))
        with caplog.at_level(logging.INFO, "spanbill.config"):
            await gateway.reload("refused")
        (line,) = [record for record in caplog.records if record.name == "spanbill.config"]
        assert line.levelname == "ERROR"
        assert gateway.app._inforce.terms is terms
        assert "llm_gateway_config_usable 0.0" in (await gateway.get("/metrics"))[1]
        assert (await gateway.get("/ready"))[0] == 200
        assert (await gateway.ask())[1]["model"] == "sim-small"
        gateway.write(version(2))
        await gateway.reload("taken")
        assert "llm_gateway_config_usable 1.0" in (await gateway.get("/metrics"))[1]
        assert (await gateway.ask())[1]["model"] == "sim-large"


async def test_a_file_that_is_gone_is_a_mistake_and_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with living(tmp_path, version(1)) as gateway:
        gateway.file.unlink()
        await gateway.until("refused", 1)  # nobody asked: it was seen
        assert (await gateway.ask())[0] == 200
        gateway.write(version(2))
        await gateway.until("taken", 1)
        assert await gateway.count("refused") == 1
    assert "the file is gone" in caplog.text or "the file is gone" in str(
        [getattr(record, "why", "") for record in caplog.records]
    )


async def test_a_file_is_noticed_however_it_is_written(tmp_path: Path) -> None:
    async with living(tmp_path, version(1)) as gateway:
        before = gateway.file.stat()
        gateway.write(version(2))
        written = gateway.file.read_bytes()
        assert len(written) == before.st_size
        os.utime(gateway.file, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert gateway.file.stat().st_ino == before.st_ino
        await gateway.until("taken", 1)  # in its place, as large and as old as it was
        assert (await gateway.ask())[1]["model"] == "sim-large"
        gateway.write(version(3))
        new = gateway.file.rename(tmp_path / "new")
        gateway.file.write_bytes(written)
        os.replace(new, gateway.file)
        await gateway.until("taken", 2)  # in one step
        assert (await gateway.ask())[1]["model"] == "sim-small"
        gateway.write(version(5))
        gateway.write(version(4))
        await gateway.until("taken", 3)  # twice in no time
        assert (await gateway.ask())[1]["model"] == "sim-large"
        assert await gateway.count("refused") == 0


async def test_a_file_that_is_being_written_is_left_alone_until_it_stands_still(tmp_path: Path) -> None:
    path = tmp_path / "spanbill.yaml"
    path.write_text("demo: true\n")
    seen = stamp_of(path)
    source = Source(load_settings({}), lambda: load_settings({"SPANBILL_CONFIG": str(path)}), path, seen)
    looks = [source.settled()]
    for text in ("rou", "routing: {sel", "routing: {selector: random}"):
        path.write_text(text)
        looks.append(source.settled())
    assert looks == [False] * 4
    assert source.settled()
    assert source.read()[0].routing.selector == "random"
    assert [source.settled(), source.settled()] == [False, False], "it was read"
    path.write_text("routing: [")
    with pytest.raises(SettingsError):
        source.read()
    assert [source.settled(), source.settled()] == [False, False], "it was read and refused"
    path.unlink()
    assert [source.settled(), source.settled()] == [False, True]
    with pytest.raises(SettingsError):
        source.read()
    assert [source.settled(), source.settled()] == [False, False], "it is gone, and that was said"


def test_a_configuration_that_is_cut_anywhere_is_refused_or_is_one(tmp_path: Path) -> None:
    path = tmp_path / "spanbill.yaml"
    whole = yaml.safe_dump(
        {"api_keys": "alice=sk-test-0001", **version(1), "limits": {"rules": RULES}}
    ).encode()
    refused = 0
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        try:
            checked(load_settings({"SPANBILL_CONFIG": str(path)}), {})
        except SettingsError:
            refused += 1
    assert refused > len(whole) / 2


async def test_the_demo_key_holds_only_while_the_configuration_has_none(tmp_path: Path) -> None:
    demo = KeyEntry("sk-demo-0001", Identity(key_id="demo", user_id="demo", source="demo"))
    async with living(tmp_path, {**version(1), "api_keys": ""}, [demo]) as gateway:
        assert (await gateway.ask(key="sk-demo-0001"))[0] == 200
        gateway.write(version(1))
        await gateway.reload("taken")
        assert (await gateway.ask(key="sk-demo-0001"))[0] == 401
        assert (await gateway.ask())[0] == 200


async def test_a_configuration_lives_as_long_as_the_last_request_that_began_with_it(tmp_path: Path) -> None:
    slow = {"routing": {"aliases": {"m": {"targets": [{"model": "simulated/sim-slow"}]}}}}
    async with living(tmp_path, version(1)) as gateway:
        gateway.write(slow)
        await gateway.reload("taken")
        old = weakref.ref(gateway.app._inforce.terms.route.__self__)  # type: ignore[attr-defined]
        pause = Pause("answer")
        asked = asyncio.create_task(gateway.ask(stream=True, max_tokens=30, pause=pause))
        await pause.reached.wait()
        gateway.write(version(2))
        await gateway.reload("taken")
        gc.collect()
        held = old() is not None
        pause.over.set()
        assert (await asked)[0] == 200
        del asked
        gc.collect()
        assert old() is None
    assert held


async def test_a_changed_file_or_catalogue_is_seen_without_a_word(tmp_path: Path) -> None:
    catalogue = tmp_path / "own.yaml"
    catalogue.write_text(own_prices("7"))
    settings = {**version(1), "prices": {"catalog": str(catalogue)}}
    async with living(tmp_path, settings) as gateway:
        first = (await gateway.ask())[2]
        catalogue.write_text(own_prices("11"))
        await gateway.until("taken", 1)
        second = (await gateway.ask())[2]
        gateway.write({**version(2), "prices": settings["prices"]})
        await gateway.until("taken", 2)
        assert (await gateway.ask())[1]["model"] == "sim-large"
    bills = gateway.bills()
    assert [rate_of(bills[first]), rate_of(bills[second])] == [Decimal(7), Decimal(11)]


def own_prices(rate: str) -> str:
    model = f"{{id: sim-small, prices: [{{rates: {{input: {rate}, output: {rate}}}}}]}}"
    return f"format: spanbill-prices/1\nproviders: {{simulated: {{models: [{model}]}}}}\n"


async def test_keys_that_need_a_restart_are_named_and_otherwise_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with living(tmp_path, version(1)) as gateway:
        more = {"server": {"port": 1, "workers": 7}, "ledger": {"url": "sqlite:///other.db"}, "demo": False}
        gateway.write({**version(2), **more})
        await gateway.reload("taken")
        (line,) = [record for record in caplog.records if record.msg == "changed settings need a restart"]
        named = line.keys  # type: ignore[attr-defined]
        assert named == ["demo", "server.port", "server.workers", "ledger.url"]
        assert gateway.source.settings.server.port != 1
        assert (await gateway.ask())[1]["model"] == "sim-large", "the rest of it is in force"


async def test_limits_come_and_go_and_what_was_counted_stays(tmp_path: Path) -> None:
    async with living(tmp_path, version(1)) as gateway:
        assert (await gateway.get("/v1/key/limits"))[1]["data"] == []
        gateway.write({**version(1), "limits": {"rules": RULES}})
        await gateway.reload("taken")
        assert [(await gateway.ask())[0] for _ in range(3)] == [200, 200, 429]
        gateway.write({**version(1), "limits": {"rules": [{**RULES[0], "requests_per_minute": 3}]}})
        await gateway.reload("taken")
        assert [(await gateway.ask())[0] for _ in range(2)] == [200, 429], "two of three were used before"
        (told,) = (await gateway.get("/v1/key/limits"))[1]["data"]
        assert (told["id"], told["limit"], told["used"]) == (RULES[0]["id"], 3, 3)
        gateway.write(version(1))
        await gateway.reload("taken")
        assert (await gateway.ask())[0] == 200


async def test_a_store_of_limits_that_no_rule_needed_so_far_is_checked_before_one_does(
    tmp_path: Path,
) -> None:
    unusable = {"backend": "carrier-pigeon"}
    async with living(tmp_path, {**version(1), "limits": unusable}) as gateway:
        gateway.write({**version(2), "limits": {**unusable, "rules": [{"id": "few", "concurrent": 1}]}})
        await gateway.reload("refused")
        assert (await gateway.ask())[1]["model"] == "sim-small"


async def test_what_a_budget_has_spent_stays_spent(tmp_path: Path) -> None:
    def worth(answers: float) -> dict[str, Any]:
        limit = f"{answers * 30e-6 + 1e-6:.6f}"  # 30 tokens at a dollar per million
        budget = {"id": "some", "scope": "user", "limit_usd": limit, "period": "total"}
        return {**version(1), "admin": {"key": ADMIN}, "budgets": {"definitions": [budget]}}

    async def until_none_is_left(gateway: Living) -> int:
        count = 0
        while (status := (await gateway.ask(max_tokens=20))[0]) in (200, 503):  # ends: each one costs
            count += status == 200
            await asyncio.sleep(0.01 * (status == 503))  # until what was spent is known
        return count

    async with living(tmp_path, worth(40)) as gateway:
        first = await until_none_is_left(gateway)
        assert first > 4, first
        await gateway.reload("taken")
        assert await until_none_is_left(gateway) == 0, "it is the same budget"
        gateway.write(worth(80))
        await gateway.reload("taken")
        assert 0 < await until_none_is_left(gateway) < 1.5 * first, "what was spent counts against more, too"
        (told,) = (await gateway.get("/v1/budgets", ADMIN))[1]["data"]
        assert Decimal(told["limit_usd"]) == Decimal("0.002401"), "the operator sees the budget in force"


async def test_budgets_of_the_configuration_come_and_go(tmp_path: Path) -> None:
    budget = {"id": "none-left", "scope": "user", "limit_usd": "0.000001", "period": "day"}
    async with living(tmp_path, version(1)) as gateway:
        assert (await gateway.ask())[0] == 200
        gateway.write({**version(1), "budgets": {"definitions": [budget]}})
        await gateway.reload("taken")
        assert (await gateway.ask())[0] in (402, 429)
        gateway.write(version(1))
        await gateway.reload("taken")
        assert (await gateway.ask())[0] == 200


async def test_budgets_that_stand_in_the_database_stay_in_force(tmp_path: Path) -> None:
    budget = {"id": "none-left", "scope": "user", "payer": "*", "limit_usd": "0.000001", "period": "day"}
    async with living(tmp_path, {**version(1), "admin": {"key": ADMIN}}) as gateway:
        assert await gateway.post("/v1/budgets", budget, ADMIN) in (200, 201)
        async with asyncio.timeout(WAIT_S):
            while (await gateway.ask())[0] in (200, 503):  # noqa: ASYNC110 - what is waited for tells nobody
                await asyncio.sleep(0.01)
        await gateway.reload("taken")
        assert (await gateway.ask())[0] in (402, 429)


DEAD = {"base_url": "http://127.0.0.1:9/v1", "api_key": "sk-x", "models": ["mine-1"]}


def two_targets(**cooldown: int) -> dict[str, Any]:
    """Return a configuration with an alias whose first target cannot be reached."""
    targets = [{"model": "mine/mine-1"}, {"model": "simulated/sim-small"}]
    routing = {"aliases": {"m": {"targets": targets}}, "cooldown": cooldown}
    return {"routing": routing, "providers": {"mine": DEAD}}


async def test_what_is_known_of_targets_stays_unless_their_provider_is_another(tmp_path: Path) -> None:
    first = two_targets()

    async def known(gateway: Living) -> list[str]:
        return [one["id"] for one in (await gateway.get("/v1/providers"))[1]["data"] if one["targets"]]

    async with living(tmp_path, first) as gateway:
        assert (await gateway.ask())[0] == 200
        assert sorted(await known(gateway)) == ["mine", "simulated"]
        gateway.write({**first, "prices": {"unpriced": "serve"}})
        await gateway.reload("taken")
        assert sorted(await known(gateway)) == ["mine", "simulated"]
        gateway.write({**first, "providers": {"mine": {**DEAD, "api_key": "sk-y"}}})
        await gateway.reload("taken")
        assert await known(gateway) == ["simulated"]


async def test_targets_that_are_known_go_by_new_rules_of_cooldown(tmp_path: Path) -> None:
    first = two_targets(attempts_min=1000)

    async def state(gateway: Living) -> str:
        told = (await gateway.get("/v1/providers"))[1]["data"]
        (mine,) = next(one["targets"] for one in told if one["id"] == "mine")
        return str(mine["state"])

    async with living(tmp_path, first) as gateway:
        for _ in range(3):
            assert (await gateway.ask())[0] == 200
        assert await state(gateway) == "warm"
        gateway.write(two_targets(attempts_min=1))
        await gateway.reload("taken")
        assert (await gateway.ask())[0] == 200
        assert await state(gateway) == "cooling"


async def test_providers_models_and_the_policy_of_unpriced_are_taken_over_everywhere(tmp_path: Path) -> None:
    async with living(tmp_path, version(1)) as gateway:
        gateway.write(
            {
                "routing": {"aliases": {"other": {"targets": [{"model": "mine-1"}]}}},
                "providers": {"mine": DEAD},
                "prices": {"unpriced": "refuse"},
            }
        )
        await gateway.reload("taken")
        names = [model["id"] for model in (await gateway.get("/v1/models"))[1]["data"]]
        assert "other" in names
        assert "mine-1" in names
        assert "m" not in names
        assert "mine" in [one["id"] for one in (await gateway.get("/v1/providers"))[1]["data"]]
        assert (await gateway.ask("mine-1"))[0] == 402
        assert (await gateway.ask("m"))[0] == 404
