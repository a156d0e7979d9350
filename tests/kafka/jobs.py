"""Graphs that the tests run in processes of their own, to kill, to stop and to fence off."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager

import anyio.lowlevel

from streamflow.errors import StreamflowError
from streamflow.graph import Graph
from streamflow.nodes import Context, Fetch, Reader
from streamflow.operators.functions import Map
from streamflow.records import Partition
from streamflow_connectors.kafka import KafkaSink, KafkaSource

PAUSE = 0.001  # seconds for each record, so that a job can be killed in the middle of its stream


class Uncommitted(KafkaSource):
    """A source whose positions are stored by the sink alone."""

    @asynccontextmanager
    async def open(self, context: Context) -> AsyncIterator[Reader]:
        async with super().open(context) as reader:
            yield _UncommittedReader(reader)


class _UncommittedReader:
    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def receive(self) -> Fetch:
        return await self._reader.receive()

    async def commit(self, positions: Mapping[Partition, int]) -> None:
        await anyio.lowlevel.checkpoint()

    def behind(self) -> int | None:
        return self._reader.behind()


def twice(value: int) -> int:
    time.sleep(PAUSE)
    return 2 * value


def exactly_once(address: str, topic_in: str, topic_out: str, *, stop_at_end: bool) -> Graph:
    source = Uncommitted(
        bootstrap_servers=address,
        topics=(topic_in,),
        partitions=(0,),
        group=f"of-{topic_in}",
        stop_at_end=stop_at_end,
        max_poll_records=100,
    )
    sink = KafkaSink(
        bootstrap_servers=address, inputs=("twice",), topic=topic_out, delivery="exactly_once"
    )
    return Graph(
        name="job",
        sources={"in": source},
        operators={"twice": Map(inputs=("in",), function=twice)},
        sinks={"out": sink},
    )


@contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run this module in a process that is gone when the block is left."""
    command = [sys.executable, "-m", "tests.kafka.jobs", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


async def run(graph: Graph) -> None:
    """Run a graph to its end, or until a signal asks it to stop."""
    is_asked = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, is_asked.set)

    async def stop_when_asked() -> None:
        await is_asked.wait()
        await opened.stop()

    async with graph.open() as opened:
        stopping = asyncio.create_task(stop_when_asked())
        try:
            await opened.wait()
        finally:
            stopping.cancel()


def main() -> int:
    address, topic_in, topic_out, end = sys.argv[1:]
    try:
        asyncio.run(run(exactly_once(address, topic_in, topic_out, stop_at_end=end == "end")))
    except StreamflowError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
