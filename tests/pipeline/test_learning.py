"""How gradients become updates: groups, schedules, clipping, accumulation."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import (
    ExponentialLR,
    LinearLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from streamflow.errors import OptionError, StageError
from streamflow.pipeline import Pipeline
from tests.pipeline.networks import SCHEMES, assert_same, chain, expected, stream

sgd = partial(SGD, lr=0.05, momentum=0.5)
KINDS = ["linear", "tanh", "scale", "linear", "product", "linear"]


def learner(net: nn.Module, **options: Any) -> Pipeline:
    return Pipeline(net, **{"loss": F.mse_loss, "optimizer": sgd, "stages": ["2", "4"], **options})


def plain_loop(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    targets: Tensor,
    *,
    scheduler: Any = None,
    max_norm: float | None = None,
    accumulate: int = 1,
) -> Tensor:
    outputs = []
    for n in range(len(inputs)):
        output = net(inputs[n : n + 1])
        (F.mse_loss(output, targets[n : n + 1]) / accumulate).backward()  # type: ignore[no-untyped-call]
        outputs.append(output.detach())
        if (n + 1) % accumulate:
            continue
        if max_norm is not None:
            nn.utils.clip_grad_norm_(net.parameters(), max_norm)
        optimizer.step()
        optimizer.zero_grad()
        if scheduler is not None:
            scheduler.step()
    return torch.cat(outputs)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("accumulate", [2, 3])
@pytest.mark.parametrize("executor", ["inline", "threads"])
def test_accumulated_updates_equal_the_reference(
    scheme: tuple[str, str], accumulate: int, executor: str
) -> None:
    if scheme[0] == "greedy" and executor == "threads":
        pytest.skip("its order is not known beforehand")
    net = chain(KINDS, 0)
    inputs, targets = stream(20, seed=0)
    learned = [n % 5 != 3 for n in range(20)]
    wanted, learned_net = expected(
        net, [2, 4], inputs, targets, learned, [7], *scheme, accumulate=accumulate
    )
    options = {"schedule": scheme[0], "backward": scheme[1], "executor": executor}
    optimizer = partial(SGD, lr=0.01, momentum=0.5)
    with learner(net, accumulate=accumulate, optimizer=optimizer, **options) as pipe:
        first = pipe.process(inputs[:7], targets[:7], learned[:7])
        pipe.drain()
        second = pipe.process(inputs[7:], targets[7:], learned[7:])
    assert torch.equal(torch.cat([first, second]), wanted)
    assert_same(net, learned_net)
    assert pipe.counters["updates"] == [16 // accumulate] * 3


@pytest.mark.parametrize("cuts", [["2", "4"], [], ["3"]])
def test_a_started_group_is_saved_and_goes_on_in_other_stages(cuts: list[str]) -> None:
    inputs, targets = stream(10, seed=0)
    nets = [chain(KINDS, 0) for _ in range(3)]
    options: dict[str, Any] = {"schedule": "sequential", "accumulate": 4}
    with learner(nets[0], **options) as whole:
        wanted = whole.process(inputs, targets)
    with learner(nets[1], **options) as first:
        first.process(inputs[:6], targets[:6])
        state = first.state_dict()
    assert {entry["count"] for entry in state["accumulated"].values()} == {2}
    with learner(nets[2], **{**options, "stages": cuts}) as second:
        second.load_state_dict(state)
        assert torch.equal(second.process(inputs[6:], targets[6:]), wanted[6:])
    assert_same(nets[2], nets[0])
    assert second.counters["updates"] == [2] * (len(cuts) + 1)


def test_a_schedule_steps_once_per_update() -> None:
    net = chain(KINDS, 0)
    plain = copy.deepcopy(net)
    inputs, targets = stream(12, seed=0)
    decay = partial(ExponentialLR, gamma=0.8)
    with learner(net, stages=1, scheduler=decay, accumulate=2) as pipe:
        outputs = pipe.process(inputs, targets)
    optimizer = sgd(plain.parameters())
    wanted = plain_loop(plain, optimizer, inputs, targets, scheduler=decay(optimizer), accumulate=2)
    torch.testing.assert_close(outputs, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("stages", [["2", "4"], [], ["3"]])
def test_a_schedule_is_saved_and_goes_on(stages: list[str]) -> None:
    def warm_up(optimizer: torch.optim.Optimizer) -> SequentialLR:
        parts = [LinearLR(optimizer, 0.1, total_iters=4), StepLR(optimizer, 3, gamma=0.5)]
        return SequentialLR(optimizer, parts, milestones=[4])

    inputs, targets = stream(16, seed=0)
    nets = [chain(KINDS, 0) for _ in range(3)]
    options: dict[str, Any] = {"schedule": "sequential", "scheduler": warm_up}
    with learner(nets[0], **options) as whole:
        wanted = whole.process(inputs, targets)
    with learner(nets[1], **options) as first:
        first.process(inputs[:6], targets[:6])
        state = first.state_dict()
    with learner(nets[2], **{**options, "stages": stages}) as second:
        second.load_state_dict(state)
        assert torch.equal(second.process(inputs[6:], targets[6:]), wanted[6:])
    assert_same(nets[2], nets[0])


def test_groups_give_parameters_their_settings() -> None:
    net = chain(KINDS, 0)
    plain = copy.deepcopy(net)
    inputs, targets = stream(12, seed=0)
    groups = {"0.*": {"lr": 0.0}, "*.bias": {"lr": 0.2, "momentum": 0.0}}
    with learner(net, stages=["3"], schedule="sequential", groups=groups) as pipe:
        outputs = pipe.process(inputs, targets)
    frozen = [p for n, p in plain.named_parameters() if n.startswith("0.")]
    biases = [p for n, p in plain.named_parameters() if n in ("3.bias", "5.bias")]
    others = [p for p in plain.parameters() if not any(p is q for q in frozen + biases)]
    settings: list[dict[str, Any]] = [
        {"params": frozen, "lr": 0.0},
        {"params": biases, "lr": 0.2, "momentum": 0.0},
        {"params": others},
    ]
    optimizer = sgd(settings)
    wanted = plain_loop(plain, optimizer, inputs, targets)
    torch.testing.assert_close(outputs, wanted, rtol=0, atol=1e-12)


def test_every_stage_may_have_its_own_optimizer() -> None:
    net = chain(KINDS, 0)
    plain = copy.deepcopy(net)
    inputs, targets = stream(12, seed=0)
    adam = partial(Adam, lr=0.01)
    with learner(net, stages=["3"], schedule="sequential", optimizer=[sgd, adam]) as pipe:
        outputs = pipe.process(inputs, targets)

    class Both(torch.optim.Optimizer):
        parts = (sgd(plain[:3].parameters()), adam(plain[3:].parameters()))

        def step(self, closure: object = None) -> None:  # type: ignore[override]
            for part in self.parts:
                part.step()

    wanted = plain_loop(plain, Both(plain.parameters(), {}), inputs, targets)
    torch.testing.assert_close(outputs, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("executor", ["inline", "threads"])
@pytest.mark.parametrize("stages", [[], ["2", "4"]])
def test_clipping_over_the_network_equals_the_plain_loop(
    stages: list[str], executor: str, accumulate: int
) -> None:
    net = chain(KINDS, 0)
    plain = copy.deepcopy(net)
    inputs, targets = stream(12, seed=0)
    with learner(
        net,
        stages=stages,
        schedule="sequential",
        executor=executor,
        clip_norm=0.1,
        clip_over="network",
        accumulate=accumulate,
    ) as pipe:
        outputs = pipe.process(inputs, targets)
    wanted = plain_loop(
        plain, sgd(plain.parameters()), inputs, targets, max_norm=0.1, accumulate=accumulate
    )
    torch.testing.assert_close(outputs, wanted, rtol=0, atol=1e-12)
    for parameter, other in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter, other, rtol=0, atol=1e-12)


def test_clipping_over_the_network_skips_a_sample_in_all_stages() -> None:
    def loss(y: Tensor, t: Tensor) -> Tensor:
        return (y - t).square().mean() / t.sum()

    inputs, targets = stream(6, seed=0)
    targets[2] = 0.0
    nets = [chain(KINDS, 0), chain(KINDS, 0)]
    options: dict[str, Any] = {
        "loss": loss,
        "schedule": "sequential",
        "clip_norm": 0.1,
        "clip_over": "network",
    }
    with learner(nets[0], **options) as pipe:
        pipe.process(inputs, targets)
    with learner(nets[1], **options) as other:
        other.process(inputs, targets, learn=[n != 2 for n in range(6)])
    assert_same(nets[0], nets[1])
    assert pipe.counters["updates"] == [5, 5, 5]


def test_gradients_that_share_memory_are_clipped_once() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.zeros(3, dtype=torch.float64))
            self.b = nn.Parameter(torch.zeros(3, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.a + self.b

    net = Sum()
    inputs, targets = stream(1, seed=0)
    optimizer = partial(SGD, lr=1.0)
    with learner(net, stages=1, optimizer=optimizer, clip_norm=1e-3, accumulate=1) as pipe:
        pipe.process(inputs, targets)
    norm = torch.cat([net.a, net.b]).norm()
    torch.testing.assert_close(norm.item(), 1e-3, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_norm": 1.0, "clip_over": "network"}, "clip_over: .*clip per stage"),
        ({"clip_norm": 0}, "clip_norm: expected a positive number"),
        ({"accumulate": 0}, "accumulate: expected an int from 1"),
        ({"optimizer": [sgd, sgd]}, "optimizer: expected one per stage, 3, got 2"),
        ({"groups": {"nine.*": {"lr": 1.0}}}, "groups: .*'nine"),
        ({"scheduler": partial(ReduceLROnPlateau)}, "scheduler: .*ReduceLROnPlateau"),
        ({"scheduler": lambda optimizer: None}, "scheduler: expected a callable that makes"),
        ({"loss": None, "optimizer": None, "accumulate": 2}, "accumulate: expected none without"),
        ({"devices": ["cpu", "cpu"]}, "devices: expected one per stage, 3, got 2"),
        ({"devices": "cuda:77"}, "devices: expected devices of this machine, got 'cuda:77'"),
        ({"rate": 100.0}, "rate: expected none with stages"),
        ({"state": ["memory"]}, "state: expected names of the network's buffers, got 'memory'"),
    ],
)
def test_options_that_cannot_work_say_so(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        learner(chain(KINDS, 0), **options)


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(3), nn.InstanceNorm1d(3)])
def test_normalising_a_single_value_is_refused_with_a_cure(layer: nn.Module) -> None:
    net = nn.Sequential(nn.Linear(3, 3), layer, nn.Linear(3, 1))
    inputs = torch.randn(4, 3, 1) if isinstance(layer, nn.InstanceNorm1d) else torch.randn(4, 3)
    if isinstance(layer, nn.InstanceNorm1d):
        net[0] = nn.Identity()
        net[2] = nn.Identity()
    options: dict[str, Any] = {"loss": lambda y: y.sum(), "stages": ["1"]}
    with (
        learner(net, **options) as pipe,
        pytest.raises(OptionError, match=r"Norm1d 1.*LayerNorm"),
    ):
        pipe.process(inputs)
    if isinstance(layer, nn.BatchNorm1d):
        net.eval()
        with learner(net, **options) as pipe:
            assert pipe.process(inputs).shape == (4, 1)


def test_outputs_of_changing_shape_break_the_pipeline_and_say_why() -> None:
    class Growing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, : 2 if float(x.detach().sum()) > 0 else 3]

    net = nn.Sequential(*chain(["linear"], 0), Growing())
    pipe = Pipeline(net)
    with pytest.raises(StageError, match=r"sample \d: expected an output like that of sample 0"):
        pipe.process(torch.linspace(-3, 3, 12, dtype=torch.float64).reshape(4, 3))
    with pytest.raises(StageError, match="one shape"):
        pipe.drain()


def test_modes_may_change_between_calls_although_code_was_traced() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = chain(["linear"] * 2, 0)

        def forward(self, x: Tensor) -> Tensor:
            y = F.dropout(self.first(x), 0.5, self.training)
            z: Tensor = self.second(y)
            return z

    inputs, targets = stream(8, seed=0)
    net = Noisy()
    net.eval()
    wanted = net(inputs).detach()
    net.train()
    with learner(net, stages=["second"], optimizer=partial(SGD, lr=0.0)) as pipe:
        assert not torch.allclose(pipe.process(inputs, targets), wanted)
        net.eval()
        torch.testing.assert_close(pipe.process(inputs, targets), wanted)
        torch.testing.assert_close(pipe.infer(inputs), wanted)
        net.train()
        assert not torch.allclose(pipe.infer(inputs), wanted)


@pytest.mark.parametrize("stages", [["2", "4"], ["3"]])
def test_settings_that_are_declared_otherwise_win_over_saved_ones(stages: list[str]) -> None:
    inputs, targets = stream(6, seed=0)
    halving = partial(StepLR, step_size=2, gamma=0.5)
    with learner(chain(KINDS, 0), scheduler=halving) as first:
        first.process(inputs, targets)
        state = first.state_dict()
    for lr, momentum in [(0.05, 0.5), (0.2, 0.5), (0.05, 0.9)]:
        optimizer = partial(SGD, lr=lr, momentum=momentum)
        net = chain(KINDS, 0)
        with learner(net, stages=stages, scheduler=halving, optimizer=optimizer) as second:
            second.load_state_dict(state)
            settings = second.state_dict()["optimizer"]["settings"]["0.weight"]
        assert settings["lr"] == (0.05 / 8 if lr == 0.05 else lr)
        assert settings["momentum"] == momentum


def test_a_schedule_that_is_declared_otherwise_wins() -> None:
    inputs, targets = stream(6, seed=0)
    with learner(chain(KINDS, 0), scheduler=partial(StepLR, step_size=2, gamma=0.5)) as first:
        first.process(inputs, targets)
        state = first.state_dict()
    with learner(chain(KINDS, 0), scheduler=partial(StepLR, step_size=2, gamma=0.1)) as second:
        second.load_state_dict(state)
        second.process(inputs[:2], targets[:2])
        rate = second.state_dict()["optimizer"]["settings"]["5.weight"]["lr"]
    assert rate == pytest.approx(0.05 / 8 * 0.1)
