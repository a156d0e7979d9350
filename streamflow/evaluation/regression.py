"""Mean absolute error, root mean squared error and R², beside the last target and the mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from streamflow.evaluation.measure import ROWS
from streamflow.evaluation.moments import Floats, Moments


class Regression:
    """Measures predictions of a number, or of an array of them.

    - mae: mean absolute error.
    - rmse: root of the mean squared error.
    - r2: 1 - mean squared error / population variance of the scored targets (Draper and Smith,
      1998, "Applied Regression Analysis", section 1.3); undefined while these are all equal.

    Of an array errors are averaged over its elements, and so is the variance (scikit-learn's
    ``variance_weighted``). ``running_mean`` predicts the mean of the targets so far.
    """

    rows = ("model", "no_change", "running_mean")
    headline = "mae"

    def __init__(self) -> None:
        self._moments = Moments()

    def encode(self, values: Sequence[Any]) -> Floats:
        """Return numbers, or flattened arrays (N, D), not a number for none.

        Raises:
            ValueError: A value is no number or array of numbers, or not as large as the others.
        """
        is_known = [value is not None for value in values]
        if all(is_known):
            return _flattened(values)
        if not any(is_known):
            return np.full((len(values), 1), np.nan)
        known = self.encode([value for value in values if value is not None])
        encoded = np.full((len(values), known.shape[1]), np.nan)
        encoded[is_known] = known
        return encoded

    def score(
        self, targets_ND: Floats, predictions_ND: Floats, previous_ND: Floats, scores: Any
    ) -> Floats:
        """Score samples, then learn their mean."""
        mean_ND, _ = self._moments.absorb(targets_ND)
        errors_RND = np.stack([predictions_ND, previous_ND, mean_ND]) - targets_ND
        absolute_RN = np.abs(errors_RND).mean(axis=2)
        squared_RN = (errors_RND * errors_RND).mean(axis=2)
        return np.concatenate([absolute_RN, squared_RN, targets_ND.T])

    def norm(self) -> TargetSpread:
        """Return the spread of no targets yet."""
        return TargetSpread()

    def metrics(self, means: Floats, norm_R: Floats) -> dict[str, Floats]:
        """Return mean absolute error, root mean squared error and R² of each row."""
        mae_R, mse_R = means[:ROWS], means[ROWS:]
        return {"mae": mae_R, "rmse": np.sqrt(mse_R), "r2": 1 - mse_R / norm_R}

    def state(self) -> dict[str, Any]:
        """Return the statistics of the targets so far."""
        return {"moments": self._moments.state() if self._moments.count else None}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over the statistics."""
        moments = state["moments"]
        self._moments = Moments() if moments is None else Moments.restored(moments)


def _flattened(values: Sequence[Any]) -> Floats:
    try:
        return np.asarray(values, dtype=np.float64).reshape(len(values), -1)
    except ValueError:  # a number and a list of one number among them mean the same
        return np.array([np.ravel(value) for value in values], dtype=np.float64)


class TargetSpread:
    """The squared error of the best constant: the variance of the targets."""

    def __init__(self) -> None:
        self._moments = Moments()

    def absorb(self, lower_MN: Floats) -> None:
        """Take targets in."""
        self._moments.absorb(lower_MN.T)

    def value(self) -> Floats:
        """Return the variance, the same for each row, (R,)."""
        return np.full(ROWS, self._moments.variance_F.mean())

    def state(self) -> dict[str, Any]:
        """Return the statistics of the targets scored."""
        return {"moments": self._moments.state() if self._moments.count else None}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over the statistics."""
        moments = state["moments"]
        self._moments = Moments() if moments is None else Moments.restored(moments)
