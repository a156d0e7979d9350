"""When compiled code takes over from eager learning, and when it does not.

Nothing waits for a compiler unless it is asked to: samples are learned eagerly until code is there.
New code is tried on samples that are learned eagerly at the same time, on copies of all that it
writes; it takes over if its results are the same and it is faster.
"""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from streamflow.pipeline import inductor, trees
from streamflow.pipeline.admission import Batch
from streamflow.pipeline.assembly import Assembly
from streamflow.pipeline.attributes import Attributes
from streamflow.pipeline.compiled import CompiledStage
from streamflow.pipeline.compiler import Compiler
from streamflow.pipeline.options import Options
from streamflow.pipeline.recording import Unsupported, record
from streamflow.pipeline.stage import Stage

logger = logging.getLogger("streamflow")

Chunk = tuple[Any, list[int]]
"""Outputs of some samples, joined, and the updates that stage 0 had made before each."""

Eager = Callable[[int, int], Chunk]
"""Learns samples of a batch from one to another."""

EAGER_SO_FAR = "eager so far"
"""While nothing is compiled, and nothing speaks against it."""

MOST = 256
"""Samples of a call, at most: what is pressed for time waits for one."""

# Eager learning before code is looked for, and before it is made: who stops before has lost
# nothing, and who stops soon afterwards not much.
_EAGER_SECONDS = 1.0
_COMPILE_SECONDS = 10.0
_EAGER_SAMPLES = 64
_MOST_KINDS = 4
_TRIALS = 3
_TRIED = 10
# Parameters of a network whose loops are shared by threads.
_LARGE = 2_000_000


@dataclass(slots=True)
class _Kind:
    """Samples of one shape and dtype, for which there is code, or will be.

    Attributes:
        attributes: Of the network, as the code was made for them.
        is_tried: Whether the code gives the same and is faster.
        failures: How often it gave something else.
        is_prepared: Whether nothing else was at the stage since the last call.
    """

    compiled: CompiledStage
    compiler: Compiler
    attributes: Attributes
    is_tried: bool = False
    failures: int = 0
    is_prepared: bool = False


class Switch:
    """Leads samples to compiled code or to the eager stage.

    Attributes:
        reason: Why nothing is compiled, or no more; empty while it is or may be.
    """

    def __init__(self, stage: Stage, options: Options) -> None:
        self._stage = stage
        self._options = options
        self._kinds: dict[Any, _Kind] = {}
        self._num_begun = 0
        self._eager_seconds = 0.0
        self.reason = ""
        if options.accumulate > 1:
            self._refuse("gradients are accumulated")

    def process(self, batch: Batch, eager: Eager) -> Chunk:
        """Predict samples in order and learn from each; ``eager`` does some the other way."""
        tensors = _tensors(batch)
        parts: list[Any] = []
        steps: list[int] = []
        kind = self._kind(batch, tensors)
        if kind is not None:
            kind.is_prepared = False
        while len(steps) < len(batch):
            outputs, numbers = self._advance(batch, tensors, len(steps), kind, eager)
            parts.append(outputs)
            steps += numbers
            if kind is None or self.reason or not kind.is_tried:
                kind = self._kind(batch, tensors)
        return (parts[0] if len(parts) == 1 else trees.stack_samples(parts)), steps

    @property
    def status(self) -> str:
        """Say how samples are learned now."""
        if self.reason:
            return f"eager: {self.reason}"
        routines = [kind.compiled.routine for kind in self._kinds.values() if kind.is_tried]
        if routines and routines[-1] is not None:
            return f"compiled, {routines[-1].takes} a call"
        is_busy = any(kind.compiler.is_busy for kind in self._kinds.values())
        return "eager while it compiles" if is_busy else EAGER_SO_FAR

    def close(self) -> None:
        """End what is under way."""
        for kind in self._kinds.values():
            kind.compiler.close()

    def _advance(
        self, batch: Batch, tensors: list[Tensor], first: int, kind: _Kind | None, eager: Eager
    ) -> Chunk:
        count = run_length(batch, first)
        if kind is None or kind.compiled.routine is None or not count:
            at_once = 1 if count and self._options.compile is True else _EAGER_SAMPLES
            return self._eagerly(first, min(first + at_once, len(batch)), eager)
        if not kind.is_tried:
            count = min(count, _TRIED)
        is_whole = count == len(batch)
        rows = tensors if is_whole else [tensor[first : first + count] for tensor in tensors]
        samples = [tensor.contiguous() for tensor in rows]
        if self._stage.states:
            self._stage.states.enter(batch.keys[first])
            kind.is_prepared = False
        try:
            if not kind.is_prepared:
                kind.compiled.prepare()
                kind.is_prepared = True
            if not kind.is_tried:
                return self._try(kind, samples, count, first, eager)
            found = self._learn(kind, samples, count)
        except Unsupported as error:
            self._refuse(str(error))
            return self._eagerly(first, first + count, eager)
        if self._stage.states:
            self._stage.states.leave(batch.keys[first])
        return found

    def _learn(self, kind: _Kind, samples: list[Tensor], count: int) -> Chunk:
        made = self._stage.updates.made
        outputs, done = kind.compiled.learn(samples, count)
        structure = kind.compiled.recording.structure
        tree = outputs[0] if structure.is_leaf() else pytree.tree_unflatten(outputs, structure)
        return tree, list(range(made, made + done))

    def _try(
        self, kind: _Kind, samples: list[Tensor], count: int, first: int, eager: Eager
    ) -> Chunk:
        """Learn eagerly, and see whether compiled code would have done the same, but faster."""
        one_by_one, _ = kind.compiled.rehearse(samples, count, 1)
        together, seconds = kind.compiled.rehearse(samples, count, count)
        start = time.perf_counter()
        chunk = self._eagerly(first, first + count, eager)
        eager_seconds = time.perf_counter() - start
        if one_by_one is None or together is None:
            return chunk
        wanted = [*trees.tensors(chunk[0]), *kind.compiled.written()]
        if not all(map(_is_close, one_by_one + together, wanted + wanted)):
            kind.failures += 1
            if kind.failures == _TRIALS:
                self._refuse("compiled code gives other results")
        elif self._options.compile is True or seconds < eager_seconds:
            kind.is_tried = True
        else:
            self._refuse("compiled code is not faster")
        return chunk

    def _eagerly(self, first: int, stop: int, eager: Eager) -> Chunk:
        start = time.perf_counter()
        chunk = eager(first, stop)
        self._eager_seconds += time.perf_counter() - start
        for kind in self._kinds.values():
            kind.compiled.release()
            kind.is_prepared = False
        return chunk

    def _kind(self, batch: Batch, tensors: list[Tensor]) -> _Kind | None:
        """Return what is known of such samples; begin to compile where that is due."""
        if self.reason:
            return None
        key = _key(batch, tensors)
        kind = self._kinds.get(key)
        try:
            return self._current(batch, key, kind)
        except Exception as error:  # whatever keeps code from being made keeps nobody from learning
            self._refuse(f"{type(error).__name__}: {error}")
            return None

    def _current(self, batch: Batch, key: Any, kind: _Kind | None) -> _Kind | None:
        if kind is not None and not kind.attributes.are_the_same():
            kind.compiler.close()
            del self._kinds[key]
            kind = None
        if kind is None and self._is_due and any(batch.is_learned):
            kind = self._begin(batch)
            if kind is not None:
                self._kinds[key] = kind
        return None if kind is None else self._settled(kind)

    @property
    def _is_due(self) -> bool:
        # The optimizer makes its own state at its first step.
        if not self._stage.updates.made:
            return False
        return self._options.compile is True or self._eager_seconds >= _EAGER_SECONDS

    def _begin(self, batch: Batch) -> _Kind | None:
        self._num_begun += 1
        if self._num_begun > _MOST_KINDS:
            self._refuse("samples or attributes of modules are of too many kinds")
            return None
        loss = self._options.loss
        parts = [self._stage.module, *([loss] if isinstance(loss, nn.Module) else [])]
        try:
            if self._stage.randomness.is_used:
                msg = "the network draws random numbers"
                raise Unsupported(msg)
            attributes = Attributes(*parts)
            recording = record(
                self._stage,
                _first(batch.inputs),
                _first(batch.targets),
                None if batch.weights is None else batch.weights[0],
                self._options.clip_norm,
            )
        except Unsupported as error:
            self._refuse(str(error))
            return None
        compiled = CompiledStage(self._stage, recording)
        return _Kind(compiled, Compiler(recording, _num_threads(self._stage)), attributes)

    def _settled(self, kind: _Kind) -> _Kind:
        """Load code that has become ready, or have it made where that is due."""
        if kind.compiled.routine is None:
            kind.compiled.routine = kind.compiler.find()
        waits = self._options.compile is True
        is_due = waits or self._eager_seconds >= _COMPILE_SECONDS
        if kind.compiled.routine is not None or not is_due or kind.compiler.is_busy:
            return kind
        if inductor.find_compiler() is None:
            kind.compiler.failure = "no C++ compiler; apt install g++"
        if not kind.compiler.failure:
            kind.compiler.start(is_urgent=waits)
            if waits:
                kind.compiler.wait()
                kind.compiled.routine = kind.compiler.find()
        if kind.compiler.failure:
            self._refuse(kind.compiler.failure)
        return kind

    def _refuse(self, why: str) -> None:
        if self.reason:
            return
        self.reason = why.strip().splitlines()[0]
        logger.warning("%s learns eagerly: %s", self._stage.name, self.reason)


def why_eager(assembly: Assembly, options: Options) -> str:
    """Say why nothing will be compiled, or return nothing."""
    if options.compile is False:
        return "compile is False"
    if options.loss is None:
        return "nothing is learned"
    if len(assembly.stages) > 1 or assembly.executor.name != "inline":
        return "only a single stage in the caller's thread is compiled"
    device = assembly.stages[0].lane.device
    return f"its device is {device}" if device.type != "cpu" else ""


def _num_threads(stage: Stage) -> int:
    """Return how many threads loops may use: sharing small ones costs more than it saves."""
    size = sum(parameter.numel() for parameter in stage.parameters.values())
    return torch.get_num_threads() if size >= _LARGE else 1


def run_length(batch: Batch, first: int) -> int:
    """Count the samples from here that are learned, of one stream; as many as a call takes."""
    stop = min(first + MOST, len(batch))
    with suppress(ValueError):
        stop = batch.is_learned.index(False, first, stop)
    keys = batch.keys[first:stop]
    if keys.count(batch.keys[first]) == len(keys):
        return len(keys)
    return next(place for place, key in enumerate(keys) if key != keys[0])


def _tensors(batch: Batch) -> list[Tensor]:
    weights = [] if batch.weights is None else [batch.weights]
    targets = [] if batch.targets is None else trees.tensors(batch.targets)
    return [*trees.tensors(batch.inputs), *targets, *weights]


def _key(batch: Batch, tensors: list[Tensor]) -> Any:
    structures = [
        None if isinstance(tree, Tensor | None) else str(trees.flatten(tree)[1])
        for tree in (batch.inputs, batch.targets)
    ]
    kinds = [(tensor.shape[1:], tensor.dtype) for tensor in tensors]
    return (*structures, batch.targets is None, batch.weights is None, *kinds)


def _first(tree: Any) -> Any:
    return trees.map_tensors(lambda tensor: tensor[:1], tree)


def _is_close(found: Tensor, wanted: Tensor) -> bool:
    if not wanted.is_floating_point():
        return torch.equal(found, wanted)
    relative = {torch.float64: 1e-8, torch.float32: 1e-3}.get(wanted.dtype, 0.1)
    scale = float(wanted.abs().max()) if wanted.numel() else 0.0
    return torch.allclose(found, wanted, rtol=relative, atol=relative * scale)
