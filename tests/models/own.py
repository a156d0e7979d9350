"""What a user might name in a graph: networks, losses, optimizers, and things that are none."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Doubling(nn.Module):
    """A layer with an argument."""

    def __init__(self, factor: float = 2.0) -> None:
        super().__init__()
        self._factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self._factor


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 64), nn.ReLU(), nn.Linear(64, 2))


def computed_network() -> nn.Module:
    """Return a network that needs the values of its weights as it is built."""
    linear = nn.Linear(5, 2)
    return nn.Sequential(linear, Doubling(linear.weight.abs().max().item()))


def no_network() -> int:
    return 3


def broken_network() -> nn.Module:
    message = "no such file"
    raise OSError(message)


def loss(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output, target)


def optimizer(parameters: Iterable[nn.Parameter], lr: float = 0.05) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=lr)


NUMBER = 3


class Column(nn.Module):
    """A layer that takes samples of any shape."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1)


def output_loss(output: Tensor) -> Tensor:
    return output.square().mean()


class Gated(nn.Module):
    """A network whose first layer does not take its input."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(3, 2)
        self.body = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.body(x) * self.gate(x[:, :3])
        return output
