"""What is measured of each sample, and how metrics are made of it: the contract of the tasks.

Model and baselines are scored alike, as three rows of a table with a column for each sample. Two
blocks of such rows hold what is averaged; the rows below, whatever a task needs for its norm: the
score that comes without skill, against which Cohen's kappa and R² measure.

Shapes: N samples, D outputs of each, R = 3 rows, M rows of the whole table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, Protocol

from streamflow.evaluation.moments import Floats

ROWS = 3
AVERAGED = 2 * ROWS

Metrics = dict[str, float | None]
"""Metrics by name; none where undefined."""


class Norm(Protocol):
    """What the lower rows of the table say about scoring without skill."""

    def absorb(self, lower_MN: Floats) -> None:
        """Take samples in."""
        ...

    def value(self) -> Floats:
        """Return the score without skill of each row, (R,)."""
        ...

    def state(self) -> dict[str, Any]:
        """Return copies of all that later samples need, as `contracts.Processor` does."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned."""
        ...


class Measure(Protocol):
    """A task: what is measured, and the baseline that knows the targets so far."""

    rows: tuple[str, str, str]
    """Names of the rows: the model, the no-change baseline, the other baseline."""

    headline: str
    """Name of the metric that is the mean of the first block."""

    def encode(self, values: Sequence[Any]) -> Floats:
        """Return targets or predictions as numbers (N, D), not a number where there is none."""
        ...

    def score(
        self, targets_ND: Floats, predictions_ND: Floats, previous_ND: Floats, scores: Any
    ) -> Floats:
        """Score samples, each before its target is learned by the baseline, and learn them.

        Args:
            targets_ND: All of them known.
            predictions_ND: What the model predicted.
            previous_ND: What the no-change baseline predicted; not a number for the first of all.
            scores: Probabilities in class order (N, C), if there are any.

        Returns:
            The table's columns for these samples, (M, N).
        """
        ...

    def norm(self) -> Norm:
        """Return a norm that has seen nothing yet."""
        ...

    def metrics(self, means: Floats, norm_R: Floats) -> dict[str, Floats]:
        """Return the metrics by name, each (R,), from the means of the two blocks, (2R,)."""
        ...

    def state(self) -> dict[str, Any]:
        """Return copies of what the baseline knows, as `streamflow.contracts.Processor` does."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned."""
        ...


def plain(number: Any) -> float | None:
    """Return a number as plain data, none if it is not finite."""
    return float(number) if isfinite(number) else None
