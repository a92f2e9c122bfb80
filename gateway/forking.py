"""Forking: a process that is begun from this one, with a wire to it that tells each when the other is gone.

It has everything imported and all that is checked, and memory in common as long as nobody writes to it. That
is sound only while this process has no thread, no event loop and has drawn no random number: keep it so.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Final

import msgspec

HANGUP: Final[signal.Signals | None] = getattr(signal, "SIGHUP", None)
"""Has the configuration read again; Windows has none."""
SIGNALS: Final = (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, *([HANGUP] if HANGUP is not None else []))
"""None of these may reach the child by way of this process's handlers."""
GO, STOP, READY, FAULT = b"g", b"s", b"r", b"f"
"""What is said on a wire: begin, and stop in order; the child's: at work, and why it cannot be."""
FAULT_BYTES_MAX: Final = 16_384
CRASHED: Final = 70
"""Exit code of a child that ended by an exception (EX_SOFTWARE)."""


class Child(msgspec.Struct, frozen=True):
    """A process that was begun.

    Args:
        wire: our end; it ends with the child.
    """

    pid: int
    wire: socket.socket


def forked(work: Callable[[socket.socket], str | None]) -> Child:
    """Begin a process.

    Args:
        work: what it does, given its end of the wire; returns None, or why it could not.

    Raises:
        OSError: the system allows no further process.
    """
    assert threading.active_count() == 1, "a fork would copy locks that nobody ever gives up"
    ours, theirs = socket.socketpair()
    sys.stdout.flush()
    sys.stderr.flush()
    gc.freeze()  # a collection would write to all of the memory that both have in common
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        pid = os.fork()
    except OSError:
        ours.close()
        theirs.close()
        raise
    else:
        if not pid:
            ours.close()
            _be(work, theirs)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    theirs.close()
    return Child(pid, ours)


def _be(work: Callable[[socket.socket], str | None], wire: socket.socket) -> None:
    """Be the child; does not return."""
    code = CRASHED
    try:
        signal.set_wakeup_fd(-1)
        for told in SIGNALS:
            signal.signal(told, signal.SIG_IGN if told == HANGUP else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        fault = work(wire)
        if fault is not None:
            with contextlib.suppress(OSError):  # nobody is there to hear it
                wire.send(FAULT + fault.encode()[: FAULT_BYTES_MAX - len(FAULT)])
        code = 0 if fault is None else 1
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    finally:
        raised = sys.exception()
        if raised is not None:
            traceback.print_exception(raised)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
