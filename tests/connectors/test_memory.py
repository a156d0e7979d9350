from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio.lowlevel import checkpoint

from streamflow.contracts import Context, Reader
from streamflow.errors import GraphError, RunStoppedError
from streamflow.records import Batch, Partition, Record
from streamflow_connectors.memory import MemorySink, MemorySource, QueueReader, QueueWriter

pytestmark = pytest.mark.anyio

CONTEXT = Context("readings")


async def received(reader: Reader) -> list[Any]:
    values: list[Any] = []
    while True:
        try:
            values += (await reader.receive()).batch.rows()
        except anyio.EndOfStream:
            return values


def batch_of(count: int) -> Batch:
    return Batch(list(range(count)), [Partition("test")] * count, range(count))


async def test_records_keep_what_they_carry() -> None:
    items = [1, Record({"a": 2}, key="k", timestamp_ms=5, headers=(("h", b"x"),))]
    async with MemorySource(records=items).open(CONTEXT) as reader:
        fetch = await reader.receive()
    batch = fetch.batch
    assert batch.rows() == [1, {"a": 2}]
    assert (batch.keys, batch.timestamps_ms) == ([None, "k"], [None, 5])
    assert batch.headers == [(), (("h", b"x"),)]
    assert batch.positions() == [{"index": 0}, {"index": 1}]
    assert fetch.ends == {Partition("readings"): 2}


async def test_plain_values_have_no_columns_of_nothing() -> None:
    async with MemorySource(records=[{"a": 1}, {"a": 2}]).open(CONTEXT) as reader:
        batch = (await reader.receive()).batch
    assert batch.values == {"a": [1, 2]}
    assert (batch.keys, batch.timestamps_ms, batch.headers) == (None, None, None)
    assert batch.size_bytes > 0


async def test_an_iterable_is_read_lazily() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    async with MemorySource(records=items()).open(CONTEXT) as reader:
        assert taken == 0
        assert len((await reader.receive()).batch) == taken <= 1000


async def test_an_async_iterable_is_read_ahead_by_its_capacity() -> None:
    taken = 0
    is_closed = False

    async def items() -> AsyncIterator[int]:
        nonlocal taken, is_closed
        try:
            for taken in range(1, 10**9):
                yield taken
        finally:
            await checkpoint()
            is_closed = True

    async with MemorySource(records=items(), capacity=5).open(CONTEXT):
        await anyio.wait_all_tasks_blocked()
        assert taken == 6  # five wait, one is being sent
    assert is_closed


@pytest.mark.parametrize("is_async", [False, True])
async def test_what_an_iterable_raises_comes_after_its_items(is_async: bool) -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ZeroDivisionError

    async def async_items() -> AsyncIterator[int]:
        for item in items():
            yield item

    records = async_items() if is_async else items()
    async with MemorySource(records=records).open(CONTEXT) as reader:
        assert (await reader.receive()).batch.rows() == [1]
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                await reader.receive()


async def test_an_error_in_the_block_leaves_it_as_it_is() -> None:
    async def items() -> AsyncIterator[int]:
        await anyio.sleep_forever()
        yield 1

    with pytest.raises(ZeroDivisionError):
        async with MemorySource(records=items()).open(CONTEXT):
            raise ZeroDivisionError


async def test_a_sender_waits_while_there_is_no_room() -> None:
    async with MemorySource(capacity=3).open(CONTEXT) as reader, anyio.create_task_group() as tasks:
        assert isinstance(reader, QueueReader)
        sent = 0

        async def send_all() -> None:
            nonlocal sent
            for value in range(10):
                await reader.send(value)
                sent += 1
            await reader.end()

        tasks.start_soon(send_all)
        await anyio.wait_all_tasks_blocked()
        assert (sent, reader.behind()) == (3, 3)
        assert await received(reader) == list(range(10))


async def test_nothing_is_taken_after_the_end() -> None:
    async with MemorySource().open(CONTEXT) as reader:
        assert isinstance(reader, QueueReader)
        await reader.send(1)
        await reader.end()
        await reader.end()
        with pytest.raises(RunStoppedError, match="readings"):
            await reader.send(2)
        assert await received(reader) == [1]


async def test_closing_frees_a_sender_that_waits() -> None:
    async def send_two(reader: QueueReader) -> None:
        await reader.send(1)
        with pytest.raises(RunStoppedError):
            await reader.send(2)

    async with anyio.create_task_group() as tasks, MemorySource(capacity=1).open(CONTEXT) as reader:
        assert isinstance(reader, QueueReader)
        tasks.start_soon(send_two, reader)
        await anyio.wait_all_tasks_blocked()


def test_records_must_be_iterable() -> None:
    with pytest.raises(GraphError, match="expected an iterable"):
        MemorySource(records=3)


async def test_a_sink_waits_for_its_consumer_and_ends_with_the_stream() -> None:
    steps: list[Any] = []

    async def deliver(writer: QueueWriter) -> None:
        await writer.write(batch_of(5))
        await writer.flush()
        steps.append("delivered")
        writer.close()

    async with MemorySink(capacity=2).open(CONTEXT) as writer, anyio.create_task_group() as tasks:
        assert isinstance(writer, QueueWriter)
        tasks.start_soon(deliver, writer)
        await anyio.wait_all_tasks_blocked()
        assert repr(writer) == "<QueueWriter readings: 2 waiting>"
        async for record in writer.records():
            steps += [(record.value, record.position)]
            await anyio.wait_all_tasks_blocked()
    taken = [(value, {"index": value}) for value in range(5)]
    assert steps == [*taken, "delivered"]


async def test_what_nobody_takes_is_counted() -> None:
    async with MemorySink(capacity=2).open(CONTEXT) as writer:
        assert isinstance(writer, QueueWriter)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(writer.write, batch_of(5))
            await anyio.wait_all_tasks_blocked()
            writer.abandon()
        await writer.write(batch_of(3))
        await writer.flush()
        assert writer.num_discarded == 8


async def test_there_is_one_consumer() -> None:
    async with MemorySink().open(CONTEXT) as writer, anyio.create_task_group() as tasks:
        assert isinstance(writer, QueueWriter)

        async def take() -> None:
            async for _ in writer.records():
                pass

        tasks.start_soon(take)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(anyio.BusyResourceError):
            await anext(writer.records())
        tasks.cancel_scope.cancel()
