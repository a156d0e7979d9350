"""Stopping while a broker is not there: soon, and without a trace."""

import asyncio
import gc
import socket
from contextlib import suppress

import anyio
import anyio.lowlevel
import pytest
from anyio import to_thread

from streamflow.errors import StreamflowError
from streamflow.graph import Graph
from streamflow.nodes import Source
from streamflow_connectors.demo.embedded_kafka import EmbeddedKafka
from streamflow_connectors.kafka import KafkaSource
from tests.kafka.clients import produce
from tests.runtime.graphs import graph_of, sink
from tests.traces import PLENTY, traceless

pytestmark = pytest.mark.kafka


def kafka(address: str) -> Source:
    return KafkaSource(bootstrap_servers=address, topics=("t",), connect_timeout=3600, group="g")


def test_connecting_to_a_broker_that_does_not_answer_ends_when_asked() -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            graph = graph_of(kafka(f"127.0.0.1:{silent.getsockname()[1]}"), sink())
            with anyio.fail_after(PLENTY):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(enter, graph)
                    connection, _ = await to_thread.run_sync(silent.accept)
                    with connection:
                        tasks.cancel_scope.cancel()

    traceless(main)


async def enter(graph: Graph) -> None:
    async with graph.open():
        pytest.fail("the block was entered")


def test_trying_again_for_a_broker_that_went_away_ends_when_asked() -> None:
    with EmbeddedKafka() as broker:
        broker.create_topic("t")
        anyio.run(produce, broker.address, "t", [b'{"n": 1}'] * 10)

        async def main() -> None:
            out = sink()
            graph = graph_of(kafka(broker.address), out, shutdown_timeout=1.0)
            with anyio.fail_after(PLENTY):
                async with graph.open() as run:
                    while not out.probe.values:
                        await anyio.lowlevel.checkpoint()
                    broker.set_reachable(False)
                    with suppress(StreamflowError):
                        await run.stop()
            assert len(asyncio.all_tasks()) == 1
            broker.set_reachable(True)

        anyio.run(main)
        gc.collect()  # warns of clients that are not closed
