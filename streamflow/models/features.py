"""From fields of records to the network's input tensor.

Shapes: N records, F elements of all features.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamflow.records import MISSING, Batch, Column, column_items

_PLAIN = frozenset({float, int, bool})
_MOST_EXACT = 2.0**53
_UNREADABLE = (TypeError, ValueError, RuntimeError, OverflowError)


class FeatureReader:
    """Reads the inputs of a batch; whatever is not a finite number of float32 is a cause.

    Attributes:
        shape: Shape of one input, once it is known; every later one must have it.
    """

    def __init__(self, features: Sequence[str] | str) -> None:
        self.shape: tuple[int, ...] | None = None
        self._keeps_shape = isinstance(features, str)
        self._fields = (features,) if isinstance(features, str) else tuple(features)

    def read(self, batch: Batch) -> tuple[Tensor, Mapping[int, str]]:
        """Return the inputs (N, ...), zero where there is a cause, and the causes by index.

        Without a `shape` yet, the first record that can be read sets that of the others.
        """
        columns = [batch.column(field) for field in self._fields]
        if (inputs_NF := self._read_numbers(columns)) is not None:
            return inputs_NF, {}
        return self._read_singly(columns)

    def _read_numbers(self, columns: Sequence[Column]) -> Tensor | None:
        """Return the inputs if all features are finite numbers, the usual case."""
        if self._keeps_shape:
            return None
        if self.shape not in (None, (len(columns),)):
            return None
        inputs_NF = np.empty((len(columns[0]), len(columns)), dtype=np.float32)
        for place, column in enumerate(columns):
            numbers_N = number_column(column)
            if numbers_N is None:
                return None
            inputs_NF[:, place] = numbers_N
        return torch.from_numpy(inputs_NF)

    def _read_singly(self, columns: Sequence[Column]) -> tuple[Tensor, Mapping[int, str]]:
        arrays: dict[int, np.ndarray[Any, Any]] = {}
        causes: dict[int, str] = {}
        shape = self.shape
        for index, row in enumerate(zip(*map(column_items, columns), strict=True)):
            try:
                array = self._array(row)
                shape = array.shape if shape is None else shape
                arrays[index] = _checked(array, shape)
            except _UNREADABLE as error:
                causes[index] = str(error)
        inputs = np.zeros((len(arrays) + len(causes), *(shape or ())), dtype=np.float32)
        for index, array in arrays.items():
            inputs[index] = array
        return torch.from_numpy(inputs), causes

    def _array(self, row: Sequence[Any]) -> np.ndarray[Any, Any]:
        """Return one record's input, of any shape."""
        parts = [numbers(value, field) for value, field in zip(row, self._fields, strict=True)]
        return parts[0] if self._keeps_shape else np.concatenate([part.ravel() for part in parts])


def number_column(column: Column) -> np.ndarray[Any, np.dtype[np.float32]] | None:
    """Return a column as float32 (N,) if it holds plain numbers that `numbers` takes, else None.

    Each is what `numbers` makes of it. That also takes what this does not: it is for the usual
    case, all at once.
    """
    if isinstance(column, list):
        kinds = set(map(type, column))
        if not kinds <= _PLAIN:
            return None
        try:
            wide_N = np.fromiter(column, np.float64, len(column))
        except OverflowError:
            return None
        if int in kinds and bool((np.abs(wide_N) >= _MOST_EXACT).any()):
            return None  # such an integer is not what it was
    elif column.ndim == 1 and column.dtype.kind in "biuf":
        wide_N = column
    else:
        return None
    with np.errstate(over="ignore"):
        column_N = wide_N.astype(np.float32)
    return column_N if bool(np.isfinite(column_N).all()) else None


def numbers(value: Any, field: str) -> np.ndarray[Any, Any]:
    """Return a value as an array of float32.

    Raises:
        ValueError: It is not a number or an array of numbers, or not finite.
    """
    if value is MISSING:
        message = f"expected the field {field}, found none"
        raise ValueError(message)
    with np.errstate(over="ignore"):  # beyond float32 is found below, as not finite
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            message = f"expected a number for {field}, found {reprlib.repr(value)}"
            raise ValueError(message)
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        message = f"expected a finite number for {field}, found {reprlib.repr(value)}"
        raise ValueError(message)
    return array


def _checked(array: np.ndarray[Any, Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    if array.shape != shape:
        message = f"expected features of shape {list(shape)}, found {list(array.shape)}"
        raise ValueError(message)
    return array
