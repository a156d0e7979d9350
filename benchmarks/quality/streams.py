"""The streams that are learned: generated ones and two recorded ones.

Shapes: N samples, K streams (every name with every seed), D features.

A generated stream has inputs x(n) = rho x(n-1) + sqrt(1 - rho^2) e(n) with independent standard
normal e, so that every x(n) is standard normal whatever rho is, and targets from a random network
of its seed, of mean 0 and variance 1, plus noise of variance 0.01. Predicting 0 costs about 1.0,
knowing the network 0.01.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from streamflow.evaluation.moments import Moments

GENERATED = {"independent": 0.0, "AR 0.9": 0.9, "AR 0.99": 0.99}
FEATURES, TEACHER_WIDTH, NOISE = 8, 16, 0.1
# Two readings of the weather file claim five times the pressure of air.
WEATHER_PRESSURE, POSSIBLE_PRESSURE = "feat_3", 1100.0
COLUMNS = {
    "electricity": (("nswprice", "nswdemand", "vicprice", "vicdemand", "transfer"), "class"),
    "weather": (tuple(f"feat_{number}" for number in range(1, 9)), "target"),
}


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """Which streams, how much of them and how many seeds; cheap to send to another process.

    Attributes:
        names: Some of ``GENERATED``, or with a path one of ``COLUMNS``.
        count: Samples; of a file at most so many.
        seeds: Streams of a name that differ in everything random, or for a file equal ones.
        path: Where a recorded stream lies.
    """

    names: tuple[str, ...]
    count: int
    seeds: int = 3
    path: str | None = None


@dataclass(frozen=True, slots=True)
class Stream:
    """Samples of K streams of one shape, side by side.

    Attributes:
        names: Of the streams; every name has ``seeds`` streams, one after the other.
        seeds: Streams of each name.
        inputs_NKD: What is predicted from.
        targets: Class indices (N, K) of two classes, or values (N, K, 1).
        first_scored: Samples before this one are learned and not scored.
    """

    names: tuple[str, ...]
    seeds: int
    inputs_NKD: Tensor
    targets: Tensor
    first_scored: int

    @property
    def has_classes(self) -> bool:
        """Whether the targets are class indices."""
        return not self.targets.is_floating_point()

    @property
    def num_outputs(self) -> int:
        """Width of a prediction."""
        return 2 if self.has_classes else 1


def build(spec: StreamSpec) -> Stream:
    """Generate or read streams; equal specs give equal streams."""
    if spec.path is not None:
        return _read(spec, spec.path)
    seeds = range(spec.seeds)
    pairs = [_generate(GENERATED[name], spec.count, seed) for name in spec.names for seed in seeds]
    inputs, targets = (torch.stack(tensors, 1) for tensors in zip(*pairs, strict=True))
    return Stream(spec.names, spec.seeds, inputs, targets, first_scored=spec.count // 2)


def recorded(path: str) -> str:
    """Name the stream in a file by its columns.

    Raises:
        ValueError: It is neither of the two.
    """
    with Path(path).open(newline="") as file:
        found = set(next(csv.reader(file)))
    for name, (features, target) in COLUMNS.items():
        if found >= {*features, target}:
            return name
    msg = (
        f"{path}: expected the columns of the electricity or the weather stream, "
        f"got {sorted(found)}; pass elec.csv or weather.csv"
    )
    raise ValueError(msg)


def _generate(rho: float, count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 + seed)
    first = torch.randn(FEATURES, TEACHER_WIDTH, generator=generator) * 2 / math.sqrt(FEATURES)
    bias = torch.randn(TEACHER_WIDTH, generator=generator) / 2
    second = torch.randn(TEACHER_WIDTH, 1, generator=generator)

    def teach(x_ND: Tensor) -> Tensor:
        return torch.tanh(x_ND @ first + bias) @ second

    typical = teach(torch.randn(100_000, FEATURES, generator=generator))
    x_ND = torch.randn(count, FEATURES, generator=generator)
    for n in range(1, count if rho else 0):
        x_ND[n] = rho * x_ND[n - 1] + math.sqrt(1 - rho * rho) * x_ND[n]
    noise = NOISE * torch.randn(count, 1, generator=generator)
    return x_ND, (teach(x_ND) - typical.mean()) / typical.std() + noise


def _read(spec: StreamSpec, path: str) -> Stream:
    features, target = COLUMNS[spec.names[0]]
    with Path(path).open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if _is_possible(row)][: spec.count]
    values_ND = np.array([[float(row[name]) for name in features] for row in rows])
    means_ND, variances_ND = Moments(len(features)).absorb(values_ND)
    scales_ND = np.where(variances_ND > 0, np.sqrt(variances_ND), 1.0)
    # Scaled by what came before alone, which is little at first.
    inputs_ND = torch.from_numpy(((values_ND - means_ND) / scales_ND).clip(-5, 5)).float()
    labels_N = torch.tensor([int(row[target]) for row in rows])
    inputs_NKD = inputs_ND[:, None].expand(-1, spec.seeds, -1)
    labels_NK = labels_N[:, None].expand(-1, spec.seeds)
    return Stream(spec.names, spec.seeds, inputs_NKD, labels_NK, first_scored=0)


def _is_possible(row: dict[str, str]) -> bool:
    return float(row.get(WEATHER_PRESSURE, 0)) < POSSIBLE_PRESSURE
