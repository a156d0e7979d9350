"""Operators go on from a checkpoint as if they had never stopped."""

from collections.abc import Mapping
from itertools import count
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streamflow.contracts import Context
from streamflow.errors import GraphError
from streamflow.nodes import Operator
from streamflow.operators.fields import Rename, Select, Standardize
from streamflow.operators.functions import Filter, FlatMap, Map
from streamflow.testing import check_operator
from tests.operators.samples import batch_of


class Change:
    """Remembers the last number; refuses what is none."""

    def __init__(self) -> None:
        self.last = 0.0

    def __call__(self, value: dict[str, Any]) -> dict[str, Any]:
        before, self.last = self.last, 1.0 * value["a"]
        return {"change": self.last - before}

    def state(self) -> dict[str, Any]:
        return {"last": self.last}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.last = state["last"]


class Rises(Change):
    """Is true for numbers larger than the one before."""

    def __len__(self) -> int:
        return 0  # being empty is no reason to be forgotten

    def __call__(self, value: dict[str, Any]) -> Any:
        return super().__call__(value)["change"] > 0


class Reading:
    """A class that is called for each record: only its instances have the methods."""

    def __init__(self, value: dict[str, Any]) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"<Reading {self.value}>"

    def state(self) -> dict[str, Any]:
        raise NotImplementedError

    def restore(self, state: Mapping[str, Any]) -> None:
        raise NotImplementedError


def double(value: dict[str, Any]) -> dict[str, Any]:
    return {"a": value["a"] * 2.0}


numbers = st.floats(-1e6, 1e6) | st.integers(-9, 9)
entries = numbers | st.sampled_from([None, float("nan"), "text", 1e200, True])
rows = st.lists(st.fixed_dictionaries({"a": entries}, optional={"b": numbers}), max_size=8)
arrays = st.lists(
    st.fixed_dictionaries(
        {
            "a": st.lists(numbers, min_size=2, max_size=2).map(np.array) | entries,
            "b": numbers,
        }
    ),
    max_size=8,
)


@settings(max_examples=40, deadline=None)
@given(rows | arrays, st.sampled_from([("a",), ("b",), ("a", "b")]))
@example([{"a": np.array([n, 2.0]), "b": -n} for n in range(4)], ("a", "b"))
def test_standardize_goes_on(values: list[Any], fields: tuple[str, ...]) -> None:
    check_operator(lambda: Standardize(inputs=("readings",), fields=fields), values)


@settings(max_examples=40, deadline=None)
@given(rows)
def test_select_and_plain_functions_go_on(values: list[Any]) -> None:
    check_operator(lambda: Select(inputs=("readings",), fields=("b",)), values)
    check_operator(lambda: Rename(inputs=("readings",), fields={"a": "c"}), values)
    check_operator(lambda: Map(inputs=("readings",), function=double), values)
    check_operator(lambda: Map(inputs=("readings",), function=Reading), values)


@settings(max_examples=40, deadline=None)
@given(rows)
def test_functions_that_remember_go_on(values: list[Any]) -> None:
    check_operator(lambda: Map(inputs=("readings",), function=Change()), values)
    check_operator(lambda: Filter(inputs=("readings",), function=Rises()), values)
    check_operator(lambda: FlatMap(inputs=("readings",), function=Change()), values)


def test_a_function_that_hides_what_it_remembers_does_not_go_on() -> None:
    def make() -> Operator:
        numbered = count()
        return Map(inputs=("readings",), function=lambda value: next(numbered))

    with pytest.raises(AssertionError, match="after 1 of 2 records"):
        check_operator(make, [0, 0])


@pytest.mark.parametrize(
    "operator",
    [
        Select(inputs=("readings",), fields=("a",)),
        Rename(inputs=("readings",), fields={"a": "b"}),
        Map(inputs=("readings",), function=double),
        Filter(inputs=("readings",), function=double),
    ],
)
def test_stateless_operators_have_no_state(operator: Operator) -> None:
    with operator.open(Context("node")) as processor:
        processor.process(batch_of({"a": [1.0, 2.0]}))
        assert processor.state() == {}
        processor.restore({})


def test_what_was_remembered_is_not_lost_in_silence() -> None:
    with Map(inputs=("readings",), function=Change()).open(Context("node")) as processor:
        processor.process(batch_of({"a": [3.0]}))
        state = processor.state()
    assert state == {"function": {"last": 3.0}}
    with Map(inputs=("readings",), function=double).open(Context("node")) as processor:
        message = "function: expected an object with the methods state and restore, as it was"
        with pytest.raises(GraphError, match=message):
            processor.restore(state)
