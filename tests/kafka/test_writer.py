from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import anyio
import pytest
from aiokafka.partitioner import DefaultPartitioner  # type: ignore[import-untyped]

from streamflow.contracts import Context
from streamflow.errors import ConnectorError, MissingExtraError
from streamflow.records import Batch, Partition
from streamflow_connectors.demo.embedded_kafka import EmbeddedKafka
from streamflow_connectors.kafka import KafkaSink
from streamflow_connectors.kafka.records import encode_key
from tests.kafka.clients import Cluster, consume

pytestmark = [pytest.mark.kafka, pytest.mark.asyncio]

CONTEXT = Context("out")
PRODUCE = 0
NOT_LEADER, MESSAGE_TOO_LARGE, NOT_ENOUGH_REPLICAS = 6, 10, 19


def sink(address: str, topic: str, **options: Any) -> KafkaSink:
    return KafkaSink(bootstrap_servers=address, topic=topic, **options)


def batch(values: Sequence[Any], **columns: Any) -> Batch:
    partition = Partition("somewhere")
    return Batch(list(values), [partition] * len(values), range(len(values)), **columns)


async def test_records_arrive_with_key_headers_and_time(cluster: Cluster) -> None:
    topic = await cluster.create_topic()
    columns: dict[str, Any] = {
        "keys": ["é", b"\xff", 7, None],
        "timestamps_ms": [1000, 2000, None, 3000],
        "headers": [(("h", b"1"), ("h", b"2")), (), (), ()],
    }
    async with sink(cluster.address, topic).open(CONTEXT) as writer:
        assert await writer.write(batch([{"n": n} for n in range(4)], **columns)) is None
        await writer.flush()
        records = await consume(cluster.address, topic, 4)
    assert [record.value for record in records] == [b'{"n":%d}' % n for n in range(4)]
    assert [record.key for record in records] == ["é".encode(), b"\xff", b"7", None]
    assert [record.timestamp for record in records][:2] == [1000, 2000]
    assert records[2].timestamp > 1_600_000_000_000  # the time of writing
    assert records[0].headers == (("h", b"1"), ("h", b"2"))


async def test_a_key_goes_where_other_clients_send_it_and_keeps_its_order(
    cluster: Cluster,
) -> None:
    topic = await cluster.create_topic(3)
    keys = [f"key-{n % 7}" for n in range(70)]
    async with sink(cluster.address, topic).open(CONTEXT) as writer:
        for start in range(0, 70, 10):
            values = range(start, start + 10)
            await writer.write(batch(values, keys=keys[start : start + 10]))
        await writer.flush()
    records = await consume(cluster.address, topic, 70)
    for key in set(keys):
        mine = [record for record in records if record.key == key.encode()]
        expected = DefaultPartitioner()(key.encode(), [0, 1, 2], [0, 1, 2])
        assert {record.partition for record in mine} == {expected}
        assert [int(record.value) for record in mine] == [n for n in range(70) if keys[n] == key]


async def test_records_without_a_key_are_spread(cluster: Cluster) -> None:
    topic = await cluster.create_topic(2)
    async with sink(cluster.address, topic).open(CONTEXT) as writer:
        for n in range(4):
            await writer.write(batch([n]))
        await writer.flush()
    records = await consume(cluster.address, topic, 4)
    assert sorted(record.partition for record in records) == [0, 0, 1, 1]


async def test_much_more_than_fits_into_one_batch_arrives_once_and_in_order(
    cluster: Cluster,
) -> None:
    topic = await cluster.create_topic()
    async with sink(cluster.address, topic, compression="gzip").open(CONTEXT) as writer:
        for start in range(0, 60, 20):
            await writer.write(batch([f"{n:02}" * 20_000 for n in range(start, start + 20)]))
        await writer.flush()
        assert repr(writer) == "<KafkaWriter out: 0 records under way>"
        assert [lane.waiting_bytes for lane in writer._lanes] == [0]  # type: ignore[attr-defined]
    records = await consume(cluster.address, topic, 60)
    assert [int(record.value[1:3]) for record in records] == list(range(60))


async def test_writing_waits_while_too_much_is_under_way(faulty: EmbeddedKafka) -> None:
    faulty.create_topic("t")
    async with sink(faulty.address, "t").open(CONTEXT) as writer:
        faulty.set_reachable(False)
        for _ in range(20):
            with anyio.move_on_after(0.02) as scope:
                await writer.write(batch(["x" * 900_000] * 2))
        assert scope.cancelled_caught
        faulty.set_reachable(True)
        with anyio.fail_after(10):
            await writer.flush()


async def test_what_cannot_be_sent_is_rejected_and_the_rest_arrives(cluster: Cluster) -> None:
    topic = await cluster.create_topic()
    async with sink(cluster.address, topic, max_request_size=50).open(CONTEXT) as writer:
        rejected = await writer.write(batch([1, object(), "x" * 60, 2]))
        assert await writer.write(batch([float("nan")])) is not None
        await writer.flush()
    assert rejected is not None
    assert list(rejected.batch.offsets) == [1, 2]
    assert rejected.causes[1] == "expected at most 50 bytes, found 62; see max_request_size"
    assert [record.value for record in await consume(cluster.address, topic, 2)] == [b"1", b"2"]


async def test_an_error_that_passes_is_tried_again(faulty: EmbeddedKafka) -> None:
    faulty.create_topic("t")
    async with sink(faulty.address, "t").open(CONTEXT) as writer:
        faulty.fail_requests(PRODUCE, NOT_LEADER, NOT_ENOUGH_REPLICAS)
        await writer.write(batch([1, 2]))
        await writer.flush()
    assert len(await consume(faulty.address, "t", 2)) == 2


async def test_an_error_that_stays_fails_flushing_and_writing(faulty: EmbeddedKafka) -> None:
    faulty.create_topic("t")
    async with sink(faulty.address, "t").open(CONTEXT) as writer:
        faulty.fail_requests(PRODUCE, MESSAGE_TOO_LARGE)
        await writer.write(batch([1]))
        with pytest.raises(ConnectorError, match="out: expected the topic t to take records"):
            await writer.flush()
        with pytest.raises(ConnectorError, match="MessageSizeTooLarge"):
            await writer.write(batch([2]))


async def test_a_broker_that_goes_away_fails_the_delivery_in_time(faulty: EmbeddedKafka) -> None:
    faulty.create_topic("t")
    before = asyncio.all_tasks()
    async with sink(faulty.address, "t", retry_for=0.3).open(CONTEXT) as writer:
        faulty.set_reachable(False)
        await writer.write(batch([1]))
        with pytest.raises(ConnectorError, match=r"to be back within 0\.3 s"):
            await writer.flush()
    assert asyncio.all_tasks() <= before


async def test_nothing_is_left_behind_when_cancelled(cluster: Cluster) -> None:
    topic = await cluster.create_topic()
    before = asyncio.all_tasks()
    for patience in (0.003, 0.01, 0.1):  # while connecting, while writing
        with anyio.move_on_after(patience) as scope:
            async with sink(cluster.address, topic).open(CONTEXT) as writer:
                while True:
                    await writer.write(batch(["x"] * 100))
                    await anyio.lowlevel.checkpoint()
        assert scope.cancelled_caught
        assert asyncio.all_tasks() <= before


async def test_a_broker_that_does_not_come_up_is_an_error_in_time() -> None:
    expected = r"out: expected 127\.0\.0\.1:1 to answer within 0\.5 s, found ConnectionRefused"
    with pytest.raises(ConnectorError, match=expected):
        async with sink("127.0.0.1:1", "t", connect_timeout=0.5).open(CONTEXT):
            pass


async def test_a_topic_that_cannot_be_is_an_error(real_broker: str) -> None:
    with pytest.raises(ConnectorError, match="out: expected the topic not/a/name"):
        async with sink(real_broker, "not/a/name", connect_timeout=1.0).open(CONTEXT):
            pass


async def test_compression_names_the_package_that_it_lacks(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamflow.nodes.plugins.find_spec", lambda _: None)
    declared = sink(cluster.address, "t", compression="zstd")
    [problem] = declared.deep_problems(CONTEXT.folder)
    assert "pip install 'aiokafka[zstd]'" in problem.message
    with pytest.raises(MissingExtraError, match="cramjam"):
        async with declared.open(CONTEXT):
            pass


@pytest.mark.parametrize(("key", "expected"), [("é", "é".encode()), (b"\xff", b"\xff"), (7, b"7")])
async def test_a_key_becomes_bytes(key: object, expected: bytes) -> None:
    assert encode_key(key) == expected
