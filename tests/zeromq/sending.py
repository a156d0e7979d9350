"""A process that pushes numbered records: ``python -m tests.zeromq.sending ENDPOINT COUNT``."""

from __future__ import annotations

import sys

import anyio

from streamflow.contracts import Context
from streamflow.records import Batch, Partition
from streamflow_connectors.zeromq import ZeroMqSink

BATCH = 1000


async def main(endpoint: str, count: int) -> None:
    """Push records whose values count from zero."""
    sink = ZeroMqSink(socket="push", connect=(endpoint,), linger=60.0)
    async with sink.open(Context("out")) as writer:
        for start in range(0, count, BATCH):
            numbers = list(range(start, min(start + BATCH, count)))
            partitions = [Partition("test")] * len(numbers)
            await writer.write(Batch({"n": numbers}, partitions, numbers, keys=numbers))
        await writer.flush()


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], int(sys.argv[2]))
