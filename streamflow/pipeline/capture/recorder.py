"""Recordings of what stages do with a sample, as :mod:`~streamflow.pipeline.capture.program`.

Theory of operation. What is compiled is not a network's code but what it does: it runs once, on
stand-ins, and every operation is written down, those of the backward among them. The functions that
run (``forward``, ``step``, ``backward`` below) get every tensor that a sample meets and return all
that it changes:

    forward     held, inputs                             -> buffers, outputs
    step        held, factors, inputs, targets, weight   -> weights, memory, buffers, outputs, check
    backward    held, factors, inputs, buffers as they   -> weights, memory, buffers, gradients of
                were, gradients of outputs                  inputs, check

The last stage has ``forward`` and ``step``, the others ``forward`` and ``backward``. Forwards are
recorded first stage first, since a stage is called with values like the outputs of the one before;
the rest last stage first, since of which outputs a gradient comes is known behind (``upward``
there, ``reached`` here). ``_program`` makes of a graph what the compiler takes: tensors that it
holds become arguments (``lift_constants``), writes new values (``without_writes``), draws of random
numbers arguments (``noise.lift``), and what only returns as it came is left out (``_written``).

A graph is the same for every sample. So what could differ is refused (``Unsupported``): values that
are looked at, attributes that a forward leaves changed, a loss that draws random numbers.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from streamflow.pipeline import torch_private, trees
from streamflow.pipeline.capture import graphs, noise
from streamflow.pipeline.capture.held_tensors import HeldTensors, Unsupported
from streamflow.pipeline.capture.program import Layout, Program
from streamflow.pipeline.capture.recording import Recording, reached_of
from streamflow.pipeline.capture.tensor_spec import TensorSpec
from streamflow.pipeline.stages.messages import Sample
from streamflow.pipeline.stages.stage import Stage, call
from streamflow.pipeline.stages.updates import norm_factor
from streamflow.pipeline.torch_private import pytree

_MOST_OPERATIONS = 1000


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
        recorder.record_backward(behind.upward)
    return [recorder.recording() for recorder in recorders]


class _Recorder:
    """Records one stage.

    Attributes:
        values: What it is called with.
        upward: For each of them that can carry a gradient, whether one comes of a sample.
    """

    def __init__(self, stage: Stage, clip: float | None) -> None:
        self.stage = stage
        self.clip_norm = clip
        self.held = HeldTensors(stage)
        self.values: Any = None
        self.upward: list[bool] = []
        self._learned: list[str] = []
        self._changed: list[int] = []
        self._structure: pytree.TreeSpec | None = None
        self._outputs: list[TensorSpec] = []
        self._reached: list[bool] = []
        self._forward: Program | None = None
        self._learn: Program | None = None

    def recording(self) -> Recording:
        assert self._learn is not None
        assert self._forward is not None
        assert self._structure is not None
        return Recording(
            self._learn,
            self._forward,
            self.held,
            self.held.counted(self._learned),
            trees.flatten(self.values)[1],
            self._structure,
            [TensorSpec.of(tensor) for tensor in trees.tensors(self.values)],
            self._outputs,
            self._reached,
        )

    def like_outputs(self) -> Any:
        """Return values like those that the stage returns."""
        assert self._structure is not None
        return pytree.tree_unflatten([spec.zeros() for spec in self._outputs], self._structure)

    def record_forward(self) -> None:
        def forward(state: "_State", given: Iterator[Tensor]) -> list[Tensor]:
            values = self._take(self.values, given)
            with torch.no_grad(), torch_private.watching(_Limit()):
                outputs = self._call(values, {**state.weights, **state.buffers}, state)
            return [*self._new_values(state), *self._flat(outputs)]

        inputs = trees.tensors(self.values)
        self._forward = self._program(forward, inputs, learns=False, weights=0)

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
        assert self._forward is not None
        written = self.held.buffers_at(self._forward.layout.written)
        self._reached = list(reached)

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

        buffers = [self.held.buffers[name]().detach() for name in written]
        gradients = [spec.zeros() for spec in reached_of(self._outputs, reached)]
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
        held, places = self.held.now(), self.held
        if learns:
            factors = len(places.settings), places.formula.num_factors if places.formula else 0
            rows = [torch.ones(factors, dtype=places.dtype()), *rows]
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
            learned=sum(index < len(held) - len(places.buffers) for index in written),
            constants=len(constants),
            inputs=num_inputs,
            others=len(rows) - learns - num_inputs - weights,
            weights=weights,
            learns=learns,
            is_checked=learns and not self.stage.allow_nonfinite,
        )
        arguments[place:place] = [drawn.spec.zeros() for drawn in noises]
        return Program(graphs.plain(graph), layout, arguments, constants, noises)

    def _kept_together(self) -> tuple[tuple[int, ...], ...]:
        places = {name: index for index, name in enumerate(self.held.parameters)}
        first, slots = len(places), self.held.slots
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
            return body(_State(self.held, given), given)

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
        wanted = self.held.trainable
        weights = {n: w.detach().requires_grad_(n in wanted) for n, w in state.weights.items()}
        values = trees.as_leaves(values) if self.stage.index else values
        return values, {**weights, **state.buffers}

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
        wanted = [leaves[name] for name in self.held.trainable]
        inputs = trees.floats(values) if self.stage.index else []
        found = torch.autograd.grad(roots, wanted + inputs, seeds, allow_unused=True)
        pairs = zip(self.held.trainable, found, strict=False)
        state.gradients = {name: gradient for name, gradient in pairs if gradient is not None}
        upward = found[len(wanted) :]
        self.upward = [gradient is not None for gradient in upward]
        state.upward = [gradient for gradient in upward if gradient is not None]
        # Every difference is zero where the gradient is finite, and no number elsewhere.
        checked = [*state.gradients.values(), *state.upward]
        state.check = sum(((g - g).sum(dtype=torch.float32) for g in checked), state.check)

    def _learn_from(self, state: "_State", factors: Tensor) -> None:
        held = self.held
        self._learned = list(state.gradients)
        if self.clip_norm is not None and state.gradients:
            factor = norm_factor(list(state.gradients.values()), self.clip_norm)
            state.gradients = {name: g * factor for name, g in state.gradients.items()}
        for name, gradient in state.gradients.items():
            assert held.formula is not None
            if set(state.memory[name]) != set(held.states_of(name)):
                msg = f"the optimizer has not begun to learn {name}"
                raise Unsupported(msg)
            group = held.group_of[name]
            state.weights[name], state.memory[name] = held.formula.update(
                state.weights[name],
                gradient,
                state.memory[name],
                [factor.to(gradient.dtype) for factor in factors[group]],
                held.settings[group],
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
        self._outputs = [TensorSpec.of(leaf) for leaf in leaves]
        return [leaf.detach() for leaf in leaves]

    def _new_values(self, state: "_State") -> Iterator[Tensor]:
        """Yield new values of what may be written, and note where they belong."""
        held = self.held
        index = {("weight", name): i for i, name in enumerate(held.parameters)}
        index |= {slot: len(index) + i for i, slot in enumerate(held.slots)}
        index |= {("buffer", name): len(index) + i for i, name in enumerate(held.buffers)}
        self._changed = []
        for name in self._learned:
            self._changed.append(index["weight", name])
            yield state.weights[name]
        for slot in held.slots:
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


class _Limit:
    """Refuses a forward of very many operations: to record it would hold up the stream."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._count += 1
        if self._count > _MOST_OPERATIONS:
            msg = f"a forward has more than {_MOST_OPERATIONS} operations"
            raise Unsupported(msg)
        return func(*args, **kwargs)


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

    def __init__(self, held: HeldTensors, given: Iterator[Tensor]) -> None:
        self.weights = {name: next(given) for name in held.parameters}
        self.memory: dict[str, dict[str, Tensor]] = {name: {} for name in held.parameters}
        for name, key in held.slots:
            self.memory[name][key] = next(given)
        self.buffers = {name: next(given).clone() for name in held.buffers}
        self.after: dict[str, Tensor] = {}
        self.gradients: dict[str, Tensor] = {}
        self.upward: list[Tensor] = []
        self.check: Tensor | float = 0.0
