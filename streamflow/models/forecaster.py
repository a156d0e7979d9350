"""Forecasting: a record is predicted now and learned when a later one of its key brings the target.

With ``horizon: 2``, for the records a, b, c, d of one key:

    a: predict, hold     b: predict, hold     c: learn (a, target of c), predict, hold     d: ...

Learning comes before predicting, so that a prediction knows all that can be known at its time.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamflow.errors import SampleError
from streamflow.models.declaration import Model
from streamflow.models.heads import Predicted, one_tensor
from streamflow.models.node import ModelNode
from streamflow.models.samples import Samples
from streamflow.models.scaling import TargetScale
from streamflow.pipeline import Pipeline
from streamflow.records import Values

MOST_KEYS = 100_000
"""How many keys are held; beyond, the records of the key not seen for longest are dropped."""


@dataclass(frozen=True, slots=True)
class Held:
    """A record that waits for its target.

    Attributes:
        inputs: Its input (1, ...).
        predicted: What was predicted.
        previous: The newest target of its key at that time (of any key, if it had none yet), as
            plain data, for the no-change baseline.
    """

    inputs: Tensor
    predicted: Predicted
    previous: Any


@dataclass(slots=True)
class Series:
    """The records of one key that wait, oldest first, and its newest target as plain data."""

    held: deque[Held] = field(default_factory=deque)
    newest: Any = None


class Forecaster(ModelNode):
    """Predicts the target of the record that comes ``horizon`` later with the same key."""

    def __init__(self, model: Model, pipeline: Pipeline) -> None:
        super().__init__(model, pipeline)
        assert model.horizon is not None
        self._horizon = model.horizon
        self._series: OrderedDict[Hashable, Series] = OrderedDict()
        self._newest: Any = None
        self._met: list[tuple[Held, Any]] = []
        self._num_held = self._num_unlabelled = self._num_dropped = 0

    def report(self) -> dict[str, Any]:
        """Return what the model has learned, how well it predicts, and what it holds.

        ``unlabelled`` records met no target at their horizon; ``dropped`` ones were held for too
        many keys.
        """
        return {
            **super().report(),
            "held": self._num_held,
            "unlabelled": self._num_unlabelled,
            "dropped": self._num_dropped,
        }

    def state(self) -> dict[str, Any]:
        """Return what every model keeps, and the records that wait for their targets."""
        held = [record for series in self._series.values() for record in series.held]
        return {
            **super().state(),
            "series": {
                "keys": list(self._series),  # the one to be dropped first comes first
                "num_held": [len(series.held) for series in self._series.values()],
                "newest": [series.newest for series in self._series.values()],
            },
            "newest": self._newest,
            "held": {
                "inputs": torch.cat([record.inputs for record in held]) if held else None,
                "predicted": _joined([record.predicted for record in held]),
                "previous": [record.previous for record in held],
            },
            "unlabelled": self._num_unlabelled,
            "dropped": self._num_dropped,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with the records that waited, too."""
        super().restore(state)
        held = _held(**state["held"])
        columns = state["series"]
        rows = zip(columns["keys"], columns["num_held"], columns["newest"], strict=True)
        for key, count, newest in rows:
            self._series[key] = Series(deque(islice(held, count)), newest)
        self._newest = state["newest"]
        self._num_held = sum(columns["num_held"])
        self._num_unlabelled = state["unlabelled"]
        self._num_dropped = state["dropped"]

    def _learn(self, samples: Samples) -> tuple[Samples, Values, dict[int, str]]:
        refused: dict[int, str] = {}
        places: list[int] = []
        steps: list[int] = []
        predictions: list[Predicted] = []
        for place in range(len(samples)):
            series = self._series_of(samples.batch.keys[place] if samples.batch.keys else None)
            target = self._learn_held(series, samples.targets[place], samples.encoded[place])
            if target is not None:
                series.newest = self._newest = target
            inputs = samples.inputs[place : place + 1].clone()
            try:
                predicted = self._predict(inputs)
            except SampleError as error:
                refused[samples.indices[place]] = str(error)
                continue
            previous = self._newest if series.newest is None else series.newest
            series.held.append(Held(inputs, predicted, previous))
            self._num_held += 1
            places.append(place)
            steps.append(self._pipeline.counters["updates"][0])
            predictions.append(predicted)
        self._score_met()
        kept = samples.select(places)
        values = self._values(kept, _joined(predictions), [None] * len(kept), steps)
        return kept, values, refused

    def _learn_held(self, series: Series, target: Any, encoded: Any) -> Any:
        """Learn the record whose target this is, if one is due; return the target, plain."""
        if target is not None:
            target = self._head.plain(target)
        learned = encoded
        if self._model.standardize_target:
            self._scale, scaled = self._target_scale().absorb([encoded])
            learned = scaled.targets[0]
        if len(series.held) < self._horizon:
            return target
        held = series.held.popleft()
        self._num_held -= 1
        if target is None:
            self._num_unlabelled += 1
            return target
        self._met.append((held, target))
        if self._model.learn:
            self._pipeline.learn(held.inputs, self._head.stack([learned]))
        return target

    def _score_met(self) -> None:
        """Score the predictions whose target has come, all at once, since a call costs much."""
        if not self._met:
            return
        predicted = _joined([held.predicted for held, _ in self._met])
        targets = [target for _, target in self._met]
        self._score(predicted, targets, previous=[held.previous for held, _ in self._met])
        self._met.clear()

    def _predict(self, inputs: Tensor) -> Predicted:
        outputs = one_tensor(self._pipeline.infer(inputs))
        if self._model.standardize_target:
            _, now = self._target_scale().absorb([None])
            outputs = now.restore(outputs)
        return self._head.decode(outputs)

    def _target_scale(self) -> TargetScale:
        return self._scale or TargetScale(int(np.prod(self._head.output_shape)))

    def _series_of(self, key: Hashable) -> Series:
        """Return the series of a key; it is the last to be dropped now."""
        series = self._series.setdefault(key, Series())
        self._series.move_to_end(key)
        if len(self._series) > MOST_KEYS:
            _, dropped = self._series.popitem(last=False)
            self._num_held -= len(dropped.held)
            self._num_dropped += len(dropped.held)
        return series


def _joined(parts: Sequence[Predicted]) -> Predicted:
    """Return the columns of several predictions as one."""
    names = parts[0] if parts else ()
    return {name: [entry for part in parts for entry in part[name]] for name in names}


def _held(inputs: Tensor | None, predicted: Predicted, previous: Sequence[Any]) -> Iterator[Held]:
    """Yield held records from their columns, which stay the caller's."""
    for index, target in enumerate(previous):
        assert inputs is not None
        single = {name: [column[index]] for name, column in predicted.items()}
        # a copy of its own, so that a record which waits for long does not keep all the others
        yield Held(inputs[index : index + 1].clone(), single, target)
