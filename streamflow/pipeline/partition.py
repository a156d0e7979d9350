"""Cutting a network into stages: traced only as deep as the cuts require.

A cut named ``m`` lies before the first call of module ``m``; whatever runs earlier belongs to the
earlier stage. Values that are made before a cut and used after it cross it, also through stages
that do not use them. Parameters keep the names that they have in the caller's module.
"""

import inspect
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from streamflow.errors import PartitionError


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


@dataclass(frozen=True, slots=True)
class Trace:
    """A network as a list of calls.

    Attributes:
        graph: The calls.
        starts: Modules in the order of their first calls, with the number of nodes before it.
    """

    graph: fx.Graph
    starts: dict[str, int]


class _Tracer(fx.Tracer):
    # Otherwise code that writes a buffer would write it while it is traced.
    proxy_buffer_attributes = True

    def __init__(self, is_leaf: Callable[[nn.Module, str], bool]) -> None:
        super().__init__()
        self.starts: dict[str, int] = {}
        self._is_leaf = is_leaf

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self._is_leaf(m, module_qualified_name)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if not torch.is_grad_enabled():
            msg = "no_grad, which a trace would lose"
            raise PartitionError(msg)
        return super().create_node(*args, **kwargs)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        self.starts.setdefault(self.path_of_module(m), len(self.graph.nodes))
        return super().call_module(m, forward, args, kwargs)


def partition(module: nn.Module, stages: int | Sequence[str]) -> Partition:
    """Cut ``module`` into ``stages`` stages of similar size, or before the modules named.

    The size of a layer is its number of parameters, so that an integer always means the same cut.

    Raises:
        PartitionError: There is no such cut, the network cannot be traced, or parameters are tied
            across a cut.
    """
    cuts = list(stages) if not isinstance(stages, int) else None
    if cuts == [] or stages == 1:
        return Partition((module,), (first_module(module),))
    if cuts is None:
        assert isinstance(stages, int)
        trace, cuts = _choose(module, stages)
    else:
        trace = _trace_for(module, cuts)
    return _split(module, trace, cuts)


def first_module(module: nn.Module) -> str:
    """Name the first layer of a network that is not cut."""
    leaves = (name for name, part in module.named_modules() if not any(part.children()))
    return next(leaves) or type(module).__name__


def trace_layers(module: nn.Module) -> Trace:
    """Trace down to layers, or where code prevents that, to the parts of Sequentials."""
    try:
        return _trace(module, lambda part, name: _is_layer(part))
    except PartitionError:
        return _trace(module, lambda part, name: not isinstance(part, nn.Sequential))


def _is_layer(part: nn.Module) -> bool:
    """Say whether a module is a unit: torch's own, one without parts, or one with own tensors."""
    if isinstance(part, nn.Sequential):
        return False
    is_torchs = type(part).__module__.startswith("torch.nn")
    has_tensors = bool(part._parameters or part._buffers)
    return is_torchs or has_tensors or not any(True for _ in part.children())


def _trace_for(module: nn.Module, cuts: Sequence[str]) -> Trace:
    """Open only what has a cut inside it."""
    known = {name for name, _ in module.named_modules()} - {""}
    for cut in cuts:
        if cut not in known:
            msg = f"stages: expected names of modules, got {cut!r}; {_known(sorted(known))}"
            raise PartitionError(msg)
    return _trace(module, lambda part, name: not any(cut.startswith(f"{name}.") for cut in cuts))


def _known(names: Sequence[str]) -> str:
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"known are {shown}" if names else "the network has no submodules"


def _trace(module: nn.Module, is_leaf: Callable[[nn.Module, str], bool]) -> Trace:
    tracer = _Tracer(is_leaf)
    random_state = torch.get_rng_state()
    try:
        with torch.enable_grad():
            graph = tracer.trace(module, concrete_args=_defaults(module))
    except Exception as error:
        msg = (
            f"stages: expected {type(module).__name__} to be traceable, got {error}; cut only "
            "where no control flow over tensors is around, or use one stage"
        )
        raise PartitionError(msg) from error
    drew = not torch.equal(torch.get_rng_state(), random_state)
    torch.set_rng_state(random_state)
    if drew:
        msg = (
            f"stages: expected {type(module).__name__} to draw random numbers inside layers, got "
            "draws between them; move them into a module of their own"
        )
        raise PartitionError(msg)
    return Trace(graph, tracer.starts)


def _defaults(module: nn.Module) -> dict[str, Any]:
    """Fix the arguments that have a default: a trace follows one branch of ``if mask is None``."""
    parameters = inspect.signature(module.forward).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _choose(module: nn.Module, num_stages: int) -> tuple[Trace, list[str]]:
    trace = trace_layers(module)
    nodes = list(trace.graph.nodes)
    layers = [n.target for n in nodes if n.op == "call_module"]
    layers = [name for name in dict.fromkeys(layers) if trace.starts[name] < len(nodes)]
    if num_stages > len(layers):
        msg = (
            f"stages: expected at most {len(layers)} for this network, got {num_stages}; "
            "a stage needs at least one layer"
        )
        raise PartitionError(msg)
    sizes = [1 + sum(p.numel() for p in module.get_submodule(n).parameters()) for n in layers]
    return trace, [layers[start] for start in bottleneck_cut(sizes, num_stages)]


def bottleneck_cut(sizes: Sequence[float], num_parts: int) -> list[int]:
    """Cut a sequence into parts so that the largest part is smallest; return where parts begin.

    The first part's beginning, 0, is left out. Exact; among equals the earliest cuts.
    """
    total = [0.0]
    for size in sizes:
        total.append(total[-1] + size)
    count = len(sizes)
    # best[i]: smallest bottleneck of sizes[i:] in the parts that remain, and where the next begins.
    best = [(total[count] - total[i], count) for i in range(count)]
    levels = [best]
    for parts in range(2, num_parts + 1):
        best = [
            min((max(total[j] - total[i], levels[-1][j][0]), j) for j in range(i + 1, count))
            if count - i >= parts
            else (float("inf"), count)
            for i in range(count)
        ]
        levels.append(best)
    starts, position = [], 0
    for level in reversed(levels[1:]):
        position = level[position][1]
        starts.append(position)
    return starts


def _split(module: nn.Module, trace: Trace, cuts: Sequence[str]) -> Partition:
    starts = [_start(trace, cut) for cut in cuts]
    if sorted(set(starts)) != starts or starts[0] < 1:
        msg = (
            f"stages: expected cuts in the order in which the network runs, got {list(cuts)}; "
            "leave out the first module and those that begin at the same place"
        )
        raise PartitionError(msg)
    stage_of = _assign(trace.graph, starts)
    _check_not_empty(stage_of, cuts)
    modules = tuple(
        fx.GraphModule(module, _stage_graph(trace.graph, stage_of, index, len(cuts) + 1))
        for index in range(len(cuts) + 1)
    )
    _check_not_tied(module, modules)
    return Partition(modules, (next(iter(trace.starts)), *cuts))


def _start(trace: Trace, cut: str) -> int:
    if cut not in trace.starts:
        msg = f"stages: expected a module that the network calls, got {cut!r}; cut elsewhere"
        raise PartitionError(msg)
    return trace.starts[cut]


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
            if owner.setdefault(id(parameter), index) != index:
                shared = " = ".join(names[id(parameter)])
                msg = (
                    f"stages: expected no parameter in two stages, got {shared} "
                    f"in stages {owner[id(parameter)]} and {index}; cut elsewhere or untie them"
                )
                raise PartitionError(msg)
