"""The open `Window`: takes records in, and gives windows when they are due."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import astuple
from typing import Any

from streamflow.contracts import Processed
from streamflow.nodes.units import milliseconds
from streamflow.operators.aggregates import Aggregate, aggregation
from streamflow.operators.evaluation import cause_of, told
from streamflow.operators.panes import Fixed, Pane, Panes, Sessions
from streamflow.operators.step import size_of
from streamflow.operators.watermarks import WatermarkStep
from streamflow.operators.window_options import WindowOptions
from streamflow.records import Batch, Partition, split_rejected, to_columns

Due = tuple[Hashable, Pane]
"""A key and a window of it that is due."""


WindowRow = tuple[dict[str, Any], int, Partition, int, Any]
"""A window as an output record: value, time in milliseconds, partition, offset and key."""


class WindowStep(WatermarkStep[Panes]):
    """An open `Window`."""

    def __init__(self, operator: WindowOptions) -> None:
        super().__init__(operator, operator.delay)
        self._window = operator
        self._by = operator.by or ()
        self._aggregations = {name: aggregation(text) for name, text in operator.fields.items()}
        self._assigner = Fixed(operator) if operator.gap is None else Sessions(operator)
        self._lateness_ms = milliseconds(operator.lateness)
        self._number = 0  # of windows so far
        self._num_windows = 0  # that are open now

    def process(self, batch: Batch) -> Processed:
        """Return the windows that are due, and the records that are rejected."""
        causes: dict[int, str] = {}
        rows: list[WindowRow] = []
        numbers = self._numbers(batch, causes)
        own_keys = batch.keys or [None] * len(batch)
        for index, key, time_ms in self._each(batch, causes):
            origin = batch.partitions[index], batch.offsets[index], own_keys[index]
            is_taken = self._take(key, time_ms, numbers[index], origin, rows)
            if not is_taken and self._window.late == "reject":
                causes[index] = "expected a record of an open window, found a late one"
            elif not is_taken:
                self._num_left_out += 1
        _, rejected = split_rejected(batch, causes)
        return Processed(_batch_of(rows), rejected)

    def end(self) -> Processed:
        """Return the windows that are open."""
        rows: list[WindowRow] = []
        self._give(_not_given(self._states.items()), rows)
        for state in self._states.values():
            state.panes.clear()
        self._num_windows = 0
        return Processed(_batch_of(rows))

    def report(self) -> dict[str, Any]:
        """Return figures about keys and windows."""
        return {**super().report(), "windows": self._num_windows}

    def state(self) -> dict[str, Any]:
        """Return all windows."""
        return {**super().state(), "number": self._number}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over all windows."""
        super().restore(state)
        self._number = state["number"]
        self._num_windows = sum(len(panes.panes) for panes in self._states.values())

    def _numbers(self, batch: Batch, causes: dict[int, str]) -> list[list[float]]:
        """Return what each record gives to the aggregates."""
        numbers: list[list[float]] = []
        names, aggregations = list(self._aggregations), list(self._aggregations.values())
        for index, record in enumerate(told(batch)):
            row: list[float] = []
            try:
                for one in aggregations:
                    row.append(one.number_of(record))  # noqa: PERF401  # its length tells the name
            except Exception as error:  # fields may be anything, so operators may raise anything
                causes[index] = f"{names[len(row)]}: {cause_of(error)}"
            numbers.append(row)
        return numbers

    def _take(
        self,
        key: Hashable,
        time_ms: int,
        numbers: Sequence[float],
        origin: tuple[Partition, int, Any],
        rows: list[WindowRow],
    ) -> bool:
        """Take a record in and give what is due; return whether any window took the record."""
        state = self._met(key, time_ms, Panes(time_ms, time_ms, {}))
        before = len(state.panes)
        taking = self._taking(key, state, time_ms, origin)
        self._num_windows += len(state.panes) - before
        for pane in taking:
            pane.is_given, pane.origin = False, origin
            for aggregate, number in zip(pane.aggregates, numbers, strict=True):
                aggregate.add(number)
        given_up = self._states.put(key, state)
        self._num_windows -= sum(len(lost.panes) for _, lost in given_up)
        due = [*self._due_of(key, state), *_not_given(given_up)]
        for silent in self._silent():
            due += self._due_of(*silent)
        self._give(due, rows)
        return bool(taking)

    def _taking(
        self, key: Hashable, state: Panes, time_ms: int, origin: tuple[Partition, int, Any]
    ) -> list[Pane]:
        """Return the windows that take a record, those that were not there made."""

        def make(start_ms: int, end_ms: int) -> Pane:
            self._number += 1
            if end_ms < state.look_ms:
                self._look_at(key, state, end_ms)
            return Pane(start_ms, end_ms, self._number, self._aggregates(self._number), origin)

        horizon_ms = self._watermark(state) - self._lateness_ms
        return self._assigner.panes_of(state.panes, time_ms, horizon_ms, make)

    def _aggregates(self, number: int) -> list[Aggregate]:
        most = self._window.max_values
        return [one.make(most, number) for one in self._aggregations.values()]

    def _due_of(self, key: Hashable, state: Panes) -> list[Due]:
        """Return the windows of a key that are due, and forget those that take no more."""
        watermark = self._watermark(state)
        ended = [pane for pane in state.panes.values() if pane.end_ms <= watermark]
        due = [(key, pane) for pane in ended if not pane.is_given]
        for pane in ended:
            pane.is_given = True  # so that it is due once
            if pane.end_ms + self._lateness_ms <= watermark:
                del state.panes[pane.start_ms]
                self._num_windows -= 1
        return due

    def _next_ms(self, state: Panes) -> int | None:
        ends = [pane.end_ms for pane in state.panes.values()]
        ends += [end + self._lateness_ms for end in ends]
        return min((end for end in ends if end > self._watermark(state)), default=None)

    def _give(self, due: list[Due], rows: list[WindowRow]) -> None:
        """Make windows records, in the order of their ends."""
        for key, pane in sorted(due, key=lambda one: (one[1].end_ms, one[1].number)):
            own: Any = key if len(self._by) > 1 else (key,)
            named = dict(zip(self._by, own, strict=False))
            results = [aggregate.result() for aggregate in pane.aggregates]
            value = {**named, "start_ms": pane.start_ms, "end_ms": pane.end_ms}
            value |= dict(zip(self._aggregations, results, strict=True))
            if self._lateness_ms:
                value["revision"] = pane.revision
            rows.append((value, pane.end_ms, *pane.origin))
            pane.revision += 1
            pane.is_given = True

    def _save(self, state: Panes) -> Any:
        panes = [
            {
                "span": [pane.start_ms, pane.end_ms, pane.number],
                "aggregates": [aggregate.save() for aggregate in pane.aggregates],
                "origin": [astuple(pane.origin[0]), *pane.origin[1:]],
                "given": [pane.revision, pane.is_given],
            }
            for pane in state.panes.values()
        ]
        return [state.newest_ms, panes]

    def _load(self, state: Any) -> Panes:
        newest_ms, saved = state
        panes = [self._loaded(pane) for pane in saved]
        return Panes(newest_ms, newest_ms, {pane.start_ms: pane for pane in panes})

    def _loaded(self, saved: Mapping[str, Any]) -> Pane:
        start_ms, end_ms, number = saved["span"]
        aggregates = self._aggregates(number)
        for aggregate, state in zip(aggregates, saved["aggregates"], strict=True):
            aggregate.load(state)
        partition, offset, key = saved["origin"]
        origin = Partition(*partition), offset, key
        return Pane(start_ms, end_ms, number, aggregates, origin, *saved["given"])


def _not_given(states: Iterable[tuple[Hashable, Panes]]) -> list[Due]:
    """Return the windows of keys that hold what was not given yet."""
    panes = [(key, pane) for key, state in states for pane in state.panes.values()]
    return [(key, pane) for key, pane in panes if not pane.is_given]


def _batch_of(rows: list[WindowRow]) -> Batch | None:
    """Return output records as a batch, if there are any."""
    if not rows:
        return None
    values, times_ms, partitions, offsets, keys = map(list, zip(*rows, strict=True))
    return Batch(
        to_columns(values),
        partitions,
        offsets,
        None if keys.count(None) == len(keys) else keys,
        times_ms,
        size_bytes=size_of(values),
    )
