"""A hundred thousand keys: read at the start in seconds, and found as fast as one."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, insert

from gateway.admission import virtual_keys
from gateway.admission.virtual_keys import KeyRing
from gateway.control import schema
from gateway.control.plane import Plane
from gateway.core.errors import CallerError

COUNT = 100_000
START_CPU_S = 20.0
"""Ten times what it takes."""
ADMISSION_CPU_S = 50e-6
"""Half of what admission may cost in all, and fifteen times what it takes."""
ASKED = 5_000

Headers = list[tuple[bytes, bytes]]


def made(c: Connection, keys: list[str]) -> None:
    schema.next_version(c, "keys")
    rows: list[dict[str, Any]] = [
        {
            "id": f"key_{number:016x}",
            "digest": hashlib.sha256(key.encode()).hexdigest(),
            "user_id": f"user-{number % 5000}",
            "tags": "[]",
            "models": '["gpt-4o","sim-*"]',
            "on_disconnect": "drain",
            "may_create_keys": False,
            "disabled": False,
            "created_unix_ns": number,
            "created_by": "admin",
            "changed": 1,
        }
        for number, key in enumerate(keys)
    ]
    for at in range(0, len(rows), 5000):
        c.execute(insert(schema.keys), rows[at : at + 5000])


def shown(key: str) -> Headers:
    return [(b"host", b"h"), (b"content-type", b"application/json"), (b"x-api-key", key.encode())]


def test_as_many_keys_as_there_may_be_make_neither_start_nor_admission_slow(tmp_path: Path) -> None:
    keys = [f"sk-sb-{secrets.token_urlsafe(32)}" for _ in range(COUNT)]
    plane = Plane("", "", tmp_path / "journal")
    plane._changing.run(lambda c: made(c, keys), writes=True)
    began = time.process_time()
    plane.start()
    took_s = time.process_time() - began
    try:
        assert len(plane.stored) == COUNT
        assert took_s < START_CPU_S
        ring = KeyRing([], plane.stored)
        asked = [shown(key) for key in keys[:: COUNT // ASKED]]
        began = time.thread_time()
        for headers in asked:
            holder = ring.holder(headers)
            holder.permission.ask_endpoint("messages")
            holder.permission.ask_model("sim-small")
        assert (time.thread_time() - began) / len(asked) < ADMISSION_CPU_S
        unknown = [shown(f"sk-sb-{secrets.token_urlsafe(32)}") for _ in range(ASKED)]
        began = time.thread_time()
        for headers in unknown:
            with pytest.raises(CallerError):
                ring.holder(headers)
        assert (time.thread_time() - began) / len(unknown) < 2 * ADMISSION_CPU_S
    finally:
        plane.stop()


def test_what_is_found_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compared: list[tuple[bytes, bytes]] = []
    whole = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return whole(one, other)

    monkeypatch.setattr(virtual_keys.hmac, "compare_digest", compare)
    key = f"sk-sb-{secrets.token_urlsafe(32)}"
    plane = Plane("", "", tmp_path / "journal")
    plane._changing.run(lambda c: made(c, [key]), writes=True)
    plane.start()
    plane.stop()
    KeyRing([], plane.stored).holder(shown(key))
    assert compared == [(hashlib.sha256(key.encode()).digest(),) * 2]
    assert compared[0][0] is not compared[0][1], "what is stored, with what was shown"
