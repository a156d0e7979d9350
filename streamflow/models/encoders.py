"""From the values of one field to numbers: an encoder for each kind of feature.

Every encoder knows two ways that come to the same: a whole column at once where all values are of
the usual kind, and a single value. A value that is missing becomes numbers that are none (nan), if
the feature bears that.

Shapes: N records, W numbers of the field.
"""

from __future__ import annotations

import reprlib
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from hashlib import blake2b
from types import NoneType
from typing import Any, TypeAlias

import numpy as np

from streamflow.models.calendar import Clock, Integers, parts_of
from streamflow.models.feature import Feature, Gaps
from streamflow.records import MISSING, Column, Missing, column_items

Floats32: TypeAlias = "np.ndarray[Any, np.dtype[np.float32]]"

PLAIN = frozenset({float, int, bool})
EMPTY = frozenset({NoneType, Missing})
MOST_EXACT = 2.0**53
MOST_HASHED = 65_536
"""How many hashes are remembered at a time."""

GAP = -1
UNKNOWN = -2


class FeatureEncoder(ABC):
    """Turns values of a field into numbers.

    Args:
        feature: The field, and what becomes of it.
        gaps: What becomes of records that lack it.
    """

    def __init__(self, feature: Feature, gaps: Gaps) -> None:
        self.name = str(feature)
        self.width = feature.width
        self.gaps = gaps

    @property
    def bears_gaps(self) -> bool:
        """Whether a value may be missing."""
        return self.gaps != "error"

    @abstractmethod
    def write(self, column: Column, out_NW: Floats32) -> bool:
        """Write many values, nan for one that is missing; return whether they are all usual."""

    def read(self, value: Any) -> Floats32:
        """Return one value as an array of numbers, nan where it is missing.

        Raises:
            ValueError: It cannot be one.
        """
        if self.bears_gaps and is_missing(value):
            return np.full(self.width or (), np.nan, np.float32)
        if value is MISSING:
            message = f"expected the field {self.name}, found none"
            raise ValueError(message)
        return self._read(value)

    @abstractmethod
    def _read(self, value: Any) -> Floats32:
        """Return a value that is there."""


class Numbers(FeatureEncoder):
    """A number as it is, or an array of them."""

    def write(self, column: Column, out_NW: Floats32) -> bool:
        """Write a column of plain numbers."""
        numbers_N = number_column(column, has_gaps=self.bears_gaps)
        if numbers_N is None:
            return False
        out_NW[:, 0] = numbers_N
        return True

    def _read(self, value: Any) -> Floats32:
        return numbers(value, self.name, has_gaps=self.bears_gaps)


class Categories(FeatureEncoder):
    """One of several categories, as a one among zeros, or by its index."""

    def __init__(self, feature: Feature, gaps: Gaps) -> None:
        super().__init__(feature, gaps)
        self._is_index = feature.encode == "index"
        self._count = feature.num_categories
        self._hashes = feature.hash
        self._listed = feature.categories or ()
        self._other = self._count - 1 if feature.other else UNKNOWN
        self._places = dict(self._fixed())

    def write(self, column: Column, out_NW: Floats32) -> bool:
        """Write a column of known categories."""
        try:
            found_N = np.fromiter(map(self._place, column_items(column)), np.int64, len(column))
        except (TypeError, ValueError):  # what cannot be hashed
            return False
        if (found_N == UNKNOWN).any():
            return False
        is_gap_N = found_N == GAP
        if self._is_index:
            out_NW[:, 0] = found_N
        else:
            out_NW[:] = 0
            out_NW[np.arange(len(found_N)), found_N] = 1
        out_NW[is_gap_N] = np.nan
        return self.bears_gaps or not is_gap_N.any()

    def _fixed(self) -> Iterator[tuple[Hashable, int]]:
        yield None, GAP
        yield MISSING, GAP
        for place, category in enumerate(self._listed):
            yield category, place

    def _place(self, value: Hashable) -> int:
        """Return the index of a value's category.

        Raises:
            TypeError: The value is no category.
        """
        place = self._places.get(value)
        if place is None:
            place = self._new_place(value)
        return place

    def _new_place(self, value: Hashable) -> int:
        if value != value:
            return GAP
        if self._hashes is None:
            return self._other
        if len(self._places) > MOST_HASHED:
            self._places = dict(self._fixed())
        self._places[value] = place = hash_of(value) % self._hashes
        return place

    def _read(self, value: Any) -> Floats32:
        try:
            place = self._place(value.item() if isinstance(value, np.generic) else value)
        except TypeError:
            place = UNKNOWN
        if place < 0:
            expected = "text or a whole number" if self._hashes else reprlib.repr([*self._listed])
            message = f"expected for {self.name} {expected}, found {reprlib.repr(value)}"
            raise ValueError(message)
        if self._is_index:
            return np.array([place], np.float32)
        one_hot: Floats32 = np.eye(1, self._count, place, dtype=np.float32)[0]
        return one_hot


class Times(FeatureEncoder):
    """Sine and cosine of parts of a time."""

    def __init__(self, feature: Feature, gaps: Gaps) -> None:
        super().__init__(feature, gaps)
        assert feature.parts is not None
        self._parts = feature.parts
        self._clock = Clock(feature.timezone, "ms" if feature.field is None else feature.unit)

    def write(self, column: Column, out_NW: Floats32) -> bool:
        """Write a column of times."""
        seconds_N = self._numbers(column)
        if seconds_N is not None:
            out_NW[:] = parts_of(seconds_N, self._parts)
            return True
        items = list(column_items(column))
        is_gap_N = np.fromiter(map(is_missing, items), np.bool_, len(items))
        if is_gap_N.any() and not self.bears_gaps:
            return False
        try:
            seconds = [
                0 if is_gap else self._clock.read(item)
                for item, is_gap in zip(items, is_gap_N.tolist(), strict=True)
            ]
        except ValueError:
            return False
        out_NW[:] = parts_of(np.array(seconds, np.int64), self._parts)
        out_NW[is_gap_N] = np.nan
        return True

    def _numbers(self, column: Column) -> Integers | None:
        """Return the times of a column that holds numbers only."""
        if isinstance(column, list):
            if not set(map(type, column)) <= {int, float}:
                return None
            column = np.array(column)
        return self._clock.read_numbers(column) if column.dtype.kind in "iuf" else None

    def _read(self, value: Any) -> Floats32:
        seconds_1 = np.array([self._clock.read(value)], np.int64)
        parts: Floats32 = parts_of(seconds_1, self._parts)[0]
        return parts


def make_encoder(feature: Feature, gaps: Gaps) -> FeatureEncoder:
    """Return what turns a feature into numbers.

    Args:
        feature: The feature.
        gaps: What becomes of records that lack it, if it does not say so itself.
    """
    gaps = feature.nan or gaps
    if feature.parts:
        return Times(feature, gaps)
    if feature.num_categories:
        return Categories(feature, gaps)
    return Numbers(feature, gaps)


def is_missing(value: Any) -> bool:
    """Return whether a value is not there, or a number that is none."""
    if value is None or value is MISSING:
        return True
    return isinstance(value, float | np.floating | np.datetime64) and bool(value != value)


def hash_of(value: object) -> int:
    """Return a number that is the same in every run; equal numbers of all types have the same.

    Raises:
        TypeError: The value is neither text, bytes nor a whole number.
    """
    if isinstance(value, str | bytes):
        data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
    elif isinstance(value, int | float) and value == value // 1:
        data = str(int(value)).encode()
    else:
        message = f"expected text or a whole number, found {value!r}"
        raise TypeError(message)
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")


def number_column(column: Column, *, has_gaps: bool = False) -> Floats32 | None:
    """Return a column as float32 (N,) if it holds plain numbers that `numbers` takes, else None.

    Each is what `numbers` makes of it. That also takes what this does not: it is for the usual
    case, all at once.
    """
    if isinstance(column, list):
        wide_N = _wide(column, has_gaps)
        if wide_N is None:
            return None
    elif column.ndim == 1 and column.dtype.kind in "biuf":
        wide_N = column
    else:
        return None
    with np.errstate(over="ignore"):
        column_N = wide_N.astype(np.float32)
    return column_N if _is_usable(column_N, has_gaps) else None


def _wide(column: Sequence[Any], has_gaps: bool) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    """Return numbers of Python's own types as float64, exactly."""
    kinds = set(map(type, column))
    if not kinds <= PLAIN:
        if not (has_gaps and kinds <= PLAIN | EMPTY):
            return None
        column = [np.nan if value is None or value is MISSING else value for value in column]
    try:
        wide_N = np.fromiter(column, np.float64, len(column))
    except OverflowError:
        return None
    if int in kinds and bool((np.abs(wide_N) >= MOST_EXACT).any()):
        return None  # such an integer is not what it was
    return wide_N


def _is_usable(array: Floats32, has_gaps: bool) -> bool:
    return not np.isinf(array).any() if has_gaps else bool(np.isfinite(array).all())


def numbers(value: Any, field: str, *, has_gaps: bool = False) -> Floats32:
    """Return a value as an array of float32.

    Raises:
        ValueError: It is not a number or an array of numbers, or not finite, but for nan where
            there may be gaps.
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
    if not _is_usable(array, has_gaps):
        message = f"expected a finite number for {field}, found {reprlib.repr(value)}"
        raise ValueError(message)
    return array
