"""What the Kafka tests do with the driver alone, beside the connector."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from aiokafka import (  # type: ignore[import-untyped]
    AIOKafkaConsumer,
    AIOKafkaProducer,
    TopicPartition,
)
from aiokafka.admin import (  # type: ignore[import-untyped]
    AIOKafkaAdminClient,
    NewTopic,
    RecordsToDelete,
)

from streamflow_connectors.demo.embedded_kafka import EmbeddedKafka


@dataclass(frozen=True)
class Cluster:
    """A broker under test; ``embedded`` if it is not a real one."""

    address: str
    sasl_address: str = ""
    embedded: EmbeddedKafka | None = None

    async def create_topic(self, partitions: int = 1, *, name: str = "") -> str:
        """Create a topic, by default with a name of its own, and return its name."""
        name = name or f"test-{uuid4().hex}"
        if self.embedded is not None:
            self.embedded.create_topic(name, partitions)
            return name
        async with admin(self.address) as client:
            await client.create_topics([NewTopic(name, partitions, 1)])
        return name


@asynccontextmanager
async def admin(address: str) -> AsyncIterator[AIOKafkaAdminClient]:
    client = AIOKafkaAdminClient(bootstrap_servers=address)
    await client.start()
    try:
        yield client
    finally:
        await client.close()


async def delete_before(address: str, topic: str, offset: int) -> None:
    """Make the broker forget the records of partition 0 before ``offset``."""
    async with admin(address) as client:
        await client.delete_records({TopicPartition(topic, 0): RecordsToDelete(offset)})


async def produce(address: str, topic: str, values: Sequence[bytes | None], **options: Any) -> None:
    """Write records to partition 0 unless ``options`` of the driver's send say otherwise."""
    async with AIOKafkaProducer(bootstrap_servers=address) as producer:
        for value in values:
            await producer.send_and_wait(topic, value, **{"partition": 0, "key": b"k", **options})


async def consume(address: str, topic: str, count: int) -> list[Any]:
    """Return the first ``count`` records of a topic, as the driver gives them."""
    records: list[Any] = []
    async with AIOKafkaConsumer(
        topic, bootstrap_servers=address, auto_offset_reset="earliest", fetch_max_wait_ms=50
    ) as consumer:
        while len(records) < count:
            for received in (await consumer.getmany(timeout_ms=1000)).values():
                records += received
    return records


async def committed(address: str, group: str, topic: str, partition: int = 0) -> int | None:
    """Return a group's committed position."""
    part = TopicPartition(topic, partition)
    consumer = AIOKafkaConsumer(bootstrap_servers=address, group_id=group, enable_auto_commit=False)
    consumer.assign([part])
    async with consumer:
        found: int | None = await consumer.committed(part)
    return found
