"""Every error that a broker can answer a request with: work goes on, or the cause is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from streamflow.contracts import Context
from streamflow_connectors.demo.embedded_kafka import EmbeddedKafka
from streamflow_connectors.kafka.faults import PASSING
from tests.kafka.clients import committed, produce
from tests.kafka.nodes import batch, error_of, reading, receive, source, wait_for, writing

pytestmark = [pytest.mark.kafka, pytest.mark.asyncio, pytest.mark.timeout(240)]

NUM_BROKERS = 8  # at a time, for most of it is waiting

CODES = [-1, *range(1, 105)]

OUT_OF_THE_GROUP = {22, 25, 27, 82}
"""What a member hears that has lost its place: what it has read is read again."""

DUPLICATE = 46
"""What a producer hears whose records are there already; here they are not."""

UNKNOWN_MAPPING = 49

READING = {
    "Fetch": 1,
    "ListOffsets": 2,
    "Metadata": 3,
    "OffsetCommit": 8,
    "OffsetFetch": 9,
    "FindCoordinator": 10,
    "JoinGroup": 11,
    "LeaveGroup": 13,
    "SyncGroup": 14,
    "ApiVersions": 18,
}
WRITING = {"Produce": 0, "Metadata": 3, "ApiVersions": 18, "InitProducerId": 22}
IN_TRANSACTIONS = {
    "Produce": 0,
    "OffsetFetch": 9,
    "FindCoordinator": 10,
    "InitProducerId": 22,
    "AddPartitionsToTxn": 24,
    "AddOffsetsToTxn": 25,
    "EndTxn": 26,
    "TxnOffsetCommit": 28,
}
HEARTBEAT = 12

Work = Callable[[str, int], Coroutine[Any, Any, None]]
"""Does something with the broker at an address, for the sake of a code."""


async def check_codes(api: int, name: str, work: Work, check: Work) -> None:
    """Check that work survives codes that pass, and fails with its node's error or is done.

    Args:
        api: The kind of request whose next answer is the code.
        name: Of the node.
        work: What is done meanwhile.
        check: What is done afterwards, unless there was an error.
    """

    async def check_some(codes: list[int]) -> None:
        async with EmbeddedKafka() as broker:
            broker.create_topic("t")
            await produce(broker.address, "t", [b"1"])
            for code in codes:
                broker.create_topic(f"out-{code}")
                broker.fail_requests(api, code)
                error = await error_of(work(broker.address, code))
                if "InvalidProducerIdMapping" in error and code != UNKNOWN_MAPPING:
                    # The embedded broker draws producers' numbers by chance, one of them twice.
                    error = await error_of(work(broker.address, code))
                broker.clear_failures(api)
                if error:
                    assert code not in PASSING, error
                    assert error.startswith(f"{name}: expected "), error
                else:
                    await check(broker.address, code)

    async with asyncio.TaskGroup() as tasks:
        for number in range(NUM_BROKERS):
            tasks.create_task(check_some(CODES[number::NUM_BROKERS]))


async def check_output(address: str, code: int) -> None:
    if code != DUPLICATE:
        await wait_for(address, f"out-{code}", code)


@pytest.mark.parametrize("api", READING)
async def test_a_member_of_a_group_reads_and_commits(api: str) -> None:
    async def read(address: str, code: int) -> None:
        async with reading(address, group=f"group-{code}", session_timeout=1.5) as reader:
            values, ends = await receive(reader)
            await reader.commit(ends)
            assert values == [1]

    async def check(address: str, code: int) -> None:
        is_lost = api == "OffsetCommit" and code in OUT_OF_THE_GROUP
        assert await committed(address, f"group-{code}", "t") == (None if is_lost else 1), code

    await check_codes(READING[api], "in", read, check)


async def test_a_member_of_a_group_goes_on_when_heartbeats_fail() -> None:
    async def read_while_beating(address: str, code: int) -> None:
        async with reading(address, group=f"group-{code}", session_timeout=1.5) as reader:
            for number in range(1000 * code, 1000 * code + 8):
                await produce(address, "t", [b"%d" % number])
                values: list[int] = []
                while number not in values:  # after a rebalance some come again
                    values, ends = await receive(reader)
                await reader.commit(ends)

    async def check(address: str, code: int) -> None:
        assert await committed(address, f"group-{code}", "t")

    await check_codes(HEARTBEAT, "in", read_while_beating, check)


@pytest.mark.parametrize("api", WRITING)
async def test_a_writer_delivers(api: str) -> None:
    async def write(address: str, code: int) -> None:
        async with writing(address, topic=f"out-{code}") as writer:
            await writer.write(batch(code))
            await writer.flush()

    await check_codes(WRITING[api], "out", write, check_output)


@pytest.mark.parametrize("api", IN_TRANSACTIONS)
async def test_a_transaction_is_committed(api: str) -> None:
    async def write(address: str, code: int) -> None:
        declared = source(address, group=f"group-{code}", partitions=(0,))
        context = Context("out", sources={"in": declared})
        options = {"topic": f"out-{code}", "delivery": "exactly_once"}
        async with writing(address, context, **options) as writer:
            await writer.write(batch(code))
            await writer.flush()

    # Positions are not checked: the embedded broker takes them in transactions, and forgets them.
    await check_codes(IN_TRANSACTIONS[api], "out", write, check_output)
