"""Networks that draw random numbers: compiled code takes those that eager stages would have."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from streamflow.pipeline import Pipeline, torch_private
from streamflow.pipeline.capture import noise
from tests.pipeline.networks import chain, stream
from tests.pipeline.test_compiled import both, in_calls, learner
from tests.pipeline.test_line import groups

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("cache")]

Change = Callable[[Tensor], Tensor]


class Changed(nn.Module):
    """Does something to a value while it learns."""

    def __init__(self, change: Change) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(x) if self.training else x


def adds_noise(x: Tensor) -> Tensor:
    wide = torch.rand(3, 3, dtype=x.dtype).sum(0) + torch.randn(1, 3, dtype=x.dtype)
    return x + torch.randn_like(x) * torch.rand_like(x) + wide


def fills(x: Tensor) -> Tensor:
    y = x + torch.empty_like(x).uniform_(-1, 2) + torch.empty_like(x).normal_(0.5, 2)
    return y + torch.empty_like(x).exponential_() - torch.empty_like(x).exponential_(3)


def draws_for_nothing(x: Tensor) -> Tensor:
    torch.rand(7)
    return F.dropout(x, 0.5)


def several(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*chain(["linear"], 0), *layers, *chain(["tanh", "linear"], 1))


def calls(*bounds: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return calls in which a sample is not learned and one is not finite."""
    inputs, targets = stream(60, seed=seed)
    targets[40] = 1e200  # its square is not finite
    found = in_calls(inputs, targets, *bounds)
    found[-1]["learn"] = torch.tensor([n % 5 != 3 for n in range(len(found[-1]["inputs"]))])
    return found


def drops() -> nn.Sequential:
    return several(nn.Dropout(0.3), nn.AlphaDropout(0.2), nn.Dropout(0.0))


def noises() -> nn.Sequential:
    return several(Changed(adds_noise), Changed(fills), Changed(draws_for_nothing))


@pytest.mark.parametrize("make", [drops, noises])
def test_random_numbers_are_those_of_eager_learning(make: Callable[[], nn.Module]) -> None:
    before = torch.get_rng_state()
    pipe, _ = both(make(), *calls(20, 21, 35), seed=5)
    assert pipe.counters["skipped"] == [1]
    assert torch.equal(torch.get_rng_state(), before)


def test_an_encoder_draws_where_it_always_does() -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    x = torch.randn(1, 3, 4)
    seen: list[torch.Size] = []

    class Seen(TorchDispatchMode):  # type: ignore[no-untyped-call]  # __init_subclass__
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            if torch.Tag.nondeterministic_seeded in func.tags:
                seen.append(result.shape)
            return result

    with Seen():  # type: ignore[no-untyped-call]
        layer(x)
    weights = dict(layer.named_parameters())

    def call(x: Tensor, *given: Tensor) -> list[Tensor]:
        return [functional_call(layer, dict(zip(weights, given, strict=True)), (x,))]

    arguments = [x, *weights.values()]
    graph = torch_private.without_writes(torch_private.record(call, arguments), arguments)
    graph, found = noise.lift(graph, 1)
    assert [drawn.spec.shape for drawn in found] == seen
    assert len(seen) == 4
    given = [node.name for node in graph.graph.find_nodes(op="placeholder")]
    assert given[1:5] == [f"noise_{k}" for k in range(4)]


def test_predictions_meanwhile_leave_the_numbers_as_they_are() -> None:
    net, plain = drops(), drops()
    inputs, targets = stream(30, seed=1)
    with learner(net, seed=2) as pipe, learner(plain, seed=2, compile=False) as other:
        for call in in_calls(inputs, targets, 15):
            pipe.process(**call)
            other.process(**call)
            found, wanted = pipe.infer(inputs[:6]), other.infer(inputs[:6])
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


def test_a_mode_that_brings_dropout_draws_from_the_seed() -> None:
    inputs, targets = stream(20, seed=3)

    def outputs(**options: Any) -> Tensor:
        net = drops().eval()
        with learner(net, seed=4, **options) as pipe:
            pipe.process(inputs, targets)
            pipe.infer(inputs)
            net.train()
            found = [pipe.process(**call) for call in in_calls(inputs, targets, 10, 15)]
            assert pipe.learning == (
                "eager: compile is False" if options else "compiled: own kernels"
            )
            return torch.cat(found)

    before = torch.get_rng_state()
    found = outputs()
    torch.testing.assert_close(found, outputs(compile=False), rtol=0, atol=1e-10)
    assert torch.equal(torch.get_rng_state(), before)


GENERATOR = torch.Generator()


@pytest.mark.parametrize(
    ("change", "operation"),
    [
        (lambda x: x * torch.bernoulli(x.sigmoid()), "aten.bernoulli.default"),
        (lambda x: torch.normal(x, 1.0), "aten.normal.Tensor_float"),
        (lambda x: F.rrelu(x, training=True), "aten.rrelu_with_noise_functional.default"),
        (lambda x: x + torch.empty_like(x).normal_(generator=GENERATOR), ""),
    ],
    ids=["bernoulli", "normal", "rrelu", "generator"],
)
def test_numbers_that_depend_on_more_than_shapes_are_not_compiled(
    change: Change, operation: str
) -> None:
    inputs, targets = stream(6, seed=0)
    with learner(several(Changed(change))) as pipe:
        pipe.process(inputs, targets)
        pipe.process(inputs, targets)
        assert pipe.learning.startswith("eager: "), pipe.learning
        assert operation in pipe.learning


def in_stages() -> nn.Sequential:
    return nn.Sequential(*chain(["linear"], 0), nn.Dropout(0.3), *noises(), nn.Dropout(0.2))


@pytest.mark.parametrize("executor", ["inline", "threads"])
@pytest.mark.parametrize(
    ("schedule", "backward"),
    [("1f1b", "own"), ("sequential", "own"), ("lockstep", "newest")],
)
def test_every_stage_draws_its_own(schedule: str, backward: str, executor: str) -> None:
    options = {"schedule": schedule, "backward": backward, "executor": executor}
    both(in_stages(), *calls(20, 21, 35), seed=5, stages=["2", "6"], **options)


@pytest.mark.parametrize("executor", ["inline", "threads"])
def test_numbers_in_flight_go_over_to_eager_stages(executor: str) -> None:
    inputs, targets = stream(60, seed=6)
    net, plain = in_stages(), in_stages()
    options: dict[str, Any] = {"stages": ["2", "6"], "seed": 7}
    with (
        learner(net, **options, executor=executor) as pipe,
        learner(plain, **options, compile=False) as other,
    ):
        for call in in_calls(inputs, targets, 20, 27, 34):
            if len(call["inputs"]) > 20:
                assert pipe.learning.startswith("compiled")
                for group in (*groups(pipe), *groups(other)):
                    group["weight_decay"] = 0.2  # what the code does not know
            found, wanted = pipe.process(**call), other.process(**call)
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
        assert pipe.learning.startswith("eager: settings of the optimizer change")
    torch.testing.assert_close(net.state_dict(), plain.state_dict(), rtol=0, atol=1e-10)


def test_a_loss_that_draws_is_not_compiled() -> None:
    def loss(y: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(y + torch.rand_like(y), target)

    inputs, targets = stream(6, seed=0)
    net = nn.Sequential(*chain(["linear"], 0))
    with Pipeline(net, loss=loss, optimizer=torch.optim.Adam, compile=True) as pipe:
        pipe.process(inputs, targets)
        pipe.process(inputs, targets)
        assert pipe.learning == "eager: the loss draws random numbers"
