"""Online losses of one scheme on one stream, for many learning rates and seeds at once.

Shapes: N samples, K seeds, R replicas (learning rates times seeds), L learning rates, O outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.quality.network import combined_loss, cuts, losses, network
from benchmarks.quality.streams import Stream
from streamflow.pipeline import Pipeline

# Samples a call of ``process``; without meaning for the result.
CALL = 500


@dataclass(frozen=True, slots=True)
class Scheme:
    """How many stages learn in which order, and where a gradient is taken."""

    schedule: str
    backward: str
    num_stages: int

    @property
    def label(self) -> str:
        """The scheme's name in tables, without its stages."""
        if self.schedule == "sequential":
            return self.schedule
        return f"{self.schedule} + {self.backward}"


@dataclass(frozen=True, slots=True)
class Scores:
    """Means over the scored samples.

    Attributes:
        loss_LK: Mean loss; infinite where the learner diverged.
        accuracy_LK: Share of right classes; None where targets are values.
        taken: Share of samples that were learned.
    """

    loss_LK: Tensor
    accuracy_LK: Tensor | None = None
    taken: float = 1.0


def replicate(tensor: Tensor, copies: int) -> Tensor:
    """Give (n, K, ...) to each of ``copies`` learning rates: (n, R, ...)."""
    return tensor.repeat(1, copies, *(1 for _ in tensor.shape[2:]))


def build(stream: Stream, scheme: Scheme, rates: Sequence[float]) -> Pipeline:
    """Return a pipeline that learns with every rate and seed."""
    seeds = stream.inputs_NKD.shape[1]
    return Pipeline(
        network(stream.inputs_NKD.shape[2], stream.num_outputs, seeds=seeds, copies=len(rates)),
        loss=combined_loss([rate for rate in rates for _ in range(seeds)]),
        optimizer=partial(torch.optim.SGD, lr=1.0),
        stages=cuts(scheme.num_stages),
        schedule=scheme.schedule,
        backward=scheme.backward,
        executor="inline",
        compile=False,
        allow_nonfinite=True,  # of a replica that diverged, which must not stop the others
    )


def learn(stream: Stream, scheme: Scheme, rates: Sequence[float]) -> Tensor:
    """Return every prediction (N, R, O), each made before its sample was learned."""
    with build(stream, scheme, rates) as pipeline:
        return torch.cat(
            [
                pipeline.process(replicate(inputs, len(rates)), replicate(targets, len(rates)))
                for inputs, targets in zip(
                    torch.split(stream.inputs_NKD, CALL),
                    torch.split(stream.targets, CALL),
                    strict=True,
                )
            ]
        )


def score(stream: Stream, outputs_NRO: Tensor) -> Scores:
    """Score the predictions of every replica."""
    seeds = stream.inputs_NKD.shape[1]
    first = stream.first_scored
    copies = outputs_NRO.shape[1] // seeds
    targets = replicate(stream.targets[first:], copies)
    losses_NR = losses(outputs_NRO[first:], targets).double()
    loss_R = losses_NR.mean(0).nan_to_num(nan=torch.inf, posinf=torch.inf)
    accuracy = None
    if stream.has_classes:
        right_NR = outputs_NRO[first:].argmax(2) == targets
        accuracy = right_NR.double().mean(0).view(copies, seeds)
    return Scores(loss_R.view(copies, seeds), accuracy)


def baseline(stream: Stream) -> float:
    """Return the accuracy of predicting the class before, or the loss of predicting zero."""
    if stream.has_classes:
        labels_N = stream.targets[:, 0]
        return float((labels_N[1:] == labels_N[:-1]).double().mean())
    return float(stream.targets[stream.first_scored :].square().mean())
