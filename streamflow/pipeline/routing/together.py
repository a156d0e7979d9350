"""The way together: samples that are not learned share a forward where that gives the same.

Nothing says that a network treats the rows of a batch one by one. So it is tried before its first
batch of a kind of samples, and again whenever its attributes have changed. A batch then runs as a
peek does: with the weights of the next forward, without a slot or a trace.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from streamflow.errors import OptionError, PartitionError, SampleError, StageError
from streamflow.pipeline import torch_private, trees
from streamflow.pipeline.admission import AdmittedBatch
from streamflow.pipeline.capture.held_tensors import Unsupported
from streamflow.pipeline.network.watching import Attributes
from streamflow.pipeline.routing.trial import FEWEST, Failed, Trial, Unequal, rows
from streamflow.pipeline.routing.ways import Chunk
from streamflow.pipeline.running.assembly import Assembly
from streamflow.pipeline.stages.stage import InFlight

logger = logging.getLogger("streamflow")

Peeks = Callable[[Sequence[Any]], list[Any]]
"""Predicts each of some inputs (n, ...), without a trace."""

_FAILURES = 3
# Shapes and the like; each costs a trial.
_MOST_KINDS = 64


def runs(
    is_learned: Sequence[bool], first: int, stop: int, *, quiet: int, lag: int
) -> Iterator[tuple[int, int, bool]]:
    """Part samples into those that may share a forward, and those between them.

    Args:
        is_learned: Which samples of a call are learned.
        first: Sample to begin with.
        stop: Sample to stop before.
        quiet: Samples directly before the first that were not learned.
        lag: Samples after a learned one that still see other weights than the next.

    Yields:
        Where each part begins and stops, and whether its samples may share a forward.
    """
    index = start = first
    while index < stop:
        end = _find(is_learned, True, index, stop)
        begin = index + max(0, lag - quiet)
        if end - begin >= FEWEST:
            if start < begin:
                yield start, begin, False
            yield begin, end, True
            start = end
        index, quiet = _find(is_learned, False, end, stop), 0
    if start < stop:
        yield start, stop, False


def count_quiet(is_learned: Sequence[bool], stop: int, quiet: int) -> int:
    """Count the samples directly before ``stop`` that are not learned, ``quiet`` before them."""
    count = _find(is_learned[:stop][::-1], True, 0, stop)
    return count if count < stop else stop + quiet


def _find(flags: Sequence[bool], wanted: bool, first: int, stop: int) -> int:
    try:
        return flags.index(wanted, first, stop)
    except ValueError:
        return stop


@dataclass(slots=True)
class _RowGroup:
    """Samples of one structure, shape and dtype.

    Attributes:
        attributes: Of the network when it was tried.
        rows: Most samples that share a forward; 0 where each has its own.
        failures: Batches that failed in a row.
    """

    attributes: Attributes
    rows: int
    failures: int = 0


class TogetherWay:
    """Predicts many samples in one forward where the network allows it.

    What is in flight stays as it is meanwhile: nothing of it changes a weight that these samples
    see.

    Args:
        assembly: The stages.
        peek: Predicts through all of them.
    """

    def __init__(self, assembly: Assembly, peek: Peeks) -> None:
        self._module, self._stages, self._peek = assembly.module, assembly.stages, peek
        self._groups: dict[Any, _RowGroup] = {}
        self._num_failed = 0
        self._is_refused = any(stage.states for stage in self._stages) or _compiles_itself(
            self._module
        )
        self._in_flight = InFlight.nothing(len(self._stages))

    def learn(self, batch: AdmittedBatch, first: int, stop: int) -> Chunk:
        """Predict samples that are not learned.

        Raises:
            Unsupported: Each needs a forward of its own.
        """
        outputs = self.predict(rows(batch.inputs, slice(first, stop)), stop - first, may_try=True)
        if outputs is None:
            msg = "each sample needs a forward of its own"
            raise Unsupported(msg)
        return outputs, [self._stages[0].updates.made] * (stop - first)

    def release(self) -> InFlight:
        """Give back what was in flight."""
        return self._in_flight

    def accept(self, in_flight: InFlight) -> None:
        """Keep what was in flight."""
        self._in_flight = in_flight

    @property
    def shares(self) -> bool:
        """Whether samples may share a forward, as far as is known."""
        groups = self._groups.values()
        return not self._is_refused and (not groups or any(group.rows for group in groups))

    def predict(self, inputs: Any, count: int, *, may_try: bool) -> Any:
        """Return the outputs of samples (n, ...) as the next forwards would give them.

        Args:
            inputs: Of the samples.
            count: How many they are.
            may_try: Whether no stage is at work, nor will be before it gets something.

        Returns:
            The outputs, owned by the caller; None where each sample needs a forward of its own.
        """
        group = None if self._is_refused else self._group(inputs, count, may_try)
        if group is None or not group.rows:
            return None
        bounds = [(first, min(first + group.rows, count)) for first in range(0, count, group.rows)]
        try:
            parts = self._peek([rows(inputs, slice(first, stop)) for first, stop in bounds])
        except (SampleError, OptionError, PartitionError):  # one by one tells which sample it is
            parts = []
        sizes = [stop - first for first, stop in bounds]
        if [_num_rows(part) for part in parts] != [{size} for size in sizes]:
            group.failures += 1
            if group.failures == _FAILURES:
                group.rows = 0
            return None
        group.failures = 0
        return trees.detach(trees.stack_samples(parts))

    def _group(self, inputs: Any, count: int, may_try: bool) -> _RowGroup | None:
        """Return what is known of such samples; find it out where that may be."""
        try:
            key = trees.shapes(rows(inputs, slice(0, 1)))
            group = self._groups.get(key)
            if group is not None and group.attributes.are_the_same():
                return group
            is_one_of_many = group is None and len(self._groups) == _MOST_KINDS
            if may_try and not is_one_of_many:
                return self._new_group(key, inputs, count)
        except StageError:
            raise
        except torch_private.Unavailable as error:
            torch_private.warn(str(error))
            self._refuse(str(error))
        except Exception as error:  # whatever speaks against a batch speaks against no sample
            self._refuse(f"{type(error).__name__}: {error}")
        return None

    def _new_group(self, key: Any, inputs: Any, count: int) -> _RowGroup | None:
        attributes = Attributes(self._module)
        if attributes.hooked:
            self._refuse(f"{attributes.hooked} has hooks")
            return None
        most = self._find_out(inputs, count)
        if most is None:
            return None
        if not attributes.are_the_same():
            self._refuse("the network changes its attributes")
            return None
        group = self._groups[key] = _RowGroup(attributes, most)
        return group

    def _find_out(self, inputs: Any, count: int) -> int | None:
        """Return how many samples may share a forward; None where a sample itself fails."""
        try:
            self._peek([rows(inputs, slice(0, 1))])  # then no stage has anything left to do
            return Trial(self._stages).count_rows(inputs, count)
        except Unequal as reason:
            logger.info("samples are predicted one by one: %s", reason)
            return 0
        except (SampleError, OptionError, PartitionError, Failed) as error:
            self._num_failed += 1
            if self._num_failed == _FAILURES:
                self._refuse(f"a trial failed: {error}")
            return None

    def _refuse(self, why: str) -> None:
        self._is_refused = True
        logger.info("samples are predicted one by one: %s", why)


def _compiles_itself(module: nn.Module) -> bool:
    """Say whether parts of a network are compiled for the shapes that they get."""
    return any(torch_private.compiles_itself(part) for part in module.modules())


def _num_rows(tree: Any) -> set[int]:
    """Return what the tensors have as leading dimension."""
    return {len(tensor) if tensor.dim() else 0 for tensor in trees.tensors(tree)}
