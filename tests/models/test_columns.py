"""Many values at once become the numbers that each of them becomes alone."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from streamflow.models.encoders import number_column, numbers
from streamflow.models.features import FeatureReader
from streamflow.models.heads import BinaryHead, ClassificationHead, Head, RegressionHead
from streamflow.records import MISSING, Batch, Partition
from tests.models.streams import model

plain = st.floats() | st.integers() | st.booleans()
odd = st.sampled_from(
    [None, MISSING, "3", [1.0], 1j, 10**400, 2**53 + 1, 2**63, 1e300, np.float64(1.5), np.ones(1)]
)


def alone(value: Any) -> Any:
    try:
        return numbers(value, "x").tolist()
    except (TypeError, ValueError, OverflowError):
        return None


@given(st.lists(plain, max_size=4) | st.lists(plain | odd, max_size=4))
@example([2**60 + 2**36 + 1, 1])
@example([2**64])
@example([-(2**24) - 1, 16777219])
@example([1.0, math.nan])
@example(["3", 1.0])
@example([3e38, 4e38])
def test_a_column_holds_what_each_number_becomes(values: list[Any]) -> None:
    column = number_column(values)
    if column is not None:
        assert column.dtype == np.float32
        assert column.tolist() == list(map(alone, values))
    elif all(type(value) is float for value in values):
        assert None in map(alone, values)


@pytest.mark.parametrize("dtype", ["?", "i1", "u8", "f2", "f4", "f8"])
def test_an_array_is_a_column_of_numbers(dtype: str) -> None:
    array = np.arange(5).astype(dtype)
    column = number_column(array)
    assert column is not None
    assert column.tolist() == [float(entry) for entry in array]
    assert number_column(array[:, None]) is None
    assert number_column(array.astype("U")) is None
    assert number_column(np.full(2, np.nan, "f4")) is None


def heads() -> list[Head]:
    made: list[Head] = [
        RegressionHead("y"),
        ClassificationHead([1, 2], is_logarithm=False),
        BinaryHead(["a", "b"], is_logit=True),
    ]
    for head, width in zip(made, (1, 2, 1), strict=True):
        head.fit(torch.zeros(1, width))
    return made


@given(values=st.lists(plain, max_size=4) | st.lists(st.sampled_from([1, 2, "a", "b", None, []])))
def test_targets_are_what_each_is_alone(values: list[Any]) -> None:
    for head in heads():
        targets, causes = head.encode(values)
        singly = [head.encode([value]) for value in values]
        assert causes == {place: cause[0] for place, (_, cause) in enumerate(singly) if cause}
        assert targets.is_known.tolist() == [bool(one.is_known[0]) for one, _ in singly]
        stacked = [head.stack(one) for one, _ in singly]
        assert head.stack(targets).tolist() == (torch.cat(stacked).tolist() if stacked else [])


def test_more_features_than_a_single_record_had_are_no_input() -> None:
    reader = FeatureReader(model(features=("a", "b")))
    reader.shape = (3,)
    batch = Batch({"a": [1.0], "b": [2.0]}, [Partition("s")], [0])
    inputs = reader.read(batch)
    assert inputs.causes == {0: "expected features of shape [3], found [2]"}
    assert inputs.values.tolist() == [[0.0, 0.0, 0.0]]
