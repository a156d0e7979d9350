"""Does a graph learn exactly what a plain PyTorch loop learns? On Elec2, with one stage and two.

Two stages are cut before the activation and after it: that is not the same network of stages, since
a stage computes its sample again, with its present weights, when the gradient comes.

    python benchmarks/electricity.py elec.csv [RECORDS]

Elec2 is a csv file with the columns nswprice, nswdemand, vicprice, vicdemand, transfer, class.
Prints the largest difference of any score from the plain loop's, and both accuracies.
"""

from __future__ import annotations

import csv
import json
import sys
import tempfile
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import anyio
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamflow import Graph, Model
from streamflow_connectors.files import FileSink, FileSource

FEATURES = ("nswprice", "nswdemand", "vicprice", "vicdemand", "transfer")
LEARNING_RATE = 0.05


def main(path: str, count: int | None) -> None:
    """Run graph and loops, print how they compare."""
    torch.set_num_threads(1)
    samples = list(islice(read(Path(path)), count))
    print(f"{len(samples)} records")
    for cut in (None, 1, 2):
        expected = list(plain_loop(samples) if cut is None else delayed_loop(samples, cut))
        stages = 1 if cut is None else [str(cut)]
        found = anyio.run(run_graph, str(Path(path).resolve()), stages)[: len(samples)]
        difference = max(
            abs(a - b)
            for record, scores in zip(found, expected, strict=True)
            for a, b in zip(record["scores"], scores, strict=True)
        )
        right = sum(record["prediction"] == record["target"] for record in found)
        plain_right = sum(
            int(scores[1] > scores[0]) == int(label)
            for scores, (_, label) in zip(expected, samples, strict=True)
        )
        name = "one stage" if cut is None else f"two stages, cut before {cut}"
        lines = [record["source"]["line"] for record in found]
        print(
            f"{name}: {len(found)} predictions, in order: {lines == sorted(lines)}, "
            f"largest difference of a score {difference:.1e}, "
            f"accuracy {right / len(found):.4f}, plain loop {plain_right / len(found):.4f}"
        )


def read(path: Path) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield features (1, 5) and class index (1,) of each row."""
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            x = torch.tensor([[float(row[name]) for name in FEATURES]])
            yield x, torch.tensor([int(row["class"])])


def network() -> nn.Sequential:
    """Return the network as the graph builds it."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 64), nn.ReLU(), nn.Linear(64, 2))


def plain_loop(samples: list[tuple[Tensor, Tensor]]) -> Iterator[list[float]]:
    """Yield each sample's scores before it is learned."""
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=LEARNING_RATE)
    for x, label in samples:
        optimizer.zero_grad()
        output = net(x)
        yield output.detach().softmax(dim=1)[0].tolist()
        F.cross_entropy(output, label).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def delayed_loop(samples: list[tuple[Tensor, Tensor]], cut: int) -> Iterator[list[float]]:
    """Yield the same where the layers before ``cut`` learn each sample one forward late.

    ``1f1b`` with two stages: the first stage forwards sample n + 1 before it applies the gradient
    of sample n, which it takes at that sample's input and its present weights.
    """
    net = network()
    first, second = net[:cut], net[cut:]
    optimizers = [torch.optim.SGD(part.parameters(), lr=LEARNING_RATE) for part in (first, second)]
    waiting: deque[tuple[Tensor, Tensor]] = deque()
    for x, label in samples:
        middle = first(x).detach().requires_grad_()
        if waiting:
            old_x, gradient = waiting.popleft()
            optimizers[0].zero_grad()
            first(old_x).backward(gradient)
            optimizers[0].step()
        optimizers[1].zero_grad()
        output = second(middle)
        yield output.detach().softmax(dim=1)[0].tolist()
        F.cross_entropy(output, label).backward()  # type: ignore[no-untyped-call]
        optimizers[1].step()
        assert middle.grad is not None
        waiting.append((x, middle.grad))


async def run_graph(path: str, stages: int | list[str]) -> list[dict[str, Any]]:
    """Run the graph from file to file, and return its output records."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "predictions.jsonl"
        graph = Graph(
            name="electricity",
            sources={"readings": FileSource(path=path, format="csv")},
            models={
                "direction": Model(
                    inputs=["readings"],
                    network=[{"Linear": [5, 64]}, "ReLU", {"Linear": [64, 2]}],
                    features=FEATURES,
                    target="class",
                    loss="cross_entropy",
                    optimizer={"SGD": {"lr": LEARNING_RATE}},
                    stages=stages,
                    compile=False,
                )
            },
            sinks={"predictions": FileSink(inputs=["direction"], path=str(output))},
        )
        async with graph.open() as run:
            await run.wait()
        lines = await anyio.Path(output).read_text()
        return [json.loads(line) for line in lines.splitlines()]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None)
