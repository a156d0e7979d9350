"""Exactly-once output: outputs and the positions they come from, in one transaction after another.

Theory of operation. What the group has committed says what is published. A transaction takes some
outputs and, at its end, the position after the last record they come from; brokers show both or
neither:

    committed 40 | begin  outputs of 40 41 43  position 44  commit | begin  outputs of 44 ...
                                  killed here: ^ readers see neither, and committed stays 40

A live member's group takes positions unfenced, so the source names its partitions
(https://github.com/aio-libs/aiokafka/issues/844).

Opening a writer fences off whoever has the same transactional id and ends their transaction; only
then is the committed position read. A run that begins before it, at a checkpoint, makes some of the
outputs again, and these are left out. That takes one output for each record at the most, in the
order of the source, which is checked record by record.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import anyio
from aiokafka import (  # type: ignore[import-untyped]
    AIOKafkaConsumer,
    AIOKafkaProducer,
    OffsetAndMetadata,
    TopicPartition,
)
from aiokafka.errors import (  # type: ignore[import-untyped]
    IllegalOperation,
    KafkaError,
    ProducerFenced,
)

from streamflow.contracts import Context
from streamflow.errors import ConnectorError
from streamflow.records import Batch, Place, Rejected
from streamflow_connectors.kafka.aiokafka_private import (
    client_of,
    is_in_transaction,
    transaction_error,
)
from streamflow_connectors.kafka.connection import close_consumer, start
from streamflow_connectors.kafka.faults import Faults
from streamflow_connectors.kafka.options import KafkaSinkOptions, KafkaSourceOptions
from streamflow_connectors.kafka.records import topic_partition
from streamflow_connectors.kafka.writer import KafkaWriter, connected_writer

TRANSACTION_SECONDS = 1.0  # under constant load; readers see nothing of a transaction that is open
ABORT_SECONDS = 2.0
SPARE_SECONDS = 60.0  # that a transaction may take beside retrying
LONGEST_SECONDS = 900.0  # what brokers grant unless they are told otherwise


@asynccontextmanager
async def open_exactly_once(
    sink: KafkaSinkOptions, context: Context
) -> AsyncIterator[ExactlyOnceWriter]:
    """Fence off others, find out what is published; abort what is open when the block is left.

    Raises:
        ConnectorError: No broker answers in time, or the event loop is not asyncio's.
    """
    [source] = context.sources.values()
    assert isinstance(source, KafkaSourceOptions)
    group = source.group
    assert group is not None
    name = sink.transactional_id_for(source, context.name)
    transactional = {
        "transactional_id": name,
        "transaction_timeout_ms": round(
            1000 * min(sink.retry_for + SPARE_SECONDS, LONGEST_SECONDS)
        ),
    }

    async def make(
        producer: AIOKafkaProducer, faults: Faults, options: dict[str, Any]
    ) -> ExactlyOnceWriter:
        published = await _committed(options, source)
        return ExactlyOnceWriter(producer, faults, sink, context, name, group, published)

    async with connected_writer(sink, context, make, transactional) as writer:
        try:
            yield writer
        finally:
            await writer.abort()


class ExactlyOnceWriter(KafkaWriter):
    """Writes to one topic in transactions; see `streamflow.contracts.Writer`.

    Attributes:
        left_out: How many records were not written because their outputs are published.
    """

    def __init__(
        self,
        producer: AIOKafkaProducer,
        faults: Faults,
        sink: KafkaSinkOptions,
        context: Context,
        transactional_id: str,
        group: str,
        published: dict[TopicPartition, int],
    ) -> None:
        super().__init__(producer, faults, sink, context)
        self.left_out = 0
        self._id = transactional_id
        self._group = group
        self._published = published
        self._ends = dict(published)  # after the last record written
        self._changed: set[TopicPartition] = set()  # whose end the transaction will hold
        self._parts: dict[Place, TopicPartition] = {}
        self._began: float | None = None  # None: no transaction is open

    async def write(self, batch: Batch) -> Rejected | None:
        """Hand over what is not published yet; return what cannot be sent.

        Raises:
            ConnectorError: Something written before was not delivered, or a record does not come
                after the one before it in its partition.
        """
        if self._began is not None and anyio.current_time() > self._began + TRANSACTION_SECONDS:
            await self.flush()
        self._check()
        kept = self._unpublished(batch)
        if not kept:
            return None
        if self._began is None:
            await self._producer.begin_transaction()
            self._began = anyio.current_time()
        rejected = await super().write(batch.select(kept))
        return rejected and replace(rejected, indices=[kept[place] for place in rejected.indices])

    def report(self) -> Mapping[str, int]:
        """Return how often requests failed, and what was not written again."""
        return {**super().report(), "records left out, as published already": self.left_out}

    async def flush(self) -> None:
        """Commit everything written so far, with the positions it comes from.

        Raises:
            ConnectorError: It was not committed; a later run writes it again.
        """
        await super().flush()
        if self._began is None:
            return
        offsets = {part: OffsetAndMetadata(self._ends[part], "") for part in self._changed}
        try:
            with anyio.fail_after(self._sink.retry_for):
                await self._producer.send_offsets_to_transaction(offsets, self._group)
                await self._producer.commit_transaction()
        except (KafkaError, IllegalOperation, TimeoutError) as error:
            self._fail(error)
        self._check()
        self._began = None
        self._changed.clear()

    def _unpublished(self, batch: Batch) -> list[int]:
        """Return the places of records whose outputs are not published, and move the ends on."""
        kept = []
        for index, (partition, offset) in enumerate(
            zip(batch.partitions, batch.offsets, strict=True)
        ):
            part = self._parts.get(partition.place)
            if part is None:
                part = self._parts[partition.place] = topic_partition(partition.place)
            if offset < self._published.get(part, 0):
                self.left_out += 1
            elif offset < self._ends.get(part, 0):
                raise ConnectorError(self._out_of_order(part, offset))
            else:
                kept.append(index)
                self._ends[part] = offset + 1
                self._changed.add(part)
        return kept

    def _out_of_order(self, part: TopicPartition, offset: int) -> str:
        return (
            f"{self._context.name}: expected one output for each record, in the order of the "
            f"source (delivery: exactly_once), found that of topic {part.topic} partition "
            f"{part.partition} offset {offset} after that of offset {self._ends[part] - 1}; "
            "give the sink one input, and that a single way from the source"
        )

    def _explained(self, error: BaseException, topic: str = "") -> str:
        if isinstance(error, IllegalOperation):
            error = transaction_error(self._producer) or error  # that is why it is illegal
        if not isinstance(error, ProducerFenced):
            return super()._explained(error, topic)
        return (
            f"{self._context.name}: expected to be the only instance with the transactional_id "
            f"{self._id}, found that another one has started since, or that a transaction took too "
            "long for the broker; stop one of the two, or give each its own partitions and "
            "transactional_id"
        )

    async def abort(self) -> None:
        """Roll back what is open, for readers wait for its end; the broker does so in the end."""
        await self.abandon()
        if self._began is None or not is_in_transaction(self._producer):
            return
        with anyio.move_on_after(ABORT_SECONDS, shield=True):
            try:
                await self._producer.abort_transaction()
            except (KafkaError, IllegalOperation):
                return  # of somebody who has been fenced off there is nothing left to roll back


async def _committed(
    options: dict[str, Any], source: KafkaSourceOptions
) -> dict[TopicPartition, int]:
    """Return the committed positions of a source's partitions."""
    consumer = AIOKafkaConsumer(**options, group_id=source.group, enable_auto_commit=False)
    Faults().watch(await client_of(consumer))  # so that no error is taken for no position
    parts = [
        TopicPartition(topic, number)
        for topic in source.topics
        for number in source.partitions or ()
    ]
    consumer.assign(parts)
    try:
        await start(consumer.start())
        found = {part: await consumer.committed(part) for part in parts}
    finally:
        await close_consumer(consumer)
    return {part: position for part, position in found.items() if position is not None}
