"""The scorer: prequential metrics of a model and of baselines, over all samples and the newest.

What is scored: every sample whose target is known, but for the very first, from which the baselines
learn what there is to know before them. So model and baselines are compared on the same samples.
Each is scored before its target is learned.

Everything is accumulated strictly in the order of the stream, so results are the same to the last
bit however it is cut into calls. What is said about the newest samples is computed from these alone
each time, and so cannot drift. Memory does not grow with the stream.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from threading import Lock
from typing import Any, Literal

import numpy as np

from streamflow.evaluation.classification import Classification
from streamflow.evaluation.measure import AVERAGED, ROWS, Measure, Metrics, Norm, plain
from streamflow.evaluation.moments import Floats, running_sums
from streamflow.evaluation.regression import Regression
from streamflow.evaluation.window import ScoreWindow, Series

CHUNK = 1024
"""How many samples are scored at a time."""

MOST_KEYS = 100_000
"""How many keys' last targets are kept; beyond, that of the key not seen for longest is dropped."""


def make_scorer(
    task: Literal["regression", "binary", "classification"],
    *,
    classes: Sequence[Any] | None = None,
    window: int = 1000,
) -> Scorer:
    """Return a scorer that has seen nothing yet.

    Args:
        task: What is predicted.
        classes: The labels in the order of probabilities; may be left out for a binary task with
            the labels 0 and 1, or false and true.
        window: How many samples the windowed metrics are about.

    Raises:
        ValueError: The labels of a classification are missing.
    """
    if task == "regression":
        return Scorer(task, Regression(), window)
    if classes is None:
        classes = (0, 1) if task == "binary" else ()
    return Scorer(task, Classification(classes), window)


class Scorer:
    """Scores predictions in the order of the stream, beside baselines.

    The baseline ``no_change`` predicts the last target of the sample's key; of a key without one,
    the last target of all. The other is ``majority`` or ``running_mean``. They are scored with the
    same metrics, on the same samples.

    `report` and `history` may be called from another thread than `update`. Keys are text,
    bytes, numbers or ``None``, so that a state can hold them.
    """

    def __init__(self, task: str, measure: Measure, window: int) -> None:
        self._task = task
        self._measure = measure
        self._lock = Lock()
        self._scored = 0
        self._sums: Floats = np.zeros(AVERAGED)
        self._norm = measure.norm()
        self._window = ScoreWindow(window, CHUNK)
        self._series = Series()
        self._last: list[float] | None = None
        self._last_of: dict[Hashable, list[float]] = {}

    def __repr__(self) -> str:
        return f"<Scorer of {self._task} after {self._scored} samples>"

    def update(
        self,
        predictions: Sequence[Any],
        targets: Sequence[Any],
        scores: Sequence[Sequence[float]] | None = None,
        keys: Sequence[Hashable] | None = None,
        previous: Sequence[Any] | None = None,
    ) -> None:
        """Score the next samples of the stream.

        Args:
            predictions: A label, number or array of numbers for each sample.
            targets: Likewise; ``None``, or a number that is not finite, is not known: not scored.
            scores: Each sample's probabilities in class order; without them the model's log loss
                is undefined.
            keys: Names of the streams that the samples belong to; always, or never.
            previous: The newest target of each sample's key when it was predicted (or ``None``),
                for the no-change baseline, where targets come later than further samples do, as in
                forecasts. By default the key's last target.
        """
        for start in range(0, len(targets), CHUNK):
            columns: list[Any] = [
                None if column is None else column[start : start + CHUNK]
                for column in (predictions, targets, scores, keys, previous)
            ]
            with self._lock, np.errstate(over="ignore", invalid="ignore"):
                self._update(*columns)

    def report(self) -> dict[str, Any]:
        """Return all metrics as plain data, ``None`` where undefined.

        ``{"task", "scored", "window", "cumulative", "windowed"}``, the last two with the metrics
        by name for each of ``model``, ``no_change`` and ``majority`` or ``running_mean``.
        """
        with self._lock, np.errstate(all="ignore"):  # what is undefined is none
            return {
                "task": self._task,
                "scored": self._scored,
                "window": self._window.size,
                "cumulative": self._metrics(self._sums, self._scored, self._norm),
                "windowed": self._windowed(),
            }

    def history(self) -> dict[str, Any]:
        """Return the course of the windowed accuracy or mean absolute error, as plain data.

        ``{"metric", "scored", "lines"}``: the metric's name; after how many scored samples each
        point was taken, at most 500 of them, the fewer per sample the more there are; and the
        points by name as in `report`.
        """
        with self._lock:
            columns = zip(*self._series.points, strict=True)
            return {
                "metric": self._measure.headline,
                "scored": self._series.places,
                "lines": {
                    name: [plain(point) for point in next(columns, ())]
                    for name in self._measure.rows
                },
            }

    def state(self) -> dict[str, Any]:
        """Return copies of all that later reports and histories depend on.

        A tree as `streamflow.contracts.Processor.state` returns it.
        """
        with self._lock:
            return {
                "scored": self._scored,
                "sums": self._sums.copy(),
                "norm": self._norm.state(),
                "measure": self._measure.state(),
                "window": self._window.state(),
                "series": self._series.state(),
                "last": None if self._last is None else list(self._last),
                "last_of": {
                    "keys": list(self._last_of),
                    "targets": np.array(list(self._last_of.values())),
                },
            }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where the scorer was whose `state` this is; made with the same options."""
        with self._lock:
            self._scored = state["scored"]
            self._sums = np.array(state["sums"])
            self._norm.restore(state["norm"])
            self._measure.restore(state["measure"])
            self._window.restore(state["window"])
            self._series.restore(state["series"])
            self._last = None if state["last"] is None else list(state["last"])
            targets = state["last_of"]["targets"].tolist()
            self._last_of = dict(zip(state["last_of"]["keys"], targets, strict=True))

    def _update(
        self,
        predictions: Sequence[Any],
        targets: Sequence[Any],
        scores: Sequence[Sequence[float]] | None,
        keys: Sequence[Hashable] | None,
        previous: Sequence[Any] | None,
    ) -> None:
        targets_ND = self._measure.encode(targets)
        known = np.flatnonzero(np.isfinite(targets_ND).all(axis=1))
        if not len(known):
            return
        is_first = self._last is None
        table_MN = self._measure.score(
            targets_ND[known],
            self._measure.encode(predictions)[known],
            self._previous(targets_ND[known], _pick(keys, known), _pick(previous, known)),
            _pick(scores, known),
        )
        self._add(table_MN[:, 1:] if is_first else table_MN)

    def _previous(
        self,
        targets_ND: Floats,
        keys: Sequence[Hashable] | None,
        given: Sequence[Any] | None,
    ) -> Floats:
        """Return what the no-change baseline predicts, and keep the targets for later."""
        last = self._last or [math.nan] * targets_ND.shape[1]
        if keys is None:
            previous_ND = np.concatenate([[last], targets_ND[:-1]])
            self._last = targets_ND[-1].tolist()
        else:
            previous_ND = np.array(self._previous_of_keys(targets_ND.tolist(), keys, last))
        if given is not None:
            given_ND = self._measure.encode(given)
            previous_ND = np.where(np.isfinite(given_ND), given_ND, previous_ND)
        return previous_ND

    def _previous_of_keys(
        self, targets: list[list[float]], keys: Sequence[Hashable], last: list[float]
    ) -> list[list[float]]:
        """Return the last target of each sample's key, and keep the targets for later."""
        rows = []
        for key, target in zip(keys, targets, strict=True):
            rows.append(self._last_of.pop(key, last))
            self._last_of[key] = last = target
            if len(self._last_of) > MOST_KEYS:
                del self._last_of[next(iter(self._last_of))]
        self._last = last
        return rows

    def _add(self, table_MN: Floats) -> None:
        """Take in the table's columns for samples to be scored."""
        count = table_MN.shape[1]
        if not count:
            return
        self._sums = running_sums(self._sums, table_MN[:AVERAGED].T)[-1]
        self._norm.absorb(table_MN[AVERAGED:])
        self._window.append(table_MN)
        self._scored += count
        while self._series.next <= self._scored:
            window_MN = self._window.last(before=self._scored - self._series.next)
            self._series.append(tuple(window_MN[:ROWS].mean(axis=1).tolist()))

    def _windowed(self) -> dict[str, Metrics]:
        """Return the metrics by name by row of the newest samples."""
        norm = self._measure.norm()
        if not self._scored:
            return self._metrics(self._sums, 0, norm)
        table_MN = self._window.last()
        norm.absorb(table_MN[AVERAGED:])
        return self._metrics(table_MN[:AVERAGED].sum(axis=1), table_MN.shape[1], norm)

    def _metrics(self, sums: Floats, count: int, norm: Norm) -> dict[str, Metrics]:
        """Return the metrics by name by row, from sums over so many samples."""
        metrics = self._measure.metrics(np.divide(sums, count), norm.value())
        return {
            row: {name: plain(metric_R[place]) for name, metric_R in metrics.items()}
            for place, row in enumerate(self._measure.rows)
        }


def _pick(column: Sequence[Any] | None, indices: np.ndarray[Any, np.dtype[np.intp]]) -> Any:
    """Return some entries of a column; all of it unchanged, if it is all."""
    if column is None or len(indices) == len(column):
        return column
    if isinstance(column, np.ndarray):
        return column[indices]
    return [column[index] for index in indices.tolist()]
