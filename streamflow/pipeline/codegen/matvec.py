"""Weight matrices at batch 1, a row at a time: what a compiler of loops does not find by itself.

At batch 1 the gradient of a weight matrix is an outer product of ``delta`` and ``x``. The product
with the weights, that with the transposed weights, gradient and update would be passes over memory
of their own. Here they are two, since an update waits until the matrix is read for the next sample:
a row is read, written back updated, by whatever formula the optimizer has, with the state that it
keeps, and multiplied by the next ``x``.

    below = Wᵀ delta            below += W[o, :] delta[o]

    W = update(W, delta xᵀ)     W[o, :] = update(W[o, :], delta[o] x, ...)
    y = W next                  y[o] = W[o, :] · next

So an update is made when all of the sample's gradient is known, and found to be finite.
:data:`DECOMPOSITIONS` name such products while a sample is recorded, and :func:`fuse` replaces the
update of a weight matrix by the vectors that it waits with.
"""

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

aten = torch.ops.aten

_SCHEMAS = """\
row_product(Tensor weight, Tensor x) -> Tensor
row_below(Tensor weight, Tensor delta) -> Tensor
row_outer(Tensor delta, Tensor x) -> Tensor
row_update(Tensor weight, Tensor delta, Tensor x, Tensor[] states, Tensor[] scalars, \
str code) -> Tensor"""


def _product(weight: Tensor, x: Tensor) -> Tensor:
    return x.new_empty(1, weight.shape[0])


def _below(weight: Tensor, delta: Tensor) -> Tensor:
    return delta.new_empty(1, weight.shape[1])


def _outer(delta: Tensor, x: Tensor) -> Tensor:
    return delta.new_empty(delta.shape[1], x.shape[1])


def _update(weight: Tensor, delta: Tensor, x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(())


# Never run by torch: they stand in a graph until code is written for them.
_LIBRARY = torch.library.Library("streamflow", "DEF")  # type: ignore[no-untyped-call]
_FAKES: tuple[Callable[..., Any], ...] = (_product, _below, _outer, _update)
for _schema, _fake in zip(_SCHEMAS.splitlines(), _FAKES, strict=True):
    _name = _LIBRARY.define(_schema)  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"streamflow::{_name}", _fake, lib=_LIBRARY)

PRODUCT = torch.ops.streamflow.row_product.default
BELOW = torch.ops.streamflow.row_below.default
OUTER = torch.ops.streamflow.row_outer.default
UPDATE = torch.ops.streamflow.row_update.default

_DTYPES = (torch.float32, torch.float64)
_FORMS: dict[Any, str] = {
    aten.add.Tensor: "({} + {})",
    aten.sub.Tensor: "({} - {})",
    aten.mul.Tensor: "({} * {})",
    aten.div.Tensor: "({} / {})",
    aten.add.Scalar: "({} + {})",
    aten.sub.Scalar: "({} - {})",
    aten.mul.Scalar: "({} * {})",
    aten.div.Scalar: "({} / {})",
    aten.maximum.default: "at::vec::maximum({}, {})",
    aten.neg.default: "{}.neg()",
    aten.sqrt.default: "{}.sqrt()",
}
_SAME = (aten.alias.default, aten.detach.default)
_TURNED = (aten.t.default, aten.permute.default, aten.transpose.int)
_PICKS = (aten.select.int, aten.unbind.int, operator.getitem)


def _mm(a: Tensor, b: Tensor) -> Any:
    if a.dtype not in _DTYPES or a.dtype != b.dtype or not a.numel() or not b.numel():
        return NotImplemented
    if a.shape[1] == 1:
        return OUTER(a.t(), b)
    if a.shape[0] == 1:
        return _vector(a, b)
    if b.shape[1] == 1:
        return _vector(b.t(), a.t()).t()
    return NotImplemented


def _vector(x: Tensor, matrix: Tensor) -> Tensor:
    """Return a row times a matrix."""
    if matrix.t().is_contiguous():
        return PRODUCT(matrix.t(), x)  # type: ignore[no-any-return]
    if matrix.is_contiguous():
        return BELOW(matrix, x)  # type: ignore[no-any-return]
    return (x.t() * matrix).sum(0, keepdim=True)


def _addmm(c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
    product = _mm(a, b)
    if product is NotImplemented:
        return NotImplemented
    return (c if beta == 1 else c * beta) + (product if alpha == 1 else product * alpha)


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {aten.mm.default: _mm, aten.addmm.default: _addmm}


LOOPS: dict[Any, Callable[..., Any]] = {
    PRODUCT: lambda weight, x: (weight * x).sum(1).unsqueeze(0),
    BELOW: lambda weight, delta: (weight * delta.t()).sum(0, keepdim=True),
    OUTER: lambda delta, x: delta.t() * x,
}
"""The same as loops that the compiler fuses with others, instead of calling a BLAS library."""


class _Other(Exception):  # no error: what is met here is left to the compiler
    pass


def fuse(
    graph: GraphModule, written: Sequence[int], learned: Sequence[Sequence[int]]
) -> frozenset[int]:
    """Replace updates of weight matrices, where all that looks at a matrix are such products.

    Args:
        graph: A sample; its first results are the new values of ``written``.
        written: Which arguments these are.
        learned: For each parameter the arguments that are itself and what is kept of it.

    Returns:
        Arguments that are written by such updates; their results are the arguments themselves.
    """
    given = [node for node in graph.graph.nodes if node.op == "placeholder"]
    (result,) = graph.graph.find_nodes(op="output")
    values = dict(zip(written, result.args[0], strict=False))
    done: set[int] = set()
    for indices in learned:
        if not values.keys() >= set(indices):
            continue
        nodes = [given[index] for index in indices]
        try:
            _join(graph, _Matrix(nodes), [values[index] for index in indices], result)
        except _Other:
            continue
        for index, node in zip(indices, nodes, strict=True):
            values[index] = node
            done.add(index)
        result.args = ([*values.values(), *result.args[0][len(written) :]],)
        graph.graph.eliminate_dead_code()
    graph.recompile()
    return frozenset(done)


def _join(graph: GraphModule, matrix: "_Matrix", values: list[Node], result: Node) -> None:
    lines = [f"const V n{k} = {matrix.expression(value)};" for k, value in enumerate(values)]
    lines += [f"{name} = n{k};" for k, name in enumerate(matrix.places.values())]
    delta, x = matrix.factors()
    checks = matrix.checks()
    matrix.check_products(result)
    order = {node: place for place, node in enumerate(graph.graph.nodes)}
    _to_the_front(graph, matrix.scalars)
    weight, *states = matrix.places
    with graph.graph.inserting_after(max((delta, x), key=order.__getitem__)):
        given = (weight, delta, x, states, matrix.scalars, " ".join(lines))
        check = graph.graph.call_function(UPDATE, given)
    for node in checks:
        node.replace_all_uses_with(check)


@dataclass(slots=True)
class _Matrix:
    """A weight matrix, and what is found out about it.

    Attributes:
        nodes: The arguments that are itself and what the optimizer keeps of it.
        places: What these are called in code.
        outer: Its gradient.
        is_turned: Whether that is the gradient of the transposed matrix.
        scalars: Factors of the update, called ``c0``, ``c1``, ... in code.
        inside: What computes the update.
    """

    nodes: list[Node]
    places: dict[Node, str] = field(init=False)
    outer: Node | None = None
    is_turned: bool = False
    scalars: list[Node] = field(default_factory=list)
    inside: set[Node] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.places = {node: f"s{k - 1}" if k else "w" for k, node in enumerate(self.nodes)}
        weight = self.nodes[0].meta["val"]
        is_matrix = weight.dim() == 2 and weight.dtype in _DTYPES and weight.is_contiguous()
        alike = (weight.shape, weight.stride(), weight.dtype)
        values = [node.meta["val"] for node in self.nodes]
        if not is_matrix or any((v.shape, v.stride(), v.dtype) != alike for v in values):
            raise _Other

    def expression(self, value: Any, is_turned: bool = False) -> str:
        """Return C++ for an element of a value, by elements at the same place."""
        if not isinstance(value, Node):
            return f"V({float(value)!r})"
        node, turned = _shown(value)
        is_turned ^= turned
        if node in self.places and not is_turned:
            return self.places[node]
        if not node.meta["val"].shape:
            return self._scalar(node)
        if node.target is OUTER:
            return self._gradient(node, is_turned)
        self.inside.add(node)
        form = _FORMS.get(node.target)
        if form is None or node.kwargs or node.meta["val"].dim() != 2:
            raise _Other
        return form.format(*(self.expression(part, is_turned) for part in node.args))

    def _scalar(self, node: Node) -> str:
        if node.meta["val"].dtype != self.nodes[0].meta["val"].dtype or not _is_given(node):
            raise _Other
        if node not in self.scalars:
            self.scalars.append(node)
        return f"c{self.scalars.index(node)}"

    def _gradient(self, node: Node, is_turned: bool) -> str:
        if self.outer not in (None, node):
            raise _Other
        self.outer, self.is_turned = node, is_turned
        return "g"

    def factors(self) -> tuple[Node, Node]:
        """Return the two vectors whose outer product is the gradient."""
        if self.outer is None:
            raise _Other
        first, second = self.outer.args[::-1] if self.is_turned else self.outer.args
        assert isinstance(first, Node)
        assert isinstance(second, Node)
        return first, second

    def checks(self) -> list[Node]:
        """Return the sums that are finite where the gradient is; nothing else may look at it."""
        assert self.outer is not None
        found = []
        for user in _users(self.outer):
            if user in self.inside:
                continue
            parts = {_shown(part)[0] for part in user.args if isinstance(part, Node)}
            sums = list(user.users)
            is_check = user.target is aten.sub.Tensor and parts == {self.outer}
            if not is_check or any(node.target is not aten.sum.default for node in sums):
                raise _Other
            found += sums
        return found

    def check_products(self, result: Node) -> None:
        """See that nothing uses the matrix but products, and nothing else what is kept of it."""
        weight, *states = self.nodes
        for user in list(_users(weight)):
            if user.target is OUTER and _is_row(weight) and _is(user.args[1], weight):
                user.target, user.args = BELOW, (weight, user.args[0])
            is_product = user.target in (PRODUCT, BELOW) and _is(user.args[0], weight)
            if not is_product and user not in self.inside and user is not result:
                raise _Other
        if {user for state in states for user in _users(state)} - self.inside - {result}:
            raise _Other


def _shown(node: Node) -> tuple[Node, bool]:
    """Return what a node only shows, and whether transposed."""
    is_turned = False
    while True:
        if node.target in _TURNED and node.meta["val"].dim() == 2:
            is_turned ^= node.target is not aten.permute.default or bool(node.args[1] == [1, 0])
        elif node.target not in _SAME:
            return node, is_turned
        node = node.args[0]  # type: ignore[assignment]


def _is(node: Any, wanted: Node) -> bool:
    return _shown(node) == (wanted, False)


def _is_row(node: Node) -> bool:
    return bool(node.meta["val"].shape[0] == 1)


def _users(node: Node) -> Iterator[Node]:
    """Yield what uses a value, however shown."""
    for user in node.users:
        is_view = user.target in _SAME or (user.target in _TURNED and user.meta["val"].dim() == 2)
        yield from _users(user) if is_view else (user,)


def _is_given(node: Node) -> bool:
    """Say whether a value is a part of an argument."""
    while node.target in _PICKS or node.target in _SAME:
        node = node.args[0]  # type: ignore[assignment]
    return node.op == "placeholder"


def _to_the_front(graph: GraphModule, nodes: Sequence[Node]) -> None:
    """Move parts of arguments to behind the arguments."""
    *_, last = (node for node in graph.graph.nodes if node.op == "placeholder")
    for node in nodes:
        chain = []
        while node.op != "placeholder":
            chain.append(node)
            node = node.args[0]  # type: ignore[assignment]
        for part in chain:
            last.append(part)
