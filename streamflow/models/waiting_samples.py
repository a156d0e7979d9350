"""Records that wait for their targets, as columns, so that copying all of them is quick.

Theory of operation. Every key has a row, every record a slot, and each slot tells the next one of
its key. What is given up is used again, the last first. Here key a holds two records, b one:

    row     first  last  count             slot    0    1    2    3
    a  0      2      1     2               next    -    -    1    -         slot 3 is free
    b  1      0      0     1               inputs  b    a'   a    ?

A state is a copy of all columns as they stand, free slots included: what goes on from it uses the
same slots.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from streamflow.models.heads import Predicted

NOWHERE = -1

INTEGERS = ("first", "last", "counts", "free_rows", "next", "free_slots")
"""Columns of whole numbers."""


@dataclass(frozen=True, slots=True)
class WaitingSample:
    """A record that waits for its target.

    Attributes:
        inputs: Its input (1, ...).
        predicted: What was predicted.
        previous: The newest target of its key at that time (of any key, if it had none yet), as
            plain data, for the no-change baseline.
    """

    inputs: Tensor
    predicted: Predicted
    previous: Any


class WaitingSamples:
    """Records by key, oldest first, and the newest target of each key."""

    def __init__(self) -> None:
        self._rows: OrderedDict[Hashable, int] = OrderedDict()  # not seen for longest first
        self._first = array("q")
        self._last = array("q")
        self._counts = array("q")
        self._newest: list[Any] = []
        self._free_rows = array("q")
        self._inputs: Tensor | None = None
        self._next = array("q")
        self._predicted: dict[str, list[Any]] = {}
        self._previous: list[Any] = []
        self._free_slots = array("q")

    def __len__(self) -> int:
        return len(self._next) - len(self._free_slots)

    def __repr__(self) -> str:
        return f"<WaitingSamples {len(self)} records of {len(self._rows)} keys>"

    @property
    def num_keys(self) -> int:
        """How many keys there are."""
        return len(self._rows)

    def row_of(self, key: Hashable) -> int:
        """Return the row of a key, which is now the one seen last."""
        row = self._rows.get(key)
        if row is not None:
            self._rows.move_to_end(key)
            return row
        if self._free_rows:
            row = self._free_rows.pop()
        else:
            row = len(self._first)
            self._first.append(NOWHERE)
            self._last.append(NOWHERE)
            self._counts.append(0)
            self._newest.append(None)
        self._rows[key] = row
        return row

    def drop_oldest(self) -> int:
        """Forget the key not seen for longest; return how many records it held."""
        _, row = self._rows.popitem(last=False)
        count = self._counts[row]
        while self._counts[row]:
            self._release(row)
        self._newest[row] = None
        self._free_rows.append(row)
        return count

    def count(self, row: int) -> int:
        """Return how many records of a key wait."""
        return self._counts[row]

    def newest(self, row: int) -> Any:
        """Return the newest target of a key, None if it has had none."""
        return self._newest[row]

    def set_newest(self, row: int, target: Any) -> None:
        """Take note of the newest target of a key."""
        self._newest[row] = target

    def push(self, row: int, held: WaitingSample) -> None:
        """Hold a record, which is copied."""
        slot = self._free_slots.pop() if self._free_slots else self._new_slot(held)
        assert self._inputs is not None
        self._inputs[slot] = held.inputs[0]
        self._previous[slot] = held.previous
        for name, column in held.predicted.items():
            self._predicted[name][slot] = column[0]
        if self._counts[row]:
            self._next[self._last[row]] = slot
        else:
            self._first[row] = slot
        self._next[slot] = NOWHERE
        self._last[row] = slot
        self._counts[row] += 1

    def pop(self, row: int) -> WaitingSample:
        """Return the record of a key that has waited longest, and hold it no more."""
        assert self._inputs is not None
        slot = self._first[row]
        predicted = {name: [column[slot]] for name, column in self._predicted.items()}
        held = WaitingSample(self._inputs[slot : slot + 1].clone(), predicted, self._previous[slot])
        self._release(row)
        return held

    def state(self) -> dict[str, Any]:
        """Return copies of all columns."""
        inputs = self._inputs
        integers = {name: getattr(self, f"_{name}") for name in INTEGERS}
        return {
            **{name: np.array(column, np.int64) for name, column in integers.items()},
            "keys": list(self._rows),
            "rows": np.array(list(self._rows.values()), np.int64),
            "newest": list(self._newest),
            "inputs": None if inputs is None else inputs[: len(self._next)].clone(),
            "predicted": {name: list(column) for name, column in self._predicted.items()},
            "previous": list(self._previous),
        }

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> WaitingSamples:
        """Return the records whose `state` this was; the state stays the caller's."""
        waiting = cls()
        for name in INTEGERS:
            column = np.ascontiguousarray(state[name], np.int64)
            setattr(waiting, f"_{name}", array("q", column.tobytes()))
        waiting._rows = OrderedDict(zip(state["keys"], state["rows"].tolist(), strict=True))
        waiting._newest = list(state["newest"])
        waiting._inputs = None if state["inputs"] is None else state["inputs"].clone()
        waiting._predicted = {name: list(column) for name, column in state["predicted"].items()}
        waiting._previous = list(state["previous"])
        return waiting

    def _release(self, row: int) -> None:
        """Give up the slot of a key's first record."""
        slot = self._first[row]
        self._first[row] = self._next[slot]
        self._counts[row] -= 1
        self._previous[slot] = None
        for column in self._predicted.values():
            column[slot] = None
        self._free_slots.append(slot)

    def _new_slot(self, held: WaitingSample) -> int:
        slot = len(self._next)
        self._next.append(NOWHERE)
        self._previous.append(None)
        for name in held.predicted:
            self._predicted.setdefault(name, []).append(None)
        if self._inputs is None or slot == len(self._inputs):
            grown = held.inputs.new_zeros(max(1, 2 * slot), *held.inputs.shape[1:])
            if self._inputs is not None:
                grown[:slot] = self._inputs
            self._inputs = grown
        return slot
