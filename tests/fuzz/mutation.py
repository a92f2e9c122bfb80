"""Fuzzing: hypothesis chooses seeds, a seed makes a batch of inputs, and the inputs that ran are counted.

`FUZZ_INPUTS` sets how many inputs each parser gets: 10,000 where `CI` is set, fewer otherwise. A failure
names its seed and input; the same seed makes the same inputs again.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

INPUTS = int(os.environ.get("FUZZ_INPUTS") or (10_000 if os.environ.get("CI") else 1_500))
BATCH = 25
INPUT_S_MAX = 0.5
"""CPU time of one input, all its cuttings included."""
INPUT_BYTES_MAX = 20_000
MUTATIONS_MAX = 5

TOKENS: Sequence[bytes] = (
    b"", b"\n", b"\r", b"\r\n", b"\n\n", b"\n\n\n", b"\r\r", b"data: ", b"data:", b"event: error\n", b": x\n",
    b"[DONE]", b"data: [DONE]\n\n", b"null", b"true", b"NaN", b"-1", b"1e30", b"1e999", b"9007199254740993",
    b"9" * 400, b'"7"', b"[]", b"{}", b"{", b"}", b"]", b'"', b"\\", b"\\u0000", b"\\ud800", b"\xff", b"\x00",
    b"\xef\xbb\xbf", b'"usage":', b'"usage":null', b'"usage": {', b'"choices":[]', b'"error":{"code":"x"}',
    b'"type":"message_stop"', b'"type":"message_start"', b'"type":"message_delta"', b'"model":"x"', b",",
    b":", b"[" * 300, b'{"a":' * 300, b"\xed\xa0\x80", b"\xe2\x80\xa8", b" ", b"\t", b"-", b"00", b"0", b"=",
)  # fmt: skip


def mutated(chance: random.Random, seeds: Sequence[bytes], tokens: Sequence[bytes] = TOKENS) -> bytes:
    """Return one of the seeds with up to MUTATIONS_MAX changes; sometimes with none."""
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.randint(0, MUTATIONS_MAX)):
        at = chance.randint(0, len(data))
        to = min(len(data), at + chance.choice((1, 1, 2, 5, 20, 200)))
        kind = chance.randrange(7)
        if kind == 0:
            data[at:to] = b""
        elif kind == 1:
            data[at:at] = chance.choice(tokens)
        elif kind == 2:
            data[at:to] = chance.choice(tokens)
        elif kind == 3 and at < len(data):
            data[at] = chance.randrange(256)
        elif kind == 4:
            data[at:at] = data[at:to] * chance.randint(1, 3)
        elif kind == 5:
            other = chance.choice(seeds)
            start = chance.randint(0, len(other))
            data[at:] = other[start:]
        elif kind == 6:
            del data[at:]
    return bytes(data[:INPUT_BYTES_MAX])


def cut(chance: random.Random, data: bytes) -> list[bytes]:
    """Return the data in pieces: whole, in a few, or byte by byte where it is small."""
    if len(data) < 2:
        return [data]
    kind = chance.randrange(4)
    if kind == 0:
        return [data]
    if kind == 1 and len(data) < 400:
        return [data[at : at + 1] for at in range(len(data))]
    edges = sorted(chance.sample(range(1, len(data)), min(len(data) - 1, chance.randint(1, 9))))
    return [data[a:b] for a, b in zip([0, *edges], [*edges, len(data)], strict=True)]


def fuzz(check: Callable[[random.Random], None], inputs: int = INPUTS) -> int:
    """Run `check` on at least `inputs` inputs; return how many really ran."""
    ran = 0

    @settings(
        max_examples=-(-inputs // BATCH),
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(seed=st.integers(0, 2**64 - 1))
    def batch(seed: int) -> None:
        nonlocal ran
        for number in range(BATCH):
            took = _timed(check, f"{seed} {number}")
            if took >= INPUT_S_MAX:  # a collection of garbage may have fallen into it: once more tells
                took = _timed(check, f"{seed} {number}")
            assert took < INPUT_S_MAX, f"input {number} of seed {seed} took {took:.3f} s"
            ran += 1

    batch()
    assert ran >= inputs, f"only {ran} inputs ran"
    print(f"{ran} inputs")  # noqa: T201  # the number is the point
    return ran


def _timed(check: Callable[[random.Random], None], chosen: str) -> float:
    started = time.thread_time()
    check(random.Random(chosen))
    return time.thread_time() - started
