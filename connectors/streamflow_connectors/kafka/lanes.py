"""The records on their way to a topic: a lane for each of its partitions.

One batch of a lane is under way to the broker while the next one fills, so batches grow by
themselves when the broker is slower than the stream, and nothing lingers when it is not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeAlias

from streamflow_connectors.kafka.aiokafka_private import partitioner

BatchBuilder: TypeAlias = Any
"""What the driver's `create_batch` returns."""

REMEMBERED_KEYS = 2**16  # whose partition is not computed again

HEADER_BYTES = 61
"""Bytes before the first record of a batch, in version 2 of Kafka's record format."""


class Topic:
    """What is on its way to one topic.

    Attributes:
        name: Of the topic.
        lanes: By partition.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.lanes: list[TopicLane] = []
        self._turn = 0
        self._partition_of: Callable[[bytes], int] = len

    def grow(self, count: int) -> list[TopicLane]:
        """Take note of so many partitions, of which there may be more now; return new lanes."""
        new = [TopicLane(self.name, number) for number in range(len(self.lanes), count)]
        if new:
            self.lanes += new

            choose, numbers = partitioner(), range(count)
            self._partition_of = lru_cache(maxsize=REMEMBERED_KEYS)(
                lambda key: choose(key, numbers, numbers)
            )
        return new

    def turn(self) -> None:
        """Let records without a key go to the next partition from here on."""
        self._turn += 1

    def lane(self, key: bytes | None) -> TopicLane:
        """Return where a record goes."""
        if key is None:
            return self.lanes[self._turn % len(self.lanes)]
        return self.lanes[self._partition_of(key)]


class TopicLane:
    """The records on their way to one partition, in order.

    Attributes:
        topic: Name of its topic.
        partition: Its number.
        builders: Batches not yet handed to the driver; the last one is still filling.
        written: How many records have been appended.
        delivered: How many of them are stored.
        waiting_bytes: How many bytes have been appended and not delivered.
        taken_bytes: How many of them are under way.
        is_under_way: Whether a task is delivering the lane.
    """

    __slots__ = (
        "builders",
        "delivered",
        "is_under_way",
        "partition",
        "taken_bytes",
        "topic",
        "waiting_bytes",
        "written",
    )

    def __init__(self, topic: str, partition: int) -> None:
        self.topic = topic
        self.partition = partition
        self.builders: deque[BatchBuilder] = deque()
        self.written = 0
        self.delivered = 0
        self.waiting_bytes = 0
        self.taken_bytes = 0
        self.is_under_way = False

    def append(
        self,
        create: Callable[[], BatchBuilder],
        timestamp_ms: int | None,
        key: bytes | None,
        payload: bytes,
        headers: list[tuple[str, bytes]],
    ) -> None:
        """Add a record to the batch that is filling, or to a new one."""
        taken = None
        if self.builders:
            taken = self.builders[-1].append(
                timestamp=timestamp_ms, key=key, value=payload, headers=headers
            )
        if taken is None:
            self.builders.append(create())
            taken = self.builders[-1].append(  # the first always fits
                timestamp=timestamp_ms, key=key, value=payload, headers=headers
            )
        self.written += 1
        self.waiting_bytes += taken.size

    def take(self) -> BatchBuilder:
        """Close and return the oldest batch."""
        builder = self.builders.popleft()
        builder.close()
        # What is left after this one is counted by itself; a header belongs to no record.
        self.taken_bytes = builder.size() - HEADER_BYTES
        return builder
