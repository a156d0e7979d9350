"""The times of records: their timestamps, or what one of their fields holds."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal, TypeAlias

from streamflow.operators.step import note_absent
from streamflow.records import Batch, column_items

TimeUnit: TypeAlias = Literal["s", "ms", "us"]

PER_SECOND: Final[dict[TimeUnit, int]] = {"s": 1, "ms": 1000, "us": 1_000_000}

LARGEST_MS = 10**15
"""Of a time; it is in the year 33658."""


def read_times(
    batch: Batch, name: str | None, unit: TimeUnit, causes: dict[int, str]
) -> Sequence[int]:
    """Return each record's time in milliseconds, any where it has none.

    Args:
        batch: The records.
        name: The field that holds the time; ``None`` for the record's timestamp.
        unit: Of numbers in that field.
        causes: Takes why a record has no time, by its index, unless there is a cause already.
    """
    if name is None:
        return _read(batch.timestamps_ms or [None] * len(batch), _timestamp, causes)
    column = column_items(batch.column(name))
    note_absent(batch, name, column, causes)
    return _read(column, lambda value: _of_field(value, name, unit), causes)


def _read(entries: Any, read: Callable[[Any], int], causes: dict[int, str]) -> list[int]:
    times = []
    for index, entry in enumerate(entries):
        try:
            times.append(read(entry))
        except ValueError as error:
            causes.setdefault(index, str(error))
            times.append(0)
    return times


def _timestamp(timestamp_ms: int | None) -> int:
    if timestamp_ms is None:
        message = "expected a time, found none; name the field that holds it in time"
        raise ValueError(message)
    return timestamp_ms


def _of_field(value: Any, name: str, unit: TimeUnit) -> int:
    """Return a time in milliseconds.

    Raises:
        ValueError: It is none.
    """
    time_ms = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        time_ms = value * 1000 / PER_SECOND[unit] if unit != "ms" else value
    elif isinstance(value, str):
        time_ms = _of_text(value)
    if not abs(time_ms) <= LARGEST_MS:
        message = f"{name}: expected a time, found {reprlib.repr(value)}"
        raise ValueError(message)
    return round(time_ms)


def _of_text(text: str) -> float:
    """Return a time of ISO 8601, in UTC unless it says where; not a number if it is none."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return math.nan
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() * 1000
