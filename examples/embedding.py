"""A graph inside another program: values in from a list, predictions out of a loop."""

from __future__ import annotations

import anyio

from streamflow import Graph, Model
from streamflow_connectors.memory import MemorySink, MemorySource


async def main() -> None:
    readings = [{"x": number % 10, "y": 3 * (number % 10) + 1} for number in range(500)]
    model = Model(
        inputs=["readings"],
        network=[{"Linear": [1, 1]}],
        features=["x"],
        target="y",
        optimizer={"SGD": {"lr": 0.01}},
    )
    graph = Graph(
        name="line",
        sources={"readings": MemorySource(records=readings)},
        models={"line": model},
        sinks={"predictions": MemorySink(inputs=["line"])},
    )
    async with graph.open() as run:
        async for record in run.records("predictions"):
            print(record.value["prediction"], record.value["target"])


if __name__ == "__main__":
    anyio.run(main)
