"""Merging in turn, in an order that does not depend on what arrives first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from streamflow.runtime.batch_state import load_batch, save_batch
from streamflow.runtime.channels import Edge, Inbox
from streamflow.runtime.parcels import Parcel, join


class RoundRobinInbox(Inbox):
    """An inbox that takes one record of each edge in turn, waiting for the edge whose turn it is.

    The order is the same in every run, whatever arrives first and however it is cut into batches.
    An edge that has ended loses its turn. Turns go in the order in which the edges were made.
    """

    def __init__(self, name: str = "") -> None:
        super().__init__(name)
        self._turn = 0

    def state(self) -> dict[str, Any]:
        """Return what waits and whose turn it is, as a state tree."""
        waiting = {
            edge.sender: [save_batch(parcel.batch) for _, parcel in edge.parcels]
            for edge in self._edges
        }
        return {"turn": self._whose_turn(), "waiting": waiting}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Let wait what has waited when `state` was called."""
        self._turn = state["turn"]
        for edge in self._edges:
            for batch in state["waiting"][edge.sender]:
                edge.restore(load_batch(batch))

    @property
    def is_ready(self) -> bool:
        """Whether `receive` would return records without waiting."""
        return bool(self._edges[self._whose_turn()].records)

    @property
    def has_no_bounds(self) -> bool:
        """Whether senders need not wait for room now.

        While a checkpoint is taken they would wait for records of another sender, which do not
        come. What is under way is little, as the sources let nothing in.
        """
        return self.is_holding

    def hold(self, is_holding: bool) -> None:
        """Let what must wait for others count as finished, or no more."""
        super().hold(is_holding)
        for edge in self._edges:
            edge.wake()

    def _whose_turn(self) -> int:
        """Return whose records come next; the first edge's if all have ended, in any order."""
        number = len(self._edges)
        for turn in range(self._turn, self._turn + number):
            edge = self._edges[turn % number]
            if edge.records or not edge.is_closed or self.is_suspended:
                return turn % number
        return 0

    def _take(self, max_records: int) -> Parcel | None:
        turns = self._turns(max_records)
        if not turns:
            return None
        per_edge = {edge: turns.count(edge) for edge in self._edges if edge in turns}
        joined = join([_take_exactly(edge, count) for edge, count in per_edge.items()])
        return Parcel(joined.batch.select(_interleaved(turns, per_edge)), joined.shares)

    def _turns(self, max_records: int) -> list[Edge]:
        """Return whose records come next, one entry a record, and move the turn on."""
        left = {edge: edge.records for edge in self._edges}
        turns: list[Edge] = []
        passed = 0  # edges in a row that have ended
        while len(turns) < max_records and passed < len(self._edges):
            edge = self._edges[self._turn]
            if left[edge]:
                left[edge] -= 1
                turns.append(edge)
                passed = 0
            elif edge.is_closed and not self.is_suspended:
                passed += 1
            else:
                break
            self._turn = (self._turn + 1) % len(self._edges)
        return turns


def _take_exactly(edge: Edge, num_records: int) -> Parcel:
    """Take so many records of an edge, which has as many."""
    taken: list[Parcel] = []
    while num_records:
        taken.append(edge.take(num_records))
        num_records -= len(taken[-1].batch)
    return join(taken)


def _interleaved(turns: Sequence[Edge], per_edge: dict[Edge, int]) -> list[int]:
    """Return the places, within the edges' records one edge after another, in order of turns."""
    starts: dict[Edge, int] = {}
    start = 0
    for edge, num_records in per_edge.items():
        starts[edge] = start
        start += num_records
    places = []
    for edge in turns:
        places.append(starts[edge])
        starts[edge] += 1
    return places
