"""Plans, whatever the measurements say: nothing here depends on how fast anything is."""

import copy
import random
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamflow.errors import OptionError, PartitionError, SampleError
from streamflow.pipeline import Pipeline
from streamflow.pipeline.options import Options
from streamflow.pipeline.planning.plan import Plan
from streamflow.pipeline.planning.planning import make_plan
from tests.pipeline.networks import SCHEMES, SGD, WIDTH, chain, stream
from tests.pipeline.test_any_module import assert_equal

NAMES = ["linear", "tanh", "linear", "scale", "linear"]


def plan(net: nn.Module, **changes: Any) -> Plan:
    """Plan with as few measurements as there can be."""
    inputs, targets = stream(1, seed=0)
    options = Options(**{"loss": F.mse_loss, "optimizer": SGD, "compile": False, **changes})
    return make_plan(net, inputs, targets, options=options, seconds=0.0)


@pytest.mark.parametrize("executor", ["inline", "threads"])
@pytest.mark.parametrize(("schedule", "backward"), SCHEMES)
def test_a_plan_is_what_a_pipeline_then_does(schedule: str, backward: str, executor: str) -> None:
    net = chain(NAMES, 0)
    scheme: dict[str, Any] = {"schedule": schedule, "backward": backward, "executor": executor}
    found = plan(net, stages=3, **scheme)
    assert (len(found.stages), found.executor) == (3, executor)
    assert [layer.name for stage in found.stages for layer in stage.layers] == list("01234")
    assert [stage.layers[0].name for stage in found.stages[1:]] == list(found.cuts)
    assert [stage.lag for stage in found.stages] == {
        "sequential": [0, 0, 0],
        "1f1b": [2, 1, 0],
        "greedy": [2, 1, 0],
        "lockstep": [4, 2, 0],
    }[schedule]
    assert found.rate > 0
    assert found.latency > 0
    assert found.loaded_latency > 0
    assert {(tried.num_stages, tried.executor) for tried in found.tried} == {
        (1, "inline"),
        (3, executor),
    }
    inputs, targets = stream(4, seed=0)
    with Pipeline(net, loss=F.mse_loss, optimizer=SGD, stages=found.cuts, **scheme) as pipe:
        assert pipe.process(inputs, targets).shape == (4, WIDTH)


def test_stages_that_are_named_are_taken_as_they_are() -> None:
    found = plan(chain(NAMES, 0), stages=["1", "4"])
    assert found.cuts == ("1", "4")
    assert [len(stage.layers) for stage in found.stages] == [1, 3, 1]
    assert found.executor in ("inline", "threads")
    assert len(found.tried) == 3


def test_one_stage_needs_no_cut() -> None:
    found = plan(chain(NAMES, 0), stages=1, executor="inline")
    assert found.cuts == ()
    assert [(tried.num_stages, tried.executor) for tried in found.tried] == [(1, "inline")]
    assert found.loaded_latency == pytest.approx(found.latency)
    assert found.limit == "stage 0"


def test_auto_is_never_slower_than_one_stage_inline() -> None:
    found = plan(chain(NAMES, 0), stages="auto")
    assert (found.tried[0].num_stages, found.tried[0].executor) == (1, "inline")
    assert found.rate >= found.tried[0].rate
    assert any(tried.rate == found.rate for tried in found.tried)


def test_auto_has_no_more_stages_than_the_wanted_rate_needs() -> None:
    slow = plan(chain(NAMES, 0), stages="auto", rate=1e-6)
    assert len(slow.stages) == 1
    assert {tried.num_stages for tried in slow.tried} == {1}
    assert slow.is_fast_enough
    fast = plan(chain(NAMES, 0), stages="auto", rate=1e12)
    assert not fast.is_fast_enough
    assert fast.rate >= fast.tried[0].rate


def test_more_stages_are_of_no_use_in_one_thread() -> None:
    found = plan(chain(NAMES, 0), stages="auto", executor="inline", rate=1e12)
    assert len(found.stages) == 1
    assert [(tried.num_stages, tried.executor) for tried in found.tried] == [(1, "inline")]


def test_a_list_of_optimizers_says_how_many_stages_there_are() -> None:
    found = plan(chain(NAMES, 0), stages="auto", optimizer=[SGD, SGD])
    assert len(found.stages) == 2


def test_sizes_are_those_of_tensors() -> None:
    found = plan(chain(["linear", "scale", "linear"], 0), stages=["2"])
    item = 8
    linear = (WIDTH * WIDTH + WIDTH) * item
    first, second = found.stages
    assert [layer.parameter_bytes for layer in first.layers] == [linear, 0]
    assert first.layers[0].boundary_bytes == WIDTH * item
    # Weights, gradients, momentum; the buffer; two inputs held, and one.
    assert first.memory_bytes == 3 * linear + WIDTH * item + 2 * WIDTH * item
    assert second.memory_bytes == 3 * linear + WIDTH * item
    stashed = plan(chain(["linear", "scale", "linear"], 0), stages=["2"], backward="stashed")
    assert stashed.stages[0].memory_bytes == first.memory_bytes + linear


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"stages": 2, "accumulate": 3},
        {"stages": 2, "clip_norm": 1.0},
        {"stages": 2, "clip_norm": 1.0, "clip_over": "network", "schedule": "sequential"},
        {"stages": 2, "devices": ["cpu", "cpu"]},
        {"stages": 2, "devices": "cpu"},
        {"stages": 2, "loss": None, "optimizer": None},
        {"stages": 2, "groups": {"4.*": {"lr": 0.5}}},
        {"stages": 2, "scheduler": partial(torch.optim.lr_scheduler.StepLR, step_size=2)},
        {"stages": "auto", "clip_norm": 1.0, "clip_over": "network"},
        {"stages": 2, "state": ["3.scale"]},
    ],
)
def test_every_option_can_be_planned(changes: dict[str, Any]) -> None:
    net = chain(NAMES, 0)
    inputs, targets = stream(1, seed=0)
    options = Options(**{"loss": F.mse_loss, "optimizer": SGD, **changes})
    initial = {name: net.get_buffer(name).clone() for name in changes.get("state", ())}
    learned = None if options.loss is None else targets
    found = make_plan(net, inputs, learned, options=options, initial=initial, seconds=0.0)
    assert found.rate > 0
    if options.clip_over == "network" and options.schedule != "sequential":
        assert len(found.stages) == 1


class Noisy(nn.Module):
    """Draws from two generators, and keeps what it drew."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("drawn", torch.zeros(1, dtype=torch.float64))
        self.drawn: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.drawn += torch.rand(1, dtype=torch.float64)
        return x + self.drawn


def state(net: nn.Module) -> dict[str, Any]:
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    return {
        name: (id(t), t._version, t.detach().clone(), t.grad is not None and t.grad.clone())
        for name, t in tensors.items()
    }


@pytest.mark.parametrize("stages", [1, 2, "auto"])
def test_measuring_leaves_no_trace(stages: int | str) -> None:
    net = nn.Sequential(*chain(NAMES, 0), nn.Dropout(0.5), Noisy(), *chain(["linear"], 1))
    inputs, targets = stream(1, seed=0)
    F.mse_loss(net(inputs), targets).backward()  # type: ignore[no-untyped-call]
    before, values = state(net), (inputs.clone(), targets.clone())
    drawn, picked = torch.get_rng_state(), random.getstate()
    modes = [part.training for part in net.modules()]
    running = threading.active_count()
    made: list[Tensor] = []

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        made.extend(parameters := list(parameters))
        return SGD(parameters)

    with torch.no_grad():
        plan(net, stages=stages, optimizer=optimizer)
        assert not torch.is_grad_enabled()
    after = state(net)
    assert before.keys() == after.keys()
    for name, (identity, version, value, gradient) in before.items():
        assert after[name][:2] == (identity, version), name
        assert torch.equal(after[name][2], value), name
        assert gradient is False or torch.equal(after[name][3], gradient), name
    assert made
    assert not {id(t) for t in made} & {id(p) for p in net.parameters()}
    assert torch.equal(torch.get_rng_state(), drawn)
    assert random.getstate() == picked
    assert [part.training for part in net.modules()] == modes
    assert (torch.equal(inputs, values[0]), torch.equal(targets, values[1])) == (True, True)
    assert threading.active_count() == running


def test_a_pipeline_learns_the_same_after_a_plan() -> None:
    inputs, targets = stream(6, seed=0)
    nets = [chain(NAMES, 0) for _ in range(2)]
    plan(nets[0], stages="auto")
    for net in nets:
        with Pipeline(net, loss=F.mse_loss, optimizer=SGD, stages=["2"]) as pipe:
            pipe.process(inputs, targets)
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(one, other)


class Locked(nn.Module):
    """Cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH, dtype=torch.float64)
        self.lock = threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        return y


class Choosing(nn.Module):
    """Cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = chain(["linear"] * 2, 0)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.one(x) if x.sum() > 0 else self.two(x)
        return y


def test_a_network_that_cannot_be_copied_is_refused() -> None:
    with pytest.raises(OptionError, match="stages: expected Locked to be copied"):
        plan(Locked(), stages="auto")


def test_a_network_that_cannot_be_traced_is_one_layer() -> None:
    found = plan(Choosing(), stages="auto")
    assert [len(stage.layers) for stage in found.stages] == [1]
    with pytest.raises(PartitionError, match="Choosing"):
        plan(Choosing(), stages=2)


def test_more_stages_than_layers_are_refused() -> None:
    with pytest.raises(PartitionError, match="stages: expected at most 2 for this network, got 3"):
        plan(chain(["linear"] * 2, 0), stages=3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x, y: (x[:, :2], y), SampleError, "inputs: expected"),
        (lambda x, y: (x, y * float("nan")), SampleError, "targets: expected finite"),
    ],
)
def test_a_sample_that_cannot_be_learned_is_refused(
    change: Callable[..., Any], error: type[Exception], message: str
) -> None:
    options = Options(loss=F.mse_loss, optimizer=SGD, stages="auto")
    running = threading.active_count()
    with pytest.raises(error, match=message):
        make_plan(chain(NAMES, 0), *change(*stream(1, seed=0)), options=options)
    assert threading.active_count() == running


def test_a_constant_whose_elements_are_one_can_be_there() -> None:
    net = copy.deepcopy(chain(["linear"] * 2, 0))
    net[0].register_buffer("same", torch.zeros(1).expand(5))
    assert plan(net, stages=2).rate > 0


def test_what_is_compiled_is_measured_compiled(cache: Path) -> None:
    net = chain(["linear", "tanh", "linear"], 0)
    before = copy.deepcopy(net.state_dict())
    found = plan(net, stages=["1"], compile=True)
    assert found.is_compiled
    assert found.learning == f"compiled: own kernels, {found.executor}"
    assert f"{found.learning}; what parts of it cost is estimated from eager learning" in str(found)
    assert found.rate == max(tried.rate for tried in found.tried if tried.num_stages == 2)
    assert all(found.busy(stage) <= 1.0 for stage in found.stages)
    assert_equal(net.state_dict(), before)


def test_auto_does_not_leave_one_stage_that_will_be_compiled_for_eager_ones(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # nothing is compiled so far
    net = chain(NAMES, 0)
    found = plan(net, stages="auto", rate=1e9, compile="auto")
    assert len(found.stages) == 1
    assert max(tried.num_stages for tried in found.tried) > 1
    assert not found.is_compiled
    assert not list(tmp_path.rglob("*.so"))


def test_without_a_compiler_or_where_none_can_be_told_it_is_eager(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    monkeypatch.delattr("torch._inductor.cpp_builder.get_cpp_compiler", raising=False)
    found = plan(chain(NAMES, 0), stages="auto", compile="auto")
    assert not found.is_compiled
    assert found.learning == "eager: no C++ compiler"
    assert "now it is eager: no C++ compiler" in str(found)


def test_without_a_target_learning_is_measured_by_the_output_alone() -> None:
    options = Options(loss=F.mse_loss, optimizer=SGD, compile=False, stages=2)
    found = make_plan(chain(NAMES, 0), stream(1, seed=0)[0], options=options, seconds=0.0)
    assert len(found.stages) == 2
    assert all(stage.cost.update > 0 for stage in found.stages)
