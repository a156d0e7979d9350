"""Graphs as they are recorded: what must be taken out of them and put back."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.node import map_aggregate, map_arg

from streamflow.pipeline import torch_private
from streamflow.pipeline.capture.held_tensors import Unsupported

_OPERATION = type(torch.ops.aten.add.Tensor)


def attributes(part: nn.Module) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return the dicts that hold what a module knows, and copies of them."""
    held = vars(part), torch_private.buffers_of(part), torch_private.parameters_of(part)
    return [(places, dict(places)) for places in held]


def restore(module: nn.Module, before: list[list[tuple[dict[str, Any], dict[str, Any]]]]) -> str:
    """Undo what a recorded forward left in attributes; name one of them."""
    changed = ""
    for part, places in zip(module.modules(), before, strict=True):
        for now, earlier in places:
            for name in now.keys() | earlier.keys():
                is_same = now.get(name, now) is earlier.get(name, earlier)
                if not is_same and name not in torch_private.FLAT_WEIGHTS:
                    changed = f"{type(part).__name__}.{name}"
            now.clear()
            now.update(earlier)
    return changed


def lift_constants(graph: GraphModule, position: int) -> tuple[GraphModule, list[Tensor]]:
    """Return a graph that takes as arguments the tensors that this one holds, and these.

    Raises:
        Unsupported: It writes into one.
    """
    nodes = list(graph.graph.nodes)
    first_given = [node for node in nodes if node.op == "placeholder"][position]
    constants: list[Tensor] = []
    for node in nodes:
        if node.op != "get_attr":
            continue
        if any(_writes(user) for user in node.users):
            msg = "a forward writes a tensor that is neither a parameter nor a buffer"
            raise Unsupported(msg)
        constant = getattr(graph, node.target)
        with graph.graph.inserting_before(first_given):
            lifted = graph.graph.placeholder(f"constant_{len(constants)}")
        node.replace_all_uses_with(lifted)
        graph.graph.erase_node(node)
        constants.append(constant)
    return plain(graph), constants


def plain(graph: GraphModule) -> GraphModule:
    """Return a graph by itself: a recorded one knows its recorder."""
    plain = torch.fx.Graph()
    plain.output(plain.graph_copy(graph.graph, {}))
    return GraphModule(nn.Module(), plain)


@dataclass(frozen=True, slots=True)
class Result:
    """Stands for what an earlier step returns."""

    step: int


Step = tuple[str, str, Any, Any, Any]
"""What a node is, its name, its operation, arguments and named arguments."""


def serialize(graph: GraphModule) -> list[Step]:
    """Return a graph as data.

    Torch's own way to pickle one runs it again, which makes constants of zeros and the like.

    Raises:
        Unsupported: It calls what has no name.
    """
    nodes = list(graph.graph.nodes)
    places: dict[Any, Any] = {node: Result(step) for step, node in enumerate(nodes)}

    def standing(value: Any) -> Any:
        return map_arg(value, places.__getitem__)

    return [
        (node.op, node.name, _name(node.target), standing(node.args), standing(node.kwargs))
        for node in nodes
    ]


def deserialize(steps: Sequence[Step]) -> GraphModule:
    """Return the graph that was such data."""
    graph = torch.fx.Graph()
    nodes: list[torch.fx.Node] = []

    def given(value: Any) -> Any:
        return nodes[value.step] if isinstance(value, Result) else value

    for op, name, target, args, kwargs in steps:
        operation = _operation(target) if op == "call_function" else target
        arguments = map_aggregate(args, given), map_aggregate(kwargs, given)
        nodes.append(graph.create_node(op, operation, *arguments, name=name))
    return GraphModule(nn.Module(), graph)


def _name(target: Any) -> Any:
    if isinstance(target, str) or target is operator.getitem:
        return target
    if not isinstance(target, _OPERATION):
        msg = f"the network cannot be recorded: it calls {target}"
        raise Unsupported(msg)
    return str(target)


def _operation(target: Any) -> Any:
    return target if callable(target) else attrgetter(target)(torch.ops)


def source(node: torch.fx.Node) -> torch.fx.Node:
    """Return what a node only copies."""
    aten = torch.ops.aten
    while node.target in (aten.clone.default, aten.alias.default, aten.detach.default):
        node = node.all_input_nodes[0]
    return node


def _writes(node: torch.fx.Node) -> bool:
    schema = torch_private.schema_of(node.target)
    return schema is not None and schema.is_mutable
