"""Does a plan predict what a pipeline then does?

    python benchmarks/balance.py [NETWORK ...]

For each network, one and two stages, inline and in threads: samples/s that a plan expects, those of
a real pipeline, and their ratio, the median of several rounds with the lowest and the highest. In
each round the pipeline is measured right before and right after the plan, so that a busy machine
disturbs both alike. The last column is the model of the costs alone: how far the slowest stage, as
computed from single layers, is from that stage as measured.

Two things cannot be foretold. Where gradients are megabytes large (1024x8), the allocator of the C
library now keeps their memory and now gives it back after every sample, which doubles the time; the
variables MALLOC_TRIM_THRESHOLD_ and MALLOC_MMAP_THRESHOLD_, set to 1000000000, prevent that. And
eager stages in threads are now fast and now half as fast, as they happen to get the interpreter
lock.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamflow.pipeline import Pipeline
from streamflow.pipeline.options import Options
from streamflow.pipeline.planning.balance import cut_at
from streamflow.pipeline.planning.plan import Plan
from streamflow.pipeline.planning.planning import make_plan
from streamflow.pipeline.planning.profiling import profile
from streamflow.pipeline.planning.rehearsal import Subject
from streamflow.pipeline.schedule import orders

ROUNDS = 5
SECONDS = 0.4
# A call as short as those of a plan is as often left alone by other programs.
CALL_SECONDS = 0.004
SGD = partial(torch.optim.SGD, lr=1e-3)


class Recurrent(nn.Module):
    """A cell whose state is always zero, with a head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(width, width)
        self.head = nn.Linear(width, 1)
        self.register_buffer("state", torch.zeros(1, width))
        self.state: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Predict from one input alone."""
        output: Tensor = self.head(self.cell(x, self.state))
        return output


class Encoder(nn.Module):
    """A transformer over a few tokens, with a head on their mean."""

    def __init__(self) -> None:
        super().__init__()
        layer = partial(nn.TransformerEncoderLayer, 64, 4, 256, dropout=0.0, batch_first=True)
        self.layers = nn.Sequential(layer(), layer())
        self.head = nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Predict from tokens (1, tokens, width)."""
        output: Tensor = self.head(self.layers(x).mean(1))
        return output


def mlp(*widths: int) -> nn.Sequential:
    """Return linear layers with a ReLU between any two."""
    layers: list[nn.Module] = []
    for index in range(len(widths) - 1):
        layers += [nn.Linear(widths[index], widths[index + 1]), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def convolutions() -> nn.Sequential:
    """Return three blocks of a convolution, and a head."""
    blocks: list[nn.Module] = []
    for inputs, outputs in ((3, 16), (16, 32), (32, 64)):
        blocks += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(1024, 10))


@dataclass(frozen=True)
class Case:
    """A network, and the shapes of one sample and target."""

    build: Callable[[], nn.Module]
    sample: tuple[int, ...]
    target: tuple[int, ...]


CASES = {
    "MLP 16-32-1": Case(partial(mlp, 16, 32, 1), (16,), (1,)),
    "MLP 64x8": Case(partial(mlp, *[64] * 9), (64,), (64,)),
    "MLP 256x8": Case(partial(mlp, *[256] * 9), (256,), (256,)),
    "MLP 1024x8": Case(partial(mlp, *[1024] * 9), (1024,), (1024,)),
    "CNN 32x32x3": Case(convolutions, (3, 32, 32), (10,)),
    "GRU 32": Case(partial(Recurrent, 32), (32,), (1,)),
    "encoder 64": Case(Encoder, (16, 64), (1,)),
}


def main(names: list[str]) -> None:
    """Print a line for each network, number of stages and executor."""
    torch.set_num_threads(1)
    print(f"{'network':<14}{'stages':>7} {'executor':<9}{'planned':>10}{'real':>10}", end="")
    print(f"{'ratio':>7}{'lowest':>8}{'highest':>8}{'model':>8}")
    for name in names or CASES:
        for stages in (1, 2):
            for executor in ("inline", "threads"):
                report(name, stages, executor)


def report(name: str, stages: int, executor: str) -> None:
    """Measure one way to run a network and print how it compares."""
    case = CASES[name]
    plan = planned(case, stages, executor)
    rows = []
    for _ in range(ROUNDS):
        before = measured(case, plan)
        expected = planned(case, plan.cuts, executor).rate
        real = (before + measured(case, plan)) / 2
        rows.append((expected, real, expected / real))
    expected, real, ratio = (median(column) for column in zip(*rows, strict=True))
    ratios = [row[2] for row in rows]
    print(
        f"{name:<14}{stages:>7} {executor:<9}{expected:>10,.0f}{real:>10,.0f}"
        f"{ratio:>7.2f}{min(ratios):>8.2f}{max(ratios):>8.2f}",
        end="",
    )
    # The model knows nothing of threads.
    errors = [model_error(case, plan) for _ in range(3)] if executor == "inline" else []
    print("".join(f"{median(errors):>+8.0%}" for _ in errors[:1]), flush=True)


def network(case: Case) -> nn.Module:
    """Return the network with the same weights each time."""
    torch.manual_seed(0)
    return case.build()


def options(stages: int | tuple[str, ...], executor: str) -> Options:
    """Return what pipeline and plan have in common."""
    return Options(loss=F.mse_loss, optimizer=SGD, stages=stages, executor=executor, compile=False)


def data(case: Case, count: int) -> tuple[Tensor, Tensor]:
    """Return samples and targets."""
    return torch.randn(count, *case.sample), torch.randn(count, *case.target)


def planned(case: Case, stages: int | tuple[str, ...], executor: str) -> Plan:
    """Return a plan made from one sample."""
    return make_plan(network(case), *data(case, 1), options=options(stages, executor))


def measured(case: Case, plan: Plan) -> float:
    """Return the samples/s of a pipeline built by a plan, in calls of some samples."""
    with Pipeline(
        network(case),
        loss=F.mse_loss,
        optimizer=SGD,
        stages=plan.cuts,
        executor=plan.executor,
        compile=False,
    ) as pipeline:
        count = min(max(round(plan.rate * CALL_SECONDS), 16), 32)
        inputs, targets = data(case, count)
        times = list(calls(pipeline, inputs, targets))
    return count / median(times)


def calls(pipeline: Pipeline, inputs: Tensor, targets: Tensor) -> Iterator[float]:
    """Yield the seconds of each call, after the first two."""
    end = time.perf_counter() + SECONDS
    number = 0
    while number < 6 or time.perf_counter() < end:
        start = time.perf_counter()
        pipeline.process(inputs, targets)
        if number >= 2:
            yield time.perf_counter() - start
        number += 1


def model_error(case: Case, plan: Plan) -> float:
    """Return how far the model is off for the slowest stage, as a fraction."""
    asked = options(plan.cuts, plan.executor)
    subject = Subject(network(case), *data(case, 1), options=asked, initial={})
    found, _ = profile(subject, seconds=0.5)
    names = [layer.name for layer in found.layers]
    lags = [order.lag for order in orders(plan.schedule, len(plan.stages))]
    cut = cut_at(found, [names.index(name) for name in plan.cuts], lags)
    real = planned(case, plan.cuts, plan.executor)
    return cut.bottleneck / max(stage.cost.total for stage in real.stages) - 1


if __name__ == "__main__":
    main(sys.argv[1:])
