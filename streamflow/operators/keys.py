"""Keys of records, and what operators remember of each, within bounds.

A key is what the record's key says, or fields of it together. What is remembered of a key is given
up when it has not been seen for ``ttl``, by the clock of the stream: the time of the newest record
so far. So it depends on the records and their order alone.
"""

from __future__ import annotations

import math
import reprlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Final, Generic, TypeAlias, TypeVar

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from streamflow.contracts import Processed
from streamflow.nodes.declarations import Operator
from streamflow.nodes.units import SpanField, milliseconds
from streamflow.operators.fields import FieldNames
from streamflow.operators.step import Step, note_absent
from streamflow.operators.times import TimeUnit, read_times
from streamflow.records import MISSING, Batch, column_items, split_rejected

S = TypeVar("S")

PLAIN: Final = frozenset({str, bytes, int, bool, type(None)})
"""What can be a key without a closer look."""


def _listed(by: object) -> object:
    return (by,) if isinstance(by, str) else by


ByField: TypeAlias = Annotated[
    FieldNames,
    BeforeValidator(_listed),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "minItems": 1},
            ]
        }
    ),
]
"""A field that holds names of fields, or a single one."""


class KeyedOperator(Operator):
    """Declares an operator that remembers something of each key.

    Attributes:
        needs_time: Whether each record must have a time, also without ``ttl``.
    """

    blocking: ClassVar[bool] = True
    incidental: ClassVar[frozenset[str]] = frozenset({"max_keys"})
    needs_time: ClassVar[bool] = False

    by: ByField | None = Field(
        None,
        description="Names of the fields that together are the key, or one name; without it the "
        "key of the record.",
    )
    max_keys: int = Field(
        100_000,
        ge=1,
        description="Keys to remember; beyond, the one not seen for longest is given up.",
    )
    ttl: SpanField | None = Field(
        None,
        description="How long a key is remembered that no record comes for, such as 10m or 1d, by "
        "the time of the newest record of all.",
    )
    time: str | None = Field(
        None,
        description="Name of the field that holds the time of a record, a number or text as in ISO "
        "8601; without it the timestamp of the record.",
    )
    time_unit: TimeUnit = Field(
        "s", description="Of numbers in that field: seconds, milliseconds or microseconds."
    )

    @model_validator(mode="after")
    def _check_time(self) -> KeyedOperator:
        if self.time is None and self.time_unit != "s":
            message = "expected time beside time_unit, found none; name the field that holds it"
            raise ValueError(message)
        if self.time is not None and self.ttl is None and not self.needs_time:
            message = "expected ttl beside time, found none; time is of no use without it"
            raise ValueError(message)
        return self


class KeyedStates(Generic[S]):
    """What is remembered of each key."""

    def __init__(self, max_keys: int, ttl: float | None) -> None:
        self.clock: int | None = None
        """Time of the newest record so far."""
        self.num_given_up = 0
        """Keys that there was no room for."""
        self._max_keys = max_keys
        self._ttl_ms = None if ttl is None else milliseconds(ttl)
        self._entries: OrderedDict[Hashable, tuple[S, int]] = OrderedDict()  # oldest first

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"<KeyedStates of {len(self)} keys>"

    def values(self) -> Iterator[S]:
        """Yield what is remembered, of the key not seen for longest first."""
        return (state for state, _ in self._entries.values())

    def items(self) -> Iterator[tuple[Hashable, S]]:
        """Yield each key with what is remembered of it, the one not seen for longest first."""
        return ((key, state) for key, (state, _) in self._entries.items())

    def advance(self, time_ms: int) -> None:
        """Turn the clock to the time of a record, and forget what is too old by then."""
        if self.clock is not None and time_ms <= self.clock:
            return
        self.clock = time_ms
        while self._ttl_ms is not None and self._entries:
            key, (_, seen) = next(iter(self._entries.items()))
            if seen + self._ttl_ms >= time_ms:
                break
            del self._entries[key]

    def get(self, key: Hashable) -> S | None:
        """Return what is remembered of a key, if anything is."""
        entry = self._entries.get(key)
        return None if entry is None else entry[0]

    def put(self, key: Hashable, state: S) -> list[tuple[Hashable, S]]:
        """Remember this of a key, which is now seen; return what there is no room for any more."""
        self._entries[key] = state, self.clock or 0
        self._entries.move_to_end(key)
        given_up = []
        while len(self._entries) > self._max_keys:
            oldest, (lost, _) = self._entries.popitem(last=False)
            given_up.append((oldest, lost))
        self.num_given_up += len(given_up)
        return given_up

    def remove(self, key: Hashable) -> None:
        """Remember nothing of a key."""
        del self._entries[key]

    def save(self, save: Callable[[S], Any]) -> dict[str, Any]:
        """Return all of it as a state tree."""
        return {
            "keys": list(self._entries),
            "states": [save(state) for state, _ in self._entries.values()],
            "seen": [seen for _, seen in self._entries.values()],
            "clock": self.clock,
            "given_up": self.num_given_up,
        }

    def load(self, state: Mapping[str, Any], load: Callable[[Any], S]) -> None:
        """Take over what `save` returned."""
        entries = zip(map(load, state["states"]), state["seen"], strict=True)
        self._entries = OrderedDict(zip(state["keys"], entries, strict=True))
        self.clock = state["clock"]
        self.num_given_up = state["given_up"]


class KeyedStep(Step, Generic[S]):
    """An open `KeyedOperator`."""

    def __init__(self, operator: KeyedOperator) -> None:
        self._operator = operator
        self._has_times = operator.needs_time or operator.ttl is not None
        self._states: KeyedStates[S] = KeyedStates(operator.max_keys, operator.ttl)
        self._num_left_out = 0

    def report(self) -> dict[str, Any]:
        """Return how many keys are remembered, and what was given up or left out."""
        return {
            "keys": len(self._states),
            "keys given up": self._states.num_given_up,
            "records left out": self._num_left_out,
        }

    def state(self) -> dict[str, Any]:
        """Return what is remembered."""
        return {"states": self._states.save(self._save), "left_out": self._num_left_out}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what was remembered."""
        self._states.load(state["states"], self._load)
        self._num_left_out = state["left_out"]

    def _save(self, state: S) -> Any:
        """Return what is remembered of a key as a state tree."""
        return state

    def _load(self, state: Any) -> S:
        """Return what `_save` was given."""
        loaded: S = state
        return loaded

    def _each(self, batch: Batch, causes: dict[int, str]) -> Iterator[tuple[int, Hashable, int]]:
        """Yield index, key and time of each record that has both, and turn the clock to it.

        The others get a cause. The time is any where none is needed.
        """
        keys = read_keys(batch, self._operator.by, causes)
        times: Sequence[int] = range(len(batch))
        if self._has_times:
            times = read_times(batch, self._operator.time, self._operator.time_unit, causes)
        for index, (key, time_ms) in enumerate(zip(keys, times, strict=True)):
            if index in causes:
                continue
            if self._has_times:
                self._states.advance(time_ms)
            yield index, key, time_ms


class PassingStep(KeyedStep[S]):
    """An open operator that lets records pass, or not."""

    def process(self, batch: Batch) -> Processed:
        """Return the records that pass."""
        causes: dict[int, str] = {}
        kept = [i for i, key, time_ms in self._each(batch, causes) if self._passes(key, time_ms)]
        self._num_left_out += len(batch) - len(kept) - len(causes)
        _, rejected = split_rejected(batch, causes)
        return Processed(batch.select(kept) if kept else None, rejected)

    def _passes(self, key: Hashable, time_ms: int) -> bool:
        raise NotImplementedError


def read_keys(batch: Batch, by: Sequence[str] | None, causes: dict[int, str]) -> Sequence[Hashable]:
    """Return each record's key, any where it has none.

    Args:
        batch: The records.
        by: Names of the fields that together are the key; ``None`` for the record's key.
        causes: Takes why a record has no key, by its index.
    """
    if by is None:
        keys = list(batch.keys or [None] * len(batch))
        _check(keys, "key", causes)
        return keys
    columns = [list(column_items(batch.column(name))) for name in by]
    for name, column in zip(by, columns, strict=True):
        if MISSING in column:
            note_absent(batch, name, column, causes)
        _check(column, name, causes)
    return columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))


def _check(column: Sequence[Any], name: str, causes: dict[int, str]) -> None:
    """Take note of what cannot be a key."""
    if set(map(type, column)) <= PLAIN:
        return
    for index, value in enumerate(column):
        if type(value) not in PLAIN and not (type(value) is float and not math.isnan(value)):
            message = f"{name}: expected a number or text as key, found {reprlib.repr(value)}"
            causes.setdefault(index, message)
