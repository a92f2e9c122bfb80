"""Gate: whether new requests are let in, and how many are inside; a gateway that stops closes it first."""

from __future__ import annotations

from typing import Final

from gateway.core.errors import GatewayFault

RETRY_AFTER_S: Final = 1


class Gate:
    """The gate of one process."""

    __slots__ = ("closed", "inside")

    def __init__(self) -> None:
        self.closed = False
        self.inside = 0

    def enter(self) -> None:
        """Let one request in; it must `leave`.

        Raises:
            GatewayFault: 503, the gateway is stopping.
        """
        if self.closed:
            raise stopping()
        self.inside += 1

    def leave(self) -> None:
        """Note the end of one request that was let in."""
        self.inside -= 1


def stopping() -> GatewayFault:
    """Return what a caller is told by a gateway that stops."""
    return GatewayFault(
        "shutting_down",
        "the gateway is stopping; send the request again",
        status=503,
        retry_after_s=RETRY_AFTER_S,
    )
