"""Errors: the class says whose fault it is, and `code` is the stable word that logs, spans and callers see.

    SpanbillError
      ├─ CallerError     4xx: the request is wrong; sending it again changes nothing
      ├─ UpstreamError   the provider failed; `retryable` says whether another attempt may help
      └─ GatewayFault    5xx: ours; never hidden, and never after a provider was paid without a bill

Messages are for people and name the next step. They never carry a key, a prompt or a reply.
"""

from __future__ import annotations


class SpanbillError(Exception):
    """Root of the tree.

    Args:
        code: stable snake_case word; `error.type` on the span.
        message: what happened and what to do next.
        status: HTTP status for the caller.
        param: the field or header at fault, if one is.
        retry_after_s: seconds to put into `Retry-After`, if waiting helps.

    Attributes:
        headers: what else the answer tells in its head (limits, and how long they last).
        kind: what OpenAI's envelope gives as `type`, where it does not follow from the status.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        status: int,
        param: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status
        self.param = param
        self.retry_after_s = retry_after_s
        self.headers: tuple[tuple[bytes, bytes], ...] = ()
        self.kind: str | None = None


class CallerError(SpanbillError):
    """The request is at fault (4xx)."""


class UpstreamError(SpanbillError):
    """The provider is at fault: not reached, too slow, cut off, or not speaking its protocol.

    Args:
        retryable: another attempt may succeed (nothing was released yet and the fault is transient).
        sent: the request may have reached the provider, so that it may have charged for it.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        status: int = 502,
        retryable: bool,
        sent: bool,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(code, message, status=status, retry_after_s=retry_after_s)
        self.retryable = retryable
        self.sent = sent


class GatewayFault(SpanbillError):
    """The gateway is at fault (5xx).

    Args:
        owed: what the journal refused was numbered: it will be written as soon as the disk allows it.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        status: int,
        retry_after_s: int | None = None,
        owed: bool = False,
    ) -> None:
        super().__init__(code, message, status=status, retry_after_s=retry_after_s)
        self.owed = owed


class CannotStartError(Exception):
    """The gateway cannot begin; the message is one line for the operator: what, why, and what to do."""
