from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamflow.bench.contestants import Contestant, WayJob, open_contestant
from streamflow.bench.samples import Waiting
from streamflow.bench.ways import Way
from streamflow.models.model import Model
from tests.bench.networks import Recurrent

LOOP = Way("loop-1", "loop", is_compiled=False)
EAGER = Way("eager", "inline", is_compiled=False)
WAYS = [LOOP, EAGER, Way("threads-1", "threads", is_compiled=False)]
COUNTS = (4, 1, 4, 3, 5, 1)
TAKEN = [*range(4), 4, *range(4), 4, 5, 6, *range(5), 5]


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def samples() -> Waiting:
    generator = torch.Generator().manual_seed(0)
    inputs, targets = (torch.randn(8, width, generator=generator) for width in (3, 1))
    return Waiting(inputs.numpy(), targets.numpy())


def job(net: nn.Module, way: Way, waiting: Waiting, **options: Any) -> WayJob:
    declared: dict[str, Any] = {"inputs": ["in"], "features": "x", "target": "y"}
    model = Model(**declared | {"network": lambda: net} | options)
    return WayJob(model, Path(), way, 1, (), waiting)


def learn(net: nn.Module, way: Way, **options: Any) -> dict[str, Tensor]:
    with open_contestant(job(net, way, samples(), **options)) as contestant:
        for count in COUNTS:
            contestant.take(count)
        contestant.finish()
    return {name: value.detach().clone() for name, value in net.named_parameters()}


def by_hand(net: nn.Module, index: int, optimizer: torch.optim.Optimizer) -> None:
    waiting = samples()
    assert waiting.targets is not None
    x, y = (torch.from_numpy(rows[index : index + 1]) for rows in (waiting.inputs, waiting.targets))
    optimizer.zero_grad()
    F.mse_loss(net(x), y).backward()  # type: ignore[no-untyped-call]


def assert_equal(found: dict[str, Tensor], net: nn.Module) -> None:
    for name, wanted in net.named_parameters():
        torch.testing.assert_close(found[name], wanted.detach(), rtol=0, atol=0)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_samples_are_learned_in_turn_one_update_each(way: Way) -> None:
    found = learn(network(), way, optimizer={"SGD": {"lr": 0.1, "momentum": 0.5}})
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.5)
    for index in TAKEN:
        by_hand(net, index, optimizer)
        optimizer.step()
    assert_equal(found, net)


@pytest.mark.parametrize("clip_norm", [None, 0.2])
@pytest.mark.parametrize("way", WAYS[:2], ids=lambda way: way.name)
def test_the_options_of_a_model_shape_the_updates(way: Way, clip_norm: float | None) -> None:
    found = learn(
        network(),
        way,
        optimizer={"SGD": {"lr": 0.1}},
        groups={"*.bias": {"lr": 0.3}},
        scheduler={"ExponentialLR": {"gamma": 0.9}},
        accumulate=2,
        clip_norm=clip_norm,
    )
    net = network()
    groups: list[dict[str, Any]] = [
        {"params": [value for name, value in net.named_parameters() if "bias" not in name]},
        {"params": [value for name, value in net.named_parameters() if "bias" in name], "lr": 0.3},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.9)
    held = [torch.zeros_like(value) for value in net.parameters()]
    for number, index in enumerate(TAKEN, start=1):
        by_hand(net, index, optimizer)
        for sum_, value in zip(held, net.parameters(), strict=True):
            assert value.grad is not None
            sum_ += value.grad / 2
        if number % 2 == 0:
            for sum_, value in zip(held, net.parameters(), strict=True):
                value.grad = sum_.clone()
                sum_.zero_()
            nn.utils.clip_grad_norm_(net.parameters(), clip_norm or float("inf"))
            optimizer.step()
            schedule.step()
    for name, wanted in net.named_parameters():
        torch.testing.assert_close(found[name], wanted.detach(), rtol=1e-5, atol=1e-7)


def test_recurrent_state_goes_on_without_its_past() -> None:
    torch.manual_seed(2)
    first, second = Recurrent(), Recurrent()
    second.load_state_dict(first.state_dict())
    found = [learn(net, way, state=["h"]) for net, way in ((first, LOOP), (second, EAGER))]
    assert_equal(found[0], second)
    assert not first.h.requires_grad
    assert first.h.abs().sum() > 0


def own_loss(output: Tensor) -> Tensor:
    return output.square().sum()


@pytest.mark.parametrize("way", WAYS[:2], ids=lambda way: way.name)
def test_a_loss_may_need_no_target(way: Way) -> None:
    net = network()
    waiting = Waiting(samples().inputs, None)
    options: dict[str, Any] = {"target": None, "loss": own_loss}
    with open_contestant(job(net, way, waiting, **options)) as contestant:
        contestant.take(3)
        contestant.finish()
    wanted = network()
    optimizer = torch.optim.SGD(wanted.parameters(), lr=0.01)
    for x in torch.from_numpy(waiting.inputs[:3, None]):
        optimizer.zero_grad()
        own_loss(wanted(x)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert_equal(dict(net.named_parameters()), wanted)


@pytest.mark.parametrize("way", WAYS[:2], ids=lambda way: way.name)
def test_a_model_that_does_not_learn_keeps_its_weights(way: Way) -> None:
    calls: list[int] = []
    net = network()
    net.register_forward_hook(lambda _module, _inputs, output: calls.append(len(output)))
    with open_contestant(job(net, way, Waiting(samples().inputs, None), learn=False)) as contestant:
        contestant.take(3)
    assert sum(calls) >= 3
    assert_equal(dict(net.named_parameters()), network())


def learning(way: Way, net: nn.Module) -> str:
    def tell(contestant: Contestant) -> str:
        contestant.take(4)
        return contestant.learning

    with open_contestant(job(net, way, samples())) as contestant:
        return tell(contestant)


def test_it_is_told_how_a_pipeline_learns() -> None:
    net = nn.Sequential(network(), nn.RReLU())
    why = "the network draws random numbers by aten.rrelu_with_noise_functional.default"
    assert learning(Way("compiled", "inline"), net) == f"eager: {why}"
    assert learning(EAGER, network()) == "eager: compile is False"
    assert learning(LOOP, network()) == "eager"


def test_weights_are_loaded(tmp_path: Path) -> None:
    from safetensors.torch import save_model

    save_model(network(), str(tmp_path / "w.safetensors"))
    torch.manual_seed(9)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    made = job(net, LOOP, samples(), weights=str(tmp_path / "w.safetensors"))
    with open_contestant(made):
        pass
    assert_equal(dict(net.named_parameters()), network())
