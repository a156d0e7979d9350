"""The router: which way samples go, and what is in flight from one way to another.

Theory of operation. A call is parted into runs of samples, and each run goes one way:

    call ──▶ choose ──▶ eager      one by one through the stages; whatever else cannot be
               │ ├────▶ compiled   one call of code made for such samples
               │ └────▶ together   samples that are not learned share one forward
               ╰◀── next run

Samples in flight, forwarded and still to be run backward, belong to one way at a time. Where the
next run goes another way, the router takes them from the one (`release`) and gives them to the
other (`accept`); nobody else does, and no way knows of another. So an update is applied by whoever
holds its sample then, and results do not depend on how samples were routed.

What no way can do to the end breaks the pipeline: some stages may have learned what others have
not.
"""

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from streamflow.errors import OptionError, PartitionError, SampleError, StageError
from streamflow.pipeline import trees
from streamflow.pipeline.admission import AdmittedBatch
from streamflow.pipeline.capture.held_tensors import Unsupported
from streamflow.pipeline.options import Options
from streamflow.pipeline.routing.compiled import MOST, TRIED, CompiledWay
from streamflow.pipeline.routing.eager import EagerWay
from streamflow.pipeline.routing.together import TogetherWay, count_quiet, runs
from streamflow.pipeline.routing.trial import FEWEST
from streamflow.pipeline.routing.variants import Patience, Variants
from streamflow.pipeline.routing.ways import Chunk, Way
from streamflow.pipeline.running.assembly import Assembly
from streamflow.pipeline.running.timeline import Event
from streamflow.pipeline.running.worker import unlike
from streamflow.pipeline.stages.recurrence import Key

_REFUSALS = SampleError, OptionError, PartitionError


class Router:
    """Leads samples through the stages.

    Attributes:
        assembly: The stages and what runs them.
        failure: What broke it.

    Args:
        assembly: As above.
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
        self.assembly = assembly
        self.failure: StageError | None = None
        self._eager = EagerWay(assembly)
        self._together: TogetherWay | None = None
        if options.compile is not False:
            self._together = TogetherWay(assembly, self._peek_batches)
        self._variants = Variants(assembly, options, patience, warns=warns)
        self._way: Way = self._eager
        # Samples after a learned one that see other weights than those that follow, at most.
        self._lag = 2 * (len(assembly.stages) - 1)
        self._quiet = self._lag
        self._is_cut = len(assembly.stages) > 1
        self._is_watched = False

    def __repr__(self) -> str:
        return f"<Router: {type(self._way).__name__}, {self.learning}>"

    @property
    def learning(self) -> str:
        """How samples are learned now, and why."""
        return self._variants.status

    def process(self, batch: AdmittedBatch) -> Chunk:
        """Predict the samples of a batch in order and learn from them.

        Raises:
            StageError: A stage raised, or the outputs differ in shape; the pipeline is broken.
        """
        try:
            if self._is_cut:
                self._follow_modes()
            variant: CompiledWay | None = None
            parts: list[tuple[int, Chunk]] = []
            first = 0
            while first < batch.count:
                if variant is None or not variant.is_tried or self._variants.reason:
                    variant = self._variant(batch)
                way, stop = self._choose(batch, first, variant)
                parts.append((first, self._learn(way, batch, first, stop)))
                first = stop
            chunk = parts[0][1] if len(parts) == 1 else self._joined(batch, parts)
        except BaseException as error:
            self._break(error)
            raise
        if batch.is_learned[-1]:
            self._quiet = 0
        else:
            self._quiet = count_quiet(batch.is_learned, batch.count, self._quiet)
        return chunk

    def infer(self, inputs: Any, keys: Sequence[Key]) -> Any:
        """Predict each of some samples (n, ...) as if it were the next one.

        Raises:
            OptionError: The network cannot learn sample by sample.
            SampleError: A sample does not fit the network.
        """
        count = len(keys)
        if self._together is not None and count >= FEWEST:
            is_idle = self.assembly.executor.name == "inline" or self._quiet >= self._lag
            outputs = self._together.predict(inputs, count, may_try=is_idle)
            if outputs is not None:
                return outputs
        return trees.stack_samples(self.peek(trees.split_samples(inputs, count), keys))

    def peek(self, rows: Sequence[Any], keys: Sequence[Key]) -> list[Any]:
        """Predict each sample as if it were the next one.

        Raises:
            OptionError: The network cannot learn sample by sample.
            SampleError: A sample does not fit the network.
        """
        try:
            if self._is_cut:
                self._follow_modes()
            return self._eager.peek(rows, keys)
        except _REFUSALS:
            raise
        except BaseException as error:
            self._break(error)
            raise

    def drain(self) -> None:
        """Apply every gradient in flight.

        Raises:
            StageError: A stage raised; the pipeline is broken.
        """
        try:
            self._go(self._eager)
            self._eager.drain()
        except BaseException as error:
            self._break(error)
            raise
        self._quiet = self._lag

    def watch(self, record: Callable[[Event], None] | None) -> None:
        """Tell ``record`` of every action from now on, and have all samples go one by one."""
        self._is_watched = record is not None
        self.assembly.executor.watch(record)

    def close(self) -> None:
        """Stop what runs the stages, and what compiles."""
        self._way = self._eager
        self._variants.close()
        self.assembly.executor.close()

    def _variant(self, batch: AdmittedBatch) -> CompiledWay | None:
        if self._is_watched or self._variants.reason:
            return None
        return self._variants.find(batch, self._way, self._come_to_rest)

    def _choose(
        self, batch: AdmittedBatch, first: int, variant: CompiledWay | None
    ) -> tuple[Way, int]:
        """Return the way of the samples that come next, and where it ends."""
        at_once = sys.maxsize if self._is_watched else self._variants.at_once
        if variant is not None and variant.is_ready:
            may_share = self._together is not None and self._together.shares
            count = batch.run_length(first, MOST, variant.shared if may_share else None)
            quiet = batch.count_quiet(first)
            if not variant.is_tried:
                count = min(count, TRIED)
            if count and (variant.is_tried or quiet < count):  # a trial learns
                return variant, first + count
            stop = first + quiet
        elif batch.count - first <= at_once:
            stop = batch.count
        else:
            stop = min(first + max(batch.count_quiet(first), at_once), batch.count)
        if self._together is None or self._is_watched or stop - first < FEWEST:
            return self._eager, stop
        quiet = count_quiet(batch.is_learned, first, self._quiet)
        parts = runs(batch.is_learned, first, stop, quiet=quiet, lag=self._lag)
        _, stop, may_share = next(parts)
        return (self._together if may_share else self._eager), stop

    def _learn(self, way: Way, batch: AdmittedBatch, first: int, stop: int) -> Chunk:
        """Let samples go their way, or the eager one where that one cannot take them."""
        try:
            if isinstance(way, CompiledWay) and not way.is_tried:
                return self._try(way, batch, first, stop)
            self._go(way)
            if way is not self._eager:
                return way.learn(batch, first, stop)
        except Unsupported as error:
            if isinstance(way, CompiledWay):
                self._variants.refuse(str(error))
            self._go(self._eager)
        start = time.perf_counter()
        chunk = self._eager.learn(batch, first, stop)
        if True in batch.is_learned[first:stop]:
            self._variants.note(time.perf_counter() - start)
        return chunk

    def _try(self, variant: CompiledWay, batch: AdmittedBatch, first: int, stop: int) -> Chunk:
        """Learn eagerly, and see whether compiled code would have done the same, but faster."""
        self._come_to_rest()
        trial = variant.rehearse(batch, first, stop, self.assembly.executor.in_flight)
        start = time.perf_counter()
        chunk = self._eager.learn(batch, first, stop)
        self._eager.settle()
        self._variants.judge(variant, trial, chunk, time.perf_counter() - start)
        return chunk

    def _go(self, way: Way) -> None:
        """Give a way what is in flight.

        Raises:
            Unsupported: It cannot go on with that; it is where it was.
        """
        if way is self._way:
            return
        before, in_flight = self._way, self._way.release()
        try:
            way.accept(in_flight)
        except Unsupported:
            before.accept(in_flight)
            raise
        self._way = way

    def _come_to_rest(self) -> None:
        self._go(self._eager)
        self._eager.settle()

    def _follow_modes(self) -> None:
        """Cut the network again where training and evaluation mode changed: a trace follows one."""
        if self.assembly.has_new_modes():
            self.drain()
            self.assembly.cut_again()
            self._variants.forget()

    def _peek_batches(self, batches: Sequence[Any]) -> list[Any]:
        return self.peek(batches, [None] * len(batches))

    def _joined(self, batch: AdmittedBatch, parts: Sequence[tuple[int, Chunk]]) -> Chunk:
        values = [outputs for _, (outputs, _) in parts]
        wanted, *others = (trees.shapes(_first(outputs)) for outputs in values)
        for (place, _), shapes in zip(parts[1:], others, strict=True):
            if shapes != wanted:
                place_of_first = batch.number, wanted
                last = self.assembly.stages[-1]
                raise unlike(last, place_of_first, (batch.number + place, shapes))
        steps = [step for _, (_, numbers) in parts for step in numbers]
        return trees.stack_samples(values), steps

    def _break(self, error: BaseException) -> None:
        if self.failure is None:
            self.failure = error if isinstance(error, StageError) else _interrupted(error)
            self.close()


def _first(outputs: Any) -> Any:
    return trees.map_tensors(lambda tensor: tensor[:1], outputs)


def _interrupted(error: BaseException) -> StageError:
    broken = StageError(
        f"pipeline: expected to finish the call, got {type(error).__name__}; "
        "build a new pipeline, this one is broken"
    )
    broken.__cause__ = error
    return broken
