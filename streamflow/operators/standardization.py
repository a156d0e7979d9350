"""The open `Standardize`: running statistics of numbers and arrays."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np

from streamflow.contracts import Processed
from streamflow.evaluation.moments import Floats, Moments
from streamflow.operators.step import Step, absent
from streamflow.records import MISSING, Batch, Column, split_rejected

LARGEST = 1e150
"""Beyond it a square is no longer finite."""

Shape: TypeAlias = tuple[int, ...]


class StandardizeStep(Step):
    """An open `Standardize`; shapes as in `Moments`, one column for each element of each field."""

    def __init__(self, fields: tuple[str, ...]) -> None:
        self._fields = fields
        self._shapes: list[Shape] | None = None
        self._moments = Moments()

    def process(self, batch: Batch) -> Processed:
        """Return the records with the fields replaced."""
        columns = [batch.column(name) for name in self._fields]
        x_NF = self._read(columns)
        is_good_N = (np.abs(x_NF) <= LARGEST).all(axis=1)  # false for nan
        causes = {
            int(index): self._cause(batch, int(index), columns)
            for index in np.flatnonzero(~is_good_N)
        }
        good, rejected = split_rejected(batch, causes)
        if not len(good):
            return Processed(rejected=rejected)
        replaced = self._write(good, self._standardize(x_NF[is_good_N]))
        return Processed(replaced, rejected)

    def state(self) -> dict[str, Any]:
        """Return the shapes of the fields, once they are known, and their running statistics."""
        if self._shapes is None:
            return {"shapes": None}
        return {"shapes": list(map(list, self._shapes)), "moments": self._moments.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over shapes and statistics."""
        if state["shapes"] is not None:
            self._shapes = list(map(tuple, state["shapes"]))
            self._moments = Moments.restored(state["moments"])

    def _read(self, columns: Sequence[Column]) -> Floats:
        """Return all fields of each record as numbers, not a number where one is unusable."""
        if self._shapes is None:
            self._shapes = _first_shapes(columns)
            if self._shapes is None:
                return np.full((len(columns[0]), 1), np.nan)
        return np.concatenate(
            [_block(column, shape) for column, shape in zip(columns, self._shapes, strict=True)],
            axis=1,
        )

    def _standardize(self, x_NF: Floats) -> Floats:
        mean_NF, variance_NF = self._moments.absorb(x_NF)
        z_NF = np.zeros_like(x_NF)
        return np.divide(x_NF - mean_NF, np.sqrt(variance_NF), out=z_NF, where=variance_NF > 0)

    def _write(self, batch: Batch, z_NF: Floats) -> Batch:
        """Return the batch, laid out as it was, with the fields replaced."""
        assert self._shapes is not None
        ends = np.cumsum([0, *map(math.prod, self._shapes)]).tolist()
        columns: dict[str, Column] = {}
        for name, shape, (start, stop) in zip(
            self._fields, self._shapes, pairwise(ends), strict=True
        ):
            block = np.ascontiguousarray(z_NF[:, start:stop]).reshape(-1, *shape)
            columns[name] = _alike(block, batch.column(name))
        if isinstance(batch.values, dict):
            return batch.with_values({**batch.values, **columns})
        new_rows = batch.with_values(columns).rows()
        rows = zip(batch.values, new_rows, strict=True)
        return batch.with_values([{**old, **new} for old, new in rows])

    def _cause(self, batch: Batch, index: int, columns: Sequence[Column]) -> str:
        """Return why a record is rejected.

        Shapes are compared last, so that it does not matter whether they are already known.
        """
        values = [column[index] for column in columns]
        for name, value in zip(self._fields, values, strict=True):
            if value is MISSING:
                return absent(batch, index, name)
            if not _is_usable(_numbers(value)):
                return f"{name}: expected numbers of at most {LARGEST:g}, found {_shown(value)}"
        assert self._shapes is not None
        for name, value, shape in zip(self._fields, values, self._shapes, strict=True):
            if np.shape(value) != shape:
                return f"{name}: expected the shape {shape}, found {np.shape(value)}"
        raise AssertionError


def _first_shapes(columns: Sequence[Column]) -> list[Shape] | None:
    """Return the shapes of the first record whose fields are all usable."""
    for values in zip(*columns, strict=True):
        arrays = [_numbers(value) for value in values]
        if all(map(_is_usable, arrays)):
            return [np.shape(value) for value in values]
    return None


def _is_usable(array: Floats | float | None) -> bool:
    return array is not None and bool((np.abs(array) <= LARGEST).all())


def _numbers(value: Any) -> Floats | float | None:
    """Return a number or an array of numbers as floats, anything else as nothing."""
    if type(value) is float:
        return value
    if type(value) is int:
        return float(value) if abs(value) <= LARGEST else math.inf
    try:
        array = np.asarray(value)
    except ValueError:  # lists of different lengths
        return None
    return array.astype(np.float64) if array.dtype.kind in "iuf" else None


def _block(column: Column, shape: Shape) -> Floats:
    """Return a column as floats (N, elements), not a number where a value is unusable."""
    width = math.prod(shape)
    if not isinstance(column, list):
        if column.dtype.kind in "iuf" and column.shape[1:] == shape:
            return column.astype(np.float64).reshape(len(column), width)
    elif not shape and set(map(type, column)) <= {float, int}:
        with suppress(OverflowError):  # an integer beyond any float
            return np.array(column, dtype=np.float64)[:, None]
    entries = [_entry(value, shape) for value in column]
    return np.array(entries, dtype=np.float64).reshape(len(column), width)


def _entry(value: Any, shape: Shape) -> Floats | float:
    """Return a value as floats of this shape, not a number if it is unusable."""
    array = _numbers(value)
    if array is None or getattr(array, "shape", ()) != shape:
        return np.full(shape, np.nan) if shape else math.nan
    return array


def _shown(value: Any) -> str:
    """Return a value, shortened, as Python writes it."""
    return reprlib.repr(value.tolist() if isinstance(value, np.ndarray | np.generic) else value)


def _alike(block: Floats, column: Column) -> Column:
    """Return the block so that records which held lists hold lists again."""
    if block.ndim == 1 or not isinstance(column, list):
        return block
    pairs = zip(block, column, strict=True)
    return [new.tolist() if isinstance(old, list | tuple) else new for new, old in pairs]
