"""An open Kafka sink: whole batches handed to the driver, without a task or future per record.

Each partition has a lane. One batch of a lane is under way to the broker while the next one fills,
so batches grow by themselves when the broker is slower than the stream, and nothing lingers when
it is not.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any, TypeVar

import anyio
from aiokafka import AIOKafkaProducer  # type: ignore[import-untyped]
from aiokafka.errors import (  # type: ignore[import-untyped]
    IllegalOperation,
    KafkaError,
    UnknownTopicOrPartitionError,
)
from aiokafka.partitioner import murmur2  # type: ignore[import-untyped]
from aiokafka.producer.message_accumulator import BatchBuilder  # type: ignore[import-untyped]

from streamflow.contracts import Context
from streamflow.errors import ConnectorError
from streamflow.plugins import require
from streamflow.records import Batch, Rejected, split_rejected
from streamflow_connectors.kafka import KafkaSink
from streamflow_connectors.kafka_connection import (
    client_options,
    close_producer,
    connecting,
    describe,
    gave_up,
    reach,
    start,
    unknown_topics,
)
from streamflow_connectors.kafka_faults import Faults
from streamflow_connectors.kafka_records import encode_key, headers_bytes

BATCH_BYTES = 256 * 2**10
BUFFER_BYTES = 16 * 2**20  # written and not yet delivered; then writing waits
REMEMBERED_KEYS = 2**16  # whose partition is not computed again


W = TypeVar("W", bound="KafkaWriter")


@asynccontextmanager
async def open_writer(sink: KafkaSink, context: Context) -> AsyncIterator[KafkaWriter]:
    """Connect and find the topic; disconnect when the block is left."""

    async def make(producer: AIOKafkaProducer, faults: Faults, _: dict[str, Any]) -> KafkaWriter:
        return KafkaWriter(producer, faults, sink, context)

    async with connected_writer(sink, context, make, {}) as writer:
        yield writer


@asynccontextmanager
async def connected_writer(
    sink: KafkaSink,
    context: Context,
    make: Callable[[AIOKafkaProducer, Faults, dict[str, Any]], Awaitable[W]],
    transactional: dict[str, Any],
) -> AsyncIterator[W]:
    """Connect, make a writer and find its topic; disconnect when the block is left.

    Args:
        sink: What is opened.
        context: What its node is told.
        make: Returns the writer, of a producer that is connected, its faults, and the options for
            more clients.
        transactional: The producer's options for transactions.
    """
    require(sink.compression_requires(), where=context.name)
    options = await client_options(sink, context)
    producer = AIOKafkaProducer(
        **options,
        **transactional,
        enable_idempotence=True,
        acks="all",
        max_batch_size=BATCH_BYTES,
        max_request_size=sink.max_request_size,
        compression_type=None if sink.compression == "none" else sink.compression,
    )
    faults = Faults()
    faults.watch(producer.client)
    writer: W | None = None
    try:
        async with connecting(sink, context, options):
            await reach(producer.client, context, options)
            await start(producer.start())
            writer = await make(producer, faults, options)
            await writer._find_topic(anyio.current_effective_deadline())
        yield writer
    finally:
        is_faulty = faults.retrying() is not None
        if writer is not None:
            await writer._abandon()
        await close_producer(producer, in_a_hurry=is_faulty)


class KafkaWriter:
    """Writes to one topic; see `contracts.Writer`. What is not flushed may not arrive."""

    def __init__(
        self, producer: AIOKafkaProducer, faults: Faults, sink: KafkaSink, context: Context
    ) -> None:
        self._producer = producer
        self._faults = faults
        self._sink = sink
        self._context = context
        self._codec = sink.format.codec()
        self._lanes: list[_Lane] = []
        self._turn = 0
        self._partition_of: Callable[[bytes], int] = len
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: str | None = None
        self._settled = anyio.Event()  # set, and replaced, when a delivery ends

    def __repr__(self) -> str:
        waiting = sum(lane.written - lane.delivered for lane in self._lanes)
        return f"<KafkaWriter {self._context.name}: {waiting} records under way>"

    async def write(self, batch: Batch) -> Rejected | None:
        """Hand over a batch, waiting while too much is under way; return what cannot be sent.

        Raises:
            ConnectorError: Something written before was not delivered.
        """
        while sum(lane.waiting_bytes for lane in self._lanes) >= BUFFER_BYTES:
            await self._wait_for_delivery()
        self._check()
        try:
            await self._update_partitions()
        except KafkaError as error:
            raise ConnectorError(self._explained(error)) from error
        encoded = self._codec.encode(batch)
        good, unencoded = split_rejected(batch, encoded.causes)
        causes = self._append(good, encoded.payloads)
        self._deliver()
        return _joined(batch, encoded.causes, causes) if causes else unencoded

    async def flush(self) -> None:
        """Wait until the brokers have stored everything written so far.

        Raises:
            ConnectorError: Something was not delivered.
        """
        targets = [(lane, lane.written) for lane in self._lanes]
        while any(lane.delivered < written for lane, written in targets):
            await self._wait_for_delivery()
        self._check()

    async def mark(self) -> Mapping[str, Any]:
        """Return nothing: what a topic has taken stays there."""
        return {}

    def retrying(self) -> str | None:
        """Return what is being tried again, for how long and why; None if all is well."""
        return self._faults.retrying()

    def report(self) -> Mapping[str, int]:
        """Return how often requests failed."""
        return {"requests that failed and were tried again": self._faults.num_failed}

    async def _wait_for_delivery(self) -> None:
        self._check()
        await self._settled.wait()

    def _check(self) -> None:
        if self._failure is not None:
            raise ConnectorError(self._failure)

    async def _find_topic(self, deadline: float) -> None:
        """Wait for the topic; the broker may create it.

        Raises:
            ConnectorError: It did not appear shortly before the deadline.
        """
        topic = self._sink.topic
        with anyio.move_on_after(max(0.1, 0.8 * (deadline - anyio.current_time()))) as scope:
            try:
                await self._update_partitions()
            except UnknownTopicOrPartitionError:
                raise unknown_topics(self._context, [topic]) from None
        if scope.cancelled_caught:
            raise unknown_topics(self._context, [topic])

    async def _update_partitions(self) -> None:
        """Take note of the topic's partitions, of which there may have become more."""
        count = len(await self._producer.partitions_for(self._sink.topic))
        if count <= len(self._lanes):
            return
        self._lanes += [_Lane(number) for number in range(len(self._lanes), count)]

        @lru_cache(maxsize=REMEMBERED_KEYS)
        def partition_of(key: bytes) -> int:
            return (murmur2(key) & 0x7FFFFFFF) % count  # type: ignore[no-any-return]

        self._partition_of = partition_of

    def _append(self, batch: Batch, payloads: Sequence[bytes]) -> dict[int, str]:
        """Put records into the lanes; return the cause for each that is too large."""
        causes: dict[int, str] = {}
        empty: Sequence[None] = [None] * len(batch)
        no_headers: list[tuple[str, bytes]] = []
        limit = self._sink.max_request_size
        create = self._producer.create_batch
        self._turn += 1
        keyless = self._lanes[self._turn % len(self._lanes)]
        for index, (payload, key, timestamp_ms, headers) in enumerate(
            zip(
                payloads,
                batch.keys or empty,
                batch.timestamps_ms or empty,
                batch.headers or empty,
                strict=True,
            )
        ):
            key_bytes = None if key is None else encode_key(key)
            size = len(payload)
            if key_bytes is not None:
                size += len(key_bytes)
            if headers:
                size += headers_bytes(headers)
            if size > limit:
                causes[index] = (
                    f"expected at most {limit} bytes, found {size}; see max_request_size"
                )
                continue
            lane = keyless if key_bytes is None else self._lanes[self._partition_of(key_bytes)]
            lane.append(
                create, timestamp_ms, key_bytes, payload, list(headers) if headers else no_headers
            )
        return causes

    def _deliver(self) -> None:
        """Start delivering the lanes that have records and are not being delivered."""
        for lane in self._lanes:
            if lane.builders and not lane.is_under_way:
                lane.is_under_way = True
                task = asyncio.get_running_loop().create_task(self._deliver_lane(lane))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _deliver_lane(self, lane: _Lane) -> None:
        """Deliver a lane's batches one after another, until none is left or one has failed."""
        topic = self._sink.topic
        try:
            while lane.builders and self._failure is None:
                builder = lane.take()
                with anyio.fail_after(self._sink.retry_for):
                    sent = await self._producer.send_batch(builder, topic, partition=lane.partition)
                    await sent
                lane.delivered += builder.record_count()
                lane.waiting_bytes -= lane.taken_bytes
                self._announce()
        except (KafkaError, IllegalOperation, ConnectorError, TimeoutError) as error:
            self._fail(error)
        finally:
            lane.is_under_way = False

    def _fail(self, error: BaseException) -> None:
        """Let all that is written or waited for from now on fail."""
        self._failure = self._failure or self._explained(error)
        self._announce()

    def _explained(self, error: BaseException) -> str:
        if isinstance(error, TimeoutError):
            return str(gave_up(self._sink, self._context, self._faults))
        return (
            f"{self._context.name}: expected the topic {self._sink.topic} to take records, "
            f"found {describe(error)}; check the broker, the permissions and the topic's limits"
        )

    def _announce(self) -> None:
        self._settled.set()
        self._settled = anyio.Event()

    async def _abandon(self) -> None:
        """Stop delivering."""
        closed = f"{self._context.name}: expected an open sink, found a closed one; open it first"
        self._failure = self._failure or closed
        for task in self._tasks:
            task.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.gather(*self._tasks, return_exceptions=True)


class _Lane:
    """The records on their way to one partition, in order.

    Attributes:
        partition: Its number.
        builders: Batches not yet handed to the driver; the last one is still filling.
        written: How many records have been appended.
        delivered: How many of them are stored.
        waiting_bytes: How many bytes have been appended and not delivered.
        taken_bytes: How many of them are under way.
        is_under_way: Whether a task is delivering the lane.
    """

    __slots__ = (
        "builders",
        "delivered",
        "is_under_way",
        "partition",
        "taken_bytes",
        "waiting_bytes",
        "written",
    )

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.builders: deque[BatchBuilder] = deque()
        self.written = 0
        self.delivered = 0
        self.waiting_bytes = 0
        self.taken_bytes = 0
        self.is_under_way = False

    def append(
        self,
        create: Callable[[], BatchBuilder],
        timestamp_ms: int | None,
        key: bytes | None,
        payload: bytes,
        headers: list[tuple[str, bytes]],
    ) -> None:
        """Add a record to the batch that is filling, or to a new one."""
        taken = None
        if self.builders:
            taken = self.builders[-1].append(
                timestamp=timestamp_ms, key=key, value=payload, headers=headers
            )
        if taken is None:
            self.builders.append(create())
            taken = self.builders[-1].append(  # the first always fits
                timestamp=timestamp_ms, key=key, value=payload, headers=headers
            )
        self.written += 1
        self.waiting_bytes += taken.size

    def take(self) -> BatchBuilder:
        """Close and return the oldest batch."""
        builder = self.builders.popleft()
        builder.close()
        # What is left after this one is counted by itself; a header belongs to no record.
        self.taken_bytes = builder.size() - HEADER_BYTES
        return builder


HEADER_BYTES = 61
"""Bytes before the first record of a batch, in version 2 of Kafka's record format."""


def _joined(batch: Batch, unencoded: Any, too_large: dict[int, str]) -> Rejected | None:
    """Return all rejected records; ``too_large`` counts within those that could be encoded."""
    encoded = [index for index in range(len(batch)) if index not in unencoded]
    causes = {**unencoded, **{encoded[index]: cause for index, cause in too_large.items()}}
    return split_rejected(batch, causes)[1]
