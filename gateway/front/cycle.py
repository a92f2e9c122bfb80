"""Cycle: one request and its answer, as uvicorn has it, with one more way to end a body: a fault.

A body that stops in the middle is refused by the application, in its protocol's envelope and with the ids of
the request; the front only says why, in the disconnect that it delivers.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from gateway.core.errors import SpanbillError


class Cycle(RequestResponseCycle):
    """A request being answered."""

    fault: SpanbillError | None = None
    """Why its body will never be complete."""

    async def run_asgi(self, app: Any) -> None:
        """Run as uvicorn does; that a request was told to stop is no fault, and its caller knows."""

        async def until_told(scope: Any, receive: Any, send: Any) -> None:
            try:
                await app(scope, receive, send)
            except asyncio.CancelledError:
                self.disconnected = True  # nothing more is sent
                self.transport.close()

        await super().run_asgi(until_told)

    async def receive(self) -> Any:
        """Return the next part of the body, or a disconnect that may carry a `fault`."""
        if self.waiting_for_100_continue and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.waiting_for_100_continue = False
        if not self.disconnected and not self.response_complete and self.fault is None:
            self.flow.resume_reading()
            await self.message_event.wait()
            self.message_event.clear()
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        if self.fault is not None:
            return {"type": "http.disconnect", "fault": self.fault}
        body = bytes(self.body)
        self.body = bytearray()
        return {"type": "http.request", "body": body, "more_body": self.more_body}


class Flow(FlowControl):
    """Flow control that stays paused while requests wait: their number and bodies are then bounded.

    A running response resumes reading whenever it looks for a disconnect; behind it the next requests would
    gather without limit.
    """

    held = False

    def resume_reading(self) -> None:
        """Read on, unless held."""
        if not self.held:
            super().resume_reading()
