"""Recurrent state: one set per stream, one sample deep, saved, bounded."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from streamflow.errors import OptionError, PartitionError, SampleError
from streamflow.pipeline import Pipeline
from tests.pipeline.networks import assert_same, stream

WIDTH = 3
sgd = partial(torch.optim.SGD, lr=0.05)
KEYS = ["a", "b", "a", "a", "c", "b", "c", "a", "b", "b", "a", "c"]


class Cell(nn.Module):
    """A recurrent cell that assigns its state, or writes it in place."""

    def __init__(self, *, in_place: bool = False) -> None:
        super().__init__()
        self.cell = nn.GRUCell(WIDTH, WIDTH, dtype=torch.float64)
        self.in_place = in_place
        self.register_buffer("h", torch.full((1, WIDTH), 0.1, dtype=torch.float64))
        self.h: Tensor

    def forward(self, x: Tensor) -> Tensor:
        # Torch refuses to write into what a gradient still needs.
        h: Tensor = self.cell(x, self.h.clone() if self.in_place else self.h)
        if self.in_place:
            self.h.copy_(h)
        else:
            self.h = h
        return h


def recurrent(*, in_place: bool = False) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(WIDTH, WIDTH, dtype=torch.float64),
            Cell(in_place=in_place),
            nn.Linear(WIDTH, WIDTH, dtype=torch.float64),
            Cell(),
            nn.Linear(WIDTH, WIDTH, dtype=torch.float64),
        )


STATE = ["1.h", "3.h"]


def learner(net: nn.Module, **options: Any) -> Pipeline:
    given = {"loss": F.mse_loss, "optimizer": sgd, "state": STATE, **options}
    return Pipeline(net, **given)


def by_hand(net: nn.Module, inputs: Tensor, targets: Tensor, keys: list[Any]) -> Tensor:
    """Learn sequentially, each stream with a state of its own that is passed by value."""
    initial = {name: buffer.clone() for name, buffer in net.named_buffers()}
    states: dict[Any, dict[str, Tensor]] = {}
    optimizer = sgd(net.parameters())
    outputs = []
    for n, key in enumerate(keys):
        tensors = {name: t.clone() for name, t in states.get(key, initial).items()}
        optimizer.zero_grad()
        output = functional_call(net, tensors, (inputs[n : n + 1],))
        F.mse_loss(output, targets[n : n + 1]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        states[key] = {name: t.detach() for name, t in tensors.items()}
        outputs.append(output.detach())
    return torch.cat(outputs)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("executor", ["inline", "threads"])
@pytest.mark.parametrize("stages", [[], ["2"], ["1", "3", "4"]])
@pytest.mark.parametrize("keys", [KEYS, None])
def test_sequential_equals_a_loop_with_states_by_hand(
    stages: list[str], executor: str, in_place: bool, keys: list[str] | None
) -> None:
    net, plain = recurrent(in_place=in_place), recurrent(in_place=in_place)
    inputs, targets = stream(12, seed=0)
    wanted = by_hand(plain, inputs, targets, keys or ["one"] * 12)
    with learner(net, stages=stages, schedule="sequential", executor=executor) as pipe:
        outputs = [
            pipe.process(inputs[a:b], targets[a:b], keys=keys and keys[a:b])
            for a, b in [(0, 5), (5, 5), (5, 12)]
        ]
    torch.testing.assert_close(torch.cat(outputs), wanted, rtol=0, atol=1e-12)
    for parameter, other in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backward", ["own", "stashed"])
@pytest.mark.parametrize("executor", ["inline", "threads"])
def test_delayed_gradients_see_the_state_of_their_forward(backward: str, executor: str) -> None:
    """At a learning rate of 0 every gradient must be that of the loop by hand."""
    found: list[dict[int, Tensor]] = []

    class Recorder(torch.optim.SGD):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            for p in self.param_groups[0]["params"]:
                total[id(p)] = total.get(id(p), torch.zeros_like(p)) + p.grad

    for stages, schedule in [([], "sequential"), (["1", "2", "3", "4"], "1f1b")]:
        total: dict[int, Tensor] = {}
        net = recurrent(in_place=True)
        inputs, targets = stream(12, seed=0)
        with learner(
            net,
            stages=stages,
            schedule=schedule,
            backward=backward,
            executor=executor,
            optimizer=partial(Recorder, lr=0.0),
        ) as pipe:
            pipe.process(inputs, targets, keys=KEYS)
        found.append({index: total[id(p)] for index, p in enumerate(net.parameters())})
    for index, gradient in found[0].items():
        torch.testing.assert_close(found[1][index], gradient, rtol=0, atol=1e-12)


def test_infer_sees_the_state_of_each_stream_and_leaves_it() -> None:
    net = recurrent()
    inputs, targets = stream(12, seed=0)
    with learner(net, stages=["2"]) as pipe:
        pipe.process(inputs, targets, keys=KEYS)
        pipe.drain()
        first = pipe.infer(inputs[:4], keys=["a", "b", "c", "new"])
        assert torch.equal(pipe.infer(inputs[:4], keys=["a", "b", "c", "new"]), first)
        assert not torch.equal(*pipe.infer(inputs[[0, 0]], keys=["a", "b"]))
        again = pipe.process(inputs[1:2], learn=[False], keys=["b"])
        assert torch.equal(again[0], first[1])


@pytest.mark.parametrize("stages", [["2"], [], ["1", "3"]])
def test_a_saved_state_goes_on_in_any_number_of_stages(stages: list[str]) -> None:
    inputs, targets = stream(12, seed=0)
    nets = [recurrent() for _ in range(3)]
    options: dict[str, Any] = {"schedule": "sequential", "max_keys": 2}
    with learner(nets[0], stages=["2"], **options) as whole:
        wanted = whole.process(inputs, targets, keys=KEYS)
    with learner(nets[1], stages=["2"], **options) as first:
        first.process(inputs[:7], targets[:7], keys=KEYS[:7])
        state = copy.deepcopy(first.state_dict())
        first.process(inputs[7:], targets[7:], keys=KEYS[7:])
    assert state["recurrent"]["keys"] == ["b", "c"]
    with learner(nets[2], stages=stages, **options) as second:
        second.load_state_dict(state)
        assert torch.equal(second.process(inputs[7:], targets[7:], keys=KEYS[7:]), wanted[7:])
    assert_same(nets[2], nets[0])
    assert second.counters["forgotten"] == whole.counters["forgotten"] == 5


def test_the_stream_not_seen_for_the_longest_is_forgotten() -> None:
    inputs, _ = stream(1, seed=0)
    with learner(recurrent(), max_keys=2) as pipe:
        fresh = pipe.infer(inputs, keys=["a"])
        for key in ("a", "b", "a", "c"):
            pipe.process(inputs, learn=[False], keys=[key])
        assert pipe.counters["forgotten"] == 1
        assert torch.equal(pipe.infer(inputs, keys=["b"]), fresh)
        assert not torch.equal(pipe.infer(inputs, keys=["a"]), fresh)


def test_undeclared_state_is_one_for_all_samples_and_never_carries_gradients() -> None:
    net, plain = recurrent(in_place=True), recurrent(in_place=True)
    inputs, targets = stream(12, seed=0)
    wanted = by_hand(plain, inputs, targets, ["one"] * 12)
    with learner(net, state=(), schedule="sequential", stages=["2"]) as pipe:
        torch.testing.assert_close(pipe.process(inputs, targets), wanted, rtol=0, atol=1e-12)


def test_keys_that_cannot_work_say_so() -> None:
    inputs, targets = stream(2, seed=0)
    without = learner(recurrent(), state=())
    with pytest.raises(OptionError, match="keys: expected none without recurrent state"):
        without.process(inputs, targets, keys=["a", "b"])
    with learner(recurrent()) as pipe:
        with pytest.raises(SampleError, match="keys: expected one per sample, 2, got 1"):
            pipe.process(inputs, targets, keys=["a"])
        with pytest.raises(OptionError, match=r"keys: expected str, bytes, int.*got tuple"):
            pipe.infer(inputs, keys=[("a",), ("b",)])
        pipe.process(inputs, targets, keys=torch.tensor([3, 4]))
        assert pipe.state_dict()["recurrent"]["keys"] == [3, 4]


def test_state_that_two_stages_use_is_refused() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = (nn.Linear(3, 3), nn.Linear(3, 3))
            self.register_buffer("h", torch.zeros(1, 3))
            self.h: Tensor

        def forward(self, x: Tensor) -> Tensor:
            self.h.copy_(self.first(x + self.h))
            y: Tensor = self.second(self.h)
            return y

    with pytest.raises(PartitionError, match=r"recurrent state in one stage, got h in stages"):
        Pipeline(Shared(), stages=["second"], state=["h"])
