"""What a caller may rely on."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamflow.errors import ClosedError, OptionError, PartitionError, SampleError, StageError
from streamflow.pipeline import Pipeline
from tests.pipeline.networks import (
    SCHEMES,
    SGD,
    assert_same,
    chain,
    expected,
    pipeline,
    process,
    stream,
)

HALVES = ["1"]


def evenly(net: nn.Sequential, num_stages: int) -> list[str]:
    """Name cuts, so that nothing is measured."""
    return [str(index * len(net) // num_stages) for index in range(1, num_stages)]


def learner(net: nn.Module, stages: object = None, **options: Any) -> Pipeline:
    if stages is None:
        stages = evenly(net, 2) if isinstance(net, nn.Sequential) else 2
    return Pipeline(net, loss=F.mse_loss, optimizer=SGD, stages=stages, **options)  # type: ignore[arg-type]


def test_steps_count_the_updates_behind_each_output() -> None:
    inputs, targets = stream(5, seed=0)
    with learner(chain(["linear"] * 4, 0)) as pipe:
        pipe.process(inputs, targets)
        assert pipe.steps == [0, 0, 1, 2, 3]
        pipe.process(inputs[:1], targets[:1])
        assert pipe.steps == [4]
        assert pipe.counters == {
            "samples": 6,
            "learned": 6,
            "updates": [5, 6],
            "skipped": [0, 0],
            "forgotten": 0,
        }
    assert pipe.counters["updates"] == [6, 6]


def test_one_stage_equals_the_plain_loop() -> None:
    net = chain(["linear", "tanh", "scale", "linear"], 0)
    plain = copy.deepcopy(net)
    inputs, targets = stream(20, seed=0)
    with learner(net, stages=1) as pipe:
        outputs = pipe.process(inputs, targets)
    optimizer = SGD(plain.parameters())
    for n in range(20):
        optimizer.zero_grad()
        output = plain(inputs[n : n + 1])
        F.mse_loss(output, targets[n : n + 1]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        assert torch.equal(outputs[n], output[0])
    assert_same(net, plain)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_frozen_weights_give_exact_gradients_except_with_newest(scheme: tuple[str, str]) -> None:
    """At a learning rate of 0 every gradient must be that of plain backpropagation."""
    found: list[Tensor] = []

    class Recorder(torch.optim.SGD):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            found.extend(p.grad.clone() for p in self.param_groups[0]["params"])

    net = chain(["linear", "tanh", "linear", "tanh", "linear"], 0)
    inputs, targets = stream(12, seed=0)
    options: dict[str, Any] = {"schedule": scheme[0], "backward": scheme[1]}
    with Pipeline(
        net, loss=F.mse_loss, optimizer=partial(Recorder, lr=0.0), stages=["2", "4"], **options
    ) as pipe:
        pipe.process(inputs, targets)
    total = [torch.zeros_like(p) for p in net.parameters()]
    for n in range(12):
        loss = F.mse_loss(net(inputs[n : n + 1]), targets[n : n + 1])
        for part, grad in zip(
            total, torch.autograd.grad(loss, list(net.parameters())), strict=True
        ):
            part += grad
    assert len(found) == 12 * 6
    sums = {tuple(part.shape): torch.zeros_like(part) for part in total}
    wanted = {shape: torch.zeros_like(part) for shape, part in sums.items()}
    for grad in found:
        sums[tuple(grad.shape)] += grad
    for part in total:
        wanted[tuple(part.shape)] += part
    is_exact = all(torch.allclose(sums[s], wanted[s], rtol=0, atol=1e-12) for s in sums)
    assert is_exact == (scheme[1] != "newest")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("executor", ["inline", "threads"])
def test_every_stage_learns(scheme: tuple[str, str], executor: str) -> None:
    net = chain(["linear"] * 4, 0)
    before = copy.deepcopy(net)
    inputs, targets = stream(3, seed=0)
    options = {"schedule": scheme[0], "backward": scheme[1], "executor": executor}
    with learner(net, ["1", "2", "3"], **options) as pipe:
        pipe.process(inputs, targets)
    for name, parameter in net.named_parameters():
        assert not torch.equal(parameter, before.get_parameter(name)), name


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_sample_is_named_and_changes_nothing(bad: float) -> None:
    net = chain(["linear", "scale", "linear"], 0)
    inputs, targets = stream(8, seed=0)
    with learner(net) as pipe:
        pipe.process(inputs, targets)
        before, counters = copy.deepcopy(net.state_dict()), pipe.counters
        broken = inputs.clone()
        broken[5, 1] = bad
        with pytest.raises(SampleError, match=r"inputs: .* sample 5") as caught:
            pipe.process(broken, targets)
        assert caught.value.index == 5
        label = targets.clone()
        label[3] = bad
        with pytest.raises(SampleError, match=r"targets: .* sample 3") as caught:
            pipe.process(broken, label)
        assert caught.value.index == 3
        with pytest.raises(SampleError, match="inputs"):
            pipe.process(torch.randn(2, 7, dtype=torch.float64), targets[:2])
        with pytest.raises(SampleError, match="dtype"):
            pipe.process(inputs.float(), targets.float())
        with pytest.raises(SampleError, match="targets: expected one per sample"):
            pipe.process(inputs, targets[:5])
        assert pipe.counters == counters
        assert all(torch.equal(net.state_dict()[k], v) for k, v in before.items())
        pipe.process(inputs, label, learn=[n != 3 for n in range(8)])


def test_a_class_out_of_range_is_a_bad_sample() -> None:
    net = chain(["linear"] * 2, 0)
    inputs, _ = stream(4, seed=0)
    with Pipeline(net, loss=F.cross_entropy, optimizer=SGD, stages=HALVES) as pipe:
        with pytest.raises(
            SampleError, match=r"classes from 0 to 2, got .3. in sample 2"
        ) as caught:
            pipe.process(inputs, torch.tensor([0, 1, 3, 2]))
        assert caught.value.index == 2
        pipe.process(
            inputs, torch.tensor([0, 1, 3, 2]), learn=torch.tensor([True, True, False, True])
        )
        assert pipe.counters["learned"] == 3


def test_infer_leaves_no_trace_and_predicts_the_next_output() -> None:
    net = nn.Sequential(*chain(["linear", "scale"], 0), nn.Dropout(0.5), *chain(["linear"], 1))
    inputs, targets = stream(6, seed=0)
    with learner(net) as pipe:
        pipe.process(inputs[:5], targets[:5])
        state = torch.get_rng_state()
        first = pipe.infer(inputs)
        assert torch.equal(pipe.infer(inputs), first)
        assert torch.equal(pipe.process(inputs[5:], targets[5:])[0], first[5])
        assert torch.equal(torch.get_rng_state(), state)


def test_dropout_follows_the_seed_and_not_the_executor() -> None:
    outputs = []
    for executor, seed in [("inline", 1), ("threads", 1), ("inline", 2)]:
        net = nn.Sequential(*chain(["linear"], 0), nn.Dropout(0.5), *chain(["linear"], 1))
        inputs, targets = stream(20, seed=0)
        with learner(net, executor=executor, seed=seed) as pipe:
            outputs.append(pipe.process(inputs, targets))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_weights_scale_the_loss_of_each_sample() -> None:
    results = []
    for weights, factor in [(torch.full((6,), 0.5, dtype=torch.float64), 1.0), (None, 0.5)]:
        net = chain(["linear"] * 2, 0)
        inputs, targets = stream(6, seed=0)
        loss = partial(lambda y, t, *, scale: F.mse_loss(y, t) * scale, scale=factor)
        with Pipeline(net, loss=loss, optimizer=SGD, stages=HALVES) as pipe:
            results.append(pipe.process(inputs, targets, weights=weights))
    assert torch.equal(results[0], results[1])


def test_a_loss_of_the_output_alone_learns_without_targets() -> None:
    net = chain(["linear"] * 2, 0)
    inputs, targets = stream(6, seed=0)
    with Pipeline(net, loss=lambda y: y.square().mean(), optimizer=SGD, stages=HALVES) as pipe:
        pipe.process(inputs)
        assert pipe.counters["learned"] == 6
        with pytest.raises(OptionError, match="targets"):
            pipe.process(inputs, targets)


def test_no_samples_are_a_call_too() -> None:
    inputs, targets = stream(2, seed=0)
    with learner(chain(["linear"] * 2, 0)) as pipe:
        assert pipe.process(inputs[:0], targets[:0]).shape == (0, 3)
        assert pipe.steps == []
        assert pipe.infer(inputs[:0]).shape == (0, 3)


def test_outputs_and_inputs_belong_to_the_caller() -> None:
    net = chain(["linear"] * 3, 0)
    inputs, targets = stream(9, seed=0)
    wanted, learned = expected(net, [1, 2], inputs, targets, [True] * 9, [], "1f1b", "own")
    kept = []
    with pipeline(net, [1, 2], "1f1b", "own") as pipe:
        for n in range(9):
            x, t = inputs[n : n + 1].clone(), targets[n : n + 1].clone()
            output = pipe.process(x, t)
            kept.append(output.clone())
            for tensor in (x, t, output):
                tensor.fill_(float("nan"))
    assert torch.equal(torch.cat(kept), wanted)
    assert_same(net, learned)


@pytest.mark.parametrize("stages", [1, 2, 4])
def test_a_saved_state_continues_in_any_number_of_stages(stages: int) -> None:
    inputs, targets = stream(20, seed=0)
    adam = partial(torch.optim.Adam, lr=0.01)

    def build(count: int) -> Pipeline:
        net = chain(["linear", "scale", "linear", "linear", "linear"], 0)
        cuts = evenly(net, count)
        return Pipeline(net, loss=F.mse_loss, optimizer=adam, stages=cuts, schedule="sequential")

    with build(2) as whole:
        wanted = whole.process(inputs, targets)
    with build(2) as first:
        first.process(inputs[:10], targets[:10])
        state = first.state_dict()
        first.process(inputs[10:], targets[10:])
    with build(stages) as second:
        second.load_state_dict(state)
        assert torch.equal(second.process(inputs[10:], targets[10:]), wanted[10:])
    assert_same(second.module, whole.module)
    assert second.counters["samples"] == 20


def test_a_stage_error_breaks_the_pipeline() -> None:
    class Picky(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if bool(x.abs().max() > 1e3):
                msg = "too large"
                raise ArithmeticError(msg)
            return x

    net = nn.Sequential(*chain(["linear"] * 2, 0), Picky())
    inputs, targets = stream(6, seed=0)
    inputs[4] *= 1e6
    pipe = learner(net, stages=["1", "2"])
    with pytest.raises(StageError, match=r"stage 2 \(2\), sample 4: .* too large") as caught:
        pipe.process(inputs, targets)
    assert isinstance(caught.value.__cause__, ArithmeticError)
    for call in (pipe.drain, pipe.state_dict, lambda: pipe.infer(inputs)):
        with pytest.raises(StageError, match="too large"):
            call()
    assert "broken" in repr(pipe)


def test_a_closed_pipeline_takes_nothing() -> None:
    inputs, targets = stream(2, seed=0)
    with learner(chain(["linear"] * 2, 0)) as pipe:
        pipe.process(inputs, targets)
    pipe.close()
    assert "closed" in repr(pipe)
    assert set(pipe.state_dict()) >= {"module", "optimizer", "counters"}
    with pytest.raises(ClosedError):
        pipe.process(inputs, targets)


def test_construction_draws_nothing() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.Linear(3, 3))
    state = torch.get_rng_state()
    learner(net, stages=2).close()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "fast"}, "schedule: expected 'sequential' or"),
        ({"backward": "newest"}, "lockstep"),
        ({"schedule": "lockstep"}, "newest"),
        ({"stages": 0}, "stages: expected an int from 1"),
        ({"compile": "yes"}, "expected 'auto', True or False"),
        ({"executor": "processes"}, "executor"),
        ({"optimizer": None}, "optimizer: expected one"),
    ],
)
def test_options_that_cannot_work_say_so(options: dict[str, object], message: str) -> None:
    given = {"loss": F.mse_loss, "optimizer": SGD, **options}
    with pytest.raises(OptionError, match=message):
        Pipeline(chain(["linear"] * 2, 0), **given)  # type: ignore[arg-type]


def test_cuts_that_cannot_be_made_say_so() -> None:
    net = nn.Sequential(*chain(["linear"] * 3, 0))
    for stages, message in [(4, "at most 3"), (["9"], "'9'"), (["2", "1"], "order"), (["0"], "0")]:
        with pytest.raises(PartitionError, match=message):
            learner(net, stages=stages)
    tied = nn.Sequential(*chain(["linear"] * 2, 0))
    tied[1].weight = tied[0].weight
    with pytest.raises(PartitionError, match=r"0.weight = 1.weight"):
        learner(tied)


def test_process_reads_in_one_line() -> None:
    inputs, targets = stream(5, seed=0)
    with learner(chain(["linear"] * 4, 0)) as pipe:
        process(pipe, inputs, targets, [True] * 5, [], [])
        assert repr(pipe) == (
            "<Pipeline open: 2 stages, 1f1b, own, inline on cpu, 5 samples, updates [5, 5], "
            "eager so far>"
        )


class Nested(nn.Module):
    """A residual network whose forward is code, with a skip over both cuts."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*chain(["linear", "tanh", "scale", "linear"], 0))
        self.head = chain(["linear", "tanh"], 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x) + x
        z: Tensor = self.head(y)
        return z + x + y


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["inline", "threads"])
@pytest.mark.parametrize("stages", [["body.2"], ["body.1", "head.1"], ["head"], 3])
def test_code_with_skips_is_cut_anywhere(stages: object, executor: str) -> None:
    inputs, targets = stream(12, seed=0)
    outputs = []
    for cut in (1, stages):
        net = Nested()
        names = list(net.state_dict())
        with learner(net, stages=cut, schedule="sequential", executor=executor) as pipe:
            outputs.append(pipe.process(inputs, targets))
        assert list(pipe.state_dict()["module"]) == names
    assert torch.allclose(outputs[0], outputs[1], rtol=0, atol=1e-12)


def test_code_that_a_trace_would_falsify_is_refused() -> None:
    class Silent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = chain(["linear"] * 2, 0)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                y: Tensor = self.parts(x) * 2
            return y

    with pytest.raises(PartitionError, match="no_grad"):
        learner(Silent(), stages=["parts.1"])


@pytest.mark.parametrize("executor", ["inline", "threads"])
def test_a_loss_that_is_not_finite_is_skipped_and_counted(executor: str) -> None:
    def loss(y: Tensor, t: Tensor) -> Tensor:
        return (y - t).square().mean() / t.sum()

    inputs, targets = stream(6, seed=0)
    targets[2] = 0.0
    skipping, leaving_out = chain(["linear"] * 3, 0), chain(["linear"] * 3, 0)
    options: dict[str, Any] = {
        "loss": loss,
        "optimizer": SGD,
        "stages": ["1", "2"],
        "executor": executor,
    }
    with Pipeline(skipping, **options) as pipe:
        outputs = pipe.process(inputs, targets)
    assert pipe.counters["skipped"] == [0, 0, 1]
    assert pipe.counters["updates"] == [5, 5, 5]
    with Pipeline(leaving_out, **options) as pipe:
        wanted = pipe.process(inputs, targets, learn=[n != 2 for n in range(6)])
    assert torch.equal(outputs, wanted)
    assert_same(skipping, leaving_out)


def test_nonfinite_gradients_are_applied_where_allowed() -> None:
    net = chain(["linear"] * 2, 0)
    inputs, _ = stream(1, seed=0)
    options: dict[str, Any] = {"loss": lambda y: (y / 0).sum(), "optimizer": SGD, "stages": HALVES}
    with Pipeline(net, allow_nonfinite=True, **options) as pipe:
        pipe.process(inputs)
    assert not net[1].weight.isfinite().all()  # type: ignore[operator]


def test_gradients_are_clipped_per_stage() -> None:
    net = chain(["linear"] * 2, 0)
    before = copy.deepcopy(net)
    inputs, targets = stream(1, seed=0)
    plain = partial(torch.optim.SGD, lr=1.0)
    with Pipeline(net, loss=F.mse_loss, optimizer=plain, stages=HALVES, clip_norm=1e-3) as pipe:
        pipe.process(inputs, targets)
    for layer, old in zip(net, before, strict=True):
        moves = [p - q for p, q in zip(layer.parameters(), old.parameters(), strict=True)]
        norm = torch.cat([move.detach().flatten() for move in moves]).norm()
        torch.testing.assert_close(norm.item(), 1e-3, rtol=1e-4, atol=0)
