"""Records from and to the application that a graph is embedded in."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, ClassVar, Final, Literal

import anyio
import anyio.lowlevel
from anyio import to_thread
from pydantic import Field, field_validator, model_validator

from streamflow.contracts import Context, Fetch, Reader, Writer
from streamflow.errors import GraphError, Problem, RunStoppedError
from streamflow.nodes.declarations import Sink, Source
from streamflow.records import (
    Batch,
    Headers,
    Partition,
    Record,
    Rejected,
    Values,
    estimate_bytes,
    to_columns,
)
from streamflow_connectors.network.loops import beside
from streamflow_connectors.network.reading import if_any
from streamflow_connectors.replay import AS_FAST_AS_POSSIBLE, PacedReader, PaceField

MOST_RECORDS: Final = 1000
"""Of one batch."""

_SLICE: Final = 0.01
"""Seconds after which what an iterable has given so far goes on."""

_CLOSING_TIME: Final = 5.0
"""Seconds that an async generator may take to clean up."""

_PLAIN: Final = {bool, float, int, type(None)}


class MemorySource(Source):
    """Takes records from an iterable, or from the application as it pushes them.

    Pushing is ``await run.send(name, value)`` and ``await run.end(name)``. An item that is a
    `Record` brings its key, timestamp and headers. Iterables are consumed lazily. A plain one is
    advanced in a worker thread, so it may block; stopping waits for the item it is at, so that
    none is lost. An async one is read ahead by ``capacity`` records.
    """

    type: Literal["memory"] = "memory"
    incidental: ClassVar[frozenset[str]] = frozenset({"pace"})
    records: Any = Field(
        None,
        exclude=True,
        description="Iterable or async iterable of values; only in Python. Without one, records "
        "are pushed.",
    )
    capacity: int = Field(MOST_RECORDS, ge=1, description="Pushed records that may wait.")
    pace: PaceField = Field(
        AS_FAST_AS_POSSIBLE,
        description="When the records of an iterable come: as_fast_as_possible, or as far apart as "
        "their timestamps are (recorded), or at a rate such as 100 per second.",
    )

    @model_validator(mode="after")
    def _check_pace(self) -> MemorySource:
        if self.pace != AS_FAST_AS_POSSIBLE and self.records is None:
            message = (
                f"expected none where records are pushed and come as they do, found {self.pace}; "
                f"leave it out, or give records"
            )
            raise GraphError([Problem(("pace",), message)])
        return self

    @field_validator("records")
    @classmethod
    def _check_records(cls, records: Any) -> Any:
        if records is not None and not isinstance(records, AsyncIterable):
            try:
                iter(records)
            except TypeError:
                message = "expected an iterable or an async iterable"
                raise ValueError(message) from None
        return records

    @asynccontextmanager
    async def open(self, context: Context) -> AsyncIterator[Reader]:
        """Give a reader of the iterable, or one to push to."""
        partition = Partition(context.name)
        if self.records is not None and not isinstance(self.records, AsyncIterable):
            yield self._paced(IterableReader(iter(self.records), partition), context)
            return
        reader = QueueReader(partition, self.capacity)
        try:
            if self.records is None:
                yield reader
                return
            async with beside(reader.pump, self.records):
                yield self._paced(reader, context)
        finally:
            reader.close()

    def _paced(self, reader: Reader, context: Context) -> Reader:
        if self.pace == AS_FAST_AS_POSSIBLE:
            return reader
        return PacedReader(reader, self.pace, context.name)


class _NumberingReader:
    """Numbers records from zero; what memory readers have in common."""

    def __init__(self, partition: Partition) -> None:
        self._partition = partition
        self._next = 0
        self._end: Exception = anyio.EndOfStream()

    async def commit(self, positions: Mapping[Partition, int]) -> None:
        """Do nothing: memory has no place to store positions."""

    def _fetch(self, items: list[Any]) -> Fetch:
        start, self._next = self._next, self._next + len(items)
        batch = make_batch(items, self._partition, start)
        return Fetch(batch, {self._partition: self._next})


class IterableReader(_NumberingReader):
    """Reads a plain iterator, a batch at a time."""

    def __init__(self, items: Iterator[Any], partition: Partition) -> None:
        super().__init__(partition)
        self._items = items
        self._has_ended = False

    async def receive(self) -> Fetch:
        """Return the next items; fewer where the iterator is slow.

        Raises:
            anyio.EndOfStream: The iterator is exhausted.
            Exception: What the iterator raised, once the items before it are received.
        """
        items = [] if self._has_ended else await to_thread.run_sync(self._take)
        if not items:
            await anyio.lowlevel.checkpoint()
            raise self._end
        return self._fetch(items)

    def behind(self) -> int | None:
        """Return ``None``: an iterator does not tell."""
        return None

    def _take(self) -> list[Any]:
        items: list[Any] = []
        until = time.monotonic() + _SLICE
        try:
            for item in self._items:
                items.append(item)
                if len(items) == MOST_RECORDS or time.monotonic() > until:
                    return items
        except Exception as error:  # the iterator is the user's, and may raise anything
            self._end = error
        self._has_ended = True
        return items


class QueueReader(_NumberingReader):
    """Reads what the application pushes, from the event loop's thread."""

    def __init__(self, partition: Partition, capacity: int) -> None:
        super().__init__(partition)
        self._sending, self._receiving = anyio.create_memory_object_stream[Any](capacity)

    async def send(
        self,
        value: Any,
        *,
        key: Any = None,
        timestamp_ms: int | None = None,
        headers: Headers = (),
    ) -> None:
        """Take a record, waiting while there is no room.

        Raises:
            RunStoppedError: No more records are taken.
        """
        try:
            await self._send(Record(value, key, timestamp_ms, headers))
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            message = f"{self._partition.source}: expected an open source, found one that has ended"
            raise RunStoppedError(message) from None

    async def end(self) -> None:
        """Say that there will be no more; once more does nothing."""
        self._sending.close()

    async def pump(self, items: AsyncIterable[Any]) -> None:
        """Push all items of an async iterable, then what it raises if it fails."""
        iterator = aiter(items)
        try:
            async for item in iterator:
                try:
                    await self._send(item)
                except anyio.ClosedResourceError:  # the run stops
                    break
        except Exception as error:  # the iterable is the user's, and may raise anything
            self._end = error
        finally:
            self._sending.close()
            if isinstance(iterator, AsyncGenerator):
                with anyio.move_on_after(_CLOSING_TIME, shield=True):
                    await iterator.aclose()

    async def receive(self) -> Fetch:
        """Wait for records and return all that wait.

        Raises:
            anyio.EndOfStream: `end` was called and everything has been received.
            Exception: What the async iterable raised, once the items before it are received.
        """
        try:
            items = [await self._receiving.receive()]
        except anyio.EndOfStream:
            raise self._end from None
        while len(items) < MOST_RECORDS:
            try:
                items.append(self._receiving.receive_nowait())
            except (anyio.WouldBlock, anyio.EndOfStream):
                break
        return self._fetch(items)

    def behind(self) -> int:
        """Return how many pushed records wait."""
        return self._receiving.statistics().current_buffer_used

    def close(self) -> None:
        """Take no more records."""
        self._sending.close()
        self._receiving.close()

    async def _send(self, item: Any) -> None:
        try:
            self._sending.send_nowait(item)  # no turn of the event loop while there is room
        except anyio.WouldBlock:
            await self._sending.send(item)


class MemorySink(Sink):
    """Hands records to the application: ``async for record in run.records(name)``."""

    type: Literal["memory"] = "memory"
    capacity: int = Field(MOST_RECORDS, ge=1, description="Records that may wait to be taken.")

    @asynccontextmanager
    async def open(self, context: Context) -> AsyncIterator[Writer]:
        """Give a writer whose records the application takes."""
        writer = QueueWriter(context.name, self.capacity)
        try:
            yield writer
        finally:
            writer.close()


class QueueWriter:
    """Keeps records until the application takes them; delivered means taken.

    Attributes:
        num_discarded: Records that nobody took before they were abandoned.
    """

    def __init__(self, name: str, capacity: int) -> None:
        self._name = name
        self._capacity = capacity
        self._records: deque[Record] = deque()
        self._changed = anyio.Event()
        self._taking = anyio.ResourceGuard("taking records of")
        self._is_closed = False
        self._is_abandoned = False
        self.num_discarded = 0

    def __repr__(self) -> str:
        return f"<QueueWriter {self._name}: {len(self._records)} waiting>"

    async def write(self, batch: Batch) -> Rejected | None:
        """Offer records, waiting while there is no room."""
        await anyio.lowlevel.checkpoint()
        for record in batch.records():
            while len(self._records) >= self._capacity and not self._is_abandoned:
                await self._changed.wait()
            if self._is_abandoned:
                self.num_discarded += 1
                continue
            self._records.append(record)
            if len(self._records) == 1:
                self._notify()
        return None

    async def flush(self) -> None:
        """Wait until all records have been taken."""
        await anyio.lowlevel.checkpoint()
        while self._records:
            await self._changed.wait()

    async def mark(self) -> Mapping[str, Any]:
        """Return nothing: what was taken cannot be taken back."""
        return {}

    async def records(self) -> AsyncIterator[Record]:
        """Yield records as they come, to the end of the stream; one consumer at a time.

        Raises:
            anyio.BusyResourceError: Another one waits for records.
        """
        while True:
            while not self._records:
                if self._is_closed:
                    return
                with self._taking:
                    await self._changed.wait()
            record = self._records.popleft()
            if len(self._records) in (0, self._capacity - 1):
                self._notify()
            yield record

    def abandon(self) -> None:
        """Discard what waits and whatever comes, since nobody will take it."""
        self._is_abandoned = True
        self.num_discarded += len(self._records)
        self._records.clear()
        self._notify()

    def close(self) -> None:
        """Let `records` end once everything has been taken."""
        self._is_closed = True
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


def make_batch(items: list[Any], partition: Partition, start: int) -> Batch:
    """Return values and `Record` objects as a batch whose offsets count from ``start``."""
    if not any(isinstance(item, Record) for item in items):
        return _bare_batch(items, partition, start)
    records = [item if isinstance(item, Record) else Record(item) for item in items]
    return replace(
        _bare_batch([record.value for record in records], partition, start),
        keys=if_any([record.key for record in records], None),
        timestamps_ms=if_any([record.timestamp_ms for record in records], None),
        headers=if_any([record.headers for record in records], ()),
    )


def _bare_batch(rows: list[Any], partition: Partition, start: int) -> Batch:
    values = to_columns(rows)
    offsets = range(start, start + len(rows))
    size_bytes = _estimate_size(values)
    return Batch(values, [partition] * len(rows), offsets, size_bytes=size_bytes)


def _estimate_size(values: Values) -> int:
    """Return about how many bytes values take, quickly where they are plain numbers."""
    columns = values.values() if isinstance(values, dict) else [values]
    return sum(
        64 * len(column) if set(map(type, column)) <= _PLAIN else sum(map(estimate_bytes, column))
        for column in columns
    )
