"""Topics, the partitions that they have, and where these begin and end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import anyio
from aiokafka import AIOKafkaConsumer, TopicPartition  # type: ignore[import-untyped]
from aiokafka.errors import KafkaError  # type: ignore[import-untyped]

from streamflow.contracts import Context
from streamflow.errors import ConnectorError
from streamflow_connectors.kafka.aiokafka_private import KafkaClient
from streamflow_connectors.kafka.connection import unknown_topics
from streamflow_connectors.kafka.options import KafkaSourceOptions
from streamflow_connectors.kafka.start import Start, milliseconds

RETRY = 0.1


async def find_partitions(
    client: KafkaClient, source: KafkaSourceOptions, context: Context
) -> list[TopicPartition]:
    """Return what there is to read, without making the broker create a missing topic.

    The client is connected. The caller sets a deadline.

    Raises:
        ConnectorError: A topic, or any that matches, has not appeared shortly before the deadline,
            or a partition does not exist.
    """
    while True:
        found = await _partitions_by_topic(client, source)
        missing = [topic for topic in source.topics if not found.get(topic)]
        if found and not missing:
            break
        if anyio.current_effective_deadline() < anyio.current_time() + 2 * RETRY:
            raise unknown_topics(context, missing) if missing else _unmatched(source, context)
        await anyio.sleep(RETRY)
    return [
        TopicPartition(topic, number)
        for topic in source.topics or sorted(found)
        for number in sorted(_chosen(source, context, topic, found[topic]))
    ]


async def find_positions(
    consumer: AIOKafkaConsumer, parts: list[TopicPartition], start: Start
) -> Mapping[TopicPartition, int]:
    """Return the first position of partitions, that after the last, or the first of a time.

    Where no record is as late as that, it is the position after the last.

    Raises:
        KafkaError: No broker answers.
    """
    if start == "earliest":
        return await consumer.beginning_offsets(parts)  # type: ignore[no-any-return]
    ends: Mapping[TopicPartition, int] = await consumer.end_offsets(parts)
    if start == "latest" or not parts:
        return ends
    found = await consumer.offsets_for_times(dict.fromkeys(parts, milliseconds(start)))
    return {part: found[part].offset if found[part] else ends[part] for part in parts}


async def _partitions_by_topic(
    client: KafkaClient, source: KafkaSourceOptions
) -> dict[str, set[int]]:
    found = await client.topics()
    pattern = source.topic_pattern
    names = source.topics if pattern is None else filter(pattern.match, found)
    return {name: found[name] for name in names if found.get(name)}


def _unmatched(source: KafkaSourceOptions, context: Context) -> ConnectorError:
    message = (
        f"{context.name}: expected a topic that matches {source.pattern}, found none; "
        "create one or check the pattern, and the permission to see it"
    )
    return ConnectorError(message)


def _chosen(
    source: KafkaSourceOptions, context: Context, topic: str, found: set[int]
) -> Iterable[int]:
    """Return the partitions of a topic that were asked for; of one that matches, those it has."""
    if source.partitions is None:
        return found
    if source.pattern is not None:
        return found.intersection(source.partitions)
    if missing := set(source.partitions) - found:
        message = (
            f"{context.name}: expected partition {min(missing)} of the topic {topic}, "
            f"found {len(found)} partitions; they count from 0"
        )
        raise ConnectorError(message)
    return set(source.partitions)


class NewTopics:
    """Finds what comes up of topics that match, where the driver itself does not.

    Args:
        client: Of the consumer.
        source: What is open.
        is_manual: Whether the driver is told what to read.
    """

    def __init__(self, client: KafkaClient, source: KafkaSourceOptions, *, is_manual: bool) -> None:
        self._client = client
        self._source = source
        self._is_looking = is_manual and source.pattern is not None and not source.stop_at_end
        self._first: frozenset[str] = frozenset()
        self._next_look = 0.0

    def begin(self, partitions: Iterable[TopicPartition]) -> None:
        """Take note of what there is when reading begins."""
        self._first = frozenset(part.topic for part in partitions)
        self._next_look = anyio.current_time() + self._source.refresh

    def is_new(self, part: TopicPartition) -> bool:
        """Whether a partition is of a topic that has come up since reading began."""
        return part.topic not in self._first

    async def look(self, held: frozenset[TopicPartition]) -> set[TopicPartition]:
        """Return what there is beside what is held, if it is time to look."""
        if not self._is_looking or anyio.current_time() < self._next_look:
            return set()
        self._next_look = anyio.current_time() + self._source.refresh
        try:
            found = await _partitions_by_topic(self._client, self._source)
        except KafkaError:
            return set()  # brokers are away; fetching tells if that lasts
        wanted = self._source.partitions
        return {
            TopicPartition(topic, number)
            for topic, numbers in found.items()
            for number in numbers.intersection(numbers if wanted is None else wanted)
        } - held
