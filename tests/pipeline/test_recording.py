"""Recorded samples, run without a compiler, against the eager pipeline."""

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR, OneCycleLR

from streamflow.pipeline import Pipeline, trees
from streamflow.pipeline.admission import Admission
from streamflow.pipeline.capture.held_tensors import Unsupported
from streamflow.pipeline.capture.recorder import record
from streamflow.pipeline.capture.recording import Recording
from streamflow.pipeline.codegen.building import in_place
from streamflow.pipeline.native.bound_stage import CompiledStage
from streamflow.pipeline.native.line import CompiledStages
from streamflow.pipeline.native.rings import Done, Rings, Rows, Work
from streamflow.pipeline.options import Options
from streamflow.pipeline.running.assembly import assemble
from streamflow.pipeline.stages.messages import Sample
from streamflow.pipeline.stages.recurrence import initial_state
from tests.pipeline.networks import RunningScale, chain, stream
from tests.pipeline.real_networks import CASES
from tests.pipeline.test_any_module import assert_close
from tests.pipeline.test_states import recurrent

sgd = partial(torch.optim.SGD, lr=0.02, momentum=0.5)
adam = partial(torch.optim.Adam, lr=0.01, weight_decay=0.1)


Code = Callable[[Recording], Any]


class Single:
    """A function that learns one sample of a single stage, called again and again.

    Args:
        run: The function.
        recording: What it does.
    """

    def __init__(self, run: Callable[[list[Tensor]], list[Tensor]], recording: Recording) -> None:
        self._run, self._layout = run, recording.learn.layout
        self.rings = [Rings(recording, 0)]

    def run(self, work: Sequence[Work], rows: Rows, *, threads: bool) -> Done:
        """Learn samples in a row; see :class:`Native`."""
        (own,) = work
        plain, weights = rows.labels[: self._layout.others], rows.labels[self._layout.others :]
        steps, made = [], 0
        for index in range(rows.count):
            steps.append(made)
            samples = [tensor[index : index + 1] for tensor in (*rows.inputs, *plain)]
            factors = own.factors[made if len(own.factors) > 1 else 0]
            *found, total = self._run(
                [*own.learn, factors, *samples, *(tensor[index] for tensor in weights)]
            )
            for place, tensor in zip(rows.outputs, found, strict=True):
                place[index] = tensor[0]
            made += not self._layout.is_checked or math.isfinite(total)
        return Done(steps, [made], [rows.count - made])

    def place(self, held: Sequence[int]) -> None:
        """Do nothing: a single stage has no samples in flight."""

    def numbers(self) -> list[range]:
        """Return that there are none."""
        return [range(0)]

    def close(self) -> None:
        """Do nothing."""


def recorded(recording: Recording) -> Any:
    """Return a recording itself as its code."""
    program = recording.learn
    learn = in_place(program.graph, program.layout)
    return Single(lambda tensors: learn(*tensors), recording)


class Recorded:
    """A pipeline of one stage whose samples are learned by a recording."""

    def __init__(self, net: nn.Module, **options: Any) -> None:
        self.options = Options(
            **{"loss": F.mse_loss, "optimizer": sgd, "compile": False, **options}
        )
        initial = initial_state(net, self.options.state)
        self.assembly = assemble(net, [], "inline", self.options, initial)
        self.stage = self.assembly.stages[0]
        self.admission = Admission(
            self.options.loss,
            input_device=torch.device("cpu"),
            output_device=torch.device("cpu"),
            has_state=bool(self.options.state),
            predict=lambda row: self.stage.peek((row,), None),
        )
        self.compiled: CompiledStages | None = None

    def eager(self, inputs: Any, targets: Any, weights: Any = None) -> Any:
        """Learn one sample."""
        batch = self.admission.admit(inputs, targets, None, weights, None)
        ((sample, row),) = batch.samples(0, 1)
        output, held = self.stage.forward(sample, (row,))
        if self.stage.backward(held, []) is not None:
            self.stage.update()
        return trees.map_tensors(torch.Tensor.clone, output)

    def record(
        self, inputs: Any, targets: Any, weights: Any = None, code: Code = recorded
    ) -> CompiledStages:
        weight = None if weights is None else torch.as_tensor(weights)[0]
        (recording,) = record([self.stage], inputs, targets, weight, self.options.clip_norm)
        self.compiled = CompiledStages([CompiledStage(self.stage, recording)])
        self.compiled.runner = code(recording)
        return self.compiled

    def learn(self, inputs: Any, targets: Any, weights: Any = None) -> Any:
        """Learn a call of samples by the recording, as far as it goes."""
        assert self.compiled is not None
        self.compiled.prepare()
        tensors = [*trees.tensors(inputs), *([] if targets is None else trees.tensors(targets))]
        if weights is not None:
            tensors.append(torch.as_tensor(weights))
        size = len(tensors[0])
        with torch.no_grad():
            outputs, _ = self.compiled.learn(tensors, [True] * size)
        return outputs


def part(tree: Any, first: int, stop: int) -> Any:
    return trees.map_tensors(lambda tensor: tensor[first:stop], tree)


def compare(
    net: nn.Module,
    inputs: Any,
    targets: Any,
    weights: Any = None,
    code: Code = recorded,
    **options: Any,
) -> None:
    """Learn a sample eagerly and 7 by a recording, beside a pipeline that learns all eagerly."""
    plain = copy.deepcopy(net)
    arguments = {"loss": F.mse_loss, "optimizer": sgd, "compile": False, **options}
    with Pipeline(plain, **arguments) as pipe:
        wanted = pipe.process(inputs, targets, weights=weights)
        state = pipe.state_dict()
    mine = Recorded(net, **options)
    outputs = [mine.eager(part(inputs, 0, 1), part(targets, 0, 1), _rows(weights, 0, 1))]
    compiled = mine.record(part(inputs, 0, 1), part(targets, 0, 1), _rows(weights, 0, 1), code)
    assert repr(compiled) == "<CompiledStages: 1 stage, ready>"
    for first, stop in ((1, 4), (4, 5), (5, 8)):
        rows = part(inputs, first, stop), part(targets, first, stop), _rows(weights, first, stop)
        outputs.append(mine.learn(*rows))
    assert_close((trees.stack_samples(outputs), net.state_dict()), (wanted, plain.state_dict()))
    assert mine.stage.updates.made == pipe.counters["updates"][0] == 8
    optimizer = mine.stage.updates.optimizer
    assert optimizer is not None
    for name, kept in state["optimizer"]["state"].items():
        own = optimizer.state[dict(net.named_parameters())[name]]
        assert own.keys() == kept.keys()
        for key, value in kept.items():
            if isinstance(value, Tensor):
                torch.testing.assert_close(own[key], value, rtol=1e-10, atol=1e-10)


def _rows(weights: Any, first: int, stop: int) -> Any:
    return None if weights is None else weights[first:stop]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CASES.keys() - {"complex"}))
def test_any_network_is_learned_as_eagerly(name: str) -> None:
    case = CASES[name]
    inputs, targets = case.stream(8)
    compare(case.network(), inputs, targets, loss=case.loss)


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": adam},
        {"clip_norm": 0.1},
        {"groups": {"2.*": {"lr": 0.2, "momentum": 0.0}, "*.bias": {"weight_decay": 0.1}}},
        {"optimizer": adam, "groups": {"4.*": {"lr": 0.2, "betas": (0.5, 0.6)}}},
        {"scheduler": partial(ExponentialLR, gamma=0.5), "optimizer": adam},
        {"allow_nonfinite": True},
        {"loss": lambda output: output.square().mean()},
    ],
)
def test_any_option_is_learned_as_eagerly(options: dict[str, Any]) -> None:
    inputs, targets = stream(8, seed=0)
    net = chain(["linear", "tanh", "linear", "relu", "product"], 0)
    has_target = "loss" not in options
    compare(net, inputs, targets if has_target else None, **options)


def test_weighted_samples_are_learned_as_eagerly() -> None:
    inputs, targets = stream(8, seed=0)
    weights = [1.0, 0.5, 0.0, 2.0, 3.0, 0.1, 0.2, 0.3]
    compare(chain(["linear", "tanh", "linear"], 0), inputs, targets, weights)


def test_buffers_that_a_forward_writes_are_learned_as_eagerly() -> None:
    inputs, targets = stream(8, seed=0)
    compare(chain(["linear", "scale", "linear", "scale"], 0), inputs, targets)


@pytest.mark.slow
@pytest.mark.parametrize("in_place", [False, True])
def test_recurrent_state_goes_on_inside_a_call(in_place: bool) -> None:
    inputs, targets = stream(8, seed=0)
    compare(recurrent(in_place=in_place), inputs, targets)


def test_a_frozen_and_an_unused_parameter_stay() -> None:
    net = chain(["linear", "tanh", "linear"], 0)
    net[0].weight.requires_grad_(False)
    net[2].register_parameter("unused", nn.Parameter(torch.ones(3, dtype=torch.float64)))
    inputs, targets = stream(8, seed=0)
    compare(net, inputs, targets, optimizer=partial(sgd, weight_decay=0.5))
    assert torch.equal(net[2].get_parameter("unused"), torch.ones(3, dtype=torch.float64))


def test_a_tensor_of_the_loss_may_change_later() -> None:
    factor = torch.ones(3, dtype=torch.float64)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return ((output - target) * factor).square().mean()

    net = chain(["linear"], 0)
    other = copy.deepcopy(net)
    inputs, targets = stream(8, seed=0)
    mine = Recorded(net, loss=loss)
    mine.eager(inputs[:1], targets[:1])
    mine.record(inputs[:1], targets[:1])
    factor.mul_(2)
    mine.learn(inputs[1:4], targets[1:4])
    factor.div_(2)
    with Pipeline(other, loss=loss, optimizer=sgd, compile=False) as pipe:
        pipe.process(inputs[:1], targets[:1])
        factor.mul_(2)
        pipe.process(inputs[1:4], targets[1:4])
    for own, wanted in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(own, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("optimizer", [sgd, adam])
@pytest.mark.parametrize("bad", [float("inf"), float("nan"), 1e200])
def test_a_sample_that_is_not_finite_is_skipped(optimizer: Any, bad: float) -> None:
    net = chain(["linear", "scale", "linear"], 0)
    plain = copy.deepcopy(net)
    options = {"optimizer": optimizer, "scheduler": partial(ExponentialLR, gamma=0.5)}
    inputs, targets = stream(4, seed=0)
    targets[2, 1] = bad
    mine, eager = Recorded(net, **options), Recorded(plain, **options)
    outputs = [mine.eager(inputs[:1], targets[:1])]
    mine.record(inputs[:1], targets[:1])
    outputs += torch.split(mine.learn(inputs[1:], targets[1:]), 1)
    wanted = []
    for n in range(4):
        sample = Sample(n, True, targets[n : n + 1])
        output, held = eager.stage.forward(sample, (inputs[n : n + 1],))
        wanted.append(output)
        if eager.stage.backward(held, []) is not None:
            eager.stage.update()
    assert_close((outputs, net.state_dict()), (wanted, plain.state_dict()))
    assert mine.stage.updates.skipped == eager.stage.updates.skipped == 1
    assert mine.stage.updates.made == eager.stage.updates.made == 3
    assert mine.stage.updates.scheduler.last_epoch == 3  # type: ignore[union-attr]


class Counting(nn.Module):
    """Knows how often it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.weight = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.weight / self.calls


class Hidden(Counting):
    """Keeps a tensor where nobody sees it."""

    def forward(self, x: Tensor) -> Tensor:
        self.last = x * self.weight
        return self.last


class Choosing(Counting):
    """Looks at values."""

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight if x.sum() > 0 else x + self.weight


class Picking(Counting):
    """Computes with as many values as are large."""

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight + x[x > 0].sum()


class Writing(Counting):
    """Writes a tensor that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.total = torch.zeros(3, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        self.total += x[0].detach()
        return x * self.weight + self.total


class Annotated(Counting):
    """Returns more than tensors."""

    def forward(self, x: Tensor) -> Any:
        return {"y": x * self.weight, "name": "scaled"}


@pytest.mark.parametrize(
    ("net", "options", "message"),
    [
        (Counting(), {}, "a forward changes Counting.calls"),
        (Hidden(), {}, "a forward changes Hidden.last"),
        (Choosing(), {}, "the network looks at values to decide what to compute"),
        (Picking(), {}, "looks at values .*nonzero"),
        (Writing(), {}, "a forward writes a tensor that is neither"),
        (Annotated(), {"loss": lambda o, t: F.mse_loss(o["y"], t)}, "returns more than tensors"),
        (Counting(), {"optimizer": partial(torch.optim.Rprop, lr=0.1)}, "Rprop is not among"),
        (
            chain(["linear"], 0),
            {"loss": lambda o: torch.zeros(())},
            "does not depend on a parameter",
        ),
    ],
)
def test_what_cannot_be_recorded_says_why_and_stays_as_it_was(
    net: nn.Module, options: dict[str, Any], message: str
) -> None:
    net = copy.deepcopy(net)
    mine = Recorded(net, **options)
    inputs, targets = stream(2, seed=0)
    row = inputs[:1], (None if "loss" in options and not mine.admission.has_target else targets[:1])
    mine.eager(*row)
    before = dict(vars(net))
    with pytest.raises(Unsupported, match=message):
        mine.record(*row)
    assert vars(net) == before
    assert all(type(p) is nn.Parameter for p in net.parameters())


def test_complex_numbers_are_left_to_eager_learning() -> None:
    case = CASES["complex"]
    inputs, targets = case.stream(1)
    mine = Recorded(case.network(), loss=case.loss)
    mine.eager(inputs, targets)
    with pytest.raises(Unsupported, match=r"holds a tensor of .*complex128"):
        mine.record(inputs, targets)


def test_an_optimizer_that_has_not_begun_is_left_to_begin() -> None:
    mine = Recorded(chain(["linear"], 0))
    inputs, targets = stream(2, seed=0)
    with pytest.raises(Unsupported, match="has not begun"):
        mine.record(inputs[:1], targets[:1])


def test_a_schedule_of_more_than_rates_is_left_alone() -> None:
    cycle = partial(OneCycleLR, max_lr=0.1, total_steps=20)
    mine = Recorded(chain(["linear"], 0), scheduler=cycle)
    inputs, targets = stream(4, seed=0)
    mine.eager(inputs[:1], targets[:1])
    mine.record(inputs[:1], targets[:1])
    before = copy.deepcopy(mine.stage.updates.scheduler.state_dict())  # type: ignore[union-attr]
    with pytest.raises(Unsupported, match="more of the optimizer"):
        mine.learn(inputs[1:4], targets[1:4])
    assert mine.stage.updates.scheduler.state_dict() == before  # type: ignore[union-attr]


def test_buffers_that_share_memory_get_memory_of_their_own() -> None:
    net = nn.Sequential(RunningScale(), RunningScale(), chain(["linear"], 0))
    inputs, targets = stream(4, seed=0)
    mine = Recorded(net)
    mine.eager(inputs[:1], targets[:1])
    mine.record(inputs[:1], targets[:1])
    both = torch.full((2, 3), 0.5, dtype=torch.float64)
    net[0].scale, net[1].scale = both[0], both[1]
    other = copy.deepcopy(net)
    mine.learn(inputs[1:2], targets[1:2])
    other(inputs[1:2])
    assert_close(dict(net.named_buffers()), dict(other.named_buffers()))


def test_parameters_that_changed_their_kind_are_not_touched() -> None:
    net = chain(["linear"], 0)
    inputs, targets = stream(4, seed=0)
    mine = Recorded(net)
    mine.eager(inputs[:1], targets[:1])
    mine.record(inputs[:1], targets[:1])
    net.float()
    with pytest.raises(Unsupported, match="another shape or dtype"):
        mine.learn(inputs[1:2], targets[1:2])
