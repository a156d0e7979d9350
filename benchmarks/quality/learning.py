"""Online losses of one scheme on streams of one shape, for many learning rates at once.

Shapes: N samples, K streams, R replicas (learning rates times streams), S seeds, L learning rates,
O outputs.
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
        loss_LS: Mean loss; infinite where the learner diverged.
        accuracy_LS: Share of right classes; None where targets are values.
        taken: Share of samples that were learned.
    """

    loss_LS: Tensor
    accuracy_LS: Tensor | None = None
    taken: float = 1.0


def replicate(tensor: Tensor, copies: int) -> Tensor:
    """Give (n, K, ...) to each of ``copies`` learning rates: (n, R, ...)."""
    return tensor.repeat(1, copies, *(1 for _ in tensor.shape[2:]))


def build(stream: Stream, scheme: Scheme, rates: Sequence[float]) -> Pipeline:
    """Return a pipeline that learns every stream with every rate."""
    _, num_streams, num_inputs = stream.inputs_NKD.shape
    seeds = [*range(stream.seeds)] * len(stream.names) * len(rates)
    return Pipeline(
        network(num_inputs, stream.num_outputs, seeds),
        loss=combined_loss([rate for rate in rates for _ in range(num_streams)]),
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


def score(stream: Stream, outputs_NRO: Tensor) -> dict[str, Scores]:
    """Score the predictions of every replica, by the name of its stream."""
    first = stream.first_scored
    copies = outputs_NRO.shape[1] // stream.inputs_NKD.shape[1]
    targets = replicate(stream.targets[first:], copies)
    losses_NR = losses(outputs_NRO[first:], targets).double()
    loss_R = losses_NR.mean(0).nan_to_num(nan=torch.inf, posinf=torch.inf)
    shape = (copies, len(stream.names), stream.seeds)
    loss = loss_R.view(shape).unbind(1)
    accuracy: tuple[Tensor, ...] | list[None] = [None] * len(loss)
    if stream.has_classes:
        right_NR = outputs_NRO[first:].argmax(2) == targets
        accuracy = right_NR.double().mean(0).view(shape).unbind(1)
    return {
        name: Scores(loss_LS, accuracy_LS)
        for name, loss_LS, accuracy_LS in zip(stream.names, loss, accuracy, strict=True)
    }


def baselines(stream: Stream) -> dict[str, float]:
    """Return the accuracy of predicting the class before, or the loss of predicting zero."""
    if stream.has_classes:
        is_same_NK = stream.targets[1:] == stream.targets[:-1]
        values_K = is_same_NK.double().mean(0)
    else:
        values_K = stream.targets[stream.first_scored :].double().square().mean((0, 2))
    return dict(zip(stream.names, values_K.view(-1, stream.seeds).mean(1).tolist(), strict=True))
