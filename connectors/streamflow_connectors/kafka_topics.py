"""Topics and the partitions that they have."""

from __future__ import annotations

from collections.abc import Iterable

import anyio
from aiokafka import TopicPartition  # type: ignore[import-untyped]
from aiokafka.client import AIOKafkaClient  # type: ignore[import-untyped]

from streamflow.contracts import Context
from streamflow.errors import ConnectorError
from streamflow_connectors.kafka import KafkaSource
from streamflow_connectors.kafka_connection import unknown_topics

RETRY = 0.1


async def find_partitions(
    client: AIOKafkaClient, source: KafkaSource, context: Context
) -> list[TopicPartition]:
    """Return what there is to read, without making the broker create a missing topic.

    The client is connected. The caller sets a deadline.

    Raises:
        ConnectorError: A topic has not appeared shortly before the deadline, or a partition does
            not exist.
    """
    topics = source.topics
    while True:
        cluster = await client.fetch_all_metadata()
        found = {topic: cluster.partitions_for_topic(topic) for topic in topics}
        missing = [topic for topic in topics if not found[topic]]
        if not missing:
            break
        if anyio.current_effective_deadline() < anyio.current_time() + 2 * RETRY:
            raise unknown_topics(context, missing)
        await anyio.sleep(RETRY)
    return [
        TopicPartition(topic, number)
        for topic in topics
        for number in sorted(_chosen(source, context, topic, found[topic]))
    ]


def _chosen(source: KafkaSource, context: Context, topic: str, found: set[int]) -> Iterable[int]:
    """Return the partitions of a topic that were asked for."""
    if source.partitions is None:
        return found
    if missing := set(source.partitions) - found:
        message = (
            f"{context.name}: expected partition {min(missing)} of the topic {topic}, "
            f"found {len(found)} partitions; they count from 0"
        )
        raise ConnectorError(message)
    return set(source.partitions)
