"""Where a source goes on: at a checkpoint, at what its group committed, or at neither."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import anyio
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition  # type: ignore[import-untyped]

from streamflow.contracts import Context, Fetch, Reader, Resume
from streamflow.errors import ConnectorError
from streamflow.records import Place
from streamflow_connectors.kafka import KafkaSource
from tests.kafka.clients import Cluster, delete_before, produce

pytestmark = [pytest.mark.kafka, pytest.mark.asyncio]

GROUPS = pytest.mark.parametrize("options", [{}, {"partitions": (0, 1)}], ids=["group", "assigned"])


def source(address: str, topic: str, **options: Any) -> KafkaSource:
    return KafkaSource(
        **{"bootstrap_servers": address, "topics": (topic,), "stop_at_end": True, **options}
    )


def resumed(topic: str, positions: Mapping[int, int], *, is_rewind: bool = False) -> Context:
    places: dict[Place, int] = {
        (("topic", topic), ("partition", number)): position
        for number, position in positions.items()
    }
    return Context("in", is_checkpointed=True, resume=Resume(places, is_rewind=is_rewind))


async def filled_topic(cluster: Cluster) -> str:
    """Return a topic of two partitions with the numbers 0 to 5 and 10 to 15."""
    topic = await cluster.create_topic(2)
    for partition in range(2):
        values = [json.dumps(10 * partition + n).encode() for n in range(6)]
        await produce(cluster.address, topic, values, partition=partition)
    return topic


async def commit(address: str, group: str, topic: str, positions: Mapping[int, int]) -> None:
    consumer = AIOKafkaConsumer(bootstrap_servers=address, group_id=group, enable_auto_commit=False)
    parts = {TopicPartition(topic, number): position for number, position in positions.items()}
    consumer.assign(list(parts))
    async with consumer:
        await consumer.commit(parts)


async def read_all(reader: Reader) -> list[Fetch]:
    fetches = []
    try:
        while True:
            fetches.append(await reader.receive())
    except anyio.EndOfStream:
        return fetches


async def read_values(declared: KafkaSource, context: Context) -> list[int]:
    async with declared.open(context) as reader:
        fetches = await read_all(reader)
    return sorted(value for fetch in fetches for value in fetch.batch.rows())


async def test_without_a_group_the_checkpoint_says_where(cluster: Cluster) -> None:
    topic = await filled_topic(cluster)
    declared = source(cluster.address, topic)
    assert declared.rereads
    assert await read_values(declared, resumed(topic, {0: 4, 1: 5})) == [4, 5, 15]
    chosen = source(cluster.address, topic, partitions=(1,))
    assert await read_values(chosen, resumed(topic, {1: 3})) == [13, 14, 15]


@GROUPS
async def test_in_a_group_the_larger_position_wins(
    cluster: Cluster, options: dict[str, Any]
) -> None:
    topic, group = await filled_topic(cluster), uuid4().hex
    await commit(cluster.address, group, topic, {0: 5, 1: 1})
    declared = source(cluster.address, topic, group=group, **options)
    assert await read_values(declared, resumed(topic, {0: 2, 1: 4})) == [5, 14, 15]


@GROUPS
async def test_a_rewind_makes_the_checkpoint_win(cluster: Cluster, options: dict[str, Any]) -> None:
    topic, group = await filled_topic(cluster), uuid4().hex
    await commit(cluster.address, group, topic, {0: 5, 1: 1})
    declared = source(cluster.address, topic, group=group, **options)
    context = resumed(topic, {0: 2, 1: 4}, is_rewind=True)
    assert await read_values(declared, context) == [2, 3, 4, 5, 14, 15]


@GROUPS
async def test_a_partition_that_is_not_in_the_checkpoint_goes_on_at_what_is_committed(
    cluster: Cluster, options: dict[str, Any]
) -> None:
    topic, group = await filled_topic(cluster), uuid4().hex
    await commit(cluster.address, group, topic, {1: 5})
    declared = source(cluster.address, topic, group=group, **options)
    assert await read_values(declared, resumed(topic, {0: 5}, is_rewind=True)) == [5, 15]


async def test_a_partition_that_has_come_up_since_the_checkpoint_is_read_from_its_beginning(
    cluster: Cluster,
) -> None:
    topic = await filled_topic(cluster)
    declared = source(cluster.address, topic, start="latest")
    assert await read_values(declared, resumed(topic, {0: 6})) == list(range(10, 16))


async def test_latest_is_told_so_that_a_checkpoint_can_keep_it(cluster: Cluster) -> None:
    topic = await filled_topic(cluster)
    declared = source(cluster.address, topic, start="latest", stop_at_end=False)
    async with declared.open(Context("in", is_checkpointed=True)) as reader:
        with anyio.fail_after(60):
            fetch = await reader.receive()
    assert {partition.place[1][1]: end for partition, end in fetch.ends.items()} == {0: 6, 1: 6}


async def test_a_position_that_the_topic_has_forgotten_follows_if_lost(
    cluster: Cluster, real_broker: str
) -> None:
    topic = await filled_topic(cluster)
    await delete_before(real_broker, topic, 4)
    context = resumed(topic, {0: 1, 1: 6})
    with pytest.raises(ConnectorError, match=r"expected position 1 .* found positions 4 to 6"):
        await read_values(source(real_broker, topic), context)
    lenient = source(real_broker, topic, if_lost="earliest")
    assert await read_values(lenient, context) == [4, 5]
