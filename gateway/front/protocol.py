"""FrontProtocol: what is read from a connection, bounded, and each request started in its turn.

Of uvicorn's protocol on httptools, the callbacks are replaced as a whole: each runs once per request or per
header, and adds no more than a comparison to what uvicorn does there.
"""

from __future__ import annotations

import asyncio
import time
import urllib.parse
from collections.abc import Callable
from typing import Any, NoReturn

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT

from gateway.api.correlation import Ids
from gateway.api.inference import Refusal
from gateway.core.errors import GatewayFault, SpanbillError
from gateway.front.bounds import CHUNK_OVERHEAD_BYTES_MAX, DISCARD_BYTES_MAX, FrontBounds
from gateway.front.connection import RETRY_AFTER_S, Connection, Front
from gateway.front.cycle import Cycle
from gateway.front.head import (
    CONTENT_LENGTH,
    EXPECT,
    FRAMING,
    HOST,
    ONCE,
    SPECIAL,
    TRANSFER_ENCODING,
    UPGRADE,
    bad,
    check_framing,
    check_head,
    check_host,
    head_bytes,
)
from gateway.front.upgrade import BehindUpgrade
from gateway.front.watch import Watch


class FrontProtocol(Connection):
    """One connection and the requests on it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._fault: SpanbillError | None = None  # raised inside a callback of the parser
        self._upgraded = False
        self._seen = 0  # bits of SPECIAL in this head
        self._host: bytes | None = None  # the last one found valid
        self._target: bytes | None = None  # the last one found valid, and its parts
        self._path = ""
        self._raw_path = self._query = b""
        self._head_from = 0  # `_received` where this head began, up to one read
        self._body_from = 0
        self._body_bytes = 0
        self._discard_from = 0

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        if self._closing:
            return
        self._received += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as told:
            self._ignore_upgrade(data, told)
        except httptools.HttpParserError as wrong:
            self._refuse_unparsed(wrong)
        if self._head_open:
            if self._received - self._head_from > self._bounds.head_bytes_max:
                self._refuse(self._head_too_large())
        else:
            self._bound_body()

    def _bound_body(self) -> None:
        overhead = self._received - self._body_from - 9 * self._body_bytes
        if overhead > CHUNK_OVERHEAD_BYTES_MAX and self._seen & TRANSFER_ENCODING:
            self._refuse(bad("invalid_chunks", "the body has more chunk framing than content"))
        elif self._running is None and self._received - self._discard_from > DISCARD_BYTES_MAX:
            self._finish()

    def _refuse_unparsed(self, wrong: Exception) -> None:
        fault, self._fault = self._fault, None
        self._refuse(fault or bad("invalid_http", f"the request is not valid HTTP/1.1: {wrong}"))

    def _head_too_large(self) -> SpanbillError:
        if self._begun and not self.headers and len(self.url) > self._bounds.target_bytes_max:
            return bad(
                "target_too_long", f"the target is longer than {self._bounds.target_bytes_max} bytes", 414
            )
        return bad("headers_too_large", f"the head is larger than {self._bounds.head_bytes_max} bytes", 431)

    def _ignore_upgrade(self, data: bytes, told: Exception) -> None:
        """Serve a request that offers an upgrade as if it did not, body included.

        The parser stops at such a head and would take the body for the next request. Java's own client offers
        h2c with every first request.
        """
        for _ in range(self._bounds.pipelined_max + 2):  # each round starts a request, and no more can wait
            data = data[int(told.args[0]) :]
            self._upgraded = False
            self.parser = BehindUpgrade(self).parser(self._framing())
            if not self._seen & FRAMING:
                self.on_message_complete()
            if not data:
                return
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as again:
                told = again
            except httptools.HttpParserError as wrong:
                self._refuse_unparsed(wrong)
                return
        self._refuse(self._too_many_waiting())

    def _framing(self) -> bytes | None:
        """Return the header that frames the body of the latest head; None if it has none."""
        if self._seen & TRANSFER_ENCODING:
            return b"transfer-encoding: chunked"
        if self._seen & CONTENT_LENGTH:
            return b"content-length: " + dict(self.headers)[b"content-length"]
        return None

    def _fail(self, error: SpanbillError) -> NoReturn:
        """Refuse from inside a callback of the parser, which passes no exception on."""
        self._fault = error
        raise error

    # callbacks of the parser

    def on_message_begin(self) -> None:
        """Note the first byte of a head."""
        self.url = b""
        self.expect_100_continue = False
        self.headers = []
        self._seen = 0
        self._begun = True
        if self.cycle is not None:  # the first head's time runs from the connection's start
            self._since = self._watch.now

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note one header; a trailer is refused, because some parties take it for a header."""
        if not self._head_open:
            self._fail(bad("trailers_refused", "the body has trailers; the gateway takes none"))
        name = name.lower()
        bit = SPECIAL.get(name)
        if bit is not None:
            self._on_special(bit, value)
        self.headers.append((name, value))

    def _on_special(self, bit: int, value: bytes) -> None:
        if self._seen & bit & ONCE:
            self._fail(bad("duplicate_header", "host and framing headers may stand only once"))
        self._seen |= bit
        if value == self._host and bit == HOST:
            return
        try:
            if bit == HOST:
                check_host(value)
                self._host = value
            elif bit & FRAMING:
                check_framing(bit, value)
            elif bit == EXPECT and value.lower() == b"100-continue":
                self.expect_100_continue = True
        except SpanbillError as error:
            self._fail(error)

    def on_headers_complete(self) -> None:
        """Check the head and start the request, or let it wait for the answers before it."""
        parser, bounds = self.parser, self._bounds
        method, version = parser.get_method(), parser.get_http_version()
        if (
            self.url != self._target
            or version != "1.1"
            or not self._seen & HOST
            or len(self.headers) > bounds.headers_max
            or method == b"CONNECT"
        ):
            self._check_new_head(method, version)
        if (
            self._received - self._head_from > bounds.head_bytes_max
            and head_bytes(self.url, self.headers) > bounds.head_bytes_max
        ):
            self._fail(self._head_too_large())
        if self._running is not None and len(self.pipeline) >= bounds.pipelined_max:
            self._fail(self._too_many_waiting())
        if self._seen & UPGRADE:
            self._upgraded = parser.should_upgrade()
        cycle = self._new_cycle(method, version)
        self._head_open = False
        self._begun = False
        self._since = self._watch.now
        self._body_from = self._received
        self._body_bytes = 0
        self.cycle = cycle
        if self._running is None:
            self._start(cycle)
        else:
            self.pipeline.appendleft((cycle, self.app))
            self._hold_flow()

    def _check_new_head(self, method: bytes, version: str) -> None:
        """Check a head that is not like the last one, and keep the parts of its target."""
        try:
            check_head(method, self.url, version, self._seen, self.headers, self._bounds)
        except SpanbillError as error:
            self._fail(error)
        raw_path, _, query = self.url.partition(b"?")
        path = raw_path.decode("ascii")
        self._path = self.root_path + (urllib.parse.unquote(path) if "%" in path else path)
        self._raw_path = self.root_path.encode("ascii") + raw_path
        self._query = query
        self._target = self.url

    def _new_cycle(self, method: bytes, version: str) -> Cycle:
        self.scope = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": version,
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme or "http",
            "method": method.decode("ascii"),
            "root_path": self.root_path,
            "path": self._path,
            "raw_path": self._raw_path,
            "query_string": self._query,
            "headers": self.headers,
            "state": self.app_state.copy(),
            "extensions": self._extensions,  # type: ignore[typeddict-item]  # values are dicts by the letter
        }
        return Cycle(
            scope=self.scope,
            transport=self._wire,  # type: ignore[arg-type]  # the three methods that it uses
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=version != "1.0" and self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )

    def _start(self, cycle: Cycle) -> None:
        self._running = cycle
        if self._stopping:
            cycle.keep_alive = False
        task = self.loop.create_task(cycle.run_asgi(self.app))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def _too_many_waiting(self) -> SpanbillError:
        return GatewayFault(
            "too_many_pipelined",
            f"more than {self._bounds.pipelined_max} requests wait on this connection; send it again",
            status=503,
            retry_after_s=RETRY_AFTER_S,
        )

    def on_body(self, body: bytes) -> None:
        """Hand on a part of a body; nobody wants it any more once its request was answered."""
        cycle = self.cycle
        self._body_bytes += len(body)
        if cycle.response_complete:
            return
        cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        """Note the end of a body."""
        if self._upgraded:
            return  # the parser thinks so; the body is still to come
        self._head_open = True
        self._head_from = self._received
        cycle = self.cycle
        if cycle.response_complete:
            self._since = self._watch.now
            return
        cycle.more_body = False
        cycle.message_event.set()

    def on_response_complete(self) -> None:
        """Go on with the next request that waits, or with the refusal of one."""
        self.server_state.total_requests += 1
        self._running = None
        if self._lingering or self.transport.is_closing():
            return
        self._since = self._watch.now
        if self.pipeline:
            cycle, _ = self.pipeline.pop()
            if not self.pipeline and self._pending is None:
                self._release_flow()
            self._start(cycle)  # type: ignore[arg-type]  # only ours are made
        elif self._pending is not None:
            self._answer(self._pending)
        elif not self._head_open and self.expect_100_continue:
            self._finish()  # whether its body follows or the next request, nobody can say
        else:
            self._discard_from = self._received
            self.flow.resume_reading()


def front_protocol(
    bounds: FrontBounds,
    *,
    ids: Ids,
    refused: Callable[[Refusal], None],
    clock: Callable[[], float] = time.monotonic,
    now_ns: Callable[[], int] = time.time_ns,
) -> type[FrontProtocol]:
    """Return the class for `uvicorn.Config(http=…)`.

    Args:
        refused: told of each request that the front answers itself.
        clock: seconds, monotonic, for deadlines.
        now_ns: Unix nanoseconds, for the log.
    """
    front = Front(bounds=bounds, watch=Watch(bounds.timer_s, clock), ids=ids, refused=refused, now_ns=now_ns)
    return type("BoundFrontProtocol", (FrontProtocol,), {"front": front})
