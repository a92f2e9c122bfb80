"""Shipper: journal -> OTLP/HTTP. The cursor moves only after the Collector has accepted; nothing is dropped.

    journal ──lines──▶ Shipper.step ──POST many──▶ Collector
                 ▲          │ accepted: move the cursor
                 └──────────┘ anything else: wait and send the same again

It runs in a thread of its own and never in a request's way. Of several workers' shippers the one with the
lock beside the cursor delivers for all; the others stand by, and the next to get it then reads the cursor.
OTLP is at least once: after a lost answer the same bill is sent again, and `billing.record.id` says that it
is the same. A single span that the Collector refuses for good is put aside in `quarantine/` with the reason,
so that one bad bill holds up no other; one that refuses an empty request as well refuses us, not the bill,
and all wait.
"""

from __future__ import annotations

import contextlib
import gzip
import logging
import threading
import time
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Final

import httpx
import msgspec

from otel.journal.cursor import Cursor
from otel.journal.files import Files
from otel.journal.reader import Batch, Reader
from otel.journal.turn import Lock
from otel.otlp import (
    UNSUPPORTED_ENCODING,
    Accepted,
    Endpoint,
    TryAgain,
    Verdict,
    backoff_s,
    judge,
)

log = logging.getLogger("spanbill.shipper")

LEAD_S: Final = 0.5
"""How often a shipper that stands by looks whether the one that delivers is gone."""
LEAD_STOPPING_S: Final = 0.05
RESPONSE_BYTES_MAX: Final = 64 * 1024
BATCH_BYTES_MAX: Final = 4 * 1024 * 1024
BATCHES_A_STEP_MAX: Final = 50
ASIDE_MAX: Final = 10_000
"""The newest bills in quarantine, remembered so that a batch that comes again puts none aside twice."""
ASIDE_BYTES: Final = 4 * BATCH_BYTES_MAX
"""How much of the quarantine's end is read for that after a start."""


class _Aside(msgspec.Struct):
    spans: list[msgspec.Raw] = msgspec.field(name="resourceSpans")


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
        client: for the POSTs; its timeout is the endpoint's; closed when the shipper has stopped.
        lead: the lock of the one that delivers; None where there is no other.
        jitter: returns a number in [0, 1).
        now_ns: wall clock in Unix nanoseconds.
        monotonic: seconds, for durations.
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
        monotonic: Callable[[], float] = time.monotonic,
        files: Files | None = None,
        lines_max: int = 200,
        interval_s: float = 0.2,
        lead: Lock | None = None,
    ) -> None:
        self.stats = Stats()
        self._lead = lead
        self._reader = reader
        self._cursor = cursor
        self._endpoint = endpoint
        self._quarantine = quarantine / "refused.jsonl"
        self._aside: dict[bytes, None] | None = None
        self._files = files or Files()
        self._client = client
        self._jitter = jitter
        self._now_ns = now_ns
        self._monotonic = monotonic
        self._gzip = endpoint.gzip
        self._told_damage: tuple[str, int] | None = None
        self._lines_max = lines_max
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._stop_by = 0.0
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Run `step` in a thread until `stop`."""
        self._thread = threading.Thread(target=self._run, name="shipper", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Deliver what is there, for at most `timeout_s`; the rest stays for later."""
        self._stop_by = self._monotonic() + timeout_s
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=timeout_s)

    def _run(self) -> None:
        if self._leading():
            wait_s = self._interval_s
            while not self._stop.wait(wait_s):  # ends with stop()
                wait_s = self._guarded_step()
            while not self._late() and self._guarded_step() == 0.0:  # ends with the journal, or a failure
                pass
        self._client.close()
        if self._lead is not None:
            self._lead.release()

    def _late(self) -> bool:
        """Say whether the shipper was told to stop and the time for that is over."""
        return self._stop.is_set() and self._monotonic() >= self._stop_by

    def _leading(self) -> bool:
        """Wait for the lead; at the end for as long as `stop` does: what another one left is delivered."""
        if self._lead is None:
            return True
        while not self._late():  # ends with the lead, or after stop()
            try:
                if self._lead.take():
                    self._cursor.load()
                    return True
            except OSError as fault:
                self._failed(TryAgain(f"{type(fault).__name__}: {fault.strerror}"))
            if not self._stop.wait(LEAD_S):
                continue
            time.sleep(LEAD_STOPPING_S)  # the one that has the lead is stopping, too
        return False

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
            OSError: the journal cannot be read, or the cursor not be written. What was delivered and is not
                noted is noted first of all by the next step: never more than one batch comes twice for it.
        """
        self._cursor.save()
        for count, batch in enumerate(self._reader.batches(self._lines_max, BATCH_BYTES_MAX), start=1):
            self._tell_damage(batch)
            refused = self._deliver(batch, 0, len(batch.spans))
            if refused is None:
                self._cursor.move(batch.segment, batch.end, batch.writer, batch.seen)
            self._cursor.save()
            if refused is not None:
                return self._failed(refused)
            if count >= BATCHES_A_STEP_MAX or self._late():
                return 0.0
        return self._interval_s

    def _tell_damage(self, batch: Batch) -> None:
        """Tell of each damaged stretch once, however often its batch has to be sent."""
        for damage in batch.damage:
            place = (batch.segment, damage.offset)
            if (
                self._told_damage is not None
                and self._told_damage[0] == place[0]
                and place <= self._told_damage
            ):
                continue
            self._told_damage = place
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

    def _deliver(self, batch: Batch, start: int, stop: int) -> TryAgain | None:
        """Send bills `start` to `stop`; halve what is refused until the refused one stands alone.

        The cursor follows bill by bill, so that what was accepted is not sent again when a later part has to
        wait. Halving sends accepted spans of a partly refused batch once more: a duplicate with the same id
        is better than a bill that nobody has.
        """
        if start == stop:
            return None
        verdict = self._post(batch.spans[start:stop])
        if isinstance(verdict, TryAgain):
            return verdict
        if isinstance(verdict, Accepted):
            self.stats.shipped += stop - start
            self.stats.failures_in_a_row = 0
            self.stats.last_error = None
            self.stats.last_success_unix_ns = self._now_ns()
        elif stop - start > 1:
            middle = (start + stop) // 2
            return self._deliver(batch, start, middle) or self._deliver(batch, middle, stop)
        elif isinstance(self._post(()), Accepted):
            self._put_aside(batch.spans[start], verdict.reason, batch)
        else:  # a plain request to a TLS port, a proxy without a way: the bill is not at fault
            return TryAgain(f"{verdict.reason}, as for an empty request")
        end, seen = batch.reaches[stop - 1]
        self._cursor.move(batch.segment, end, batch.writer, seen)
        return None

    def _post(self, spans: tuple[bytes, ...]) -> Verdict:
        body = b'{"resourceSpans":[' + b",".join(spans) + b"]}"
        if not self._gzip:
            return self._send(body, {})[0]
        verdict, status = self._send(gzip.compress(body, compresslevel=1), {"content-encoding": "gzip"})
        if status in UNSUPPORTED_ENCODING:
            verdict, _ = self._send(body, {})
            if isinstance(verdict, Accepted):
                self._gzip = False
                log.warning("the Collector takes no gzip; bills go uncompressed from now on")
        return verdict

    def _send(self, body: bytes, more: dict[str, str]) -> tuple[Verdict, int | None]:
        """Return what came of one request, and the answer's status."""
        headers = {**self._endpoint.headers, **more}
        headers |= {"content-type": "application/json", "accept-encoding": "identity"}
        self.stats.posts += 1
        until = self._monotonic() + self._endpoint.timeout_s
        try:
            with self._client.stream("POST", self._endpoint.url, content=body, headers=headers) as response:
                if response.headers.get("content-encoding", "identity") != "identity":
                    return TryAgain("a compressed answer, which was not asked for"), response.status_code
                answer = b""
                for piece in response.iter_bytes():  # at most RESPONSE_BYTES_MAX, for at most the timeout
                    answer += piece
                    if len(answer) > RESPONSE_BYTES_MAX:
                        return TryAgain(f"an answer of more than {RESPONSE_BYTES_MAX} bytes"), None
                    if self._monotonic() > until:
                        return TryAgain("an answer that takes too long"), None
                status = response.status_code
                return judge(status, answer, response.headers, self._now_ns() / 1e9), status
        except httpx.HTTPError as fault:
            return TryAgain(type(fault).__name__), None

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
