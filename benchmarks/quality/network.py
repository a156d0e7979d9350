"""Many networks of eight layers in one module: learners that differ in seed and learning rate.

Shapes: R replicas, I and O features of a layer's input and output.

All parameters carry a leading dimension of replicas, and a product takes each replica's part alone.
With the loss ``sum over r of rate_r * loss_r`` and SGD of rate 1, replica r learns as a network of
its own with SGD of rate ``rate_r`` does; the pipeline around them sees one module and one loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUM_LAYERS = 8
WIDTH = 32
# Of what a hidden layer adds to its input: small, so that eight layers begin near the identity.
HIDDEN_GAIN = 0.5


class First(nn.Module):
    """Takes a sample (1, R, I) to activations (R, 1, O)."""

    def __init__(self, weight_RIO: Tensor, bias_R1O: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight_RIO), nn.Parameter(bias_R1O)

    def forward(self, x: Tensor) -> Tensor:
        """Return tanh(x W + b)."""
        return torch.tanh(torch.baddbmm(self.bias, x.transpose(0, 1), self.weight))


class Hidden(First):
    """Adds its own to activations (R, 1, O)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x + tanh(x W + b)."""
        return x + torch.tanh(torch.baddbmm(self.bias, x, self.weight))


class Last(First):
    """Takes activations (R, 1, I) to outputs (1, R, O)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x W + b."""
        return torch.baddbmm(self.bias, x, self.weight).transpose(0, 1)


def network(
    num_inputs: int, num_outputs: int, seeds: Sequence[int], *, width: int = WIDTH
) -> nn.Sequential:
    """Build one replica for each of ``seeds``; equal seeds have equal initial weights."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def tensors(fan_in: int, fan_out: int, gain: float) -> tuple[Tensor, Tensor]:
        drawn = [torch.randn(fan_in, fan_out, generator=g) for g in generators]
        return torch.stack(drawn) * gain / fan_in**0.5, torch.zeros(len(drawn), 1, fan_out)

    hidden = (Hidden(*tensors(width, width, HIDDEN_GAIN)) for _ in range(NUM_LAYERS - 2))
    return nn.Sequential(
        First(*tensors(num_inputs, width, 1.0)),
        *hidden,
        Last(*tensors(width, num_outputs, HIDDEN_GAIN)),
    )


def cuts(num_stages: int) -> list[str] | int:
    """Cut into stages of equally many layers."""
    step = NUM_LAYERS // num_stages
    return [str(layer) for layer in range(step, NUM_LAYERS, step)] or 1


def losses(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the loss (n, R) of outputs (n, R, O) for class indices (n, R) or values (n, R, O)."""
    if targets.is_floating_point():
        return (outputs - targets).square().mean(2)
    return F.cross_entropy(outputs.transpose(1, 2), targets, reduction="none")


def combined_loss(rates: Sequence[float]) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the loss by which replica r learns at ``rates[r]`` under SGD of rate 1."""
    rates_R = torch.tensor(rates)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return losses(output, target)[0] @ rates_R

    return loss
