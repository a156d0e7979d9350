"""What compiled stages work on: rings of samples in flight, and the tensors of a call."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from streamflow.pipeline.capture.recording import Recording


class Rings:
    """Where the values of a stage's samples lie between forward and backward.

    Attributes:
        inputs: One tensor (slots, ...) for each of an input.
        noises: Likewise of the random numbers that a forward takes.
        states: Of the generator, as they were before each sample.
        snapshots: Likewise of the buffers that a forward writes, as they were before.
        gradients: Likewise of the gradients that come from the stage behind.
        is_empty: Whether nothing comes (slots,).
    """

    def __init__(self, recording: Recording, count: int) -> None:
        written = [recording.held.places[index]() for index in recording.snapshots.values()]
        self.inputs = [spec.zeros(count) for spec in recording.inputs]
        self.noises = [noise.spec.zeros(count) for noise in recording.noises]
        self.states: list[Tensor | None] = [None] * count
        self.snapshots = [torch.zeros(count, *t.shape, dtype=t.dtype) for t in written]
        self.gradients = [spec.zeros(count) for spec in recording.gradients]
        self.is_empty = torch.zeros(count, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.is_empty)


@dataclass(slots=True)
class Work:
    """What a stage works on during a call.

    Attributes:
        learn: What it holds with the constants of its learning; the same list as long as nothing
            replaces a tensor.
        forward: Likewise with the constants of its forward.
        factors: Of the optimizer's formula (updates or one for all, groups, factors).
    """

    learn: list[Tensor]
    forward: list[Tensor]
    factors: Tensor


@dataclass(slots=True)
class Rows:
    """The samples of a call, all tensors (count, ...).

    Attributes:
        inputs: Tensors of the inputs.
        noises: Likewise of random numbers, stage by stage.
        labels: Likewise of targets and weights.
        outputs: Where outputs go.
        is_learned: A byte for each.
        count: How many.
    """

    inputs: Sequence[Tensor]
    noises: Sequence[Tensor]
    labels: Sequence[Tensor]
    outputs: Sequence[Tensor]
    is_learned: bytes
    count: int


@dataclass(slots=True)
class Done:
    """What came of a call.

    Attributes:
        steps: For each sample the updates that stage 0 had made in this call before it.
        made: Updates of each stage.
        skipped: Samples of each stage that were passed over since something was not finite.
    """

    steps: list[int]
    made: list[int]
    skipped: list[int]
