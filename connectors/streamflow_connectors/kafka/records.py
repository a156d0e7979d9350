"""Kafka's records as batches, and keys as bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, groupby
from typing import TypeAlias

from aiokafka import ConsumerRecord, TopicPartition  # type: ignore[import-untyped]

from streamflow.codecs.conversion import decode
from streamflow.contracts import Codec, Fetch
from streamflow.records import Batch, Headers, Partition, Place, Rejected, concatenate
from streamflow_connectors.kafka.options import KafkaSourceOptions
from streamflow_connectors.network.reading import RECORD_BYTES, if_any

Received: TypeAlias = Mapping[TopicPartition, list[ConsumerRecord]]


class Decoder:
    """Decodes the records of each topic as the source says."""

    def __init__(self, source: KafkaSourceOptions) -> None:
        self._codec = source.format.codec()
        self._codecs: dict[str, Codec] = {
            topic: declared.codec() for topic, declared in source.formats.items()
        }

    def decode(
        self,
        data: Received,
        ends: Mapping[Partition, int],
        partition_of: Callable[[TopicPartition], Partition],
    ) -> Fetch:
        """Return what a reader received."""
        fetches = [
            decode(codec, to_batch(part, partition_of), ends) for codec, part in self._parts(data)
        ]
        batch = concatenate([fetch.batch for fetch in fetches])
        rejected = _joined(fetches)
        count = len(batch) + (len(rejected.batch) if rejected else 0)
        return Fetch(batch, ends, rejected, sum(map(len, data.values())) - count)

    def _parts(self, data: Received) -> list[tuple[Codec, Received]]:
        """Return the records by the codec that they take, in their order; at least one part."""
        if not (data and self._codecs):
            return [(self._codec, data)]
        return [
            (self._codecs.get(topic, self._codec), {part: data[part] for part in parts})
            for topic, parts in groupby(data, lambda part: part.topic)
        ]


def _joined(fetches: Sequence[Fetch]) -> Rejected | None:
    """Return what was rejected of all of them, with places in the records of all."""
    starts = accumulate((fetch.num_records for fetch in fetches), initial=0)
    found = [
        (fetch.rejected, start)
        for fetch, start in zip(fetches, starts, strict=False)
        if fetch.rejected
    ]
    if not found:
        return None
    return Rejected(
        concatenate([rejected.batch for rejected, _ in found]),
        [cause for rejected, _ in found for cause in rejected.causes],
        [start + place for rejected, start in found for place in rejected.indices],
    )


def to_batch(data: Received, partition_of: Callable[[TopicPartition], Partition]) -> Batch:
    """Return records in columns, their values still bytes, without tombstones."""
    records: list[ConsumerRecord] = []
    partitions: list[Partition] = []
    for part, received in data.items():
        kept = [record for record in received if record.value is not None]
        records += kept
        partitions += [partition_of(part)] * len(kept)
    payloads = [record.value for record in records]
    return Batch(
        values=payloads,
        partitions=partitions,
        offsets=[record.offset for record in records],
        keys=if_any([decode_key(record.key) for record in records], None),
        timestamps_ms=if_any([_timestamp_ms(record.timestamp) for record in records], None),
        headers=if_any([_headers(record.headers) for record in records], ()),
        originals=payloads,
        size_bytes=2 * sum(map(len, payloads)) + RECORD_BYTES * len(records),
    )


def topic_partition(place: Place) -> TopicPartition:
    """Return the driver's name of a partition."""
    (_, topic), (_, number) = place
    return TopicPartition(topic, number)


def by_driver(positions: Mapping[Place, int]) -> dict[TopicPartition, int]:
    """Return the positions of a checkpoint by the driver's names."""
    return {topic_partition(place): position for place, position in positions.items()}


def decode_key(key: bytes | None) -> str | bytes | None:
    """Return a key as text if it is UTF-8; encoding that again gives the same bytes."""
    if key is None:
        return None
    try:
        return key.decode()
    except UnicodeDecodeError:
        return key


def encode_key(key: object) -> bytes:
    """Return a key's bytes: of text in UTF-8, of bytes as they are, of all else as text."""
    return key if isinstance(key, bytes) else str(key).encode()


def headers_bytes(headers: Headers) -> int:
    """Return about how large headers are in a record."""
    return sum(len(name) + len(value) for name, value in headers)


def _headers(headers: tuple[tuple[str, bytes | None], ...]) -> Headers:
    """Return headers with empty values for missing ones."""
    return tuple((name, value or b"") for name, value in headers) if headers else ()


def _timestamp_ms(timestamp: int) -> int | None:
    return timestamp if timestamp >= 0 else None
