"""How payloads become values and values payloads, whole batches at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from streamflow.codecs import cells
from streamflow.codecs.values import (
    dump_json,
    dump_json_each,
    dump_msgpack,
    load_json,
    load_msgpack,
)
from streamflow.contracts import Codec, Decoded, Encoded, Fetch
from streamflow.records import Batch, Partition, Rejected, split_rejected, to_columns

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def decode(codec: Codec, batch: Batch, ends: Mapping[Partition, int], *, skipped: int = 0) -> Fetch:
    """Return what a reader received, from a batch whose ``originals`` are still to be decoded."""
    assert batch.originals is not None
    decoded = codec.decode(batch.originals)
    good, rejected = split_rejected(batch, decoded.causes)
    return Fetch(good.with_values(decoded.values), ends, rejected, skipped)


def encode(codec: Codec, batch: Batch) -> tuple[Batch, list[bytes], Rejected | None]:
    """Return the records that can be encoded, their payloads, and the records that cannot."""
    encoded = codec.encode(batch)
    good, rejected = split_rejected(batch, encoded.causes)
    return good, encoded.payloads, rejected


class JsonCodec:
    """One JSON value per payload."""

    def decode(self, payloads: Sequence[bytes]) -> Decoded:
        """Return values, and causes."""
        values, causes = _convert(load_json, payloads, "JSON")
        return Decoded(to_columns(values), causes)

    def encode(self, batch: Batch) -> Encoded:
        """Return payloads, and causes."""
        rows = batch.rows()
        try:
            return Encoded(dump_json_each(rows))
        except Exception:  # at least one is bad: find out which
            return Encoded(*_convert(dump_json, rows, "a value that JSON holds"))


class MsgpackCodec:
    """One msgpack value per payload."""

    def decode(self, payloads: Sequence[bytes]) -> Decoded:
        """Return values, and causes."""
        values, causes = _convert(load_msgpack, payloads, "msgpack")
        return Decoded(to_columns(values), causes)

    def encode(self, batch: Batch) -> Encoded:
        """Return payloads, and causes."""
        rows = batch.rows()
        return Encoded(*_convert(dump_msgpack, rows, "a value that msgpack holds"))


class CsvCodec:
    """Decodes and encodes rows whose cells are the values of ``fields``."""

    def __init__(self, fields: Sequence[str], *, delimiter: str, quotechar: str) -> None:
        self._fields = tuple(fields)
        self._known = frozenset(fields)
        self._dialect = {"delimiter": delimiter, "quotechar": quotechar}

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of the columns."""
        return self._fields

    def decode(self, payloads: Sequence[bytes]) -> Decoded:
        """Return columns by field."""
        num_fields = len(self._fields)
        numbers = cells.read_numbers(payloads, num_fields=num_fields, **self._dialect)
        if numbers is not None:
            return Decoded(dict(zip(self._fields, numbers, strict=True)))
        causes: Mapping[int, str] = {}
        try:
            rows = self._rows(payloads)
        except ValueError:  # at least one is bad: find out which
            rows, causes = _convert(
                lambda payload: self._rows([payload])[0],
                payloads,
                f"a csv row of {num_fields} fields",
            )
        columns = zip(*rows, strict=True) if rows else ((),) * num_fields
        values = map(cells.read_column, columns)
        return Decoded(dict(zip(self._fields, values, strict=True)), causes)

    def encode(self, batch: Batch) -> Encoded:
        """Return rows; a field that a record lacks is an empty cell, one too many an error."""
        rows, causes = _convert(self._cells, batch.rows(), "values that a csv row holds")
        return Encoded(cells.write_rows(rows, **self._dialect), causes)

    def header(self) -> bytes:
        """Return the row that names the fields."""
        return cells.write_rows([self._fields], **self._dialect)[0]

    def _rows(self, payloads: Iterable[bytes]) -> list[list[str]]:
        texts = [str(payload, "utf-8") for payload in payloads]
        return cells.read_rows(texts, num_fields=len(self._fields), **self._dialect)

    def _cells(self, value: Any) -> list[str | int | float | None]:
        if not self._fields or not isinstance(value, Mapping):
            message = f"no fields in {type(value).__name__}"
            raise TypeError(message)
        if not value.keys() <= self._known:
            unknown = ", ".join(str(name) for name in value if name not in self._known)
            message = f"the unknown fields {unknown}"
            raise ValueError(message)
        return [cells.write_cell(value.get(name)) for name in self._fields]


@dataclass(frozen=True, slots=True)
class RawCodec:
    """Bytes as they are.

    Attributes:
        is_line: Whether a payload with a line break within is rejected.
    """

    is_line: bool

    def decode(self, payloads: Sequence[bytes]) -> Decoded:
        """Return the payloads themselves."""
        return Decoded(list(payloads))

    def encode(self, batch: Batch) -> Encoded:
        """Return payloads, and causes."""
        return Encoded(*_convert(self._payload, batch.rows(), "bytes or text"))

    def _payload(self, value: Any) -> bytes:
        if not isinstance(value, str | bytes | bytearray | memoryview):
            raise TypeError(type(value).__name__)
        payload = value.encode() if isinstance(value, str) else bytes(value)
        if self.is_line and b"\n" in payload:
            message = "a line break within, which would end the record"
            raise ValueError(message)
        return payload


def _convert(
    convert: Callable[[_Item], _Result], items: Sequence[_Item], expected: str
) -> tuple[list[_Result], dict[int, str]]:
    """Return ``items`` converted, and the cause for each that cannot be."""
    try:
        return list(map(convert, items)), {}
    except Exception:  # at least one is bad: find out which
        results: list[_Result] = []
        causes: dict[int, str] = {}
        for index, item in enumerate(items):
            try:
                results.append(convert(item))
            except Exception as error:  # values are of any type, and may raise anything
                causes[index] = f"expected {expected}, found {error}"
        return results, causes
