"""Readers of systems that send by themselves: a task receives, a bounded backlog holds the rest.

    system -> pump (a task) -> Backlog -> BacklogReader.receive -> the graph
                   ^ waits while the backlog is full

Waiting for the system happens in the task, so that a `receive` which is cancelled loses nothing.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import anyio
import anyio.lowlevel

from streamflow.codecs.conversion import decode
from streamflow.contracts import Codec, Context, Fetch
from streamflow.records import Batch, Headers, Partition, split_rejected
from streamflow_connectors.network.retries import Retries

MOST_RECORDS: Final = 1000
MOST_BYTES: Final = 8 * 2**20
"""Of a backlog, and so of a batch, unless a single record is larger."""

RECORD_BYTES: Final = 200
"""What a record takes in memory beside its payload, about."""


@dataclass(frozen=True, slots=True)
class Item:
    """What the system has sent: a record, still in bytes.

    Attributes:
        cause: Why it cannot be used, if so.
        partition: Where it stands, if the system tells.
        offset: Likewise, within the partition.
    """

    payload: bytes
    key: Any = None
    timestamp_ms: int | None = None
    headers: Headers = ()
    cause: str | None = None
    partition: Partition | None = None
    offset: int = 0


class Backlog:
    """Items that wait to be received; bounded, for one task that puts and one that takes."""

    def __init__(self) -> None:
        self._items: deque[Item] = deque()
        self._size_bytes = 0
        self._end: Exception | None = None
        self._changed = anyio.Event()

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return f"<Backlog {len(self)} waiting>"

    async def put(self, item: Item) -> None:
        """Add an item, waiting while there is no room."""
        while self._items and (
            len(self) >= MOST_RECORDS or self._size_bytes + len(item.payload) > MOST_BYTES
        ):
            await self._changed.wait()
        self._items.append(item)
        self._size_bytes += len(item.payload)
        if len(self) == 1:
            self._notify()

    def end(self, error: Exception) -> None:
        """Let `take` raise once all items are taken."""
        self._end = error
        self._notify()

    async def take(self) -> list[Item]:
        """Return all that wait, at least one."""
        while not self._items:
            if self._end is not None:
                raise self._end
            await self._changed.wait()
        items = list(self._items)
        self._items.clear()
        self._size_bytes = 0
        self._notify()
        return items

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


class BacklogReader:
    """Receives what a pump has put into a backlog; see `streamflow.contracts.Reader`.

    Args:
        context: What the node is told.
        codec: Decodes the payloads.
        retries: Of the pump.
        end_after: Seconds without a record after which the stream ends.
    """

    def __init__(
        self, context: Context, codec: Codec, retries: Retries, *, end_after: float | None = None
    ) -> None:
        self.backlog = Backlog()
        self._partition = Partition(context.name)
        self._codec = codec
        self._retries = retries
        self._end_after = end_after or math.inf
        self._next = 0
        self._silent_since: float | None = None
        self._has_ended = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._partition}: {self._next} received>"

    async def receive(self) -> Fetch:
        """Wait for records and return those at hand.

        Raises:
            anyio.EndOfStream: None came for as long as ``end_after`` says.
            ConnectorError: The system refused, or was away for too long.
        """
        await anyio.lowlevel.checkpoint()
        if self._silent_since is None:
            self._silent_since = anyio.current_time()
        items: list[Item] = []
        with anyio.CancelScope(deadline=self._silent_since + self._end_after):
            if not self._has_ended:
                items = await self.backlog.take()
        if not items:
            self._has_ended = True
            raise anyio.EndOfStream
        self._silent_since = None
        return self._fetch(items)

    async def commit(self, positions: Mapping[Partition, int]) -> None:
        """Do nothing: the system keeps no positions."""

    def behind(self) -> int:
        """Return how many records have come and wait."""
        return len(self.backlog)

    def retrying(self) -> str | None:
        """Return what is tried again, for how long and why; ``None`` if all is well."""
        return self._retries.retrying()

    def report(self) -> Mapping[str, int]:
        """Return how often something failed."""
        return {"failures that were tried again": self._retries.num_failed}

    def _fetch(self, items: Sequence[Item]) -> Fetch:
        start, self._next = self._next, self._next + len(items)
        return decoded(
            items,
            self._codec,
            [self._partition] * len(items),
            range(start, self._next),
            {self._partition: self._next},
        )


def decoded(
    items: Sequence[Item],
    codec: Codec,
    partitions: Sequence[Partition],
    offsets: Sequence[int],
    ends: Mapping[Partition, int],
) -> Fetch:
    """Return items as what a reader received."""
    payloads = [item.payload for item in items]
    batch = Batch(
        payloads,
        partitions,
        offsets,
        keys=_if_any([item.key for item in items], None),
        timestamps_ms=_if_any([item.timestamp_ms for item in items], None),
        headers=_if_any([item.headers for item in items], ()),
        originals=payloads,
        size_bytes=2 * sum(map(len, payloads)) + RECORD_BYTES * len(items),
    )
    causes = {index: item.cause for index, item in enumerate(items) if item.cause is not None}
    if not causes:
        return decode(codec, batch, ends)
    usable, _ = split_rejected(batch, causes)
    places = [index for index in range(len(batch)) if index not in causes]
    found = codec.decode(usable.originals or ())
    causes |= {places[index]: cause for index, cause in found.causes.items()}
    kept, rejected = split_rejected(batch, causes)
    return Fetch(kept.with_values(found.values), ends, rejected)


@asynccontextmanager
async def pumping(
    pump: Callable[[Backlog], Coroutine[Any, Any, None]], backlog: Backlog
) -> AsyncIterator[None]:
    """Run a pump in a task while the block runs; its error, or its end, ends the backlog."""

    async def run() -> None:
        try:
            await pump(backlog)
            backlog.end(anyio.EndOfStream())
        except Exception as error:  # whatever it is, the run has to hear of it
            backlog.end(error)

    failure = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        try:
            yield
        except Exception as error:  # the task group would wrap it
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


def _if_any(column: list[Any], absent: object) -> list[Any] | None:
    """Return a column, or ``None`` if no record has an entry in it."""
    return None if all(entry == absent for entry in column) else column
