"""What must stay in one stage: layers that share parameters, buffers or recurrent state."""

from collections.abc import Sequence

from torch import fx, nn

from streamflow.pipeline.network.tracing import Trace


def called_layers(trace: Trace) -> list[str]:
    """Name the layers of a trace in the order of their first calls."""
    called = (str(node.target) for node in trace.graph.nodes if node.op == "call_module")
    return list(dict.fromkeys(called))


def free_layers(module: nn.Module, trace: Trace, state: Sequence[str] = ()) -> list[str]:
    """Name the first layer, and those before which a cut parts nothing that is shared.

    Args:
        module: The network.
        trace: Its layers.
        state: Names of buffers that are recurrent state.
    """
    spans = _spans(module, trace, state)
    layers = called_layers(trace)
    return [
        *layers[:1],
        *(name for name in layers[1:] if not _is_within(trace.starts[name], spans)),
    ]


def _is_within(start: int, spans: Sequence[tuple[int, int]]) -> bool:
    return any(first < start <= last for first, last in spans)


def _spans(module: nn.Module, trace: Trace, state: Sequence[str]) -> list[tuple[int, int]]:
    """Return the first and last use of each tensor that only one stage may have."""
    named = dict(module.named_parameters()) | {name: module.get_buffer(name) for name in state}
    identities = {name: id(tensor) for name, tensor in named.items()}
    spans: dict[int, tuple[int, int]] = {}
    for position, node in enumerate(trace.graph.nodes):
        for tensor in _tensors(module, node, identities):
            first, _ = spans.get(tensor, (position, position))
            spans[tensor] = (first, position)
    return list(spans.values())


def _tensors(module: nn.Module, node: fx.Node, identities: dict[str, int]) -> list[int]:
    """Return the identities of the tensors that a layer, or code around layers, uses."""
    if node.op == "call_module":
        part = module.get_submodule(str(node.target))
        return [id(tensor) for tensor in (*part.parameters(), *part.buffers())]
    read = (str(other.target) for other in node.all_input_nodes if other.op == "get_attr")
    return [identities[name] for name in read if name in identities]
