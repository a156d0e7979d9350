"""Groups: who joins, leaves, dies or restarts, and that no record is lost by it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import pytest

from streamflow.contracts import Context, Reader
from streamflow.errors import GraphError
from streamflow.records import Partition
from streamflow_connectors.kafka import KafkaSource
from streamflow_connectors.kafka.reader import KafkaReader
from tests.kafka.clients import Cluster, committed, produce
from tests.kafka.jobs import Job, running
from tests.kafka.streams import stream_of

pytestmark = pytest.mark.kafka

CONTEXT = Context("in")
SESSION = {"session_timeout": 3.0}


def source(address: str, topic: str, **options: Any) -> KafkaSource:
    settings = {"group": f"of-{topic}", "rebalance_timeout": 120.0, **options}
    return KafkaSource(bootstrap_servers=address, topics=(topic,), **settings)


@asynccontextmanager
async def opened(declared: KafkaSource, context: Context = CONTEXT) -> AsyncIterator[KafkaReader]:
    async with declared.open(context) as reader:
        assert isinstance(reader, KafkaReader)
        yield reader


async def receive(reader: Reader, count: int) -> tuple[list[int], dict[Partition, int]]:
    """Receive so many records; return their values and where their partitions go on."""
    values: list[int] = []
    ends: dict[Partition, int] = {}
    while len(values) < count:
        fetch = await reader.receive()
        values += fetch.batch.rows()
        ends |= fetch.ends
    return values, ends


async def receive_until(reader: KafkaReader, event: Any) -> list[int]:
    """Receive until ``event`` returns true; return the values."""
    values: list[int] = []
    while not event():
        with anyio.move_on_after(0.05):
            values += (await reader.receive()).batch.rows()
    return values


def is_giving_up(reader: KafkaReader) -> bool:
    """Whether the driver has asked for the partitions back, and still waits."""
    return bool(reader._consumer._subscription.reassignment_in_progress)


async def filled_topic(cluster: Cluster, partitions: int = 2) -> str:
    topic = await cluster.create_topic(partitions)
    for partition in range(partitions):
        values = [b"%d" % (10 * partition + n) for n in range(3)]
        await produce(cluster.address, topic, values, partition=partition)
    return topic


@pytest.mark.asyncio
async def test_a_member_finishes_what_it_holds_before_it_gives_partitions_up(
    cluster: Cluster, real_broker: str
) -> None:
    topic = await filled_topic(cluster)
    declared = source(real_broker, topic)
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(opened(declared))
        _, ends = await receive(first, 6)
        opening = asyncio.create_task(stack.enter_async_context(opened(declared)))
        await receive_until(first, lambda: is_giving_up(first))
        assert {await committed(real_broker, f"of-{topic}", topic, n) for n in (0, 1)} == {None}
        await first.commit(ends)
        assert await receive_until(first, opening.done) == []
        second = await opening
        for number in range(2):
            await produce(real_broker, topic, [b"%d" % (10 * number + 3)], partition=number)
        more = await asyncio.gather(receive(first, 1), receive(second, 1))
    assert sorted(value for values, _ in more for value in values) == [3, 13]
    assert {await committed(real_broker, f"of-{topic}", topic, n) for n in (0, 1)} == {3}


@pytest.mark.asyncio
async def test_closing_does_not_wait_for_what_cannot_be_finished_any_more(
    cluster: Cluster, real_broker: str
) -> None:
    topic = await filled_topic(cluster)
    declared = source(real_broker, topic, rebalance_timeout=600.0, session_timeout=300.0)
    async with AsyncExitStack() as stack:
        async with opened(declared) as first:
            await receive(first, 6)
            opening = asyncio.create_task(stack.enter_async_context(opened(declared)))
            await receive_until(first, lambda: is_giving_up(first))
        with anyio.fail_after(120):
            second = await opening
            values: list[int] = []
            while len(values) < 6:
                more, ends = await receive(second, 1)
                values += more
                await second.commit(ends)
    assert sorted(values) == [0, 1, 2, 10, 11, 12]


@pytest.mark.asyncio
async def test_with_checkpoints_a_partition_that_comes_back_goes_on_where_the_reader_was(
    cluster: Cluster, real_broker: str
) -> None:
    topic = await filled_topic(cluster, partitions=1)
    declared = source(real_broker, topic)
    async with opened(declared, Context("in", is_checkpointed=True)) as first:
        _, ends = await receive(first, 3)
        await first.commit(dict.fromkeys(ends, 1))  # up to where the checkpoint was
        async with AsyncExitStack() as stack:
            opening = asyncio.create_task(stack.enter_async_context(opened(declared)))
            assert await receive_until(first, opening.done) == []
            await opening
        await produce(real_broker, topic, [b"3"])
        assert (await receive(first, 1))[0] == [3]


@pytest.mark.asyncio
async def test_a_named_member_keeps_its_partitions_while_it_restarts(
    cluster: Cluster, real_broker: str
) -> None:
    topic = await cluster.create_topic(2)
    options = {"session_timeout": 300.0}
    async with AsyncExitStack() as stack:
        lasting = source(real_broker, topic, group_instance_id="a", **options)
        other = await stack.enter_async_context(opened(lasting))
        restarting = source(real_broker, topic, group_instance_id="b", **options)
        async with AsyncExitStack() as inner:
            opening = asyncio.create_task(inner.enter_async_context(opened(restarting)))
            await receive_until(other, opening.done)
            held = (await opening)._held.assigned
            epoch = other._held.epoch
        async with opened(restarting) as again:
            assert again._held.assigned == held
            assert other._held.epoch == epoch
    assert held


@pytest.mark.parametrize("options", [{"group": None}, {"partitions": (0,)}])
def test_a_member_has_a_name_in_a_group_only(options: dict[str, Any]) -> None:
    with pytest.raises(GraphError, match="group_instance_id: expected a group"):
        source("a:1", "t", group_instance_id="a", **options)


@pytest.mark.asyncio
@pytest.mark.timeout(300)
async def test_members_that_join_and_leave_deliver_each_record_once(real_broker: str) -> None:
    jobs: dict[str, Job] = {}
    async with stream_of(real_broker) as stream:
        places = stream.address, stream.topic_in, stream.topic_out
        with running("member", *places, name="a") as jobs["a"]:
            await stream.wait_for("a", jobs=jobs)
            with (
                running("member", *places, name="b") as jobs["b"],
                running("member", *places, name="c") as jobs["c"],
            ):
                await stream.wait_for("a", "b", "c", jobs=jobs)
                await jobs.pop("a").stop()
                await stream.wait_for("b", "c", jobs=jobs)
                await jobs.pop("b").stop()
                await stream.wait_for_all(jobs)
                await jobs.pop("c").stop()
        await stream.read()
        assert sorted(value for value, _ in stream.outputs) == stream.expected


@pytest.mark.asyncio
@pytest.mark.timeout(300)
async def test_what_a_member_that_dies_had_not_finished_is_delivered_by_another(
    real_broker: str,
) -> None:
    jobs: dict[str, Job] = {}
    async with stream_of(real_broker) as stream:
        places = stream.address, stream.topic_in, stream.topic_out
        with (
            running("member", *places, name="a", **SESSION) as jobs["a"],
            running("member", *places, name="b", **SESSION) as jobs["b"],
        ):
            await stream.wait_for("a", "b", jobs=jobs)
            await stream.send(300)
            jobs.pop("a").process.kill()
            await stream.wait_for_all(jobs)
            await jobs["b"].stop()


@pytest.mark.asyncio
@pytest.mark.timeout(300)
async def test_a_member_that_was_frozen_for_too_long_commits_nothing_of_others(
    real_broker: str,
) -> None:
    jobs: dict[str, Job] = {}
    async with stream_of(real_broker) as stream:
        places = stream.address, stream.topic_in, stream.topic_out
        with (
            running("member", *places, name="a", **SESSION) as jobs["a"],
            running("member", *places, name="b", **SESSION) as jobs["b"],
        ):
            await stream.wait_for("a", "b", jobs=jobs)
            await stream.send(100)
            jobs["a"].process.send_signal(signal.SIGSTOP)
            await stream.wait_for_all({"b": jobs["b"]})
            jobs["a"].process.send_signal(signal.SIGCONT)
            await stream.wait_for("a", jobs=jobs)
            await stream.wait_for_all(jobs)
            await jobs["a"].stop()
            await jobs["b"].stop()
