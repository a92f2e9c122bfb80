"""Limits: a guard that lets a request in where each of its counters has room, and says when there will be.

Tokens are reserved at admission, the estimated input and as much output as was asked for, and corrected with
the bill. What asks for more than a limit by itself is told so, and told not to try again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import Final, Literal

from gateway.admission.guards import NOTHING_HELD, Aim, Hold
from gateway.admission.limit_headers import Header, limit_headers
from gateway.admission.limit_rules import Match, RuleBook, charges_of, tokens_asked
from gateway.core.errors import CallerError, GatewayFault
from gateway.core.exchange import Call, Exchange, Identity
from gateway.limits.desk import Desk
from gateway.limits.store import COUNT_MAX, Answer, Ask, Away, Charge, Settle, Standing
from gateway.limits.window import NEVER

AGAIN_S: Final = 1
"""When to try again while counters cannot be asked and the operator wants none in."""
_PER: Final = {"requests": "requests per minute", "tokens": "tokens per minute", "concurrent": "at a time"}


class Uncounted:
    """How many were let in while counters could not be asked."""

    __slots__ = ("number",)

    def __init__(self) -> None:
        self.number = 0


class LimitGuard:
    """The limits of one gateway.

    Args:
        desk: where counters are.
        when_unavailable: what becomes of requests while it does not answer.
        input_tokens: estimates a request's input.
        assumed_output_tokens: of a request that names no maximum.
        limited: told of each refusal: (rule, unit).
        now_unix_ms: wall clock, for headers.
    """

    def __init__(
        self,
        book: RuleBook,
        desk: Desk,
        *,
        when_unavailable: Literal["open", "closed"],
        input_tokens: Callable[[Call], int],
        assumed_output_tokens: int,
        limited: Callable[[str, str], None],
        now_unix_ms: Callable[[], int],
    ) -> None:
        self._book = book
        self._desk = desk
        self._open = when_unavailable == "open"
        self._input_tokens = input_tokens
        self._assumed_output_tokens = assumed_output_tokens
        self._limited = limited
        self._now_unix_ms = now_unix_ms
        self._uncounted = Uncounted()

    @property
    def uncounted(self) -> int:
        """How many were let in while counters could not be asked, under these rules and those before."""
        return self._uncounted.number

    def under(self, book: RuleBook, assumed_output_tokens: int) -> LimitGuard:
        """Return a guard with other rules and the same counters."""
        other = copy(self)
        other._book = book
        other._assumed_output_tokens = assumed_output_tokens
        return other

    async def admit(self, call: Call, aims: Sequence[Aim]) -> Hold:
        """Let a request in; see `gateway.admission.guards.Guard`.

        Raises:
            CallerError: 429 `rate_limit_exceeded`.
            GatewayFault: 503 `limits_unavailable`.
        """
        first = aims[0]
        matches = self._book.matches(call.identity, call.model, first.provider, first.model)
        if not matches:
            return NOTHING_HELD
        tokens = 0
        if any(match.unit == "tokens" for match in matches):
            tokens = tokens_asked(call, self._input_tokens(call), self._assumed_output_tokens)
        charges = charges_of(matches, tokens)
        try:
            answer = await self._desk.ask(Ask(request_id=call.record_id, charges=charges))
        except Away as fault:
            if self._open:
                self._uncounted.number += 1
                return NOTHING_HELD
            raise GatewayFault(
                "limits_unavailable",
                "the gateway cannot count requests at the moment, and lets none in uncounted; send it again",
                status=503,
                retry_after_s=AGAIN_S,
            ) from fault
        headers = limit_headers(
            charges,
            answer.standings,
            anthropic=call.protocol == "messages",
            now_unix_ms=self._now_unix_ms(),
        )
        if not answer.admitted:
            raise self._refusal(matches, charges, answer, headers)
        return _Hold(self._desk, call.record_id, charges, headers)

    async def standing(self, identity: Identity) -> list[tuple[Match, Standing]]:
        """Return how the counters stand that hold for somebody whatever the model.

        Raises:
            Away: they cannot be asked.
        """
        matches = self._book.matches_of(identity)
        if not matches:
            return []
        return list(zip(matches, await self._desk.look(charges_of(matches, 0)), strict=True))

    def _refusal(
        self, matches: Sequence[Match], charges: Sequence[Charge], answer: Answer, headers: list[Header]
    ) -> CallerError:
        """Return what the caller is told: of several limits that have no room, the one that takes longest."""
        match, charge, standing = max(
            zip(matches, charges, answer.standings, strict=True), key=lambda found: _longest(found[2])
        )
        self._limited(match.rule, match.unit)
        if standing.wait_ms == NEVER:
            message = (
                f"the request asks for {charge.units} tokens with its input and the output that it allows, "
                f"and limit {match.rule} is {charge.limit} per minute; lower that maximum, or send less"
            )
            headers = [*headers, (b"x-should-retry", b"false")]
            retry_after_s = None
        else:
            retry_after_s = max(1, -(-standing.wait_ms // 1000))
            message = (
                f"limit {match.rule} is {charge.limit} {_PER[match.unit]}; try again in {retry_after_s} s"
            )
        refusal = CallerError("rate_limit_exceeded", message, status=429, retry_after_s=retry_after_s)
        refusal.kind = "tokens" if match.unit == "tokens" else "requests"
        refusal.headers = tuple(headers)
        return refusal


def _longest(standing: Standing) -> float:
    return float("inf") if standing.wait_ms == NEVER else standing.wait_ms


class _Hold:
    """What one request has of its counters."""

    __slots__ = ("_charges", "_desk", "_request_id", "headers")

    def __init__(
        self, desk: Desk, request_id: str, charges: tuple[Charge, ...], headers: list[Header]
    ) -> None:
        self._desk = desk
        self._request_id = request_id
        self._charges = charges
        self.headers: Sequence[Header] = headers

    def settle(self, exchange: Exchange) -> None:
        """Leave the places, and correct the tokens to those of the bill; the request stays counted."""
        self._end(
            [
                _tokens(exchange, charge.units) if charge.unit == "tokens" else charge.units
                for charge in self._charges
            ]
        )

    def release(self) -> None:
        """Give all of it back."""
        self._end([0 for _ in self._charges])

    def _end(self, used: Sequence[int]) -> None:
        self._desk.settle(Settle(request_id=self._request_id, charges=self._charges, used=tuple(used)))


def _tokens(exchange: Exchange, reserved: int) -> int:
    """Return the tokens of a bill; what nobody knows stays as it was reserved."""
    usage = exchange.reply.usage
    if usage is None:
        return 0 if exchange.status == "final" else reserved
    known = [usage.counts[side] for side in exchange.call.sides if side in usage.counts]
    if len(known) < len(exchange.call.sides):
        return max(sum(known), reserved)
    return min(sum(known), COUNT_MAX)
