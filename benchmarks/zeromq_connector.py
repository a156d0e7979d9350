"""How fast the ZeroMQ connector is beside a hand-written loop over pyzmq, with a process between.

Run it as ``python benchmarks/zeromq_connector.py``. Each figure is the best of three, taken in
turn; the loops block, and know neither keys nor numbers.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import anyio
import orjson
import zmq

from streamflow.contracts import Context
from streamflow.records import Batch, Partition
from streamflow_connectors.zeromq import ZeroMqSink, ZeroMqSource
from streamflow_connectors.zeromq.frames import header_packer

RECORDS = 100_000
BATCH = 1000
ROW = {f"x{index}": index / 7 for index in range(8)}
PATIENCE_MS = 60_000


def main() -> None:
    """Print a table of records per second and the connector's share of the loop's rate."""
    print(f"{'':16}{'loop':>12}{'connector':>12}{'ratio':>8}")
    compare("write", partial(writing, loop_write), partial(writing, connector_write))
    for name in ("plain", "numbered"):
        compare(
            f"read {name}",
            partial(reading, loop_read, name),
            partial(reading, connector_read, name),
        )


def compare(name: str, loop: Callable[[], float], connector: Callable[[], float]) -> None:
    """Print the best rates of both."""
    seconds = [(loop(), connector()) for _ in range(3)]
    by_hand, ours = (RECORDS / min(column) for column in zip(*seconds, strict=True))
    print(f"{name:16}{by_hand:12,.0f}{ours:12,.0f}{ours / by_hand:8.2f}", flush=True)


def start(role: str) -> subprocess.Popen[str]:
    """Start the process at the other end; the first line that it prints is its endpoint."""
    command = [sys.executable, __file__, role]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def writing(write: Callable[[str], None]) -> float:
    """Return the seconds until another process has received all that ``write`` sends."""
    with start("take") as process:
        assert process.stdout is not None
        endpoint = process.stdout.readline().strip()
        began = time.perf_counter()
        write(endpoint)
        assert process.stdout.readline() == "done\n"
        return time.perf_counter() - began


def take() -> None:
    """Receive all, and say so."""
    with zmq.Context() as context, context.socket(zmq.PULL) as socket:
        socket.rcvtimeo = PATIENCE_MS
        print(f"tcp://127.0.0.1:{socket.bind_to_random_port('tcp://127.0.0.1')}", flush=True)
        for _ in range(RECORDS):
            socket.recv_multipart()
    print("done", flush=True)


def loop_write(endpoint: str) -> None:
    """Encode and send record by record."""
    with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
        socket.sndhwm = 10_000
        socket.connect(endpoint)
        for _ in range(RECORDS):
            socket.send(orjson.dumps(ROW))


def connector_write(endpoint: str) -> None:
    """Write batches of columns."""
    batch = Batch(
        values={name: [value] * BATCH for name, value in ROW.items()},
        partitions=[Partition("benchmark")] * BATCH,
        offsets=range(BATCH),
        keys=[f"key-{number % 100}" for number in range(BATCH)],
    )

    async def write() -> None:
        async with ZeroMqSink(socket="push", connect=(endpoint,)).open(Context("out")) as writer:
            for _ in range(RECORDS // BATCH):
                await writer.write(batch)

    anyio.run(write)


def reading(read: Callable[[str], float], role: str) -> float:
    """Return the seconds that ``read`` takes for what another process sends."""
    with start(role) as process:
        assert process.stdout is not None
        return read(process.stdout.readline().strip())


def give(*, is_numbered: bool) -> None:
    """Send records that are encoded already, as fast as they are taken."""
    payload = orjson.dumps(ROW)
    pack = header_packer()
    messages = [
        [pack(b"benchmark", number, "key", None, ()), payload] if is_numbered else [payload]
        for number in range(RECORDS)
    ]
    with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
        socket.sndtimeo = PATIENCE_MS
        socket.sndhwm = 10_000
        print(f"tcp://127.0.0.1:{socket.bind_to_random_port('tcp://127.0.0.1')}", flush=True)
        for frames in messages:
            socket.send_multipart(frames)


def loop_read(endpoint: str) -> float:
    """Receive and decode record by record; return the seconds from the first to the last."""
    with zmq.Context() as context, context.socket(zmq.PULL) as socket:
        socket.rcvhwm = 10_000
        socket.connect(endpoint)
        socket.poll()
        began = time.perf_counter()
        for _ in range(RECORDS):
            orjson.loads(socket.recv_multipart()[-1])
        return time.perf_counter() - began


def connector_read(endpoint: str) -> float:
    """Receive batches; return the seconds from the first to the last."""

    async def read() -> float:
        source = ZeroMqSource(socket="pull", connect=(endpoint,))
        async with source.open(Context("in")) as reader:
            count = len((await reader.receive()).batch)
            first, began = count, time.perf_counter()
            while count < RECORDS:
                count += len((await reader.receive()).batch)
            return (time.perf_counter() - began) * RECORDS / (RECORDS - first)

    return anyio.run(read)


if __name__ == "__main__":
    if sys.argv[1:] == ["take"]:
        take()
    elif sys.argv[1:]:
        give(is_numbered=sys.argv[1] == "numbered")
    else:
        main()
