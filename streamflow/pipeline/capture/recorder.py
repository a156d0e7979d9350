"""Recordings of what stages do with a sample, as :mod:`~streamflow.pipeline.capture.program`."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from streamflow.pipeline import torch_private, trees
from streamflow.pipeline.capture import graphs, noise
from streamflow.pipeline.capture.held_tensors import Holding, Place, Unsupported
from streamflow.pipeline.capture.optimizers import Formula, Settings
from streamflow.pipeline.capture.program import Kind, Layout, Program
from streamflow.pipeline.stages.messages import Sample
from streamflow.pipeline.stages.stage import Stage, call
from streamflow.pipeline.stages.updates import norm_factor

_MOST_OPERATIONS = 1000


@dataclass(frozen=True, slots=True)
class Recording:
    """How a stage runs samples of one kind.

    Attributes:
        learn: All of a sample, or its backward and update.
        forward: Its forward alone.
        held: Where the held are.
        snapshots: Buffers that the forward writes, and where they are among the held.
        formula: Of the optimizer, None where there is no parameter.
        settings: What the optimizer's groups say beside learning rates, which is in the graph.
        counted: Parameters whose optimizer counts steps, by group.
        values: Structure of what the stage is called with.
        structure: Of an output.
        inputs: Tensors of what it is called with.
        outputs: Tensors of an output.
        reached: For each of them that can carry a gradient, whether one comes back.
        gradients: Those by which one comes.
    """

    learn: Program
    forward: Program
    held: list[Place]
    snapshots: dict[str, int]
    formula: Formula | None
    settings: list[Settings]
    counted: list[list[nn.Parameter]]
    values: pytree.TreeSpec
    structure: pytree.TreeSpec
    inputs: list[Kind]
    outputs: list[Kind]
    reached: list[bool]
    gradients: list[Kind]

    @property
    def noises(self) -> list[noise.Noise]:
        """Random numbers that a forward draws."""
        return self.forward.noises

    @property
    def programs(self) -> list[Program]:
        """The learning and the forward."""
        return [self.learn, self.forward]


def record(
    stages: Sequence[Stage],
    inputs: Any,
    target: Any,
    weight: Tensor | None,
    clip_norm: float | None,
) -> list[Recording]:
    """Record how the stages of a pipeline run a sample like this one, each for itself.

    Raises:
        Unsupported: One cannot be recorded.
    """
    recorders = [_Recorder(stage, clip_norm) for stage in stages]
    values: Any = (inputs,)
    for recorder in recorders:
        recorder.values = values
        recorder.record_forward()
        values = recorder.like_outputs()
    recorders[-1].record_step(target, weight)
    for recorder, behind in zip(recorders[-2::-1], recorders[:0:-1], strict=True):
        recorder.record_backward(behind.reached)
    return [recorder.recording() for recorder in recorders]


class _Recorder:
    """Records one stage.

    Attributes:
        values: What it is called with.
        reached: For each of them that can carry a gradient, whether one comes.
    """

    def __init__(self, stage: Stage, clip: float | None) -> None:
        self.stage = stage
        self.clip_norm = clip
        self.holding = Holding(stage)
        self.values: Any = None
        self.reached: list[bool] = []
        self._learned: list[str] = []
        self._changed: list[int] = []
        self._structure: pytree.TreeSpec | None = None
        self._outputs: list[Kind] = []
        self._gradients: list[Kind] = []
        self._snapshots: dict[str, int] = {}
        self._behind: list[bool] = []
        self._forward: Program | None = None
        self._learn: Program | None = None

    def recording(self) -> Recording:
        assert self._learn is not None
        assert self._forward is not None
        assert self._structure is not None
        holding = self.holding
        return Recording(
            self._learn,
            self._forward,
            holding.places,
            self._snapshots,
            holding.formula,
            holding.settings,
            holding.counted(self._learned),
            trees.flatten(self.values)[1],
            self._structure,
            [_kind(tensor) for tensor in trees.tensors(self.values)],
            self._outputs,
            self._behind,
            self._gradients,
        )

    def like_outputs(self) -> Any:
        """Return values like those that the stage returns."""
        assert self._structure is not None
        tensors = [torch.zeros(shape, dtype=dtype) for shape, dtype in self._outputs]
        return pytree.tree_unflatten(tensors, self._structure)

    def record_forward(self) -> None:
        def forward(state: "_State", given: Iterator[Tensor]) -> list[Tensor]:
            values = self._take(self.values, given)
            with torch.no_grad(), _Limited():
                outputs = self._call(values, {**state.weights, **state.buffers}, state)
            return [*self._new_values(state), *self._flat(outputs)]

        inputs = trees.tensors(self.values)
        self._forward = self._program(forward, inputs, learns=False, weights=0)
        names = list(self.holding.buffers)
        first = len(self.holding.places) - len(names)
        self._snapshots = {names[i - first]: i for i in self._forward.layout.written}

    def record_step(self, target: Any, weight: Tensor | None) -> None:
        weights = [] if weight is None else [weight]

        def step(state: "_State", given: Iterator[Tensor]) -> list[Tensor]:
            factors = next(given)
            values = self._take(self.values, given)
            targets = trees.map_tensors(lambda _: next(given), target)
            sample = Sample(0, True, targets, next(given, None))
            with torch.enable_grad():
                values, leaves = self._leaves(values, state)
                outputs = self._call(values, leaves, state)
                loss = self.stage.loss(sample, outputs)
                if not loss.requires_grad:
                    msg = "the loss does not depend on a parameter"
                    raise Unsupported(msg)
                self._differentiate([loss], None, values, leaves, state)
            state.check = state.check + loss.detach().sum()
            self._learn_from(state, factors)
            outputs = self._flat(outputs)
            return [*self._new_values(state), *outputs, *state.upward, torch.as_tensor(state.check)]

        rows = [*trees.tensors(self.values), *trees.tensors(target), *weights]
        self._learn = self._program(step, rows, learns=True, weights=len(weights))
        if self._forward is None or self._learn.noises != self._forward.noises:
            msg = "the loss draws random numbers"
            raise Unsupported(msg)

    def record_backward(self, reached: Sequence[bool]) -> None:
        """Record the backward; ``reached`` says by which of the floats a gradient comes."""
        written = list(self._snapshots)
        self._behind = list(reached)
        floats = [kind for kind in self._outputs if kind[1].is_floating_point or kind[1].is_complex]
        self._gradients = [k for k, is_there in zip(floats, reached, strict=True) if is_there]

        def backward(state: "_State", given: Iterator[Tensor]) -> list[Tensor]:
            factors = next(given)
            values = self._take(self.values, given)
            state.buffers |= {name: next(given).clone() for name in written}
            gradients = [next(given) if is_there else None for is_there in reached]
            with torch.enable_grad():
                values, leaves = self._leaves(values, state)
                outputs = trees.floats(self._call(values, leaves, state))
                pairs = [
                    (output, gradient)
                    for output, gradient in zip(outputs, gradients, strict=True)
                    if output.requires_grad and gradient is not None
                ]
                if not pairs:
                    msg = "no gradient comes from the stage behind"
                    raise Unsupported(msg)
                roots, seeds = ([pair[k] for pair in pairs] for k in (0, 1))
                self._differentiate(roots, seeds, values, leaves, state)
            self._learn_from(state, factors)
            state.after = {}
            return [*self._new_values(state), *state.upward, torch.as_tensor(state.check)]

        buffers = [self.holding.buffers[name]().detach() for name in written]
        gradients = [torch.zeros(shape, dtype=dtype) for shape, dtype in self._gradients]
        rows = [*trees.tensors(self.values), *buffers, *gradients]
        self._learn = self._program(backward, rows, learns=True, weights=0)

    def _program(
        self,
        body: Callable[["_State", Iterator[Tensor]], list[Tensor]],
        rows: list[Tensor],
        *,
        learns: bool,
        weights: int,
    ) -> Program:
        holding = self.holding
        held = holding.now()
        if learns:
            factors = len(holding.settings), holding.formula.num_factors if holding.formula else 0
            rows = [torch.ones(factors, dtype=holding.dtype()), *rows]
        graph = self._graph(body, [*held, *rows])
        graph, constants = graphs.lift_constants(graph, len(held))
        arguments = [*held, *constants, *rows]
        num_inputs = len(trees.tensors(self.values))
        place = len(held) + len(constants) + learns + num_inputs
        graph, noises = noise.lift(torch_private.without_writes(graph, arguments), place)
        written = self._written(graph)
        layout = Layout(
            held=len(held),
            written=written,
            kept=self._kept_together() if learns else (),
            learned=sum(index < len(held) - len(holding.buffers) for index in written),
            constants=len(constants),
            inputs=num_inputs,
            others=len(rows) - learns - num_inputs - weights,
            weights=weights,
            learns=learns,
            is_checked=learns and not self.stage.allow_nonfinite,
        )
        arguments[place:place] = [torch.zeros(drawn.shape, dtype=drawn.dtype) for drawn in noises]
        return Program(graphs.plain(graph), layout, arguments, constants, noises)

    def _kept_together(self) -> tuple[tuple[int, ...], ...]:
        places = {name: index for index, name in enumerate(self.holding.parameters)}
        first, slots = len(places), self.holding.slots
        return tuple(
            (places[name], *(first + k for k, slot in enumerate(slots) if slot[0] == name))
            for name in self._learned
        )

    def _graph(
        self,
        body: Callable[["_State", Iterator[Tensor]], list[Tensor]],
        arguments: list[Tensor],
    ) -> GraphModule:
        def run(*tensors: Tensor) -> list[Tensor]:
            given = iter(tensors)
            self._learned = []
            return body(_State(self.holding, given), given)

        before = [graphs.attributes(part) for part in self.stage.module.modules()]
        try:
            graph = torch_private.record(run, arguments)
        except Unsupported:
            raise
        except torch_private.LooksAtValues as error:
            msg = f"the network looks at values to decide what to compute ({error})"
            raise Unsupported(msg) from error
        except Exception as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            msg = f"the network cannot be recorded: {first}"
            raise Unsupported(msg) from error
        finally:
            changed = graphs.restore(self.stage.module, before)
        if changed:
            msg = f"a forward changes {changed}, which is neither a parameter nor a buffer"
            raise Unsupported(msg)
        return graph

    def _take(self, values: Any, given: Iterator[Tensor]) -> Any:
        return trees.map_tensors(lambda _: next(given).clone(), values)

    def _leaves(self, values: Any, state: "_State") -> tuple[Any, dict[str, Tensor]]:
        """Return values and weights as leaves of a new graph, with the buffers."""
        wanted = self.holding.trainable
        weights = {n: w.detach().requires_grad_(n in wanted) for n, w in state.weights.items()}
        return self._as_leaves(values), {**weights, **state.buffers}

    def _as_leaves(self, values: Any) -> Any:
        return trees.as_leaves(values) if self.stage.index else values

    def _call(self, values: Any, tensors: dict[str, Tensor], state: "_State") -> Any:
        outputs = call(self.stage.module, values, tensors, is_first=self.stage.index == 0)
        state.after = {name: tensors[name].detach() for name in state.buffers}
        return outputs

    def _differentiate(
        self,
        roots: Sequence[Tensor],
        seeds: Sequence[Tensor] | None,
        values: Any,
        leaves: dict[str, Tensor],
        state: "_State",
    ) -> None:
        """Find the gradients that exist, and what is finite where they are."""
        wanted = [leaves[name] for name in self.holding.trainable]
        inputs = trees.floats(values) if self.stage.index else []
        found = torch.autograd.grad(roots, wanted + inputs, seeds, allow_unused=True)
        pairs = zip(self.holding.trainable, found, strict=False)
        state.gradients = {name: gradient for name, gradient in pairs if gradient is not None}
        upward = found[len(wanted) :]
        self.reached = [gradient is not None for gradient in upward]
        state.upward = [gradient for gradient in upward if gradient is not None]
        # Every difference is zero where the gradient is finite, and no number elsewhere.
        checked = [*state.gradients.values(), *state.upward]
        state.check = sum(((g - g).sum(dtype=torch.float32) for g in checked), state.check)

    def _learn_from(self, state: "_State", factors: Tensor) -> None:
        holding = self.holding
        self._learned = list(state.gradients)
        if self.clip_norm is not None and state.gradients:
            factor = norm_factor(list(state.gradients.values()), self.clip_norm)
            state.gradients = {name: g * factor for name, g in state.gradients.items()}
        for name, gradient in state.gradients.items():
            assert holding.formula is not None
            if set(state.memory[name]) != set(holding.states_of(name)):
                msg = f"the optimizer has not begun to learn {name}"
                raise Unsupported(msg)
            group = holding.group_of[name]
            state.weights[name], state.memory[name] = holding.formula.update(
                state.weights[name],
                gradient,
                state.memory[name],
                [factor.to(gradient.dtype) for factor in factors[group]],
                holding.settings[group],
            )

    def _flat(self, outputs: Any) -> list[Tensor]:
        leaves, self._structure = trees.flatten(outputs)
        if not all(isinstance(leaf, Tensor) for leaf in leaves):
            msg = f"{self.stage.name} returns more than tensors"
            raise Unsupported(msg)
        is_last = self.stage.has_loss
        if is_last and not all(leaf.dim() and len(leaf) == 1 for leaf in leaves):
            msg = "an output has no dimension of samples"
            raise Unsupported(msg)
        self._outputs = [_kind(leaf) for leaf in leaves]
        return [leaf.detach() for leaf in leaves]

    def _new_values(self, state: "_State") -> Iterator[Tensor]:
        """Yield new values of what may be written, and note where they belong."""
        holding = self.holding
        index = {("weight", name): i for i, name in enumerate(holding.parameters)}
        index |= {slot: len(index) + i for i, slot in enumerate(holding.slots)}
        index |= {("buffer", name): len(index) + i for i, name in enumerate(holding.buffers)}
        self._changed = []
        for name in self._learned:
            self._changed.append(index["weight", name])
            yield state.weights[name]
        for slot in holding.slots:
            if slot[0] in self._learned:
                self._changed.append(index[slot])
                yield state.memory[slot[0]][slot[1]]
        for name, tensor in state.after.items():
            self._changed.append(index["buffer", name])
            yield tensor

    def _written(self, graph: GraphModule) -> tuple[int, ...]:
        """Leave out of the results what only returns as it came; return what is left."""
        given = [node for node in graph.graph.nodes if node.op == "placeholder"]
        (result,) = graph.graph.find_nodes(op="output")
        values = list(result.args[0])
        changed, others = values[: len(self._changed)], values[len(self._changed) :]
        kept = [
            (index, value)
            for index, value in zip(self._changed, changed, strict=True)
            if graphs.source(value) is not given[index]
        ]
        result.args = ([*(value for _, value in kept), *others],)
        graph.graph.eliminate_dead_code()
        return tuple(index for index, _ in kept)


class _Counting:
    """Refuses a forward of very many operations: to record it would hold up the stream."""

    def __init__(self) -> None:
        super().__init__()
        self._count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._count += 1
        if self._count > _MOST_OPERATIONS:
            msg = f"a forward has more than {_MOST_OPERATIONS} operations"
            raise Unsupported(msg)
        return func(*args, **(kwargs or {}))


# Torch wraps a method that a mode itself has so that its first call imports the compiler: seconds.
class _Limited(_Counting, TorchDispatchMode):  # type: ignore[no-untyped-call]  # __init_subclass__
    """Counts every operation."""


class _State:
    """What a stage holds while it is recorded, and what comes of a sample.

    Attributes:
        weights: By name, new ones at the end.
        memory: What the optimizer keeps of each.
        buffers: As the forward sees them.
        after: As it leaves them.
        gradients: Of weights.
        upward: Of inputs.
        check: A number that is finite where these are.
    """

    def __init__(self, holding: Holding, given: Iterator[Tensor]) -> None:
        self.weights = {name: next(given) for name in holding.parameters}
        self.memory: dict[str, dict[str, Tensor]] = {name: {} for name in holding.parameters}
        for name, key in holding.slots:
            self.memory[name][key] = next(given)
        self.buffers = {name: next(given).clone() for name in holding.buffers}
        self.after: dict[str, Tensor] = {}
        self.gradients: dict[str, Tensor] = {}
        self.upward: list[Tensor] = []
        self.check: Tensor | float = 0.0


def _kind(tensor: Tensor) -> Kind:
    return tensor.shape, tensor.dtype
