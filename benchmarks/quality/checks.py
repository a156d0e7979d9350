"""What the figures rest on, checked before they are made."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.quality.clock import Clock, Durations
from benchmarks.quality.learning import Scheme, build, learn, replicate
from benchmarks.quality.network import NUM_LAYERS, cuts, network
from benchmarks.quality.streams import Stream, StreamSpec
from benchmarks.quality.streams import build as build_stream
from streamflow.pipeline import Pipeline

SEQUENTIAL = Scheme("sequential", "own", 1)
SCHEMES = (("1f1b", "own"), ("1f1b", "stashed"), ("greedy", "own"), ("lockstep", "newest"))
RATES = (0.004, 0.01)


class Residual(nn.Module):
    """A hidden layer of the plain network."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        """Return x + tanh(x W + b)."""
        return x + torch.tanh(self.linear(x))


def plain_network(replica: nn.Sequential) -> nn.Sequential:
    """Return a single replica as a network of torch's own layers."""
    layers: list[nn.Module] = []
    for number, layer in enumerate(replica):
        weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
        linear = nn.Linear(weight.shape[1], weight.shape[2], dtype=weight.dtype)
        with torch.no_grad():
            linear.weight.copy_(weight[0].t())
            linear.bias.copy_(bias[0, 0])
        is_hidden = 0 < number < NUM_LAYERS - 1
        layers.append(Residual(linear) if is_hidden else linear)
    return nn.Sequential(nn.Sequential(layers[0], nn.Tanh()), *layers[1:])


def replica_error(stream: Stream, scheme: Scheme, index: int) -> float:
    """Return how far a replica's predictions are from those of a pipeline of its own."""
    rate, column = divmod(index, stream.inputs_NKD.shape[1])
    alike = network(stream.inputs_NKD.shape[2], stream.num_outputs, [column % stream.seeds])
    together = learn(stream, scheme, RATES)[:, index]
    with Pipeline(
        plain_network(alike),
        loss=F.cross_entropy if stream.has_classes else F.mse_loss,
        optimizer=partial(torch.optim.SGD, lr=RATES[rate]),
        stages=cuts(scheme.num_stages),
        schedule=scheme.schedule,
        backward=scheme.backward,
        executor="inline",
        compile=False,
    ) as pipeline:
        alone = pipeline.process(stream.inputs_NKD[:, column], stream.targets[:, column])
    return float((together - alone).abs().max())


def one_stage_is_sequential(stream: Stream) -> bool:
    """Say whether every scheme with one stage, and sequential with eight, predict the same."""
    expected = learn(stream, SEQUENTIAL, RATES)
    schemes = [Scheme("sequential", "own", 8)] + [Scheme(*scheme, 1) for scheme in SCHEMES]
    return all(torch.equal(learn(stream, scheme, RATES), expected) for scheme in schemes)


def unhurried_greedy_is_sequential(stream: Stream) -> bool:
    """Say whether eight greedy stages with time enough predict what sequential predicts."""
    return torch.equal(
        in_virtual_time(stream, Scheme("greedy", "own", 8), 100.0), learn(stream, SEQUENTIAL, RATES)
    )


def virtual_order_is_the_schedule(stream: Stream) -> bool:
    """Say whether ``1f1b`` and ``lockstep`` predict in virtual time what they predict in none."""
    schemes = [Scheme(*scheme, 8) for scheme in SCHEMES if scheme[0] != "greedy"]
    return all(
        torch.equal(in_virtual_time(stream, scheme, 3.1), learn(stream, scheme, RATES))
        for scheme in schemes
    )


def in_virtual_time(stream: Stream, scheme: Scheme, period: float) -> Tensor:
    """Predict a stream whose samples arrive periodically; forwards take 1 s, backwards 2 s."""
    durations = [Durations(1.0, 2.0, 2.0)] * scheme.num_stages
    clock = Clock(build(stream, scheme, RATES), scheme.schedule, durations)
    inputs = replicate(stream.inputs_NKD, len(RATES))
    answers = clock.run(inputs, replicate(stream.targets, len(RATES)), period)
    assert bool(answers.is_taken_N.all())
    return answers.held_NRO


def check(count: int) -> None:
    """Print what holds, and stop where something does not.

    Raises:
        SystemExit: The figures would mean nothing.
    """
    stream = build_stream(StreamSpec(("independent", "AR 0.9"), count, seeds=2))
    error = max(
        replica_error(stream, Scheme(*scheme, stages), 7) for scheme in SCHEMES for stages in (1, 4)
    )
    for text, holds in (
        (f"a replica equals a pipeline of its own (largest difference {error:.1e})", error < 1e-4),
        ("every scheme with one stage equals sequential, bitwise", one_stage_is_sequential(stream)),
        (
            "greedy with time enough equals sequential, bitwise",
            unhurried_greedy_is_sequential(stream),
        ),
        (
            "virtual time leaves 1f1b and lockstep as they are, bitwise",
            virtual_order_is_the_schedule(stream),
        ),
    ):
        print(f"- {text}: {'yes' if holds else 'NO'}")
        if not holds:
            raise SystemExit(1)
