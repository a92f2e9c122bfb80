"""A parser for what follows a head that offered an upgrade, which the gateway ignores.

httptools has no way to tell its parser that. A new parser is therefore primed with a head of our own that
frames the body in the same way, and its callbacks are mute until then.
"""

from __future__ import annotations

from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class BehindUpgrade:
    """Callbacks that reach the protocol once the primer is through."""

    def __init__(self, protocol: HttpToolsProtocol) -> None:
        self._protocol = protocol
        self._mute = True
        self.on_body = protocol.on_body
        self.on_message_complete = protocol.on_message_complete

    def parser(self, framing: bytes | None) -> Any:
        """Return a parser that stands at the begin of the body, or of the next head if there is no body.

        Args:
            framing: the header that frames the body; None without a body.
        """
        parser = httptools.HttpRequestParser(self)
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        if framing is not None:
            parser.feed_data(b"POST / HTTP/1.1\r\n" + framing + b"\r\n\r\n")
        self._mute = False
        return parser

    def on_message_begin(self) -> None:
        """Pass on the begin of the next head."""
        if not self._mute:
            self._protocol.on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Pass on a part of the target."""
        if not self._mute:
            self._protocol.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Pass on a header."""
        if not self._mute:
            self._protocol.on_header(name, value)

    def on_headers_complete(self) -> None:
        """Pass on the end of a head."""
        if not self._mute:
            self._protocol.on_headers_complete()
