"""An open Redis source: a task reads, and what comes waits in a backlog.

In a group an entry that the server has handed out is pending, in the name of its consumer, until it
is acknowledged. So a consumer first asks for what it has pending, then for what is new; and once
more for what is pending when it has lost the connection, since an answer may have been lost, too:

    pending after the last received -> none left -> new ... connection lost -> pending after ...
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import anyio.lowlevel

from redis.exceptions import ResponseError
from streamflow.contracts import Context, Fetch, Reader
from streamflow.records import Batch, Partition
from streamflow_connectors.network.backlog import BacklogReader, pumping
from streamflow_connectors.network.reading import Item, decoded
from streamflow_connectors.redis.connection import RedisLink, connected
from streamflow_connectors.redis.entries import id_of, position_of, to_item
from streamflow_connectors.redis.options import RedisSourceOptions

MOST_RECORDS: Final = 500
BLOCK_MS: Final = 1000
NEW: Final = b">"


@asynccontextmanager
async def open_reader(source: RedisSourceOptions, context: Context) -> AsyncIterator[Reader]:
    """Connect, find out where to begin, and read until the block is left."""
    async with AsyncExitStack() as stack:
        link = await stack.enter_async_context(connected(source, context))
        acks = await stack.enter_async_context(connected(source, context))
        reader = RedisReader(link, acks, source, context)
        await link.retries.run(reader.begin)
        async with pumping(lambda _: reader.pump(), reader.backlog):
            yield reader


class RedisReader(BacklogReader):
    """Reads streams; see `streamflow.contracts.Reader`."""

    def __init__(
        self, link: RedisLink, acks: RedisLink, source: RedisSourceOptions, context: Context
    ) -> None:
        super().__init__(context, source.format.codec(), link.retries)
        self._link = link
        self._acks = acks
        self._source = source
        self._resume = context.resume
        self._partitions = {
            name: Partition(context.name, (("stream", name),), "position")
            for name in source.streams
        }
        self._last: dict[str, int] = {}  # received, by position
        self._ends: dict[str, int] = {}  # when reading began
        self._pending: dict[str, deque[int]] = {name: deque() for name in source.streams}
        self._is_behind = source.group is not None  # whether something may be pending
        is_kept = context.is_checkpointed and source.group is None and context.resume is None
        # Kept even if nothing comes, for the next run would begin at a later end.
        self._untold = is_kept and source.start == "latest"

    async def begin(self) -> None:
        """Find out where the streams begin and end; make the group."""
        for name in self._source.streams:
            self._ends[name] = await self._end(name)
            if self._source.group is not None:
                await self._make_group(name)
            self._last[name] = self._first(name)

    async def receive(self) -> Fetch:
        """Wait for records and return those at hand.

        Raises:
            anyio.EndOfStream: ``stop_at_end``, and all streams have been read.
            ConnectorError: The server refused, or was away for too long.
        """
        if self._untold:
            await anyio.lowlevel.checkpoint()
            self._untold = False
            ends = {self._partitions[name]: last + 1 for name, last in self._last.items()}
            return Fetch(Batch([], [], []), ends)
        return await super().receive()

    async def commit(self, positions: Mapping[Partition, int]) -> None:
        """Acknowledge what a group has handed out, up to these positions.

        Raises:
            ConnectorError: The server refused, or was away for too long.
        """
        for partition, position in positions.items():
            [(_, name)] = partition.place
            await self._acknowledge(str(name), position)

    def behind(self) -> int | None:
        """Return ``None``: the server does not tell."""
        return None

    def retrying(self) -> str | None:
        """Return what is tried again, for how long and why; ``None`` if all is well."""
        return self._link.retries.retrying() or self._acks.retries.retrying()

    def report(self) -> Mapping[str, int]:
        """Return how often something failed."""
        count = self._link.retries.num_failed + self._acks.retries.num_failed
        return {"failures that were tried again": count}

    async def pump(self) -> None:
        """Read for ever, or to the end."""
        while not self._is_at_end():
            entries = await self._link.retries.run(self._read)
            for name, found in entries.items():
                for entry, fields in found:
                    await self._put(name, entry, fields)
            if not any(entries.values()):
                if self._source.stop_at_end and not self._is_behind:
                    return
                self._is_behind = False

    async def _read(self) -> dict[str, Sequence[tuple[bytes, Any]]]:
        """Return the next entries of each stream, none if none came for a moment."""
        source, client = self._source, self._link.client
        after: dict[Any, Any] = {name: id_of(last) for name, last in self._last.items()}
        block = None if source.stop_at_end else BLOCK_MS
        found: Any
        try:
            if source.group is None:
                found = await client.xread(after, count=MOST_RECORDS, block=block)
            elif self._is_behind:
                found = await self._read_group(after)
            else:
                found = await self._read_group(dict.fromkeys(after, NEW), block)
        except Exception:
            self._is_behind = source.group is not None
            raise
        pairs = found.items() if isinstance(found, dict) else found or ()
        return {name.decode(): entries for name, entries in pairs}

    async def _read_group(self, after: dict[Any, Any], block: int | None = None) -> Any:
        group, consumer = str(self._source.group), self._source.consumer_name
        return await self._link.client.xreadgroup(
            group, consumer, after, count=MOST_RECORDS, block=block
        )

    async def _put(self, name: str, entry: bytes, fields: Mapping[bytes, bytes] | None) -> None:
        position = position_of(entry)
        self._last[name] = max(self._last[name], position)
        if self._source.group is not None:
            self._pending[name].append(position)
        if not fields or position < self._learned(name):
            # It was deleted while it was pending, or a checkpoint has it.
            await self._acknowledge(name, position + 1)
        else:
            item = to_item(entry, fields, self._source.payload, self._partitions[name])
            await self.backlog.put(item)

    async def _acknowledge(self, name: str, position: int) -> None:
        pending, ids = self._pending[name], []
        while pending and pending[0] < position:
            ids.append(id_of(pending.popleft()))
        if ids and self._source.group is not None:
            group = self._source.group
            await self._acks.retries.run(lambda: self._acks.client.xack(name, group, *ids))

    def _is_at_end(self) -> bool:
        reached = (self._last[name] >= end for name, end in self._ends.items())
        return self._source.stop_at_end and all(reached)

    def _learned(self, name: str) -> int:
        """Return the position up to which a checkpoint has what a group hands out."""
        if self._resume is None:
            return 0
        return self._resume.positions.get(self._partitions[name].place, 0)

    def _first(self, name: str) -> int:
        """Return the position before the first one to read."""
        if self._source.group is not None:
            return -1
        if self._resume is not None:
            return self._learned(name) - 1
        return self._ends[name] if self._source.start == "latest" else -1

    async def _end(self, name: str) -> int:
        """Return the position of the last entry, -1 if there is none."""
        if not await self._link.client.exists(name):
            return -1
        found = await self._link.client.xinfo_stream(name)
        return position_of(found["last-generated-id"])

    async def _make_group(self, name: str) -> None:
        start = "$" if self._source.start == "latest" else "0"
        group = str(self._source.group)
        try:
            await self._link.client.xgroup_create(name, group, start, mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):  # which says that it is there
                raise

    def _fetch(self, items: Sequence[Item]) -> Fetch:
        partitions = [item.partition for item in items if item.partition is not None]
        offsets = [item.offset for item in items]
        ends = {part: offset + 1 for part, offset in zip(partitions, offsets, strict=True)}
        return decoded(items, self._codec, partitions, offsets, ends)
