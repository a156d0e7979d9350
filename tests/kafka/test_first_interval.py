"""A run that dies between its first checkpoint, before the first record, and its second one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer  # type: ignore[import-untyped]

from streamflow.graph import Checkpoints, Graph
from streamflow.operators.functions import Map
from streamflow_connectors.kafka import KafkaSink, KafkaSource
from tests.kafka.clients import Cluster, committed, consume

pytestmark = [pytest.mark.kafka, pytest.mark.asyncio]


class Counting:
    """Returns how many records there have been, as a model that has learned them all would."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, value: Any) -> int:
        self.count += 1
        return self.count

    def state(self) -> dict[str, int]:
        return {"count": self.count}

    def restore(self, state: dict[str, int]) -> None:
        self.count = state["count"]


def counting(address: str, topic_in: str, topic: str, folder: Path, **options: Any) -> Graph:
    source = KafkaSource(
        bootstrap_servers=address, topics=(topic_in,), partitions=(0,), group=topic, **options
    )
    sink = KafkaSink(
        bootstrap_servers=address, inputs=("count",), topic=topic, delivery="exactly_once"
    )
    return Graph(
        name="counting",
        checkpoint=Checkpoints(path=str(folder), every=100_000),
        sources={"in": source},
        operators={"count": Map(inputs=("in",), function=Counting())},
        sinks={"out": sink},
    )


async def fill(address: str, topic: str, count: int) -> None:
    async with AIOKafkaProducer(bootstrap_servers=address) as producer:
        for _ in range(count):
            await producer.send(topic, b"1", partition=0)


async def test_what_was_published_is_learned_again(
    cluster: Cluster, real_broker: str, tmp_path: Path
) -> None:
    topic_in, topic = await cluster.create_topic(), await cluster.create_topic()
    await fill(real_broker, topic_in, 20)
    async with counting(real_broker, topic_in, topic, tmp_path / "kept").open() as run:
        while await committed(real_broker, topic, topic_in) != 20:
            pass
        run.abort()
    await fill(real_broker, topic_in, 10)
    again = counting(real_broker, topic_in, topic, tmp_path / "kept", stop_at_end=True)
    async with again.open() as run:
        await run.wait()
    records = await consume(real_broker, topic, 30)
    assert [int(record.value) for record in records] == list(range(1, 31))
