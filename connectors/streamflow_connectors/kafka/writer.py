"""An open Kafka sink: whole batches handed to the driver, without a task or future per record.

Each partition has a lane; see `lanes`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import repeat
from typing import Any, TypeVar

import anyio
from aiokafka import AIOKafkaProducer  # type: ignore[import-untyped]
from aiokafka.errors import (  # type: ignore[import-untyped]
    IllegalOperation,
    KafkaError,
    UnknownTopicOrPartitionError,
)

from streamflow.contracts import Context
from streamflow.errors import ConnectorError
from streamflow.nodes.plugins import require
from streamflow.records import Batch, Rejected, split_rejected
from streamflow_connectors.kafka.aiokafka_private import KafkaClient, client_of
from streamflow_connectors.kafka.connection import (
    client_options,
    close_producer,
    connecting,
    describe,
    gave_up,
    reach,
    start,
    unknown_topics,
)
from streamflow_connectors.kafka.faults import Faults
from streamflow_connectors.kafka.lanes import Topic, TopicLane
from streamflow_connectors.kafka.names import TopicNames
from streamflow_connectors.kafka.options import KafkaSinkOptions
from streamflow_connectors.kafka.records import encode_key, headers_bytes
from streamflow_connectors.network.reading import joined_causes
from streamflow_connectors.network.routes import FromField, keys, texts

BATCH_BYTES = 256 * 2**10
BUFFER_BYTES = 16 * 2**20  # written and not yet delivered; then writing waits

W = TypeVar("W", bound="KafkaWriter")


@asynccontextmanager
async def open_writer(sink: KafkaSinkOptions, context: Context) -> AsyncIterator[KafkaWriter]:
    """Connect and find the topic; disconnect when the block is left; see `connected_writer`."""

    async def make(producer: AIOKafkaProducer, faults: Faults, _: dict[str, Any]) -> KafkaWriter:
        return KafkaWriter(producer, faults, sink, context)

    async with connected_writer(sink, context, make, {}) as writer:
        yield writer


@asynccontextmanager
async def connected_writer(
    sink: KafkaSinkOptions,
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

    Raises:
        ConnectorError: No broker answers in time, there is no topic, aiokafka lacks what is needed,
            or the event loop is not asyncio's.
        MissingExtraError: The compression needs a package that is not installed.
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
    client = await client_of(producer)
    faults.watch(client)
    writer: W | None = None
    try:
        async with connecting(sink, context, options):
            await reach(client, context, options)
            await start(producer.start())
            writer = await make(producer, faults, options)
            if isinstance(sink.topic, str):
                await writer.find_topic(sink.topic, anyio.current_effective_deadline())
        yield writer
    finally:
        is_faulty = faults.retrying() is not None
        if writer is not None:
            await writer.abandon()
        await close_producer(producer, in_a_hurry=is_faulty)


class KafkaWriter:
    """Writes to topics; see `contracts.Writer`. What is not flushed may not arrive."""

    def __init__(
        self, producer: AIOKafkaProducer, faults: Faults, sink: KafkaSinkOptions, context: Context
    ) -> None:
        self._producer = producer
        self._faults = faults
        self._sink = sink
        self._context = context
        self._codec = sink.format.codec()
        self._topics: dict[str, Topic] = {}
        self._names = TopicNames(KafkaClient(producer), faults, sink, context)
        self._lanes: list[TopicLane] = []  # of all topics
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
        encoded = self._codec.encode(batch)
        good, _ = split_rejected(batch, encoded.causes)
        try:
            routed, topics, causes = await self._route(good)
        except KafkaError as error:
            raise ConnectorError(self._explained(error)) from error
        self._append(routed, encoded.payloads, topics, causes)
        self._deliver()
        return split_rejected(batch, joined_causes(len(batch), encoded.causes, causes))[1]

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

    async def find_topic(self, name: str, deadline: float) -> None:
        """Wait for a topic; the broker may create it.

        Raises:
            ConnectorError: It did not appear shortly before the deadline.
        """
        with anyio.move_on_after(max(0.1, 0.8 * (deadline - anyio.current_time()))) as scope:
            try:
                await self._topic(name)
            except UnknownTopicOrPartitionError:
                raise unknown_topics(self._context, [name]) from None
        if scope.cancelled_caught:
            raise unknown_topics(self._context, [name])

    async def _topic(self, name: str) -> Topic:
        """Return a topic that is there, with all its partitions, of which there may be more now."""
        count = len(await self._producer.partitions_for(name))
        topic = self._topics.get(name)
        if topic is None:
            topic = self._topics[name] = Topic(name)
        self._lanes += topic.grow(count)
        return topic

    async def _route(self, batch: Batch) -> tuple[Batch, Iterable[Topic | None], dict[int, str]]:
        """Return the records with their keys, the topic of each, and the cause where it has none.

        Raises:
            KafkaError: No broker tells.
        """
        declared, causes = self._sink, dict[int, str]()
        if declared.key is not None:
            found, causes = keys(batch, declared.key.field)
            batch = replace(batch, keys=found)
        if not isinstance(declared.topic, FromField):
            topic = await self._topic(declared.topic)
            topic.turn()
            return batch, repeat(topic, len(batch)), causes
        names, unnamed = texts(batch, declared.topic.field, "the name of its topic")
        wanted = {name for index, name in enumerate(names) if index not in unnamed}
        unknown = await self._names.unknown(wanted)
        topics = {name: await self._topic(name) for name in wanted - unknown.keys()}
        for topic in topics.values():
            topic.turn()
        causes |= unnamed
        for index, name in enumerate(names):
            if index not in causes and name in unknown:
                causes[index] = unknown[name]
        return batch, [topics.get(name) for name in names], causes

    def _append(
        self,
        batch: Batch,
        payloads: Sequence[bytes],
        topics: Iterable[Topic | None],
        causes: dict[int, str],
    ) -> None:
        """Put records into the lanes; add the cause for each that is too large."""
        empty: Sequence[None] = [None] * len(batch)
        no_headers: list[tuple[str, bytes]] = []
        limit = self._sink.max_request_size
        create = self._producer.create_batch
        for index, (payload, key, timestamp_ms, headers, topic) in enumerate(
            zip(
                payloads,
                batch.keys or empty,
                batch.timestamps_ms or empty,
                batch.headers or empty,
                topics,
                strict=True,
            )
        ):
            if topic is None or index in causes:
                continue
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
            topic.lane(key_bytes).append(
                create, timestamp_ms, key_bytes, payload, list(headers) if headers else no_headers
            )

    def _deliver(self) -> None:
        """Start delivering the lanes that have records and are not being delivered."""
        for lane in self._lanes:
            if lane.builders and not lane.is_under_way:
                lane.is_under_way = True
                task = asyncio.get_running_loop().create_task(self._deliver_lane(lane))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _deliver_lane(self, lane: TopicLane) -> None:
        """Deliver a lane's batches one after another, until none is left or one has failed."""
        try:
            while lane.builders and self._failure is None:
                builder = lane.take()
                with anyio.fail_after(self._sink.retry_for):
                    sent = await self._producer.send_batch(
                        builder, lane.topic, partition=lane.partition
                    )
                    await sent
                lane.delivered += builder.record_count()
                lane.waiting_bytes -= lane.taken_bytes
                self._announce()
        except (KafkaError, IllegalOperation, ConnectorError, TimeoutError) as error:
            self._fail(error, lane.topic)
        finally:
            lane.is_under_way = False

    def _fail(self, error: BaseException, topic: str = "") -> None:
        """Let all that is written or waited for from now on fail."""
        self._failure = self._failure or self._explained(error, topic)
        self._announce()

    def _explained(self, error: BaseException, topic: str = "") -> str:
        if isinstance(error, TimeoutError):
            return str(gave_up(self._sink, self._context, self._faults))
        return (
            f"{self._context.name}: expected the topic {topic or self._sink.topic} to take "
            f"records, "
            f"found {describe(error)}; check the broker, the permissions and the topic's limits"
        )

    def _announce(self) -> None:
        self._settled.set()
        self._settled = anyio.Event()

    async def abandon(self) -> None:
        """Stop delivering."""
        closed = f"{self._context.name}: expected an open sink, found a closed one; open it first"
        self._failure = self._failure or closed
        for task in self._tasks:
            task.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.gather(*self._tasks, return_exceptions=True)
