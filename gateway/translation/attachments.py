"""Attachments: `data:` URLs and what they stand for; OpenAI's protocols write pictures and files so."""

from __future__ import annotations

import re
from typing import Final

_DATA: Final = re.compile(r"data:([\w.+-]+/[\w.+-]+);base64,", re.ASCII)


def from_url(url: str) -> tuple[str | None, str | None, str | None]:
    """Return (url, media type, base64): the first alone, or the other two where the URL holds the data."""
    found = _DATA.match(url)
    if found is None:
        return url, None, None
    return None, found[1], url[found.end() :]


def to_url(url: str | None, media_type: str | None, data: str | None) -> str:
    """Return the URL, made of the data where there is none."""
    return url if url is not None else f"data:{media_type or 'application/octet-stream'};base64,{data or ''}"
