"""The layers of a network as units that a stage may begin with."""

from collections.abc import Sequence

from torch import nn

from streamflow.errors import PartitionError
from streamflow.pipeline.network.partition import first_module, partition, trace_layers
from streamflow.pipeline.network.ties import free_layers
from streamflow.pipeline.network.tracing import Trace


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
    free = free_layers(module, trace, state)
    named = _with_cuts(trace, _workable(module, free[1:]), cuts)
    return [*(free[:1] or [first_module(module)]), *(cuts if named is None else named)]


def _with_cuts(trace: Trace, names: Sequence[str], cuts: Sequence[str]) -> list[str] | None:
    """Give layers the names of cuts that begin where they do; None where none begins there."""
    cut_at = {trace.starts.get(cut): cut for cut in cuts}
    found = [cut_at.get(trace.starts[name], name) for name in names]
    return found if set(cuts) <= set(found) else None


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
