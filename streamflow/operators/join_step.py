"""The open `Join`: holds records of both inputs, and puts them together."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from operator import attrgetter
from typing import Any, TypeAlias, TypeVar

from streamflow.contracts import Processed
from streamflow.nodes.units import milliseconds
from streamflow.operators.join_options import JoinOptions
from streamflow.operators.step import absent, size_of, without_fields
from streamflow.operators.watermarks import Clocked, WatermarkStep
from streamflow.records import (
    Batch,
    Headers,
    Partition,
    split_rejected,
    to_columns,
)


@dataclass(slots=True)
class Left:
    """A record of the first input.

    Attributes:
        time_ms: What counts as its time.
        number: Grows with each record.
        value: Its fields.
        origin: Its key, timestamp, headers, partition and offset.
        is_matched: Whether it was given.
    """

    time_ms: int
    number: int
    value: Mapping[str, Any]
    origin: tuple[Any, int | None, Headers, Partition, int]
    is_matched: bool = False


@dataclass(slots=True)
class Right:
    """A record of the second input: its time, and the fields to take."""

    time_ms: int
    fields: Mapping[str, Any]


@dataclass(slots=True)
class Sides(Clocked):
    """What is remembered of a key, each side in the order of time."""

    left: list[Left] = field(default_factory=list)
    right: list[Right] = field(default_factory=list)


T = TypeVar("T", Left, Right)

Pair: TypeAlias = tuple[Left, "Right | None"]
"""A record to give, and what it met."""

BY_TIME = attrgetter("time_ms")


class JoinStep(WatermarkStep[Sides]):
    """An open `Join`."""

    def __init__(self, operator: JoinOptions) -> None:
        super().__init__(operator, operator.delay)
        self._join = operator
        self._within_ms = None if operator.within is None else milliseconds(operator.within)
        self._number = 0
        self._num_held = 0  # of the first input, now
        self._num_forgotten = 0

    def process(self, batch: Batch) -> Processed:
        """Return what is put together, and the records that are rejected."""
        senders = batch.senders
        assert senders is not None, "the batches of a join tell the senders"
        is_right = [sender != self._join.inputs[0] for sender in senders]
        rows = batch.rows()
        causes = self._causes(batch, rows, is_right)
        pairs: list[Pair] = []
        for index, key, time_ms in self._each(batch, causes):
            sides = self._met(key, time_ms, Sides(time_ms, time_ms))
            if is_right[index]:
                pairs += self._take_right(sides, Right(time_ms, self._taken(rows[index])))
            else:
                self._number += 1
                self._num_held += 1
                pairs += self._take_left(sides, _left(batch, index, rows, time_ms, self._number))
                pairs += self._bound_left(sides)
            given_up = self._states.put(key, sides)
            pairs += self._due(sides, given_up)
        _, rejected = split_rejected(batch, causes)
        return Processed(self._batch_of(pairs), rejected)

    def end(self) -> Processed:
        """Return what is held."""
        pairs = [pair for sides in self._states.values() for pair in self._given_up(sides)]
        return Processed(self._batch_of(sorted(pairs, key=_order)))

    def report(self) -> dict[str, Any]:
        """Return figures about keys and records."""
        own = {"records held": self._num_held, "records given up": self._num_forgotten}
        return {**super().report(), **own}

    def state(self) -> dict[str, Any]:
        """Return all that is remembered."""
        return {**super().state(), "number": self._number, "forgotten": self._num_forgotten}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over all that was remembered."""
        super().restore(state)
        self._number, self._num_forgotten = state["number"], state["forgotten"]
        self._num_held = sum(len(sides.left) for sides in self._states.values())

    def _take_left(self, sides: Sides, left: Left) -> list[Pair]:
        """Remember a record of the first input; return what it makes due at once."""
        raise NotImplementedError

    def _take_right(self, sides: Sides, right: Right) -> list[Pair]:
        """Remember a record of the second input; return what it makes due at once."""
        raise NotImplementedError

    def _leave(self, sides: Sides, watermark: int) -> list[Pair]:
        """Remember no more what is due by a watermark; return what is to be given of it."""
        raise NotImplementedError

    def _give_up(self, sides: Sides, lefts: Sequence[Left]) -> list[Pair]:
        """Return what is to be given of records that are remembered no more."""
        raise NotImplementedError

    def _causes(
        self, batch: Batch, rows: Sequence[Any], is_right: Sequence[bool]
    ) -> dict[int, str]:
        """Return why records cannot be joined, by index."""
        causes: dict[int, str] = {}
        for index, row in enumerate(rows):
            if not isinstance(row, Mapping):
                causes[index] = without_fields(row)
                continue
            for name in self._join.fields or () if is_right[index] else ():
                if name not in row:
                    causes.setdefault(index, absent(batch, index, name))
        return causes

    def _taken(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a record of the second input gives."""
        names = self._join.fields
        if names is None:
            names = tuple(name for name in row if name not in (self._join.by or ()))
        return {self._join.prefix + name: row[name] for name in names}

    def _bound(self, side: list[Any]) -> list[Any]:
        """Return what a side has no room for, the oldest, and remember it no more."""
        surplus = max(0, len(side) - self._join.max_records)
        lost = side[:surplus]
        del side[:surplus]
        return lost

    def _bound_left(self, sides: Sides) -> list[Pair]:
        lost = self._bound(sides.left)
        self._num_held -= len(lost)
        self._num_forgotten += len(lost)
        return self._give_up(sides, lost)

    def _due(self, sides: Sides, given_up: Sequence[tuple[Hashable, Sides]]) -> list[Pair]:
        """Return what is to be given of this key, of silent ones and of those given up."""
        pairs = self._leave(sides, self._watermark(sides))
        for _, silent in self._silent():
            pairs += self._leave(silent, self._watermark(silent))
        for _, lost in given_up:
            pairs += self._given_up(lost)
        return sorted(pairs, key=_order)

    def _given_up(self, sides: Sides) -> list[Pair]:
        """Return what is to be given of a key when it holds nothing more."""
        lefts = sides.left
        sides.left = []
        self._num_held -= len(lefts)
        return self._give_up(sides, lefts)

    def _batch_of(self, pairs: Sequence[Pair]) -> Batch | None:
        """Return pairs as output records, but for those left out."""
        if self._join.unmatched == "drop":
            matched = [pair for pair in pairs if pair[1] is not None]
            self._num_left_out += len(pairs) - len(matched)
            pairs = matched
        if not pairs:
            return None
        none = dict.fromkeys(self._join.prefix + name for name in self._join.fields or ())
        values = [
            {**left.value, **_others(left.value, right.fields if right else none)}
            for left, right in pairs
        ]
        origins = (left.origin for left, _ in pairs)
        keys, times, headers, partitions, offsets = map(list, zip(*origins, strict=True))
        return Batch(
            to_columns(values),
            partitions,
            offsets,
            None if keys.count(None) == len(keys) else keys,
            None if times.count(None) == len(times) else times,
            headers if any(headers) else None,
            size_bytes=size_of(values),
        )

    def _save(self, state: Sides) -> Any:
        right = [[right.time_ms, right.fields] for right in state.right]
        return [state.newest_ms, list(map(_saved, state.left)), right]

    def _load(self, state: Any) -> Sides:
        newest_ms, left, right = state
        rights = [Right(*one) for one in right]
        return Sides(newest_ms, newest_ms, list(map(_loaded, left)), rights)


class LastStep(JoinStep):
    """An open `Join` with the last record before."""

    def _take_left(self, sides: Sides, left: Left) -> list[Pair]:
        insort(sides.left, left, key=BY_TIME)
        return []

    def _take_right(self, sides: Sides, right: Right) -> list[Pair]:
        insort(sides.right, right, key=BY_TIME)
        self._bound(sides.right)  # what is older has been replaced
        return []

    def _leave(self, sides: Sides, watermark: int) -> list[Pair]:
        due = bisect_right(sides.left, watermark, key=BY_TIME)
        gone = sides.left[:due]
        del sides.left[:due]
        self._num_held -= due
        return self._give_up(sides, gone)

    def _give_up(self, sides: Sides, lefts: Sequence[Left]) -> list[Pair]:
        return [(left, self._last_before(sides, left.time_ms)) for left in lefts]

    def _last_before(self, sides: Sides, time_ms: int) -> Right | None:
        place = bisect_right(sides.right, time_ms, key=BY_TIME)
        if not place:
            return None
        found = sides.right[place - 1]
        is_near = self._within_ms is None or time_ms - found.time_ms <= self._within_ms
        return found if is_near else None

    def _next_ms(self, known: Sides) -> int | None:
        return known.left[0].time_ms if known.left else None


class AllStep(JoinStep):
    """An open `Join` with all records within a time."""

    def _take_left(self, sides: Sides, left: Left) -> list[Pair]:
        pairs: list[Pair] = [(left, right) for right in self._near(sides.right, left.time_ms)]
        left.is_matched = bool(pairs)
        insort(sides.left, left, key=BY_TIME)
        return pairs

    def _take_right(self, sides: Sides, right: Right) -> list[Pair]:
        insort(sides.right, right, key=BY_TIME)
        pairs: list[Pair] = [(left, right) for left in self._near(sides.left, right.time_ms)]
        for left, _ in pairs:
            left.is_matched = True
        self._num_forgotten += len(self._bound(sides.right))
        return pairs

    def _leave(self, sides: Sides, watermark: int) -> list[Pair]:
        assert self._within_ms is not None
        oldest_ms = watermark - self._within_ms  # what is older meets none that comes in time
        while sides.right and sides.right[0].time_ms < oldest_ms:
            del sides.right[0]
        gone = []
        while sides.left and sides.left[0].time_ms < oldest_ms:
            gone.append(sides.left.pop(0))
            self._num_held -= 1
        return self._give_up(sides, gone)

    def _give_up(self, sides: Sides, lefts: Sequence[Left]) -> list[Pair]:
        return [(left, None) for left in lefts if not left.is_matched]

    def _near(self, side: list[T], time_ms: int) -> list[T]:
        """Return what is within the time of a record, in the order of time."""
        assert self._within_ms is not None
        first = bisect_left(side, time_ms - self._within_ms, key=BY_TIME)
        last = bisect_right(side, time_ms + self._within_ms, key=BY_TIME)
        return side[first:last]

    def _next_ms(self, known: Sides) -> int | None:
        assert self._within_ms is not None
        oldest = [side[0].time_ms for side in (known.left, known.right) if side]
        return min(oldest) + self._within_ms + 1 if oldest else None


def _left(
    batch: Batch, index: int, rows: Sequence[Mapping[str, Any]], time_ms: int, number: int
) -> Left:
    key = batch.keys[index] if batch.keys else None
    timestamp_ms = batch.timestamps_ms[index] if batch.timestamps_ms else None
    headers = batch.headers[index] if batch.headers else ()
    origin = key, timestamp_ms, headers, batch.partitions[index], batch.offsets[index]
    return Left(time_ms, number, dict(rows[index]), origin)


def _saved(left: Left) -> list[Any]:
    """Return a record as a state tree."""
    *rest, partition, offset = left.origin
    place = astuple(partition), offset
    return [left.time_ms, left.number, left.value, *rest, *place, left.is_matched]


def _loaded(saved: Sequence[Any]) -> Left:
    """Return the record that `_saved` was given."""
    time_ms, number, value, key, timestamp_ms, headers, partition, offset, is_matched = saved
    origin = key, timestamp_ms, headers, Partition(*partition), offset
    return Left(time_ms, number, value, origin, is_matched)


def _order(pair: Pair) -> tuple[int, int]:
    return pair[0].time_ms, pair[0].number


def _others(own: Mapping[str, Any], added: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that a record does not have itself."""
    return {name: content for name, content in added.items() if name not in own}
