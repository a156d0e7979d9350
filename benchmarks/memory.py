"""Does a long stream cost memory? Generated records through a graph without a model.

    python benchmarks/memory.py [RECORDS]

Prints the resident memory of this process after every tenth of the stream.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import anyio

from streamflow import Graph
from streamflow.operators.fields import Select, Standardize
from streamflow_connectors.files import FileSink
from streamflow_connectors.memory import MemorySource


def generated(count: int) -> Iterator[dict[str, float]]:
    """Yield readings of four sensors, printing memory on the way."""
    for index in range(count):
        if index % (count // 10) == 0:
            print(f"{index:>12,} records  {resident_mib():8.1f} MiB", flush=True)
        yield {"a": index * 0.5, "b": float(index % 97), "c": 1.0 / (1 + index), "d": -1.0}


def resident_mib() -> float:
    """Return the resident memory of this process (Linux)."""
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def main(count: int) -> None:
    """Run the graph."""
    graph = Graph(
        name="memory",
        sources={"sensors": MemorySource(records=generated(count))},
        operators={
            "scaled": Standardize(inputs=["sensors"], fields=["a", "b"]),
            "chosen": Select(inputs=["scaled"], fields=["a", "b", "c"]),
        },
        sinks={"out": FileSink(inputs=["chosen"], path=os.devnull, format="jsonl")},
    )
    async with graph.open() as run:
        await run.wait()
        stats = run.stats()
    print(f"{stats.delivered:>12,} records  {resident_mib():8.1f} MiB")
    print(f"{stats.delivered / stats.elapsed:,.0f} records/s")


if __name__ == "__main__":
    anyio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 10_000_000)
