"""Parquet files that are being written.

A column's type is that of the first value in it. A later number with a fraction makes a column of
whole numbers one of any, and the first value after nothing makes it one of its kind; then the next
file begins, since the columns of a file are fixed. What does not fit is rejected. So the files do
not depend on how the stream was cut into batches.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple

import pyarrow as pa  # type: ignore[import-untyped]  # it ships no types
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from streamflow.codecs.values import dump_json
from streamflow.contracts import Context, Encoded
from streamflow.records import Batch
from streamflow_connectors.files.headers import fields_of
from streamflow_connectors.files.parquet import ParquetFormat

logger = logging.getLogger("streamflow.file")

_TYPES: Final = {
    "nothing": pa.null(),
    "truth": pa.bool_(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "text": pa.string(),
    "bytes": pa.binary(),
    "integers": pa.list_(pa.int64()),
    "numbers": pa.list_(pa.float64()),
}
_WIDER: Final = {"integer": "number", "integers": "numbers"}
_KINDS: Final = {type(None): "nothing", bool: "truth", int: "integer", float: "number", str: "text"}
_LARGEST: Final = 2**63
_LARGEST_EXACT: Final = 2**53
"""Up to here a number of 64 bits holds each whole one."""

_NUMBER_BYTES: Final = 8
_MOST_BYTES: Final = 2**24
"""Of rows that are gathered, whatever their number."""


class ParquetRow(NamedTuple):
    """A record as a parquet file takes it.

    Attributes:
        version: Of the columns.
        cells: One value for each.
    """

    version: int
    cells: list[Any]


class ParquetRows:
    """Records with the same fields.

    Args:
        declared: The format.
        context: Of the node.
        kinds: The kind of each column, as an earlier run has found it.
    """

    goes_on: ClassVar[bool] = False

    def __init__(
        self, declared: ParquetFormat, context: Context, kinds: Mapping[str, str] | None
    ) -> None:
        self._format = declared
        self._context = context
        self._kinds = dict(kinds or {})
        self._version = 0
        self._schemas = {0: self._schema()}

    @property
    def fields(self) -> dict[str, str]:
        """The kind of each column."""
        return dict(self._kinds)

    def encode(self, batch: Batch) -> Encoded:
        """Return the rows of records, and why one has none."""
        if not self._kinds:
            self._kinds = dict.fromkeys(fields_of(batch), "nothing")
        rows: list[Any] = []
        causes: dict[int, str] = {}
        for index, value in enumerate(batch.rows()):
            try:
                rows.append(self._row(value))
            except Exception as error:  # values are of any type, and may raise anything
                causes[index] = f"expected values that a parquet row holds, found {error}"
        self._schemas = {
            version: schema
            for version, schema in self._schemas.items()
            if version >= min((row.version for row in rows), default=self._version)
        }
        return Encoded(rows, causes)

    def runs(self, payloads: list[ParquetRow]) -> Iterator[list[ParquetRow]]:
        """Yield rows of the same columns."""
        for _, run in groupby(payloads, attrgetter("version")):
            yield list(run)

    def size_of(self, payload: ParquetRow) -> int:
        """Return about what it takes before it is packed."""
        return sum(map(_size_of, payload.cells))

    def opened(self, path: Path, payloads: list[ParquetRow], *, is_new: bool) -> ParquetPart:
        """Open a file for rows of the columns of the first one."""
        version = payloads[0].version
        return ParquetPart(path, version, self._schemas[version], self._format)

    def mend(self, path: Path) -> bool:
        """Remove a file that a crash has left without its end, which nobody can read."""
        logger.warning(
            "%s: removed %s, which a crash had left without its end", self._context.name, path.name
        )
        path.unlink()
        return False

    def _row(self, value: Any) -> ParquetRow:
        if not self._kinds or not isinstance(value, Mapping):
            message = f"no fields in {type(value).__name__}"
            raise TypeError(message)
        if not value.keys() <= self._kinds.keys():
            unknown = ", ".join(str(name) for name in value if name not in self._kinds)
            message = f"the unknown fields {unknown}"
            raise ValueError(message)
        pairs = {name: _cell(value.get(name)) for name in self._kinds}
        wider = {name: _joined(name, known, pairs[name]) for name, known in self._kinds.items()}
        if wider != self._kinds:
            self._kinds = wider
            self._version += 1
            self._schemas[self._version] = self._schema()
        return ParquetRow(self._version, [cell for _, cell in pairs.values()])

    def _schema(self) -> pa.Schema:
        return pa.schema([(name, _TYPES[kind]) for name, kind in self._kinds.items()])


def _cell(value: Any) -> tuple[str, Any]:
    """Return the kind of a value, and the value as a column of that kind takes it."""
    if (kind := _KINDS.get(type(value))) is not None:
        if kind == "integer" and not -_LARGEST <= value < _LARGEST:
            message = f"a whole number of more than 64 bits: {value}"
            raise ValueError(message)
        if kind == "text":
            value.encode()
        return kind, value
    if getattr(value, "ndim", None) == 0:
        return _cell(value.item())
    if isinstance(value, bytes | bytearray | memoryview):
        return "bytes", bytes(value)
    entries = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(entries, list | tuple):
        kinds = {_cell(entry)[0] if isinstance(entry, int | float) else "" for entry in entries}
        if kinds <= {"integer"}:
            return "integers", list(entries)
        if kinds <= {"integer", "number"}:
            return "numbers", list(map(float, entries))
    return "text", dump_json(value).decode()


def _joined(name: str, known: str, pair: tuple[str, Any]) -> str:
    """Return the kind of a column that holds a value, too.

    Raises:
        ValueError: There is none.
    """
    kind, cell = pair
    if kind in ("nothing", known):
        return known
    if known == "nothing":
        return kind
    if _WIDER.get(known) == kind or _WIDER.get(kind) == known:
        entries = cell if isinstance(cell, list) else [cell]
        if all(abs(entry) <= _LARGEST_EXACT for entry in entries if isinstance(entry, int)):
            return kind if _WIDER.get(known) == kind else known
    message = f"{kind} in the field {name}, which holds {known}"
    raise ValueError(message)


def _size_of(cell: Any) -> int:
    if isinstance(cell, str | bytes):
        return len(cell)
    return _NUMBER_BYTES * (len(cell) if isinstance(cell, list) else 1)


class ParquetPart:
    """A file of rows, which are gathered and written a group at a time.

    Args:
        path: Where it lies.
        version: Of its columns.
        schema: These.
        declared: The format.
    """

    def __init__(
        self, path: Path, version: int, schema: pa.Schema, declared: ParquetFormat
    ) -> None:
        self._version = version
        self._schema = schema
        self._most_rows = declared.row_group
        self._rows: list[list[Any]] = []
        self._num_bytes = 0
        self._file = path.open("wb")
        self._writer = pq.ParquetWriter(
            self._file, schema, compression=declared.compression, write_page_checksum=True
        )

    def takes(self, payloads: list[ParquetRow]) -> bool:
        """Say whether rows have its columns."""
        return payloads[0].version == self._version

    def write(self, payloads: list[ParquetRow], *, is_first: bool) -> None:
        """Gather rows, and write them if there are many."""
        for row in payloads:
            self._rows.append(row.cells)
            self._num_bytes += sum(map(_size_of, row.cells))
            if len(self._rows) == self._most_rows or self._num_bytes >= _MOST_BYTES:
                self._write_group()

    def flush(self) -> None:
        """Do nothing: what is in the file cannot be read before its end is there."""

    def end(self) -> int:
        """Write the rest and the end, and return the file's length in bytes."""
        self._write_group()
        self._writer.close()
        self._file.flush()
        return self._file.tell()

    def sync(self) -> None:
        """Put the file on disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write_group(self) -> None:
        if not self._rows:
            return
        columns = zip(*self._rows, strict=True)
        arrays = [
            pa.array(cells, kind) for cells, kind in zip(columns, self._schema.types, strict=True)
        ]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
        self._rows, self._num_bytes = [], 0
