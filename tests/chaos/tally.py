"""A network that counts how often it has learned each record; the counts are part of its state.

So a checkpoint holds them, and what is rolled back with the weights is rolled back with the counts.
"""

from __future__ import annotations

import os

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUM_RECORDS = int(os.environ.get("STREAMFLOW_TEST_TALLY", "1"))
"""How many records there are at the most; a record's first feature is its number."""

RATE = 2.0**-6
"""The learning rate, a power of two so that sums of it are exact."""


class Tally(nn.Module):
    """Counts forwards in the buffer ``seen``, updates in the weights ``learned``, as ``RATE``s."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(NUM_RECORDS))
        self.learned = nn.Parameter(torch.zeros(NUM_RECORDS))

    def forward(self, x_NF: Tensor) -> Tensor:
        number_N = x_NF[:, 0].long()
        self.get_buffer("seen")[number_N] += 1
        return torch.cat([x_NF[:, 1:], self.learned[number_N, None]], dim=1)


class Head(nn.Module):
    """Predicts from all but the last column, which it hands on."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 1)

    def forward(self, x_NF: Tensor) -> Tensor:
        return torch.cat([self.linear(x_NF[:, :2]), x_NF[:, 2:]], dim=1)


def network() -> nn.Module:
    """Return the network: a tally in one stage, the rest in another."""
    return nn.Sequential(Tally(), Head())


def loss(output: Tensor, target: Tensor) -> Tensor:
    """Return a loss whose gradient by a record's tally is -1, so that learning adds the rate."""
    return F.mse_loss(output[..., 0], target[..., 0]) - output[..., 1].sum()
