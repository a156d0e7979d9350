"""Samples that wait and are not learned, predicted in one forward where that gives the same.

Nothing says that a network treats the rows of a batch one by one. So it is tried before its first
batch of a kind of samples, and again whenever its attributes have changed. A batch then runs as a
peek does: with the weights of the next forward, without a slot or a trace.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from streamflow.errors import OptionError, PartitionError, SampleError, StageError
from streamflow.pipeline import torch_private, trees
from streamflow.pipeline.network.watching import Attributes
from streamflow.pipeline.routing.trial import FEWEST, Failed, Trial, Unequal, rows
from streamflow.pipeline.stages.stage import Stage

logger = logging.getLogger("streamflow")

Peeks = Callable[[Sequence[Any]], list[Any]]
"""Predicts each of some inputs (n, ...), without a trace."""

_FAILURES = 3
# Shapes and the like; each costs a trial.
_MOST_KINDS = 64


def runs(
    is_learned: Sequence[bool], first: int, stop: int, *, quiet: int, lag: int
) -> list[tuple[int, int, bool]]:
    """Part samples into those that may share a forward, and those between them.

    Args:
        is_learned: Which samples of a call are learned.
        first: Sample to begin with.
        stop: Sample to stop before.
        quiet: Samples directly before the first that were not learned.
        lag: Samples after a learned one that still see other weights than the next.

    Returns:
        Where each part begins and stops, and whether its samples may share a forward.
    """
    found: list[tuple[int, int, bool]] = []
    index = start = first
    while index < stop:
        end = _find(is_learned, True, index, stop)
        begin = index + max(0, lag - quiet)
        if end - begin >= FEWEST:
            if start < begin:
                found.append((start, begin, False))
            found.append((begin, end, True))
            start = end
        index, quiet = _find(is_learned, False, end, stop), 0
    if start < stop:
        found.append((start, stop, False))
    return found


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
class _Kind:
    """Samples of one structure, shape and dtype.

    Attributes:
        attributes: Of the network when it was tried.
        rows: Most samples that share a forward; 0 where each has its own.
        failures: Batches that failed in a row.
    """

    attributes: Attributes
    rows: int
    failures: int = 0


class Batching:
    """Predicts many samples in one forward where the network allows it.

    Args:
        module: The caller's network.
        stages: What it was cut into.
        peek: Predicts through all stages.
    """

    def __init__(self, module: nn.Module, stages: Sequence[Stage], peek: Peeks) -> None:
        self._module, self._stages, self._peek = module, stages, peek
        self._kinds: dict[Any, _Kind] = {}
        self._num_failed = 0
        self._is_refused = any(stage.states for stage in stages) or _compiles_itself(module)

    @property
    def shares(self) -> bool:
        """Whether samples may share a forward, as far as is known."""
        kinds = self._kinds.values()
        return not self._is_refused and (not kinds or any(kind.rows for kind in kinds))

    def predict(self, inputs: Any, count: int, *, may_try: bool) -> Any:
        """Return the outputs of samples (n, ...) as the next forwards would give them.

        Args:
            inputs: Of the samples.
            count: How many they are.
            may_try: Whether no stage is at work, nor will be before it gets something.

        Returns:
            The outputs, owned by the caller; None where each sample needs a forward of its own.
        """
        kind = None if self._is_refused else self._kind(inputs, count, may_try)
        if kind is None or not kind.rows:
            return None
        bounds = [(first, min(first + kind.rows, count)) for first in range(0, count, kind.rows)]
        try:
            parts = self._peek([rows(inputs, slice(first, stop)) for first, stop in bounds])
        except (SampleError, OptionError, PartitionError):  # one by one tells which sample it is
            parts = []
        sizes = [stop - first for first, stop in bounds]
        if [_num_rows(part) for part in parts] != [{size} for size in sizes]:
            kind.failures += 1
            if kind.failures == _FAILURES:
                kind.rows = 0
            return None
        kind.failures = 0
        return trees.detach(trees.stack_samples(parts))

    def _kind(self, inputs: Any, count: int, may_try: bool) -> _Kind | None:
        """Return what is known of such samples; find it out where that may be."""
        try:
            key = trees.shapes(rows(inputs, slice(0, 1)))
            kind = self._kinds.get(key)
            if kind is not None and kind.attributes.are_the_same():
                return kind
            is_one_of_many = kind is None and len(self._kinds) == _MOST_KINDS
            if may_try and not is_one_of_many:
                return self._new_kind(key, inputs, count)
        except StageError:
            raise
        except torch_private.Unavailable as error:
            torch_private.warn(str(error))
            self._refuse(str(error))
        except Exception as error:  # whatever speaks against a batch speaks against no sample
            self._refuse(f"{type(error).__name__}: {error}")
        return None

    def _new_kind(self, key: Any, inputs: Any, count: int) -> _Kind | None:
        attributes = Attributes(self._module)
        most = self._find_out(inputs, count)
        if most is None:
            return None
        if not attributes.are_the_same():
            self._refuse("the network changes its attributes")
            return None
        kind = self._kinds[key] = _Kind(attributes, most)
        return kind

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
