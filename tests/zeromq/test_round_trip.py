from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from streamflow.testing import ListSink, ListSource, SinkProbe
from streamflow.testing.connectors import make_batch
from streamflow_connectors.zeromq import ZeroMqSink, ZeroMqSource
from tests.runtime.graphs import graph_of
from tests.traces import PLENTY
from tests.zeromq.peers import free_port, reading, receive_values, writing

COUNT = 200_000


@pytest.mark.slow
def test_two_processes_exchange_200_000_records_in_order(folder: Path) -> None:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "tests.zeromq.sending", endpoint, str(COUNT)]

    async def main() -> list[int]:
        numbers: list[int] = []
        async with reading(folder, bind=(endpoint,)) as reader:
            while len(numbers) < COUNT:
                batch = (await reader.receive()).batch
                numbers += batch.column("n")
                assert batch.keys == batch.column("n")
            assert reader.report() == {"records lost": 0, "records repeated or late": 0}
        return numbers

    with subprocess.Popen(command) as process:
        assert anyio.run(main) == list(range(COUNT))
        assert process.wait(PLENTY) == 0


@pytest.mark.anyio
async def test_one_graph_hands_on_to_another(folder: Path) -> None:
    probe = SinkProbe()
    endpoint = f"ipc://{folder}/feed"
    values = tuple({"n": number} for number in range(1000))
    sending = graph_of(
        ListSource(values=values), ZeroMqSink(inputs=("in",), socket="push", connect=(endpoint,))
    )
    receiving = graph_of(
        ZeroMqSource(socket="pull", bind=(endpoint,)), ListSink(inputs=("in",), probe=probe)
    )
    with anyio.fail_after(PLENTY):
        async with receiving.open() as run:
            async with sending.open() as sent:
                await sent.wait()
            while len(probe.values) < len(values):  # the sink is no part of this
                await anyio.lowlevel.checkpoint()
            await run.stop()
            report = run.stats().nodes["in"].report
    assert probe.values == list(values)
    assert report == {"records lost": 0, "records repeated or late": 0}


@pytest.mark.anyio
@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "*"])
async def test_records_travel_by_tcp(folder: Path, host: str) -> None:
    try:
        port = free_port(host.strip("[]").replace("*", "127.0.0.1"))
    except OSError:
        pytest.skip(f"needs the address {host}")
    peer = host.replace("*", "localhost")
    async with (
        reading(folder, bind=(f"tcp://{host}:{port}",)) as reader,
        writing(folder, connect=(f"tcp://{peer}:{port}",)) as writer,
    ):
        await writer.write(make_batch([1, 2]))
        assert await receive_values(reader, 2) == [1, 2]
