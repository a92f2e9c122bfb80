"""Shipper: journal -> OTLP/HTTP. The cursor moves only after the Collector has accepted; nothing is dropped.

    journal ──lines──▶ Shipper.step ──POST many──▶ Collector
                 ▲          │ accepted: move the cursor
                 └──────────┘ anything else: wait and send the same again

It runs in a thread of its own and never in a request's way. OTLP is at least once: after a lost answer the
same bill is sent again, and `billing.record.id` says that it is the same. A single span that the Collector
refuses for good is put aside in `quarantine/` with the reason, so that one bad bill holds up no other.
"""

from __future__ import annotations

import contextlib
import gzip
import logging
import threading
import time
from collections.abc import Callable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Final
from urllib.parse import unquote

import httpx
import msgspec

from otel.journal.cursor import Cursor
from otel.journal.files import Files
from otel.journal.reader import Batch, Reader

log = logging.getLogger("spanbill.shipper")

RETRYABLE: Final = frozenset({408, 429, 500, 502, 503, 504})
"""OTLP asks for 429, 502, 503, 504; a Collector behind a proxy also answers 408 and 500 while it restarts."""
RESPONSE_BYTES_MAX: Final = 64 * 1024
BATCH_BYTES_MAX: Final = 4 * 1024 * 1024
BACKOFF_FIRST_S: Final = 0.5
BACKOFF_MAX_S: Final = 30.0
BATCHES_A_STEP_MAX: Final = 50
ASIDE_MAX: Final = 10_000
"""The newest bills in quarantine, remembered so that a batch that comes again puts none aside twice."""
ASIDE_BYTES: Final = 4 * BATCH_BYTES_MAX
"""How much of the quarantine's end is read for that after a start."""


class Accepted(msgspec.Struct, frozen=True):
    """All spans were taken."""


class Rejected(msgspec.Struct, frozen=True):
    """Some or all spans were refused for good: find out which."""

    reason: str


class TryAgain(msgspec.Struct, frozen=True):
    """The same request may succeed later."""

    reason: str
    after_s: float | None = None


Verdict = Accepted | Rejected | TryAgain


class _Partial(msgspec.Struct):
    rejected: int | str = msgspec.field(name="rejectedSpans", default=0)
    message: str = msgspec.field(name="errorMessage", default="")


class _Answer(msgspec.Struct):
    partial: _Partial | None = msgspec.field(name="partialSuccess", default=None)


def judge(status: int, body: bytes, retry_after: str | None) -> Verdict:
    """Return what an answer of the Collector means for the spans that were sent.

    A 200 whose body is no OTLP answer is not an acceptance: a proxy's login page also says 200.
    """
    if status in RETRYABLE:
        return TryAgain(f"HTTP {status}", _seconds(retry_after))
    if status != 200:
        return Rejected(f"HTTP {status}") if status in (400, 413, 422) else TryAgain(f"HTTP {status}")
    if not body.strip():
        return Accepted()
    try:
        answer = msgspec.json.decode(body, type=_Answer)
        rejected = int(answer.partial.rejected) if answer.partial is not None else 0
    except ValueError:
        return TryAgain("HTTP 200 with a body that is no OTLP answer")
    if rejected and answer.partial is not None:
        return Rejected(f"{rejected} spans rejected: {answer.partial.message[:200]}")
    return Accepted()


def backoff_s(failures: int, jitter: float) -> float:
    """Return the seconds to wait after `failures` (>= 1) in a row; `jitter` in [0, 1) spreads senders."""
    return min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(failures - 1, 10)) * (0.5 + jitter / 2)


def _seconds(retry_after: str | None) -> float | None:
    if retry_after is None or not retry_after.strip().isdigit():
        return None
    return min(float(retry_after), BACKOFF_MAX_S)


class _Aside(msgspec.Struct):
    spans: list[msgspec.Raw] = msgspec.field(name="resourceSpans")


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where bills go, as the standard variables say it."""

    url: str
    headers: dict[str, str]
    timeout_s: float
    gzip: bool
    certificate: str | None


def endpoint_from_env(environ: Mapping[str, str]) -> Endpoint | None:
    """Return the endpoint of `OTEL_EXPORTER_OTLP_[TRACES_]*`, or None if there is none.

    Source: OpenTelemetry Protocol Exporter specification. `OTEL_EXPORTER_OTLP_TIMEOUT` is in seconds, as
    the Python SDK reads it. `OTEL_SDK_DISABLED` and samplers do not matter here: they are for traces.
    """

    def read(name: str) -> str | None:
        return (
            environ.get(f"OTEL_EXPORTER_OTLP_TRACES_{name}")
            or environ.get(f"OTEL_EXPORTER_OTLP_{name}")
            or None
        )

    url = environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    if not url:
        base = environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
        if not base:
            return None
        url = base.rstrip("/") + "/v1/traces"
    headers = {}
    for pair in (read("HEADERS") or "").split(","):
        name, separator, value = pair.partition("=")
        if separator and name.strip():
            headers[unquote(name.strip()).lower()] = unquote(value.strip())
    return Endpoint(
        url=url,
        headers=headers,
        timeout_s=float(read("TIMEOUT") or 10),
        gzip=(read("COMPRESSION") or "none") == "gzip",
        certificate=read("CERTIFICATE"),
    )


class Stats(msgspec.Struct, kw_only=True):
    """What the shipper has done since it started, and what is left to do; read by the metrics."""

    shipped: int = 0
    quarantined: int = 0
    damaged: int = 0
    posts: int = 0
    failures_in_a_row: int = 0
    last_error: str | None = None
    last_success_unix_ns: int | None = None
    pending_bytes: int = 0


class Shipper:
    """Delivers the journal.

    Args:
        client: for the POSTs; its timeout is the endpoint's.
        jitter: returns a number in [0, 1).
    """

    def __init__(
        self,
        reader: Reader,
        cursor: Cursor,
        endpoint: Endpoint,
        *,
        quarantine: Path,
        client: httpx.Client,
        jitter: Callable[[], float],
        now_ns: Callable[[], int] = time.time_ns,
        files: Files | None = None,
        lines_max: int = 200,
        interval_s: float = 0.2,
    ) -> None:
        self.stats = Stats()
        self._reader = reader
        self._cursor = cursor
        self._endpoint = endpoint
        self._quarantine = quarantine / "refused.jsonl"
        self._aside: dict[bytes, None] | None = None
        self._files = files or Files()
        self._client = client
        self._jitter = jitter
        self._now_ns = now_ns
        self._lines_max = lines_max
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Run `step` in a thread until `stop`."""
        self._thread = threading.Thread(target=self._run, name="shipper", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Deliver what is there, for at most `timeout_s`; the rest stays for later."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=timeout_s)

    def _run(self) -> None:
        wait_s = self._interval_s
        while not self._stop.wait(wait_s):  # ends with stop()
            wait_s = self._guarded_step()
        self._guarded_step()

    def _guarded_step(self) -> float:
        try:
            wait_s = self.step()
            self.stats.pending_bytes = self._reader.pending_bytes()
        except OSError as fault:
            return self._failed(TryAgain(f"{type(fault).__name__}: {fault.strerror}"))
        return wait_s

    def step(self) -> float:
        """Deliver what there is; return how many seconds to wait before the next step.

        Raises:
            OSError: the journal or the cursor cannot be read or written; nothing was moved.
        """
        for count, batch in enumerate(self._reader.batches(self._lines_max, BATCH_BYTES_MAX), start=1):
            for damage in batch.damage:
                self.stats.damaged += 1
                log.error(
                    "a stretch of the journal is damaged",
                    extra={
                        "segment": batch.segment,
                        "offset": damage.offset,
                        "bytes": damage.length,
                        "why": damage.reason,
                    },
                )
            refused = self._deliver(batch.spans, batch)
            if refused is not None:
                return self._failed(refused)
            self._cursor.move(batch.segment, batch.end, batch.writer, batch.seen)
            self._cursor.save()
            if count >= BATCHES_A_STEP_MAX or self._stop.is_set():
                return 0.0
        return self._interval_s

    def _deliver(self, spans: tuple[bytes, ...], batch: Batch) -> TryAgain | None:
        """Send; halve a refused batch until the refused span stands alone, and put that one aside.

        Halving sends accepted spans of a partly refused batch once more: a duplicate with the same id is
        better than a bill that nobody has.
        """
        if not spans:
            return None
        verdict = self._post(spans)
        if isinstance(verdict, TryAgain):
            return verdict
        if isinstance(verdict, Accepted):
            self.stats.shipped += len(spans)
            self.stats.failures_in_a_row = 0
            self.stats.last_error = None
            self.stats.last_success_unix_ns = self._now_ns()
            return None
        if len(spans) == 1:
            self._put_aside(spans[0], verdict.reason, batch)
            return None
        half = len(spans) // 2
        return self._deliver(spans[:half], batch) or self._deliver(spans[half:], batch)

    def _post(self, spans: tuple[bytes, ...]) -> Verdict:
        body = b'{"resourceSpans":[' + b",".join(spans) + b"]}"
        headers = {**self._endpoint.headers, "content-type": "application/json"}
        if self._endpoint.gzip:
            body = gzip.compress(body, compresslevel=1)
            headers["content-encoding"] = "gzip"
        self.stats.posts += 1
        try:
            with self._client.stream("POST", self._endpoint.url, content=body, headers=headers) as response:
                answer = b""
                for piece in response.iter_bytes():
                    answer += piece
                    if len(answer) > RESPONSE_BYTES_MAX:
                        return TryAgain(f"an answer of more than {RESPONSE_BYTES_MAX} bytes")
                return judge(response.status_code, answer, response.headers.get("retry-after"))
        except httpx.HTTPError as fault:
            return TryAgain(type(fault).__name__)

    def _failed(self, verdict: TryAgain) -> float:
        self.stats.failures_in_a_row += 1
        if self.stats.failures_in_a_row == 1 or self.stats.last_error != verdict.reason:
            log.warning(
                "bills wait in the journal; they will be sent again",
                extra={"why": verdict.reason, "endpoint": self._endpoint.url},
            )
        self.stats.last_error = verdict.reason
        if verdict.after_s is not None:
            return verdict.after_s
        return backoff_s(self.stats.failures_in_a_row, self._jitter())

    def _put_aside(self, spans: bytes, reason: str, batch: Batch) -> None:
        if self._aside is None:
            self._aside = self._put_aside_before()
        digest = blake2b(spans, digest_size=16).digest()
        if digest in self._aside:
            return  # its batch was held up by something else, and came again
        line = msgspec.json.encode(
            {"reason": reason, "segment": batch.segment, "resourceSpans": [msgspec.Raw(spans)]}
        )
        self._files.make_directory(self._quarantine.parent)
        self._files.append(self._quarantine, line + b"\n")
        self._aside[digest] = None
        if len(self._aside) > ASIDE_MAX:
            del self._aside[next(iter(self._aside))]
        self.stats.quarantined += 1
        log.error(
            "the Collector refuses a bill; it is in quarantine",
            extra={"why": reason, "segment": batch.segment},
        )

    def _put_aside_before(self) -> dict[bytes, None]:
        """Return what the quarantine's end holds: of batches whose cursor was not saved before a restart."""
        try:
            size = self._files.size(self._quarantine)
            data = self._files.read(self._quarantine, max(0, size - ASIDE_BYTES), ASIDE_BYTES)
        except FileNotFoundError:
            return {}
        found: dict[bytes, None] = {}
        for line in data.split(b"\n"):
            with contextlib.suppress(msgspec.MsgspecError):  # the first may be cut, and one can be torn
                for spans in msgspec.json.decode(line, type=_Aside).spans:
                    found[blake2b(bytes(spans), digest_size=16).digest()] = None
        return found
