"""Stages that are cut at the first sample: the choice, what it leaves behind, and its keeping."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from streamflow.errors import OptionError, PartitionError, SampleError
from streamflow.pipeline import Pipeline
from tests.pipeline.networks import chain, stream

adam = partial(torch.optim.Adam, lr=0.01)
KINDS = ["linear", "tanh", "scale", "linear", "product", "linear"]


def learner(net: nn.Module, **options: Any) -> Pipeline:
    return Pipeline(net, **{"loss": F.mse_loss, "optimizer": adam, **options})


@pytest.mark.slow
@pytest.mark.parametrize("stages", [2, 3, "auto"])
def test_measuring_leaves_no_trace(stages: int | str) -> None:
    """Learning goes on as with the same cuts by name, whatever was measured before."""
    inputs, targets = stream(10, seed=0)
    net = chain(KINDS, 0)
    named = copy.deepcopy(net)
    random_state = torch.get_rng_state()
    with learner(net, stages=stages) as pipe:
        assert pipe.state_dict()["cuts"] is None
        outputs = pipe.process(inputs, targets)
        cuts = pipe.state_dict()["cuts"]
    with learner(named, stages=cuts) as other:
        first = other.process(inputs, targets)
    assert torch.equal(outputs, first)
    assert all(torch.equal(a, named.state_dict()[n]) for n, a in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert pipe.counters == other.counters


@pytest.mark.slow
def test_the_choice_is_kept_by_a_saved_state() -> None:
    inputs, targets = stream(10, seed=0)
    with learner(chain(KINDS, 0), stages=["1", "2", "5"]) as first:
        first.process(inputs, targets)
        state = first.state_dict()
        wanted = first.process(inputs, targets)
    for stages in (4, "auto"):
        with learner(chain(KINDS, 0), stages=stages) as second:
            second.load_state_dict(state)
            assert second.counters["samples"] == 10
            assert second.state_dict()["counters"] == state["counters"]
            assert second.state_dict()["cuts"] == ["1", "2", "5"]
            assert torch.equal(second.process(inputs, targets), wanted)
            assert second.state_dict()["cuts"] == ["1", "2", "5"]


@pytest.mark.slow
def test_a_state_goes_into_another_number_of_stages() -> None:
    inputs, targets = stream(10, seed=0)
    with learner(chain(KINDS, 0), stages=["3"], schedule="sequential") as first:
        first.process(inputs, targets)
        state = first.state_dict()
        wanted = first.process(inputs, targets)
    with learner(chain(KINDS, 0), stages=3, schedule="sequential") as second:
        second.load_state_dict(state)
        assert torch.equal(second.process(inputs, targets), wanted)
        assert len(second.state_dict()["cuts"]) == 2


@pytest.mark.slow
def test_stages_are_cut_without_a_target_too() -> None:
    inputs, targets = stream(4, seed=0)
    with learner(chain(KINDS, 0), stages=2) as pipe:
        first = pipe.infer(inputs)
        assert torch.equal(pipe.process(inputs[:1], targets[:1]), first[:1])
    with learner(chain(KINDS, 0), stages=2) as pipe:
        assert pipe.process(inputs[:0], targets[:0]).shape == (0, 3)


@pytest.mark.slow
def test_a_sample_that_does_not_fit_is_refused_before_stages_are_cut() -> None:
    inputs, targets = stream(4, seed=0)
    with learner(chain(KINDS, 0), stages=2) as pipe:
        with pytest.raises(SampleError):
            pipe.process(torch.randn(2, 7, dtype=torch.float64), targets[:2])
        assert pipe.process(inputs, targets).shape == (4, 3)


def test_more_stages_than_layers_are_refused_at_once() -> None:
    with pytest.raises(PartitionError, match="at most 6"):
        learner(chain(KINDS, 0), stages=7)


@pytest.mark.slow
def test_a_plan_of_named_stages_measures_those() -> None:
    inputs, targets = stream(4, seed=0)
    net = chain(KINDS, 0)
    before = copy.deepcopy(net.state_dict())
    with learner(net, stages=["2", "4"]) as pipe:
        with pytest.raises(OptionError, match="plan: expected a sample"):
            pipe.plan()
        plan = pipe.plan(inputs, targets)
        assert list(plan.cuts) == ["2", "4"]
        assert [stage.lag for stage in plan.stages] == [2, 1, 0]
        assert [layer.name for stage in plan.stages for layer in stage.layers] == list("012345")
        assert plan.rate > 0
        assert plan.latency > 0
        assert all(torch.equal(net.state_dict()[n], t) for n, t in before.items())
        assert "stage" in str(plan)
        assert plan.svg().startswith("<svg")


def test_a_timeline_needs_stages() -> None:
    with (
        learner(chain(KINDS, 0), stages=2) as pipe,
        pytest.raises(OptionError, match="timeline: expected stages"),
        pipe.timeline(),
    ):
        pass
