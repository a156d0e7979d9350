"""How fast is online learning: compiled, by the best eager loop, and by hand in C++?

    python benchmarks/learning.py [--rounds N] [--seconds S] [--memory] [NETWORK ...]

One update per sample with plain SGD, samples waiting. Every way runs for S seconds a round; rounds
are interleaved, so that what else the machine does meets all alike. Prints medians with their
spread (lowest to highest) and the ratios of medians. The eager loop is PyTorch's own with one
thread and with two, whichever is faster; the loop in C++ is made for each perceptron, with one
thread (-O3 -march=native -ffast-math, update fused into backward).
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamflow.pipeline import Pipeline

RATE = 0.001
WAITING = 256
SOURCE = Path(__file__).with_name("learning_mlp.cpp")


class Recurrent(nn.Module):
    """A GRU cell with a linear head; its state goes on from sample to sample."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(16, 32), nn.Linear(32, 1)
        self.register_buffer("h", torch.zeros(1, 32))
        self.h: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Take one sample of the sequence."""
        self.h = self.cell(x, self.h)
        return self.head(self.h)  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """Two layers of a transformer's encoder, and the mean of its tokens."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, 4, 256, dropout=0.0, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Take the tokens of one sample."""
        return self.head(self.body(x).mean(1))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Network:
    """A network of the table.

    Attributes:
        widths: Of a perceptron, from its input to its output; none for another network.
        aims: Smallest ratios to the eager loop and to the loop in C++.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    outputs: int
    aims: tuple[float, float | None]
    widths: tuple[int, ...] = ()
    state: tuple[str, ...] = ()


def perceptron(*widths: int) -> nn.Module:
    """Return layers with tanh between them, ReLU in a network of two."""
    activation = nn.ReLU if len(widths) == 3 else nn.Tanh
    parts = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), activation())]
    return nn.Sequential(*parts[:-1])


def convolutions() -> nn.Module:
    """Return three blocks of convolution, ReLU and pooling."""
    widths = (3, 16, 32, 64)
    blocks = [
        part
        for a, b in pairwise(widths)
        for part in (nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    ]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(64 * 4 * 4, 10))


def _perceptron(aims: tuple[float, float], *widths: int) -> Network:
    return Network(partial(perceptron, *widths), widths[:1], widths[-1], aims, widths)


NETWORKS = {
    "mlp-16-32-1": _perceptron((40, 0.1), 16, 32, 1),
    "mlp-64x8": _perceptron((14, 0.45), *[64] * 9),
    "mlp-256x8": _perceptron((6, 1.0), *[256] * 9),
    "mlp-1024x8": _perceptron((3, 0.8), *[1024] * 9),
    "cnn": Network(convolutions, (3, 32, 32), 10, (1.2, None)),
    "gru-32": Network(Recurrent, (16,), 1, (10, None), state=("h",)),
    "transformer": Network(Encoder, (16, 64), 1, (3, None)),
}

Run = Callable[[float], float]
"""Learns for some seconds and returns samples per second."""


def eager_loop(network: Network, num_threads: int) -> Run:
    """Return the plain loop of PyTorch."""
    torch.manual_seed(0)
    net = network.make()
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
    inputs, targets = stream(network)
    rows = list(zip(torch.split(inputs, 1), torch.split(targets, 1), strict=True))

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        loss = F.mse_loss(net(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if network.state:
            net.get_buffer("h").detach_()

    def run(seconds: float) -> float:
        torch.set_num_threads(num_threads)
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            for x, y in rows[done % WAITING : done % WAITING + 16]:
                step(x, y)
            done += 16
        return done / (time.perf_counter() - start)

    return run


def compiled(network: Network, num_threads: int) -> tuple[Run, Pipeline]:
    """Return the pipeline with all its code compiled."""
    torch.manual_seed(0)
    torch.set_num_threads(num_threads)
    pipeline = Pipeline(
        network.make(),
        loss=F.mse_loss,
        optimizer=partial(torch.optim.SGD, lr=RATE),
        state=network.state,
        compile=True,
    )
    inputs, targets = stream(network)
    for _ in range(3):
        pipeline.process(inputs, targets)

    def run(seconds: float) -> float:
        torch.set_num_threads(num_threads)
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            pipeline.process(inputs, targets)
            done += WAITING
        return done / (time.perf_counter() - start)

    return run, pipeline


def by_hand(network: Network, folder: Path) -> Run:
    """Return the loop in C++."""
    program = folder / "mlp"
    if not program.exists():
        flags = ["-O3", "-march=native", "-ffast-math"]
        subprocess.run(["g++", *flags, str(SOURCE), "-o", str(program)], check=True)
    is_relu = str(int(len(network.widths) == 3))

    def run(seconds: float) -> float:
        command = [str(program), str(seconds), is_relu, *map(str, network.widths)]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    return run


def stream(network: Network) -> tuple[Tensor, Tensor]:
    """Return inputs and targets that wait."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(WAITING, *network.shape, generator=generator)
    return inputs, torch.randn(WAITING, network.outputs, generator=generator)


def ways(network: Network, folder: Path) -> Iterator[tuple[str, Run]]:
    """Yield every way to learn, with its name."""
    for num_threads in (1, 2):
        yield f"eager, {num_threads} thread(s)", eager_loop(network, num_threads)
    run, pipeline = compiled(network, 1)
    print(f"  {pipeline!r}")
    yield "compiled", run
    if network.widths:
        yield "C++", by_hand(network, folder)


def measure(name: str, network: Network, rounds: int, seconds: float, folder: Path) -> str:
    """Print every way's rate, and return a row of the table."""
    print(name, flush=True)
    runs = dict(ways(network, folder))
    rates: dict[str, list[float]] = {way: [] for way in runs}
    for _ in range(rounds):
        for way, run in runs.items():
            rates[way].append(run(seconds))
    middle = {way: statistics.median(found) for way, found in rates.items()}
    for way, found in rates.items():
        print(f"  {way:<20}{middle[way]:>12,.0f}/s   ({min(found):,.0f} to {max(found):,.0f})")
    best = max(rate for way, rate in middle.items() if way.startswith("eager"))
    eager_aim, hand_aim = network.aims
    row = f"| {name} | {best:,.0f} | {middle['compiled']:,.0f} | "
    row += f"{middle['compiled'] / best:.1f} (≥ {eager_aim:g}) | "
    if "C++" not in middle:
        return row + "| |"
    return (
        row + f"{middle['C++']:,.0f} | {middle['compiled'] / middle['C++']:.2f} (≥ {hand_aim:g}) |"
    )


def main() -> None:
    """Measure the networks that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), metavar="NETWORK")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            measure(name, NETWORKS[name], arguments.rounds, arguments.seconds, Path(folder))
            for name in arguments.networks
        ]
    print("\n| network | best eager loop, samples/s | compiled | ratio | C++ by hand | ratio |")
    print("|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
