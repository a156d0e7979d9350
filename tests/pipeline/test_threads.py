"""The threads executor: the same results, no thread left, no hang."""

import copy
import gc
import random
import threading
import time

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamflow.errors import StageError
from streamflow.pipeline import Pipeline
from tests.pipeline.networks import (
    SCHEMES,
    SGD,
    assert_same,
    chain,
    cut_points,
    expected,
    process,
    stream,
)


class Faulty(nn.Module):
    """Passes its input on after a random delay and raises at one call of forward or backward."""

    def __init__(self, fault: int = -1) -> None:
        super().__init__()
        self.calls = 0
        self.fault = fault
        self.random = random.Random(7)

    def visit(self) -> None:
        self.calls += 1
        if self.calls == self.fault:
            msg = "injected"
            raise RuntimeError(msg)
        time.sleep(self.random.random() * 5e-4)

    def forward(self, x: Tensor) -> Tensor:
        self.visit()
        y = x * 1.0
        if y.requires_grad:
            y.register_hook(self._backward)  # type: ignore[no-untyped-call]
        return y

    def _backward(self, gradient: Tensor) -> None:
        self.visit()


def threaded(net: nn.Module, cuts: list[int], schedule: str, backward: str) -> Pipeline:
    return Pipeline(
        net,
        loss=F.mse_loss,
        optimizer=SGD,
        stages=[str(cut) for cut in cuts],
        schedule=schedule,
        backward=backward,
        executor="threads",
    )


def stage_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("streamflow stage")]


@pytest.mark.parametrize("scheme", [s for s in SCHEMES if s[0] != "greedy"])
@pytest.mark.parametrize("num_stages", [1, 2, 4])
def test_threads_equal_the_reference(scheme: tuple[str, str], num_stages: int) -> None:
    net = chain(["linear", "scale", "product", "tanh", "linear", "linear"], seed=3)
    net = nn.Sequential(*[part for layer in net for part in (layer, Faulty())])
    cuts = cut_points(len(net), num_stages, seed=num_stages)
    inputs, targets = stream(25, seed=4)
    learned = [n % 6 != 2 for n in range(25)]
    wanted, learned_net = expected(net, cuts, inputs, targets, learned, [11], *scheme)
    with threaded(net, cuts, *scheme) as pipe:
        assert torch.equal(process(pipe, inputs, targets, learned, [3, 4], [11]), wanted)
    assert_same(net, learned_net)
    assert not stage_threads()


@pytest.mark.parametrize("backward", ["own", "stashed"])
def test_greedy_in_threads_equals_a_replay_of_its_order(backward: str) -> None:
    net = chain(["linear", "scale", "product", "tanh", "linear", "linear"], seed=3)
    net = nn.Sequential(*[part for layer in net for part in (layer, Faulty())])
    original = copy.deepcopy(net)
    inputs, targets = stream(40, seed=4)
    with threaded(net, [3, 6, 9], "greedy", backward) as pipe, pipe.timeline() as timeline:
        outputs = pipe.process(inputs, targets)
    events = sorted(timeline.events, key=lambda event: event.start)
    order = [(event.action, event.stage, event.sample) for event in events]
    held = [0, 0, 0, 0]
    for action, stage, _ in order:
        held[stage] += 1 if action == "forward" else -1
        assert held[stage] <= 4 - stage
    wanted, learned_net = expected(
        original, [3, 6, 9], inputs, targets, [True] * 40, [], "greedy", backward, order
    )
    assert torch.equal(outputs, wanted)
    assert_same(net, learned_net)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("fault", [2, 3, 4, 7, 8, 9])
def test_a_fault_anywhere_reaches_the_caller_and_leaves_no_thread(stage: int, fault: int) -> None:
    layers = [part for layer in chain(["linear"] * 3, 1) for part in (layer, Faulty())]
    net = nn.Sequential(*layers)
    inputs, targets = stream(20, seed=1)
    pipe = threaded(net, [2, 4], "1f1b", "own")
    faulty = net[2 * stage + 1]
    assert isinstance(faulty, Faulty)
    faulty.fault = fault
    with pytest.raises(StageError, match=rf"stage {stage} .*sample \d+.*injected") as caught:
        process(pipe, inputs, targets, [True] * 20, range(20), [])
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert not stage_threads()
    with pytest.raises(StageError, match="injected"):
        pipe.process(inputs, targets)
    with pytest.raises(StageError, match="injected"):
        pipe.drain()


def test_a_forgotten_pipeline_stops_its_threads() -> None:
    inputs, targets = stream(3, seed=1)
    pipe = threaded(chain(["linear"] * 3, 1), [1], "1f1b", "own")
    pipe.process(inputs, targets)
    assert len(stage_threads()) == 2
    del pipe
    gc.collect()
    assert not stage_threads()


def test_an_exception_in_the_caller_abandons_and_leaves_no_thread() -> None:
    inputs, targets = stream(3, seed=1)
    pipe = threaded(chain(["linear"] * 3, 1), [1], "1f1b", "own")

    def leave() -> None:
        with pipe:
            pipe.process(inputs, targets)
            raise KeyError

    with pytest.raises(KeyError):
        leave()
    # Whether the second gradient was still applied is a race; the third waits for a sample or a drain.
    assert pipe.counters["updates"][0] in (1, 2)
    assert not stage_threads()
