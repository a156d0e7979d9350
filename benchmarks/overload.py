"""What happens when a stream is a hundred times faster than the model? Memory, and every record.

    python benchmarks/overload.py [SECONDS]

Two runs of ten minutes each, unless told otherwise. The model takes 10 ms for a record. First the
edge to it blocks: the source is held up, and all that it gave is delivered. Then three such models
receive 10,000 records a second through edges that drop. Prints the resident memory on the way, and
in the end for each edge what was sent, taken and dropped, beside what its sink has delivered.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator

import anyio
import torch
from torch import Tensor, nn

from streamflow import Graph, Model
from streamflow.nodes import Overflow
from streamflow.runtime.run import Run
from streamflow_connectors.files import FileSink
from streamflow_connectors.memory import MemorySource

MODEL_SECONDS = 0.01
RATE = 100 / MODEL_SECONDS
DROPPING: tuple[Overflow, ...] = ("drop_oldest", "drop_newest", "latest")


class Slow(nn.Module):
    """A layer that takes its time without a processor."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Wait, then map (1, 3) to (1, 1)."""
        time.sleep(MODEL_SECONDS)
        output: Tensor = self.linear(x)
        return output


def readings(seconds: float) -> Iterator[dict[str, float]]:
    """Yield records for so long, at most ``RATE`` a second."""
    start, index = time.monotonic(), 0
    while (elapsed := time.monotonic() - start) < seconds:
        if index > elapsed * RATE:
            time.sleep(0.002)
            continue
        yield {"a": index * 0.5, "b": float(index % 97), "c": 1.0, "y": 0.0}
        index += 1


def graph_of(seconds: float, policies: tuple[Overflow, ...]) -> Graph:
    """Return a graph with one model and one sink for each policy."""
    models, sinks = {}, {}
    for policy in policies:
        models[policy] = Model(
            inputs=["in"],
            network=Slow,
            features=["a", "b", "c"],
            target="y",
            optimizer={"SGD": {"lr": 1e-6}},
            overflow=policy,
            compile=False,
        )
        name = f"{policy}_out"
        sinks[name] = FileSink(inputs=[policy], path=os.devnull, format="jsonl")
    sources = {"in": MemorySource(records=readings(seconds))}
    return Graph(name="overload", sources=sources, models=models, sinks=sinks)


async def measure(seconds: float, policies: tuple[Overflow, ...]) -> None:
    """Run a graph to its end, and print what became of every record."""
    async with graph_of(seconds, policies).open() as run, anyio.create_task_group() as tasks:
        tasks.start_soon(watch, run, seconds / 10)
        await run.wait()
        tasks.cancel_scope.cancel()
    nodes = run.stats().nodes
    for policy in policies:
        edge, out = nodes[policy].edges["in"], nodes[f"{policy}_out"]
        is_exact = edge.sent == nodes["in"].received == edge.taken + edge.dropped
        is_exact = is_exact and edge.taken == out.sent and edge.waiting == 0
        print(
            f"{policy:>12}: {edge.sent:,} sent, {edge.taken:,} taken, {edge.dropped:,} dropped, "
            f"{out.sent:,} delivered; adds up: {is_exact}"
        )


async def watch(run: Run, interval: float) -> None:
    """Print memory and progress regularly."""
    while True:
        await anyio.sleep(interval)
        stats = run.stats()
        print(
            f"{stats.elapsed:8.0f} s  {resident_mib():8.1f} MiB  {stats.received:>12,} received",
            flush=True,
        )


def resident_mib() -> float:
    """Return the resident memory of this process (Linux)."""
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def main(seconds: float) -> None:
    """Run both graphs."""
    torch.set_num_threads(1)
    choices: list[tuple[Overflow, ...]] = [("block",), DROPPING]
    for policies in choices:
        print(f"{', '.join(policies)} for {seconds:.0f} s")
        await measure(seconds, policies)


if __name__ == "__main__":
    anyio.run(main, float(sys.argv[1]) if len(sys.argv) > 1 else 600.0)
