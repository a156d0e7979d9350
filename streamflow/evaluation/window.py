"""What is kept of the newest scores: a window of single ones, and a series of their means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from streamflow.evaluation.moments import Floats

LONGEST_SERIES = 500
FIRST_STRIDE = 10


class ScoreWindow:
    """The newest columns of a growing table, and enough before them to look back a little.

    Shapes: M rows of the table, N columns of it, which are samples.

    Args:
        size: How many samples `last` returns.
        reserve: How many may be appended at once, and `last` look back.
    """

    def __init__(self, size: int, reserve: int) -> None:
        self.size = size
        self._reserve = reserve
        self._table: Floats = np.empty((0, 0))
        self._stop = 0

    def append(self, columns_MN: Floats) -> None:
        """Take in at most ``reserve`` samples."""
        rows, count = columns_MN.shape
        if not self._stop:
            self._table = np.empty((rows, self.size + self._reserve))
        if self._stop + count > self._table.shape[1]:
            self._table[:, : self.size] = self.last()
            self._stop = self.size
        self._table[:, self._stop : self._stop + count] = columns_MN
        self._stop += count

    def last(self, *, before: int = 0) -> Floats:
        """Return the last ``size`` samples, or all there are, before the newest ``before``."""
        stop = self._stop - before
        return self._table[:, max(stop - self.size, 0) : stop]

    def state(self) -> dict[str, Any]:
        """Return the last samples: the next ones are appended before anyone looks back."""
        return {"table": self.last().copy()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over the samples."""
        table: Floats = state["table"]
        self._stop = 0
        if table.size:
            self.append(table[:, -self.size :])


class Series:
    """Points of a curve, one for every so many samples: the fewer, the longer it gets."""

    def __init__(self) -> None:
        self._stride = FIRST_STRIDE
        self.points: list[tuple[float, ...]] = []

    @property
    def next(self) -> int:
        """The number of samples after which the next point is due."""
        return (len(self.points) + 1) * self._stride

    @property
    def places(self) -> list[int]:
        """The number of samples at each point."""
        return [(index + 1) * self._stride for index in range(len(self.points))]

    def append(self, point: tuple[float, ...]) -> None:
        """Add the point that is due; of a series that is full, keep every second."""
        self.points.append(point)
        if len(self.points) == LONGEST_SERIES:
            del self.points[::2]
            self._stride *= 2

    def state(self) -> dict[str, Any]:
        """Return the points, and how many samples apart they are."""
        return {"stride": self._stride, "points": np.array(self.points)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over the points."""
        self._stride = state["stride"]
        self.points = list(map(tuple, state["points"].tolist()))
