"""Where samples in flight lie while compiled code runs them."""

import torch
from torch import Tensor

from streamflow.pipeline.capture.recorder import Recording


class Slots:
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
        written = [recording.held[index]() for index in recording.snapshots.values()]
        self.inputs = [torch.zeros(count, *s, dtype=d) for s, d in recording.inputs]
        self.noises = [torch.zeros(count, *n.shape, dtype=n.dtype) for n in recording.noises]
        self.states: list[Tensor | None] = [None] * count
        self.snapshots = [torch.zeros(count, *t.shape, dtype=t.dtype) for t in written]
        self.gradients = [torch.zeros(count, *s, dtype=d) for s, d in recording.gradients]
        self.is_empty = torch.zeros(count, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.is_empty)
