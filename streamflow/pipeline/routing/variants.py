"""Samples of one kind, and the code for them: recorded, compiled, loaded."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from streamflow.pipeline import trees
from streamflow.pipeline.admission import Batch
from streamflow.pipeline.capture.recorder import record
from streamflow.pipeline.codegen.cache import Compiler
from streamflow.pipeline.codegen.libraries import find_compiler
from streamflow.pipeline.native.bound_stage import CompiledStage
from streamflow.pipeline.native.line import CompiledStages
from streamflow.pipeline.native.native import Native
from streamflow.pipeline.network.watching import Attributes
from streamflow.pipeline.options import Options
from streamflow.pipeline.routing.trial import FEWEST
from streamflow.pipeline.schedule import orders
from streamflow.pipeline.stages.stage import Stage

MOST = 256
"""Samples of a call, at most: what is pressed for time waits for one."""

# Parameters of a network whose loops are shared by threads.
_LARGE = 2_000_000
# A forward of many samples reads the weights once, but it takes a while to change over to it: the
# numbers that are read meanwhile.
_CHANGE = 4_000_000


@dataclass(slots=True)
class Kind:
    """Samples of one shape and dtype, for which there is code, or will be.

    Attributes:
        line: The stages as far as they are compiled.
        attributes: Of the network, as the code was made for them.
        inputs: What its samples' inputs are.
        shared: Samples in a row that are worth a forward of their own, if they are not learned.
        is_tried: Whether the code gives the same and is faster.
        failures: How often it gave something else.
        is_prepared: Whether nothing else was at the stages since the last call.
    """

    line: CompiledStages
    compiler: Compiler
    attributes: Attributes
    inputs: Any
    shared: int
    is_tried: bool = False
    failures: int = 0
    is_prepared: bool = False

    @property
    def is_ready(self) -> bool:
        """Whether the code is there."""
        return self.line.runner is not None

    def load(self, options: Options) -> None:
        """Load the code of all stages, where it is on disk."""
        paths = self.compiler.find()
        if paths is None:
            return
        recordings = [stage.recording for stage in self.line.stages]
        self.line.runner = Native(
            recordings,
            orders(options.schedule, len(recordings)),
            paths,
            is_newest=options.backward == "newest",
        )

    def make(self, options: Options, *, waits: bool) -> None:
        """Have the code made, which may take a while; ``compiler.failure`` says why it is not."""
        if find_compiler() is None:
            self.compiler.failure = "no C++ compiler; apt install g++"
        if self.compiler.failure:
            return
        self.compiler.start(is_urgent=waits)
        if waits:
            self.compiler.wait()
            self.load(options)

    def close(self) -> None:
        """End what compiles and what runs."""
        self.compiler.close()
        self.line.close()


def kind_of(stages: Sequence[Stage], batch: Batch, options: Options) -> Kind:
    """Record how samples like those of a batch, whose first is looked at, are learned.

    Raises:
        Unsupported: They cannot be compiled.
    """
    loss = [options.loss] if isinstance(options.loss, nn.Module) else []
    attributes = Attributes(*(stage.module for stage in stages), *loss)
    recordings = record(
        stages,
        _first(batch.inputs),
        _first(batch.targets),
        None if batch.weights is None else batch.weights[0],
        options.clip_norm,
    )
    pairs = list(zip(stages, recordings, strict=True))
    for stage, recording in pairs:
        if recording.noises:
            stage.randomness.is_used = True
    line = CompiledStages([CompiledStage(stage, recording) for stage, recording in pairs])
    compiler = Compiler(recordings, _num_threads(stages))
    shared = max(FEWEST, min(MOST, _CHANGE // max(_size(stages), 1)))
    return Kind(line, compiler, attributes, inputs_key(batch), shared)


def tensors_of(batch: Batch) -> list[Tensor]:
    """Return the tensors of inputs, targets and weights."""
    weights = [] if batch.weights is None else [batch.weights]
    targets = [] if batch.targets is None else trees.tensors(batch.targets)
    return [*trees.tensors(batch.inputs), *targets, *weights]


def key_of(batch: Batch, tensors: list[Tensor]) -> Any:
    """Describe what samples of a batch have in common with others that the same code takes."""
    structures = [
        None if isinstance(tree, Tensor | None) else str(trees.flatten(tree)[1])
        for tree in (batch.inputs, batch.targets)
    ]
    kinds = [(tensor.shape[1:], tensor.dtype) for tensor in tensors]
    return (*structures, batch.targets is None, batch.weights is None, *kinds)


def inputs_key(batch: Batch) -> Any:
    """Describe the inputs alone."""
    kinds = [(tensor.shape[1:], tensor.dtype) for tensor in trees.tensors(batch.inputs)]
    return str(trees.flatten(batch.inputs)[1]), kinds


def quiet_length(batch: Batch, first: int) -> int:
    """Count the samples from here that are not learned."""
    with suppress(ValueError):
        return batch.is_learned.index(True, first) - first
    return len(batch) - first


def run_length(batch: Batch, first: int, shared: int | None) -> int:
    """Count the samples from here that a call takes: of one stream.

    Args:
        batch: The samples.
        first: Where the call begins.
        shared: So many in a row that are not learned are left to a forward that they share.
    """
    stop = min(first + MOST, len(batch))
    if shared is not None:
        place = bytes(batch.is_learned[first:stop]).find(bytes(shared))
        stop = stop if place < 0 else first + place
    keys = batch.keys[first:stop]
    if keys.count(batch.keys[first]) == len(keys):
        return len(keys)
    return next(place for place, key in enumerate(keys) if key != keys[0])


def _first(tree: Any) -> Any:
    return trees.map_tensors(lambda tensor: tensor[:1], tree)


def _num_threads(stages: Sequence[Stage]) -> int:
    """Return how many threads loops may use: sharing small ones costs more than it saves."""
    if len(stages) > 1:
        return 1
    return torch.get_num_threads() if _size(stages) >= _LARGE else 1


def _size(stages: Sequence[Stage]) -> int:
    return sum(p.numel() for stage in stages for p in stage.parameters.values())
