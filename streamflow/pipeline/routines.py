"""What compiled code looks like to those who call it."""

import math
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from streamflow.pipeline.inductor import Run
from streamflow.pipeline.recording import Layout


class Routine(Protocol):
    """Compiled code.

    Attributes:
        takes: What a call takes, in words.
    """

    takes: str

    def learn(
        self, held: list[Tensor], rows: Sequence[Tensor], outputs: Sequence[Tensor], count: int
    ) -> tuple[int, bool]:
        """Learn samples in a row.

        Args:
            held: What stays the same for all samples, with the constants; the same list as long
                as nothing replaces them.
            rows: Factors, inputs, targets and weights of the samples (count, ...).
            outputs: Where their outputs go (count, ...).
            count: How many.

        Returns:
            How many were taken, and whether the last of them was passed over since something was
            not finite; then the loop ends behind it.

        Raises:
            RuntimeError: A kernel raised.
        """


class Single:
    """Code that learns one sample, called again and again.

    Args:
        run: The code.
        layout: What it takes and returns.
    """

    takes = "one sample"

    def __init__(self, run: Run, layout: Layout) -> None:
        self._run, self._layout = run, layout

    def learn(
        self, held: list[Tensor], rows: Sequence[Tensor], outputs: Sequence[Tensor], count: int
    ) -> tuple[int, bool]:
        """Learn samples in a row; see :class:`Routine`."""
        layout = self._layout
        factors, *others = rows
        num_plain = layout.inputs + layout.targets
        for index in range(count):
            samples = [tensor[index : index + 1] for tensor in others[:num_plain]]
            weights = [tensor[index] for tensor in others[num_plain:]]
            *found, total = self._run([*held, factors[index], *samples, *weights])
            for place, tensor in zip(outputs, found, strict=True):
                place[index] = tensor[0]
            if layout.is_checked and not math.isfinite(total):
                return index + 1, True
        return count, False
