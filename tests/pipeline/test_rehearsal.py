import itertools

import pytest
import torch
import torch.nn.functional as F

from streamflow.pipeline.options import Options
from streamflow.pipeline.planning.costs import Cost
from streamflow.pipeline.planning.profiling import part_costs
from streamflow.pipeline.planning.rehearsal import (
    Rehearsal,
    Subject,
    in_turn,
    low,
    low_costs,
    recorded,
)
from tests.pipeline.networks import SGD, chain, stream


def subject(*kinds: str) -> Subject:
    options = Options(loss=F.mse_loss, optimizer=SGD, compile=False)
    return Subject(chain(kinds, 0), *stream(1, seed=0), options=options, initial={})


def test_tasks_take_turns_and_each_begins_with_the_same_weights() -> None:
    net = chain(["linear", "scale"], 0)
    weight, scale = net[0].weight, net[1].scale
    assert isinstance(weight, torch.Tensor)
    assert isinstance(scale, torch.Tensor)
    before, called = (weight.detach().clone(), scale.clone()), []

    def task(name: str) -> str:
        assert torch.equal(weight, before[0])
        assert torch.equal(scale, before[1])
        with torch.no_grad():
            weight.add_(1.0)
            scale.mul_(2.0)
        called.append(name)
        return name.upper()

    found = in_turn([net], [lambda: task("a"), lambda: task("b")], seconds=0.0)
    count = len(found[0])
    assert count > 1
    assert found == [["A"] * count, ["B"] * count]
    assert called == ["a", "b"] * count
    assert torch.equal(weight, before[0])
    assert torch.equal(scale, before[1])


def test_a_low_time_counts_and_not_the_lowest() -> None:
    assert low([9.0, 1.0, 5.0, 2.0, 7.0, 3.0, 8.0, 6.0]) == 3.0
    assert low([4.0]) == 4.0
    rounds = [[Cost(n, 10 - n, 0.0), Cost(0.0, 0.0, n)] for n in range(8)]
    assert low_costs(rounds) == [Cost(2, 5, 0.0), Cost(0.0, 0.0, 2)]


def test_a_recording_has_the_actions_of_every_stage() -> None:
    rehearsal = Rehearsal(subject("linear", "tanh", "linear"), ["1", "2"], "inline")
    rehearsal.settle(rehearsal.total)
    for cost, has_weights in zip(rehearsal.record(), (True, False, True), strict=True):
        assert cost.forward > 0
        assert cost.backward > 0
        assert (cost.update > 0) == has_weights
    assert [stage.updates.made for stage in rehearsal.stages] == [
        rehearsal.stages[0].updates.made
    ] * 3


def test_samples_of_a_measurement_are_whole_groups_of_an_update() -> None:
    own = subject("linear", "linear")
    rehearsal = Rehearsal(own, ["1"], "inline", accumulate=7)
    rehearsal.settle(rehearsal.process, at_least=8)
    assert rehearsal.count % 7 == 0
    assert rehearsal.count >= 8


@pytest.mark.parametrize("executor", ["inline", "threads"])
def test_a_measurement_leaves_nothing_in_flight(executor: str) -> None:
    rehearsal = Rehearsal(subject(*["linear"] * 3), ["1", "2"], executor)
    try:
        rehearsal.settle(rehearsal.process, at_least=5)
        before = rehearsal.stages[0].updates.made
        assert rehearsal.process() > 0
        # As many as a call before would have left in flight, and those that were timed.
        made = [stage.updates.made - before for stage in rehearsal.stages]
        assert made == [rehearsal.count + 3] * 3
    finally:
        rehearsal.close()


def test_a_recording_sees_updates_in_their_stage_and_the_lag_under_load() -> None:
    assert recorded(Options(schedule="greedy"), 2) == {"clip_over": "stage", "schedule": "1f1b"}
    assert recorded(Options(schedule="greedy"), 1) == {"clip_over": "stage"}
    lockstep = Options(schedule="lockstep", backward="newest")
    assert recorded(lockstep, 3) == {"clip_over": "stage"}


def test_layers_and_stage_together_take_what_the_whole_takes() -> None:
    singles = [Cost(3.0, 5.0, 2.0), Cost(2.5, 4.0, 0.0), Cost(4.0, 9.0, 3.0)]
    fixed, layers = part_costs(singles, Cost(5.5, 10.0, 4.0))
    assert (fixed.forward, fixed.backward, fixed.update) == (2.0, 4.0, 1.0)
    assert [layer.forward for layer in layers] == pytest.approx([1.0, 0.5, 2.0])
    # A layer without weights has no update, and the one of the stage is counted once less.
    assert [layer.update for layer in layers] == pytest.approx([1.0, 0.0, 2.0])


@pytest.mark.parametrize("noise", [0.0, 0.7, 1.0, 1.3])
def test_noise_makes_no_negative_costs(noise: float) -> None:
    times = [1.0 + noise, 1.0, 1.0 - noise / 2, 1.0]
    for whole, order in itertools.product([0.1, 1.0, 4.5], itertools.permutations(times)):
        fixed, layers = part_costs([Cost(time) for time in order], Cost(whole))
        assert fixed.forward >= 0
        assert all(layer.forward >= 0 for layer in layers)


def test_a_single_layer_is_the_whole() -> None:
    fixed, layers = part_costs([Cost(2.0, 3.0, 1.0)], Cost(2.0, 3.0, 1.0))
    assert (fixed, layers) == (Cost(0.0, 0.0, 0.0), [Cost(2.0, 3.0, 1.0)])


@pytest.mark.parametrize("executor", ["inline", "threads"])
def test_latencies_are_those_of_samples_and_leave_nothing_in_flight(executor: str) -> None:
    rehearsal = Rehearsal(subject(*["linear"] * 3), ["1", "2"], executor)
    try:
        alone, loaded = rehearsal.latency(1), rehearsal.latency(24)
        assert 0 < alone < 10
        assert 0 < loaded < 10
        assert [stage.updates.made for stage in rehearsal.stages] == [25] * 3
    finally:
        rehearsal.close()
