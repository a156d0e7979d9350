"""Samples like those that fitted before enter by a shorter check, which must see as much."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamflow.errors import SampleError
from streamflow.pipeline import Pipeline
from tests.pipeline.networks import SGD, chain, stream

LEARNS: dict[str, Any] = {"loss": F.mse_loss, "optimizer": SGD}
INPUTS, TARGETS = stream(4, seed=0)
NAN = float("nan")


def changed(tensor: Tensor, value: float) -> Tensor:
    tensor = tensor.clone()
    tensor[2, 1] = value
    return tensor


def network() -> nn.Module:
    return chain(["linear", "tanh", "linear"], 0)


@pytest.mark.parametrize("options", [{}, LEARNS], ids=["predicts", "learns"])
@pytest.mark.parametrize(
    ("wrong", "index"),
    [
        (changed(INPUTS, NAN), 2),
        (changed(INPUTS, float("inf")), 2),
        (INPUTS[0, 0], 0),
        (INPUTS[:, :2], 0),
        (INPUTS.float(), 0),
    ],
)
def test_inputs_without_targets_are_still_looked_at(
    options: dict[str, Any], wrong: Tensor, index: int
) -> None:
    with Pipeline(network(), **options) as pipe:
        pipe.process(INPUTS)
        with pytest.raises(SampleError) as refused:
            pipe.process(wrong)
        assert refused.value.index == index
        assert pipe.counters["samples"] == 4


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (INPUTS, changed(TARGETS, NAN), "targets: expected finite values"),
        (changed(INPUTS, NAN), TARGETS, "inputs: expected finite values"),
        (INPUTS, TARGETS[:3], "targets: expected one per sample"),
    ],
)
def test_samples_with_targets_are_still_looked_at(
    inputs: Tensor, targets: Tensor, message: str
) -> None:
    with Pipeline(network(), **LEARNS) as pipe:
        pipe.process(INPUTS, TARGETS)
        with pytest.raises(SampleError, match=message):
            pipe.process(inputs, targets)
        assert pipe.counters["learned"] == 4


def test_a_single_target_is_still_looked_at() -> None:
    with Pipeline(nn.Linear(3, 1, dtype=torch.float64), **LEARNS) as pipe:
        pipe.process(INPUTS, TARGETS[:, :1])
        for value in (NAN, float("inf")):
            with pytest.raises(SampleError, match="targets: expected finite values"):
                pipe.process(INPUTS[:1], torch.full((1, 1), value, dtype=torch.float64))


def test_none_may_enter_and_a_graph_stays_outside() -> None:
    with Pipeline(network()) as pipe:
        pipe.process(INPUTS)
        assert pipe.process(INPUTS[:0]).shape == (0, 3)
        assert pipe.process(INPUTS.clone().requires_grad_()).grad_fn is None


def test_a_loss_without_targets_learns_from_every_sample() -> None:
    with Pipeline(network(), loss=lambda output: output.sum(), optimizer=SGD) as pipe:
        for _ in range(2):
            pipe.process(INPUTS)
        assert pipe.counters["learned"] == 8


def test_inputs_belong_to_the_caller_again() -> None:
    found = []
    for is_kept in (True, False):
        net = network()
        with Pipeline(
            net, **LEARNS, stages=["1"], schedule="lockstep", backward="newest", executor="inline"
        ) as pipe:
            pipe.process(INPUTS)
            pipe.drain()
            pipe.process(INPUTS[:1], TARGETS[:1])
            newest = INPUTS[1:2].clone()
            pipe.process(newest)
            if not is_kept:
                newest.zero_()
        found.append(net.get_parameter("0.weight"))
    assert torch.equal(*found)
