"""Cutting a network into stages: traced only as deep as the cuts require.

A cut named ``m`` lies before the first call of module ``m``; whatever runs earlier belongs to the
earlier stage. Values that are made before a cut and used after it cross it, also through stages
that do not use them. Parameters keep the names that they have in the caller's module.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from torch import Tensor, fx, nn

from streamflow.errors import PartitionError
from streamflow.pipeline import torch_private
from streamflow.pipeline.network import tracing
from streamflow.pipeline.network.chain import cut_chain
from streamflow.pipeline.network.signature import CallSignature, required, signature_of
from streamflow.pipeline.network.ties import called_layers, free_layers
from streamflow.pipeline.network.tracing import Trace


@dataclass(frozen=True, slots=True)
class Partition:
    """Consecutive stages of one network.

    Attributes:
        modules: One per stage. The first takes what the network takes, the others the values that
            cross the cut before them; all but the last return a tuple of those behind them.
        names: The first module of every stage; from the second on, the cuts.
    """

    modules: tuple[nn.Module, ...]
    names: tuple[str, ...]


def partition(module: nn.Module, stages: int | Sequence[str]) -> Partition:
    """Cut ``module`` into ``stages`` stages of similar size, or before the modules named.

    The size of a layer is its number of parameters, so that an integer always means the same cut.

    Raises:
        PartitionError: There is no such cut, the network cannot be traced, or parameters are tied
            across a cut.
    """
    if not isinstance(stages, int):
        cuts = list(stages)
    else:
        cuts = _choose(module, stages) if stages > 1 else []
    if not cuts:
        return Partition((module,), (first_module(module),))
    network = _Network(module, cuts)
    graphs = network.graphs()
    parts = tuple(_Part(network, index, graph) for index, graph in enumerate(graphs))
    _check_not_tied(module, parts)
    return Partition(parts, (network.first, *cuts))


class _Network:
    """The network behind the stages, traced anew for every kind of call that it meets."""

    def __init__(self, module: nn.Module, cuts: Sequence[str]) -> None:
        _check_known(module, cuts)
        self._module = module
        self._cuts = cuts
        self._graphs: dict[CallSignature | None, list[fx.GraphModule]] = {}
        self.first = ""
        self.names = required(module)

    @property
    def num_stages(self) -> int:
        return len(self._cuts) + 1

    def graphs(self, call: CallSignature | None = None) -> list[fx.GraphModule]:
        """Return what each stage does in calls of one kind."""
        if call not in self._graphs:
            traced = tracing.trace(self._module, self._is_leaf, call)
            self.first = self.first or next(iter(traced.starts))
            self._graphs[call] = _split(self._module, traced, self._cuts, is_usual=call is None)
        return self._graphs[call]

    def _is_leaf(self, part: nn.Module, name: str) -> bool:
        """Open only what has a cut inside it."""
        return not any(cut.startswith(f"{name}.") for cut in self._cuts)


class _Part(nn.Module):
    """One stage: parameters under the network's names, and code for each kind of call.

    Calls that give all arguments without a default as tensors, and no others, are the usual kind;
    the values of any other kind are preceded by it on their way down.
    """

    def __init__(self, network: _Network, index: int, graph: fx.GraphModule) -> None:
        super().__init__()
        self._network = network
        self._index = index
        self._is_last = index == network.num_stages - 1
        self._usual = type(graph).forward
        self._codes: dict[CallSignature, Callable[..., Any]] = {}
        _graft(self, graph)

    def forward(self, *values: Any, **named: Any) -> Any:
        call: CallSignature | None = None
        if self._index == 0:
            call, values = self._flatten(values, named)
        elif values and isinstance(values[0], CallSignature):
            call, values = values[0], values[1:]
        if call is None:
            return self._usual(self, *values)
        result = self._code(call)(self, *values)
        return result if self._is_last else (call, *result)

    def _flatten(
        self, values: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[CallSignature | None, tuple[Any, ...]]:
        names = self._network.names
        for name in names[len(values) :]:
            if name not in named:
                break
            values = (*values, named[name])
            named = {key: value for key, value in named.items() if key != name}
        if not named and len(values) == len(names) and all(isinstance(v, Tensor) for v in values):
            return None, values
        return signature_of(values, named)

    def _code(self, call: CallSignature) -> Callable[..., Any]:
        if call not in self._codes:
            graph = self._network.graphs(call)[self._index]
            _check_known_tensors(self, graph)
            _graft(self, graph)
            self._codes[call] = type(graph).forward
        return self._codes[call]


def _graft(into: nn.Module, other: nn.Module) -> None:
    """Add the tensors and modules of ``other`` that ``into`` does not have."""
    for name, parameter in torch_private.parameters_of(other).items():
        torch_private.parameters_of(into).setdefault(name, parameter)
    for name, buffer in torch_private.buffers_of(other).items():
        torch_private.buffers_of(into).setdefault(name, buffer)
    for name, part in torch_private.children_of(other).items():
        mine = torch_private.children_of(into).setdefault(name, part)
        if mine is not part and mine is not None and part is not None:
            _graft(mine, part)


def _check_known_tensors(part: nn.Module, graph: nn.Module) -> None:
    known = dict(part.named_parameters())
    for name, _ in graph.named_parameters():
        if name not in known:
            msg = (
                f"stages: expected {name!r} in calls without optional arguments too, got it in "
                "others only; give it to a module without a cut inside, or call it always"
            )
            raise PartitionError(msg)


def first_module(module: nn.Module) -> str:
    """Name the first layer of a network that is not cut."""
    leaves = (name for name, part in module.named_modules() if not any(part.children()))
    return next(leaves) or type(module).__name__


def trace_layers(module: nn.Module) -> Trace:
    """Trace down to layers, or where code prevents that, to the parts of Sequentials."""
    try:
        return tracing.trace(module, lambda part, name: _is_layer(part))
    except PartitionError:
        return tracing.trace(module, lambda part, name: not isinstance(part, nn.Sequential))


def _is_layer(part: nn.Module) -> bool:
    """Say whether a module is a unit: torch's own, one without parts, or one with own tensors."""
    if isinstance(part, nn.Sequential):
        return False
    is_torchs = type(part).__module__.startswith("torch.nn")
    has_tensors = bool(torch_private.parameters_of(part) or torch_private.buffers_of(part))
    return is_torchs or has_tensors or not any(True for _ in part.children())


def _check_known(module: nn.Module, cuts: Sequence[str]) -> None:
    known = [name for name, _ in module.named_modules() if name]
    for cut in cuts:
        if cut not in known:
            near = get_close_matches(cut, known)
            cure = f"did you mean {' or '.join(near)}?" if near else _known(known)
            msg = f"stages: expected names of modules, got {cut!r}; {cure}"
            raise PartitionError(msg)


def _known(names: Sequence[str]) -> str:
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"known are {shown}" if names else "the network has no submodules"


def _choose(module: nn.Module, num_stages: int) -> list[str]:
    trace = trace_layers(module)
    names = free_layers(module, trace)
    if num_stages > max(len(names), 1):
        msg = (
            f"stages: expected at most {max(len(names), 1)} for this network, got {num_stages}; "
            "a stage needs at least one layer, and what shares parameters one stage"
        )
        raise PartitionError(msg)
    total = [0]
    for layer in called_layers(trace):
        if layer in names[1:]:
            total.append(total[-1])
        total[-1] += 1 + sum(p.numel() for p in module.get_submodule(layer).parameters())
    total = [0, *total]
    starts = cut_chain(
        num_stages,
        lambda stage, first, stop: total[stop] - total[first],
        may_cut=[True] * len(names),
        boundary_bytes=[0] * len(names),
    )
    assert starts is not None
    return [names[start] for start in starts]


def _split(
    module: nn.Module, traced: Trace, cuts: Sequence[str], *, is_usual: bool
) -> list[fx.GraphModule]:
    starts = [_start(traced, cut) for cut in cuts]
    stage_of = _assign(traced.graph, starts)
    if is_usual:  # in other kinds of calls a stage may have nothing to do
        _check_in_order(traced, cuts, starts)
        _check_not_empty(stage_of, cuts)
    graphs = [
        _stage_graph(traced.graph, stage_of, index, len(cuts) + 1) for index in range(len(cuts) + 1)
    ]
    return [fx.GraphModule(_attributes(module, traced, graph), graph) for graph in graphs]


def _check_in_order(traced: Trace, cuts: Sequence[str], starts: Sequence[int]) -> None:
    if sorted(set(starts)) != starts or starts[0] < 1:
        in_order = sorted(set(cuts), key=lambda cut: traced.starts[cut])
        msg = (
            f"stages: expected cuts in the order in which the network runs, got {list(cuts)}; "
            f"pass {in_order}, without the first module and those that begin at the same place"
        )
        raise PartitionError(msg)


def _attributes(module: nn.Module, traced: Trace, graph: fx.Graph) -> dict[str, Any]:
    """Return what a graph takes from the network, and what it made while it was traced."""
    names = {str(node.target) for node in graph.nodes if node.op in ("get_attr", "call_module")}
    getter = {name: operator.attrgetter(name) for name in names - traced.constants.keys()}
    constants = {name: tensor for name, tensor in traced.constants.items() if name in names}
    return {name: get(module) for name, get in getter.items()} | constants


def _start(traced: Trace, cut: str) -> int:
    if cut not in traced.starts:
        inner = next((name for name in traced.starts if name.startswith(f"{cut}.")), None)
        cure = "cut elsewhere" if inner is None else f"cut before what it holds, as {inner!r}"
        msg = f"stages: expected a module that the network calls, got {cut!r}; {cure}"
        raise PartitionError(msg)
    return traced.starts[cut]


def _assign(graph: fx.Graph, starts: Sequence[int]) -> dict[fx.Node, int]:
    """Give every node its stage; parts of a tuple belong where the tuple is made."""
    stage_of: dict[fx.Node, int] = {}
    for position, node in enumerate(graph.nodes):
        stage_of[node] = sum(start <= position for start in starts)
        if node.op == "placeholder":
            stage_of[node] = 0
        elif _is_part(node):
            stage_of[node] = stage_of[node.args[0]]
    return stage_of


def _is_part(node: fx.Node) -> bool:
    return (
        node.target is operator.getitem
        and isinstance(node.args[0], fx.Node)
        and not isinstance(node.args[1], fx.Node)
    )


def _check_not_empty(stage_of: dict[fx.Node, int], cuts: Sequence[str]) -> None:
    used = {stage for node, stage in stage_of.items() if node.op.startswith("call")}
    for stage in range(len(cuts) + 1):
        if stage not in used:
            name = cuts[max(stage - 1, 0)]
            msg = f"stages: expected work in every stage, got none around cut {name!r}; move it"
            raise PartitionError(msg)


def _stage_graph(
    graph: fx.Graph, stage_of: dict[fx.Node, int], index: int, num_stages: int
) -> fx.Graph:
    part = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    if index:
        for node in _crossing(graph, stage_of, index):
            copies[node] = part.placeholder(node.name)
    for node in graph.nodes:
        if node.op == "get_attr" and any(stage_of[user] == index for user in node.users):
            copies[node] = part.node_copy(node)
        elif node.op not in ("get_attr", "output") and stage_of[node] == index:
            copies[node] = part.node_copy(node, lambda n: copies[n])
    result = next(iter(reversed(graph.nodes))).args[0]
    if index < num_stages - 1:
        part.output(tuple(copies[node] for node in _crossing(graph, stage_of, index + 1)))
    else:
        part.output(fx.node.map_arg(result, lambda n: copies[n]))
    return part


def _crossing(graph: fx.Graph, stage_of: dict[fx.Node, int], cut: int) -> list[fx.Node]:
    """List the values made before a cut and used after it."""
    return [
        node
        for node in graph.nodes
        if node.op != "get_attr"
        and stage_of[node] < cut
        and any(stage_of[user] >= cut for user in node.users)
    ]


def _check_not_tied(module: nn.Module, stages: Sequence[nn.Module]) -> None:
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    owner: dict[int, int] = {}
    for index, stage in enumerate(stages):
        for parameter in stage.parameters():
            first = owner.setdefault(id(parameter), index)
            if first != index:
                shared = names[id(parameter)]
                cure = "untie them" if len(shared) > 1 else "use it in one stage"
                msg = (
                    f"stages: expected no parameter in two stages, got {' = '.join(shared)} in "
                    f"stages {first} and {index}; cut elsewhere or {cure}"
                )
                raise PartitionError(msg)
