"""The compiled way: samples of one structure, shape and dtype, in calls of code made for them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from streamflow.pipeline import trees
from streamflow.pipeline.admission import AdmittedBatch
from streamflow.pipeline.capture.held_tensors import Unsupported
from streamflow.pipeline.capture.recorder import record
from streamflow.pipeline.codegen.cache import Compiler
from streamflow.pipeline.codegen.libraries import find_compiler
from streamflow.pipeline.native.bound_stage import CompiledStage
from streamflow.pipeline.native.line import CompiledStages
from streamflow.pipeline.native.native import Native, RaisedError
from streamflow.pipeline.network.watching import Attributes
from streamflow.pipeline.options import Options
from streamflow.pipeline.routing.preference import Preference
from streamflow.pipeline.routing.trial import FEWEST
from streamflow.pipeline.routing.ways import Chunk
from streamflow.pipeline.running.worker import failure
from streamflow.pipeline.schedule import orders
from streamflow.pipeline.stages.stage import InFlight, Stage

MOST = 256
"""Samples of a call, at most: what is pressed for time waits for one."""

TRIED = 10
"""Samples that code is tried on."""

# Parameters of a network whose loops are shared by threads.
_LARGE = 2_000_000
# A forward of many samples reads the weights once, but it takes a while to change over to it: the
# numbers that are read meanwhile.
_CHANGE = 4_000_000


@dataclass(frozen=True, slots=True)
class Trial:
    """What code did with samples on copies of all that it writes.

    Attributes:
        found: Outputs and what would be written; None where nothing was learned.
        seconds: That it took.
    """

    found: list[Tensor] | None
    seconds: float


class CompiledWay:
    """A variant of the compiled way: code for samples of one kind, or what will be code.

    Attributes:
        inputs: What its samples' inputs are.
        shared: Samples in a row that are worth a forward of their own, if they are not learned.
        is_tried: Whether the code gives the same and is faster.
        failures: How often it gave something else.

    Args:
        stages: The eager stages.
        batch: Samples that it is for; the first is looked at.
        options: What the caller asked for.
        preference: Which is faster, one thread or several, where that is left open; all variants
            have it together.

    Raises:
        Unsupported: They cannot be compiled.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        batch: AdmittedBatch,
        options: Options,
        preference: Preference | None,
    ) -> None:
        loss = [options.loss] if isinstance(options.loss, nn.Module) else []
        self._attributes = Attributes(*(stage.module for stage in stages), *loss)
        if self._attributes.hooked:
            msg = f"{self._attributes.hooked} has hooks"
            raise Unsupported(msg)
        recordings = record(
            stages,
            _first(batch.inputs),
            _first(batch.targets),
            None if batch.weights is None else batch.weights[0],
            options.clip_norm,
        )
        for stage, recording in zip(stages, recordings, strict=True):
            if recording.noises:
                stage.randomness.is_used = True
        self._line = CompiledStages(
            [CompiledStage(s, r) for s, r in zip(stages, recordings, strict=True)]
        )
        self._stages = stages
        self._states = [stage.states for stage in stages if stage.states]
        self._options = options
        self._preference = preference
        self._entered = 0
        self.compiler = Compiler(recordings, _num_threads(stages))
        self.inputs = inputs_key(batch)
        self.shared = max(FEWEST, min(MOST, _CHANGE // max(_size(stages), 1)))
        self.is_tried = False
        self.failures = 0

    @property
    def fits(self) -> bool:
        """Whether modules and modes of torch are as they were when it was recorded."""
        return self._attributes.are_the_same()

    @property
    def is_ready(self) -> bool:
        """Whether the code is there."""
        return self._line.runner is not None

    def load(self) -> None:
        """Load the code of all stages, where it is on disk."""
        paths = self.compiler.find()
        if paths is not None:
            recordings = [stage.recording for stage in self._line.stages]
            self._line.runner = Native(
                recordings,
                orders(self._options.schedule, len(recordings)),
                paths,
                is_newest=self._options.backward == "newest",
            )

    def make(self, *, waits: bool) -> None:
        """Have the code made, which may take a while; ``compiler.failure`` says why it is not."""
        if find_compiler() is None:
            self.compiler.failure = "no C++ compiler; apt install g++"
        if self.compiler.failure:
            return
        self.compiler.start(is_urgent=waits)
        if waits:
            self.compiler.wait()
            self.load()

    def learn(self, batch: AdmittedBatch, first: int, stop: int) -> Chunk:
        """Predict samples of one stream and learn from them in one call.

        Raises:
            Unsupported: The code no longer fits; nothing of them has happened.
            StageError: A stage raised.
        """
        self._enter(batch, first)
        samples, is_learned = _samples(batch, first, stop)
        threads, start = self._threads(stop - first), time.perf_counter()
        try:
            chunk = self._line.learn(samples, is_learned, threads=threads)
        except RaisedError as error:
            number = batch.number + first + error.number
            raise failure(self._stages[error.stage], "compiled code", number, error) from error
        if self._preference is not None:
            seconds = time.perf_counter() - start
            self._preference.note(stop - first, seconds, threads=threads)
        for states in self._states:
            states.leave(batch.keys[first])
        self._entered = batch.number + stop
        return chunk

    def rehearse(
        self, batch: AdmittedBatch, first: int, stop: int, in_flight: InFlight
    ) -> Trial | Exception:
        """Learn samples as stages would that have this in flight, but on copies of all.

        Returns:
            What came of it, or what the code raised.
        """
        self._enter(batch, first)
        try:
            return Trial(*self._line.rehearse(*_samples(batch, first, stop), in_flight))
        except RaisedError as error:
            return error
        finally:
            self._line.release()

    def written(self) -> list[Tensor]:
        """Return what the code writes, as it is now."""
        return self._line.written()

    def release(self) -> InFlight:
        """Give up what is in flight."""
        in_flight = self._line.hand_over(self._entered)
        self._line.release()
        return in_flight

    def accept(self, in_flight: InFlight) -> None:
        """Go on with what another way had in flight.

        Raises:
            Unsupported: Its gradients are others than the code's.
        """
        self._line.take_over(in_flight)
        held = in_flight.held[0]
        self._entered = held[-1].sample.number + 1 if held else 0

    def close(self) -> None:
        """End what compiles and what runs."""
        self.compiler.close()
        self._line.close()

    def _enter(self, batch: AdmittedBatch, first: int) -> None:
        """Have the recurrent states of a stream in the buffers, and the code ready for them."""
        for states in self._states:
            states.enter(batch.keys[first])
        self._line.prepare()

    def _threads(self, count: int) -> bool:
        if self._preference is not None:
            return self._preference.choose(count)
        return self._options.executor == "threads"


def inputs_key(batch: AdmittedBatch) -> Any:
    """Describe the inputs of samples as far as code depends on them."""
    kinds = [(tensor.shape[1:], tensor.dtype) for tensor in trees.tensors(batch.inputs)]
    return str(trees.flatten(batch.inputs)[1]), kinds


def _samples(batch: AdmittedBatch, first: int, stop: int) -> tuple[list[Tensor], list[bool]]:
    """Return the tensors of some samples, and which of these are learned."""
    tensors = batch.tensors
    if stop - first < batch.count:
        tensors = [tensor[first:stop] for tensor in tensors]
    return [tensor.contiguous() for tensor in tensors], batch.is_learned[first:stop]


def _first(tree: Any) -> Any:
    return trees.map_tensors(lambda tensor: tensor[:1], tree)


def _num_threads(stages: Sequence[Stage]) -> int:
    """Return how many threads loops may use: sharing small ones costs more than it saves."""
    if len(stages) > 1:
        return 1
    return torch.get_num_threads() if _size(stages) >= _LARGE else 1


def _size(stages: Sequence[Stage]) -> int:
    return sum(p.numel() for stage in stages for p in stage.parameters.values())
