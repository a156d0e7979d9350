"""A parquet file that is being read: a batch of its columns at a time, in bounded memory.

Text and bytes are read as indices into the distinct ones, so that a value that stands in every row
of a small file takes the memory of one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import anyio.lowlevel
import pyarrow as pa  # type: ignore[import-untyped]  # it ships no types
import pyarrow.compute as pc  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from streamflow.contracts import Context, Fetch
from streamflow.errors import ConnectorError
from streamflow.records import Batch, Column, Partition
from streamflow_connectors.files.reading.opened import CHUNK_BYTES, MOST_BYTES, MOST_RECORDS
from streamflow_connectors.files.stamp import Stamp


class OpenParquet:
    """One parquet file and how far it has been read.

    Args:
        path: As written in the graph.
        context: Of the node.
        start: The first row to return.
        stamp: What gives records their time, if anything does.

    Raises:
        ConnectorError: It is no parquet file, or has fewer rows than an earlier run has read.
    """

    def __init__(
        self, path: str, context: Context, *, start: int = 1, stamp: Stamp | None = None
    ) -> None:
        self._path = path
        self._context = context
        self._stamp = stamp
        self._next = start
        self._partition = Partition(context.name, (("path", path),), "line")
        self.is_at_end = False
        try:
            self._file = self._opened()
        except (OSError, ValueError, pa.ArrowException) as error:
            raise self._error(error) from error
        num_rows = self._file.metadata.num_rows
        if num_rows < start - 1:
            self.close()
            message = (
                f"{context.name}: expected at least {start - 1} rows in {path} as the checkpoint "
                f"says, found {num_rows}; restore the file, or use --reset to begin anew"
            )
            raise ConnectorError(message)
        self._batches = self._rest(start - 1)

    async def wait(self) -> None:
        """Do nothing: a file never makes a reader wait."""
        await anyio.lowlevel.checkpoint()

    def read(self) -> Fetch | None:
        """Return the next records; None at the end.

        Raises:
            ConnectorError: The file is damaged here.
        """
        try:
            found = next(self._batches, None)
            if found is None:
                self.is_at_end = True
                return None
            found.validate(full=True)  # damage may point beyond what is there
            names = found.schema.names
            values: dict[str, Column] = dict(zip(names, map(_entries, found.columns), strict=True))
        except (OSError, ValueError, pa.ArrowException) as error:
            raise self._error(error) from error
        start, self._next = self._next, self._next + found.num_rows
        batch = Batch(
            values,
            [self._partition] * found.num_rows,
            range(start, self._next),
            size_bytes=found.nbytes,
        )
        fetch = Fetch(batch, {self._partition: self._next})
        return self._stamp(fetch) if self._stamp else fetch

    def close(self) -> None:
        """Close the file."""
        self._file.close(force=True)

    def _opened(self) -> pq.ParquetFile:
        full = self._context.folder / self._path
        # Column by column in small reads: a row group may be larger than the memory.
        options: dict[str, Any] = {"buffer_size": CHUNK_BYTES, "pre_buffer": False}
        options["page_checksum_verification"] = True
        with pq.ParquetFile(full) as plain:
            names = plain.schema_arrow.names
            if len(set(names)) < len(names):
                message = "a column name that is there twice"
                raise ValueError(message)
            texts = [field.name for field in plain.schema_arrow if _is_text(field.type)]
        return pq.ParquetFile(full, read_dictionary=texts, **options)

    def _rest(self, num_read: int) -> Iterator[pa.RecordBatch]:
        """Yield what comes after so many rows, without reading the row groups before it."""
        metadata = self._file.metadata
        for index in range(metadata.num_row_groups):
            group = metadata.row_group(index)
            if group.num_rows <= num_read:
                num_read -= group.num_rows
                continue
            row_bytes = math.ceil(group.total_byte_size / group.num_rows)
            size = max(1, min(MOST_RECORDS, MOST_BYTES // max(row_bytes, 1)))
            for batch in self._file.iter_batches(size, row_groups=[index]):
                skipped = min(num_read, batch.num_rows)
                num_read -= skipped
                if skipped < batch.num_rows:
                    yield batch.slice(skipped)

    def _error(self, error: Exception) -> ConnectorError:
        found = " ".join(str(getattr(error, "strerror", None) or error).split())
        message = f"{self._context.name}: expected to read {self._path}, found {found} after row "
        return ConnectorError(f"{message}{self._next - 1}; repair the file or leave it out")


def _is_text(kind: pa.DataType) -> bool:
    return any(
        check(kind)
        for check in (
            *(pa.types.is_string, pa.types.is_large_string),
            *(pa.types.is_binary, pa.types.is_large_binary),
        )
    )


def _entries(column: pa.Array) -> Column:
    """Return a column's values, numbers that are all there as an array."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _distinct(column)
    is_number = pa.types.is_integer(kind) or pa.types.is_float32(kind) or pa.types.is_float64(kind)
    if is_number and not column.null_count:
        numbers: Column = column.to_numpy(zero_copy_only=False)
        return numbers
    if pa.types.is_timestamp(kind) and kind.unit == "ns":  # more than Python's times tell
        column = column.cast(pa.timestamp("us", kind.tz), safe=False)
    entries: list[Any] = column.to_pylist()
    is_plain = pa.types.is_boolean(kind) or is_number or pa.types.is_null(kind)
    return entries if is_plain else list(map(_plain, entries))


def _distinct(column: pa.DictionaryArray) -> list[Any]:
    """Return values of which those that are alike are one object."""
    used = pc.unique(column.indices).to_pylist()
    values = {index: column.dictionary[index].as_py() for index in used if index is not None}
    return [values.get(index) for index in column.indices.to_pylist()]


def _plain(value: Any) -> Any:
    """Return a value as the other formats have it."""
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, list):
        return list(map(_plain, value))
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return value
