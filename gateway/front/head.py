"""Head: what a request's head must be before anybody acts on it; pure, and called once per request.

The parser refuses most of what two parties could read differently; here is the rest: exactly one host, one
framing, one form of the target. A refusal is final for the connection.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from gateway.core.errors import CallerError
from gateway.front.bounds import FrontBounds
from otel.server_span import path_without_secrets

Header = tuple[bytes, bytes]

HOST: Final = 1
CONTENT_LENGTH: Final = 2
TRANSFER_ENCODING: Final = 4
EXPECT: Final = 8
UPGRADE: Final = 16
ONCE: Final = HOST | CONTENT_LENGTH | TRANSFER_ENCODING
FRAMING: Final = CONTENT_LENGTH | TRANSFER_ENCODING
SPECIAL: Final = {
    b"host": HOST,
    b"content-length": CONTENT_LENGTH,
    b"transfer-encoding": TRANSFER_ENCODING,
    b"expect": EXPECT,
    b"upgrade": UPGRADE,
}
"""Headers that the front looks at, as bits."""
PATH_CHARS_MAX: Final = 200
_HOST: Final = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")


def bad(code: str, message: str, status: int = 400) -> CallerError:
    """Return a refusal of the request's form."""
    return CallerError(code, message, status=status)


def check_host(value: bytes) -> None:
    """Raise CallerError unless `value` is a host with an optional port and nothing else."""
    if _HOST.fullmatch(value.strip(b" \t")) is None:
        raise bad("invalid_host", "the Host header is not a host with an optional port")


def check_framing(bit: int, value: bytes) -> None:
    """Raise CallerError unless the value can be read in one way only."""
    if bit == TRANSFER_ENCODING:
        if value != b"chunked":
            raise bad("invalid_transfer_encoding", "the only transfer-encoding served is `chunked`")
    elif not value.isdigit():
        raise bad("invalid_content_length", "content-length is not a plain number")


def check_head(
    method: bytes, target: bytes, version: str, seen: int, headers: Sequence[Header], bounds: FrontBounds
) -> None:
    """Raise CallerError for a head that is not served.

    Args:
        seen: bits of SPECIAL.
    """
    if len(target) > bounds.target_bytes_max:
        raise bad("target_too_long", f"the target is longer than {bounds.target_bytes_max} bytes", 414)
    if len(headers) > bounds.headers_max:
        raise bad("too_many_headers", f"the request has more than {bounds.headers_max} headers", 431)
    if version not in ("1.1", "1.0"):
        raise bad("http_version_not_supported", "the gateway speaks HTTP/1.1", 505)
    if not target.startswith(b"/") or b"#" in target or method == b"CONNECT":
        raise bad("invalid_target", "the gateway is no proxy: send the target as a path, as in `POST /v1/…`")
    if not seen & HOST:
        raise bad("missing_host", "the request has no Host header")
    if seen & TRANSFER_ENCODING and version == "1.0":
        raise bad("invalid_transfer_encoding", "HTTP/1.0 knows no transfer-encoding")


def head_bytes(target: bytes, headers: Sequence[Header]) -> int:
    """Return the size of a head, up to a few bytes."""
    return len(target) + sum(len(name) + len(value) + 4 for name, value in headers)


def path_to_tell(target: bytes) -> str:
    """Return what of a refused target may be logged: a path; never a query, and never a URL's user."""
    if not target.startswith(b"/"):
        return ""
    path = target.partition(b"?")[0][:PATH_CHARS_MAX].decode("ascii", "replace")
    return path_without_secrets(path)
