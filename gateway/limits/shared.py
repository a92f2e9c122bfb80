"""Shared: the counters of several machines, in a Redis or Valkey; the clock is the server's own.

The clocks of the machines may differ, and each would have its own idea of the last minute; the server's time
is one for all. Every key has the same hash tag, so that a script may touch them together on a cluster, too.
All of a round goes out in one piece over one connection; a script that is not known there is loaded.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, Final

from redis import ConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError
from redis.retry import Retry

from gateway.limits import lua
from gateway.limits.store import Answer, Ask, Away, Charge, Settle, Standing

PREFIX: Final = "spanbill:{limits}:"
CONNECT_S: Final = 1.0
REPLY_S: Final = 2.0
"""How long one read or write may take; callers wait less, and are told that the store is away."""
SCHEMES: Final = ("redis", "rediss", "unix", "valkey", "valkeys")
_SCRIPTS: Final = {
    script: hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest().encode()
    for script in (lua.ASK, lua.SETTLE, lua.BEAT, lua.LOOK)
}

Command = tuple[Any, ...]


class RedisLimits:
    """Counters in a Redis or Valkey, 6 or newer.

    Args:
        url: as redis-py takes it; `valkey://` means the same as `redis://`.
        lease_ms: see `gateway.limits.store`.
        now_ms: instead of the server's clock, for tests: "" asks the server.

    Raises:
        ValueError: the address cannot be used; the message does not repeat it.
    """

    def __init__(self, url: str, lease_ms: int, now_ms: Any = lambda: "") -> None:
        self._lease_ms = lease_ms
        self._now_ms = now_ms
        try:
            pool = ConnectionPool.from_url(
                url.replace("valkey", "redis", 1) if url.startswith("valkey") else url,
                socket_connect_timeout=CONNECT_S,
                socket_timeout=REPLY_S,
                retry=Retry(NoBackoff(), 0),
                client_name="spanbill",
            )
            self._connection: Any = pool.make_connection()
        except (ValueError, TypeError, AttributeError) as fault:
            raise ValueError("it is no address of a Redis or Valkey") from fault
        self._connected = False

    def run(
        self, settles: Sequence[Settle], beats: Sequence[tuple[str, tuple[str, ...]]], asks: Sequence[Ask]
    ) -> list[Answer]:
        """See `SharedStore.run`."""
        commands: list[Command] = [("PING",)]  # so that an empty round asks something, too
        for settle in settles:
            figures = [
                (charge.unit, charge.units, used)
                for charge, used in zip(settle.charges, settle.used, strict=True)
            ]
            commands.append(self._call(lua.SETTLE, settle.request_id, _keys(settle.charges), figures))
        for request_id, keys in beats:
            commands.append(self._call(lua.BEAT, request_id, keys, []))
        commands += [
            self._call(lua.ASK, ask.request_id, _keys(ask.charges), _figures(ask.charges)) for ask in asks
        ]
        replies = self._round(commands)
        return [_answer(reply) for reply in replies[len(commands) - len(asks) :]]

    def look(self, charges: Sequence[Charge]) -> list[Standing]:
        """See `SharedStore.look`."""
        reply = self._round([self._call(lua.LOOK, "", _keys(charges), _figures(charges))])[0]
        return list(_answer(reply).standings)

    def close(self) -> None:
        """Hang up."""
        self._connected = False
        with contextlib.suppress(RedisError, OSError):
            self._connection.disconnect()

    def _call(self, script: str, request_id: str, keys: Iterable[str], figures: Iterable[Command]) -> Command:
        names = [f"{PREFIX}request:{request_id}", *[PREFIX + key for key in keys]]
        head = ("EVALSHA", _SCRIPTS[script], len(names), *names, self._now_ms(), self._lease_ms, request_id)
        return (*head, *[value for triple in figures for value in triple])

    def _round(self, commands: list[Command]) -> list[Any]:
        """Send all at once and read the replies.

        A server that has forgotten the scripts is told them, and asked once more: what was done is known by
        its request's id, and not done twice.

        Raises:
            Away: no connection, no reply in time, or a refusal.
        """
        try:
            if not self._connected:
                self._connection.connect()
                self._exchange([("SCRIPT", "LOAD", script) for script in _SCRIPTS])
                self._connected = True
            try:
                return self._exchange(commands)
            except NoScriptError:
                self._exchange([("SCRIPT", "LOAD", script) for script in _SCRIPTS])
                return self._exchange(commands)
        except (RedisError, OSError) as fault:
            self.close()
            raise Away(f"{type(fault).__name__}: {fault}"[:200]) from fault

    def _exchange(self, commands: list[Command]) -> list[Any]:
        connection = self._connection
        connection.send_packed_command(connection.pack_commands(commands), check_health=False)
        replies: list[Any] = []
        refusal: RedisError | None = None
        for _ in commands:  # each has a reply, which must be read whatever the others say
            try:
                replies.append(connection.read_response())
            except NoScriptError as fault:
                refusal = refusal or fault
        if refusal is not None:
            raise refusal
        return replies


def _keys(charges: Iterable[Charge]) -> list[str]:
    return [charge.key for charge in charges]


def _figures(charges: Iterable[Charge]) -> list[Command]:
    return [(charge.unit, charge.units, charge.limit) for charge in charges]


def _answer(reply: Sequence[int]) -> Answer:
    figures = [int(figure) for figure in reply]
    standings = [Standing(*figures[at : at + 3]) for at in range(1, len(figures), 3)]
    return Answer(bool(figures[0]), tuple(standings))
