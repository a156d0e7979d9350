"""Channels: every edge of the graph is a bounded queue of batches with their shares.

A receiving node has one `Inbox` with one `Edge` for each of its inputs. A full edge makes its
sender wait, and that is all there is to back-pressure. The sender closes its edge; the inbox ends
when all edges are closed and empty.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import anyio

from streamflow.records import Batch, concatenate
from streamflow.runtime.acks import Share

EDGE_RECORDS = 1024
EDGE_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Parcel:
    """A batch under way, with the shares of the source records it descends from."""

    batch: Batch
    shares: tuple[Share, ...] = ()

    def split(self, batches: Sequence[Batch]) -> list[Parcel]:
        """Give up this parcel for one with each of ``batches`` (at least one)."""
        parts = [share.split(len(batches)) for share in self.shares]
        shares = zip(*parts, strict=True) if parts else [()] * len(batches)
        return [Parcel(batch, part) for batch, part in zip(batches, shares, strict=True)]

    def finish(self) -> None:
        """Say that this batch and all its descendants are finished."""
        finish(self.shares)


def finish(shares: Iterable[Share]) -> None:
    """Finish all ``shares``."""
    for share in shares:
        share.finish()


def join(parcels: Sequence[Parcel]) -> Parcel:
    """Return the records of all ``parcels`` (at least one), in order, as one."""
    shares = tuple(share for parcel in parcels for share in parcel.shares)
    return Parcel(concatenate([parcel.batch for parcel in parcels]), shares)


class Edge:
    """One sender's bounded queue into an inbox."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self._room = anyio.Event()
        self.records = 0
        self.size_bytes = 0
        self.is_closed = False

    @property
    def is_full(self) -> bool:
        """Whether a sender has to wait."""
        return self.records >= EDGE_RECORDS or self.size_bytes >= EDGE_BYTES

    async def send(self, parcel: Parcel) -> None:
        """Put a parcel in, waiting while the edge is full."""
        while self.is_full:
            self._room = anyio.Event()
            await self._room.wait()
        self.records += len(parcel.batch)
        self.size_bytes += parcel.batch.size_bytes
        self._inbox._put(self, parcel)

    def close(self) -> None:
        """Say that nothing more will be sent; once more does nothing."""
        self.is_closed = True
        self._inbox._wake()

    def _taken(self, batch: Batch) -> None:
        self.records -= len(batch)
        self.size_bytes -= batch.size_bytes
        if not self.is_full:
            self._room.set()


class Inbox:
    """What a node receives: its edges, merged in the order of arrival."""

    def __init__(self) -> None:
        self._queue: deque[tuple[Edge, Parcel]] = deque()
        self._edges: list[Edge] = []
        self._arrived = anyio.Event()

    def __repr__(self) -> str:
        records = sum(edge.records for edge in self._edges)
        closed = sum(edge.is_closed for edge in self._edges)
        return f"<{type(self).__name__} {records} records, {closed}/{len(self._edges)} closed>"

    @property
    def records(self) -> int:
        """How many records wait."""
        return sum(edge.records for edge in self._edges)

    def edge(self) -> Edge:
        """Return a new edge into this inbox."""
        edge = Edge(self)
        self._edges.append(edge)
        return edge

    @property
    def is_ready(self) -> bool:
        """Whether `receive` would return records without waiting."""
        return bool(self._queue)

    async def receive(self, max_records: int) -> Parcel | None:
        """Wait for records and return those at hand, about ``max_records`` at the most.

        Returns:
            The records; ``None`` when all edges are closed and empty.
        """
        while (parcel := self._take(max_records)) is None:
            if all(edge.is_closed for edge in self._edges) and not self.records:
                return None
            self._arrived = anyio.Event()
            await self._arrived.wait()
        return parcel

    def _take(self, max_records: int) -> Parcel | None:
        """Return the parcels that wait, in order of arrival, as one; ``None`` if there is none."""
        taken: list[Parcel] = []
        count = 0
        while self._queue and (not taken or count + len(self._queue[0][1].batch) <= max_records):
            edge, parcel = self._queue.popleft()
            edge._taken(parcel.batch)
            taken.append(parcel)
            count += len(parcel.batch)
        return join(taken) if taken else None

    def _put(self, edge: Edge, parcel: Parcel) -> None:
        self._queue.append((edge, parcel))
        self._wake()

    def _wake(self) -> None:
        self._arrived.set()


class RoundRobinInbox(Inbox):
    """An inbox that takes one record of each edge in turn, waiting for the edge whose turn it is.

    The order is the same in every run, whatever arrives first and however it is cut into batches.
    An edge that has ended loses its turn.
    """

    def __init__(self) -> None:
        super().__init__()
        self._waiting: dict[Edge, deque[Parcel]] = {}
        self._turn = 0

    def edge(self) -> Edge:
        """Return a new edge; turns go in the order of these calls."""
        edge = super().edge()
        self._waiting[edge] = deque()
        return edge

    @property
    def is_ready(self) -> bool:
        """Whether `receive` would return records without waiting."""
        edges = self._edges[self._turn :] + self._edges[: self._turn]
        return next(
            (bool(edge.records) for edge in edges if edge.records or not edge.is_closed), False
        )

    def _put(self, edge: Edge, parcel: Parcel) -> None:
        self._waiting[edge].append(parcel)
        self._wake()

    def _take(self, max_records: int) -> Parcel | None:
        turns = self._turns(max_records)
        if not turns:
            return None
        per_edge = {edge: turns.count(edge) for edge in self._edges if edge in turns}
        joined = join([self._take_from(edge, count) for edge, count in per_edge.items()])
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
            elif edge.is_closed:
                passed += 1
            else:
                break
            self._turn = (self._turn + 1) % len(self._edges)
        return turns

    def _take_from(self, edge: Edge, count: int) -> Parcel:
        """Take exactly ``count`` records of an edge, which has as many."""
        taken: list[Parcel] = []
        while count:
            parcel = self._waiting[edge].popleft()
            if len(parcel.batch) > count:
                parcel, rest = parcel.split(_cut(parcel.batch, count))
                self._waiting[edge].appendleft(rest)
            edge._taken(parcel.batch)
            taken.append(parcel)
            count -= len(parcel.batch)
        return join(taken)


def _cut(batch: Batch, count: int) -> list[Batch]:
    """Return the first ``count`` records and the rest; their sizes add up to the whole."""
    head, tail = batch.slice(0, count), batch.slice(count, len(batch))
    return [head, replace(tail, size_bytes=batch.size_bytes - head.size_bytes)]


def _interleaved(turns: Sequence[Edge], per_edge: dict[Edge, int]) -> list[int]:
    """Return the places, within the edges' records one edge after another, in order of turns."""
    starts: dict[Edge, int] = {}
    start = 0
    for edge, count in per_edge.items():
        starts[edge] = start
        start += count
    places = []
    for edge in turns:
        places.append(starts[edge])
        starts[edge] += 1
    return places
