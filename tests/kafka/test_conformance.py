import json
from typing import Any

import anyio
import pytest

from streamflow.contracts import Context, Reader
from streamflow.testing import check_live_source, check_sink, check_source
from streamflow_connectors.kafka import KafkaSink, KafkaSource
from tests.kafka.clients import Cluster, produce

pytestmark = pytest.mark.kafka

VALUES = [{"x": index, "y": f"text {index}"} for index in range(50)]


def encoded(values: list[Any]) -> list[bytes | None]:
    return [json.dumps(value).encode() for value in values]


@pytest.mark.asyncio
async def test_a_topic_that_ends_conforms(cluster: Cluster) -> None:
    topic = await cluster.create_topic()
    await produce(cluster.address, topic, encoded(VALUES))
    await check_source(
        lambda: KafkaSource(bootstrap_servers=cluster.address, topics=(topic,), stop_at_end=True),
        VALUES,
    )


@pytest.mark.asyncio
async def test_a_live_topic_conforms(cluster: Cluster) -> None:
    topic = await cluster.create_topic()

    async def send(_reader: Reader, value: Any) -> None:
        await produce(cluster.address, topic, encoded([value]))

    await check_live_source(
        lambda: KafkaSource(bootstrap_servers=cluster.address, topics=(topic,)), send, VALUES[:3]
    )


@pytest.mark.asyncio
async def test_a_sink_conforms(cluster: Cluster) -> None:
    topic = await cluster.create_topic()

    async def read_back() -> list[Any]:
        source = KafkaSource(bootstrap_servers=cluster.address, topics=(topic,), stop_at_end=True)
        values: list[Any] = []
        async with source.open(Context("source")) as reader:
            while True:
                try:
                    values += (await reader.receive()).batch.rows()
                except anyio.EndOfStream:
                    return values

    await check_sink(
        lambda: KafkaSink(bootstrap_servers=cluster.address, topic=topic),
        read_back,
        VALUES,
        bad={"x": float("nan"), "y": ""},
    )
