"""Forecasting: a record is predicted now and learned when a later one of its key brings the target.

With ``horizon: 2``, for the records a, b, c, d of one key:

    a: predict, hold     b: predict, hold     c: learn (a, target of c), predict, hold     d: ...

Learning comes before predicting, so that a prediction knows all that can be known at its time.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from torch import Tensor

from streamflow.errors import SampleError
from streamflow.models.declaration import ModelOptions
from streamflow.models.heads import Predicted, joined
from streamflow.models.node import ModelNode
from streamflow.models.reaction import Reaction
from streamflow.models.samples import Samples
from streamflow.models.targets import Targets
from streamflow.models.waiting_samples import WaitingSample, WaitingSamples
from streamflow.pipeline import Pipeline
from streamflow.records import Values

MOST_KEYS = 100_000
"""How many keys are held; beyond, the records of the key not seen for longest are dropped."""


class Forecaster(ModelNode):
    """Predicts the target of the record that comes ``horizon`` later with the same key."""

    def __init__(
        self, model: ModelOptions, pipeline: Pipeline, name: str, reaction: Reaction | None = None
    ) -> None:
        super().__init__(model, pipeline, name, reaction)
        assert model.horizon is not None
        self._horizon = model.horizon
        self._held = WaitingSamples()
        self._newest: Any = None
        self._met: list[tuple[WaitingSample, Any]] = []
        self._num_unlabelled = self._num_dropped = 0

    def report(self) -> dict[str, Any]:
        """Return what the model has learned, how well it predicts, and what it holds.

        ``unlabelled`` records met no target at their horizon; ``dropped`` ones were held for too
        many keys.
        """
        return {
            **super().report(),
            "held": len(self._held),
            "unlabelled": self._num_unlabelled,
            "dropped": self._num_dropped,
        }

    def state(self) -> dict[str, Any]:
        """Return what every model keeps, and the records that wait for their targets."""
        return {
            **super().state(),
            "held": self._held.state(),
            "newest": self._newest,
            "unlabelled": self._num_unlabelled,
            "dropped": self._num_dropped,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with the records that waited, too."""
        super().restore(state)
        self._held = WaitingSamples.restored(state["held"])
        self._newest = state["newest"]
        self._num_unlabelled = state["unlabelled"]
        self._num_dropped = state["dropped"]

    def _learn(self, samples: Samples) -> tuple[Samples, Values, dict[int, str]]:
        refused: dict[int, str] = {}
        places: list[int] = []
        steps: list[int] = []
        predictions: list[Predicted] = []
        for place in range(len(samples)):
            row = self._row_of(samples.batch.keys[place] if samples.batch.keys else None)
            target = self._learn_held(row, samples.targets[place], samples.encoded.select([place]))
            if target is not None:
                self._held.set_newest(row, target)
                self._newest = target
            imputation, inputs = self._filled(samples.inputs[place : place + 1])
            try:
                predicted = self._predict(inputs)
            except SampleError as error:
                refused[samples.indices[place]] = str(error)
                continue
            self._imputation = imputation
            newest = self._held.newest(row)
            previous = self._newest if newest is None else newest
            self._held.push(row, WaitingSample(inputs, predicted, previous))
            places.append(place)
            steps.append(self._pipeline.counters["updates"][0])
            predictions.append(predicted)
        self._score_met()
        kept = samples.select(places)
        values = self._values(kept, joined(predictions), [None] * len(kept), steps)
        return kept, values, refused

    def _learn_held(self, row: int, target: Any, encoded: Targets) -> Any:
        """Learn the record whose target this is, if one is due; return the target, plain."""
        if target is not None:
            target = self._head.plain(target)
        self._scale, scaled = self._scaled(encoded)
        if self._held.count(row) < self._horizon:
            return target
        held = self._held.pop(row)
        if target is None:
            self._num_unlabelled += 1
            return target
        self._met.append((held, target))
        if self._model.learn:
            self._weighting, factors = self._weighed(encoded)
            self._pipeline.learn(
                held.inputs,
                self._head.stack(scaled.targets if scaled else encoded),
                weights=factors,
            )
        return target

    def _score_met(self) -> None:
        """Score the predictions whose target has come, all at once, since a call costs much."""
        if not self._met:
            return
        predicted = joined([held.predicted for held, _ in self._met])
        targets = [target for _, target in self._met]
        self._score(predicted, targets, previous=[held.previous for held, _ in self._met])
        self._met.clear()

    def _predict(self, inputs: Tensor) -> Predicted:
        now = None
        if self._model.standardize_target:
            _, now = self._scaled(self._head.encode([None])[0])
        return self._decoded(self._pipeline.infer(inputs), now)

    def _row_of(self, key: Hashable) -> int:
        """Return the row of a key; it is the last to be dropped now."""
        row = self._held.row_of(key)
        if self._held.num_keys > MOST_KEYS:
            self._num_dropped += self._held.drop_oldest()
        return row
