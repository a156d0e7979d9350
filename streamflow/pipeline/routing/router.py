"""When compiled code takes over from eager learning, and when it does not.

Nothing waits for a compiler unless it is asked to: samples are learned eagerly until code is there.
New code is tried on samples that are learned eagerly at the same time, on copies of all that it
writes; it takes over if its results are the same and it is faster.
"""

import logging
import math
import time
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from streamflow.pipeline import trees
from streamflow.pipeline.admission import Batch
from streamflow.pipeline.capture.held_tensors import Unsupported
from streamflow.pipeline.native.native import RaisedError
from streamflow.pipeline.options import Options
from streamflow.pipeline.routing.preference import Preference
from streamflow.pipeline.routing.trial import is_close
from streamflow.pipeline.routing.variants import (
    Kind,
    inputs_key,
    key_of,
    kind_of,
    quiet_length,
    run_length,
    tensors_of,
)
from streamflow.pipeline.running.assembly import Assembly
from streamflow.pipeline.stages.recurrence import Key

logger = logging.getLogger("streamflow")

Chunk = tuple[Any, list[int]]
"""Outputs of some samples, joined, and the updates that stage 0 had made before each."""

EAGER_SO_FAR = "eager so far"
"""While nothing is compiled, and nothing speaks against it."""

_EAGER_SAMPLES = 64
_MOST_KINDS = 4
_TRIALS = 3
_TRIED = 10
_ROUNDING = {torch.float64: 1e-8, torch.float32: 1e-3}


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds of eager learning before code is looked for, and before it is made.

    Who stops before has lost nothing, and who stops soon afterwards not much.
    """

    record: float = 1.0
    compile: float = 10.0


AT_ONCE = Patience(0.0, 0.0)
ONLY_FOUND = Patience(0.0, math.inf)


class Eager(Protocol):
    """The eager stages, as a batch meets them."""

    @property
    def shares(self) -> bool:
        """Whether samples that are not learned may share a forward, as far as is known."""

    def learn(self, first: int, stop: int) -> Chunk:
        """Learn samples of the batch from one to another."""

    def settle(self) -> None:
        """Wait until the stages are at rest."""


@dataclass(slots=True)
class _Call:
    """A batch on its way.

    Attributes:
        tensors: Of inputs, targets and weights.
        eager: The eager stages.
        number: Samples that entered before.
    """

    batch: Batch
    tensors: list[Tensor]
    eager: Eager
    number: int


class Switch:
    """Leads samples to compiled code or to the eager stages.

    Attributes:
        reason: Why nothing is compiled, or no more; empty while it is or may be.

    Args:
        assembly: The eager stages.
        options: What the caller asked for.
        patience: When code is looked for and made; None for what the options say.
        warns: Whether a warning says why learning stays eager.
    """

    def __init__(
        self,
        assembly: Assembly,
        options: Options,
        patience: Patience | None = None,
        *,
        warns: bool = True,
    ) -> None:
        self._warns = warns
        self._options = options
        self._patience = patience or (AT_ONCE if options.compile is True else Patience())
        self._look_at(assembly)
        self._kinds: dict[Any, Kind] = {}
        self._flying: Kind | None = None
        self._preference = Preference(len(assembly.stages))
        self._num_begun = 0
        self._eager_seconds = 0.0
        self.reason = ""
        if options.accumulate > 1:
            self._refuse("gradients are accumulated")

    @property
    def is_flying(self) -> bool:
        """Whether compiled code has samples in flight."""
        return self._flying is not None

    def process(self, batch: Batch, eager: Eager, number: int) -> Chunk:
        """Predict samples in order and learn from each, some of them eagerly.

        Args:
            batch: One sample or more.
            eager: The other way.
            number: Samples that entered before.
        """
        call = _Call(batch, tensors_of(batch), eager, number)
        parts: list[Any] = []
        steps: list[int] = []
        kind = self._kind(call, 0)
        if kind is not None:
            kind.is_prepared = False
        while len(steps) < len(batch):
            outputs, numbers = self._advance(call, len(steps), kind)
            parts.append(outputs)
            steps += numbers
            if kind is None or self.reason or not kind.is_tried:
                kind = self._kind(call, len(steps))
        return (parts[0] if len(parts) == 1 else trees.stack_samples(parts)), steps

    @property
    def status(self) -> str:
        """Say how samples are learned now."""
        if self.reason:
            return f"eager: {self.reason}"
        if any(kind.is_tried for kind in self._kinds.values()):
            where = "" if self._is_one else f", {'threads' if self._threads else 'inline'}"
            code = min(kind.compiler.code for kind in self._kinds.values() if kind.is_tried)
            return f"compiled: {code}{where}"
        is_busy = any(kind.compiler.is_busy for kind in self._kinds.values())
        return "eager while it compiles" if is_busy else EAGER_SO_FAR

    def drain(self, number: int) -> None:
        """Apply every gradient in flight, or hand it over; ``number`` samples entered."""
        if self._flying is None:
            return
        try:
            self._flying.line.prepare()
            self._flying.line.drain(threads=self._threads)
        except Unsupported as error:
            self.hand_over(number)
            self._refuse(str(error))
        else:
            self._land()

    def hand_over(self, number: int) -> None:
        """Give the eager stages what compiled code has in flight; ``number`` samples entered."""
        if self._flying is not None:
            self._flying.line.hand_over(self._workers, number)
            self._land()

    def follow(self, assembly: Assembly) -> None:
        """Go on with stages that were cut again."""
        self.close()
        self._kinds.clear()
        self._look_at(assembly)

    def _look_at(self, assembly: Assembly) -> None:
        self._stages, self._workers = assembly.stages, assembly.executor.workers
        self._states = [stage.states for stage in self._stages if stage.states]
        self._is_one = len(self._stages) == 1
        self._may_be_busy = assembly.executor.name != "inline" or not self._is_one

    def close(self) -> None:
        """End what is under way."""
        self._flying = None
        for kind in self._kinds.values():
            kind.close()

    def _land(self) -> None:
        self._flying = None
        self._release()

    @property
    def _threads(self) -> bool:
        if self._options.executor == "auto":
            return self._preference.threads
        return self._options.executor == "threads"

    def _advance(self, call: _Call, first: int, kind: Kind | None) -> Chunk:
        batch, tensors = call.batch, call.tensors
        quiet = quiet_length(batch, first)
        if kind is None or not kind.is_ready:
            at_once = max(quiet, _EAGER_SAMPLES if self._patience.compile else 1)
            return self._eagerly(call, first, min(first + at_once, len(batch)))
        count = run_length(batch, first, kind.shared if call.eager.shares else None)
        if not kind.is_tried:
            count = min(count, _TRIED)
        if not count or (not kind.is_tried and quiet >= count):  # a trial learns
            return self._eagerly(call, first, first + quiet)
        is_whole = count == len(batch)
        rows = tensors if is_whole else [tensor[first : first + count] for tensor in tensors]
        samples = [tensor.contiguous() for tensor in rows]
        is_learned = batch.is_learned[first : first + count]
        if self._flying is not None and kind is not self._flying:
            self.hand_over(call.number + first)
        try:
            if not kind.is_tried:
                return self._try(kind, call, samples, is_learned, first)
            self._enter(kind, batch.keys[first])
            if self._may_be_busy:
                self._begin_flight(kind, call.eager)
            found = self._learn(kind, samples, is_learned)
        except Unsupported as error:
            self._refuse(str(error))
            return self._eagerly(call, first, first + count)
        except RaisedError as error:
            error.number += first
            raise
        self._leave(batch.keys[first])
        return found

    def _enter(self, kind: Kind, key: Key) -> None:
        """Have the recurrent states of a stream in the buffers, and the code ready for them."""
        for states in self._states:
            states.enter(key)
            kind.is_prepared = False
        if not kind.is_prepared:
            kind.line.prepare()
            kind.is_prepared = True

    def _leave(self, key: Key) -> None:
        for states in self._states:
            states.leave(key)

    def _begin_flight(self, kind: Kind, eager: Eager) -> None:
        if self._flying is None:
            eager.settle()
            kind.line.take_over(self._workers)
            self._flying = None if self._is_one else kind

    def _learn(self, kind: Kind, samples: list[Tensor], is_learned: list[bool]) -> Chunk:
        if self._is_one or self._options.executor != "auto":
            return kind.line.learn(samples, is_learned, threads=self._threads)
        threads = self._preference.choose(len(is_learned))
        start = time.perf_counter()
        found = kind.line.learn(samples, is_learned, threads=threads)
        self._preference.note(len(is_learned), time.perf_counter() - start, threads=threads)
        return found

    def _try(
        self,
        kind: Kind,
        call: _Call,
        samples: list[Tensor],
        is_learned: list[bool],
        first: int,
    ) -> Chunk:
        """Learn eagerly, and see whether compiled code would have done the same, but faster."""
        call.eager.settle()
        self._enter(kind, call.batch.keys[first])
        try:
            found, seconds = kind.line.rehearse(samples, is_learned, self._workers)
        except RaisedError as error:
            self._refuse(f"compiled code raises: {error}")
            found, seconds = None, 0.0
        start = time.perf_counter()
        chunk = self._eagerly(call, first, first + len(is_learned))
        call.eager.settle()
        eager_seconds = time.perf_counter() - start
        if found is None:
            return chunk
        wanted = [*trees.tensors(chunk[0]), *kind.line.written()]
        if not all(map(_is_as_wanted, found, wanted)):
            kind.failures += 1
            if kind.failures == _TRIALS:
                self._refuse("compiled code gives other results")
        elif self._options.compile is True or seconds < eager_seconds:
            kind.is_tried = True
        else:
            self._refuse("compiled code is not faster")
        return chunk

    def _eagerly(self, call: _Call, first: int, stop: int) -> Chunk:
        self.hand_over(call.number + first)
        start = time.perf_counter()
        chunk = call.eager.learn(first, stop)
        if True in call.batch.is_learned[first:stop]:
            self._eager_seconds += time.perf_counter() - start
        self._release()
        return chunk

    def _release(self) -> None:
        for kind in self._kinds.values():
            kind.line.release()
            kind.is_prepared = False

    def _kind(self, call: _Call, first: int) -> Kind | None:
        """Return what is known of such samples; begin to compile where that is due."""
        if self.reason:
            return None
        try:
            return self._current(call, first)
        except Unsupported as error:
            self._refuse(str(error))
            return None
        except Exception as error:  # whatever keeps code from being made keeps nobody from learning
            self._refuse(f"{type(error).__name__}: {error}")
            return None

    def _current(self, call: _Call, first: int) -> Kind | None:
        batch = call.batch
        key = key_of(batch, call.tensors)
        kind = self._kinds.get(key)
        flying = self._flying
        is_quiet = True not in batch.is_learned
        if is_quiet and self._kinds:  # labels and weights do not matter
            inputs = inputs_key(batch)
            tried = [other for other in self._kinds.values() if other.is_tried]
            fitting = (k for k in (flying, *tried, kind) if k is not None and k.inputs == inputs)
            kind = next(fitting, None)
        if kind is not None and not kind.attributes.are_the_same():
            self.hand_over(call.number + first)
            kind.close()
            self._kinds = {k: other for k, other in self._kinds.items() if other is not kind}
            kind = None
        if kind is None and self._is_due and not is_quiet:
            call.eager.settle()  # while something is recorded, no thread may use torch
            kind = self._kinds[key] = self._begin(batch)
        return None if kind is None else self._settled(kind)

    @property
    def _is_due(self) -> bool:
        # The optimizer makes its own state at its first step.
        if not all(stage.updates.made for stage in self._stages):
            return False
        return self._eager_seconds >= self._patience.record

    def _begin(self, batch: Batch) -> Kind:
        self._num_begun += 1
        if self._num_begun > _MOST_KINDS:
            msg = "samples or attributes of modules are of too many kinds"
            raise Unsupported(msg)
        return kind_of(self._stages, batch, self._options)

    def _settled(self, kind: Kind) -> Kind:
        """Load code that has become ready, or have it made where that is due."""
        if not kind.is_ready:
            kind.load(self._options)
        is_due = self._eager_seconds >= self._patience.compile
        if not kind.is_ready and is_due and not kind.compiler.is_busy:
            kind.make(self._options, waits=self._options.compile is True)
            if kind.compiler.failure:
                self._refuse(kind.compiler.failure)
        return kind

    def _refuse(self, why: str) -> None:
        if self.reason:
            return
        self.reason = why.strip().splitlines()[0]
        level = logging.WARNING if self._warns else logging.DEBUG
        logger.log(level, "%s learns eagerly: %s", self._stages[0].name, self.reason)


def why_eager(assembly: Assembly, options: Options) -> str:
    """Say why nothing will be compiled, or return nothing."""
    if options.compile is False:
        return "compile is False"
    if options.loss is None:
        return "nothing is learned"
    if options.backward == "stashed" and len(assembly.stages) > 1:
        return "weights are stashed"
    if assembly.clips_network:
        return "gradients are clipped by their norm over all stages"
    devices = [stage.lane.device for stage in assembly.stages]
    other = next((device for device in devices if device.type != "cpu"), None)
    return "" if other is None else f"its device is {other}"


def _is_as_wanted(found: Tensor, wanted: Tensor) -> bool:
    return is_close(found, wanted, _ROUNDING.get(wanted.dtype, 0.1))
