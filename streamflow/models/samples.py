"""Records as samples: the inputs and targets of those that fit, and a cause for each other one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any

from torch import Tensor

from streamflow.errors import SampleError
from streamflow.models.features import FeatureReader
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

    def without(self, place: int) -> Samples:
        """Return all samples but one."""
        kept = [index for index in range(len(self)) if index != place]
        return self.select(kept)

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
    """Reads samples; learns from the first record that fits the network what all must be like."""

    def __init__(
        self, pipeline: Pipeline, features: Sequence[str] | str, target: str | None, head: Head
    ) -> None:
        self._pipeline = pipeline
        self._features = FeatureReader(features)
        self._target = target
        self._head = head

    def read(self, batch: Batch) -> tuple[Samples, dict[int, str]]:
        """Return the samples of a batch, and why the other records are none, by index.

        Raises:
            OutputError: The network's outputs do not fit the task.
        """
        causes = {} if self._features.shape is not None else self._fit(batch)
        targets = self._targets(batch)
        if self._features.shape is None:  # no record of the batch fits
            encoded, _ = self._head.encode([])
            return Samples([], batch.slice(0, 0), Tensor(), [], encoded), causes
        inputs, unreadable = self._features.read(batch)
        encoded, unknown = self._head.encode(targets)
        samples = Samples(range(len(batch)), batch, inputs, targets, encoded)
        causes = {**_bad_keys(batch), **unknown, **unreadable, **causes}
        if causes:
            samples = samples.select([place for place in range(len(batch)) if place not in causes])
        return samples, causes

    def state(self) -> dict[str, Any]:
        """Return what the first record has shown."""
        shape = self._features.shape
        return {"shape": None if shape is None else list(shape), "head": self._head.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what the first record has shown in an earlier run."""
        self._features.shape = None if state["shape"] is None else tuple(state["shape"])
        self._head.restore(state["head"])

    def _targets(self, batch: Batch) -> list[Any]:
        if self._target is None:
            return [None] * len(batch)
        column = column_items(batch.column(self._target))
        return [None if value is MISSING else value for value in column]

    def _fit(self, batch: Batch) -> dict[int, str]:
        """Look for the first record that fits the network; return why those before it do not."""
        causes: dict[int, str] = {}
        for index in range(len(batch)):
            inputs, unreadable = self._features.read(batch.slice(index, index + 1))
            if unreadable:
                causes[index] = unreadable[0]
                continue
            try:
                output = self._pipeline.infer(inputs)
            except SampleError as error:
                causes[index] = str(error)
                continue
            self._head.fit(one_tensor(output))
            self._features.shape = tuple(inputs.shape[1:])
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
