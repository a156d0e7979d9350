"""From fields of records to the network's input tensor.

Shapes: N records, F elements of all features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamflow.models.declaration import ModelOptions
from streamflow.models.encoders import make_encoder
from streamflow.models.feature import Feature
from streamflow.records import Batch, Column, column_items

_UNREADABLE = (TypeError, ValueError, RuntimeError, OverflowError)


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a batch gives for the network.

    Attributes:
        values: An input for each record (N, ...), nan in what is to be imputed.
        causes: Why a record gives none, by index.
        incomplete: Indices of the records that are to be left out as they lack a feature.
    """

    values: Tensor
    causes: Mapping[int, str]
    incomplete: frozenset[int] = frozenset()


class Incomplete(Exception):
    """A record lacks a feature, and is to be left out."""


class FeatureReader:
    """Reads the inputs of a batch; whatever is not a finite number of float32 is a cause.

    Attributes:
        shape: Shape of one input, once it is known; every later one must have it.
    """

    def __init__(self, model: ModelOptions) -> None:
        self.shape: tuple[int, ...] | None = None
        self._keeps_shape = isinstance(model.features, str)
        self._features = model.resolved_features
        self._encoders = [make_encoder(feature, model.nan) for feature in self._features]
        self._set_widths([encoder.width or 1 for encoder in self._encoders])

    @property
    def imputed_F(self) -> np.ndarray[Any, np.dtype[np.intp]]:
        """Places of the input's numbers that may have to be imputed."""
        if self._keeps_shape:
            count = int(np.prod(self.shape or ()))
            return np.arange(count if self._encoders[0].gaps == "impute" else 0)
        spans = zip(self._encoders, pairwise(self._ends), strict=True)
        parts = [np.arange(*span) for encoder, span in spans if encoder.gaps == "impute"]
        return np.concatenate([np.arange(0), *parts])

    def read(self, batch: Batch) -> Inputs:
        """Return the inputs, zero where there is none.

        Without a `shape` yet, the first record that can be read sets that of the others.
        """
        columns = [_column(batch, feature) for feature in self._features]
        return self._read_columns(columns) or self._read_singly(columns)

    def fit(self, batch: Batch) -> None:
        """Take note of the shapes of a single record, which fits the network."""
        row = [column_items(_column(batch, feature)) for feature in self._features]
        parts = [encoder.read(next(iter(value))) for encoder, value in self._each(row)]
        self._set_widths([part.size for part in parts])
        self.shape = parts[0].shape if self._keeps_shape else (self._ends[-1],)

    def state(self) -> dict[str, Any]:
        """Return what `fit` has found."""
        shape = None if self.shape is None else list(self.shape)
        return {"shape": shape, "widths": list(self._widths)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `fit` has found in an earlier run."""
        self.shape = None if state["shape"] is None else tuple(state["shape"])
        self._set_widths(state["widths"])

    def _each(self, values: Sequence[Any]) -> Any:
        return zip(self._encoders, values, strict=True)

    def _set_widths(self, widths: Sequence[int]) -> None:
        """Take note of how many numbers each field has."""
        self._widths = list(widths)
        self._ends = np.cumsum([0, *widths]).tolist()

    def _read_columns(self, columns: Sequence[Column]) -> Inputs | None:
        """Return the inputs if all features are of the usual kind."""
        if self._keeps_shape or self.shape not in (None, (self._ends[-1],)):
            return None
        if any(width != (encoder.width or 1) for encoder, width in self._each(self._widths)):
            return None
        inputs_NF = np.empty((len(columns[0]), self._ends[-1]), dtype=np.float32)
        is_incomplete_N = np.zeros(len(inputs_NF), np.bool_)
        for (start, stop), (encoder, column) in zip(
            pairwise(self._ends), self._each(columns), strict=True
        ):
            if not encoder.write(column, inputs_NF[:, start:stop]):
                return None
            if encoder.gaps == "skip":
                is_incomplete_N |= np.isnan(inputs_NF[:, start])
        incomplete = np.flatnonzero(is_incomplete_N).tolist()
        inputs_NF[incomplete] = 0
        return Inputs(torch.from_numpy(inputs_NF), {}, frozenset(incomplete))

    def _read_singly(self, columns: Sequence[Column]) -> Inputs:
        arrays: dict[int, np.ndarray[Any, Any]] = {}
        causes: dict[int, str] = {}
        incomplete: set[int] = set()
        shape = self.shape
        for index, row in enumerate(zip(*map(column_items, columns), strict=True)):
            try:
                array = self._array(row)
                shape = array.shape if shape is None else shape
                arrays[index] = _checked(array, shape)
            except Incomplete:
                incomplete.add(index)
            except _UNREADABLE as error:
                causes[index] = str(error)
        inputs = np.zeros((len(columns[0]), *(shape or ())), dtype=np.float32)
        for index, array in arrays.items():
            inputs[index] = array
        return Inputs(torch.from_numpy(inputs), causes, frozenset(incomplete))

    def _array(self, row: Sequence[Any]) -> np.ndarray[Any, Any]:
        """Return one record's input, of any shape.

        Raises:
            Incomplete: It lacks a feature, and nothing else is wrong with it.
        """
        parts = [encoder.read(value) for encoder, value in self._each(row)]
        pairs = zip(self._encoders, parts, strict=True)
        if any(encoder.gaps == "skip" and np.isnan(part).any() for encoder, part in pairs):
            raise Incomplete
        if self._keeps_shape:
            is_absent = not parts[0].shape and bool(np.isnan(parts[0]))
            return np.full(self.shape or (), np.nan) if is_absent else parts[0]
        sized = zip(parts, self._widths, strict=True)
        return np.concatenate([_spread(part.ravel(), width) for part, width in sized])


def _column(batch: Batch, feature: Feature) -> Column:
    if feature.field is not None:
        return batch.column(feature.field)
    return [None] * len(batch) if batch.timestamps_ms is None else list(batch.timestamps_ms)


def _spread(part: np.ndarray[Any, Any], width: int) -> np.ndarray[Any, Any]:
    """Return a field's numbers; of an array that is missing, as many as it has elsewhere."""
    is_absent = part.size == 1 and width > 1 and bool(np.isnan(part[0]))
    return np.full(width, np.nan, np.float32) if is_absent else part


def _checked(array: np.ndarray[Any, Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    if array.shape != shape:
        message = f"expected features of shape {list(shape)}, found {list(array.shape)}"
        raise ValueError(message)
    return array
