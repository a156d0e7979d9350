"""Networks and streams that the tests learn from, all in float64."""

import copy
import itertools
import random
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamflow.pipeline import Pipeline, reference

SGD = partial(torch.optim.SGD, lr=0.01, momentum=0.5)
WIDTH = 3

SCHEMES = [
    (schedule, backward)
    for schedule in ("sequential", "1f1b", "greedy")
    for backward in ("own", "stashed")
] + [("lockstep", "newest")]


class RunningScale(nn.Module):
    """Divides by a running scale, a buffer that every forward writes and uses."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(WIDTH, dtype=torch.float64))
        self.scale: Tensor

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.scale.mul_(0.9).add_(0.1 * x[0].abs())
        return x / (self.scale + 0.5)


class Product(nn.Module):
    """Multiplies by a matrix and again: what autograd saves of it are derived tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH, dtype=torch.float64) / 4)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight @ self.weight.t() + x


def layer(kind: str) -> nn.Module:
    match kind:
        case "linear":
            return nn.Linear(WIDTH, WIDTH, dtype=torch.float64)
        case "tanh":
            return nn.Tanh()
        case "relu":
            return nn.ReLU(inplace=True)
        case "scale":
            return RunningScale()
        case _:
            return Product()


KINDS = ("linear", "tanh", "relu", "scale", "product")


def chain(kinds: Sequence[str], seed: int) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(*(layer(kind) for kind in kinds))


def stream(count: int, seed: int, width: int = WIDTH) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    data = torch.randn(2, count, width, dtype=torch.float64, generator=generator)
    return data[0], data[1]


def cut_points(num_layers: int, num_stages: int, seed: int) -> list[int]:
    return sorted(random.Random(seed).sample(range(1, num_layers), num_stages - 1))


def expected(
    net: nn.Sequential,
    cuts: Sequence[int],
    inputs: Tensor,
    targets: Tensor,
    learned: Sequence[bool],
    drains: Sequence[int],
    schedule: str,
    backward: str,
    order: list[reference.Step] | None = None,
    accumulate: int = 1,
) -> tuple[Tensor, nn.Sequential]:
    """Return what the reference predicts and the network it learns."""
    net = copy.deepcopy(net)
    bounds = [0, *cuts, len(net)]
    stages = [net[a:b] for a, b in itertools.pairwise(bounds)]
    optimizers = [
        SGD(list(s.parameters())) if any(True for _ in s.parameters()) else None for s in stages
    ]
    if order is None:
        inline = "sequential" if schedule == "greedy" else schedule
        order = []
        for first, stop in reference.segments(drains, len(inputs)):
            order += reference.steps(inline, len(stages), first, stop)
    outputs = reference.run(
        stages,
        F.mse_loss,
        optimizers,
        [inputs[n : n + 1] for n in range(len(inputs))],
        [targets[n : n + 1] for n in range(len(targets))],
        learned,
        order,
        backward=backward,
        accumulate=accumulate,
    )
    return torch.cat(outputs) if outputs else inputs[:0], net


def pipeline(net: nn.Module, cuts: Sequence[int], schedule: str, backward: str) -> Pipeline:
    return Pipeline(
        net,
        loss=F.mse_loss,
        optimizer=SGD,
        stages=[str(cut) for cut in cuts],
        schedule=schedule,
        backward=backward,
        compile=False,  # bitwise equal to the reference
    )


def process(
    pipe: Pipeline,
    inputs: Tensor,
    targets: Tensor,
    learned: Sequence[bool],
    calls: Sequence[int],
    drains: Sequence[int],
) -> Tensor:
    """Process the stream in calls that end at ``calls``, with drains at ``drains``."""
    outputs = [inputs[:0]]
    bounds = sorted({0, *calls, *drains, len(inputs)})
    for first, stop in itertools.pairwise(bounds):
        if first in drains:
            pipe.drain()
        mask = torch.tensor(learned[first:stop], dtype=torch.bool)
        outputs.append(pipe.process(inputs[first:stop], targets[first:stop], mask))
    pipe.drain()
    return torch.cat(outputs)


def assert_same(actual: nn.Module, wanted: nn.Module) -> None:
    for name, tensor in wanted.state_dict().items():
        assert torch.equal(actual.state_dict()[name], tensor), name
