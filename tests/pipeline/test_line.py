"""Several compiled stages, inline and in threads, against the specification and the eager ones."""

import copy
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR

from streamflow.errors import StageError
from streamflow.pipeline import Pipeline
from tests.pipeline.networks import SGD, chain, expected, process, stream
from tests.pipeline.test_compiled import adam, assert_close, both
from tests.pipeline.test_states import KEYS, recurrent
from tests.pipeline.test_states import STATE as RECURRENT

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("cache")]

EXECUTORS = ["inline", "threads"]
BLOCK = ["linear", "tanh", "scale"]
SCHEMES = [
    ("sequential", "own"),
    ("1f1b", "own"),
    ("greedy", "own"),
    ("lockstep", "newest"),
]


def blocks(count: int) -> tuple[nn.Sequential, list[int]]:
    """Return blocks of equal layers, and the cuts between them: stages share their code."""
    return chain(BLOCK * count, 0), list(range(len(BLOCK), len(BLOCK) * count, len(BLOCK)))


def names(cuts: list[int]) -> list[str]:
    return [str(cut) for cut in cuts]


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize(("schedule", "backward"), SCHEMES)
@pytest.mark.parametrize("num_stages", [2, 3, 4])
def test_every_schedule_is_the_specification(
    num_stages: int, schedule: str, backward: str, executor: str
) -> None:
    net, cuts = blocks(num_stages)
    inputs, targets = stream(60, seed=num_stages)
    learned = [n % 7 not in (3, 4) for n in range(60)]
    # In threads a greedy stage is exact as long as no sample waits.
    drains = list(range(60)) if schedule == "greedy" else [37]
    calls = [12, 13, 30, 31, 45]
    wanted, learner = expected(net, cuts, inputs, targets, learned, drains, schedule, backward)
    with Pipeline(
        net,
        loss=F.mse_loss,
        optimizer=SGD,
        stages=names(cuts),
        schedule=schedule,
        backward=backward,
        executor=executor,
        compile=True,
    ) as pipe:
        found = process(pipe, inputs, targets, learned, calls, drains)
        assert pipe.learning == f"compiled: own kernels, {executor}"
        assert pipe.counters["updates"] == [sum(learned)] * num_stages
    assert_close(found, wanted)
    assert_close(net.state_dict(), learner.state_dict())


@pytest.mark.parametrize("executor", EXECUTORS)
def test_steps_counters_schedules_and_states_are_those_of_eager_stages(executor: str) -> None:
    net, cuts = blocks(2)
    inputs, targets = stream(90, seed=0)
    weights = [1.0 + (n % 3) / 2 for n in range(90)]
    call: dict[str, Any] = {"inputs": inputs, "targets": targets, "weights": weights}
    calls = [{name: rows[a:b] for name, rows in call.items()} for a, b in ((0, 30), (30, 90))]
    both(
        net,
        *calls,
        optimizer=adam,
        stages=names(cuts),
        executor=executor,
        scheduler=partial(ExponentialLR, gamma=0.97),
        clip_norm=0.5,
    )


@pytest.mark.parametrize("executor", EXECUTORS)
def test_what_is_not_finite_is_skipped_by_the_stages_that_see_it(executor: str) -> None:
    net, cuts = blocks(3)
    inputs, targets = stream(60, seed=1)
    targets[40] = 1e200  # the last stage's loss is not finite
    targets[50] = 1e150  # its gradients are, but not those of a stage before
    with torch.no_grad():
        net[cuts[1]].get_parameter("weight").mul_(1e170)
    calls = [{"inputs": inputs[a:b], "targets": targets[a:b]} for a, b in ((0, 30), (30, 60))]
    pipe, _ = both(net, *calls, optimizer=SGD, stages=names(cuts), executor=executor)
    assert pipe.counters["skipped"][2] > 0


@pytest.mark.parametrize("executor", EXECUTORS)
def test_recurrent_states_follow_their_streams(executor: str) -> None:
    count = 3 * len(KEYS)
    inputs, targets = stream(count, seed=0)
    call: dict[str, Any] = {"inputs": inputs, "targets": targets, "keys": KEYS * 3}
    half = count // 2
    parts = [{k: v[:half] for k, v in call.items()}, {k: v[half:] for k, v in call.items()}]
    options: dict[str, Any] = {"state": RECURRENT, "max_keys": 2, "optimizer": SGD}
    pipe, _ = both(recurrent(), *parts, **options, stages=["2"], executor=executor)
    assert pipe.counters["forgotten"] > 0


class Normal(nn.Module):
    """Normalises over several values of a channel, with running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 6, dtype=torch.float64)
        self.norm = nn.BatchNorm1d(2, dtype=torch.float64)
        self.back = nn.Linear(6, 3, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        channels = self.norm(self.linear(x).unflatten(1, (2, 3)))
        return self.back(channels.flatten(1).tanh())  # type: ignore[no-any-return]


def test_batch_norm_learns_in_every_stage() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(Normal(), Normal())
    inputs, targets = stream(60, seed=2)
    calls = [{"inputs": inputs[a:b], "targets": targets[a:b]} for a, b in ((0, 30), (30, 60))]
    pipe, _ = both(net, *calls, optimizer=SGD, stages=["1"], executor="inline")
    assert pipe.learning == "compiled: own kernels, inline"
    assert net.get_buffer("1.norm.num_batches_tracked") == 60


@pytest.mark.parametrize("executor", EXECUTORS)
def test_gradients_in_flight_go_over_to_the_eager_stages_and_back(executor: str) -> None:
    net, cuts = blocks(4)
    inputs, targets = stream(80, seed=3)
    weights = torch.ones(80)
    plain = copy.deepcopy(net)
    options: dict[str, Any] = {"loss": F.mse_loss, "optimizer": SGD, "stages": names(cuts)}
    with (
        Pipeline(net, **options, executor=executor, compile=True) as pipe,
        Pipeline(plain, **options, compile=False) as wanted,
    ):
        for first in range(0, 80, 20):
            rows = inputs[first : first + 20], targets[first : first + 20]
            for is_weighted in (False, True):  # another kind of samples, with code of its own
                part = slice(0, 11) if is_weighted else slice(11, 20)
                given = {"weights": weights[part]} if is_weighted else {}
                call = [tensor[part] for tensor in rows]
                assert_close(pipe.process(*call, **given), wanted.process(*call, **given))
        assert pipe.learning.startswith("compiled")
        unlearned = torch.zeros(5, dtype=torch.bool)
        for learn in (unlearned, None):
            assert_close(
                pipe.process(inputs[:5], targets[:5] if learn is None else None, learn),
                wanted.process(inputs[:5], targets[:5] if learn is None else None, learn),
            )
        for group in (*groups(pipe), *groups(wanted)):
            group["weight_decay"] = 0.1  # what the code does not know
        assert_close(pipe.process(inputs, targets), wanted.process(inputs, targets))
        assert pipe.learning.startswith("eager: settings of the optimizer change")
    assert_close(net.state_dict(), plain.state_dict())


def groups(pipe: Pipeline) -> Iterator[dict[str, Any]]:
    assert pipe._router is not None
    for stage in pipe._router.assembly.stages:
        assert stage.updates.optimizer is not None
        yield from stage.updates.optimizer.param_groups


def test_predictions_meanwhile_use_the_newest_weights() -> None:
    net, cuts = blocks(2)
    plain = copy.deepcopy(net)
    inputs, targets = stream(60, seed=4)
    options: dict[str, Any] = {"loss": F.mse_loss, "optimizer": SGD, "stages": names(cuts)}
    with (
        Pipeline(net, **options, compile=True) as pipe,
        Pipeline(plain, **options, compile=False) as wanted,
    ):
        for first in (0, 30):
            rows = inputs[first : first + 30], targets[first : first + 30]
            assert_close(pipe.process(*rows), wanted.process(*rows))
            assert_close(pipe.infer(inputs[:20]), wanted.infer(inputs[:20]))
        for training in (False, True):
            net.train(training)
            plain.train(training)
            assert_close(pipe.process(*rows), wanted.process(*rows))
        assert pipe.learning.startswith("compiled")


def test_a_state_goes_into_another_number_of_stages() -> None:
    inputs, targets = stream(60, seed=5)
    nets = [blocks(3)[0] for _ in range(2)]
    for net, compiled in zip(nets, (True, False), strict=True):
        options: dict[str, Any] = {"loss": F.mse_loss, "optimizer": SGD}
        with Pipeline(net, **options, stages=["3", "6"], compile=compiled) as pipe:
            pipe.process(inputs[:30], targets[:30])
            assert pipe.learning.startswith("compiled") is compiled
            state = pipe.state_dict()
        with Pipeline(net, **options, stages=["6"], compile=False) as pipe:
            pipe.load_state_dict(state)
            pipe.process(inputs[30:], targets[30:])
    assert_close(nets[0].state_dict(), nets[1].state_dict())


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 3, dtype=torch.float64)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        return x + self.table(index)  # type: ignore[no-any-return]


class Lookup(nn.Module):
    """Looks a number up behind a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3, dtype=torch.float64)
        self.table = Table()

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        return self.table(self.linear(x), index)  # type: ignore[no-any-return]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_an_error_names_stage_and_sample_and_leaves_no_thread(executor: str) -> None:
    torch.manual_seed(0)
    inputs, targets = stream(40, seed=6)
    index = torch.arange(40) % 5
    with Pipeline(
        Lookup(),
        loss=F.mse_loss,
        optimizer=SGD,
        stages=["table"],
        executor=executor,
        compile=True,
    ) as pipe:
        pipe.process((inputs, index), targets)
        assert pipe.learning.startswith("compiled")
        index[17] = 7
        with pytest.raises(StageError, match=r"stage 1 \(table\), sample 57: expected compiled"):
            pipe.process((inputs, index), targets)
        with pytest.raises(StageError):
            pipe.process((inputs[:1], index[:1]), targets[:1])
    assert not [thread for thread in threading.enumerate() if "stage" in thread.name]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_stages_that_call_libraries_are_compiled_too(executor: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(3, 6, dtype=torch.float64),
        nn.Unflatten(1, (2, 3)),
        nn.Linear(3, 3, dtype=torch.float64),  # of two rows each, which a library multiplies
    )
    inputs, _ = stream(40, seed=7)
    targets, _ = stream(80, seed=8)
    targets = targets.view(40, 2, 3)
    targets[35] = 1e200
    learn = torch.tensor([n % 7 != 3 for n in range(40)])
    calls = [
        {"inputs": inputs[part], "targets": targets[part], "learn": learn[part]}
        for part in (slice(0, 20), slice(20, 40))
    ]
    pipe, _ = both(net, *calls, optimizer=adam, stages=["1"], executor=executor)
    assert pipe.learning == f"compiled: library calls, {executor}"
    assert pipe.counters["skipped"] == [0, 1]
