import json
from contextlib import asynccontextmanager

import anyio
import pytest
from streamflow_lines.difference import Difference
from streamflow_lines.tcp import TcpSink, TcpSource

from streamflow.records import Record
from streamflow.testing import check_operator, check_sink, check_source

pytestmark = pytest.mark.anyio
VALUES = [{"x": number} for number in range(100)]


@asynccontextmanager
async def listening(handle):
    """Listen on a free port; give its number."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, handle)
        yield listener.extra(anyio.abc.SocketAttribute.local_port)
        tasks.cancel_scope.cancel()


async def test_the_source_conforms():
    async def send(stream):
        async with stream:
            await stream.send(b"\n".join(json.dumps(value).encode() for value in VALUES))

    async with listening(send) as port:
        await check_source(lambda: TcpSource(port=port), VALUES)


async def test_the_sink_conforms():
    received = bytearray()

    async def receive(stream):
        async with stream:
            async for chunk in stream:
                received.extend(chunk)

    expected = iter([100, 102])

    async def read_back():
        count = next(expected)
        while received.count(b"\n") < count:
            await anyio.lowlevel.checkpoint()
        return [json.loads(line) for line in received.splitlines()]

    async with listening(receive) as port:
        bad = {"x": float("nan")}
        await check_sink(lambda: TcpSink(port=port), read_back, VALUES, bad=bad)


def test_the_operator_goes_on_from_a_checkpoint():
    values = [Record({"x": x}, key=key) for x, key in [(1, "a"), (5, "b"), ("no", "a"), (4, "a")]]
    check_operator(lambda: Difference(inputs=["in"], field="x"), values)
