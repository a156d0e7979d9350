"""How fast the Kafka connector is beside a hand-written loop over its driver.

Run it as ``python benchmarks/kafka_connector.py HOST:PORT``. Each figure is the best of three.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from uuid import uuid4

import anyio
import orjson
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer  # type: ignore[import-untyped]

from streamflow.contracts import Context
from streamflow.records import Batch, Partition
from streamflow_connectors.kafka import KafkaSink, KafkaSource

RECORDS = 100_000
BATCH = 1000
ROW = {f"x{index}": index / 7 for index in range(8)}


async def main(address: str) -> None:
    """Print a table of records per second and the connector's share of the loop's rate."""
    topic = f"benchmark-{uuid4().hex}"
    print(f"{'':8}{'loop':>12}{'connector':>12}{'ratio':>8}")
    cases = [("write", loop_write, connector_write), ("read", loop_read, connector_read)]
    for name, loop, connector in cases:
        by_hand = await best(loop, address, topic)
        ours = await best(connector, address, topic)
        print(f"{name:8}{by_hand:12,.0f}{ours:12,.0f}{ours / by_hand:8.2f}")


async def best(case: Callable[[str, str], Awaitable[float]], address: str, topic: str) -> float:
    """Return the highest rate of three runs."""
    return max([RECORDS / await case(address, topic) for _ in range(3)])


async def loop_write(address: str, topic: str) -> float:
    """Encode and send record by record, and wait for the last."""
    producer = AIOKafkaProducer(
        bootstrap_servers=address, enable_idempotence=True, max_batch_size=256 * 1024, linger_ms=5
    )
    async with producer:
        started = time.perf_counter()
        for number in range(RECORDS):
            await producer.send(topic, orjson.dumps(ROW), key=b"key-%d" % (number % 100))
        await producer.flush()
        return time.perf_counter() - started


async def connector_write(address: str, topic: str) -> float:
    """Write batches of columns."""
    batch = Batch(
        values={name: [value] * BATCH for name, value in ROW.items()},
        partitions=[Partition("benchmark")] * BATCH,
        offsets=range(BATCH),
        keys=[f"key-{number % 100}" for number in range(BATCH)],
    )
    sink = KafkaSink(bootstrap_servers=address, topic=topic)
    async with sink.open(Context("out")) as writer:
        started = time.perf_counter()
        for _ in range(RECORDS // BATCH):
            await writer.write(batch)
        await writer.flush()
        return time.perf_counter() - started


async def loop_read(address: str, topic: str) -> float:
    """Receive and decode what is at hand."""
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=address, auto_offset_reset="earliest", enable_auto_commit=False
    )
    count = 0
    async with consumer:
        started = time.perf_counter()
        while count < RECORDS:
            for records in (await consumer.getmany(timeout_ms=100, max_records=2000)).values():
                count += len([orjson.loads(record.value) for record in records])
        return time.perf_counter() - started


async def connector_read(address: str, topic: str) -> float:
    """Receive batches."""
    source = KafkaSource(bootstrap_servers=address, topics=(topic,))
    count = 0
    async with source.open(Context("in")) as reader:
        started = time.perf_counter()
        while count < RECORDS:
            count += len((await reader.receive()).batch)
            await anyio.lowlevel.checkpoint()
        return time.perf_counter() - started


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
