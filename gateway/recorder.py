"""Recorder: the journal in the words of the story, and what a dead gateway left in it.

intent, progress, settle, durable     called by the story for each request
recover                               at start: bills for intents whose process died
write_bills, forget                   its two halves, for a worker that does it beside requests
starting                              around all that is done to the folder before it is used
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from gateway import __version__
from gateway.billing import Prices, interrupted
from gateway.core.errors import CannotStartError, GatewayFault
from gateway.core.exchange import Call, Exchange, Progress
from gateway.recording.span import billing_span
from otel.journal import JournalUnavailable, JournalWriter
from otel.journal.files import Files, reason_of
from otel.journal.recovery import Findings, OpenIntent, retire
from otel.journal.segments import JournalLocked
from otel.schema import encode_span, resource_spans_frame

log = logging.getLogger("spanbill.recovery")

RETRY_AFTER_S: Final = 1
ELSEWHERE: Final = "or give the gateway another folder (journal.directory)"
ADVICE: Final = {
    errno.EACCES: "let the user that runs the gateway read and write it",
    errno.EPERM: "let the user that runs the gateway read and write it",
    errno.EEXIST: "move away the file that stands there",
    errno.ENOTDIR: "move away the file that stands there",
    errno.EISDIR: "move away the folder that stands there",
    errno.EROFS: "mount its file system for writing",
    errno.ENOSPC: "free some of the disk's space",
    errno.EDQUOT: "free some of the user's quota",
    errno.EFBIG: "raise the limit on the size of files",
    errno.EIO: "look for the disk in the system's log",
}


class JournalRecorder:
    """See `gateway.stages.Recorder`.

    Args:
        resource: attributes of the resource that all bills name.
    """

    def __init__(self, writer: JournalWriter, resource: Mapping[str, str], cache_write_name: str) -> None:
        self._writer = writer
        self._head, self._tail = resource_spans_frame(resource, "spanbill", __version__)
        self._cache_write_name = cache_write_name

    def intent(self, call: Call) -> int:
        """Write the intent: all that a bill would need if the process died now."""
        try:
            return self._writer.append("I", call.record_id, msgspec.json.encode(call).decode())
        except JournalUnavailable as fault:
            raise unavailable(fault) from fault

    def progress(self, call: Call, progress: Progress) -> None:
        """Write how far the stream has got."""
        try:
            self._writer.append("P", call.record_id, msgspec.json.encode(progress).decode())
        except JournalUnavailable as fault:
            raise unavailable(fault) from fault

    def settle(self, exchange: Exchange) -> int:
        """Write the bill."""
        span = encode_span(billing_span(exchange, cache_write_name=self._cache_write_name))
        return self._writer.append("S", exchange.call.record_id, self._head + span + self._tail)

    async def durable(self, sequence: int) -> None:
        """Wait for the sync."""
        try:
            await self._writer.durable(sequence)
        except JournalUnavailable as fault:
            raise unavailable(fault) from fault


def unavailable(fault: JournalUnavailable) -> GatewayFault:
    """Return the refusal of a gateway that cannot write bills: no journal, no reply."""
    return GatewayFault(
        "journal_unavailable",
        f"bills cannot be written now ({fault}); try again soon. The operator finds more at /ready",
        status=503,
        retry_after_s=RETRY_AFTER_S,
        owed=fault.owed,
    )


@contextlib.contextmanager
def starting(directory: Path) -> Iterator[None]:
    """Say plainly why the journal's folder cannot be used, if it cannot.

    Raises:
        CannotStartError: naming the folder, the reason and what to do.
    """
    try:
        yield
    except JournalLocked as fault:
        raise CannotStartError(str(fault)) from fault
    except JournalUnavailable as fault:
        raise CannotStartError(
            f"the journal's folder {directory} cannot be used: the bills of a gateway that died could not be "
            f"written ({fault}); see to the disk, {ELSEWHERE}"
        ) from fault
    except OSError as fault:
        where = f" ({fault.filename})" if fault.filename is not None else ""
        advice = ADVICE.get(fault.errno or 0, "see to it")
        raise CannotStartError(
            f"the journal's folder {directory} cannot be used: {reason_of(fault)}{where}; "
            f"{advice}, {ELSEWHERE}"
        ) from fault


async def recover(
    directory: Path,
    findings: Findings,
    writer: JournalWriter,
    recorder: JournalRecorder,
    prices: Prices,
    observe: Callable[[Exchange, int], None],
    files: Files,
) -> int:
    """Write the bills that dead gateways owe, once, and forget those gateways; return how many bills.

    It may be killed at any point: a bill that was written is found again, and one that was not is written by
    the next start.

    Raises:
        JournalUnavailable: not all bills are durable; nothing was forgotten.
        OSError: a dead gateway could not be forgotten; the next start will find nothing open in it.
    """
    number, bills = await write_bills(findings, writer, recorder, prices, observe)
    await forget(directory, findings, writer, number, files)
    return bills


async def write_bills(
    findings: Findings,
    writer: JournalWriter,
    recorder: JournalRecorder,
    prices: Prices,
    observe: Callable[[Exchange, int], None],
) -> tuple[int, int]:
    """Write a bill for each open intent; return the number of the last one's record, and how many bills.

    From here on `forget` must succeed in this process, or the process must end, before anybody else recovers.
    """
    for segment, damage in findings.damage:
        log.warning(
            "a stretch of the journal is damaged; it stays as it is",
            extra={"segment": segment, "offset": damage.offset, "bytes": damage.length, "why": damage.reason},
        )
    writer.pin()
    number = 0
    bills = 0
    for intent in findings.open_intents:
        exchange = _interrupted(intent, prices)
        if exchange is None:
            continue
        number = recorder.settle(exchange)
        bills += 1
        observe(exchange, 500)
        await asyncio.sleep(0)  # a worker that lives serves its requests meanwhile
    if bills:
        log.warning("requests of a gateway that died are billed as interrupted", extra={"bills": bills})
    return number, bills


async def forget(
    directory: Path, findings: Findings, writer: JournalWriter, number: int, files: Files
) -> None:
    """Wait until the bills up to record `number` are durable, and retire the dead; may be tried again.

    Raises:
        JournalUnavailable: not all bills are durable; nothing was forgotten.
        OSError: not all of the dead are forgotten.
    """
    if number:
        await writer.durable(number)
    retire(directory, findings.dead, files)
    writer.unpin()


def _interrupted(intent: OpenIntent, prices: Prices) -> Exchange | None:
    """Return the exchange of an open intent; None where the intent cannot be read, which `verify` reports."""
    try:
        call = msgspec.json.decode(intent.call, type=Call)
        progress = None if intent.progress is None else msgspec.json.decode(intent.progress, type=Progress)
    except ValueError:
        log.error("an intent cannot be read; it stays without a bill", extra={"record_id": intent.record_id})
        return None
    return interrupted(prices, call, progress)
