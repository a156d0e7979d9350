"""What the processors here share: they are done with a batch when `process` returns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from streamflow.contracts import Processed
from streamflow.records import MISSING, Batch, estimate_bytes, to_columns

SIZED_VALUES = 16
"""How many values of a batch are looked at to estimate its size."""


class Step:
    """A processor that keeps no records back, has no figures to show, and remembers nothing."""

    def process(self, batch: Batch) -> Processed:
        """Return what becomes of ``batch``."""
        raise NotImplementedError

    def end(self) -> Processed:
        """Return nothing: nothing is kept back."""
        return Processed()

    def report(self) -> Mapping[str, Any]:
        """Return no figures."""
        return {}

    def state(self) -> dict[str, Any]:
        """Return nothing: nothing is kept from record to record."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over nothing."""


def absent(batch: Batch, index: int, name: str) -> str:
    """Return why a record is rejected that lacks the field ``name``."""
    if isinstance(batch.values, dict) or isinstance(value := batch.values[index], Mapping):
        return f"expected the field {name}, found none"
    return f"expected the field {name}, found a {type(value).__name__} without fields"


def note_absent(batch: Batch, name: str, column: Iterable[Any], causes: dict[int, str]) -> None:
    """Let ``causes`` tell of the records that lack a field, by the index."""
    for index, value in enumerate(column):
        if value is MISSING:
            causes.setdefault(index, absent(batch, index, name))


def without_fields(value: Any) -> str:
    """Return why a record is rejected that is to have fields, and has none."""
    return f"expected fields, found a {type(value).__name__} without"


def with_new_values(batch: Batch, values: list[Any]) -> Batch:
    """Return the batch with other values, at least one, and its size estimated anew."""
    return replace(batch, values=to_columns(values), size_bytes=size_of(values))


def size_of(values: list[Any]) -> int:
    """Return about how many bytes values take, at least one, estimated from a few of them."""
    sample = values[:: -(-len(values) // SIZED_VALUES)]
    return sum(map(estimate_bytes, sample)) * len(values) // len(sample)
