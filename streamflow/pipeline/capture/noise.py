"""Random numbers of a recorded network: drawn before a call, and given to its code like inputs.

An eager forward takes its numbers from torch's generator, one operation after another. The same
operations fill rows of memory for the samples of a call here, in the same order, so that compiled
code gives what eager stages would have given, and leaves the generator where they would have.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from streamflow.pipeline import torch_private
from streamflow.pipeline.capture.held_tensors import Unsupported
from streamflow.pipeline.capture.tensor_spec import TensorSpec

_aten = torch.ops.aten


# What fills a row as an operation would, whose first argument says how large.
_FILLS: dict[Any, Callable[..., object]] = {
    _aten.bernoulli.p: Tensor.bernoulli_,
    _aten.exponential.default: Tensor.exponential_,
    _aten.normal_functional.default: Tensor.normal_,
    _aten.rand.default: Tensor.uniform_,
    _aten.rand_like.default: Tensor.uniform_,
    _aten.randn.default: Tensor.normal_,
    _aten.randn_like.default: Tensor.normal_,
    _aten.uniform.default: Tensor.uniform_,
}


@dataclass(frozen=True, slots=True)
class Noise:
    """Random numbers that a sample needs.

    Attributes:
        spec: Of their tensor.
        fill: Draws them into such a tensor.
        numbers: What it takes beside.
    """

    spec: TensorSpec
    fill: Callable[..., object]
    numbers: tuple[float, ...]


def lift(graph: GraphModule, place: int) -> tuple[GraphModule, list[Noise]]:
    """Return a graph that takes its random numbers as arguments from a place on, and what they are.

    Raises:
        Unsupported: Some depend on more than shapes.
    """
    found: list[Noise] = []
    last = list(graph.graph.find_nodes(op="placeholder"))[place - 1]
    for node in list(graph.graph.nodes):
        if not _is_random(node):
            continue
        noise = _noise(node)
        with graph.graph.inserting_after(last):
            last = graph.graph.placeholder(f"noise_{len(found)}")
        last.meta = dict(node.meta)
        node.replace_all_uses_with(last)
        graph.graph.erase_node(node)
        found.append(noise)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph, found


def draw(noises: Sequence[Noise], count: int, kept: int) -> tuple[list[Tensor], list[Tensor]]:
    """Draw the numbers of so many samples, one after another, from torch's generator.

    Returns:
        For each of the noises a tensor (count, *shape); and the generator's states before each of
        the last samples, so many as are to be kept.
    """
    drawn = [noise.spec.zeros(count) for noise in noises]
    states = []
    for number, rows in enumerate(zip(*(tensor.unbind() for tensor in drawn), strict=True)):
        if count - number <= kept:
            states.append(torch.get_rng_state())
        for noise, row in zip(noises, rows, strict=True):
            noise.fill(row, *noise.numbers)
    return drawn, states


def _is_random(node: Node) -> bool:
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    names = [argument.name for argument in torch_private.schema_of(node.target).arguments]
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    return "dropout_p" not in names or bool(given.get("dropout_p"))  # of attention


def _noise(node: Node) -> Noise:
    fill = _FILLS.get(node.target)
    value = node.meta["val"]
    numbers = tuple(number for number in node.args[1:] if isinstance(number, int | float))
    is_plain = len(numbers) == len(node.args) - 1 and node.kwargs.get("generator") is None
    if fill is None or not is_plain or not value.is_contiguous():
        msg = f"the network draws random numbers by {node.target}"
        raise Unsupported(msg)
    return Noise(TensorSpec.of(value), fill, numbers)
