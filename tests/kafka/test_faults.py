"""Brokers that are away, refuse or move: what is tried again, for how long, and how it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from streamflow.errors import ConnectorError
from streamflow_connectors.demo.embedded_kafka import EmbeddedKafka
from streamflow_connectors.kafka.faults import Faults
from streamflow_connectors.kafka.reader import KafkaReader
from streamflow_connectors.kafka.writer import KafkaWriter
from tests.kafka.clients import committed, produce
from tests.kafka.nodes import batch, error_of, reading, receive, writing

pytestmark = pytest.mark.kafka

PRODUCE, FETCH, LIST_OFFSETS, OFFSET_FETCH, JOIN_GROUP, HEARTBEAT = 0, 1, 2, 9, 11, 12
OFFSET_OUT_OF_RANGE = 1
NOT_LEADER, COORDINATOR_LOADING, NOT_COORDINATOR = 6, 14, 16

PLENTY = 10_000  # failures, so that none of the requests succeeds
FOR_EVER = 3600.0


async def receive_for_ever(reader: KafkaReader) -> None:
    while True:
        await reader.receive()


@asynccontextmanager
async def until_told(node: KafkaReader | KafkaWriter, expected: str) -> AsyncIterator[None]:
    """Run the block until the node tells what it tries again."""
    with anyio.CancelScope() as scope:

        async def watch() -> None:
            while True:
                if expected in (node.retrying() or ""):
                    scope.cancel()
                    return
                await anyio.sleep(0.01)

        watching = asyncio.create_task(watch())
        try:
            yield
        finally:
            watching.cancel()


@pytest.fixture
def broker(faulty: EmbeddedKafka) -> EmbeddedKafka:
    """An embedded broker with one topic."""
    faulty.create_topic("t")
    return faulty


@pytest.mark.asyncio
async def test_a_writer_tells_what_it_tries_again_until_it_succeeds(broker: EmbeddedKafka) -> None:
    async with writing(broker.address, retry_for=FOR_EVER) as writer:
        assert writer.retrying() is None
        broker.fail_requests(PRODUCE, *[NOT_LEADER] * PLENTY)
        await writer.write(batch(1, 2))
        async with until_told(writer, "error 6 NOT_LEADER_FOR_PARTITION"):
            await writer.flush()
        assert (writer.retrying() or "").startswith("retrying Produce for ")
        broker.clear_failures(PRODUCE)
        await writer.flush()
        assert writer.retrying() is None
        assert writer.report()["requests that failed and were tried again"] >= 1


@pytest.mark.asyncio
async def test_a_reader_tells_what_it_tries_again_until_it_succeeds(broker: EmbeddedKafka) -> None:
    async with reading(broker.address, retry_for=FOR_EVER) as reader:
        broker.fail_requests(FETCH, *[NOT_LEADER] * PLENTY)
        await produce(broker.address, "t", [b"1"])
        async with until_told(reader, "retrying Fetch for "):
            await reader.receive()
        broker.clear_failures(FETCH)
        assert (await receive(reader))[0] == [1]
        assert reader.retrying() is None


@pytest.mark.asyncio
async def test_each_wait_is_longer_than_the_one_before(broker: EmbeddedKafka) -> None:
    async with writing(broker.address) as writer:
        broker.fail_requests(PRODUCE, *[NOT_LEADER] * 5)
        began = anyio.current_time()
        await writer.write(batch(1))
        await writer.flush()
        # Half of 0.1, 0.2, 0.4, 0.8 and 1.6 s at the least; the driver alone would take 0.5 s.
        assert anyio.current_time() - began > 1.5


@pytest.mark.asyncio
@pytest.mark.parametrize("node", [reading, writing])
async def test_a_broker_that_starts_later_is_waited_for(
    broker: EmbeddedKafka, caplog: pytest.LogCaptureFixture, node: Any
) -> None:
    broker.set_reachable(False)

    async def open_and_close() -> None:
        async with node(broker.address, connect_timeout=FOR_EVER):
            pass

    opening = asyncio.create_task(open_and_close())
    while True:
        await asyncio.sleep(0.01)
        if "trying again" in caplog.text:
            break
    assert f"no broker at {broker.address} yet, found ConnectionRefusedError" in caplog.text
    broker.set_reachable(True)
    await opening


@pytest.mark.asyncio
@pytest.mark.parametrize("node", ["reader", "writer"])
async def test_a_broker_that_comes_back_is_no_failure(broker: EmbeddedKafka, node: str) -> None:
    if node == "reader":
        async with reading(broker.address, group="g", retry_for=FOR_EVER) as reader:
            await produce(broker.address, "t", [b"1"])
            _, ends = await receive(reader)
            broker.set_reachable(False)
            async with until_told(reader, "retrying "):
                await reader.receive()
            await reader.commit(ends)  # comes back though it cannot be done
            broker.set_reachable(True)
            await produce(broker.address, "t", [b"2"])
            assert (await receive(reader))[0] == [2]
        assert await committed(broker.address, "g", "t") == 1
        return
    async with writing(broker.address, retry_for=FOR_EVER) as writer:
        broker.set_reachable(False)
        await writer.write(batch(1))
        async with until_told(writer, "retrying Produce"):
            await writer.flush()
        broker.set_reachable(True)
        await writer.flush()


@pytest.mark.asyncio
@pytest.mark.parametrize("group", [None, "g"])
async def test_a_reader_gives_up_on_a_broker_that_stays_away(
    broker: EmbeddedKafka, group: str | None
) -> None:
    async with reading(broker.address, retry_for=0.5, group=group) as reader:
        broker.set_reachable(False)
        with pytest.raises(ConnectorError, match=r"in: expected .* to be back within 0\.5 s"):
            await receive_for_ever(reader)


@pytest.mark.asyncio
@pytest.mark.parametrize("api", [FETCH, PRODUCE])
async def test_errors_that_do_not_pass_are_given_up_on_with_the_last_one(
    broker: EmbeddedKafka, api: int
) -> None:
    expected = "to be back within 1 s, found retrying .* error 6 NOT_LEADER_FOR_PARTITION"
    if api == FETCH:
        async with reading(broker.address, retry_for=1.0) as reader:
            broker.fail_requests(FETCH, *[NOT_LEADER] * PLENTY)
            with pytest.raises(ConnectorError, match=f"in: .*{expected}"):
                await receive_for_ever(reader)
        return
    async with writing(broker.address, retry_for=1.0) as writer:
        broker.fail_requests(PRODUCE, *[NOT_LEADER] * PLENTY)
        await writer.write(batch(1))
        with pytest.raises(ConnectorError, match=f"out: .*{expected}"):
            await writer.flush()


@pytest.mark.asyncio
async def test_an_error_in_joining_again_is_tried_again(broker: EmbeddedKafka) -> None:
    async with reading(broker.address, group="g", session_timeout=0.6) as reader:
        epoch = reader._held.epoch
        broker.fail_requests(JOIN_GROUP, 27, 14)  # REBALANCE_IN_PROGRESS, loading
        broker.fail_requests(HEARTBEAT, 25)  # UNKNOWN_MEMBER_ID
        while reader._held.epoch == epoch or reader._held.unsettled:
            with anyio.move_on_after(0.05):
                await reader.receive()
        await produce(broker.address, "t", [b"1"])
        assert (await receive(reader))[0] == [1]


@pytest.mark.asyncio
@pytest.mark.parametrize("code", [COORDINATOR_LOADING, NOT_COORDINATOR])
async def test_a_group_whose_positions_cannot_be_read_now_is_no_group_without_positions(
    broker: EmbeddedKafka, code: int
) -> None:
    await produce(broker.address, "t", [b"1", b"2"])
    async with reading(broker.address, group="g", session_timeout=1.0) as reader:
        values: list[int] = []
        while len(values) < 2:
            more, ends = await receive(reader)
            values += more
        await reader.commit(dict.fromkeys(ends, 1))
    broker.fail_requests(OFFSET_FETCH, *[code] * 3)
    async with reading(broker.address, group="g", session_timeout=1.0) as reader:
        assert (await receive(reader))[0] == [2]


@pytest.mark.asyncio
async def test_readers_and_writers_follow_the_leader_of_a_partition() -> None:
    with EmbeddedKafka(2) as brokers:
        brokers.create_topic("t")
        async with reading(brokers.address) as reader, writing(brokers.address) as writer:
            for number in range(3):
                brokers.move_leader("t", 0, 1 + number % 2)
                await writer.write(batch(number))
                await writer.flush()
                assert (await receive(reader))[0] == [number]


@pytest.mark.asyncio
async def test_a_partition_without_a_leader_is_waited_for(broker: EmbeddedKafka) -> None:
    async with reading(broker.address, retry_for=FOR_EVER) as reader:
        broker.move_leader("t", 0, -1)
        async with until_told(reader, "no leader"):
            await receive_for_ever(reader)
        broker.move_leader("t", 0, 1)
        await produce(broker.address, "t", [b"1"])
        assert (await receive(reader))[0] == [1]


@pytest.mark.asyncio
async def test_a_group_goes_on_when_its_coordinator_moves() -> None:
    with EmbeddedKafka(2) as brokers:
        brokers.create_topic("t")
        async with reading(brokers.address, group="g", session_timeout=1.0) as reader:
            for number in range(3):
                brokers.move_coordinator("g", 1 + number % 2)
                await produce(brokers.address, "t", [b"%d" % number])
                values, ends = await receive(reader)
                assert values[-1] == number
                await reader.commit(ends)
        async with reading(brokers.address, group="g", session_timeout=1.0) as reader:
            await produce(brokers.address, "t", [b"3"])
            assert (await receive(reader))[0][-1] == 3


@pytest.mark.asyncio
async def test_positions_that_could_not_be_stored_at_the_end_are_told(
    broker: EmbeddedKafka,
) -> None:
    await produce(broker.address, "t", [b"1"])

    async def receive_and_commit() -> None:
        async with reading(broker.address, group="g", retry_for=FOR_EVER) as reader:
            _, ends = await receive(reader)
            broker.set_reachable(False)
            async with until_told(reader, "retrying"):
                await reader.receive()
            await reader.commit(ends)

    error = await error_of(receive_and_commit())
    assert error.startswith("in: expected the group g to take positions, found retrying")


@pytest.mark.asyncio
async def test_closing_does_not_wait_for_brokers_that_are_away(
    broker: EmbeddedKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamflow_connectors.kafka.connection.CLOSE_SECONDS", FOR_EVER)
    before = asyncio.all_tasks()
    with anyio.fail_after(60):
        async with (
            reading(broker.address, group="g", retry_for=FOR_EVER) as reader,
            writing(broker.address, retry_for=FOR_EVER) as writer,
        ):
            broker.set_reachable(False)
            await writer.write(batch(1))
            async with until_told(writer, "retrying"):
                await writer.flush()
            async with until_told(reader, "retrying"):
                await reader.receive()
    assert asyncio.all_tasks() <= before


@pytest.mark.asyncio
async def test_a_fault_is_of_the_partition_it_happens_in_and_ends_with_it() -> None:
    faults = Faults()
    faults.fail(("Fetch", "t", 0), "no leader", since=anyio.current_time() - 5)
    faults.fail(("Fetch", "t", 1), "no connection")
    assert (faults.retrying() or "").endswith("no leader")
    assert faults.seconds >= 5
    faults.clear()
    assert repr(faults) == "<Faults none>"
    assert faults.seconds == 0


@pytest.mark.asyncio
async def test_a_fault_that_nobody_renews_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    faults = Faults()
    faults.fail(("FindCoordinator",), "no connection", since=anyio.current_time() - 5)
    monkeypatch.setattr("streamflow_connectors.kafka.faults.PASSED", -1.0)
    assert faults.retrying() is None
    assert faults.seconds == 0


@pytest.mark.asyncio
async def test_what_the_driver_gives_up_on_in_time_is_tried_again(
    broker: EmbeddedKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamflow_connectors.kafka.connection.REQUEST_SECONDS", (1.0, 1.0))
    monkeypatch.setattr("streamflow_connectors.kafka.connection.REQUEST_SPARE_MS", 0)
    options = {"retry_for": FOR_EVER, "rebalance_timeout": 0.1, "if_lost": "earliest"}
    async with reading(broker.address, **options) as reader:
        broker.fail_requests(LIST_OFFSETS, *[NOT_LEADER] * PLENTY)
        broker.fail_requests(FETCH, OFFSET_OUT_OF_RANGE)
        with anyio.move_on_after(2.0):  # longer than the driver tries
            await receive_for_ever(reader)
        broker.clear_failures(LIST_OFFSETS)
        await produce(broker.address, "t", [b"1"])
        assert (await receive(reader))[0] == [1]


def test_what_was_tried_again_at_the_end_is_told_when_the_event_loop_is_gone() -> None:
    faults = Faults()
    faults.fail(("Fetch", "t", 0), "no connection")
    assert (faults.retrying() or "").endswith("no connection")
