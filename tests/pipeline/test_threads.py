"""The threads executor: the same results, no thread left, no hang."""

import copy
import gc
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import anyio
import anyio.to_thread
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

T = TypeVar("T")


class Delayed(nn.Module):
    """Passes its input and its gradient on after a random delay."""

    def __init__(self) -> None:
        super().__init__()
        self.random = random.Random(7)

    def visit(self) -> None:
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
    net = nn.Sequential(*[part for layer in net for part in (layer, Delayed())])
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
    net = nn.Sequential(*[part for layer in net for part in (layer, Delayed())])
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


class Tripwire:
    """Raises an error at one of its calls; the first passes are those that ask what fits."""

    def __init__(self, at: int, error: BaseException) -> None:
        self.calls, self.at, self.error = 0, at, error

    def __call__(self) -> None:
        self.calls += 1
        if self.calls == self.at:
            raise self.error


class Wired(nn.Module):
    """Trips in forwards, or in backwards that a graph was made for."""

    def __init__(self, wire: Tripwire, where: str) -> None:
        super().__init__()
        self.wire, self.where = wire, where

    def forward(self, x: Tensor) -> Tensor:
        y = x * 1.0
        if self.where == "forward":
            self.wire()
        elif y.requires_grad:
            y.register_hook(lambda gradient: self.wire())  # type: ignore[no-untyped-call]
        return y


class WiredSGD(torch.optim.SGD):
    """Trips in its step."""

    def __init__(self, parameters: Iterable[Tensor], wire: Tripwire) -> None:
        super().__init__(parameters, lr=0.01)
        self.wire = wire

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        self.wire()
        super().step()


def wired(scheme: tuple[str, str], where: str, stage: int, wire: Tripwire) -> Pipeline:
    """Build three stages in threads that trip at one place of one stage."""
    net = chain(["linear"] * 3, 1)
    if where in ("forward", "backward"):
        net[stage] = nn.Sequential(net[stage], Wired(wire, where))
    optimizers: list[Callable[..., torch.optim.Optimizer]] = [SGD, SGD, SGD]
    if where == "optimizer":
        optimizers[stage] = partial(WiredSGD, wire=wire)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        if where == "loss":
            wire()
        return F.mse_loss(output, target)

    pipe = Pipeline(
        net,
        loss=loss,
        optimizer=optimizers,
        stages=["1", "2"],
        schedule=scheme[0],
        backward=scheme[1],
        executor="threads",
    )
    if where in ("down", "up"):
        router: Any = pipe._router
        worker = router.assembly.executor.workers[stage]
        link = getattr(worker, where)

        def send(message: object) -> None:
            wire()
            link(message)

        setattr(worker, where, send)
    return pipe


HAND_OVERS = [
    (where, stage)
    for where in ("forward", "backward", "optimizer", "loss", "down", "up")
    for stage in range(3)
    if (where, stage) not in [("loss", 0), ("loss", 1), ("down", 2), ("up", 0)]
]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("error", [RuntimeError("injected"), KeyboardInterrupt("injected")])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("where", "stage"), HAND_OVERS)
@pytest.mark.parametrize("at", [3, 6])
def test_a_fault_at_any_hand_over_reaches_the_caller(
    where: str, stage: int, scheme: tuple[str, str], at: int, error: BaseException
) -> None:
    inputs, targets = stream(20, seed=1)
    pipe = wired(scheme, where, stage, Tripwire(at, error))
    with pytest.raises((StageError, type(error)), match="injected") as caught:
        process(pipe, inputs, targets, [True] * 20, range(0, 20, 3), [])
    if where in ("forward", "backward", "optimizer", "loss") and isinstance(error, Exception):
        assert isinstance(caught.value, StageError)
        assert caught.value.__cause__ is error
        assert f"stage {stage} " in str(caught.value)
    assert not stage_threads()
    for call in (lambda: pipe.process(inputs, targets), pipe.drain, lambda: pipe.infer(inputs)):
        with pytest.raises(StageError):
            call()
    pipe.close()
    assert not stage_threads()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("action", ["process", "drain"])
def test_an_interrupted_caller_leaves_no_thread(action: str) -> None:
    """The signal comes while a stage works, and the stage goes on when it was handled."""
    is_handled, main = threading.Event(), threading.get_ident()

    def handle(number: int, frame: object) -> None:
        is_handled.set()
        raise KeyboardInterrupt

    class Interrupting(nn.Module):
        is_armed = False

        def forward(self, x: Tensor) -> Tensor:
            y = x * 1.0
            if action == "process":
                self._visit()
            elif y.requires_grad:
                y.register_hook(lambda gradient: self._visit())  # type: ignore[no-untyped-call]
            return y

        def _visit(self) -> None:
            if self.is_armed:
                self.is_armed = False
                signal.pthread_kill(main, signal.SIGINT)
                assert is_handled.wait(50)

    inputs, targets = stream(5, seed=1)
    interrupting, layers = Interrupting(), chain(["linear"] * 3, 1)
    net = nn.Sequential(layers[0], interrupting, *layers[1:])
    pipe = threaded(net, [2], "1f1b", "own")
    pipe.process(inputs[:1], targets[:1])
    before = signal.signal(signal.SIGINT, handle)
    try:
        interrupting.is_armed = True
        with pytest.raises(KeyboardInterrupt):
            pipe.process(inputs[1:], targets[1:]) if action == "process" else pipe.drain()
    finally:
        signal.signal(signal.SIGINT, before)
    assert not stage_threads()
    with pytest.raises(StageError, match="KeyboardInterrupt"):
        pipe.process(inputs, targets)


def learn_in_threads(seed: int) -> None:
    net = chain(["linear", "scale", "product", "linear"], seed)
    inputs, targets = stream(30, seed)
    wanted, learned_net = expected(
        net, [1, 3], inputs, targets, [True] * 30, [10], "1f1b", "stashed"
    )
    with threaded(net, [1, 3], "1f1b", "stashed") as pipe:
        outputs = process(pipe, inputs, targets, [True] * 30, [3, 20], [10])
    assert torch.equal(outputs, wanted)
    assert_same(net, learned_net)


@pytest.mark.timeout(60)
def test_pipelines_do_not_disturb_each_other() -> None:
    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(learn_in_threads, seed) for seed in range(8)]:
            future.result()
    assert not stage_threads()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_a_pipeline_works_in_a_worker_thread_of_an_event_loop(anyio_backend: str) -> None:
    async with anyio.create_task_group() as tasks:
        for seed in range(3):
            tasks.start_soon(anyio.to_thread.run_sync, learn_in_threads, seed)
    assert not stage_threads()


@pytest.mark.timeout(60)
def test_each_call_may_come_from_another_thread() -> None:
    net = chain(["linear", "scale", "linear"], 0)
    inputs, targets = stream(9, 0)
    wanted, learned_net = expected(net, [1, 2], inputs, targets, [True] * 9, [], "1f1b", "own")

    def in_thread(function: Callable[[], T]) -> T:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(function).result()

    pipe = in_thread(lambda: threaded(net, [1, 2], "1f1b", "own"))
    outputs = [
        in_thread(lambda n=n: pipe.process(inputs[n : n + 1], targets[n : n + 1]))  # type: ignore[misc]
        for n in range(9)
    ]
    in_thread(pipe.close)
    assert torch.equal(torch.cat(outputs), wanted)
    assert_same(net, learned_net)
    assert not stage_threads()


@pytest.mark.timeout(60)
def test_a_forgotten_pipeline_stops_its_threads() -> None:
    inputs, targets = stream(3, seed=1)
    pipe = threaded(chain(["linear"] * 3, 1), [1], "1f1b", "own")
    pipe.process(inputs, targets)
    assert len(stage_threads()) == 2
    del pipe
    gc.collect()
    assert not stage_threads()


@pytest.mark.timeout(60)
def test_an_exception_in_the_caller_abandons_and_leaves_no_thread() -> None:
    inputs, targets = stream(3, seed=1)
    pipe = threaded(chain(["linear"] * 3, 1), [1], "1f1b", "own")

    def leave() -> None:
        with pipe:
            pipe.process(inputs, targets)
            raise KeyError

    with pytest.raises(KeyError):
        leave()
    # Whether the second gradient was applied is a race; the third waits for a sample or a drain.
    assert pipe.counters["updates"][0] in (1, 2)
    assert not stage_threads()


@pytest.mark.parametrize(
    ("schedule", "backward", "held", "gradients"),
    [
        ("1f1b", "own", [2, 1, 0], [1, 1, 0]),
        ("lockstep", "newest", [4, 2, 0], [2, 2, 0]),
        ("sequential", "own", [0, 0, 0], [0, 0, 0]),
        ("greedy", "own", [0, 0, 0], [0, 0, 0]),
    ],
)
def test_stages_that_settled_have_done_all_that_they_can(
    schedule: str, backward: str, held: list[int], gradients: list[int]
) -> None:
    net = chain(["linear", "tanh"] * 3, seed=0)
    net = nn.Sequential(*[part for layer in net for part in (layer, Delayed())])
    inputs, targets = stream(20, seed=0)
    with threaded(net, [4, 8], schedule, backward) as pipe:
        for first in (0, 1, 10):
            pipe.process(inputs[first : first + 10], targets[first : first + 10])
            assert pipe._router is not None
            executor = pipe._router.assembly.executor
            executor.settle()
            assert [len(samples) for samples in executor.in_flight.held] == held
            assert [len(waiting) for waiting in executor.in_flight.gradients] == gradients
