"""Graphs that the tests run in processes of their own, to kill, to stop and to fence off."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import IO, Any

import anyio.lowlevel
from anyio import to_thread

from streamflow.contracts import Context, Fetch, Reader
from streamflow.errors import StreamflowError
from streamflow.graph import Graph
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


def exactly_once(address: str, topic_in: str, topic_out: str, *, stop_at_end: bool) -> Graph:
    """Twice each number of partition 0."""

    def twice(value: int) -> int:
        time.sleep(PAUSE)
        return 2 * value

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


def member(
    address: str,
    topic_in: str,
    topic_out: str,
    *,
    name: str,
    retry_for: float = 120.0,
    **options: Any,
) -> Graph:
    """Each number with the name of the member of the group that has handled it."""

    def signed(value: int) -> dict[str, Any]:
        time.sleep(PAUSE / 5)
        return {"value": value, "by": name}

    source = KafkaSource(
        bootstrap_servers=address,
        topics=(topic_in,),
        group=f"of-{topic_in}",
        max_poll_records=100,
        retry_for=retry_for,
        **options,
    )
    sink = KafkaSink(
        bootstrap_servers=address, inputs=("signed",), topic=topic_out, retry_for=retry_for
    )
    return Graph(
        name="member",
        sources={"in": source},
        operators={"signed": Map(inputs=("in",), function=signed)},
        sinks={"out": sink},
    )


class Job:
    """A process that runs a graph."""

    def __init__(self, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        self.process = process
        self._log = log

    @property
    def log(self) -> str:
        """What it has written to stderr."""
        self._log.seek(0)
        return self._log.read().decode()

    @property
    def has_ended(self) -> bool:
        return self.process.poll() is not None

    async def wait(self) -> int:
        """Wait for its end; return its exit code."""
        return await to_thread.run_sync(self.process.wait)

    async def stop(self) -> None:
        """Ask it to finish, and check that it does."""
        self.process.terminate()
        assert await self.wait() == 0, self.log


@contextmanager
def running(kind: str, *arguments: str, **options: Any) -> Iterator[Job]:
    """Run a graph in a process that is gone when the block is left."""
    command = [sys.executable, "-m", "tests.kafka.jobs", kind, *arguments, json.dumps(options)]
    # Not a pipe, which would hold the process up when it is full.
    with tempfile.TemporaryFile() as log, subprocess.Popen(command, stderr=log) as process:
        try:
            yield Job(process, log)
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
    kind, *arguments, options = sys.argv[1:]
    kinds: dict[str, Callable[..., Graph]] = {"exactly_once": exactly_once, "member": member}
    graph = kinds[kind](*arguments, **json.loads(options))
    try:
        asyncio.run(run(graph))
    except StreamflowError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
