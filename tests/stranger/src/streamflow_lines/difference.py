"""How much a field has changed: an example of an operator."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

from pydantic import Field

from streamflow.contracts import Context, Processed
from streamflow.nodes import Operator
from streamflow.operators.step import Step, absent, with_new_values
from streamflow.records import MISSING, Batch, column_items, split_rejected


class Difference(Operator):
    """Replaces a number by its change since the record before it of the same key."""

    type: Literal["difference"] = "difference"
    field: str = Field(description="The field to replace.")
    max_keys: int = Field(10_000, ge=1, description="Keys to remember; the oldest goes first.")

    def open(self, context: Context) -> AbstractContextManager[DifferenceStep]:
        return nullcontext(DifferenceStep(self.field, self.max_keys))


class DifferenceStep(Step):
    """An open operator."""

    def __init__(self, field: str, max_keys: int) -> None:
        self._field = field
        self._max_keys = max_keys
        self._last: dict[Any, float] = {}  # by key, the one that came last at the end

    def process(self, batch: Batch) -> Processed:
        """Return the records with their changes; those without a number are rejected."""
        causes: dict[int, str] = {}
        changes: list[float] = []
        keys = batch.keys or [None] * len(batch)
        numbers = column_items(batch.column(self._field))
        for index, (key, number) in enumerate(zip(keys, numbers, strict=True)):
            if number is MISSING:
                causes[index] = absent(batch, index, self._field)
            elif type(number) not in (int, float):
                causes[index] = f"expected a number in {self._field}, found {number!r}"
            else:
                changes.append(number - self._last.pop(key, number))
                self._last[key] = number
                if len(self._last) > self._max_keys:
                    del self._last[next(iter(self._last))]
        good, rejected = split_rejected(batch, causes)
        if not changes:
            return Processed(rejected=rejected)
        pairs = zip(good.rows(), changes, strict=True)
        values = [{**row, self._field: change} for row, change in pairs]
        return Processed(with_new_values(good, values), rejected)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint has to keep."""
        return {"last": [[key, number] for key, number in self._last.items()]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` has returned."""
        self._last = dict(state["last"])
