"""Parquet: the rows of FOCUS as a file that keeps its types: exact decimals, instants, and what may be null.

It needs pyarrow, which the gateway does without: whoever imports this module says so (`spanbill[parquet]`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from gateway.ledger.focus import COLUMNS, Charge

MICRO_NS: Final = 1_000
_TYPES: Final = {
    "text": pa.string(),
    "decimal": pa.decimal128(38, 24),
    "time": pa.timestamp("us", "UTC"),
    "count": pa.int64(),
}
SCHEMA: Final = pa.schema(
    [pa.field(name, _TYPES[kind], nullable=nullable) for name, (kind, nullable) in COLUMNS.items()],
    metadata={"focus_version": "1.2", "data_generator": "spanbill"},
)


class Sink(Protocol):
    """Where the bytes go."""

    def write(self, data: bytes, /) -> Any:
        """Take some."""
        ...


class Parquet:
    """Writes one file, a group of rows at a time; only `close` makes it whole."""

    def __init__(self, sink: Sink) -> None:
        self._writer = pq.ParquetWriter(sink, SCHEMA, compression="zstd")

    def add(self, rows: Sequence[Charge]) -> None:
        """Write rows."""
        columns = {name: [_value(row[name], kind) for row in rows] for name, (kind, _) in COLUMNS.items()}
        self._writer.write_table(pa.table(columns, schema=SCHEMA))

    def close(self) -> None:
        """Write what makes it a file."""
        self._writer.close()


def _value(value: object, kind: str) -> object:
    if kind == "time":
        assert isinstance(value, int)  # nanoseconds, and no time of FOCUS may be null
        return value // MICRO_NS
    return value
