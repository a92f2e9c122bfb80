"""Guards: what stands between an admitted request and its provider: limits, budgets.

Each guard lets a request in and hands out a hold on what it occupies, a place or money, which ends exactly
once: settled with the request's bill, or released because there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol as Interface

from gateway.core.errors import SpanbillError
from gateway.core.exchange import Call, Exchange

Header = tuple[bytes, bytes]


class Aim(Interface):
    """A target that may serve a request."""

    @property
    def provider(self) -> str:
        """Name of the provider."""
        ...

    @property
    def model(self) -> str:
        """The model's name there."""
        ...

    @property
    def prices(self) -> str:
        """Section of the price catalogue."""
        ...


class Hold(Interface):
    """What one request occupies: one of `settle` and `release` is called, once, and neither raises."""

    headers: Sequence[Header]
    """What the caller is told of it, on its reply."""

    def settle(self, exchange: Exchange) -> None:
        """Give back what the bill shows not to be used, and count the rest; the bill is in the journal."""
        ...

    def release(self) -> None:
        """Give all of it back: no provider was called, and there is no bill."""
        ...


class Guard(Interface):
    """One of the things that may refuse a request."""

    async def admit(self, call: Call, aims: Sequence[Aim]) -> Hold:
        """Let a request in; quick, and awaiting nothing in the usual case.

        Raises:
            CallerError: 402 or 429, with `retry_after_s` where waiting helps, and headers.
            GatewayFault: 503, what must be asked is away, and the operator wants none in then.
        """
        ...


class Holds:
    """The holds of one request as one."""

    __slots__ = ("_holds", "headers")

    def __init__(self, holds: Sequence[Hold]) -> None:
        self._holds = holds
        self.headers: Sequence[Header] = [header for hold in holds for header in hold.headers]

    def settle(self, exchange: Exchange) -> None:
        """Settle each."""
        for hold in self._holds:
            hold.settle(exchange)

    def release(self) -> None:
        """Release each."""
        for hold in self._holds:
            hold.release()


NOTHING_HELD = Holds(())


class Guards:
    """Several guards as one, asked in order: what the first ones gave out is given back where one refuses."""

    __slots__ = ("_guards",)

    def __init__(self, guards: Sequence[Guard]) -> None:
        self._guards = tuple(guards)

    async def admit(self, call: Call, aims: Sequence[Aim]) -> Hold:
        """See `Guard.admit`."""
        if not self._guards:
            return NOTHING_HELD
        holds: list[Hold] = []
        try:
            for guard in self._guards:
                holds.append(await guard.admit(call, aims))  # noqa: PERF401 - what was given out must be known
        except BaseException as fault:
            held = Holds(holds)
            held.release()
            if isinstance(fault, SpanbillError):
                fault.headers = (*held.headers, *fault.headers)
            raise
        return Holds(holds)
