"""The variants of the compiled way: which there are, and when one is recorded, made and trusted.

Nothing waits for a compiler unless it is asked to: samples are learned eagerly until code is there.
New code is tried on samples that are learned eagerly at the same time, on copies of all that it
writes; it takes over if its results are the same and it is faster.

    seconds of eager learning   0 ──── record ──────────────── compile ─────────▶
                                eager  look for code on disk   make it            try it, use it
"""

import logging
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from streamflow.errors import StageError
from streamflow.pipeline import trees
from streamflow.pipeline.admission import AdmittedBatch
from streamflow.pipeline.capture.held_tensors import Unsupported
from streamflow.pipeline.options import Options
from streamflow.pipeline.routing.compiled import CompiledWay, Trial, inputs_key
from streamflow.pipeline.routing.preference import Preference
from streamflow.pipeline.routing.trial import is_close
from streamflow.pipeline.routing.ways import Chunk
from streamflow.pipeline.running.assembly import Assembly

logger = logging.getLogger("streamflow")

EAGER_SO_FAR = "eager so far"
"""While nothing is compiled, and nothing speaks against it."""

_EAGER = 64
_MOST = 4
_TRIALS = 3
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


class Variants:
    """Knows the code for each kind of sample, and why there is none.

    Attributes:
        reason: Why nothing is compiled, or no more; empty while it is or may be.

    Args:
        assembly: The eager stages.
        options: What the caller asked for.
        patience: When code is looked for and made; None for what the options say.
        warns: Whether a warning says why learning stays eager.
    """

    def __init__(
        self, assembly: Assembly, options: Options, patience: Patience | None, *, warns: bool
    ) -> None:
        self._assembly = assembly
        self._options = options
        self._patience = patience or (AT_ONCE if options.compile is True else Patience())
        self._warns = warns
        num_stages = len(assembly.stages)
        is_open = options.executor == "auto" and num_stages > 1
        self._preference = Preference(num_stages) if is_open else None
        self._found: dict[Any, CompiledWay] = {}
        self._num_begun = 0
        self._eager_seconds = 0.0
        self.reason = _why_eager(assembly, options)
        if not self.reason and options.accumulate > 1:
            self.refuse("gradients are accumulated")

    @property
    def at_once(self) -> int:
        """Samples that are learned eagerly before the next look for code."""
        if self.reason:
            return sys.maxsize
        return _EAGER if self._patience.compile else 1

    @property
    def status(self) -> str:
        """Say how samples are learned now."""
        if self.reason:
            return f"eager: {self.reason}"
        codes = [way.compiler.code for way in self._found.values() if way.is_tried]
        if codes:
            code = min(codes)  # "library calls", the slower of the two, comes first
            if len(self._assembly.stages) == 1:
                return f"compiled: {code}"
            if self._preference is None:
                return f"compiled: {code}, {self._options.executor}"
            return f"compiled: {code}, {'threads' if self._preference.threads else 'inline'}"
        is_busy = any(way.compiler.is_busy for way in self._found.values())
        return "eager while it compiles" if is_busy else EAGER_SO_FAR

    def find(
        self, batch: AdmittedBatch, current: object, come_to_rest: Callable[[], None]
    ) -> CompiledWay | None:
        """Return the way for such samples; record them, or have code made, where that is due.

        Args:
            batch: The samples.
            current: The way that has samples in flight.
            come_to_rest: Hands those to the eager stages, which are then at rest.
        """
        if self.reason or not (self._found or self._is_due):
            return None
        try:
            way = self._known(batch, current)
            if way is not None and not way.fits:
                come_to_rest()
                way.close()
                self._found = {k: other for k, other in self._found.items() if other is not way}
                way = None
            if way is None and self._is_due and True in batch.is_learned:
                come_to_rest()  # while something is recorded, no thread may use torch
                way = self._begin(batch)
            return None if way is None else self._settled(way)
        except Unsupported as error:
            self.refuse(str(error))
        except StageError:
            raise
        except Exception as error:  # whatever keeps code from being made keeps nobody from learning
            self.refuse(f"{type(error).__name__}: {error}")
        return None

    def note(self, seconds: float) -> None:
        """Take note of what eager learning took."""
        self._eager_seconds += seconds

    def judge(
        self, way: CompiledWay, trial: Trial | Exception, chunk: Chunk, seconds: float
    ) -> None:
        """See whether code did what eager learning did, and faster.

        Args:
            way: The code.
            trial: What it did.
            chunk: What eager learning gave.
            seconds: That it took.
        """
        if isinstance(trial, Exception):
            self.refuse(f"compiled code raises: {trial}")
        elif trial.found is None:
            return
        elif not all(map(_is_as_wanted, trial.found, [*trees.tensors(chunk[0]), *way.written()])):
            way.failures += 1
            if way.failures == _TRIALS:
                self.refuse("compiled code gives other results")
        elif self._options.compile is True or trial.seconds < seconds:
            way.is_tried = True
        else:
            self.refuse("compiled code is not faster")

    def refuse(self, why: str) -> None:
        """Learn eagerly from now on."""
        if self.reason:
            return
        self.reason = why.strip().splitlines()[0]
        level = logging.WARNING if self._warns else logging.DEBUG
        name = self._assembly.stages[0].name
        logger.log(level, "%s learns eagerly: %s", name, self.reason)

    def forget(self) -> None:
        """Begin anew with stages that were cut again."""
        self.close()
        self._found.clear()

    def close(self) -> None:
        """End what is under way."""
        for way in self._found.values():
            way.close()

    def _known(self, batch: AdmittedBatch, current: object) -> CompiledWay | None:
        way = self._found.get(_key(batch))
        if self._found and True not in batch.is_learned:  # labels and weights do not matter
            inputs = inputs_key(batch)
            ways = [other for other in self._found.values() if other.is_tried]
            ways.sort(key=lambda other: other is not current)
            return next((other for other in ways if other.inputs == inputs), way)
        return way

    @property
    def _is_due(self) -> bool:
        # The optimizer makes its own state at its first step.
        is_begun = all(stage.updates.made for stage in self._assembly.stages)
        return is_begun and self._eager_seconds >= self._patience.record

    def _begin(self, batch: AdmittedBatch) -> CompiledWay:
        self._num_begun += 1
        if self._num_begun > _MOST:
            msg = "samples or attributes of modules are of too many kinds"
            raise Unsupported(msg)
        way = CompiledWay(self._assembly.stages, batch, self._options, self._preference)
        self._found[_key(batch)] = way
        return way

    def _settled(self, way: CompiledWay) -> CompiledWay:
        """Load code that has become ready, or have it made where that is due."""
        if not way.is_ready:
            way.load()
        is_due = self._eager_seconds >= self._patience.compile
        if not way.is_ready and is_due and not way.compiler.is_busy:
            way.make(waits=self._options.compile is True)
            if way.compiler.failure:
                self.refuse(way.compiler.failure)
        return way


def _key(batch: AdmittedBatch) -> Any:
    """Describe what samples have in common with others that the same code takes."""
    structures = [
        None if isinstance(tree, Tensor | None) else str(trees.flatten(tree)[1])
        for tree in (batch.inputs, batch.targets)
    ]
    kinds = [(tensor.shape[1:], tensor.dtype) for tensor in batch.tensors]
    return (*structures, batch.targets is None, batch.weights is None, *kinds)


def _why_eager(assembly: Assembly, options: Options) -> str:
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
