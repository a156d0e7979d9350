"""Channels: every edge of the graph is a bounded queue of batches with their shares.

A receiving node has one `Inbox` with one `Edge` for each of its inputs. An edge has room for so
many records and bytes. Where a batch does not fit the receiver's policy decides, record by record:

    waiting  1 2 3 4 5 6      arriving  7 8 9      room for 8 records
    block        1 2 3 4 5 6            the sender waits until 7 8 9 all fit
    drop_oldest  2 3 4 5 6 7 8 9        1 is dropped
    drop_newest  1 2 3 4 5 6 7 8        9 is dropped
    latest       9                      all others are dropped, with room left or not
    fail                                the run ends

Blocking is all there is to back-pressure. What is dropped is counted, and its shares are finished,
so that positions advance over it. The sender closes its edge; the inbox ends when all edges are
closed and empty.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import anyio
import anyio.lowlevel

from streamflow.errors import NodeError
from streamflow.nodes.declarations import Buffer, Overflow
from streamflow.records import Batch
from streamflow.runtime.parcels import Parcel, join, num_fitting
from streamflow.runtime.stats import EdgeStats


async def send_all(edges: Sequence[Edge], parcels: Sequence[Parcel]) -> None:
    """Send each edge its parcel; one that is full holds up none of the others."""
    waiting = []
    for edge, parcel in zip(edges, parcels, strict=True):
        if edge.has_room_for(parcel.batch):
            await edge.send(parcel)
        else:
            waiting.append((edge, parcel))
    if len(waiting) == 1:
        [(edge, parcel)] = waiting
        await edge.send(parcel)
    elif waiting:
        async with anyio.create_task_group() as senders:
            for edge, parcel in waiting:
                senders.start_soon(edge.send, parcel)


class Edge:
    """One sender's bounded queue into an inbox.

    Whatever was sent has been taken, has been dropped, or waits.

    Args:
        inbox: Where it leads to.
        sender: Name of the node that it comes from.
        overflow: What happens when there is no room.
        buffer: How much room there is.
    """

    def __init__(self, inbox: Inbox, sender: str, overflow: Overflow, buffer: Buffer) -> None:
        self.sender = sender
        self.parcels: deque[tuple[int, Parcel]] = deque()
        """What waits, each with its number in the order of arrival at the inbox."""
        self.records = 0
        self.size_bytes = 0
        self.is_closed = False
        self._inbox = inbox
        self._overflow = overflow
        self._most_records = 1 if overflow == "latest" else buffer.records
        self._most_bytes = buffer.bytes
        self._room = anyio.Event()
        self._is_waiting = False  # a sender, for room
        self._num_sent = 0
        self._num_taken = 0
        self._num_dropped = 0

    def __repr__(self) -> str:
        return f"<Edge {self.sender} -> {self._inbox.name}: {self.records} records wait>"

    @property
    def output(self) -> str:
        """Name of the sender's output that it comes from, if that has several."""
        return self.sender.partition(".")[2]

    @property
    def is_blocked(self) -> bool:
        """Whether its sender waits for room, and there is none."""
        return self._is_waiting and not self._room.is_set()

    @property
    def stats(self) -> EdgeStats:
        """What went through so far."""
        return EdgeStats(
            self._overflow, self._num_sent, self._num_taken, self._num_dropped, self.records
        )

    def has_room_for(self, batch: Batch) -> bool:
        """Return whether a sender of ``batch`` need not wait."""
        return self._overflow != "block" or self._room_for(batch) >= len(batch)

    async def send(self, parcel: Parcel) -> None:
        """Put a parcel in, or what the policy leaves of it.

        Raises:
            NodeError: There is no room, and the policy is to fail.
        """
        if self._overflow == "block":
            await self._wait_and_put(parcel)
            return
        if self._overflow == "fail":
            self._put_all_or_fail(parcel)
        elif self._overflow == "drop_newest":
            self._put_first(parcel)
        else:
            self._put_last(parcel)
        # A sender that never waits would leave no turn to whoever receives.
        await anyio.lowlevel.checkpoint()

    def close(self) -> None:
        """Say that nothing more will be sent; once more does nothing."""
        self.is_closed = True
        self._inbox._wake()

    def take(self, most_records: int | None = None) -> Parcel:
        """Take the parcel that came first, or its first records."""
        parcel = self._pop(most_records)
        self._num_taken += len(parcel.batch)
        self._room.set()
        if self._inbox.tells_senders:
            senders = [self.sender] * len(parcel.batch)
            parcel = replace(parcel, batch=replace(parcel.batch, senders=senders))
        return parcel

    def hold(self) -> None:
        """Let what waits count as finished."""
        for index, (number, parcel) in enumerate(self.parcels):
            parcel.finish()
            self.parcels[index] = number, Parcel(parcel.batch)

    def wake(self) -> None:
        """Let the sender look for room again."""
        self._room.set()

    def restore(self, batch: Batch) -> None:
        """Let a batch wait that has waited before, and counts as finished."""
        self._put(Parcel(batch))

    def _room_for(self, batch: Batch) -> int:
        """Return how many records of a batch there is room for; alone there is for one."""
        room = self._most_records - self.records, self._most_bytes - self.size_bytes
        return max(num_fitting(batch, *room), 0 if self.records else 1)

    async def _wait_and_put(self, parcel: Parcel) -> None:
        """Put a parcel in at once, in several pieces if it is larger than the whole buffer."""
        while (fitting := self._room_for(parcel.batch)) < len(parcel.batch):
            if self._inbox.has_no_bounds:
                break
            if self.records:
                await self._wait_for_room()
            else:
                piece, parcel = parcel.cut(fitting)
                self._put(piece)
        self._put(parcel)

    async def _wait_for_room(self) -> None:
        self._room, self._is_waiting = anyio.Event(), True
        self._inbox.on_rest()
        try:
            await self._room.wait()
        finally:
            self._is_waiting = False

    def _put_all_or_fail(self, parcel: Parcel) -> None:
        arriving, receiver = len(parcel.batch), self._inbox.name
        if self._room_for(parcel.batch) < arriving:
            message = (
                f"{self.sender} -> {receiver}: expected room for {arriving:,} more records, found "
                f"{self.records:,} of at most {self._most_records:,} waiting ({self.size_bytes:,} "
                f"of {self._most_bytes:,} bytes); give {receiver} a larger buffer or another "
                f"overflow than fail, or make it quicker"
            )
            raise NodeError(message)
        self._put(parcel)

    def _put_first(self, parcel: Parcel) -> None:
        """Put in as many of the first records as there is room for; drop the others."""
        fitting = self._room_for(parcel.batch)
        if fitting == len(parcel.batch):
            self._put(parcel)
        elif fitting == 0:
            self._refuse(parcel)
        else:
            first, rest = parcel.cut(fitting)
            self._put(first)
            self._refuse(rest)

    def _put_last(self, parcel: Parcel) -> None:
        """Put in the last records, as many as the buffer holds; drop what is older."""
        kept = max(1, num_fitting(parcel.batch, self._most_records, self._most_bytes))
        if kept < len(parcel.batch):
            while self.parcels:
                self._discard()
            older, parcel = parcel.cut(len(parcel.batch) - kept)
            self._refuse(older)
        while self.records and self._room_for(parcel.batch) < kept:
            self._discard(self._in_the_way_of(parcel.batch))
        self._put(parcel)

    def _in_the_way_of(self, arriving: Batch) -> int:
        """Return how many records of the oldest parcel must go at least to give a batch room."""
        oldest = self.parcels[0][1].batch
        too_large = self.size_bytes + arriving.size_bytes - self._most_bytes
        if too_large <= 0:
            return self.records + len(arriving) - self._most_records
        return len(oldest) - num_fitting(oldest, len(oldest), oldest.size_bytes - too_large)

    def _put(self, parcel: Parcel) -> None:
        self._num_sent += len(parcel.batch)
        self.records += len(parcel.batch)
        self.size_bytes += parcel.batch.size_bytes
        self.parcels.append((self._inbox._next_number(), parcel))
        self._inbox._wake()

    def _pop(self, most_records: int | None = None) -> Parcel:
        number, parcel = self.parcels.popleft()
        if most_records is not None and most_records < len(parcel.batch):
            parcel, rest = parcel.cut(most_records)
            self.parcels.appendleft((number, rest))
        self.records -= len(parcel.batch)
        self.size_bytes -= parcel.batch.size_bytes
        return parcel

    def _refuse(self, parcel: Parcel) -> None:
        """Drop what arrives."""
        self._num_sent += len(parcel.batch)
        self._num_dropped += len(parcel.batch)
        parcel.finish()

    def _discard(self, most_records: int | None = None) -> None:
        """Drop the oldest parcel that waits, or its first records."""
        parcel = self._pop(most_records)
        self._num_dropped += len(parcel.batch)
        parcel.finish()


class Inbox:
    """What a node receives: its edges, merged in the order of arrival.

    Attributes:
        on_rest: Called whenever its receiver waits for records, or a sender for room.
        tells_senders: Whether batches say which edge each record came by.
    """

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.tells_senders = False
        self.on_rest: Callable[[], None] = _do_nothing
        self._edges: list[Edge] = []
        self._arrived = anyio.Event()
        self._is_waiting = False  # the receiver, for records
        self._numbers = count()
        self.is_holding = False
        """Whether what must wait for others counts as finished: a checkpoint will keep it."""
        self.is_suspended = False
        """Whether edges are closed for now only, so that what waits for them is to be kept."""

    def __repr__(self) -> str:
        closed = sum(edge.is_closed for edge in self._edges)
        return f"<{type(self).__name__} {self.records} records, {closed}/{len(self._edges)} closed>"

    @property
    def records(self) -> int:
        """How many records wait."""
        return sum(edge.records for edge in self._edges)

    @property
    def stats(self) -> dict[str, EdgeStats]:
        """What went through each edge, by the name of its sender."""
        return {edge.sender: edge.stats for edge in self._edges}

    def edge(
        self, sender: str = "", overflow: Overflow = "block", buffer: Buffer | None = None
    ) -> Edge:
        """Return a new edge into this inbox."""
        edge = Edge(self, sender, overflow, buffer or Buffer())
        self._edges.append(edge)
        return edge

    @property
    def is_ready(self) -> bool:
        """Whether `receive` would return records without waiting."""
        return any(edge.records for edge in self._edges)

    @property
    def is_at_rest(self) -> bool:
        """Whether its receiver waits for records, and there are none."""
        return self._is_waiting and not self._arrived.is_set()

    @property
    def has_no_bounds(self) -> bool:
        """Whether senders need not wait for room now."""
        return False

    async def receive(self, max_records: int) -> Parcel | None:
        """Wait for records and return those at hand, ``max_records`` at the most.

        Returns:
            The records; ``None`` when all edges are closed and empty.
        """
        while (parcel := self._take(max_records)) is None:
            is_over = all(edge.is_closed for edge in self._edges)
            if self.is_holding or (is_over and self.is_suspended):
                self._hold()
            if is_over and (self.is_suspended or not self.records):
                return None
            await self._wait()
        return parcel

    async def _wait(self) -> None:
        self._arrived, self._is_waiting = anyio.Event(), True
        self.on_rest()
        try:
            await self._arrived.wait()
        finally:
            self._is_waiting = False

    def hold(self, is_holding: bool) -> None:
        """Let what must wait for others count as finished, or no more."""
        self.is_holding = is_holding
        self._wake()

    def _hold(self) -> None:
        for edge in self._edges:
            edge.hold()

    def state(self) -> dict[str, Any]:
        """Return what waits, as a state tree; empty if nothing does."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Let wait what has waited when `state` was called."""

    def _take(self, max_records: int) -> Parcel | None:
        """Return records that wait, in order of arrival; ``None`` if there are none."""
        taken: list[Parcel] = []
        left = max_records
        while left and (edge := self._next_edge()):
            taken.append(edge.take(left))
            left -= len(taken[-1].batch)
        return join(taken) if taken else None

    def _next_edge(self) -> Edge | None:
        """Return the edge in which the parcel waits that came first."""
        waiting = (edge for edge in self._edges if edge.parcels)
        return min(waiting, key=lambda edge: edge.parcels[0][0], default=None)

    def _next_number(self) -> int:
        return next(self._numbers)

    def _wake(self) -> None:
        self._arrived.set()


def _do_nothing() -> None:
    """Stand for what nobody wants to know."""
