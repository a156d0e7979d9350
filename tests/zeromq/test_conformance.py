from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
import zmq

from streamflow.contracts import Context, Reader
from streamflow.testing import check_live_source, check_sink, check_source, check_stalled_sink
from streamflow_connectors.zeromq import ZeroMqSink, ZeroMqSource
from tests.zeromq.peers import peer

pytestmark = pytest.mark.anyio

VALUES = [{"x": index, "y": f"text {index}"} for index in range(700)]


class Fed(ZeroMqSource):
    """Gets `VALUES` from a sender of its own."""

    @asynccontextmanager
    async def open(self, context: Context) -> AsyncIterator[Reader]:
        with peer(zmq.XPUB if self.socket == "sub" else zmq.PUSH, {zmq.SNDHWM: 0}) as sender:
            sender.bind(self.connect[0])
            async with super().open(context) as reader:
                if self.socket == "sub":
                    assert sender.recv() == b"\x01"  # the subscription
                for value in VALUES:
                    sender.send(orjson.dumps(value))
                yield reader


@pytest.mark.slow
@pytest.mark.parametrize("socket", ["pull", "sub"])
async def test_a_stream_that_ends_conforms(folder: Path, socket: Any) -> None:
    endpoint = f"ipc://{folder}/feed"
    # It ends when no busy machine could take that for a pause.
    await check_source(lambda: Fed(socket=socket, connect=(endpoint,), end_after=3.0), VALUES)


@pytest.mark.parametrize("socket", ["pull", "sub"])
async def test_a_live_stream_conforms(folder: Path, socket: Any) -> None:
    with peer(zmq.PUSH if socket == "pull" else zmq.XPUB) as sender:
        sender.bind(f"ipc://{folder}/feed")
        is_subscribed = socket == "pull"

        async def send(_reader: Reader, value: Any) -> None:
            nonlocal is_subscribed
            if not is_subscribed:
                is_subscribed = sender.recv() == b"\x01"
            sender.send(orjson.dumps(value))

        endpoint = f"ipc://{folder}/feed"
        await check_live_source(
            lambda: ZeroMqSource(socket=socket, connect=(endpoint,)), send, VALUES[:3]
        )


async def test_a_sink_conforms(folder: Path) -> None:
    delivered: list[Any] = []
    expected = iter([len(VALUES), len(VALUES) + 2])
    with peer(zmq.PULL, {zmq.RCVHWM: 0}) as receiver:
        receiver.bind(f"ipc://{folder}/feed")

        async def read_back() -> list[Any]:
            count = next(expected)
            while len(delivered) < count:
                delivered.append(orjson.loads(receiver.recv_multipart()[1]))
            return delivered

        await check_sink(
            lambda: ZeroMqSink(socket="push", connect=(f"ipc://{folder}/feed",)),
            read_back,
            VALUES,
            bad={"x": float("nan"), "y": ""},
        )
        assert not receiver.poll(0)


async def test_a_sink_without_receivers_waits(folder: Path) -> None:
    for options in ({"bind": (f"ipc://{folder}/a",)}, {"connect": (f"ipc://{folder}/b",)}):
        declared = {"socket": "push", "linger": 0.0, "high_water_mark": 10**6, **options}
        await check_stalled_sink(lambda given=declared: ZeroMqSink(**given), VALUES)  # type: ignore[misc]


async def test_a_sink_whose_receiver_is_full_waits(folder: Path) -> None:
    with peer(zmq.PULL, {zmq.RCVHWM: 1}) as receiver:
        receiver.bind(f"ipc://{folder}/feed")
        values = [{"x": "x" * 2**14}] * 100
        sink = ZeroMqSink(
            socket="push", connect=(f"ipc://{folder}/feed",), high_water_mark=10, linger=0.0
        )
        await check_stalled_sink(lambda: sink, values)
