"""The open model node, as far as learning at once and forecasting have it in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from streamflow.contracts import Processed
from streamflow.evaluation import Scorer, make_scorer
from streamflow.evaluation.river import RiverScores
from streamflow.models.declaration import ModelOptions
from streamflow.models.heads import ClassHead, Predicted, make_head, one_tensor
from streamflow.models.imputation import Imputation
from streamflow.models.portable import original, portable
from streamflow.models.reaction import Reaction
from streamflow.models.samples import SampleReader, Samples
from streamflow.models.scaling import Scaled, TargetScale
from streamflow.models.targets import Targets
from streamflow.models.weighting import Weighting
from streamflow.pipeline import Pipeline
from streamflow.records import MISSING, Batch, Values, split_rejected, without_missing


class ModelNode(ABC):
    """Predicts, scores, learns; called from one worker thread at a time."""

    def __init__(
        self, model: ModelOptions, pipeline: Pipeline, name: str, reaction: Reaction | None = None
    ) -> None:
        self._name = name
        self._model = model
        self._imputes = model.has_gaps("impute")
        self._skips = model.has_gaps("skip")
        self._pipeline = pipeline
        self._reaction = reaction
        self._head = make_head(model)
        self._reader = SampleReader(pipeline, model, self._head)
        self._scorer: Scorer | None = None
        self._river: RiverScores | None = None
        self._scale: TargetScale | None = None
        self._imputation: Imputation | None = None
        self._weighting: Weighting | None = None

    def process(self, batch: Batch) -> Processed:
        """Predict every record, and learn what there is to learn."""
        samples, causes = self._reader.read(batch)
        values: Values = {}
        if samples:
            self._scorer = self._scorer or self._make_scorer()
            self._river = self._river or self._make_river()
            samples, values, refused = self._learn(samples)
            causes |= refused
        _, rejected = split_rejected(batch, causes)
        return Processed(samples.batch.with_values(values) if samples else None, rejected)

    def end(self) -> Processed:
        """Apply the gradients in flight."""
        self._pipeline.drain()
        return Processed()

    def report(self) -> Mapping[str, Any]:
        """Return what the model has learned and how well it predicts."""
        report = {**self._pipeline.counters, "learning": self._pipeline.learning}
        if self._skips:
            report["incomplete"] = self._reader.num_incomplete
        if self._scorer:
            report |= {"score": self._scorer.report(), "history": self._scorer.history()}
        if self._river:
            report["river"] = self._river.report()
        return report

    def state(self) -> dict[str, Any]:
        """Apply the gradients in flight, and return copies of all that later records need."""
        parts = {
            "scale": self._scale,
            "imputation": self._imputation,
            "weighting": self._weighting,
            "reaction": self._reaction,
            "river": self._river,
            "scorer": self._scorer,
        }
        return {
            "pipeline": portable(self._pipeline.state_dict()),
            "samples": self._reader.state(),
            **{name: None if part is None else part.state() for name, part in parts.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with the weights, scores and statistics of an earlier run."""
        self._pipeline.load_state_dict(original(state["pipeline"]))
        self._reader.restore(state["samples"])
        if state["scale"] is not None:
            self._scale = TargetScale.restored(state["scale"])
        if state["imputation"] is not None:
            self._imputation = Imputation.restored(state["imputation"])
        if state["weighting"] is not None and self._model.class_weights is not None:
            self._weighting = self._make_weighting()
            self._weighting.restore(state["weighting"])
        if state["reaction"] is not None:
            reaction = self._reaction or Reaction(self._model, self._pipeline, {})
            reaction.restore(state["reaction"])
        if state["river"] is not None and (river := self._make_river()):
            river.restore(state["river"])
            self._river = river
        if state["scorer"] is not None and (scorer := self._make_scorer()):
            scorer.restore(state["scorer"])
            self._scorer = scorer

    @abstractmethod
    def _learn(self, samples: Samples) -> tuple[Samples, Values, dict[int, str]]:
        """Predict and learn samples.

        Returns:
            The samples that were predicted, the values of their output records, and why the others
            were refused, by the place in their batch.
        """

    def _filled(self, inputs: Tensor) -> tuple[Imputation | None, Tensor]:
        """Return what is known of inputs after these, and these, without what is missing."""
        if not self._imputes:
            return None, inputs
        return (self._imputation or Imputation(self._reader.imputed_F)).fill(inputs)

    def _scaled(self, encoded: Targets) -> tuple[TargetScale | None, Scaled | None]:
        """Return the scale after some targets, and these in their own scale."""
        if not self._model.standardize_target:
            return None, None
        scale = self._scale or TargetScale(math.prod(self._head.output_shape))
        return scale.absorb(encoded)

    def _decoded(self, outputs: Any, scaled: Scaled | None) -> Predicted:
        tensor = one_tensor(outputs)
        return self._head.decode(scaled.restore(tensor) if scaled else tensor)

    def _weighed(self, encoded: Targets) -> tuple[Weighting | None, Tensor | None]:
        """Return what is known of the classes after some targets, and their factors."""
        if self._model.class_weights is None:
            return None, None
        return (self._weighting or self._make_weighting()).absorb(encoded)

    def _make_weighting(self) -> Weighting:
        assert isinstance(self._head, ClassHead)
        return Weighting(self._model, self._head.classes or ())

    def _make_river(self) -> RiverScores | None:
        model, head = self._model, self._head
        if not model.metrics and model.drift is None:
            return None
        classes = head.classes if isinstance(head, ClassHead) else None
        return RiverScores(model.resolved_task or "", classes, model.metrics, model.drift)

    def _make_scorer(self) -> Scorer | None:
        task = self._model.resolved_task
        if self._model.target is None or task is None:
            return None
        classes = list(self._head.classes or ()) if isinstance(self._head, ClassHead) else None
        return make_scorer(task, classes=classes, window=self._model.window)

    def _score(
        self,
        predicted: Predicted,
        targets: Sequence[Any],
        *,
        keys: Sequence[Any] | None = None,
        previous: Sequence[Any] | None = None,
    ) -> None:
        if self._river:
            self._river.update(predicted["prediction"], targets, predicted.get("scores"))
        if self._scorer:
            self._scorer.update(
                predicted["prediction"],
                targets,
                scores=predicted.get("scores"),
                keys=keys,
                previous=previous,
            )

    def _values(
        self, samples: Samples, predicted: Predicted, targets: Sequence[Any], steps: Sequence[int]
    ) -> Values:
        """Return the values of the output records; ``target`` only where there is one."""
        return without_missing(
            {
                **predicted,
                "target": [MISSING if target is None else target for target in targets],
                "step": list(steps),
                "source": samples.batch.positions(),
                **({"model": [self._name] * len(samples)} if self._model.named else {}),
                **{field: samples.batch.column(field) for field in self._model.carry},
            },
            len(samples),
        )
