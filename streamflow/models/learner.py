"""Learning at once: a record brings its own target.

records -> SampleReader -> Pipeline.process -> Head.decode -> Scorer, output records
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from streamflow.errors import SampleError
from streamflow.models.heads import Predicted, joined
from streamflow.models.node import ModelNode
from streamflow.models.samples import Samples, unnamed
from streamflow.models.scaling import Scaled
from streamflow.records import Values, column_items


class Learner(ModelNode):
    """Predicts each record and then learns its target, if it has one."""

    def _learn(self, samples: Samples) -> tuple[Samples, Values, dict[int, str]]:
        samples, refused = self._with_streams(samples)
        predictions: list[Predicted] = []
        steps: list[int] = []
        for part in self._parts(samples):
            learned, predicted, causes = self._learn_part(part)
            refused |= causes
            if learned:
                predictions.append(predicted)
                steps += self._pipeline.steps
        if len(steps) < len(samples):
            places = enumerate(samples.indices)
            samples = samples.select([place for place, index in places if index not in refused])
        values = self._values(samples, joined(predictions), samples.targets, steps)
        return samples, values, refused

    def _parts(self, samples: Samples) -> Iterator[Samples]:
        """Yield what is learned at a time: one record, where the next may meet an action."""
        if self._reaction is None:
            yield samples
            return
        for place in range(len(samples)):
            yield samples.select([place])

    def _learn_part(self, samples: Samples) -> tuple[Samples, Predicted, dict[int, str]]:
        refused: dict[int, str] = {}
        while samples:
            scale, scaled = self._scaled(samples.encoded)
            weighting, factors = self._weighed(samples.encoded)
            imputation, inputs = self._filled(samples.inputs)
            try:
                outputs = self._process(replace(samples, inputs=inputs), scaled, factors)
            except SampleError as error:  # nothing has entered: go on without that sample
                refused[samples.indices[error.index]] = str(error)
                samples = samples.select([p for p in range(len(samples)) if p != error.index])
                continue
            self._scale, self._imputation, self._weighting = scale, imputation, weighting
            predicted = self._decoded(outputs, scaled)
            self._score_and_react(predicted, samples)
            return samples, predicted, refused
        return samples, {}, refused

    def _score_and_react(self, predicted: Predicted, samples: Samples) -> None:
        before = self._river.num_drifts if self._river else 0
        self._score(predicted, samples.targets, keys=samples.batch.keys)
        if self._reaction and self._river:
            is_learned = samples.targets[0] is not None
            is_drift = self._river.num_drifts > before
            self._reaction.update(is_learned=is_learned, is_drift=is_drift)

    def _process(self, samples: Samples, scaled: Scaled | None, factors: Tensor | None) -> Any:
        if not self._model.learn or not self._model.target:
            return self._pipeline.process(samples.inputs, keys=self._streams(samples))
        encoded = scaled.targets if scaled else samples.encoded
        is_known = None if encoded.is_known.all() else torch.from_numpy(encoded.is_known)
        return self._pipeline.process(
            samples.inputs,
            self._head.stack(encoded),
            learn=is_known,
            weights=factors,
            keys=self._streams(samples),
        )

    def _streams(self, samples: Samples) -> Sequence[Any] | None:
        """Return the stream of every sample, where the network carries recurrent state."""
        if not self._model.state:
            return None
        if self._model.keys is not None:
            return list(column_items(samples.batch.column(self._model.keys)))
        return samples.batch.keys

    def _with_streams(self, samples: Samples) -> tuple[Samples, dict[int, str]]:
        """Return the samples whose stream is known, and why the others are refused."""
        found = self._streams(samples)
        if found is None:
            return samples, {}
        causes = [unnamed(self._model.keys or "key", stream) for stream in found]
        refused = {samples.indices[place]: cause for place, cause in enumerate(causes) if cause}
        return samples.select([place for place, cause in enumerate(causes) if not cause]), refused
