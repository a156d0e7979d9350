"""One learned sample as a pure function: recorded once as a graph, to be compiled.

The graph takes tensors and returns tensors in this order:

    takes     held, constants, factors, inputs, targets, weight
    returns   the new values of what is written among the held, outputs, loss, and a number that
              is finite where all gradients are

Held are parameters, what the optimizer keeps of them, and buffers; constants are the tensors that
network and loss have beside these. Factors (groups, factors) are those of the optimizer's formula.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from streamflow.pipeline import inductor, trees
from streamflow.pipeline.formulas import Formula, Settings, formula_of
from streamflow.pipeline.messages import Sample
from streamflow.pipeline.stage import Stage, call
from streamflow.pipeline.updates import norm_factor, settings_of

# What torch's own recurrent layers know of their parameters beside these.
_OF_TORCH = ("_flat_weights", "_flat_weight_refs")

Place = Callable[[], Tensor]
"""Returns a tensor as it is now: some are replaced while the network runs eagerly."""


class Unsupported(Exception):  # no error: a way that is not taken
    """Why a stage is not compiled."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What the graph takes and returns.

    Attributes:
        held: Count of held tensors.
        written: Which of them are written, parameters first.
        kept: For each parameter that is learned, itself and what the optimizer keeps of it.
        learned: How many of the written are parameters or what the optimizer keeps of them.
        constants: Count of constants.
        inputs: Count of tensors of an input.
        targets: Likewise of a target.
        weights: 1 where samples are weighted.
        outputs: Count of tensors of an output.
        is_checked: Whether it must be told if something was not finite.
    """

    held: int
    written: tuple[int, ...]
    kept: tuple[tuple[int, ...], ...]
    learned: int
    constants: int
    inputs: int
    targets: int
    weights: int
    outputs: int
    is_checked: bool


@dataclass(frozen=True, slots=True)
class Recording:
    """How samples of one kind are learned.

    Attributes:
        graph: What happens; see above.
        layout: What it takes and returns.
        arguments: A tensor for each that it takes.
        held: Where the held are.
        constants: The constants themselves.
        formula: Of the optimizer.
        settings: What the optimizer's groups say beside learning rates, which is in the graph.
        counted: Parameters whose optimizer counts steps, by group.
        structure: Of an output.
        kinds: Shape and dtype of each tensor of an output, without the dimension of samples.
    """

    graph: GraphModule
    layout: Layout
    arguments: list[Tensor]
    held: list[Place]
    constants: list[Tensor]
    formula: Formula
    settings: list[Settings]
    counted: list[list[nn.Parameter]]
    structure: pytree.TreeSpec
    kinds: list[tuple[torch.Size, torch.dtype]]


def record(
    stage: Stage, inputs: Any, target: Any, weight: Tensor | None, clip_norm: float | None
) -> Recording:
    """Record how the only stage of a pipeline learns from a sample like this one.

    Raises:
        Unsupported: It cannot be recorded.
    """
    return _Recorder(stage, inputs, target, weight, clip_norm).record()


def baked(optimizer: torch.optim.Optimizer) -> list[Settings]:
    """Return what the groups of an optimizer say beside their learning rates."""
    rates = ("lr", "initial_lr")
    return [
        {key: value for key, value in settings_of(group).items() if key not in rates}
        for group in optimizer.param_groups
    ]


class _Recorder:
    def __init__(
        self, stage: Stage, inputs: Any, target: Any, weight: Tensor | None, clip: float | None
    ) -> None:
        self.stage, self.inputs, self.target = stage, inputs, target
        self.weights = [] if weight is None else [weight]
        self.clip_norm = clip
        self.parameters = stage.parameters
        self.optimizer, self.formula = _known_optimizer(stage)
        self.settings = baked(self.optimizer)
        self.group_of = _groups_by_name(self.optimizer, self.parameters)
        self.trainable = [n for n, p in self.parameters.items() if p.requires_grad]
        self.slots = [(n, key) for n in self.trainable for key in self._kept(n)]
        self.buffers = {
            name: Buffer(owner, key)
            for name, owner, key in stage.buffers.places
            if owner._buffers[key] is not None
        }
        self.places: list[Place] = [
            *(_Constant(p) for p in self.parameters.values()),
            *(_Kept(self.optimizer, self.parameters[n], key) for n, key in self.slots),
            *self.buffers.values(),
        ]
        self.learned: list[str] = []
        self.changed: list[int] = []
        self.structure: pytree.TreeSpec | None = None
        self.kinds: list[tuple[torch.Size, torch.dtype]] = []

    def _kept(self, name: str) -> list[str]:
        """Name what the optimizer keeps of a parameter, and already has."""
        has = self.optimizer.state.get(self.parameters[name], {})
        names = self.formula.state(self.settings[self.group_of[name]])
        return [key for key in names if isinstance(has.get(key), Tensor)]

    def record(self) -> Recording:
        held = [place().detach() for place in self.places]
        _check_plain(held)
        shape = len(self.settings), self.formula.num_factors
        factors = torch.ones(shape, dtype=_dtype(self.parameters.values()))
        inputs, targets = trees.tensors(self.inputs), trees.tensors(self.target)
        given = [factors, *inputs, *targets, *self.weights]
        graph = self._graph([*held, *given])
        graph, constants = _lift_constants(graph, len(held))
        arguments = [*held, *constants, *given]
        graph = inductor.without_writes(graph, arguments)
        written = self._written(graph)
        assert self.structure is not None
        layout = Layout(
            held=len(held),
            written=written,
            kept=self._kept_together(),
            learned=sum(index < len(self.parameters) + len(self.slots) for index in written),
            constants=len(constants),
            inputs=len(inputs),
            targets=len(targets),
            weights=len(self.weights),
            outputs=self.structure.num_leaves,
            is_checked=not self.stage.allow_nonfinite,
        )
        return Recording(
            _plain(graph),
            layout,
            arguments,
            self.places,
            constants,
            self.formula,
            self.settings,
            self._counted(),
            self.structure,
            self.kinds,
        )

    def _kept_together(self) -> tuple[tuple[int, ...], ...]:
        places = {name: index for index, name in enumerate(self.parameters)}
        first = len(places)
        return tuple(
            (places[name], *(first + k for k, slot in enumerate(self.slots) if slot[0] == name))
            for name in self.learned
        )

    def _graph(self, arguments: list[Tensor]) -> GraphModule:
        before = [_attributes(part) for part in self.stage.module.modules()]
        try:
            graph = inductor.record(self._learn, arguments)
        except Unsupported:
            raise
        except Exception as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            msg = f"the network cannot be recorded: {first}"
            raise Unsupported(msg) from error
        finally:
            changed = _restore(self.stage.module, before)
        if changed:
            msg = f"a forward changes {changed}, which is neither a parameter nor a buffer"
            raise Unsupported(msg)
        return graph

    def _counted(self) -> list[list[nn.Parameter]]:
        counted: list[list[nn.Parameter]] = [[] for _ in self.settings]
        if self.formula.counts:
            for name in self.learned:
                counted[self.group_of[name]].append(self.parameters[name])
        return counted

    def _learn(self, *tensors: Tensor) -> list[Tensor]:
        given = iter(tensors)
        weights = {name: next(given) for name in self.parameters}
        memory: dict[str, dict[str, Tensor]] = {name: {} for name in self.parameters}
        for name, key in self.slots:
            memory[name][key] = next(given)
        buffers = {name: next(given).clone() for name in self.buffers}
        factors = next(given)
        inputs = trees.map_tensors(lambda _: next(given).clone(), self.inputs)
        target = trees.map_tensors(lambda _: next(given), self.target)
        sample = Sample(0, True, target, next(given, None))
        outputs, loss, gradients, after = self._gradients(weights, buffers, inputs, sample)
        # Every difference is zero where the gradient is finite, and no number elsewhere.
        check = sum((g - g).sum(dtype=torch.float32) for g in gradients.values())
        gradients = self._clipped(gradients)
        self.learned = list(gradients)
        for name, gradient in gradients.items():
            if set(memory[name]) != set(self.formula.state(self.settings[self.group_of[name]])):
                msg = f"the optimizer has not begun to learn {name}"
                raise Unsupported(msg)
            group = self.group_of[name]
            weights[name], memory[name] = self.formula.update(
                weights[name],
                gradient,
                memory[name],
                [factor.to(gradient.dtype) for factor in factors[group]],
                self.settings[group],
            )
        return [*self._changed(weights, memory, after), *outputs, loss, torch.as_tensor(check)]

    def _gradients(
        self, weights: dict[str, Tensor], buffers: dict[str, Tensor], inputs: Any, sample: Sample
    ) -> tuple[list[Tensor], Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Return outputs, loss, the gradients that exist, and the buffers afterwards."""
        leaves = {n: w.detach().requires_grad_(n in self.trainable) for n, w in weights.items()}
        tensors = {**leaves, **buffers}
        with torch.enable_grad():
            outputs = call(self.stage.module, (inputs,), tensors, is_first=True)
            loss = self.stage.loss(sample, outputs)
            wanted = [leaves[name] for name in self.trainable]
            if not loss.requires_grad:
                msg = "the loss does not depend on a parameter"
                raise Unsupported(msg)
            found = torch.autograd.grad([loss], wanted, allow_unused=True)
        pairs = zip(self.trainable, found, strict=True)
        gradients = {name: gradient for name, gradient in pairs if gradient is not None}
        after = {name: tensors[name].detach() for name in buffers}
        return self._flat(outputs), loss.detach(), gradients, after

    def _clipped(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.clip_norm is None:
            return gradients
        factor = norm_factor(list(gradients.values()), self.clip_norm)
        return {name: gradient * factor for name, gradient in gradients.items()}

    def _flat(self, outputs: Any) -> list[Tensor]:
        leaves, self.structure = trees.flatten(outputs)
        if not all(isinstance(leaf, Tensor) for leaf in leaves):
            msg = "the network returns more than tensors"
            raise Unsupported(msg)
        if not all(leaf.dim() and len(leaf) == 1 for leaf in leaves):
            msg = "an output has no dimension of samples"
            raise Unsupported(msg)
        self.kinds = [(leaf.shape[1:], leaf.dtype) for leaf in leaves]
        return [leaf.detach() for leaf in leaves]

    def _changed(
        self,
        weights: dict[str, Tensor],
        memory: dict[str, dict[str, Tensor]],
        buffers: dict[str, Tensor],
    ) -> Iterator[Tensor]:
        """Yield new values of what may be written, and note where they belong."""
        index = {("weight", name): i for i, name in enumerate(self.parameters)}
        index |= {slot: len(index) + i for i, slot in enumerate(self.slots)}
        index |= {("buffer", name): len(index) + i for i, name in enumerate(self.buffers)}
        self.changed = []
        for name in self.learned:
            self.changed.append(index["weight", name])
            yield weights[name]
        for slot in self.slots:
            if slot[0] in self.learned:
                self.changed.append(index[slot])
                yield memory[slot[0]][slot[1]]
        for name, tensor in buffers.items():
            self.changed.append(index["buffer", name])
            yield tensor

    def _written(self, graph: GraphModule) -> tuple[int, ...]:
        """Leave out of the results what only returns as it came; return what is left."""
        given = [node for node in graph.graph.nodes if node.op == "placeholder"]
        (result,) = graph.graph.find_nodes(op="output")
        values = list(result.args[0])
        changed, others = values[: len(self.changed)], values[len(self.changed) :]
        kept = [
            (index, value)
            for index, value in zip(self.changed, changed, strict=True)
            if _source(value) is not given[index]
        ]
        result.args = ([*(value for _, value in kept), *others],)
        graph.graph.eliminate_dead_code()
        return tuple(index for index, _ in kept)


@dataclass(frozen=True, slots=True)
class _Constant:
    tensor: Tensor

    def __call__(self) -> Tensor:
        return self.tensor


@dataclass(frozen=True, slots=True)
class _Kept:
    optimizer: torch.optim.Optimizer
    parameter: nn.Parameter
    key: str

    def __call__(self) -> Tensor:
        tensor: Tensor = self.optimizer.state[self.parameter][self.key]
        return tensor


@dataclass(frozen=True, slots=True)
class Buffer:
    """A place that a module has for a buffer, into which another may be put."""

    owner: nn.Module
    key: str

    def __call__(self) -> Tensor:
        """Return what is there now."""
        tensor = self.owner._buffers[self.key]
        assert tensor is not None
        return tensor

    def put(self, tensor: Tensor) -> None:
        """Replace what is there."""
        self.owner._buffers[self.key] = tensor


def _known_optimizer(stage: Stage) -> tuple[torch.optim.Optimizer, Formula]:
    optimizer = stage.updates.optimizer
    formula = None if optimizer is None else formula_of(optimizer)
    if optimizer is None or formula is None:
        got = "no optimizer" if optimizer is None else type(optimizer).__name__
        msg = f"{got} is not among the optimizers that are compiled"
        raise Unsupported(msg)
    return optimizer, formula


def _groups_by_name(
    optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter]
) -> dict[str, int]:
    names = {id(parameter): name for name, parameter in parameters.items()}
    return {
        names[id(parameter)]: index
        for index, group in enumerate(optimizer.param_groups)
        for parameter in group["params"]
    }


def _dtype(parameters: Iterable[nn.Parameter]) -> torch.dtype:
    """Return the one dtype of all, or the widest."""
    dtypes = {parameter.dtype for parameter in parameters}
    return dtypes.pop() if len(dtypes) == 1 else torch.float64


def _check_plain(tensors: list[Tensor]) -> None:
    for tensor in tensors:
        kind = f"{tensor.layout}, {tensor.dtype} on {tensor.device}"
        is_plain = tensor.layout is torch.strided and not tensor.is_complex()
        if not is_plain or tensor.device.type != "cpu" or tensor.is_quantized:
            msg = f"it holds a tensor of {kind}"
            raise Unsupported(msg)


def _attributes(part: nn.Module) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return the dicts that hold what a module knows, and copies of them."""
    return [(d, dict(d)) for d in (vars(part), part._buffers, part._parameters)]


def _restore(module: nn.Module, before: list[list[tuple[dict[str, Any], dict[str, Any]]]]) -> str:
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


def _lift_constants(graph: GraphModule, position: int) -> tuple[GraphModule, list[Tensor]]:
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
    return _plain(graph), constants


def _plain(graph: GraphModule) -> GraphModule:
    """Return a graph that can travel: a recorded one knows its recorder, which cannot."""
    plain = torch.fx.Graph()
    plain.output(plain.graph_copy(graph.graph, {}))
    return GraphModule(nn.Module(), plain)


def _source(node: torch.fx.Node) -> torch.fx.Node:
    """Return what a node only copies."""
    aten = torch.ops.aten
    while node.target in (aten.clone.default, aten.alias.default, aten.detach.default):
        node = node.all_input_nodes[0]
    return node


def _writes(node: torch.fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable
