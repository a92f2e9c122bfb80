"""Guards: asked in order; what was given out is given back where one of them refuses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest

from gateway.admission.guards import NOTHING_HELD, Aim, Guards
from gateway.core.errors import CallerError
from gateway.core.exchange import Call, Exchange

CALL = cast(Call, object())
EXCHANGE = cast(Exchange, object())


class Taken:
    def __init__(self, name: str, story: list[str]) -> None:
        self.headers = [(b"x-limit", name.encode())]
        self._name, self._story = name, story

    def settle(self, exchange: Exchange) -> None:
        assert exchange is EXCHANGE
        self._story.append(f"settle {self._name}")

    def release(self) -> None:
        self._story.append(f"release {self._name}")


class Lets:
    def __init__(self, name: str, story: list[str], fault: Exception | None = None) -> None:
        self._name, self._story, self._fault = name, story, fault

    async def admit(self, call: Call, aims: Sequence[Aim]) -> Any:
        self._story.append(f"ask {self._name}")
        if self._fault is not None:
            raise self._fault
        return Taken(self._name, self._story)


async def test_no_guard_holds_nothing() -> None:
    assert await Guards(()).admit(CALL, ()) is NOTHING_HELD


async def test_each_hold_is_settled_with_the_bill_and_told_in_headers() -> None:
    story: list[str] = []
    hold = await Guards([Lets("a", story), Lets("b", story)]).admit(CALL, ())
    assert hold.headers == [(b"x-limit", b"a"), (b"x-limit", b"b")]
    hold.settle(EXCHANGE)
    assert story == ["ask a", "ask b", "settle a", "settle b"]


async def test_a_refusal_gives_back_what_the_first_ones_gave_out_and_tells_their_headers() -> None:
    story: list[str] = []
    refusal = CallerError("no_more", "no more", status=429)
    refusal.headers = ((b"x-own", b"1"),)
    with pytest.raises(CallerError) as refused:
        await Guards([Lets("a", story), Lets("b", story, refusal), Lets("c", story)]).admit(CALL, ())
    assert story == ["ask a", "ask b", "release a"]
    assert refused.value.headers == ((b"x-limit", b"a"), (b"x-own", b"1"))


async def test_whatever_breaks_a_guard_what_was_given_out_is_given_back() -> None:
    story: list[str] = []
    with pytest.raises(ZeroDivisionError):
        await Guards([Lets("a", story), Lets("b", story, ZeroDivisionError())]).admit(CALL, ())
    assert story[-1] == "release a"
