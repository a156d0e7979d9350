"""Records as samples: the inputs and targets of those that fit, and a cause for each other one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any

import numpy as np
from torch import Tensor

from streamflow.errors import SampleError
from streamflow.models.declaration import ModelOptions
from streamflow.models.features import FeatureReader, Inputs
from streamflow.models.heads import Head, one_tensor
from streamflow.models.targets import Targets
from streamflow.pipeline import Pipeline
from streamflow.records import MISSING, Batch, column_items

STREAM = (str, bytes, int, float, NoneType)
"""What can be a key, or name a stream of recurrent state; without one it is of that of ``None``."""


@dataclass(frozen=True, slots=True)
class Samples:
    """What a batch holds for the network.

    Attributes:
        indices: Places of the records in the batch they come from.
        batch: The records.
        inputs: The network's inputs (n, ...).
        targets: Each target as it stands in the record, ``None`` where there is none.
        encoded: The targets as the loss wants them.
    """

    indices: Sequence[int]
    batch: Batch
    inputs: Tensor
    targets: Sequence[Any]
    encoded: Targets

    def __len__(self) -> int:
        return len(self.indices)

    def select(self, kept: Sequence[int]) -> Samples:
        """Return the samples at the places ``kept``."""
        return Samples(
            [self.indices[place] for place in kept],
            self.batch.select(kept),
            self.inputs[list(kept)],
            [self.targets[place] for place in kept],
            self.encoded.select(kept),
        )


class SampleReader:
    """Reads samples; learns from the first record that fits the network what all must be like.

    Attributes:
        num_incomplete: How many records were left out as they lacked a feature.
    """

    def __init__(self, pipeline: Pipeline, model: ModelOptions, head: Head) -> None:
        self.num_incomplete = 0
        self._pipeline = pipeline
        self._features = FeatureReader(model)
        self._target = model.target
        self._head = head

    @property
    def imputed_F(self) -> np.ndarray[Any, np.dtype[np.intp]]:
        """Places of the input's numbers that are nan where they are missing."""
        return self._features.imputed_F

    def read(self, batch: Batch) -> tuple[Samples, dict[int, str]]:
        """Return the samples of a batch, and why the other records are none, by index.

        Records that are to be left out as they lack a feature are neither, and counted.

        Raises:
            OutputError: The network's outputs do not fit the task.
        """
        causes = {} if self._features.shape is not None else self._fit(batch)
        targets = self._targets(batch)
        if self._features.shape is None:  # no record of the batch fits
            self.num_incomplete += len(batch) - len(causes)
            encoded, _ = self._head.encode([])
            return Samples([], batch.slice(0, 0), Tensor(), [], encoded), causes
        inputs = self._features.read(batch)
        encoded, unknown = self._head.encode(targets)
        samples = Samples(range(len(batch)), batch, inputs.values, targets, encoded)
        causes = {**_bad_keys(batch), **unknown, **inputs.causes, **causes}
        incomplete = inputs.incomplete - causes.keys()
        self.num_incomplete += len(incomplete)
        if causes or incomplete:
            left_out = causes.keys() | incomplete
            samples = samples.select(
                [place for place in range(len(batch)) if place not in left_out]
            )
        return samples, causes

    def state(self) -> dict[str, Any]:
        """Return what the first record has shown, and how many were left out."""
        return {
            "features": self._features.state(),
            "head": self._head.state(),
            "incomplete": self.num_incomplete,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what the first record has shown in an earlier run."""
        self._features.restore(state["features"])
        self._head.restore(state["head"])
        self.num_incomplete = state["incomplete"]

    def _targets(self, batch: Batch) -> list[Any]:
        if self._target is None:
            return [None] * len(batch)
        column = column_items(batch.column(self._target))
        return [None if value is MISSING else value for value in column]

    def _fit(self, batch: Batch) -> dict[int, str]:
        """Look for the first record that fits the network; return why those before it do not."""
        causes: dict[int, str] = {}
        for index in range(len(batch)):
            single = batch.slice(index, index + 1)
            inputs: Inputs = self._features.read(single)
            if inputs.incomplete:
                continue
            if inputs.causes:
                causes[index] = inputs.causes[0]
                continue
            try:
                output = self._pipeline.infer(inputs.values.nan_to_num())
            except SampleError as error:
                causes[index] = str(error)
                continue
            self._head.fit(one_tensor(output))
            self._features.fit(single)
            break
        return causes


def unnamed(name: str, key: Any) -> str | None:
    """Return why a key names no stream, if it does not."""
    if isinstance(key, STREAM) and key == key:  # not so if it is not a number
        return None
    return f"{name}: expected text or a number that names the stream, found {key!r}"


def _bad_keys(batch: Batch) -> dict[int, str]:
    """Return why keys cannot be told apart, or kept in a checkpoint, by index."""
    found = enumerate(unnamed("key", key) for key in batch.keys or ())
    return {index: cause for index, cause in found if cause}
