"""Samples that are not learned share a forward where that gives the same, and only there."""

import copy
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamflow.errors import SampleError, StageError
from streamflow.pipeline import Pipeline, trees
from streamflow.pipeline.routing.together import count_quiet, runs
from tests.pipeline.networks import SCHEMES, SGD, chain, stream
from tests.pipeline.real_networks import CASES
from tests.pipeline.test_any_module import part_of
from tests.pipeline.test_states import KEYS, STATE, recurrent

Linear = partial(nn.Linear, dtype=torch.float64)

# Networks among the cases that write a buffer or look at all rows in training mode.
UNEQUAL = {"residual", "encoder", "parametrized"}


class Counted(nn.Module):
    """Appends the number of rows of every forward to a list that is no attribute."""

    def __init__(self, net: nn.Module, append: Callable[[int], None]) -> None:
        super().__init__()
        self.net = net
        self.append = append

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.append(len(trees.tensors((args, kwargs))[0]))
        return self.net(*args, **kwargs)


def counted(net: nn.Module) -> tuple[nn.Module, list[int]]:
    seen: list[int] = []
    return Counted(net, lambda count: seen.append(count)), seen


def plain(kinds: Sequence[str] = ("linear", "tanh", "linear")) -> nn.Module:
    return chain(kinds, 0)


def assert_close(actual: Any, wanted: Any) -> None:
    assert trees.flatten(actual)[1] == trees.flatten(wanted)[1]
    for a, b in zip(trees.tensors(actual), trees.tensors(wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def predict(net: nn.Module, inputs: Any, **options: Any) -> tuple[Any, list[int]]:
    """Predict by ``process`` and by ``infer``; return outputs and how many rows forwards had.

    Both must give what one by one gives.
    """
    module, seen = counted(copy.deepcopy(net))
    with Pipeline(copy.deepcopy(net), **options, compile=False) as pipe:
        wanted = pipe.process(inputs)
        inferred = pipe.infer(inputs)
    before = torch.get_rng_state()
    with Pipeline(module, **options) as pipe:
        outputs = pipe.process(inputs)
        assert_close(outputs, wanted)
        assert_close(pipe.infer(inputs), inferred)
        seen.clear()
        assert_close(pipe.infer(inputs), inferred)
        by_infer = seen.copy()
        seen.clear()
        pipe.process(inputs)
        assert seen == by_infer
    assert torch.equal(torch.get_rng_state(), before)
    return outputs, seen


@pytest.mark.parametrize(
    ("flags", "quiet", "lag", "wanted"),
    [
        ("......", 0, 0, [(0, 6, True)]),
        ("LLLLLL", 9, 0, [(0, 6, False)]),
        ("...", 9, 0, [(0, 3, False)]),
        ("L....L", 9, 0, [(0, 1, False), (1, 5, True), (5, 6, False)]),
        ("L.....", 9, 1, [(0, 2, False), (2, 6, True)]),
        ("L....L", 9, 1, [(0, 6, False)]),
        ("......", 0, 2, [(0, 2, False), (2, 6, True)]),
        ("......", 1, 2, [(0, 1, False), (1, 6, True)]),
        ("......", 2, 2, [(0, 6, True)]),
        ("....L....", 9, 0, [(0, 4, True), (4, 5, False), (5, 9, True)]),
        ("....L.....", 0, 1, [(0, 6, False), (6, 10, True)]),
    ],
)
def test_samples_share_a_forward_when_no_gradient_is_in_flight(
    flags: str, quiet: int, lag: int, wanted: list[tuple[int, int, bool]]
) -> None:
    is_learned = [flag == "L" for flag in flags]
    assert list(runs(is_learned, 0, len(flags), quiet=quiet, lag=lag)) == wanted


def test_samples_before_count_up_to_the_last_that_was_learned() -> None:
    flags = [False, True, False, False]
    assert [count_quiet(flags, stop, 5) for stop in range(5)] == [5, 6, 0, 1, 2]


def test_samples_that_wait_share_forwards_of_256() -> None:
    inputs, _ = stream(600, seed=0)
    _, seen = predict(plain(), inputs)
    assert seen == [256, 256, 88]


@pytest.mark.parametrize("name", CASES)
def test_networks_that_people_build_predict_the_same(name: str) -> None:
    inputs, _ = CASES[name].stream(20)
    _, seen = predict(CASES[name].network(), inputs)
    assert seen == ([1] * 20 if name in UNEQUAL else [20])


def test_compile_false_runs_each_sample_by_itself() -> None:
    inputs, _ = stream(8, seed=0)
    module, seen = counted(plain())
    with Pipeline(module, compile=False) as pipe:
        pipe.process(inputs)
        pipe.infer(inputs)
    assert set(seen) == {1}


MIXED = [False] * 9 + [True] * 3 + [False] * 8 + [True] + [False] * 3 + [True] * 2 + [False] * 6


@pytest.mark.parametrize("executor", ["inline", "threads"])
@pytest.mark.parametrize("scheme", [s for s in SCHEMES if s != ("greedy", "stashed")])
@pytest.mark.parametrize("cuts", [[], ["1", "3"]])
def test_learning_goes_on_between_as_if_there_were_no_batches(
    scheme: tuple[str, str], cuts: list[str], executor: str
) -> None:
    if scheme[0] == "greedy" and executor == "threads" and cuts:
        pytest.skip("not reproducible")
    net = plain(["linear", "tanh", "product", "linear"])
    inputs, targets = stream(len(MIXED), seed=1)
    found = []
    for compile in ("auto", False):
        options: dict[str, Any] = {"schedule": scheme[0], "backward": scheme[1], "stages": cuts}
        pipe = Pipeline(
            copy.deepcopy(net), loss=F.mse_loss, optimizer=SGD, **options, executor=executor,
            compile=compile,
        )  # fmt: skip
        with pipe:
            outputs, steps = [], []
            for part in (slice(0, 12), slice(12, 20), slice(20, 31), slice(31, None)):
                outputs.append(pipe.process(inputs[part], targets[part], MIXED[part]))
                steps += pipe.steps
                outputs.append(pipe.infer(inputs[:5]))
            state = pipe.state_dict()
        found.append((torch.cat(outputs), steps, state))
    assert_close(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
    for name, tensor in found[1][2]["module"].items():
        assert torch.equal(found[0][2]["module"][name], tensor)
    assert found[0][2]["counters"] == found[1][2]["counters"]


def test_a_batch_between_learned_samples_is_one_forward() -> None:
    module, seen = counted(plain())
    inputs, targets = stream(len(MIXED), seed=1)
    with Pipeline(module, loss=F.mse_loss, optimizer=SGD) as pipe:
        pipe.process(inputs, targets, MIXED)
        seen.clear()
        pipe.process(inputs, targets, MIXED)
    assert seen == [9, 1, 1, 1, 8, *[1] * 6, 6]


def test_without_targets_nothing_is_learned_and_all_share() -> None:
    module, seen = counted(plain())
    inputs, _ = stream(10, seed=1)
    with Pipeline(module, loss=F.mse_loss, optimizer=SGD) as pipe:
        pipe.process(inputs)
        seen.clear()
        pipe.process(inputs)
        assert pipe.steps == [0] * 10
    assert seen == [10]


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm1d(3, dtype=torch.float64), nn.Dropout(0.5)], ids=["norm", "dropout"]
)
def test_a_layer_shares_in_evaluation_mode_only(layer: nn.Module) -> None:
    net = nn.Sequential(Linear(6, 6), nn.Unflatten(1, (3, 2)), layer, nn.Flatten(), Linear(6, 2))
    inputs = torch.randn(10, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    modules = [counted(copy.deepcopy(net)) for _ in range(2)]
    (first, seen), (second, _) = modules
    with Pipeline(first) as pipe, Pipeline(second, compile=False) as wanted:
        for is_training, rows in ((True, {1}), (False, {10}), (True, {1}), (False, {10})):
            first.train(is_training)
            second.train(is_training)
            for _ in range(2):
                seen.clear()
                assert_close(pipe.process(inputs), wanted.process(inputs))
            assert set(seen) == rows
    for name, tensor in second.state_dict().items():
        assert torch.equal(first.state_dict()[name], tensor)


def test_recurrent_state_goes_from_sample_to_sample() -> None:
    inputs, _ = stream(len(KEYS), seed=0)
    outputs = []
    for compile in ("auto", False):
        with Pipeline(recurrent(), state=STATE, compile=compile) as pipe:
            outputs.append(pipe.process(inputs, keys=KEYS))
            outputs.append(pipe.infer(inputs, keys=KEYS))
    assert torch.equal(outputs[0], outputs[2])
    assert torch.equal(outputs[1], outputs[3])


class Of(nn.Module):
    """A network that is a function of its input and of itself."""

    def __init__(self, function: Callable[["Of", Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        self.register_buffer("count", torch.zeros(3, dtype=torch.float64))
        self.count: Tensor
        self.last: Any = None
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def counts_in_place(net: Of, x: Tensor) -> Tensor:
    net.count += 1
    return x + net.count


def replaces_a_buffer(net: Of, x: Tensor) -> Tensor:
    net.count = x[-1].detach()
    return 2 * x


def keeps_its_input(net: Of, x: Tensor) -> Tensor:
    net.last = x
    return 2 * x


def counts_calls(net: Of, x: Tensor) -> Tensor:
    net.calls += 1
    return x + net.calls


def decides_by_values(_: Of, x: Tensor) -> Tensor:
    return x / x.norm() if x.abs().max() > 1e3 else x


def decides_by_a_number_of_values(_: Of, x: Tensor) -> Tensor:
    return x if len((x > 1e3).nonzero()) == 0 else x - x.mean()


def is_a_constant(net: Of, x: Tensor) -> Tensor:
    return net.weight.unsqueeze(0) + 0 * x[:1]


LOOKING: dict[str, Callable[[Of, Tensor], Tensor]] = {
    "the mean of the batch": lambda _, x: x - x.mean(0),
    "the mean, faintly": lambda _, x: x + 1e-13 * x.mean(0),
    "the mean, behind a weight of zero": lambda net, x: x + net.weight * x.mean(0),
    "earlier rows": lambda _, x: x + x.cumsum(0),
    "the row before": lambda _, x: x + x.roll(1, 0),
    "the first row": lambda _, x: x + x[0],
    "the last row": lambda _, x: x + x[-1],
    "the first row, faintly": lambda _, x: x + 1e-13 * x[0],
    "the last row, faintly": lambda _, x: x + 1e-13 * x[-1],
    "a norm": lambda _, x: x / x.norm(),
    "the number of rows": lambda _, x: x / len(x),
    "a shape": lambda _, x: x.reshape(1, -1)[:, :3],
    "one row only": lambda _, x: x.squeeze(0).unsqueeze(0)[:, :3] if len(x) == 1 else x[:1],
    "random numbers": lambda _, x: x + torch.rand_like(x),
    "random numbers, behind a weight of zero": lambda net, x: x + net.weight * torch.rand_like(x),
    "a constant": is_a_constant,
    "values": decides_by_values,
    "a number of values": decides_by_a_number_of_values,
    "a buffer": counts_in_place,
    "a new buffer": replaces_a_buffer,
}


@pytest.mark.parametrize("why", LOOKING)
def test_a_network_whose_rows_are_not_alone_runs_them_one_by_one(why: str) -> None:
    inputs, _ = stream(12, seed=0)
    assert set(predict(Of(LOOKING[why]), inputs)[1]) == {1}


@pytest.mark.parametrize("function", [keeps_its_input, counts_calls])
def test_a_network_that_changes_its_attributes_runs_them_one_by_one(
    function: Callable[[Of, Tensor], Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    inputs, _ = stream(12, seed=0)
    module, seen = counted(Of(function))
    with caplog.at_level(logging.INFO, "streamflow"), Pipeline(module) as pipe:
        pipe.process(inputs)
        seen.clear()
        pipe.process(inputs)
    assert seen == [1] * 12
    told = caplog.messages[-1]
    assert told == "samples are predicted one by one: the network changes its attributes"


def test_a_network_with_hooks_runs_them_one_by_one() -> None:
    rows: list[int] = []
    net = plain()
    net.register_forward_hook(lambda _module, inputs, _outputs: rows.append(len(inputs[0])))
    with Pipeline(net) as pipe:
        pipe.process(stream(8, seed=0)[0])
    assert set(rows) == {1}


class Sealed(dict[str, Any]):
    """Attributes that do not tell what they hold."""

    def get(self, *_: Any) -> Any:
        msg = "sealed"
        raise AttributeError(msg)


def test_a_network_that_cannot_be_watched_runs_them_one_by_one() -> None:
    net = Linear(3, 3)
    net._parameters = Sealed(net._parameters)
    inputs, _ = stream(8, seed=0)
    module, seen = counted(net)
    with Pipeline(module) as pipe:
        pipe.process(inputs)
        seen.clear()
        pipe.process(inputs)
    assert seen == [1] * 8


class Tokens(nn.Module):
    """Embeds tokens, and adds how many of the whole batch are padding, times a factor."""

    def __init__(self, looks: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 3, dtype=torch.float64)
        self.looks = looks

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.embed(tokens).mean(1)
        return out + self.looks * (tokens == 0).double().mean()


@pytest.mark.parametrize("looks", [1.0, 1e-9, 0.0])
def test_integers_that_are_all_alike_do_not_hide_what_the_network_looks_at(looks: float) -> None:
    tokens = torch.full((8, 5), 7)
    _, seen = predict(Tokens(looks), tokens)
    assert seen == ([1] * 8 if looks else [8])


def test_errors_name_their_sample_as_ever() -> None:
    tokens = torch.full((8, 5), 7)
    bad = tokens.clone()
    bad[6, 0] = 99
    module, seen = counted(Tokens(0.0))
    pipe = Pipeline(module)
    for _ in range(3):
        pipe.infer(tokens)
        with pytest.raises(SampleError) as refused:
            pipe.infer(bad)
        assert refused.value.index == 6
    seen.clear()
    pipe.infer(tokens)
    assert seen == [8]
    with pytest.raises(StageError, match="sample 6: expected forward to succeed"):
        pipe.process(bad)


def test_a_larger_batch_that_loses_rows_runs_them_one_by_one() -> None:
    module, seen = counted(Of(lambda _, x: x[:9]))
    inputs, _ = stream(12, seed=0)
    with Pipeline(module) as pipe:
        pipe.process(inputs[:8])
        for _ in range(4):
            seen.clear()
            assert torch.equal(pipe.process(inputs), inputs)
    assert seen == [1] * 12


def test_outputs_of_several_shapes_are_told_as_ever() -> None:
    net = Of(lambda _, x: x[:, :2] if len(x) == 1 and x[0, 0] == 7 else x)
    inputs = torch.ones(9, 3, dtype=torch.float64)
    inputs[8] = 7
    learn = [False] * 8 + [True]
    loss: Any = lambda output: output.sum()  # noqa: E731
    pipe = Pipeline(net, loss=loss, optimizer=SGD)
    with pytest.raises(StageError, match="sample 8: expected an output like that of sample 0"):
        pipe.process(inputs, learn=learn)


def test_infer_leaves_no_trace() -> None:
    inputs, targets = stream(16, seed=0)
    found = []
    for infers in (True, False):
        net = plain(["linear", "tanh", "product", "linear"])
        with Pipeline(net, loss=F.mse_loss, optimizer=SGD, stages=["1", "3"]) as pipe:
            before = torch.get_rng_state()
            outputs = []
            for first in range(0, 16, 4):
                if infers:
                    pipe.infer(inputs)
                outputs.append(pipe.process(inputs[first : first + 4], targets[first : first + 4]))
            assert torch.equal(torch.get_rng_state(), before)
            found.append((torch.cat(outputs), pipe.state_dict()))
    assert torch.equal(found[0][0], found[1][0])
    for name, tensor in found[1][1]["module"].items():
        assert torch.equal(found[0][1]["module"][name], tensor)


def test_infer_shares_while_a_gradient_is_in_flight() -> None:
    first, seen = counted(Linear(3, 3))
    inputs, targets = stream(8, seed=0)
    with Pipeline(
        nn.Sequential(first, Linear(3, 3)),
        loss=F.mse_loss,
        optimizer=SGD,
        stages=["1"],
        executor="inline",
    ) as pipe:
        pipe.process(inputs, targets)
        pipe.infer(inputs)
        seen.clear()
        pipe.infer(inputs)
        assert seen == [8]
        assert pipe.counters["updates"] == [7, 8]


def test_what_is_large_inside_shares_less() -> None:
    def wide(elements: int) -> nn.Module:
        return Of(lambda _, x: (x.float().sum(1, keepdim=True).expand(-1, elements) + 1)[:, :3])

    inputs, _ = stream(9, seed=0)
    assert predict(wide(2**19), inputs)[1] == [8, 1]
    assert set(predict(wide(2**21), inputs)[1]) == {1}


def test_what_is_large_of_the_network_itself_counts_for_nothing() -> None:
    net = Of(lambda net, x: x @ net.weight.expand(2**21, 3)[:3].t())
    assert predict(net, stream(20, seed=0)[0])[1] == [20]


def test_outputs_belong_to_the_caller() -> None:
    net = Of(lambda net, x: net.weight.expand(len(x), -1))
    inputs, _ = stream(8, seed=0)
    for module in (net, nn.Identity()):
        with Pipeline(module) as pipe:
            before = inputs.clone()
            pipe.process(inputs).add_(1)
            pipe.infer(inputs).add_(1)
    assert torch.equal(inputs, before)
    assert not net.weight.any()


@pytest.mark.parametrize("executor", ["inline", "threads"])
@pytest.mark.parametrize("name", ["tuples", "dicts", "attention with a mask", "recurrent"])
def test_several_stages_share_forwards(name: str, executor: str) -> None:
    case = CASES[name]
    inputs, _ = case.stream(20)
    outputs = []
    for compile in ("auto", False):
        options: dict[str, Any] = {"stages": case.cuts[0], "executor": executor}
        with Pipeline(case.network(), compile=compile, **options) as pipe:
            outputs.append(pipe.process(inputs))
            outputs.append(pipe.infer(part_of(inputs, slice(0, 7))))
    assert_close(outputs[:2], outputs[2:])
