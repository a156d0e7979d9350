"""A source and a sink in memory, whose faults and waits a test controls."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import anyio
import anyio.lowlevel
from pydantic import Field

from streamflow.contracts import Context, Fetch
from streamflow.errors import ConnectorError
from streamflow.nodes.declarations import Sink, Source
from streamflow.records import Batch, Partition, Record, Rejected, split_rejected, to_columns


class Gate:
    """Holds up whoever passes while it is shut."""

    def __init__(self, *, is_open: bool = True) -> None:
        self._is_open = is_open
        self._changed = anyio.Event()
        self.num_waiting = 0

    def __repr__(self) -> str:
        return f"<Gate {'open' if self._is_open else 'shut'} {self.num_waiting} waiting>"

    def open(self) -> None:
        """Let everybody pass."""
        self._is_open = True
        self._notify()

    def shut(self) -> None:
        """Hold up those who come from now on."""
        self._is_open = False

    async def wait(self) -> None:
        """Pass, once the gate is open."""
        await anyio.lowlevel.checkpoint()
        self.num_waiting += 1
        self._notify()
        try:
            while not self._is_open:
                await self._changed.wait()
        finally:
            self.num_waiting -= 1

    async def wait_until_held(self) -> None:
        """Return as soon as somebody waits at the shut gate."""
        while self._is_open or not self.num_waiting:
            await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


@dataclass
class SourceProbe:
    """What a `ListSource` saw.

    Attributes:
        num_received: Records handed out.
        commits: The positions of each commit.
        num_open: Readers that are open now.
    """

    num_received: int = 0
    commits: list[dict[Partition, int]] = field(default_factory=list)
    num_open: int = 0

    @property
    def committed(self) -> dict[Partition, int]:
        """The last position committed of each partition."""
        return {place: offset for commit in self.commits for place, offset in commit.items()}


class ListSource(Source):
    """Values from a list, in batches of a given size.

    Attributes:
        values: The values; a `Record` also brings its key, timestamp and headers.
        batch_size: Records of one receive.
        num_partitions: Partitions over which the values go in turn.
        bad: Causes of the records that are rejected, by index.
        fail_after: After so many records receiving raises ``error``.
        stays_open: Whether the end of the list is not the end of the stream.
        gate: What receiving passes.
    """

    # Faults and waits are not what a checkpoint is of.
    incidental: ClassVar[frozenset[str]] = frozenset(
        {"batch_size", "fail_after", "error", "stays_open", "gate", "probe"}
    )

    type: Literal["list"] = "list"
    values: tuple[Any, ...]
    batch_size: int = Field(10, ge=1)
    num_partitions: int = Field(1, ge=1)
    bad: Mapping[int, str] = Field(default_factory=dict)
    fail_after: int | None = None
    error: Exception = Field(default_factory=lambda: ConnectorError("expected data, found a fault"))
    stays_open: bool = False
    gate: Gate = Field(default_factory=Gate)
    probe: SourceProbe = Field(default_factory=SourceProbe)

    @property
    def rereads(self) -> bool:
        """Whether it can go on at the positions of a checkpoint."""
        return True

    @asynccontextmanager
    async def open(self, context: Context) -> AsyncGenerator[ListReader]:
        """Give a reader that starts at the first value, or where a checkpoint says."""
        self.probe.num_open += 1
        try:
            done = context.resume.positions.values() if context.resume else ()
            yield ListReader(self, context.name, start=sum(done))
        finally:
            self.probe.num_open -= 1


class ListReader:
    """Reads a `ListSource`."""

    def __init__(self, source: ListSource, name: str, *, start: int = 0) -> None:
        self._source = source
        self._next = start
        places = range(source.num_partitions)
        self._partitions = [
            Partition(name, (("partition", place),) if len(places) > 1 else ()) for place in places
        ]

    async def receive(self) -> Fetch:
        """Return the next batch.

        Raises:
            Exception: The source's ``error``, when it is to fail.
            anyio.EndOfStream: There will be no more.
        """
        source = self._source
        await source.gate.wait()
        if source.fail_after is not None and self._next >= source.fail_after:
            raise source.error
        if self._next >= len(source.values):
            if source.stays_open:
                await anyio.sleep_forever()
            raise anyio.EndOfStream
        start = self._next
        limits = (start + source.batch_size, len(source.values), source.fail_after)
        self._next = min(limit for limit in limits if limit is not None)
        source.probe.num_received += self._next - start
        return self._fetch(range(start, self._next))

    async def commit(self, positions: Mapping[Partition, int]) -> None:
        """Note the positions."""
        await anyio.lowlevel.checkpoint()
        self._source.probe.commits.append(dict(positions))

    def behind(self) -> int | None:
        """Return how many values are left."""
        return len(self._source.values) - self._next

    def _fetch(self, indices: range) -> Fetch:
        items = [self._source.values[index] for index in indices]
        records = [item if isinstance(item, Record) else Record(item) for item in items]
        count = len(self._partitions)
        partitions = [self._partitions[index % count] for index in indices]
        offsets = [index // count for index in indices]
        batch = Batch(
            [record.value for record in records],
            partitions,
            offsets,
            keys=[record.key for record in records],
            timestamps_ms=[record.timestamp_ms for record in records],
            headers=[record.headers for record in records],
            size_bytes=100 * len(records),
        )
        bad = self._source.bad
        causes = {place: bad[index] for place, index in enumerate(indices) if index in bad}
        good, rejected = split_rejected(batch, causes)
        ends = {place: end + 1 for place, end in zip(partitions, offsets, strict=True)}
        return Fetch(good.with_values(to_columns(good.rows())), ends, rejected)


@dataclass
class SinkProbe:
    """What a `ListSink` saw.

    Attributes:
        records: Every record written.
        batch_sizes: Number of records of each write.
        num_delivered: How many records had been written at the last flush.
        num_open: Writers that are open now.
    """

    records: list[Record] = field(default_factory=list)
    batch_sizes: list[int] = field(default_factory=list)
    num_delivered: int = 0
    num_open: int = 0

    @property
    def values(self) -> list[Any]:
        """The values of the records."""
        return [record.value for record in self.records]


class ListSink(Sink):
    """Keeps what is written in a list.

    Attributes:
        reject: Returns the cause for a value that cannot be written, else None.
        fail_after: A write that would bring more than so many records raises ``error``.
        fails_flush: Whether flushing raises ``error``.
        gate: What writing passes: shut, it is a sink without room.
        flush_gate: What flushing passes.
        mark_gate: What giving a mark passes.
    """

    type: Literal["list"] = "list"
    reject: Callable[[Any], str | None] | None = None
    fail_after: int | None = None
    fails_flush: bool = False
    error: Exception = Field(default_factory=lambda: ConnectorError("expected room, found a fault"))
    gate: Gate = Field(default_factory=Gate)
    flush_gate: Gate = Field(default_factory=Gate)
    mark_gate: Gate = Field(default_factory=Gate)
    probe: SinkProbe = Field(default_factory=SinkProbe)

    @property
    def cuts_back(self) -> bool:
        """Whether what it wrote after a checkpoint is gone when a run goes on from there."""
        return True

    @asynccontextmanager
    async def open(self, context: Context) -> AsyncGenerator[ListWriter]:
        """Give a writer; what was written after a checkpoint is cut off."""
        self.probe.num_open += 1
        if context.resume and context.resume.mark is not None:
            del self.probe.records[context.resume.mark["records"] :]
        try:
            yield ListWriter(self)
        finally:
            self.probe.num_open -= 1


class ListWriter:
    """Writes to a `ListSink`."""

    def __init__(self, sink: ListSink) -> None:
        self._sink = sink

    async def write(self, batch: Batch) -> Rejected | None:
        """Keep the records.

        Raises:
            Exception: The sink's ``error``, when it is to fail.
        """
        sink = self._sink
        await sink.gate.wait()
        if sink.fail_after is not None and len(sink.probe.records) + len(batch) > sink.fail_after:
            raise sink.error
        reject = sink.reject or (lambda value: None)
        found = {index: reject(value) for index, value in enumerate(batch.rows())}
        good, rejected = split_rejected(batch, {i: cause for i, cause in found.items() if cause})
        sink.probe.batch_sizes.append(len(good))
        sink.probe.records.extend(good.records())
        return rejected

    async def flush(self) -> None:
        """Count what was written as delivered.

        Raises:
            Exception: The sink's ``error``, when it is to fail.
        """
        await self._sink.flush_gate.wait()
        if self._sink.fails_flush:
            raise self._sink.error
        self._sink.probe.num_delivered = len(self._sink.probe.records)

    async def mark(self) -> Mapping[str, Any]:
        """Return how many records there are."""
        await self._sink.mark_gate.wait()
        return {"records": self._sink.probe.num_delivered}
