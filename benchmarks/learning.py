"""How fast is online learning: compiled, by the best eager loop, and by hand in C++?

    python benchmarks/learning.py [--rounds N] [--seconds S] [NETWORK ...]
    python benchmarks/learning.py --before DIR [--starts K] [--rounds N] [--seconds S] [NETWORK ...]

One update per sample with plain SGD, samples waiting. Every way runs for S seconds a round; rounds
are interleaved, so that what else the machine does meets all alike. Prints medians over the rounds
with their spread (lowest to highest) and the ratios of medians.

The eager loop is PyTorch's own with one thread and with two, whichever is faster; the loop in C++
is made for each perceptron, with one thread (-O3 -march=native -ffast-math, update fused into
backward). The pipeline has one stage or two, these inline or in threads; the ratio takes the best.

Four tables more: two stages beside one, how long `process` of one sample takes beside an eager
step (50th and 99th percentile of a round), prediction without learning, 256 samples waiting, and a
stream whose every second sample has no label.
Where a network has one output, River learns the same stream one record at a time, as its users do:
without a network, which River has none of, but by its linear regression.

The second form asks what a change of the code has cost. DIR is another checkout of this repository;
of the package this file uses nothing but `Pipeline`, so DIR may be much older. Two processes, one
with the package of DIR and one with that beside this file, cut the network at the same places and
keep their compiled code apart. They are asked in turn, way by way, N rounds long; both are started
K times, as a process may be lucky with its memory. Many short rounds tell most: --rounds 15
--seconds 0.1. A row is a way: samples per second by the median of its calls, of the median round;
ratios after/before: the median of all rounds, the lowest, and that of both sides' fastest rounds,
which says most where the machine has other work.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from river import linear_model, preprocessing
from torch import Tensor, nn
from torch.nn import functional as F

import streamflow
from streamflow.errors import PartitionError
from streamflow.pipeline import Pipeline

RATE = 0.001
WAITING = 256
HERE = Path(__file__).resolve()
SOURCE = HERE.with_name("learning_mlp.cpp")
PIPELINES = (
    ("pipeline", 1, "inline"),
    ("pipeline, 2 stages inline", 2, "inline"),
    ("pipeline, 2 stages in threads", 2, "threads"),
)
SINGLE = "process of one sample"
UNCOMPILED = (("uncompiled", 1, "inline"), ("uncompiled, 2 stages inline", 2, "inline"))
FEW = 32
SECOND = "every second: eager, 1 thread", "every second: process"


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


class Window(nn.Module):
    """An LSTM over a window of steps, with a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.LSTM(8, 32, batch_first=True), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Take the steps of one sample."""
        return self.head(self.body(x)[0][:, -1])  # type: ignore[no-any-return]


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
        cut: Where two stages are cut, if not where the plan says. That knows what eager layers
            cost; for the largest perceptron a second forward is more, as memory is the limit.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    outputs: int
    aims: tuple[float, float | None]
    widths: tuple[int, ...] = ()
    state: tuple[str, ...] = ()
    cut: tuple[str, ...] = ()


def perceptron(*widths: int) -> nn.Sequential:
    """Return layers with tanh between them, ReLU in a network of two."""
    activation = nn.ReLU if len(widths) == 3 else nn.Tanh
    parts = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), activation())]
    return nn.Sequential(*parts[:-1])


def with_dropout(*widths: int) -> nn.Module:
    """Return the same with dropout behind every activation."""
    layers = perceptron(*widths)
    parts = [(layer, nn.Dropout(0.1)) if n % 2 else (layer,) for n, layer in enumerate(layers)]
    return nn.Sequential(*(part for layer in parts for part in layer))


def convolutions() -> nn.Module:
    """Return three blocks of convolution, ReLU and pooling."""
    widths = (3, 16, 32, 64)
    blocks = [
        part
        for a, b in pairwise(widths)
        for part in (nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    ]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(64 * 4 * 4, 10))


def _perceptron(aims: tuple[float, float], *widths: int, cut: tuple[str, ...] = ()) -> Network:
    return Network(partial(perceptron, *widths), widths[:1], widths[-1], aims, widths, cut=cut)


NETWORKS = {
    "mlp-16-32-1": _perceptron((40, 0.1), 16, 32, 1),
    "mlp-64x8": _perceptron((14, 0.45), *[64] * 9),
    "mlp-256x8": _perceptron((6, 1.0), *[256] * 9),
    "mlp-1024x8": _perceptron((3, 0.8), *[1024] * 9, cut=("6",)),
    "cnn": Network(convolutions, (3, 32, 32), 10, (1.2, None)),
    "gru-32": Network(Recurrent, (16,), 1, (10, None), state=("h",)),
    "transformer": Network(Encoder, (16, 64), 1, (3, None)),
    "lstm-20-steps": Network(Window, (20, 8), 1, (1, None)),
    "dropout-64x8": Network(partial(with_dropout, *[64] * 9), (64,), 64, (1, None)),
}

Run = Callable[[float], list[float]]
"""Runs for some seconds and returns how long each call took."""

QUANTILES = (0.5, 0.99)


class Way(NamedTuple):
    """A way to learn or predict.

    Attributes:
        samples: How many a call takes.
        note: How its pipeline says that it learns.
    """

    name: str
    samples: int
    run: Run
    note: str = ""


def timed(seconds: float, call: Callable[[int], object]) -> list[float]:
    """Call with 0, 1, 2, ... and return the seconds of each call."""
    times: list[float] = []
    now = start = time.perf_counter()
    while now - start < seconds:
        call(len(times))
        before, now = now, time.perf_counter()
        times.append(now - before)
    return times


def rate(times: list[float], samples: int) -> float:
    """Return samples per second of calls with so many samples."""
    return samples * len(times) / sum(times)


def stream(network: Network) -> tuple[Tensor, Tensor]:
    """Return inputs and targets that wait."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(WAITING, *network.shape, generator=generator)
    return inputs, torch.randn(WAITING, network.outputs, generator=generator)


def eager_step(network: Network, num_threads: int, *, skips: bool = False) -> Run:
    """Return the plain loop of PyTorch, a sample a call; it may only predict every second one."""
    torch.manual_seed(0)
    net = network.make()
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
    inputs, targets = stream(network)
    rows = list(zip(torch.split(inputs, 1), torch.split(targets, 1), strict=True))

    def step(index: int) -> None:
        x, y = rows[index % WAITING]
        if skips and index % 2:
            with torch.no_grad():
                net(x)
            return
        optimizer.zero_grad()
        loss = F.mse_loss(net(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if network.state:
            net.get_buffer("h").detach_()

    def run(seconds: float) -> list[float]:
        torch.set_num_threads(num_threads)
        return timed(seconds, step)

    return run


def built(
    network: Network, stages: int | Sequence[str] = 1, executor: str = "inline", *, compiles: bool
) -> Pipeline:
    """Return a pipeline that learns the network."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return Pipeline(
        network.make(),
        loss=F.mse_loss,
        optimizer=partial(torch.optim.SGD, lr=RATE),
        state=network.state,
        stages=stages,
        executor=executor,
        compile=compiles,
    )


def together(network: Network, pipeline: Pipeline, samples: int = WAITING) -> Run:
    """Return what learns so many waiting samples a call."""
    inputs, targets = (tensor[:samples] for tensor in stream(network))
    for _ in range(3):
        pipeline.process(inputs, targets)

    def run(seconds: float) -> list[float]:
        torch.set_num_threads(1)
        return timed(seconds, lambda _: pipeline.process(inputs, targets))

    return run


def single(network: Network, pipeline: Pipeline) -> Run:
    """Return what learns one sample a call."""
    inputs, targets = stream(network)
    rows = list(zip(torch.split(inputs, 1), torch.split(targets, 1), strict=True))
    pipeline.process(*rows[0])

    def run(seconds: float) -> list[float]:
        torch.set_num_threads(1)
        return timed(seconds, lambda index: pipeline.process(*rows[index % WAITING]))

    return run


def by_hand(network: Network, folder: Path) -> Run:
    """Return the loop in C++; it tells its rate alone."""
    program = folder / "mlp"
    if not program.exists():
        flags = ["-O3", "-march=native", "-ffast-math"]
        subprocess.run(["g++", *flags, str(SOURCE), "-o", str(program)], check=True)
    is_relu = str(int(len(network.widths) == 3))

    def run(seconds: float) -> list[float]:
        command = [str(program), str(seconds), is_relu, *map(str, network.widths)]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return [1 / float(told)]

    return run


def river(network: Network) -> Run:
    """Return River's linear regression with scaled features, a record a call."""
    model = preprocessing.StandardScaler() | linear_model.LinearRegression()
    inputs, targets = stream(network)
    names = [f"x{place}" for place in range(inputs.shape[1])]
    records = [dict(zip(names, row, strict=True)) for row in inputs.tolist()]
    wanted = targets[:, 0].tolist()

    def step(index: int) -> None:
        record = records[index % WAITING]
        model.predict_one(record)
        model.learn_one(record, wanted[index % WAITING])

    return lambda seconds: timed(seconds, step)


def predicting(call: Callable[[int], object]) -> Run:
    """Return what makes calls that learn nothing."""

    def run(seconds: float) -> list[float]:
        torch.set_num_threads(1)
        call(0)  # the first batch pays for its memory
        return timed(seconds, call)

    return run


def predictors(network: Network, learned: Pipeline) -> Iterator[Way]:
    """Yield the ways to predict all that waits without learning; one pipeline has learned."""
    torch.manual_seed(0)
    inputs, _ = stream(network)
    alone = Pipeline(network.make(), state=network.state, compile=False)
    calls = {
        "process, one by one": lambda _: alone.process(inputs),
        "process": lambda _: learned.process(inputs),
        "infer": lambda _: learned.infer(inputs),
    }
    for name, call in calls.items():
        yield Way(f"predicts: {name}", WAITING, predicting(call))


def module_alone(network: Network) -> Run:
    """Return what predicts a batch by the module."""
    torch.manual_seed(0)
    inputs, _ = stream(network)
    net = network.make()

    def plain(_: int) -> None:
        with torch.no_grad():
            net(inputs)

    return predicting(plain)


def every_second(network: Network, pipeline: Pipeline) -> Run:
    """Return what learns every second sample of all that waits."""
    inputs, targets = stream(network)
    is_learned = torch.arange(WAITING) % 2 == 0

    def run(seconds: float) -> list[float]:
        torch.set_num_threads(1)
        return timed(seconds, lambda _: pipeline.process(inputs, targets, learn=is_learned))

    return run


def rivals(network: Network, folder: Path) -> Iterator[Way]:
    """Yield the ways without a pipeline."""
    for num_threads in (1, 2):
        yield Way(f"eager, {num_threads} thread(s)", 1, eager_step(network, num_threads))
    if network.widths:
        yield Way("C++", 1, by_hand(network, folder))
    if network.widths and network.outputs == 1:
        yield Way("river, linear", 1, river(network))
    yield Way(SECOND[0], 1, eager_step(network, 1, skips=True))
    if not network.state:
        yield Way("predicts: module(batch)", WAITING, module_alone(network))


def ours(network: Network, cuts: Sequence[str]) -> Iterator[Way]:
    """Yield the ways of pipelines; without cuts, two stages are cut where the plan says."""
    for name, stages, executor in PIPELINES + UNCOMPILED:
        places = cuts if cuts and stages > 1 else stages
        compiles = (name, stages, executor) in PIPELINES
        samples = WAITING if compiles else FEW
        try:
            pipeline = built(network, places, executor, compiles=compiles)
            run = together(network, pipeline, samples)
        except PartitionError as error:
            print(f"  {name}: {error}", file=sys.stderr)
            continue
        yield Way(name, samples, run, pipeline.learning)
        if stages == 1:
            yield Way(SINGLE if compiles else f"{name}, {SINGLE}", 1, single(network, pipeline))
        if stages == 1 and compiles:
            yield Way(SECOND[1], WAITING, every_second(network, pipeline))
            yield from predictors(network, pipeline)


def told(found: list[float], form: str) -> str:
    """Return the median of rounds with their spread."""
    middle, low, high = statistics.median(found), min(found), max(found)
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def percentiles(rounds: list[list[float]]) -> tuple[list[float], list[float]]:
    """Return the percentiles of a call in microseconds, each for all rounds."""
    ordered = [sorted(times) for times in rounds]
    low, high = ([1e6 * one[int(part * (len(one) - 1))] for one in ordered] for part in QUANTILES)
    return low, high


def measure(name: str, network: Network, rounds: int, seconds: float, folder: Path) -> list[str]:
    """Print every way's rate, and return a row of each table."""
    print(name, flush=True)
    found = [*ours(network, network.cut), *rivals(network, folder)]
    for way in found:
        if way.note:
            print(f"  {way.name}: {way.note}")
    times: dict[str, list[list[float]]] = {way.name: [] for way in found}
    for _ in range(rounds):
        for way in found:
            times[way.name].append(way.run(seconds))
    rates = {way.name: [rate(one, way.samples) for one in times[way.name]] for way in found}
    for label, values in rates.items():
        print(f"  {label:<34}{told(values, ',.0f')}/s", flush=True)
    middle = {label: statistics.median(values) for label, values in rates.items()}
    eager, best = (
        max((label for label in middle if label.startswith(kind)), key=lambda label: middle[label])
        for kind in ("eager", "pipeline")
    )
    eager_aim, hand_aim = network.aims
    ratio = f"{middle[best] / middle[eager]:.1f} (≥ {eager_aim:g})"
    learning = f"| {name} | {middle[eager]:,.0f} | {middle[best]:,.0f} | {best} | {ratio} | "
    if "C++" in middle:
        ratio = f"{middle[best] / middle['C++']:.2f} (≥ {hand_aim:g})"
        learning += f"{middle['C++']:,.0f} | {ratio} |"
    else:
        learning += "| |"
    steps, singles = percentiles(times[eager]), percentiles(times[SINGLE])
    figures = [told(found, ",.0f") for found in (*steps, *singles)]
    ratio = f"{statistics.median(singles[0]) / statistics.median(steps[0]):.2f}"
    latency = f"| {name} | {' | '.join(figures)} | {ratio} |"
    predicted = [f"{rate:,.0f}" for label, rate in middle.items() if label.startswith("predicts")]
    prediction = f"| {name} | {' | '.join(predicted)} |"
    alone, *others = (middle.get(label) for label, _, _ in PIPELINES)
    assert alone is not None
    figures = [f"{rate:,.0f} | {rate / alone:.2f}" if rate else "|" for rate in others]
    stages = f"| {name} | {alone:,.0f} | {' | '.join(figures)} |"
    eager_half, half = (middle[label] for label in SECOND)
    halves = f"| {name} | {eager_half:,.0f} | {half:,.0f} | {half / eager_half:.1f} |"
    return [learning, stages, latency, prediction + (" |" if network.state else ""), halves]


HEADS = (
    "| network | best eager loop, samples/s | best pipeline | which | ratio | C++ | ratio |",
    "| network | one stage, samples/s | two inline | ratio | two in threads | ratio |",
    "| network | eager step p50, µs | p99 | `process` of one p50, µs | p99 | ratio of p50 |",
    "| network | predicts one by one, samples/s | process | infer | module(batch) |",
    "| network | eager, every second with a label, samples/s | process | ratio |",
)


LEAST = 0.97
"""Ratio after/before that every row should have; rounds differ among each other by as much."""


@dataclass(frozen=True)
class Compared:
    """A way of a network, before and after.

    Attributes:
        notes: How its pipeline says that it learns, before and after.
        speeds: Samples per second of each round, before and after.
    """

    network: str
    way: str
    notes: tuple[str, str]
    speeds: tuple[list[float], list[float]]

    @property
    def ratios(self) -> list[float]:
        """After/before of each round."""
        return [new / old for old, new in zip(*self.speeds, strict=True)]

    @property
    def ratio(self) -> float:
        """Their median."""
        return statistics.median(self.ratios)

    @property
    def fastest(self) -> float:
        """After/before of the fastest rounds."""
        old, new = map(max, self.speeds)
        return new / old


class Side:
    """A process with the package of one checkout.

    Attributes:
        cuts: Where its two stages are cut.
        notes: How each way's pipeline says that it learns.
    """

    def __init__(self, root: Path, network: str, cuts: Sequence[str] | None) -> None:
        cache = Path(
            tempfile.gettempdir(), "streamflow-learning", root.as_posix().replace("/", "-")
        )
        environment = os.environ | {
            "PYTHONPATH": f"{root}{os.pathsep}{root / 'connectors'}",
            "TORCHINDUCTOR_CACHE_DIR": str(cache),
        }
        self._process = subprocess.Popen(
            [sys.executable, str(HERE), network, "--serve", json.dumps(cuts)],
            cwd=root,  # the compiler is a process that imports from where it runs
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        folder, self.cuts, self.notes = self._answer()
        if folder != str(root):
            message = f"{root}: expected its package, got that of {folder}"
            raise ValueError(message)

    def _answer(self) -> Any:
        assert self._process.stdout
        return json.loads(self._process.stdout.readline())

    def speed(self, way: str, seconds: float) -> float:
        """Return samples per second of a way, by the median of its calls."""
        assert self._process.stdin
        print(json.dumps([way, seconds]), file=self._process.stdin, flush=True)
        return float(self._answer())

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def serve(network: Network, cuts: Sequence[str] | None) -> None:
    """Tell the package's folder, the cuts and the ways, then the speed of each way asked for.

    Args:
        network: What is learned.
        cuts: Where two stages are cut, if not where the plan says.
    """
    if cuts is None:
        cuts = network.cut or planned_cuts(network)
    ways = {way.name: way for way in ours(network, cuts)}
    notes = {name: way.note for name, way in ways.items()}
    print(json.dumps([str(Path(streamflow.__file__).parents[1]), cuts, notes]), flush=True)
    for line in sys.stdin:
        name, seconds = json.loads(line)
        print(ways[name].samples / statistics.median(ways[name].run(seconds)), flush=True)


def planned_cuts(network: Network) -> tuple[str, ...]:
    """Return where two stages are cut, nowhere if they cannot be."""
    try:
        return built(network, 2, compiles=False).plan(*stream(network)).cuts
    except PartitionError:
        return ()


def compare(name: str, before: Path, starts: int, rounds: int, seconds: float) -> list[Compared]:
    """Return both sides' speed in every round, for each way of a network."""
    found: dict[str, Compared] = {}
    cuts: Sequence[str] | None = None
    for _ in range(starts):
        sides = [Side(before, name, cuts)]
        cuts = sides[0].cuts
        sides.append(Side(HERE.parents[1], name, cuts))
        for way, note in sides[0].notes.items():
            notes = note, sides[1].notes[way]
            found.setdefault(way, Compared(name, way, notes, ([], [])))
        for index in range(rounds):
            for way, row in found.items():
                for place in (0, 1) if index % 2 else (1, 0):
                    row.speeds[place].append(sides[place].speed(way, seconds))
        for side in sides:
            side.close()
        print(f"{name}: cut at {cuts}", file=sys.stderr, flush=True)
    return list(found.values())


def print_compared(networks: Sequence[str], before: Path, *scale: Any) -> None:
    """Print a row for each way of each network, and how many are slower."""
    print("| network | way | before, samples/s | after | ratio | lowest | of fastest |")
    print("|---|---|---|---|---|---|---|", flush=True)
    rows: list[Compared] = []
    for name in networks:
        for row in compare(name, before, *scale):
            old, new = (f"{statistics.median(speeds):,.0f}" for speeds in row.speeds)
            ratios = f"{row.ratio:.3f} | {min(row.ratios):.3f} | {row.fastest:.3f}"
            print(f"| {name} | {row.way} | {old} | {new} | {ratios} |", flush=True)
            rows.append(row)
    for row in rows:
        if row.notes[0] != row.notes[1]:
            print(f"{row.network}, {row.way}: learned {row.notes[0]!r}, now {row.notes[1]!r}")
    print(f"\n{sum(row.ratio < LEAST for row in rows)} of {len(rows)} rows below {LEAST}")


def main() -> None:
    """Measure the networks that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), metavar="NETWORK")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--before", type=Path, metavar="DIR", help="checkout to compare with")
    parser.add_argument("--starts", type=int, default=2, help="of the processes compared")
    parser.add_argument(
        "--serve", type=json.loads, default=argparse.SUPPRESS, help=argparse.SUPPRESS
    )
    arguments = parser.parse_args()
    if "serve" in arguments:
        serve(NETWORKS[arguments.networks[0]], arguments.serve)
    elif arguments.before:
        before = arguments.before.resolve()
        scale = arguments.starts, arguments.rounds, arguments.seconds
        print_compared(arguments.networks, before, *scale)
    else:
        print_tables(arguments.networks, arguments.rounds, arguments.seconds)


def print_tables(networks: Sequence[str], rounds: int, seconds: float) -> None:
    """Measure networks and print all tables."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(name, NETWORKS[name], rounds, seconds, Path(folder)) for name in networks]
    print("\ndeep-river is left out: its releases ask for torch below 2.6")
    for head, table in zip(HEADS, zip(*rows, strict=True), strict=True):
        print(f"\n{head}\n{'|---' * (head.count('|') - 1)}|")
        print("\n".join(table))


if __name__ == "__main__":
    main()
