from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import anyio
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer  # type: ignore[import-untyped]

from streamflow.contracts import Context
from streamflow.errors import ConnectorError, GraphError
from streamflow.nodes import Sink, Source, Surroundings
from streamflow.records import Batch, Partition
from streamflow.testing import ListSink, ListSource
from streamflow_connectors.demo.embedded_kafka import EmbeddedKafka
from streamflow_connectors.kafka import KafkaSink, KafkaSource
from streamflow_connectors.kafka.transactions import ExactlyOnceWriter
from tests.kafka.clients import Cluster, committed, consume
from tests.kafka.jobs import Job, running

pytestmark = pytest.mark.kafka

GROUP = "g"
END = b"end"
NUM_RECORDS = 4000
NUM_KILLS = 10

END_TXN = 26
UNKNOWN_SERVER_ERROR, INVALID_PRODUCER_EPOCH = -1, 47


def source(address: str = "a:1", topic: str = "t", **options: Any) -> KafkaSource:
    settings = {"bootstrap_servers": address, "topics": (topic,), "partitions": (0,), **options}
    return KafkaSource(**{"group": GROUP, **settings})


def sink(address: str = "a:1", topic: str = "out", **options: Any) -> KafkaSink:
    settings = {"inputs": ("in",), "delivery": "exactly_once", **options}
    return KafkaSink(bootstrap_servers=address, topic=topic, **settings)


def problems(declared: KafkaSink, sources: dict[str, Source], **options: Any) -> list[str]:
    sinks: dict[str, Sink] = options.pop("sinks", {"out": declared})
    return [
        str(problem)
        for problem in declared.delivery_problems(Surroundings(sources, sinks, **options))
    ]


def test_what_can_be_written_exactly_once_has_no_problem() -> None:
    assert problems(sink(), {"in": source()}) == []
    assert problems(sink("b:2, a:1"), {"in": source("a:1,c:3")}) == []
    declared = sink()
    both: dict[str, Sink] = {"out": declared, "log": ListSink(inputs=("in",))}
    assert problems(declared, {"in": source()}, sinks=both) == []


def test_at_least_once_takes_any_graph() -> None:
    declared = sink(delivery="at_least_once")
    assert problems(declared, {}, is_ordered=False, is_checkpointed=False) == []
    assert not declared.stores_positions
    assert sink().stores_positions


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ({}, "exactly one source, of type kafka, found none"),
        ({"a": source(), "b": source()}, "exactly one source, of type kafka, found a, b"),
        ({"a": ListSource(values=())}, "a source of type kafka, found a of another type"),
        ({"a": source(group=None)}, "a group that stores the positions, found none in a"),
        ({"a": source(partitions=None)}, "a source that names its partitions"),
        (
            {"a": source(topics=(), pattern="t.*")},
            "names its topics, found the pattern t.* in a",
        ),
        ({"a": source("b:1")}, "on the same cluster, found b:1 and a:1"),
    ],
)
def test_a_source_that_does_not_fit_is_a_problem(
    declared: dict[str, Source], expected: str
) -> None:
    [found] = problems(sink(), declared)
    assert found.startswith("delivery: expected")
    assert expected in found


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"is_ordered": False}, "in the order of the source, found several ways"),
        ({"sinks": {"b": sink(topic="b")}}, "one sink that stores the positions, found b too"),
        (
            {"sinks": {"b": ListSink(inputs=("in",))}, "is_checkpointed": False},
            "a checkpoint, without which a crash loses what b has not written",
        ),
    ],
)
def test_a_graph_that_does_not_fit_is_a_problem(options: dict[str, Any], expected: str) -> None:
    [found] = problems(sink(), {"in": source()}, **options)
    assert expected in found


def test_dead_letters_are_not_written_exactly_once() -> None:
    [found] = problems(sink(inputs=()), {"in": source()})
    assert "found the one of the dead letters" in found


def test_the_name_that_fences_off_others_is_that_of_the_work() -> None:
    declared = source(partitions=(2, 0))
    assert sink().transactional_id_for(declared, "node") == "streamflow.g.t.0-2.out.node"
    named = sink(transactional_id="job-{group}-{partitions}-{node}-{topic}")
    assert named.transactional_id_for(declared, "node") == "job-g-t.0-2-node-out"
    assert "{" not in sink(transactional_id="{instance}").transactional_id_for(declared, "node")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"transactional_id": "{nothing}"}, "transactional_id"),
        ({"transactional_id": "{"}, "transactional_id"),
        ({"transactional_id": "x", "delivery": "at_least_once"}, "with delivery: exactly_once"),
    ],
)
def test_a_name_that_does_not_fit_is_refused(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(GraphError, match=expected):
        sink(**options)


def outputs(topic: str, offsets: Sequence[int], values: Sequence[Any] | None = None) -> Batch:
    """Return outputs that come from these records of partition 0."""
    partition = Partition("in", (("topic", topic), ("partition", 0)), "offset")
    return Batch(list(values or offsets), [partition] * len(offsets), offsets)


@asynccontextmanager
async def careful_reader(address: str, topic: str) -> AsyncIterator[Any]:
    """Give a consumer that sees what is committed, from the beginning."""
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=address,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
        fetch_max_wait_ms=50,
    )
    async with consumer:
        yield consumer


async def visible_end(address: str, topic: str) -> int:
    """Return the position up to which careful readers see now."""
    async with careful_reader(address, topic) as consumer:
        [end] = (await consumer.end_offsets(consumer.assignment())).values()
    return int(end)


async def read(address: str, topic: str) -> list[Any]:
    """Return all values that careful readers see once no transaction is open any more."""
    async with AIOKafkaProducer(bootstrap_servers=address) as producer:
        last = await producer.send_and_wait(topic, key=END, partition=0)
    values: list[Any] = []
    async with careful_reader(address, topic) as consumer:
        async for record in consumer:
            if record.key != END:
                values.append(int(record.value))
            elif record.offset == last.offset:
                return values
    raise AssertionError


async def wait_until_committed(address: str, group: str, topic: str, expected: int) -> None:
    """Wait for the position, which appears a moment after the transaction has ended."""
    while (found := await committed(address, group, topic)) != expected:
        assert found is None or found < expected


@asynccontextmanager
async def opened(
    declared: KafkaSink, topic_in: str, **options: Any
) -> AsyncIterator[ExactlyOnceWriter]:
    sources = {"in": source(declared.bootstrap_servers, topic_in, **options)}
    async with declared.open(Context("out", sources=sources)) as writer:
        assert isinstance(writer, ExactlyOnceWriter)
        yield writer


@pytest.mark.asyncio
async def test_outputs_and_the_position_they_come_from_appear_together(
    cluster: Cluster, real_broker: str
) -> None:
    topic_in, topic, group = await cluster.create_topic(), await cluster.create_topic(), uuid4().hex
    async with opened(sink(real_broker, topic), topic_in, group=group) as writer:
        await writer.write(outputs(topic_in, [0, 1, 3]))
        await consume(real_broker, topic, 3)  # which sees what is not committed, too
        assert await visible_end(real_broker, topic) == 0
        assert await committed(real_broker, group, topic_in) is None
        await writer.flush()
        assert await read(real_broker, topic) == [0, 1, 3]
        await wait_until_committed(real_broker, group, topic_in, 4)
        await writer.flush()  # with nothing new
        await writer.write(outputs(topic_in, [7]))
        await writer.flush()
    assert await read(real_broker, topic) == [0, 1, 3, 7]
    await wait_until_committed(real_broker, group, topic_in, 8)


@pytest.mark.asyncio
async def test_what_is_published_is_left_out_and_counted(
    cluster: Cluster, real_broker: str
) -> None:
    topic_in, topic, group = await cluster.create_topic(), await cluster.create_topic(), uuid4().hex
    async with opened(sink(real_broker, topic), topic_in, group=group) as writer:
        await writer.write(outputs(topic_in, [0, 1, 2]))
        await writer.flush()
    async with opened(sink(real_broker, topic), topic_in, group=group) as writer:
        await writer.write(outputs(topic_in, [0, 1]))
        await writer.flush()
        await writer.write(outputs(topic_in, [2, 3]))
        await writer.flush()
        assert writer.left_out == 3
        assert writer.report()["records left out, as published already"] == 3
    assert await read(real_broker, topic) == [0, 1, 2, 3]
    await wait_until_committed(real_broker, group, topic_in, 4)


@pytest.mark.asyncio
async def test_what_was_not_committed_is_rolled_back_at_once_when_the_writer_closes(
    cluster: Cluster, real_broker: str
) -> None:
    topic_in, topic, group = await cluster.create_topic(), await cluster.create_topic(), uuid4().hex
    async with opened(sink(real_broker, topic), topic_in, group=group) as writer:
        await writer.write(outputs(topic_in, [0, 1]))
        await consume(real_broker, topic, 2)  # which sees what is not committed, too
    assert await read(real_broker, topic) == []  # sees nothing, and need not wait for long
    assert await committed(real_broker, group, topic_in) is None


@pytest.mark.asyncio
async def test_rejected_records_keep_their_places_and_are_passed(
    cluster: Cluster, real_broker: str
) -> None:
    topic_in, topic, group = await cluster.create_topic(), await cluster.create_topic(), uuid4().hex
    async with opened(sink(real_broker, topic), topic_in, group=group) as writer:
        await writer.write(outputs(topic_in, [0]))
        await writer.flush()
    async with opened(sink(real_broker, topic), topic_in, group=group) as writer:
        rejected = await writer.write(outputs(topic_in, [0, 1, 2, 3], [0, object(), 2, object()]))
        await writer.flush()
    assert rejected is not None
    assert list(rejected.indices) == [1, 3]
    assert list(rejected.batch.offsets) == [1, 3]
    assert await read(real_broker, topic) == [0, 2]
    await wait_until_committed(real_broker, group, topic_in, 4)


@pytest.mark.asyncio
@pytest.mark.parametrize("offsets", [[5, 4], [5, 5]], ids=["back", "twice"])
async def test_outputs_out_of_order_are_an_error(
    cluster: Cluster, real_broker: str, offsets: list[int]
) -> None:
    topic_in, topic = await cluster.create_topic(), await cluster.create_topic()
    async with opened(sink(real_broker, topic), topic_in, group=uuid4().hex) as writer:
        await writer.write(outputs(topic_in, offsets[:1]))
        await writer.flush()
        expected = f"found that of topic {topic_in} partition 0 offset {offsets[1]} after that of"
        with pytest.raises(ConnectorError, match=expected):
            await writer.write(outputs(topic_in, offsets[1:]))
    assert await read(real_broker, topic) == [5]


@pytest.mark.asyncio
async def test_a_second_instance_fences_off_the_first(cluster: Cluster, real_broker: str) -> None:
    topic_in, topic, group = await cluster.create_topic(), await cluster.create_topic(), uuid4().hex
    declared = sink(real_broker, topic)
    async with opened(declared, topic_in, group=group) as zombie:
        await zombie.write(outputs(topic_in, [0]))
        await zombie.flush()
        await zombie.write(outputs(topic_in, [1]))
        async with opened(declared, topic_in, group=group) as writer:
            with pytest.raises(ConnectorError, match="out: expected to be the only instance"):
                await zombie.flush()
            with pytest.raises(ConnectorError, match="out: expected to be the only instance"):
                await zombie.write(outputs(topic_in, [2]))
            await writer.write(outputs(topic_in, [1, 2]))
            await writer.flush()
    assert await read(real_broker, topic) == [0, 1, 2]
    await wait_until_committed(real_broker, group, topic_in, 3)


@pytest.mark.asyncio
@pytest.mark.parametrize("num_unknown", [0, 1, 3])
async def test_a_commit_while_the_producer_is_being_fenced_off(
    faulty: EmbeddedKafka, num_unknown: int
) -> None:
    faulty.create_topic("t")
    async with opened(sink(faulty.address), "t", group=GROUP) as writer:
        await writer.write(outputs("t", [0]))
        faulty.fail_requests(END_TXN, *[UNKNOWN_SERVER_ERROR] * num_unknown, INVALID_PRODUCER_EPOCH)
        with pytest.raises(ConnectorError, match="out: expected to be the only instance"):
            await writer.flush()


@pytest.mark.asyncio
async def test_a_graph_that_does_not_fit_is_refused_when_it_opens() -> None:
    with pytest.raises(GraphError, match=r"out\.delivery: expected exactly one source"):
        async with sink().open(Context("out")):
            pass


async def fill(address: str, topic: str, count: int) -> None:
    async with AIOKafkaProducer(bootstrap_servers=address, linger_ms=20) as producer:
        sent = [await producer.send(topic, b"%d" % number, partition=0) for number in range(count)]
        await asyncio.gather(*sent)


class Watcher:
    """Sees what a topic shows to readers, as it comes."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self.values: list[int] = []

    async def wait_for(self, count: int, job: Job) -> None:
        """Wait until so many values are seen, or the job has ended."""
        while len(self.values) < count and not job.has_ended:
            for records in (await self._consumer.getmany(timeout_ms=100)).values():
                self.values += [int(record.value) for record in records]


@asynccontextmanager
async def watching(address: str, topic: str) -> AsyncIterator[Watcher]:
    async with careful_reader(address, topic) as consumer:
        yield Watcher(consumer)


@pytest.mark.asyncio
@pytest.mark.timeout(600)
async def test_each_output_is_seen_once_and_in_order_though_the_job_is_killed_ten_times(
    cluster: Cluster, real_broker: str
) -> None:
    topic_in, topic = await cluster.create_topic(), await cluster.create_topic()
    places = real_broker, topic_in, topic
    await fill(real_broker, topic_in, NUM_RECORDS)
    rng = random.Random(5)
    async with watching(real_broker, topic) as watcher:
        for _ in range(NUM_KILLS):
            more = rng.choice([0, 1, rng.randrange(300)])  # 0: while it starts
            with running("exactly_once", *places, stop_at_end=True) as job:
                await watcher.wait_for(len(watcher.values) + more, job)
                await anyio.sleep(rng.random() * 0.1)
                job.process.kill()
                assert await job.wait() in (0, -signal.SIGKILL), job.log
        with running("exactly_once", *places, stop_at_end=True) as job:
            assert await job.wait() == 0, job.log
    expected = [2 * number for number in range(NUM_RECORDS)]
    assert await read(real_broker, topic) == expected
    await wait_until_committed(real_broker, f"of-{topic_in}", topic_in, NUM_RECORDS)


@pytest.mark.asyncio
@pytest.mark.timeout(300)
async def test_a_second_process_ends_the_first_with_a_clear_error(
    cluster: Cluster, real_broker: str
) -> None:
    topic_in, topic = await cluster.create_topic(), await cluster.create_topic()
    places = real_broker, topic_in, topic
    await fill(real_broker, topic_in, 100)
    async with watching(real_broker, topic) as watcher:
        with running("exactly_once", *places, stop_at_end=False) as first:
            await watcher.wait_for(100, first)
            with running("exactly_once", *places, stop_at_end=False) as second:
                count = 100
                while not first.has_ended:
                    await fill(real_broker, topic_in, 10)
                    count += 10
                assert await first.wait() == 1
                assert "expected to be the only instance with the transactional_id" in first.log
                await watcher.wait_for(count, second)
                await second.stop()
    values = await read(real_broker, topic_in)
    assert await read(real_broker, topic) == [2 * value for value in values]
