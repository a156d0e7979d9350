"""Entries of Redis streams as records, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from streamflow.codecs.cells import read_cell
from streamflow.codecs.values import dump_json
from streamflow.errors import ConnectorError
from streamflow.records import Partition
from streamflow_connectors.network.reading import Item

SEQUENCE_BITS: Final = 20
"""Of a position; more than a million entries within a millisecond are an error."""

MOST: Final = 2**63

KEY: Final = b"key"
TIME: Final = b"time"


def position_of(entry: bytes) -> int:
    """Return the position of an entry by its id.

    Raises:
        ConnectorError: The id is too large.
    """
    milliseconds, _, sequence = entry.partition(b"-")
    position = (int(milliseconds) << SEQUENCE_BITS) + int(sequence)
    if int(sequence) >= 2**SEQUENCE_BITS or position >= MOST:
        message = (
            f"expected ids of entries below {MOST >> SEQUENCE_BITS}-{2**SEQUENCE_BITS}, "
            f"found {entry.decode()}; let the server give ids"
        )
        raise ConnectorError(message)
    return position


def id_of(position: int) -> bytes:
    """Return the id of the entry at a position; that before the first one for -1."""
    found = max(position, 0)
    return b"%d-%d" % (found >> SEQUENCE_BITS, found & (2**SEQUENCE_BITS - 1))


def to_item(
    entry: bytes, fields: Mapping[bytes, bytes], payload: str | None, partition: Partition
) -> Item:
    """Return an entry as a record, its value still in bytes."""
    offset = position_of(entry)
    at: dict[str, Any] = {"partition": partition, "offset": offset}
    if payload is None:
        return _of_fields(fields, offset >> SEQUENCE_BITS, at)
    value = fields.get(payload.encode())
    if value is None:
        names = ", ".join(name.decode(errors="replace") for name in fields)
        cause = f"expected the field {payload} with the value, found only {names}"
        return Item(b"", cause=cause, **at)
    time = fields.get(TIME, b"")
    timestamp_ms = int(time) if time.isdigit() else offset >> SEQUENCE_BITS
    key = fields.get(KEY)
    return Item(value, None if key is None else _text(key), timestamp_ms, **at)


def _of_fields(fields: Mapping[bytes, bytes], timestamp_ms: int, at: dict[str, Any]) -> Item:
    try:
        names = [name.decode() for name in fields]
        cells = [cell.decode() for cell in fields.values()]
    except UnicodeDecodeError as error:
        shown = b" ".join(fields.values())
        return Item(shown, cause=f"expected fields of text in UTF-8, found {error}", **at)
    payload = dump_json(dict(zip(names, map(read_cell, cells), strict=True)))
    return Item(payload, timestamp_ms=timestamp_ms, **at)


def _text(key: bytes) -> str | bytes:
    try:
        return key.decode()
    except UnicodeDecodeError:
        return key
