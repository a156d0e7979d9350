"""Records and the batches they travel in.

A batch is a unit of efficiency and never of meaning: results are the same however a stream is cut
into batches. It is columnar throughout. Keys, timestamps, positions and payloads are one sequence
each; the values are one column per field where all records are mappings with the same fields in
the same order, else a plain list. Both layouts mean the same records: code that only needs one
field asks for `Batch.column`, code that needs whole values for `Batch.rows`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, repeat
from operator import is_, itemgetter
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    import numpy as np

Column: TypeAlias = "list[Any] | np.ndarray[Any, Any]"
"""One entry per record: a list, or an array whose first axis is the record."""

Columns: TypeAlias = dict[str, Column]
Values: TypeAlias = "list[Any] | Columns"
Headers: TypeAlias = tuple[tuple[str, bytes], ...]


class Missing:
    """The type of `MISSING`."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = Missing()
"""Stands in a column for a record that does not have the field."""


Place: TypeAlias = "tuple[tuple[str, str | int], ...]"
"""What identifies a partition within its source, as (name, value) pairs."""


def show_place(place: Place) -> str:
    """Return a partition as text: ``topic=t partition=0``."""
    return " ".join(f"{name}={value}" for name, value in place)


@dataclass(frozen=True, slots=True)
class Partition:
    """One ordered run of records of a source: a Kafka partition, a file, a queue.

    Attributes:
        source: Name of the source node.
        place: What identifies the partition within it, as (name, value) pairs:
            ``(("topic", "t"), ("partition", 0))`` or ``(("path", "a.csv"),)``.
        unit: What its positions count: ``offset``, ``line``, ``index``.
        epoch: Grows each time the partition is assigned to this reader anew, so that a position of
            an earlier assignment is never committed in a later one.
    """

    source: str
    place: Place = ()
    unit: str = "index"
    epoch: int = 0

    def position(self, offset: int) -> dict[str, str | int]:
        """Return a record's position as output records show it."""
        return {**dict(self.place), self.unit: offset}

    def __str__(self) -> str:
        return " ".join([self.source, *(f"{name}={value}" for name, value in self.place)])


@dataclass(frozen=True, slots=True)
class Record:
    """One element of a stream, for code that looks at single records."""

    value: Any
    key: Any = None
    timestamp_ms: int | None = None
    headers: Headers = ()
    position: Mapping[str, str | int] | None = None
    sender: str | None = None


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Batch:
    """Consecutive records, in columns.

    Attributes:
        values: Columns by field name, or a list of values.
        partitions: Each record's partition.
        offsets: Each record's position within its partition.
        keys: Each record's key; ``None`` if no record has one.
        timestamps_ms: Each record's time in milliseconds since 1970 UTC, likewise.
        headers: Each record's headers, likewise.
        originals: The bytes that each record was decoded from, kept for dead letters.
        size_bytes: About how much memory the batch holds, for bounding channels.
        senders: The input that each record came by, for a node whose declaration has
            ``tells_senders``; ``None`` for every other one.
    """

    values: Values
    partitions: Sequence[Partition]
    offsets: Sequence[int]
    keys: Sequence[Any] | None = None
    timestamps_ms: Sequence[int | None] | None = None
    headers: Sequence[Headers] | None = None
    originals: Sequence[bytes] | None = None
    size_bytes: int = 0
    senders: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.offsets)

    def __repr__(self) -> str:
        layout = f"columns {list(self.values)}" if isinstance(self.values, dict) else "rows"
        return f"<Batch {len(self)} records, {layout}, {self.size_bytes} bytes>"

    def rows(self) -> list[Any]:
        """Return the values one by one; columns become one new dict per record."""
        if not isinstance(self.values, dict):
            return self.values
        names = tuple(self.values)
        if not names:
            return [{} for _ in range(len(self))]
        entries = zip(*map(column_items, self.values.values()), strict=True)
        return list(map(dict, map(zip, repeat(names), entries)))

    def column(self, name: str) -> Column:
        """Return one field of all records, `MISSING` where a record does not have it."""
        if isinstance(self.values, dict):
            column = self.values.get(name)
            return [MISSING] * len(self) if column is None else column
        return [
            value.get(name, MISSING) if isinstance(value, Mapping) else MISSING
            for value in self.values
        ]

    def records(self) -> Iterator[Record]:
        """Yield the records as objects of their own."""
        empty: Sequence[Any] = [None] * len(self)
        for value, key, timestamp_ms, headers, partition, offset, sender in zip(
            self.rows(),
            self.keys or empty,
            self.timestamps_ms or empty,
            self.headers or empty,
            self.partitions,
            self.offsets,
            self.senders or empty,
            strict=True,
        ):
            position = partition.position(offset)
            yield Record(value, key, timestamp_ms, headers or (), position, sender)

    def positions(self) -> list[dict[str, str | int]]:
        """Return each record's position as output records show it."""
        positions: list[dict[str, str | int]] = []
        pairs = zip(self.partitions, self.offsets, strict=True)
        for partition, run in groupby(pairs, key=itemgetter(0)):
            place, unit = dict(partition.place), partition.unit
            positions += [{**place, unit: offset} for _, offset in run]
        return positions

    def with_values(self, values: Values) -> Batch:
        """Return the same records with other values, one for each."""
        return replace(self, values=values)

    def select(self, indices: Sequence[int]) -> Batch:
        """Return the records at ``indices``, in that order."""
        if len(indices) == len(self) and all(map(int.__eq__, indices, range(len(self)))):
            return self
        return self._each(lambda column: _take(column, indices), len(indices))

    def slice(self, start: int, stop: int) -> Batch:
        """Return the records from ``start`` up to ``stop``, as Python slices do."""
        if start == 0 and stop >= len(self):
            return self
        length = len(range(*slice(start, stop).indices(len(self))))
        return self._each(lambda column: column[start:stop], length)

    def _each(self, part: Any, length: int) -> Batch:
        """Return the batch with ``part`` of every column."""

        def optional(column: Any) -> Any:
            return None if column is None else part(column)

        values = self.values
        return Batch(
            values={name: part(column) for name, column in values.items()}
            if isinstance(values, dict)
            else part(values),
            partitions=part(self.partitions),
            offsets=part(self.offsets),
            keys=optional(self.keys),
            timestamps_ms=optional(self.timestamps_ms),
            headers=optional(self.headers),
            originals=optional(self.originals),
            size_bytes=self.size_bytes * length // max(len(self), 1),
            senders=optional(self.senders),
        )


@dataclass(frozen=True, slots=True)
class Rejected:
    """Records that a node could not use, on their way to the dead letters.

    Attributes:
        batch: The records.
        causes: Why each could not be used.
        indices: Their places, rising, in the batch that the node was given.
    """

    batch: Batch
    causes: Sequence[str]
    indices: Sequence[int]

    def __post_init__(self) -> None:
        assert len(self.batch) == len(self.causes) == len(self.indices)


def split_rejected(batch: Batch, causes: Mapping[int, str]) -> tuple[Batch, Rejected | None]:
    """Part ``batch`` into the records that are fine and those rejected, by index and cause."""
    if not causes:
        return batch, None
    bad = sorted(causes)
    good = [index for index in range(len(batch)) if index not in causes]
    return batch.select(good), Rejected(batch.select(bad), [causes[index] for index in bad], bad)


def concatenate(batches: Sequence[Batch]) -> Batch:
    """Return the records of all ``batches`` (at least one), in order, as one batch."""
    if len(batches) == 1:
        return batches[0]
    return Batch(
        values=_concatenate_values([batch.values for batch in batches], batches),
        partitions=[partition for batch in batches for partition in batch.partitions],
        offsets=[offset for batch in batches for offset in batch.offsets],
        keys=_concatenate_optional([batch.keys for batch in batches], batches, None),
        timestamps_ms=_concatenate_optional(
            [batch.timestamps_ms for batch in batches], batches, None
        ),
        headers=_concatenate_optional([batch.headers for batch in batches], batches, ()),
        originals=_concatenate_optional([batch.originals for batch in batches], batches, b""),
        size_bytes=sum(batch.size_bytes for batch in batches),
        senders=_concatenate_optional([batch.senders for batch in batches], batches, ""),
    )


def to_columns(rows: list[Any]) -> Values:
    """Return ``rows`` as columns where they are mappings with the same fields in the same order."""
    if not rows or type(rows[0]) is not dict:
        return rows
    names = tuple(rows[0])
    if not all(type(row) is dict and tuple(row) == names for row in rows):
        return rows
    columns = zip(*map(dict.values, rows), strict=True)
    return dict(zip(names, map(list, columns), strict=True))


def if_any(column: list[Any]) -> list[Any] | None:
    """Return keys, timestamps or headers of records; ``None`` where none of them has one."""
    return column if any(entry is not None and entry != () for entry in column) else None


def without_missing(columns: Columns, count: int) -> Values:
    """Return columns of ``count`` entries as values of records without the fields they miss."""
    missing = {
        name: sum(map(is_, column, repeat(MISSING)))
        for name, column in columns.items()
        if isinstance(column, list)
    }
    present = {name: column for name, column in columns.items() if missing.get(name, 0) < count}
    if not any(missing[name] for name in present if name in missing):
        return present
    rows = zip(*map(column_items, present.values()), strict=True)
    return [
        {name: entry for name, entry in zip(present, row, strict=True) if entry is not MISSING}
        for row in rows
    ]


def column_items(column: Column) -> Iterable[Any]:
    """Return a column's entries as plain Python objects (of two axes and more: as arrays)."""
    if isinstance(column, list) or column.ndim > 1:
        return column
    return column.tolist()  # type: ignore[no-any-return]  # numpy types it by the array's dtype


def estimate_bytes(value: Any, *, levels: int = 8) -> int:
    """Return about how much memory a decoded value takes; cheap, and never exact.

    Mappings within mappings count down to so many ``levels``: a record may nest without end.
    """
    if isinstance(value, Mapping):
        inner = value.values() if levels else ()
        return 64 + sum(32 + estimate_bytes(item, levels=levels - 1) for item in inner)
    if isinstance(value, list | tuple):
        return 64 + 16 * len(value)
    return int(getattr(value, "nbytes", 0)) or 32 + (
        len(value) if isinstance(value, str | bytes) else 0
    )


def _take(column: Any, indices: Sequence[int]) -> Any:
    """Return the entries at ``indices`` of a list, range or array."""
    if hasattr(column, "ndim"):
        return column[list(indices)]  # a tuple would mean axes
    return [column[index] for index in indices]


def _concatenate_values(parts: list[Values], batches: Sequence[Batch]) -> Values:
    first = parts[0]
    if isinstance(first, dict) and all(
        isinstance(part, dict) and tuple(part) == tuple(first) for part in parts
    ):
        return {
            name: _concatenate_columns([part[name] for part in parts])  # type: ignore[call-overload]
            for name in first
        }
    return [value for batch in batches for value in batch.rows()]


def _concatenate_columns(columns: list[Column]) -> Column:
    if len({_layout(column) for column in columns}) == 1 and hasattr(columns[0], "ndim"):
        import numpy as np  # only batches that hold arrays need it

        return np.concatenate(columns)
    return [item for column in columns for item in column_items(column)]


def _layout(column: Column) -> object:
    """Return what arrays must have in common to be joined with each entry as it was."""
    return None if isinstance(column, list) else (column.dtype, column.shape[1:])


def _concatenate_optional(
    parts: list[Sequence[Any] | None], batches: Sequence[Batch], default: Any
) -> list[Any] | None:
    if all(part is None for part in parts):
        return None
    return [
        entry
        for part, batch in zip(parts, batches, strict=True)
        for entry in ([default] * len(batch) if part is None else part)
    ]
