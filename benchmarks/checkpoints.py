"""What does a checkpoint cost the stream?

    python benchmarks/checkpoints.py [SECONDS] [ROUNDS]

Each network learns a generated stream for so many seconds (10) without checkpoints and with one
every second, in turn, several times (3). Prints the rates and their ratio, the median of the rounds
with the lowest and the highest; for how long a checkpoint holds the stream up; and what follows for
the default of one every 30 s: a thirtieth of the difference that one every second makes.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import anyio
import torch

from streamflow import Graph, Model
from streamflow_connectors.files import FileSink
from streamflow_connectors.memory import MemorySource

DEFAULT_SECONDS = 30
IN_FLIGHT = 64  # few records, so that the slow networks end soon


@dataclass(frozen=True)
class Case:
    """A network of equal layers and how it learns."""

    name: str
    width: int
    depth: int
    optimizer: dict[str, Any]


CASES = (
    Case("16-32-1, SGD", 32, 1, {"SGD": {"lr": 0.01}}),
    Case("256x8, Adam", 256, 8, {"Adam": {"lr": 1e-4}}),
    Case("1024x8, SGD", 1024, 8, {"SGD": {"lr": 1e-4}}),
    Case("1024x8, Adam", 1024, 8, {"Adam": {"lr": 1e-5}}),
)


@dataclass(frozen=True)
class Result:
    """Of one run: records a second, checkpoints taken, and seconds for which they stopped it."""

    rate: float
    taken: int
    paused: float


async def readings(seconds: float) -> AsyncIterator[dict[str, Any]]:
    """Yield records of 16 numbers and a target for so long."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(256, 17, generator=generator).tolist()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for row in rows:
            yield {"x": row[:16], "y": row[16]}


def graph_of(case: Case, seconds: float, folder: str | None) -> Graph:
    """Return a graph that learns a stream, with checkpoints if there is a folder for them."""
    layers: list[Any] = []
    for size in [16, *[case.width] * (case.depth - 1)]:
        layers += [{"Linear": [size, case.width]}, "ReLU"]
    return Graph(
        name="cost",
        checkpoint={"path": folder, "every": "1s"} if folder else None,
        sources={"in": MemorySource(records=readings(seconds), capacity=IN_FLIGHT)},
        models={
            "m": Model(
                inputs=["in"],
                network=[*layers, {"Linear": [case.width, 1]}],
                features="x",
                target="y",
                optimizer=case.optimizer,
                buffer={"records": IN_FLIGHT},
                compile=False,
            )
        },
        sinks={"out": FileSink(inputs=["m"], path=f"{folder or tempfile.gettempdir()}/cost.jsonl")},
    )


async def measure(case: Case, seconds: float, folder: str | None) -> Result:
    """Run a graph to its end."""
    async with graph_of(case, seconds, folder).open() as run:
        await run.wait()
        stats = run.stats()
    made = stats.checkpoints
    rate = stats.processed / stats.elapsed
    return Result(rate, made.taken, made.paused) if made else Result(rate, 0, 0.0)


def main(seconds: float, rounds: int) -> None:
    """Measure all networks and print a row for each."""
    torch.set_num_threads(1)
    print(
        f"{'network':<14}{'without':>10}{'with':>10}  {'with/without':<20}"
        f"{'pause of one':>14}{'cost at 30 s':>14}"
    )
    for case in CASES:
        pairs = []
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as folder:
                without = anyio.run(measure, case, seconds, None)
                pairs.append((without, anyio.run(measure, case, seconds, folder)))
        ratios = sorted(made.rate / without.rate for without, made in pairs)
        ratio = median(ratios)
        pause = median(made.paused / max(made.taken, 1) for _, made in pairs)
        print(
            f"{case.name:<14}{median(pair[0].rate for pair in pairs):>8.0f}/s"
            f"{median(pair[1].rate for pair in pairs):>8.0f}/s  "
            f"{ratio:.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f}){1000 * pause:>9.1f} ms"
            f"{(1 / ratio - 1) / DEFAULT_SECONDS:>13.2%}",
            flush=True,
        )


if __name__ == "__main__":
    main(
        float(sys.argv[1]) if len(sys.argv) > 1 else 10.0,
        int(sys.argv[2]) if len(sys.argv) > 2 else 3,
    )
