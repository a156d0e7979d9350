from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from typing import Any
from uuid import uuid4

import anyio
import pytest
from aiokafka import AIOKafkaProducer  # type: ignore[import-untyped]

from streamflow.contracts import Context, Fetch, Reader
from streamflow.errors import ConnectorError
from streamflow.records import Batch, Partition
from streamflow_connectors.kafka import KafkaSource
from streamflow_connectors.kafka.reader import KafkaReader
from streamflow_connectors.kafka.records import decode_key
from tests.kafka.clients import Cluster, committed, consume, delete_before, produce

pytestmark = [pytest.mark.kafka, pytest.mark.asyncio]

CONTEXT = Context("in")


def source(address: str, topic: str, **options: Any) -> KafkaSource:
    return KafkaSource(
        **{"bootstrap_servers": address, "topics": (topic,), "stop_at_end": True, **options}
    )


async def read_all(reader: Reader) -> list[Fetch]:
    fetches = []
    try:
        while True:
            fetches.append(await reader.receive())
    except anyio.EndOfStream:
        return fetches


async def read_values(declared: KafkaSource) -> list[Any]:
    async with declared.open(CONTEXT) as reader:
        fetches = await read_all(reader)
    return [value for fetch in fetches for value in fetch.batch.rows()]


def ends_of(fetches: list[Fetch]) -> dict[Partition, int]:
    ends: dict[Partition, int] = {}
    for fetch in fetches:
        ends.update(fetch.ends)
    return ends


def numbers(count: int) -> list[bytes]:
    return [json.dumps({"n": n}).encode() for n in range(count)]


async def test_records_come_in_order_with_key_headers_time_and_position(cluster: Cluster) -> None:
    topic = await cluster.create_topic()
    await produce(cluster.address, topic, numbers(1), timestamp_ms=5000, headers=[("h", b"1")])
    await produce(cluster.address, topic, [b'{"n": 1}'], key=b"\xff", timestamp_ms=6000)
    async with source(cluster.address, topic).open(CONTEXT) as reader:
        fetches = await read_all(reader)
    records = [record for fetch in fetches for record in fetch.batch.records()]
    assert [record.value for record in records] == [{"n": 0}, {"n": 1}]
    assert [record.key for record in records] == ["k", b"\xff"]
    assert [record.timestamp_ms for record in records] == [5000, 6000]
    assert [record.headers for record in records] == [(("h", b"1"),), ()]
    assert records[1].position == {"topic": topic, "partition": 0, "offset": 1}
    assert fetches[-1].batch.size_bytes > 0


async def test_all_partitions_are_read_without_a_group_to_their_ends(cluster: Cluster) -> None:
    topic = await cluster.create_topic(3)
    for partition, count in enumerate((4, 0, 2)):
        await produce(cluster.address, topic, numbers(count), partition=partition)
    async with source(cluster.address, topic).open(CONTEXT) as reader:
        fetches = await read_all(reader)
        assert reader.behind() == 0
    ends = {dict(part.place)["partition"]: end for part, end in ends_of(fetches).items()}
    assert ends == {0: 4, 2: 2}
    assert sum(len(fetch.batch) for fetch in fetches) == 6


async def test_only_the_partitions_asked_for_are_read(cluster: Cluster) -> None:
    topic = await cluster.create_topic(2)
    await produce(cluster.address, topic, [b"0"], partition=0)
    await produce(cluster.address, topic, [b"1"], partition=1)
    assert await read_values(source(cluster.address, topic, partitions=(1,))) == [1]
    with pytest.raises(ConnectorError, match="expected partition 7"):
        await read_values(source(cluster.address, topic, partitions=(7,)))


async def test_tombstones_are_skipped_counted_and_passed_by_the_position(cluster: Cluster) -> None:
    topic = await cluster.create_topic()
    await produce(cluster.address, topic, [b"1", None, b"2", None])
    async with source(cluster.address, topic).open(CONTEXT) as reader:
        fetches = await read_all(reader)
    assert [value for fetch in fetches for value in fetch.batch.rows()] == [1, 2]
    assert sum(fetch.skipped for fetch in fetches) == 2
    assert list(ends_of(fetches).values()) == [4]


async def test_what_cannot_be_decoded_is_rejected_with_its_bytes(cluster: Cluster) -> None:
    topic = await cluster.create_topic()
    await produce(cluster.address, topic, [b"1", b"{", b"2"])
    async with source(cluster.address, topic).open(CONTEXT) as reader:
        fetches = await read_all(reader)
    [rejected] = [fetch.rejected for fetch in fetches if fetch.rejected]
    assert rejected.batch.originals == [b"{"]
    assert list(rejected.batch.offsets) == [1]


async def test_a_batch_holds_no_more_records_than_asked_for(cluster: Cluster) -> None:
    topic = await cluster.create_topic()
    await produce(cluster.address, topic, numbers(7))
    async with source(cluster.address, topic, max_poll_records=3).open(CONTEXT) as reader:
        fetches = await read_all(reader)
    assert max(len(fetch.batch) for fetch in fetches) <= 3
    assert sum(len(fetch.batch) for fetch in fetches) == 7


async def test_latest_begins_at_the_end_as_it_is_when_the_source_opens(cluster: Cluster) -> None:
    topic = await cluster.create_topic()
    await produce(cluster.address, topic, [b"1"])
    declared = source(cluster.address, topic, start="latest", stop_at_end=False)
    async with declared.open(CONTEXT) as reader:
        await produce(cluster.address, topic, [b"2"])
        fetch = await reader.receive()
    assert fetch.batch.rows() == [2]


async def test_latest_in_a_group_is_committed_before_anything_comes(cluster: Cluster) -> None:
    topic, group = await cluster.create_topic(), uuid4().hex
    await produce(cluster.address, topic, [b"1"])
    declared = source(cluster.address, topic, start="latest", stop_at_end=False, group=group)
    async with declared.open(CONTEXT) as reader:
        with anyio.fail_after(5):
            fetch = await reader.receive()
        await reader.commit(fetch.ends)
    assert len(fetch.batch) == 0
    assert await committed(cluster.address, group, topic) == 1


async def test_a_restart_goes_on_at_the_committed_position(cluster: Cluster) -> None:
    topic, group = await cluster.create_topic(), uuid4().hex
    await produce(cluster.address, topic, numbers(6))
    declared = source(cluster.address, topic, group=group)
    async with declared.open(CONTEXT) as reader:
        [partition] = ends_of(await read_all(reader))
        await reader.commit({partition: 4})
    assert await committed(cluster.address, group, topic) == 4
    assert await read_values(declared) == [{"n": 4}, {"n": 5}]


async def test_a_group_stores_positions_of_chosen_partitions(cluster: Cluster) -> None:
    topic, group = await cluster.create_topic(), uuid4().hex
    await produce(cluster.address, topic, numbers(3))
    declared = source(cluster.address, topic, group=group, partitions=(0,))
    async with declared.open(CONTEXT) as reader:
        await reader.commit(ends_of(await read_all(reader)))
    assert await committed(cluster.address, group, topic) == 3
    assert await read_values(declared) == []


async def test_positions_of_an_earlier_epoch_are_not_committed(cluster: Cluster) -> None:
    topic, group = await cluster.create_topic(), uuid4().hex
    await produce(cluster.address, topic, numbers(3))
    async with source(cluster.address, topic, group=group).open(CONTEXT) as reader:
        [partition] = ends_of(await read_all(reader))
        earlier = Partition("in", partition.place, "offset", partition.epoch - 1)
        await reader.commit({earlier: 3})
    assert await committed(cluster.address, group, topic) is None


async def test_a_second_reader_takes_over_what_the_first_does_not_finish_in_time(
    cluster: Cluster, real_broker: str
) -> None:
    topic, group = await cluster.create_topic(2), uuid4().hex
    for partition in range(2):
        await produce(real_broker, topic, numbers(3), partition=partition)
    declared = source(real_broker, topic, group=group, stop_at_end=False, rebalance_timeout=3.0)
    seen: set[tuple[Any, Any]] = set()
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(declared.open(CONTEXT))
        assert isinstance(first, KafkaReader)
        old: dict[Partition, int] = {}
        while len(seen) < 6:
            fetch = await first.receive()
            old.update(fetch.ends)
            seen |= {(p["partition"], p["offset"]) for p in fetch.batch.positions()}
        await first.commit(dict.fromkeys(old, 1))
        opening = asyncio.create_task(stack.enter_async_context(declared.open(CONTEXT)))
        while not opening.done():  # the first one rejoins while it receives
            with anyio.move_on_after(0.05):
                await first.receive()
        second = await opening
        again: list[int] = []
        with anyio.fail_after(10):
            while len(again) < 2:
                again += (await second.receive()).batch.offsets
        await first.commit(dict.fromkeys(old, 3))  # of the epoch before: left out
    assert again in ([1, 2], [1, 2, 1, 2])  # the group may give it one partition, or both
    assert {await committed(real_broker, group, topic, number) for number in range(2)} == {1}


async def test_a_position_before_the_start_is_an_error_with_the_range(
    cluster: Cluster, real_broker: str
) -> None:
    topic, group = await cluster.create_topic(), uuid4().hex
    await produce(real_broker, topic, numbers(6))
    declared = source(real_broker, topic, group=group)
    async with declared.open(CONTEXT) as reader:
        [partition] = ends_of(await read_all(reader))
        await reader.commit({partition: 1})
    await delete_before(real_broker, topic, 4)
    expected = f"expected position 1 in topic {topic} partition 0, found positions 4 to 6"
    with pytest.raises(ConnectorError, match=expected):
        await read_values(declared)
    lenient = source(real_broker, topic, group=group, if_lost="earliest")
    assert await read_values(lenient) == [{"n": 4}, {"n": 5}]


async def test_a_position_beyond_the_end_is_an_error(cluster: Cluster) -> None:
    topic, group = await cluster.create_topic(), uuid4().hex
    await produce(cluster.address, topic, numbers(2))
    declared = source(cluster.address, topic, group=group)
    async with declared.open(CONTEXT) as reader:
        [partition] = ends_of(await read_all(reader))
        await reader.commit({partition: 9})
    with pytest.raises(ConnectorError, match=r"expected position 9 .* found positions 0 to 2"):
        await read_values(declared)
    assert await read_values(source(cluster.address, topic, group=group, if_lost="latest")) == []


async def test_aborted_records_are_left_out_and_passed_by_the_position(
    cluster: Cluster, real_broker: str
) -> None:
    topic = await cluster.create_topic()
    producer = AIOKafkaProducer(bootstrap_servers=real_broker, transactional_id=uuid4().hex)
    async with producer:
        async with producer.transaction():
            await producer.send(topic, b"1")
        await producer.begin_transaction()
        await producer.send_and_wait(topic, b"2")
        await producer.abort_transaction()
    async with source(real_broker, topic).open(CONTEXT) as reader:
        fetches = await read_all(reader)
    assert [value for fetch in fetches for value in fetch.batch.rows()] == [1]
    assert list(ends_of(fetches).values()) == [4]  # two records, two markers
    uncommitted = source(real_broker, topic, isolation="read_uncommitted")
    assert await read_values(uncommitted) == [1, 2]


async def test_a_missing_topic_is_an_error_and_is_not_created(cluster: Cluster) -> None:
    declared = source(cluster.address, "no-such-topic", connect_timeout=1.0)
    for _ in range(2):
        with pytest.raises(ConnectorError, match="in: expected the topic no-such-topic"):
            await read_values(declared)


async def test_a_broker_that_does_not_come_up_is_an_error_in_time() -> None:
    expected = r"in: expected 127\.0\.0\.1:1 to answer within 0\.5 s, found ConnectionRefusedError"
    with pytest.raises(ConnectorError, match=expected):
        await read_values(source("127.0.0.1:1", "t", connect_timeout=0.5))


async def test_a_broker_that_is_silent_is_an_error_in_time() -> None:
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as silent:
        address = f"127.0.0.1:{silent.extra(anyio.abc.SocketAttribute.local_port)}"
        with pytest.raises(ConnectorError, match=r"to answer within 0\.3 s"):
            await read_values(source(address, "t", connect_timeout=0.3))
        before = asyncio.all_tasks()
        with anyio.move_on_after(0.2):
            await read_values(source(address, "t"))
    assert asyncio.all_tasks() <= before


@pytest.mark.parametrize("group", [None, "some-group"])
async def test_nothing_is_left_behind_when_cancelled(cluster: Cluster, group: str | None) -> None:
    topic = await cluster.create_topic()
    before = asyncio.all_tasks()
    for patience in (0.005, 0.02, 0.3):  # while connecting, while joining, while receiving
        with anyio.move_on_after(patience) as scope:
            await read_values(source(cluster.address, topic, group=group, stop_at_end=False))
        assert scope.cancelled_caught
        assert asyncio.all_tasks() <= before


async def test_nothing_is_left_behind_when_the_broker_has_gone(faulty: Any) -> None:
    faulty.create_topic("t")
    before = asyncio.all_tasks()
    async with source(faulty.address, "t", group="g").open(CONTEXT):
        faulty.set_reachable(False)
    assert asyncio.all_tasks() <= before


async def test_a_refused_commit_is_an_error(faulty: Any) -> None:
    faulty.create_topic("t")
    await produce(faulty.address, "t", [b"1"])
    # After a rebalance the embedded broker first waits for the member that was.
    declared = source(faulty.address, "t", group="g", session_timeout=0.6)
    async with declared.open(CONTEXT) as reader:
        ends = ends_of(await read_all(reader))
        faulty.fail_requests(8, 30)  # OffsetCommit: GROUP_AUTHORIZATION_FAILED
        with pytest.raises(ConnectorError, match="in: expected the group g to take positions"):
            await reader.commit(ends)
        faulty.fail_requests(8, 22)  # ILLEGAL_GENERATION: the group has rebalanced
        await reader.commit(ends)


@pytest.mark.parametrize("key", [b"", b"text", "é".encode(), b"\xff\x00"])
async def test_a_key_keeps_its_bytes(cluster: Cluster, key: bytes) -> None:
    decoded = decode_key(key)
    assert (decoded if isinstance(decoded, bytes) else str(decoded).encode()) == key


async def test_a_login_is_used(cluster: Cluster, sasl_broker: str) -> None:
    from tests.kafka.server import PASSWORD, USER

    topic = await cluster.create_topic()
    await produce(cluster.address, topic, [b"1"])
    login = {"security_protocol": "SASL_PLAINTEXT", "username": USER}
    assert await read_values(source(sasl_broker, topic, **login, password=PASSWORD)) == [1]
    with pytest.raises(ConnectorError, match=r"to connect to .*[Aa]uthentication") as caught:
        await read_values(source(sasl_broker, topic, **login, password="wrong-one"))
    assert "wrong-one" not in str(caught.value)


async def test_what_is_consumed_here_is_what_was_produced(cluster: Cluster) -> None:
    topic = await cluster.create_topic()
    await produce(cluster.address, topic, [b"1"])
    assert [record.value for record in await consume(cluster.address, topic, 1)] == [b"1"]


async def test_reading_begins_at_a_time(cluster: Cluster, real_broker: str) -> None:
    topic = await cluster.create_topic(2)
    for second in (1000, 2000, 3000):
        await produce(real_broker, topic, [b"%d" % second], timestamp_ms=1000 * second)
    for start, expected in [
        (2000, [2000, 3000]),
        (1999.0005, [2000, 3000]),
        ("2000.0001", [3000]),
        ("1970-01-01T00:33:20Z", [2000, 3000]),
        ("1970-01-01T02:33:20.001+02:00", [3000]),
        (4000, []),
    ]:
        assert await read_values(source(real_broker, topic, start=start)) == expected


async def test_where_no_record_is_late_enough_the_position_is_kept(
    cluster: Cluster, real_broker: str
) -> None:
    topic, group = await cluster.create_topic(), uuid4().hex
    await produce(real_broker, topic, [b"1"], timestamp_ms=1_000_000)
    declared = source(real_broker, topic, start=2000, stop_at_end=False, group=group)
    async with declared.open(CONTEXT) as reader:
        await reader.commit((await reader.receive()).ends)
    assert await committed(real_broker, group, topic) == 1


async def test_each_topic_has_its_format(cluster: Cluster) -> None:
    topics = [await cluster.create_topic() for _ in range(3)]
    payloads = [[b'{"n": 1}', b"no"], [b"2", b"3,4", b"5"], [b"7", b'"']]
    for topic, written in zip(topics, payloads, strict=True):
        await produce(cluster.address, topic, [*written])
    declared = source(
        cluster.address,
        topics[0],
        topics=topics,
        formats={topics[1]: {"csv": {"fields": ["n"]}}, topics[2]: "raw"},
    )
    values: dict[Any, list[Any]] = {}
    rejected: list[tuple[bytes, int]] = []
    async with declared.open(CONTEXT) as reader:
        for fetch in await read_all(reader):
            for record in fetch.batch.records():
                assert record.position is not None
                values.setdefault(record.position["topic"], []).append(record.value)
            if fetch.rejected:
                rejected += zip(
                    fetch.rejected.batch.originals or (), fetch.rejected.indices, strict=True
                )
                assert max(fetch.rejected.indices) < fetch.num_records
    assert values == {
        topics[0]: [{"n": 1}],
        topics[1]: [{"n": 2}, {"n": 5}],
        topics[2]: [b"7", b'"'],
    }
    assert sorted(original for original, _ in rejected) == [b"3,4", b"no"]
    for topic, payload, value in (
        ("", b"1", 1),
        (topics[1], b"1", {"n": 1}),
        (topics[2], b"1", b"1"),
    ):
        codec = declared.decoder(CONTEXT.folder, {"topic": topic})
        assert Batch(codec.decode([payload]).values, [Partition("in")], [0]).rows() == [value]
