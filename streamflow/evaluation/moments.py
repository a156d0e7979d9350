"""Running mean and variance, the same to the last bit however the rows are cut into calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

Floats: TypeAlias = "np.ndarray[tuple[int, ...], np.dtype[np.float64]]"


class Moments:
    """Count, mean and population variance of each of some columns, row after row.

    The sum of squares follows Welford (1962), "Note on a method for calculating corrected sums of
    squares and products", Technometrics 4(3). The mean is that of the distances from the first row,
    from their sum: this needs no loop, and loses no digits to a large offset. A column that never
    changes has exactly its value as mean and exactly zero as variance.

    Shapes: N rows, F columns.

    Args:
        width: How many columns there are; of no matter before there is a row.
    """

    def __init__(self, width: int = 1) -> None:
        self.count = 0
        self._origin_F: Floats = np.zeros(width)
        self._sum_F: Floats = np.zeros(width)
        self._squares_F: Floats = np.zeros(width)

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> Moments:
        """Return moments that go on where those were whose `state` this is."""
        moments = cls()
        moments.count = state["count"]
        moments._origin_F = np.array(state["origin"])
        moments._sum_F = np.array(state["sum"])
        moments._squares_F = np.array(state["squares"])
        return moments

    def __repr__(self) -> str:
        return f"<Moments of {len(self._sum_F)} columns after {self.count} rows>"

    @property
    def mean_F(self) -> Floats:
        """The mean of each column; of no rows, zero."""
        return self._origin_F + self._sum_F / max(self.count, 1)

    @property
    def variance_F(self) -> Floats:
        """The population variance of each column; of no rows, zero."""
        return self._squares_F / max(self.count, 1)

    def state(self) -> dict[str, Any]:
        """Return copies of what the next rows need to know."""
        return {
            "count": self.count,
            "origin": self._origin_F.copy(),
            "sum": self._sum_F.copy(),
            "squares": self._squares_F.copy(),
        }

    def absorb(self, rows_NF: Floats) -> tuple[Floats, Floats]:
        """Take rows in, and return mean and variance as they were before each of them.

        Both are (N, F). Before the first row of all they are that row itself, and zero.
        """
        if not len(rows_NF):
            return rows_NF, rows_NF
        if not self.count:
            self._origin_F = rows_NF[0].copy()
            self._sum_F, self._squares_F = np.zeros((2, rows_NF.shape[1]))
        counts_N1 = (self.count + np.arange(len(rows_NF), dtype=np.float64))[:, None]
        divisors_N1 = np.maximum(counts_N1, 1)
        sums_NF = running_sums(self._sum_F, rows_NF - self._origin_F)
        means_NF = self._origin_F + sums_NF[:-1] / divisors_N1
        distances_NF = rows_NF - means_NF
        squares_NF = running_sums(
            self._squares_F, distances_NF * distances_NF * (counts_N1 / (counts_N1 + 1))
        )
        self.count += len(rows_NF)
        self._sum_F, self._squares_F = sums_NF[-1].copy(), squares_NF[-1].copy()
        return means_NF, squares_NF[:-1] / divisors_N1


def running_sums(start_F: Floats, rows_NF: Floats) -> Floats:
    """Return ``start_F`` and the sums after each row, (N + 1, F), added strictly in order."""
    return np.add.accumulate(np.concatenate([start_F[None], rows_NF]), axis=0)
