import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from streamflow.errors import NodeError, RunStoppedError
from streamflow.graph import Graph
from streamflow.records import Record
from streamflow.testing import Gate
from streamflow_connectors.memory import MemorySink, MemorySource
from tests.runtime.graphs import BlockingTimes, Times, graph_of, is_closed, numbers, sink


def pushed(operator: type[Times] = Times, *, capacity: int = 1000, **options: Any) -> Graph:
    """Return a graph from and to the application."""
    return Graph(
        name="embedded",
        sources={"in": MemorySource(capacity=capacity)},
        operators={"double": operator(inputs=("in",), **options)},
        sinks={"out": MemorySink(inputs=("double",), capacity=capacity)},
    )


@pytest.mark.anyio
@pytest.mark.parametrize("kind", [Times, BlockingTimes])
async def test_records_are_pushed_in_and_pulled_out(kind: type[Times]) -> None:
    with anyio.fail_after(10):
        async with pushed(kind).open() as run:
            await run.send("in", 1, key="a", timestamp_ms=5, headers=(("h", b"x"),))
            await run.send("in", 2)
            await run.end("in")
            await run.end("in")
            records = [record async for record in run.records("out")]
            await run.wait()
    assert records == [
        Record(2, "a", 5, (("h", b"x"),), {"index": 0}),
        Record(4, None, None, (), {"index": 1}),
    ]


@pytest.mark.slow
@pytest.mark.anyio
async def test_pushing_waits_for_room() -> None:
    sent = []

    async with pushed(capacity=2).open() as run, anyio.create_task_group() as tasks:

        async def push() -> None:
            for number in range(20_000):
                await run.send("in", number)
                sent.append(number)
            await run.end("in")

        tasks.start_soon(push)
        await anyio.wait_all_tasks_blocked()
        assert len(sent) < 10_000
        count = 0
        async for record in run.records("out"):
            assert record.value == 2 * count
            count += 1
        assert count == 20_000


@pytest.mark.anyio
@pytest.mark.parametrize("is_asynchronous", [False, True])
async def test_iterables_run_through(is_asynchronous: bool) -> None:
    async def generate() -> AsyncIterator[int]:
        for number in range(100):
            yield number

    records = generate() if is_asynchronous else (number for number in range(100))
    out = sink()
    with anyio.fail_after(10):
        async with graph_of(MemorySource(records=records), out).open() as run:
            await run.wait()
    assert out.probe.values == list(range(100))


@pytest.mark.anyio
async def test_a_stopped_run_takes_no_more_records() -> None:
    out = sink()
    async with graph_of(MemorySource(), out).open() as run:
        await run.send("in", 1)
        await anyio.wait_all_tasks_blocked()
        await run.stop()
        with pytest.raises(RunStoppedError, match="in: expected a running graph, found one that"):
            await run.send("in", 2)
    assert out.probe.values == [1]


@pytest.mark.anyio
async def test_what_was_pushed_before_stopping_is_delivered() -> None:
    sent: list[int] = []
    out = sink(gate=Gate(is_open=False))
    with anyio.fail_after(10):
        async with graph_of(MemorySource(), out).open() as run, anyio.create_task_group() as tasks:

            async def push() -> None:
                with suppress(RunStoppedError):
                    while True:
                        await run.send("in", len(sent))
                        sent.append(len(sent))

            tasks.start_soon(push)
            await anyio.wait_all_tasks_blocked()  # all buffers are full
            tasks.start_soon(run.stop)
            await anyio.wait_all_tasks_blocked()
            out.gate.open()
    assert out.probe.values == sent
    assert out.probe.num_delivered == len(sent) > 0


@pytest.mark.anyio
async def test_what_was_pushed_before_leaving_is_delivered() -> None:
    out = sink()
    async with graph_of(MemorySource(), out).open() as run:
        for number in range(5):
            await run.send("in", number)
    assert out.probe.values == list(range(5))


@pytest.mark.anyio
async def test_an_endless_iterable_ends_when_the_run_stops() -> None:
    async def generate() -> AsyncIterator[int]:
        number = 0
        while True:
            yield number
            number += 1

    out = sink()
    with anyio.fail_after(10):
        async with graph_of(MemorySource(records=generate()), out).open() as run:
            while not out.probe.values:
                await anyio.lowlevel.checkpoint()
            await run.stop()
    assert out.probe.values == list(range(len(out.probe.values)))


@pytest.mark.anyio
async def test_an_ended_source_takes_no_more_records() -> None:
    async with graph_of(MemorySource(), sink()).open() as run:
        await run.end("in")
        with pytest.raises(RunStoppedError, match="in: expected"):
            await run.send("in", 2)


@pytest.mark.anyio
async def test_whoever_waits_for_room_is_told_that_the_run_has_ended() -> None:
    told = []
    async with pushed(capacity=1, error=ValueError("torn")).open() as run:

        async def push() -> None:
            try:
                while True:
                    await run.send("in", 1)
            except RunStoppedError as error:
                told.append(error)

        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(push)
                with pytest.raises(NodeError, match="double: ValueError: torn"):
                    await run.wait()
    assert len(told) == 1


@pytest.mark.anyio
async def test_reading_a_failed_runs_records_raises_the_failure() -> None:
    async with pushed(error=ValueError("torn")).open() as run:
        await run.send("in", 1)
        with anyio.fail_after(10), pytest.raises(NodeError, match="double: ValueError: torn"):
            await anext(run.records("out"))


@pytest.mark.anyio
async def test_leaving_with_unread_records_does_not_hang() -> None:
    with anyio.fail_after(10):
        async with pushed(capacity=1).open() as run, anyio.create_task_group() as tasks:
            tasks.start_soon(run.send, "in", 1)
            tasks.start_soon(run.send, "in", 2)
            tasks.start_soon(run.send, "in", 3)
            await anyio.wait_all_tasks_blocked()
    assert run.stats().state == "finished"


@pytest.mark.anyio
async def test_no_task_is_left_behind() -> None:
    before = {task.id for task in anyio.get_running_tasks()}
    async with graph_of(numbers(10, stays_open=True), sink()).open() as run:
        await anyio.wait_all_tasks_blocked()
        assert {task.id for task in anyio.get_running_tasks()} > before
        await run.stop()
    async with pushed(BlockingTimes).open() as run:
        await run.end("in")
        await run.wait()
    assert {task.id for task in anyio.get_running_tasks()} == before


def test_no_thread_outlives_the_event_loop() -> None:
    before = set(threading.enumerate())

    async def main() -> None:
        async with pushed(BlockingTimes).open() as run:
            await run.send("in", 1)
            await run.end("in")
            assert [record.value async for record in run.records("out")] == [2]

    anyio.run(main)  # trio keeps idle threads for a while
    for thread in set(threading.enumerate()) - before:
        thread.join(10)  # it was told to end, and may take a moment
    assert set(threading.enumerate()) == before


def test_an_application_on_plain_asyncio_may_cancel_it() -> None:
    source, out = numbers(30, stays_open=True), sink(gate=Gate(is_open=False))

    async def embed() -> None:
        async with graph_of(source, out).open() as run:
            await run.wait()

    async def main() -> int:
        task = asyncio.create_task(embed())
        await out.gate.wait_until_held()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(embed(), 0.05)
        return len(asyncio.all_tasks())

    assert asyncio.run(main()) == 1
    assert is_closed(source, out)
    assert source.probe.commits == []
