"""Link: the two facts about a connection that ASGI does not tell an application, and a word when it ends.

It stands in `scope["extensions"]["spanbill"]` and is the same object for every request of a connection. Both
facts are set once and never taken back; reading them costs nothing, where a step of `receive()` costs 2 us.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

EXTENSION: Final = "spanbill"


class Link:
    """What is known of one connection.

    Attributes:
        gone: nothing can reach the caller any more.
        stalled: it was cut off because the caller did not read what was written; `gone` follows.
        on_gone: called once `gone` is true, by whoever serves the connection's running request.
    """

    __slots__ = ("gone", "on_gone", "stalled")

    def __init__(self) -> None:
        self.gone = False
        self.stalled = False
        self.on_gone: Callable[[], None] | None = None

    def end(self) -> None:
        """Note that nothing can reach the caller any more, and say so."""
        self.gone = True
        if self.on_gone is not None:
            self.on_gone()


class Wire:
    """The transport as a response sees it: closes with care, and counts what is written while that matters.

    Args:
        write, is_closing: of the transport.
        close: instead of the transport's own.
    """

    __slots__ = ("_write", "close", "is_closing", "write", "written")

    def __init__(
        self, write: Callable[[bytes], None], is_closing: Callable[[], bool], close: Callable[[], None]
    ) -> None:
        self._write = write
        self.write = write
        self.is_closing = is_closing
        self.close = close
        self.written = 0

    def count(self, written: int) -> None:
        """Count from here, beginning with `written`: what is on its way already."""
        self.written = written
        self.write = self._count

    def uncount(self) -> None:
        """Count no more: that costs a call for each write."""
        self.write = self._write

    def _count(self, data: bytes) -> None:
        self.written += len(data)
        self._write(data)
