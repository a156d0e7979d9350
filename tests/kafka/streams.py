"""A stream through a group of members in processes of their own, watched from outside."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import (  # type: ignore[import-untyped]
    AIOKafkaConsumer,
    AIOKafkaProducer,
    TopicPartition,
)

from streamflow_connectors.kafka.connection import close_consumer
from tests.kafka.clients import Cluster
from tests.kafka.jobs import Job

NUM_PARTITIONS = 4


class Stream:
    """A topic that is filled while members of a group read it, and what they have written.

    Attributes:
        sent: How many records each partition has; record n of partition p is ``p * 10**6 + n``.
        outputs: Who has written what, in order.
    """

    def __init__(self, address: str, topic_in: str, topic_out: str, consumer: Any) -> None:
        self.address = address
        self._consumer = consumer
        self.topic_in = topic_in
        self.topic_out = topic_out
        self.sent = [0] * NUM_PARTITIONS
        self.outputs: list[tuple[int, str]] = []

    @property
    def expected(self) -> list[int]:
        return [part * 10**6 + n for part, count in enumerate(self.sent) for n in range(count)]

    async def send(self, count: int) -> None:
        """Send so many more records to each partition."""
        async with AIOKafkaProducer(bootstrap_servers=self.address, linger_ms=20) as producer:
            sent = []
            for part in range(NUM_PARTITIONS):
                for number in range(self.sent[part], self.sent[part] + count):
                    value = b"%d" % (part * 10**6 + number)
                    sent.append(await producer.send(self.topic_in, value, partition=part))
                self.sent[part] += count
            await asyncio.gather(*sent)

    async def read(self) -> None:
        """Read what has been written up to now."""
        consumer = self._consumer
        [(part, end)] = (await consumer.end_offsets(consumer.assignment())).items()
        while await consumer.position(part) < end:
            for records in (await consumer.getmany(timeout_ms=100)).values():
                found = [json.loads(record.value) for record in records]
                self.outputs += [(output["value"], output["by"]) for output in found]

    async def wait_for(self, *names: str, jobs: Mapping[str, Job]) -> None:
        """Wait until each of these members has written something new, sending more meanwhile."""
        await self.read()
        before = Counter(name for _, name in self.outputs)
        while not all(Counter(name for _, name in self.outputs)[n] > before[n] for n in names):
            for name in names:
                assert not jobs[name].has_ended, jobs[name].log
            await self.send(50)
            await self.check_committed()

    async def check_committed(self) -> None:
        """Check that nothing is committed that has not been delivered."""
        group = f"of-{self.topic_in}"
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.address, group_id=group, enable_auto_commit=False
        )
        parts = [TopicPartition(self.topic_in, number) for number in range(NUM_PARTITIONS)]
        consumer.assign(parts)
        async with consumer:
            positions = [await consumer.committed(part) or 0 for part in parts]
        await self.read()
        delivered = {value for value, _ in self.outputs}
        for part, position in enumerate(positions):
            assert {part * 10**6 + n for n in range(position)} <= delivered

    async def wait_for_all(self, jobs: Mapping[str, Job]) -> None:
        """Wait until every record has been delivered."""
        await self.check_committed()
        while not set(self.expected) <= {value for value, _ in self.outputs}:
            for job in jobs.values():
                assert not job.has_ended, job.log
            await self.check_committed()


@asynccontextmanager
async def stream_of(address: str) -> AsyncIterator[Stream]:
    cluster = Cluster(address)
    topics = await cluster.create_topic(NUM_PARTITIONS), await cluster.create_topic()
    consumer = AIOKafkaConsumer(
        topics[1],
        bootstrap_servers=address,
        auto_offset_reset="earliest",
        fetch_max_wait_ms=50,
    )
    await consumer.start()
    try:
        stream = Stream(address, *topics, consumer)
        await stream.send(300)
        yield stream
    finally:
        await close_consumer(consumer, in_a_hurry=True)  # its own end fails without a broker
