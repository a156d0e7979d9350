"""Stopping while nobody is at the other end: soon, and without a trace."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
import zmq

from streamflow.errors import StreamflowError
from streamflow_connectors.zeromq import ZeroMqSink, ZeroMqSource
from tests.runtime.graphs import graph_of, numbers, sink
from tests.traces import PLENTY, traceless
from tests.zeromq.peers import FEED, free_port, peer, reading


def test_a_source_that_waits_leaves_nothing(folder: Path) -> None:
    endpoint = f"ipc://{folder}/feed"

    async def main() -> None:
        out = sink()
        graph = graph_of(ZeroMqSource(socket="pull", bind=(endpoint,)), out)
        with anyio.fail_after(PLENTY), peer(zmq.PUSH) as sender:
            sender.connect(endpoint)
            async with graph.open() as run:
                sender.send(b"1")
                while not out.probe.values:  # the sink is no part of this
                    await anyio.lowlevel.checkpoint()
                await run.stop()

    traceless(main)


def test_a_sink_without_receivers_leaves_nothing(folder: Path) -> None:
    async def main() -> None:
        out = ZeroMqSink(
            inputs=("in",), socket="push", bind=(f"ipc://{folder}/feed",), linger=PLENTY
        )
        graph = graph_of(numbers(10), out, shutdown_timeout=0.1)
        with anyio.fail_after(PLENTY):
            async with graph.open() as run:
                while not run.stats().nodes["out0"].received:
                    await anyio.lowlevel.checkpoint()
                with suppress(StreamflowError):
                    await run.stop()

    traceless(main)


@pytest.mark.anyio
async def test_an_endpoint_is_free_once_it_is_closed(folder: Path) -> None:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    for _ in range(3):
        async with reading(folder, bind=(endpoint, FEED)):
            pass
