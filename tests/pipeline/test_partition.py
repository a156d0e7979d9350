"""Cutting networks: code between layers keeps its meaning, or is refused with a cure."""

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from streamflow.errors import PartitionError, SampleError
from streamflow.pipeline import Pipeline, trees
from streamflow.pipeline.network.partition import partition
from tests.pipeline.networks import chain

Linear = partial(nn.Linear, dtype=torch.float64)
SGD = partial(torch.optim.SGD, lr=0.05)


class Net(nn.Module):
    """Three layers whose ``forward`` each test writes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = Linear(4, 4), Linear(4, 4), Linear(4, 4)
        self.list = nn.ModuleList([Linear(4, 4)])
        self.register_buffer("table", torch.arange(4, dtype=torch.float64))
        self.factor = nn.Parameter(torch.ones(4, dtype=torch.float64))
        self.count = 0
        self.history: list[Tensor] = []


def with_forward(forward: Callable[..., Any]) -> nn.Module:
    return type("Custom", (Net,), {"forward": forward})()  # type: ignore[no-any-return]


def data(count: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, 4, dtype=torch.float64, generator=generator)


def learn(net: nn.Module, inputs: Any, stages: object, schedule: str = "sequential") -> Any:
    options: dict[str, Any] = {"stages": stages, "schedule": schedule}
    with Pipeline(net, loss=lambda y: y.square().mean(), optimizer=SGD, **options) as pipe:
        return pipe.process(inputs), pipe.infer(inputs)


def assert_cut_is_exact(forward: Callable[..., Any], inputs: Any, stages: object = ("b",)) -> None:
    results = []
    for cuts in (1, stages):
        torch.manual_seed(0)
        net = with_forward(forward)
        results.append((learn(net, inputs, cuts), dict(net.state_dict())))
    for whole, cut in zip(trees.tensors(results[0]), trees.tensors(results[1]), strict=True):
        torch.testing.assert_close(cut, whole, rtol=0, atol=1e-12)


def refusal(forward: Callable[..., Any], stages: object = ("b",)) -> str:
    with pytest.raises(PartitionError) as caught:
        partition(with_forward(forward), stages)  # type: ignore[arg-type]
    return str(caught.value)


# What code may do between layers.


def adds_in_place(self: Any, x: Tensor) -> Any:
    y = self.a(x)
    skip = y
    y += 1
    y -= x
    return self.b(y.tanh()) * skip


def writes_elements(self: Any, x: Tensor) -> Any:
    y = self.a(x) * 1
    y[:, 0] = 0
    y[:, 1:3] *= 2
    return self.b(y.clone()) + y


def writes_behind_the_cut(self: Any, x: Tensor) -> Any:
    y = self.a(x).sin()
    skip = y + 1
    z = self.b(x)
    y.mul_(2)
    return self.c(z + y) + skip * y


def makes_tensors(self: Any, x: Tensor) -> Any:
    state = torch.zeros(x.shape[0], 4, dtype=x.dtype)
    state[:, :2] = self.a(x)[:, :2]
    state += torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    return self.b(state) * torch.ones(4, dtype=torch.float64).to(self.c.weight.dtype)


def uses_parameters(self: Any, x: Tensor) -> Any:
    return F.linear(self.b(self.a(x).to(self.b.weight.dtype)), self.b.weight) * self.table


def writes_a_buffer(self: Any, x: Tensor) -> Any:
    self.table.mul_(0.5)
    return self.b(self.a(x) + self.table.clone())


def asserts(self: Any, x: Tensor) -> Any:
    assert x.shape[1] == 4
    assert x.dim() == 2, "flatten it"
    return self.b(self.a(x))


def unpacks_shapes(self: Any, x: Tensor) -> Any:
    n, d = x.shape
    left, right = self.a(x).view(n, 2, d // 2).unbind(1)
    return self.b(torch.cat([right, left], 1)) + d


def unpacks_behind_the_cut(self: Any, x: Tensor) -> Any:
    parts = self.a(x).chunk(2, 1)
    bias = self.b(torch.ones(1, 4, dtype=torch.float64))
    return bias[:, :2] + parts[0] * parts[1]


def checkpoints(self: Any, x: Tensor) -> Any:
    return self.b(checkpoint(self.a, x, use_reentrant=False))


def iterates_modules(self: Any, x: Tensor) -> Any:
    for layer in self.list:
        x = layer(x)
    return self.b(x)


@pytest.mark.parametrize(
    "forward",
    [
        adds_in_place,
        writes_elements,
        writes_behind_the_cut,
        makes_tensors,
        uses_parameters,
        writes_a_buffer,
        asserts,
        unpacks_shapes,
        unpacks_behind_the_cut,
        checkpoints,
        iterates_modules,
    ],
)
def test_code_between_layers_keeps_its_meaning(forward: Callable[..., Any]) -> None:
    assert_cut_is_exact(forward, data())


def test_a_failed_assertion_is_a_bad_sample() -> None:
    options: dict[str, Any] = {"stages": ["b"]}
    with (
        Pipeline(with_forward(asserts), **options) as pipe,
        pytest.raises(SampleError, match="assertion failed"),
    ):
        pipe.infer(torch.ones(1, 5, dtype=torch.float64))


# How a network may be called.


def takes_options(self: Any, x: Tensor, scale: Any = None, *, double: bool = False) -> Any:
    y = self.a(x)
    if scale is not None:
        y = y * scale
    return self.b(y * 2 if double else y)


def takes_flags(self: Any, x: Tensor, flag: Any, nothing: Any) -> Any:
    return self.b(self.a(x) * (2 if flag is True else 3) + (0 if nothing is None else 1))


def takes_any(self: Any, *args: Tensor, **kwargs: Any) -> Any:
    return takes_options(self, *args, **kwargs)


def sums_all(self: Any, *args: Tensor) -> Any:
    return self.b(self.a(torch.stack(args).sum(0)))


def takes_names(self: Any, *, x: Tensor, y: Tensor) -> Any:
    return self.b(self.a(x) + y)


def takes_only_defaults(self: Any, ids: Any = None, embedded: Any = None) -> Any:
    return self.b(self.a(ids if embedded is None else embedded))


def takes_structures(self: Any, data: Any) -> Any:
    total = sum(part for part in data["parts"])
    return self.b(self.a(total)) * len(data)


X, Y = data(), data().flip(0)


@pytest.mark.parametrize(
    ("forward", "inputs"),
    [
        (takes_options, X),
        (takes_options, (X, Y)),
        (takes_options, {"x": X}),
        (takes_options, {"scale": Y, "x": X}),
        (takes_options, {"x": X, "double": True}),
        (takes_options, {"x": X, "scale": None, "double": False}),
        (takes_flags, (X, True, None)),
        (takes_flags, (X, False, None)),
        (takes_any, X),
        (takes_any, (X, Y)),
        (takes_any, {"x": X, "scale": Y}),
        (sums_all, (X, Y, X)),
        (takes_names, {"y": Y, "x": X}),
        (takes_only_defaults, X),
        (takes_only_defaults, {"embedded": X}),
        (takes_structures, {"data": {"parts": [X, Y, X], "name": "row"}}),
    ],
)
def test_a_network_may_be_called_in_many_ways(forward: Callable[..., Any], inputs: Any) -> None:
    if forward is takes_structures:  # a stage's code is first read without knowing its inputs
        assert "traceable" in refusal(forward)
        return
    assert_cut_is_exact(forward, inputs)


def test_one_pipeline_is_called_in_several_ways() -> None:
    net = with_forward(takes_options)
    calls = [X, {"x": X, "scale": Y}, {"x": X, "double": True}, (X, Y), X]
    options: dict[str, Any] = {"stages": ["b"], "executor": "threads"}
    with Pipeline(net, **options) as pipe, torch.no_grad():
        for inputs in calls:
            named = inputs if isinstance(inputs, dict) else {}
            args = inputs if isinstance(inputs, tuple) else () if named else (inputs,)
            torch.testing.assert_close(pipe.infer(inputs), net(*args, **named))


def test_a_stage_may_have_nothing_to_do_in_some_calls() -> None:
    def forward(self: Any, data: Any) -> Any:
        return self.b(self.a(data["x"]))

    assert_cut_is_exact(forward, {"data": {"x": X}}, ["a", "b"])


def test_parameters_that_only_optional_arguments_use_are_refused() -> None:
    def forward(self: Any, x: Tensor, aux: Any = None) -> Any:
        y = self.a(x) if aux is None else self.a(x) + self.c(aux)
        return self.b(y)

    with (
        Pipeline(with_forward(forward), stages=["b"]) as pipe,
        pytest.raises(PartitionError, match=r"'c.weight' in calls without optional arguments"),
    ):
        pipe.infer((X, Y))


# Training and evaluation.


def drops_out(self: Any, x: Tensor) -> Any:
    y = F.dropout(self.a(x), 0.5, training=self.training)
    return self.b(y) if self.training else self.b(y) * 2


def test_code_follows_the_mode() -> None:
    net = with_forward(drops_out)
    with Pipeline(net, stages=["b"], seed=4) as pipe:
        assert not torch.equal(pipe.process(X), pipe.process(X))
        net.eval()
        with torch.no_grad():
            torch.testing.assert_close(pipe.process(X), net(X))
        net.train()
        assert not torch.equal(pipe.process(X), pipe.process(X))


def draws_between(self: Any, x: Tensor) -> Any:
    return self.b(self.a(x) + torch.randn(4, dtype=torch.float64) + torch.randn_like(x))


def test_random_numbers_between_layers_are_drawn_for_every_sample() -> None:
    net = with_forward(draws_between)
    state = torch.get_rng_state()
    with Pipeline(net, stages=["b"]) as pipe:
        outputs = pipe.process(X[:1].expand(4, 4))
        assert len({tuple(row.tolist()) for row in outputs}) == 4
    assert torch.equal(torch.get_rng_state(), state)


# What a trace would falsify.


def branches(self: Any, x: Tensor) -> Any:
    y = self.a(x)
    if y.sum() > 0:
        y = y * 2
    return self.b(y)


def is_silent(self: Any, x: Tensor) -> Any:
    with torch.no_grad():
        y = self.a(x)
    return self.b(y)


def casts(self: Any, x: Tensor) -> Any:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = self.a(x)
    return self.b(y)


def counts(self: Any, x: Tensor) -> Any:
    self.count += 1
    return self.b(self.a(x) * self.count)


def remembers(self: Any, x: Tensor) -> Any:
    self.history.append(self.a(x))
    return self.b(self.history[-1])


def keeps(self: Any, x: Tensor) -> Any:
    self.last = self.a(x)
    return self.b(self.last)


def replaces_a_buffer(self: Any, x: Tensor) -> Any:
    self.table = torch.Tensor([1.0, 2.0])
    return self.b(self.a(x))


def flips_a_coin(self: Any, x: Tensor) -> Any:
    return self.b(self.a(x) * random.random())


def fills_with_noise(self: Any, x: Tensor) -> Any:
    return self.b(self.a(x) + torch.Tensor(4).uniform_())


def sums_parameters(self: Any, x: Tensor) -> Any:
    return self.b(self.a(x)) + sum(p.sum() for p in self.c.parameters())


@pytest.mark.parametrize(
    ("forward", "message", "line"),
    [
        (branches, "control flow", "if y.sum() > 0:"),
        (is_silent, "no_grad", "y = self.a(x)"),
        (casts, "autocast", "y = self.a(x)"),
        (counts, "a write to attribute 'count' of Custom", None),
        (remembers, "a write to attribute 'history' of Custom", None),
        (keeps, "a write to attribute 'last' of Custom", None),
        (replaces_a_buffer, "a write to attribute 'table' of Custom", None),
        (flips_a_coin, "Python's random numbers", None),
        (fills_with_noise, "random numbers", "uniform_"),
        (sums_parameters, "computed from parameters", "self.c.parameters()"),
    ],
)
def test_what_a_trace_would_falsify_is_refused(
    forward: Callable[..., Any], message: str, line: str | None
) -> None:
    found = refusal(forward)
    assert message in found
    assert "move that into a module without a cut inside" in found
    assert line is None or (__file__ in found and line in found)


def test_a_refused_network_stays_as_it_was() -> None:
    random.seed(1)
    before = random.getstate()
    for forward in (counts, keeps, replaces_a_buffer, flips_a_coin):
        net = with_forward(forward)
        table = net.get_buffer("table")
        with pytest.raises(PartitionError):
            partition(net, ["b"])
        assert net.count == 0
        assert not hasattr(net, "last")
        assert net.get_buffer("table") is table
    assert random.getstate() == before


def waits_for_a_draw_elsewhere(self: Any, x: Tensor) -> Any:
    other = threading.Thread(target=random.random)
    other.start()
    other.join()
    return self.b(self.a(x))


def test_what_other_threads_draw_is_no_reason_to_refuse() -> None:
    before = random.getstate()
    assert len(partition(with_forward(waits_for_a_draw_elsewhere), ["b"]).modules) == 2
    assert random.getstate() != before


def test_what_holds_no_cut_is_not_read() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.calls = with_forward(branches), 0

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                y: Tensor = self.inner(x)
            return y

    net = nn.Sequential(Linear(4, 4), Block(), Linear(4, 4))
    assert len(partition(net, ["1", "2"]).modules) == 3
    with pytest.raises(PartitionError, match="no_grad"):
        partition(net, ["1.inner"])


def test_hooks_run_once_a_sample_or_the_cut_is_refused() -> None:
    seen: list[int] = []

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        seen.append(1)

    net = nn.Sequential(nn.Sequential(Linear(4, 4), Linear(4, 4)), Linear(4, 4))
    net[0].register_forward_hook(hook)
    with Pipeline(net, stages=["1"]) as pipe:
        pipe.process(X)
        asked = len(seen)
        pipe.process(X)
        assert len(seen) - asked == len(X)
    with pytest.raises(PartitionError, match="hooks of '0'"):
        partition(net, ["0.1"])
    net.register_forward_pre_hook(lambda module, args: None)
    with pytest.raises(PartitionError, match="hooks of the network itself"):
        partition(net, ["1"])


# Cuts.


def calls_twice(self: Any, x: Tensor) -> Any:
    return self.a(self.b(self.a(x)))


def calls_in_order(self: Any, x: Tensor) -> Any:
    return self.c(self.b(self.list[0](self.a(x))))


def calls_one(self: Any, x: Tensor) -> Any:
    return self.a(x)


@pytest.mark.parametrize(
    ("forward", "stages", "message"),
    [
        (calls_in_order, ["list.1"], "got 'list.1'; did you mean list.0"),
        (calls_in_order, ["zzz"], "got 'zzz'; known are a, b, c, list, list.0"),
        (calls_in_order, ["list"], "that the network calls, got 'list'; cut before what it holds"),
        (calls_one, ["b"], "that the network calls, got 'b'; cut elsewhere"),
        (calls_in_order, ["c", "b"], "got ['c', 'b']; pass ['b', 'c']"),
        (calls_in_order, ["b", "b"], "got ['b', 'b']; pass ['b']"),
        (calls_twice, ["b"], "got a.weight in stages 0 and 1; cut elsewhere or use it in one"),
        (calls_in_order, 9, "at most 4 for this network, got 9"),
    ],
)
def test_cuts_that_cannot_be_made_name_a_cure(
    forward: Callable[..., Any], stages: Any, message: str
) -> None:
    assert message in refusal(forward, stages)


def test_tied_parameters_are_named() -> None:
    net = chain(["linear"] * 3, 0)
    net[2].weight = net[0].weight
    with pytest.raises(PartitionError, match=r"0.weight = 2.weight in stages 0 and 1; .*untie"):
        partition(net, ["1"])
    assert len(partition(nn.Sequential(*net, Linear(3, 3)), ["3"]).modules) == 2


def test_a_module_called_twice_is_cut_before_its_first_call() -> None:
    cut = partition(with_forward(lambda self, x: self.c(self.b(self.b(self.a(x))))), ["b", "c"])
    assert [sorted(name for name, _ in part.named_children()) for part in cut.modules] == [
        ["a"],
        ["b"],
        ["c"],
    ]


def test_stages_share_the_parameters_and_names_of_the_network() -> None:
    net = with_forward(uses_parameters)
    own = dict(net.named_parameters())
    for part in partition(net, ["b"]).modules:
        for name, parameter in part.named_parameters():
            assert parameter is own[name]
    assert not [name for name in vars(net) if name.startswith("_constant")]


def test_cutting_disturbs_no_other_thread() -> None:
    """Tracing patches torch for the whole process; who runs meanwhile must not notice."""
    other = with_forward(uses_parameters)
    wanted = other(X)

    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x)
        with ThreadPoolExecutor(1) as pool:
            assert torch.equal(pool.submit(other, X).result(), wanted)
            assert type(pool.submit(self.c, X).result()) is Tensor
            assert pool.submit(torch.zeros, 2).result().tolist() == [0, 0]
        return self.b(y)

    calls: list[int] = []
    other.register_forward_hook(lambda module, args, output: calls.append(1))
    parts = partition(with_forward(forward), ["b"]).modules
    assert calls
    assert [len(list(part.children())) for part in parts] == [1, 1]
