"""The inference doors: one pure ASGI application in front of FastAPI, generic over protocols.

No body models, no middleware, no dependency injection: a door reads the body, asks the protocol for the
facts, admits, routes, and hands over to the story in `gateway.pipeline`. Every refusal leaves in the
protocol's own envelope with the correlation ids, and without a provider having been called.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from gateway.admission.gate import Gate, stopping
from gateway.admission.guards import NOTHING_HELD
from gateway.api.correlation import Correlation, Ids, begin
from gateway.api.terms import InForce, Terms
from gateway.capture.capture import Capture, Captures
from gateway.core.errors import CallerError, CannotStartError, GatewayFault, SpanbillError
from gateway.core.exchange import Call, Identity
from gateway.metering.settle import FAILED, INTERRUPTED, Ending
from gateway.pipeline import Serving
from gateway.protocols.base import Protocol
from gateway.release.relay import Caller, Receive, Send
from gateway.stages import Admitted, translated
from otel.traces import Traces

log = logging.getLogger("spanbill.inference")

Header = tuple[bytes, bytes]
BODY_PARTS_MAX: Final = 1_000_000
"""Reads of one request body: more than this many pieces is an attack, not an upload."""
TELL_S: Final = 0.25
"""How long a caller may take to hear that its request was told to stop; it may not be reading."""


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """A request that was answered by the gateway itself; told to logs, metrics and the SERVER span.

    Args:
        identity: whose key it came with, None if that is not known.
    """

    correlation: Correlation
    path: str
    status: int
    code: str
    started_unix_ns: int
    latency_ns: int
    identity: Identity | None = None


class Doors:
    """ASGI application for the paths in `protocols`; everything else goes to `behind`.

    Args:
        behind: the FastAPI application.
        inforce: what the configuration says of requests; each one keeps to what it began with.
        captures: chooses requests whose content is kept; None where nobody may.
        refused: told of each refusal.
        served: told of each exchange's correlation and scope for the SERVER span, after its end.

    Attributes:
        start_fault: why the gateway could not start, for the operator.
        reload: has the configuration read again; None where it stands in no file.
    """

    def __init__(
        self,
        *,
        behind: Callable[..., Any],
        protocols: Mapping[str, Protocol],
        inforce: InForce,
        ids: Ids,
        traces: Traces,
        body_bytes_max: int,
        gate: Gate,
        refused: Callable[[Refusal], None],
        served: Callable[[Mapping[str, Any], Correlation, int, int, int], None],
        captures: Captures | None = None,
    ) -> None:
        self._behind = behind
        self._protocols = dict(protocols)
        self._inforce = inforce
        self._ids = ids
        self.gate = gate
        self.start_fault: str | None = None
        self.reload: Callable[[], None] | None = None
        self._traces = traces
        self._body_bytes_max = body_bytes_max
        self._captures = captures
        self._refused = refused
        self._served = served
        self._names = {path: f"POST {path}" for path in protocols}

    @property
    def ids(self) -> Ids:
        """Where this gateway's ids come from, for whoever answers in front of it."""
        return self._ids

    @property
    def refused(self) -> Callable[[Refusal], None]:
        """What is told of each refusal, for whoever refuses in front of it."""
        return self._refused

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
            return
        if scope["type"] == "http":
            protocol = self._protocols.get(scope["path"])
            if protocol is not None:
                await self._serve(protocol, scope, receive, send)
                return
        await self._behind(scope, receive, send)

    async def _live(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Pass the lifespan on; that the gateway cannot start is kept as one line, and is no traceback."""
        withheld: dict[str, Any] | None = None

        async def told(message: dict[str, Any]) -> None:
            nonlocal withheld
            if message["type"] == "lifespan.startup.failed":
                withheld = message
            else:
                await send(message)

        try:
            await self._behind(scope, receive, told)
        except CannotStartError as fault:
            self.start_fault = str(fault)
            await send({"type": "lifespan.startup.failed", "message": ""})
        except BaseException:
            if withheld is not None:
                await send(withheld)
            raise

    async def _serve(self, protocol: Protocol, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        terms = self._inforce.terms
        stages = terms.stages
        started_ns, started_unix_ns = stages.monotonic_ns(), stages.now_ns()
        headers: list[Header] = scope["headers"]
        correlation = begin(headers, self._ids, self._traces, self._names[protocol.path])
        caller = Caller(receive, send, scope.get("extensions", {}).get("spanbill"))
        admitted: Admitted | None = None
        serving: Serving | None = None
        capture: Capture | None = None
        try:
            admitted = await self._admit(
                terms, protocol, scope, receive, correlation, started_ns, started_unix_ns
            )
            if self._captures is not None and (capture := self._captures.begin(admitted, caller)) is not None:
                stages, admitted = capture.over(stages, admitted)
            self.gate.enter()
            serving = Serving(stages, admitted, caller)
            await serving.serve()
        except SpanbillError as error:
            if admitted is not None:
                error.headers = (*admitted.hold.headers, *error.headers)
            who = _payer(terms, headers)
            await self._refuse(
                protocol, caller, correlation, error, serving, started_ns, started_unix_ns, who
            )
        except asyncio.CancelledError:
            self._abandon(serving, INTERRUPTED)
            await self._tell_stopping(protocol, caller, correlation, serving, started_ns, started_unix_ns)
            raise
        except Exception as fault:  # the ASGI boundary: billed, answered, logged
            log.exception("unforeseen fault", extra={"request_id": correlation.record_id})
            self._abandon(serving, FAILED)
            failure = GatewayFault(
                "internal_error",
                f"the gateway failed ({type(fault).__name__}); report request id {correlation.record_id}",
                status=500,
            )
            await self._refuse(protocol, caller, correlation, failure, serving, started_ns, started_unix_ns)
        finally:
            if serving is not None:
                self.gate.leave()
            if admitted is not None and (serving is None or not serving.settled):
                admitted.hold.release()
            if capture is not None:
                capture.end()
            if correlation.sampled and self._traces.enabled:
                self._served(scope, correlation, caller.status, started_unix_ns, stages.now_ns())

    async def _admit(
        self,
        terms: Terms,
        protocol: Protocol,
        scope: Mapping[str, Any],
        receive: Receive,
        correlation: Correlation,
        started_ns: int,
        started_unix_ns: int,
    ) -> Admitted:
        headers: list[Header] = scope["headers"]
        if scope["method"] != "POST":
            raise CallerError("method_not_allowed", f"{protocol.path} takes POST", status=405)
        holder = terms.holder(headers)
        identity = holder.identity
        holder.permission.ask_endpoint(protocol.name)
        body = await read_body(receive, headers, self._body_bytes_max)
        request = protocol.read_request(body)
        holder.permission.ask_model(request.model)
        route = terms.route(request.model, protocol.name)
        lanes = terms.screen(identity, route.lanes) if protocol.billable else route.lanes
        client = scope.get("client")
        call = Call(
            record_id=correlation.record_id,
            trace_id=correlation.trace_id,
            span_id=self._ids.span_id(),
            server_span_id=correlation.server_span_id,
            protocol=protocol.name,
            operation=protocol.operation,
            model=request.model,
            stream=request.stream,
            identity=identity,
            started_unix_ns=started_unix_ns,
            parent_span_id=None if correlation.parent is None else correlation.parent.span_id,
            max_tokens=request.max_tokens,
            choices=request.choices,
            sides=protocol.sides,
            client_address=client[0] if client else None,
            client_user=request.user,
            client_request_id=correlation.client_request_id,
            session_id=correlation.session_id,
            input_summary=request.summary,
            sampled=correlation.sampled,
            alias=route.alias,
        )
        lanes, routed = terms.choose(route, lanes, call)
        lanes = translated(lanes, body, request, started_unix_ns // 1_000_000_000)
        if routed is not None:
            call = msgspec.structs.replace(call, route=routed)
        hold = await terms.guard.admit(call, lanes) if protocol.billable else NOTHING_HELD
        return Admitted(
            call=call,
            request=request,
            protocol=protocol,
            lanes=lanes,
            body=body,
            headers=headers,
            ids=[*correlation.headers(), *hold.headers],
            started_ns=started_ns,
            traceparent=correlation.traceparent,
            hold=hold,
            policy=route.policy,
        )

    async def _refuse(
        self,
        protocol: Protocol,
        caller: Caller,
        correlation: Correlation,
        error: SpanbillError,
        serving: Serving | None,
        started_ns: int,
        started_unix_ns: int,
        who: Identity | None = None,
    ) -> None:
        """Answer in the protocol's envelope; of an answer that has begun, only a stream can say more."""
        if serving is None or not serving.settled:
            self._refused(
                Refusal(
                    correlation=correlation,
                    path=protocol.path,
                    status=error.status,
                    code=error.code,
                    started_unix_ns=started_unix_ns,
                    latency_ns=self._inforce.terms.stages.monotonic_ns() - started_ns,
                    identity=who,
                )
            )
        if caller.started:
            if serving is not None and serving.streaming:
                await caller.cut(protocol.error_event(error))
            return
        body = protocol.error_body(error)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            *correlation.headers(),
            *error.headers,
        ]
        if error.retry_after_s is not None:
            headers.append((b"retry-after", b"%d" % error.retry_after_s))
        if error.status == 405:
            headers.append((b"allow", b"POST"))
        if error.status in (405, 413) or self.gate.closed:
            headers.append(
                (b"connection", b"close")
            )  # the rest of the body will not be read, or nothing more
        await caller.start(error.status, headers)
        await caller.body(body, more=False)

    async def _tell_stopping(
        self,
        protocol: Protocol,
        caller: Caller,
        correlation: Correlation,
        serving: Serving | None,
        started_ns: int,
        started_unix_ns: int,
    ) -> None:
        """Tell a caller that its answer stops here, so that it does not take the end for an accident."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TELL_S):
                await self._refuse(
                    protocol, caller, correlation, stopping(), serving, started_ns, started_unix_ns
                )

    def _abandon(self, serving: Serving | None, ending: Ending) -> None:
        if serving is None:
            return
        try:
            serving.abandon(ending)
        except Exception:  # the ASGI boundary: what failed may be the reading of the reply
            log.exception("a reply cannot be read; it is billed without", extra={"outcome": ending.outcome})
            serving.abandon(ending, blank=True)


def _payer(terms: Terms, headers: Sequence[Header]) -> Identity | None:
    """Return whose request was refused; None if its key is not known."""
    with contextlib.suppress(SpanbillError):
        return terms.holder(headers).identity
    return None


async def read_body(receive: Receive, headers: Sequence[Header], bytes_max: int) -> bytes:
    """Read the whole request body.

    Raises:
        SpanbillError: 413 above `bytes_max`, declared or sent; 415 for an encoded body; 400 if it was cut
            off, or what the server says is wrong with it (a `fault` in its disconnect).
    """
    for name, value in headers:
        if name == b"content-length":
            if not value.isdigit():
                raise CallerError("invalid_content_length", "content-length is not a number", status=400)
            if int(value[:20]) > bytes_max:
                raise _too_large(bytes_max)
        elif name == b"content-encoding" and value.lower() != b"identity":
            raise CallerError("unsupported_encoding", "send the body without content-encoding", status=415)
    pieces: list[bytes] = []
    size = 0
    for _ in range(BODY_PARTS_MAX):
        message = await receive()
        if message["type"] == "http.disconnect":
            fault = message.get("fault")
            if isinstance(fault, SpanbillError):
                raise fault
            raise CallerError("request_cut_off", "the request body ended early", status=400)
        piece: bytes = message.get("body", b"")
        size += len(piece)
        if size > bytes_max:
            raise _too_large(bytes_max)
        if piece:
            pieces.append(piece)
        if not message.get("more_body", False):
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)
    raise CallerError(
        "request_in_crumbs", f"the request body came in more than {BODY_PARTS_MAX} pieces", status=400
    )


def _too_large(bytes_max: int) -> CallerError:
    return CallerError(
        "request_too_large",
        f"the request body is larger than {bytes_max} bytes; the operator may raise server.max_body_bytes",
        status=413,
    )
