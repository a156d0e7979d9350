"""One stage: a run of layers, and the mathematics of its forward and backward."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from streamflow.errors import PartitionError
from streamflow.pipeline import torch_private, trees
from streamflow.pipeline.stages.buffers import Buffers
from streamflow.pipeline.stages.lanes import Lane
from streamflow.pipeline.stages.messages import Gradient, Sample
from streamflow.pipeline.stages.randomness import Randomness
from streamflow.pipeline.stages.recurrence import Key, States
from streamflow.pipeline.stages.updates import Updates


@dataclass(slots=True)
class Held:
    """A sample between its forward and its backward in one stage.

    Attributes:
        values: What the stage was called with.
        outputs: What it returned, with the graph, where the graph is kept.
        version: State of weights and buffers in which the graph is valid.
        weights: The weights of the forward, where they are stashed.
        buffers: The buffers as the forward saw them.
        random: The random state as the forward saw it.
    """

    sample: Sample
    values: tuple[Any, ...]
    outputs: Any = None
    version: int = -1
    weights: dict[str, Tensor] | None = None
    buffers: dict[str, Tensor] | None = None
    random: Tensor | None = None


@dataclass(frozen=True, slots=True)
class InFlight:
    """What is on its way through stages at rest; one entry for each stage, the first one first.

    Attributes:
        held: Samples between forward and backward, the oldest first.
        gradients: Those that came for the oldest of them.
    """

    held: list[list[Held]]
    gradients: list[list[Gradient]]

    @classmethod
    def nothing(cls, num_stages: int) -> Self:
        """Return that nothing is in flight."""
        return cls([[] for _ in range(num_stages)], [[] for _ in range(num_stages)])


def call(
    module: nn.Module,
    values: tuple[Any, ...],
    tensors: dict[str, Tensor] | None = None,
    *,
    is_first: bool,
) -> Any:
    """Call ``module`` on ``values``, with ``tensors`` in the place of its own of the same names.

    The first stage gets what the caller passed: a tuple or dict is its arguments.
    """
    args, kwargs = values, {}
    if is_first and isinstance(values[0], dict):
        args, kwargs = (), values[0]
    elif is_first and isinstance(values[0], tuple):
        (args,) = values
    if tensors:
        return functional_call(module, tensors, args, kwargs)
    return module(*args, **kwargs)


class Stage:
    """Runs forwards and backwards of one stage, in whatever order it is told.

    Args:
        module: The stage's layers; called with the values that cross the cut before it.
        index: Which stage it is, from zero.
        name: First module of the stage, for messages.
        lag: Samples between a sample's forward and backward; at 0 the graph of the forward serves.
        may_keep: Keep graphs although the lag may be larger, and use those that are still valid.
        backward: Input and weights at which a gradient is taken.
        loss: Of the last stage: (output, target) or (output) to a scalar.
        has_target: Whether the loss takes a target.
        updates: What becomes of gradients.
        states: The stage's recurrent state.
        randomness: Where dropout and the like draw from.
        lane: Where the stage computes.
        allow_nonfinite: Apply gradients that are not finite instead of skipping them.
        defers_updates: Leave updates to somebody who sees all stages.
        shared_buffers: Buffers that other stages use, too.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        index: int,
        name: str,
        lag: int,
        may_keep: bool,
        backward: str,
        loss: Callable[..., Tensor] | None,
        has_target: bool,
        updates: Updates,
        states: States,
        randomness: Randomness,
        lane: Lane,
        allow_nonfinite: bool,
        defers_updates: bool,
        shared_buffers: Sequence[str],
    ) -> None:
        self.module = module
        self.index = index
        self.name = name
        self.updates = updates
        self.states = states
        self.randomness = randomness
        self.lane = lane
        self.parameters = updates.parameters
        self.buffers = Buffers(module)
        self._has_states, self._has_buffers = bool(states), bool(self.buffers)
        self.allow_nonfinite = allow_nonfinite
        self.defers_updates = defers_updates
        self._shared_buffers = shared_buffers
        self._loss = loss
        self._has_target = has_target
        self._lag = lag
        self._keeps_graph = lag == 0 or may_keep
        self._backward = backward
        self._newest: Held | None = None
        self._version = 0
        self._writes_inputs = False
        self._is_training = module.training
        self._stash: dict[str, Tensor] = {}
        self._stash_version = -1

    def __repr__(self) -> str:
        return f"<Stage {self.index} ({self.name}): {self.updates.made} updates>"

    @property
    def has_loss(self) -> bool:
        """Whether it is the last stage of a pipeline that learns."""
        return self._loss is not None

    def replace(self, module: nn.Module, whole: nn.Module) -> None:
        """Take another cut of the same layers; nothing may be in flight."""
        self.module = module
        self.buffers = Buffers(module)
        self._has_buffers = bool(self.buffers)
        self.states.bind(module, whole)
        self.randomness.is_used = None  # dropout depends on the mode
        self._newest = None

    def resume(self, held: Sequence[Held]) -> None:
        """Go on behind something else that ran samples, of which these are in flight."""
        self.buffers.forget()
        self._version += 1
        self._newest = held[-1] if held else None

    def recalled(
        self,
        sample: Sample,
        values: tuple[Any, ...],
        buffers: dict[str, Tensor],
        random: Tensor | None,
    ) -> Held:
        """Return a sample in flight that something else forwarded.

        Args:
            sample: The sample.
            values: What the stage was called with.
            buffers: Those that a forward writes, as they were before.
            random: The random state before, where it matters.
        """
        own = {**self.buffers.clone(), **buffers}
        state = self.randomness.state if random is None else random
        return Held(sample, values, buffers=own, random=state)

    def forward(self, sample: Sample, values: tuple[Any, ...]) -> tuple[Any, Held]:
        """Run the stage on a new sample; return detached outputs and what backward needs."""
        if self.index == 0:
            sample.steps = self.updates.made
        if self.module.training is not self._is_training:
            self._is_training = self.module.training
            self.randomness.is_used = None  # dropout begins or ends
        keeps = sample.is_learned and self._keeps_graph
        held = Held(sample, values)
        if self._has_states:
            self.states.enter(sample.key)
        if self._lag:
            self._remember(held)
        with torch.set_grad_enabled(keeps):
            inputs = self._leaves(values) if keeps else values
            if self.randomness.is_used is False:
                outputs = self._call(inputs)
            else:
                outputs = self.randomness.draw(lambda: self._call(inputs))
        if self._has_states:
            self.states.leave(sample.key)
        if self._has_buffers:
            self._version += 1
            self.buffers.detach()
        if keeps:
            held.values, held.outputs, held.version = inputs, outputs, self._version
            outputs = trees.detach(outputs)
        return outputs, held

    def backward(self, held: Held, gradient: list[Tensor | None]) -> list[Tensor | None] | None:
        """Offer the gradient of one sample; return it with respect to the inputs.

        ``gradient`` holds one entry per float tensor of the stage's outputs; the stage with the
        loss ignores it. Returns None, and offers nothing, where loss or gradient is not finite.
        """
        inputs, outputs = self._graph(held)
        weights = self.parameters if held.weights is None else held.weights
        roots, seeds = self._roots(held.sample, outputs, gradient)
        wanted = [w for w in weights.values() if w.requires_grad]
        leaves = trees.floats(inputs) if self.index else []
        found: tuple[Tensor | None, ...] = (None,) * (len(wanted) + len(leaves))
        if roots and found:
            found = torch.autograd.grad(roots, wanted + leaves, seeds, allow_unused=True)
        if not self.allow_nonfinite and not _are_finite(
            *(roots if self._loss is not None else ()), *found
        ):
            self.updates.skipped += 1
            return None
        self.updates.offer(found[: len(wanted)])
        return list(found[len(wanted) :])

    def update(self) -> None:
        """Apply the gradient that the last backward offered, or those of its whole group."""
        if not self.defers_updates and self.updates.accept():
            self.apply()

    def apply(self) -> None:
        """Update the weights."""
        self.updates.apply()
        self._version += 1

    def peek(self, values: tuple[Any, ...], key: Key) -> Any:
        """Run the stage as its next forward would, and leave no trace."""
        copied = trees.map_tensors(torch.Tensor.clone, values)
        versions = [torch_private.version_of(tensor) for tensor in trees.tensors(copied)]
        tensors = {**self.buffers.clone(), **self.states.of(key)}
        with torch.no_grad():
            outputs = self.randomness.probe(lambda: self._call(copied, tensors))
        self._check_shared(tensors)
        if [torch_private.version_of(tensor) for tensor in trees.tensors(copied)] != versions:
            self._check_aliases(values)
            self._writes_inputs = True
        return outputs

    def _check_shared(self, tensors: dict[str, Tensor]) -> None:
        """Raise where this stage writes a buffer that others use: when, would be chance."""
        own = self.buffers.current()
        for name in self._shared_buffers:
            if torch_private.version_of(tensors[name]) or not torch.equal(tensors[name], own[name]):
                msg = (
                    f"stages: expected one stage to use a buffer that is written, got {name} "
                    f"written in stage {self.index} and used in another; cut elsewhere"
                )
                raise PartitionError(msg)

    def _check_aliases(self, values: tuple[Any, ...]) -> None:
        """Raise where a write into one value would be a write into another, too."""
        storages = [t.untyped_storage().data_ptr() for t in trees.tensors(values)]
        if self.index and len(set(storages)) < len(storages):
            msg = (
                f"stages: expected values before {self.name} of which none is written and a view "
                "of another, got two that share memory; cut elsewhere, or clone() one of them"
            )
            raise PartitionError(msg)

    def _leaves(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        leaves: tuple[Any, ...] = trees.as_leaves(values) if self.index else values
        return leaves

    def _call(self, values: tuple[Any, ...], tensors: dict[str, Tensor] | None = None) -> Any:
        if self._writes_inputs:
            values = trees.map_tensors(torch.Tensor.clone, values)
        return call(self.module, values, tensors, is_first=self.index == 0)

    def _remember(self, held: Held) -> None:
        """Note everything that the sample's backward needs to run the stage again."""
        held.buffers = self.buffers.snapshot()
        held.random = self.randomness.state
        if self._backward == "stashed" and held.sample.is_learned:
            held.weights = self._stashed()
        self._newest = held

    def _stashed(self) -> dict[str, Tensor]:
        if self._stash_version != self.updates.made:
            self._stash = {
                name: parameter.detach().clone().requires_grad_(parameter.requires_grad)
                for name, parameter in self.parameters.items()
            }
            self._stash_version = self.updates.made
        return self._stash

    def _graph(self, held: Held) -> tuple[tuple[Any, ...], Any]:
        """Return inputs and outputs at which to differentiate, connected by a graph."""
        if held.version == self._version:
            held.weights = None
            return held.values, held.outputs
        source = held
        if self._backward == "newest":
            assert self._newest is not None
            source = self._newest
        assert source.buffers is not None
        assert source.random is not None
        buffers = source.buffers
        if self._backward == "newest":  # it may serve again, and a run writes into its buffers
            buffers = {name: buffer.clone() for name, buffer in buffers.items()}
        tensors = {**buffers, **(held.weights or {})}
        with torch.enable_grad():
            inputs = self._leaves(source.values)
            if self.randomness.is_used is False:
                outputs = self._call(inputs, tensors)
            else:
                outputs = self.randomness.replay(lambda: self._call(inputs, tensors), source.random)
        return inputs, outputs

    def _roots(
        self, sample: Sample, outputs: Any, gradient: list[Tensor | None]
    ) -> tuple[list[Tensor], list[Tensor | None] | None]:
        """Return what to differentiate and the gradients that are already known there."""
        if self._loss is not None:
            loss = self.loss(sample, outputs)
            return ([loss] if loss.requires_grad else []), None
        pairs = [
            (output, grad)
            for output, grad in zip(trees.floats(outputs), gradient, strict=True)
            if output.requires_grad and grad is not None
        ]
        return [output for output, _ in pairs], [grad for _, grad in pairs]

    def loss(self, sample: Sample, outputs: Any) -> Tensor:
        """Compute the loss that the sample is learned by."""
        assert self._loss is not None
        with torch.enable_grad():
            arguments = (outputs, sample.target) if self._has_target else (outputs,)
            loss = self._loss(*arguments)
            return loss if sample.weight is None else loss * sample.weight


def is_finite(tensor: Tensor) -> bool:
    """Say whether every element is finite; the sum decides quickly in the usual case."""
    if tensor.is_complex():
        return bool(tensor.isfinite().all())
    return math.isfinite(tensor.sum()) or bool(tensor.isfinite().all())


def _are_finite(*tensors: Tensor | None) -> bool:
    return all(tensor is None or is_finite(tensor.detach()) for tensor in tensors)
