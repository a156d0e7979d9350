"""Graphs as they are recorded: what must be taken out of them and put back."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from streamflow.pipeline.holding import Unsupported

# What torch's own recurrent layers know of their parameters beside these.
_OF_TORCH = ("_flat_weights", "_flat_weight_refs")


def attributes(part: nn.Module) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return the dicts that hold what a module knows, and copies of them."""
    return [(d, dict(d)) for d in (vars(part), part._buffers, part._parameters)]


def restore(module: nn.Module, before: list[list[tuple[dict[str, Any], dict[str, Any]]]]) -> str:
    """Undo what a recorded forward left in attributes; name one of them."""
    changed = ""
    for part, places in zip(module.modules(), before, strict=True):
        for now, earlier in places:
            for name in now.keys() | earlier.keys():
                is_same = now.get(name, now) is earlier.get(name, earlier)
                if not is_same and name not in _OF_TORCH:
                    changed = f"{type(part).__name__}.{name}"
            now.clear()
            now.update(earlier)
    return changed


def lift_constants(graph: GraphModule, position: int) -> tuple[GraphModule, list[Tensor]]:
    """Return a graph that takes as arguments the tensors that this one holds, and these."""
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
    """Return a graph that can travel: a recorded one knows its recorder, which cannot."""
    plain = torch.fx.Graph()
    plain.output(plain.graph_copy(graph.graph, {}))
    return GraphModule(nn.Module(), plain)


def source(node: torch.fx.Node) -> torch.fx.Node:
    """Return what a node only copies."""
    aten = torch.ops.aten
    while node.target in (aten.clone.default, aten.alias.default, aten.detach.default):
        node = node.all_input_nodes[0]
    return node


def _writes(node: torch.fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable
