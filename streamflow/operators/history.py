"""The records before, as fields of each record."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

from pydantic import Field

from streamflow.contracts import Context, Processed
from streamflow.operators.fields import FieldNames
from streamflow.operators.keys import KeyedOperator, KeyedStep
from streamflow.operators.step import note_absent, with_new_values
from streamflow.records import Batch, column_items, split_rejected


class History(KeyedOperator):
    """Adds to each record what the last records of its key held, oldest first, as lists.

    A model takes such a list as so many features. A record that lacks one of the fields, or has no
    fields at all, is rejected and not remembered. The report counts the records left out by
    ``start: skip``.
    """

    type: Literal["history"] = "history"
    fields: FieldNames = Field(description="Names of the fields to remember.")
    length: int = Field(ge=1, description="How many values of each.")
    current: bool = Field(
        True,
        description="Whether the record's own values are the last ones; false for those before it "
        "alone, as where a model is to predict the field.",
    )
    start: Literal["skip", "pad", "short"] = Field(
        "skip",
        description="What becomes of the first records of a key: they are left out (skip), the "
        "oldest value is repeated in front (pad), or the lists are shorter (short). With pad, a "
        "record before which there is none is left out.",
    )
    suffix: str = Field(
        "_history",
        min_length=1,
        description="What the names of the new fields end with, after those of the old ones.",
    )

    def open(self, context: Context) -> AbstractContextManager[HistoryStep]:
        """Give a processor that has seen nothing yet."""
        return nullcontext(HistoryStep(self))


class HistoryStep(KeyedStep[deque[tuple[Any, ...]]]):
    """An open `History`, which remembers the last values of each key."""

    def __init__(self, operator: History) -> None:
        super().__init__(operator)
        self._names = operator.fields
        self._new_names = [name + operator.suffix for name in operator.fields]
        self._length = operator.length
        self._has_current = operator.current
        self._start = operator.start

    def process(self, batch: Batch) -> Processed:
        """Return the records with their history."""
        columns = [list(column_items(batch.column(name))) for name in self._names]
        causes: dict[int, str] = {}
        for name, column in zip(self._names, columns, strict=True):
            note_absent(batch, name, column, causes)
        entries = list(zip(*columns, strict=True))
        found = {
            index: history
            for index, key, _ in self._each(batch, causes)
            if (history := self._history(key, entries[index])) is not None
        }
        self._num_left_out += len(batch) - len(found) - len(causes)
        _, rejected = split_rejected(batch, causes)
        if not found:
            return Processed(rejected=rejected)
        kept = batch.select(list(found))
        values = [
            {**row, **self._lists(past)}
            for row, past in zip(kept.rows(), found.values(), strict=True)
        ]
        return Processed(with_new_values(kept, values), rejected)

    def _lists(self, past: Sequence[tuple[Any, ...]]) -> dict[str, list[Any]]:
        """Return past entries as one list for each field."""
        places = enumerate(self._new_names)
        return {name: [entry[place] for entry in past] for place, name in places}

    def _history(self, key: Any, entry: tuple[Any, ...]) -> list[tuple[Any, ...]] | None:
        """Return the last entries of a key, oldest first; nothing where they are too few."""
        known = self._states.get(key)
        if known is None:
            known = deque(maxlen=self._length)
        past = list(known)
        known.append(entry)
        self._states.put(key, known)
        if self._has_current:
            past = list(known)
        lacking = self._length - len(past)
        if lacking and (self._start == "skip" or (self._start == "pad" and not past)):
            return None
        return [past[0]] * lacking + past if lacking and self._start == "pad" else past

    def _save(self, state: deque[tuple[Any, ...]]) -> Any:
        return list(state)

    def _load(self, state: Any) -> deque[tuple[Any, ...]]:
        return deque(state, self._length)
