from aiokafka import ConsumerRecord, TopicPartition  # type: ignore[import-untyped]

from streamflow.records import Batch, Partition
from streamflow_connectors.kafka.records import to_batch

Entries = tuple[int, bytes | None, list[tuple[str, bytes]]]


def batch_of(*entries: Entries) -> Batch:
    records = [
        ConsumerRecord("t", 0, offset, timestamp, 0, key, b"1", None, -1, 1, tuple(headers))
        for offset, (timestamp, key, headers) in enumerate(entries)
    ]
    return to_batch({TopicPartition("t", 0): records}, lambda _: Partition("in"))


def test_columns_that_hold_nothing_are_left_out() -> None:
    batch = batch_of((-1, None, []), (-1, None, []))
    assert (batch.keys, batch.timestamps_ms, batch.headers) == (None, None, None)
    batch = batch_of((0, None, []), (-1, b"", []), (-1, None, [("h", b"")]))
    assert batch.keys == [None, "", None]
    assert batch.timestamps_ms == [0, None, None]
    assert batch.headers == [(), (), (("h", b""),)]
