"""Weight matrices by rows, without a compiler: what is joined says in C++ what torch does."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter

from streamflow.pipeline.capture.recording import Recording
from streamflow.pipeline.codegen import matvec
from streamflow.pipeline.codegen.building import joined
from tests.pipeline.networks import chain, stream
from tests.pipeline.test_recording import Recorded, Single, compare

OPTIMIZERS = {
    "plain": partial(torch.optim.SGD, lr=0.02),
    "nesterov": partial(torch.optim.SGD, lr=0.02, momentum=0.5, nesterov=True, weight_decay=0.1),
    "dampened": partial(torch.optim.SGD, lr=0.02, momentum=0.5, dampening=0.2, maximize=True),
    "adam": partial(torch.optim.Adam, lr=0.01, weight_decay=0.1, amsgrad=True),
    "adamw": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
    "rmsprop": partial(torch.optim.RMSprop, lr=0.01, centered=True, momentum=0.5),
    "adagrad": partial(torch.optim.Adagrad, lr=0.01, lr_decay=0.1),
}


def update(
    weight: Tensor,
    delta: Tensor,
    x: Tensor,
    states: list[Tensor],
    scalars: list[Tensor],
    code: str,
) -> None:
    """Do what the code of an update says; its C++ is almost Python."""
    scope: dict[str, Any] = {"V": float, "maximum": torch.maximum, "g": delta.t() * x, "w": weight}
    scope |= {f"s{k}": state for k, state in enumerate(states)}
    scope |= {f"c{k}": scalar for k, scalar in enumerate(scalars)}
    lines = code.replace("const V ", "").replace("at::vec::", "").split("; ")
    exec("\n".join(line.strip(" ;") for line in lines), scope)
    for name, tensor in (("w", weight), *((f"s{k}", state) for k, state in enumerate(states))):
        tensor.copy_(scope[name])


class ByRows(Interpreter):
    """Runs a graph, operations on rows included; updates wait until its end."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.waiting: list[Any] = []

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is matvec.UPDATE:
            self.waiting.append(args)
            return torch.zeros((), dtype=args[0].dtype)
        own = matvec.LOOPS.get(target)
        return own(*args) if own else super().call_function(target, args, kwargs)


def by_rows(count: int) -> Any:
    """Return what makes code of a recording, in which so many tensors are written by rows."""

    def code(recording: Recording) -> Any:
        program = recording.learn
        graph, written = joined(program.graph, program.layout, program.arguments)
        assert len(written) == count
        return Single(lambda tensors: run(graph, tensors), recording)

    return code


def run(graph: GraphModule, tensors: list[Tensor]) -> list[Tensor]:
    by_rows = ByRows(graph)
    found: list[Tensor] = by_rows.run(*tensors)
    for arguments in by_rows.waiting:
        update(*arguments)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "num_states"),
    [
        ("plain", 0),
        ("nesterov", 1),
        ("dampened", 1),
        ("adam", 3),
        ("adamw", 2),
        ("rmsprop", 3),
        ("adagrad", 1),
    ],
)
def test_matrices_are_learned_by_rows_as_eagerly(name: str, num_states: int) -> None:
    inputs, targets = stream(8, seed=0)
    net = chain(["linear", "tanh", "linear"], 0)
    compare(net, inputs, targets, code=by_rows(2 * (1 + num_states)), optimizer=OPTIMIZERS[name])


class Twice(nn.Module):
    """Uses a matrix twice."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(3, dtype=torch.float64) + 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.matrix).tanh() @ self.matrix


class Looking(Twice):
    """Uses a matrix's elements, too."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix.t() + self.matrix.detach().sum()


class Both(Twice):
    """Uses a matrix and its transpose, of which only one learns."""

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.matrix.t()).tanh() @ self.matrix.detach()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("net", "options"),
    [
        (Twice(), {}),
        (Looking(), {}),
        (chain(["linear", "tanh", "linear"], 0), {"clip_norm": 0.1}),
    ],
)
def test_what_needs_more_than_rows_is_left_to_the_compiler(
    net: nn.Module, options: dict[str, Any]
) -> None:
    inputs, targets = stream(8, seed=0)
    compare(net, inputs, targets, code=by_rows(0), optimizer=OPTIMIZERS["adam"], **options)


def test_a_transposed_matrix_is_not_taken_for_the_matrix() -> None:
    class Turned(Twice):
        def forward(self, x: Tensor) -> Tensor:
            return (x @ self.matrix.t()).tanh()

    inputs, targets = stream(8, seed=0)
    compare(Turned(), inputs, targets, code=by_rows(1), optimizer=OPTIMIZERS["plain"])


def test_a_matrix_and_its_transpose_may_both_be_used() -> None:
    inputs, targets = stream(8, seed=0)
    compare(Both(), inputs, targets, code=by_rows(4), optimizer=OPTIMIZERS["adam"])


def test_rows_and_columns_of_one_element() -> None:
    net = nn.Sequential(*(nn.Linear(a, b, dtype=torch.float64) for a, b in ((3, 1), (1, 3))))
    inputs, targets = stream(8, seed=0)
    compare(net, inputs, targets, code=by_rows(1), optimizer=OPTIMIZERS["plain"])


def test_all_recorded_is_there() -> None:
    net = chain(["linear"], 0)
    mine = Recorded(net)
    inputs, targets = stream(2, seed=0)
    mine.eager(inputs[:1], targets[:1])
    mine.record(inputs[:1], targets[:1])
    assert mine.compiled is not None
    layout = mine.compiled.stages[0].recording.learn.layout
    assert layout.kept == ((0, 2), (1, 3))
