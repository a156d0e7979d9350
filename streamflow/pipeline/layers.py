"""The layers of a network as units that a stage may begin with."""

from collections.abc import Sequence

from torch import fx, nn

from streamflow.errors import PartitionError
from streamflow.pipeline.partition import Trace, first_module, partition, trace_layers


def layer_names(
    module: nn.Module, *, state: Sequence[str] = (), cuts: Sequence[str] = ()
) -> list[str]:
    """Name the first layer, and the layers before which a network may be cut, all at once.

    A layer before which no cut is allowed belongs to the named one before it: what shares
    parameters, or a buffer of ``state``, stays in one stage. Where one of ``cuts`` lies inside a
    layer, the stages between them are the layers.

    Raises:
        PartitionError: The network cannot be traced.
    """
    trace = trace_layers(module)
    called = [node.target for node in trace.graph.nodes if node.op == "call_module"]
    names = list(dict.fromkeys(map(str, called)))
    tied = _spans(module, trace, state)
    free = [name for name in names[1:] if not _is_within(trace.starts[name], tied)]
    named = _with_cuts(trace, _workable(module, free), cuts)
    return [names[0] if names else first_module(module), *(cuts if named is None else named)]


def _with_cuts(trace: Trace, names: Sequence[str], cuts: Sequence[str]) -> list[str] | None:
    """Give layers the names of cuts that begin where they do; None where none begins there."""
    cut_at = {trace.starts.get(cut): cut for cut in cuts}
    found = [cut_at.get(trace.starts[name], name) for name in names]
    return found if set(cuts) <= set(found) else None


def _is_within(start: int, spans: Sequence[tuple[int, int]]) -> bool:
    return any(first < start <= last for first, last in spans)


def _spans(module: nn.Module, trace: Trace, state: Sequence[str]) -> list[tuple[int, int]]:
    """Return the first and last use of all tensors that must stay in one stage."""
    spans: dict[int, tuple[int, int]] = {}
    positions = {node: position for position, node in enumerate(trace.graph.nodes)}
    for node, position in positions.items():
        for tensor in _tensors(module, node, state):
            first, last = spans.get(tensor, (position, position))
            spans[tensor] = (min(first, position), max(last, position))
    return list(spans.values())


def _tensors(module: nn.Module, node: fx.Node, state: Sequence[str]) -> list[int]:
    """Return the identities of the tensors that a call, or code around it, uses."""
    if node.op == "call_module":
        part = module.get_submodule(str(node.target))
        return [id(tensor) for tensor in (*part.parameters(), *part.buffers())]
    read = [n for n in node.all_input_nodes if n.op == "get_attr"]
    named = {**dict(module.named_parameters()), **{name: module.get_buffer(name) for name in state}}
    return [id(named[str(n.target)]) for n in read if str(n.target) in named]


def _workable(module: nn.Module, names: list[str]) -> list[str]:
    """Leave out the cuts that cannot be made, and of two that exclude each other the later one."""
    if not names:
        return []
    try:
        partition(module, names)
    except PartitionError:
        if len(names) == 1:
            return []
        half = len(names) // 2
        before, after = _workable(module, names[:half]), _workable(module, names[half:])
        if not after or [*before, *after] == names:
            return before
        return _workable(module, [*before, *after])
    return names
