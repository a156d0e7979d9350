"""Networks that people build, cut at awkward places, against plain PyTorch."""

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from streamflow.pipeline import Pipeline, reference, trees
from streamflow.pipeline.network.partition import partition
from tests.pipeline.real_networks import CASES, Case

COUNT = 7
EXECUTORS = ("inline", "threads")
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "momentum": partial(torch.optim.SGD, lr=0.02, momentum=0.5),
    "adam": partial(torch.optim.Adam, lr=0.01),
}
SGD = OPTIMIZERS["momentum"]
CUT = [(name, cuts) for name, case in CASES.items() for cuts in case.cuts]
FIRST_CUT = [(name, case.cuts[-1]) for name, case in CASES.items()]


def spread(row: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(row, Mapping):
        return (), dict(row)
    return (row, {}) if isinstance(row, tuple) else ((row,), {})


def compute_loss(case: Case, output: Any, target: Any) -> Tensor:
    return case.loss(output) if case.targets is None else case.loss(output, target)


def rows(case: Case, tree: Any) -> list[Any]:
    return [None] * COUNT if tree is None else trees.split_samples(tree, COUNT)


def part_of(tree: Any, part: slice) -> Any:
    return trees.map_tensors(lambda tensor: tensor[part], tree)


def learner(case: Case, net: nn.Module, cuts: Sequence[str], **options: Any) -> Pipeline:
    return Pipeline(net, **{"loss": case.loss, "optimizer": SGD, "stages": list(cuts), **options})


def plainly(case: Case, net: nn.Module, inputs: Any, targets: Any) -> list[Any]:
    """Learn as everybody does without a pipeline."""
    optimizer = SGD(net.parameters())
    outputs = []
    for row, target in zip(rows(case, inputs), rows(case, targets), strict=True):
        args, kwargs = spread(row)
        optimizer.zero_grad()
        output = net(*args, **kwargs)
        outputs.append(trees.map_tensors(lambda t: t.detach().clone(), output))
        compute_loss(case, output, target).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return outputs


def by_hand(
    case: Case, net: nn.Module, cuts: Sequence[str], inputs: Any, targets: Any, backward: str
) -> list[Any]:
    """Learn in the order of ``1f1b``, with a queue of values and one of gradients per stage."""
    stages = partition(net, list(cuts)).modules
    last, labels = len(stages) - 1, rows(case, targets)
    owned = [list(stage.parameters()) for stage in stages]
    optimizers = [SGD(parameters) if parameters else None for parameters in owned]
    values: list[dict[int, Any]] = [dict(enumerate(rows(case, inputs))), *({} for _ in stages)]
    gradients: list[dict[int, list[Tensor | None]]] = [{} for _ in stages]
    seen: dict[tuple[int, int], tuple[dict[str, Tensor], dict[str, Tensor]]] = {}
    for action, s, n in reference.steps("1f1b", len(stages), 0, COUNT):
        stage, x = stages[s], values[s][n]
        if action == "forward":
            seen[s, n] = snapshot(stage)
            with torch.no_grad():
                args, kwargs = spread(trees.map_tensors(torch.Tensor.clone, x))
                values[s + 1][n] = stage(*args, **kwargs)
            continue
        weights, buffers = seen[s, n]
        weights = weights if backward == "stashed" else snapshot(stage)[0]
        leaves = trees.as_leaves(x)
        args, kwargs = spread(trees.map_tensors(torch.Tensor.clone, leaves))
        y = functional_call(stage, {**weights, **buffers}, args, kwargs)
        roots, above = [compute_loss(case, y, labels[n])] if s == last else trees.floats(y), None
        if s < last:
            pairs = zip(roots, gradients[s][n], strict=True)
            known = [(root, g) for root, g in pairs if g is not None and root.requires_grad]
            roots, above = [root for root, _ in known], [g for _, g in known]
        trainable = {name: w for name, w in weights.items() if w.requires_grad}
        found: Sequence[Tensor | None] = [None] * len(trainable)
        if roots and any(root.requires_grad for root in roots):
            wanted = [*trainable.values(), *trees.floats(leaves)]
            found = torch.autograd.grad(roots, wanted, above, allow_unused=True)
        gradients[s - 1][n] = list(found[len(trainable) :])
        for name, gradient in zip(trainable, found, strict=False):
            stage.get_parameter(name).grad = gradient
        if optimizer := optimizers[s]:
            optimizer.step()
    return [values[-1][n] for n in range(COUNT)]


def snapshot(stage: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    weights = {
        name: p.detach().clone().requires_grad_(p.requires_grad)
        for name, p in stage.named_parameters()
    }
    return weights, {name: b.detach().clone() for name, b in stage.named_buffers()}


def assert_close(actual: Any, wanted: Any) -> None:
    assert trees.flatten(actual)[1] == trees.flatten(wanted)[1]
    for a, b in zip(trees.tensors(actual), trees.tensors(wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def assert_equal(actual: Any, wanted: Any) -> None:
    assert trees.flatten(actual)[1] == trees.flatten(wanted)[1]
    for a, b in zip(trees.tensors(actual), trees.tensors(wanted), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize(("name", "cuts"), CUT)
def test_sequential_equals_plain_learning(
    name: str, cuts: tuple[str, ...], executor: str, device: torch.device
) -> None:
    case = CASES[name]
    net = case.network(device)
    plain = copy.deepcopy(net)
    inputs, targets = case.stream(COUNT, device)
    wanted = plainly(case, plain, inputs, targets)
    with learner(case, net, cuts, schedule="sequential", executor=executor) as pipe:
        outputs = pipe.process(inputs, targets)
    assert_close(outputs, trees.stack_samples(wanted))
    assert_close(net.state_dict(), plain.state_dict())
    assert list(net.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize("backward", ["own", "stashed"])
@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize(("name", "cuts"), CUT)
def test_1f1b_equals_queues_by_hand(
    name: str, cuts: tuple[str, ...], executor: str, backward: str, device: torch.device
) -> None:
    case = CASES[name]
    net = case.network(device)
    other = copy.deepcopy(net)
    inputs, targets = case.stream(COUNT, device)
    wanted = by_hand(case, other, cuts, inputs, targets, backward)
    with learner(case, net, cuts, backward=backward, executor=executor) as pipe:
        outputs = pipe.process(inputs, targets)
    assert_close(outputs, trees.stack_samples(wanted))
    assert_close(net.state_dict(), other.state_dict())


@pytest.mark.parametrize(("name", "cuts"), FIRST_CUT)
def test_stashed_equals_backpropagation_through_the_weights_of_its_forward(
    name: str, cuts: tuple[str, ...], device: torch.device
) -> None:
    """Nothing is cut here: each parameter is as old as its stage's lag says."""
    case = CASES[name]
    net = case.network(device)
    plain = copy.deepcopy(net)
    inputs, targets = case.stream(COUNT, device)
    lags = {
        parameter: len(cuts) - index
        for index, part in enumerate(partition(plain, list(cuts)).modules)
        for parameter, _ in part.named_parameters()
    }
    optimizer = SGD(plain.parameters())
    history = [snapshot(plain)[0]]
    for n, (row, target) in enumerate(zip(rows(case, inputs), rows(case, targets), strict=True)):
        weights = {name: history[max(n - lags.get(name, 0), 0)][name] for name in history[0]}
        output = functional_call(plain, weights, *spread(row))
        trained = {name: weight for name, weight in weights.items() if weight.requires_grad}
        loss = compute_loss(case, output, target)
        found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        for name, gradient in zip(trained, found, strict=True):
            plain.get_parameter(name).grad = gradient
        optimizer.step()
        history.append(snapshot(plain)[0])
    with learner(case, net, cuts, backward="stashed") as pipe:
        pipe.process(inputs, targets)
    assert_close(net.state_dict(), plain.state_dict())


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize(("name", "cuts"), FIRST_CUT)
def test_infer_predicts_what_process_predicts_next(
    name: str, cuts: tuple[str, ...], executor: str, device: torch.device
) -> None:
    case = CASES[name]
    inputs, targets = case.stream(COUNT, device)
    head, tail = (
        part_of((inputs, targets), part) for part in (slice(0, COUNT - 1), slice(COUNT - 1, COUNT))
    )
    with learner(case, case.network(device), cuts, executor=executor) as pipe:
        pipe.process(*head)
        # Samples in flight may be applied in threads between the two.
        pipe.drain()
        inferred = pipe.infer(tail[0])
        assert_equal(pipe.process(*tail), inferred)


@pytest.mark.parametrize(("name", "cuts"), FIRST_CUT)
def test_outputs_keep_the_structure_of_the_network(name: str, cuts: tuple[str, ...]) -> None:
    case = CASES[name]
    net = case.network()
    inputs, targets = case.stream(COUNT)
    args, kwargs = spread(inputs)
    with torch.no_grad():
        wanted = copy.deepcopy(net)(*args, **kwargs)
    with learner(case, net, cuts) as pipe:
        empty = pipe.infer(trees.map_tensors(lambda t: t[:0], inputs))
        for output in (pipe.process(inputs, targets), empty):
            assert type(output) is type(wanted)
            assert trees.flatten(output)[1] == trees.flatten(wanted)[1]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("name", "cuts"), FIRST_CUT)
def test_a_saved_state_continues_bit_by_bit(
    name: str, cuts: tuple[str, ...], optimizer: str
) -> None:
    case = CASES[name]
    inputs, targets = case.stream(COUNT)
    parts = [part_of((inputs, targets), part) for part in (slice(0, 4), slice(4, COUNT))]
    options = {"optimizer": OPTIMIZERS[optimizer]}
    with learner(case, case.network(), cuts, **options) as whole:
        whole.process(*parts[0])
        state = whole.state_dict()
        wanted = whole.process(*parts[1])
    with learner(case, case.network(seed=5), cuts, executor="threads", **options) as pipe:
        pipe.load_state_dict(state)
        assert_equal(pipe.process(*parts[1]), wanted)
    assert_equal(pipe.module.state_dict(), whole.module.state_dict())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", CASES)
def test_a_state_goes_through_any_stages_and_executors_unchanged(name: str, optimizer: str) -> None:
    case = CASES[name]
    inputs, targets = case.stream(COUNT)
    options = {"optimizer": OPTIMIZERS[optimizer]}
    with learner(case, case.network(), case.cuts[0], **options) as pipe:
        pipe.process(inputs, targets)
        state = pipe.state_dict()
    for cuts, executor in itertools.product(((), *case.cuts), EXECUTORS):
        with learner(case, case.network(seed=5), cuts, executor=executor, **options) as pipe:
            pipe.load_state_dict(state)
            again = pipe.state_dict()
        assert list(again["module"]) == list(state["module"])
        assert_equal(again["module"], state["module"])
        for part in ("state", "settings"):
            assert again["optimizer"][part].keys() == state["optimizer"][part].keys()
        for name, kept in state["optimizer"]["state"].items():
            assert_equal(again["optimizer"]["state"][name], kept)
