from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamflow.contracts import Context
from streamflow.errors import GraphError, Problem
from streamflow.operators.functions import Filter, FlatMap, FunctionOperator, Map
from tests.operators.samples import batch_of, cut, process


def half(value: dict[str, Any]) -> dict[str, Any]:
    return {"half": value["a"] / 2}


def count_up(value: dict[str, Any]) -> Iterator[dict[str, int]]:
    for number in range(value["a"]):
        yield {"n": number}
    if value["a"] < 0:
        message = "too small"
        raise ValueError(message)


def spoil(value: dict[str, Any]) -> dict[str, Any]:
    value["a"] = "spoilt"
    return value


def is_positive(value: dict[str, Any]) -> bool:
    return bool(value["a"] > 0)


rows = st.lists(
    st.fixed_dictionaries({"a": st.integers(-9, 9) | st.none() | st.text(max_size=1)}), max_size=12
)
cuts = st.lists(st.integers(0, 12), max_size=4)


@settings(deadline=None)
@given(rows, cuts, st.booleans())
def test_map_and_filter_are_their_definitions(
    values: list[Any], places: list[int], in_columns: bool
) -> None:
    batches = cut(values, [min(place, len(values)) for place in places], in_columns=in_columns)
    good = [value for value in values if isinstance(value["a"], int)]
    bad = {index for index, value in enumerate(values) if not isinstance(value["a"], int)}
    mapped, causes = process(Map(inputs=("readings",), function=half), batches)
    assert mapped == [{"half": value["a"] / 2} for value in good]
    assert causes.keys() == bad
    kept, causes = process(Filter(inputs=("readings",), function=is_positive), batches)
    assert kept == [value for value in good if value["a"] > 0]
    assert causes.keys() == bad


@settings(max_examples=60, deadline=None)
@given(rows, cuts, st.booleans())
def test_flat_map_is_its_definition(values: list[Any], places: list[int], in_columns: bool) -> None:
    batches = cut(values, [min(place, len(values)) for place in places], in_columns=in_columns)
    operator = FlatMap(inputs=("readings",), function=count_up, max_records=7)
    good = [index for index, value in enumerate(values) if value["a"] in range(8)]
    found, causes = process(operator, batches)
    assert found == [{"n": number} for index in good for number in range(values[index]["a"])]
    assert causes.keys() == set(range(len(values))) - set(good)


def test_records_of_a_flat_map_are_told_from_where_they_come() -> None:
    operator = FlatMap(inputs=("readings",), function=lambda value: value["parts"])
    with operator.open(Context("node")) as processor:
        batch = processor.process(batch_of({"parts": [["x", "y"], (), ["z"]]}, 5)).batch
    assert batch is not None
    assert batch.rows() == ["x", "y", "z"]
    assert list(batch.offsets) == [5, 5, 7]
    assert batch.keys == ["key 5", "key 5", "key 7"]


@pytest.mark.parametrize(
    ("result", "cause"),
    [
        ("text", "TypeError: expected a list of values, found a str"),
        ({"a": 1}, "TypeError: expected a list of values, found a dict"),
        (None, "TypeError: expected a list of values, found a NoneType"),
        (range(3), "ValueError: expected at most 2 records for one, found more"),
    ],
)
def test_causes_of_flat_map(result: Any, cause: str) -> None:
    operator = FlatMap(inputs=("readings",), function=lambda value: result, max_records=2)
    assert process(operator, [batch_of([1])]) == ([], {0: cause})


def test_an_exception_is_the_cause() -> None:
    batch = batch_of({"a": [2, "x"]})
    with Map(inputs=("readings",), function=half).open(Context("node")) as processor:
        processed = processor.process(batch)
    assert processed.batch is not None
    assert processed.batch.values == {"half": [1.0]}
    assert processed.batch.keys == ["key 0"]
    assert processed.rejected is not None
    assert processed.rejected.causes == [
        "TypeError: unsupported operand type(s) for /: 'str' and 'int'"
    ]
    assert processed.rejected.batch.originals == [b"original 1"]


def test_nothing_left_is_no_batch() -> None:
    batch = batch_of({"a": [-1]})
    with Filter(inputs=("readings",), function=is_positive).open(Context("node")) as processor:
        assert processor.process(batch).batch is None
    with Map(inputs=("readings",), function=half).open(Context("node")) as processor:
        assert processor.process(batch_of([None])).batch is None


@pytest.mark.parametrize("operator", [Map, FlatMap, Filter])
def test_functions_cannot_change_what_other_nodes_see(
    operator: type[FunctionOperator],
) -> None:
    values = [{"a": 1}, {"b": 2}]
    process(operator(inputs=("readings",), function=spoil), [batch_of(values)])
    assert values == [{"a": 1}, {"b": 2}]


def test_size_follows_the_new_values() -> None:
    operator = Map(inputs=("readings",), function=lambda value: np.zeros(value["a"]))
    with operator.open(Context("node")) as processor:
        batch = processor.process(batch_of({"a": [1000] * 40})).batch
    assert batch is not None
    assert batch.size_bytes == 40 * 8000


def test_functions_are_found_beside_the_graph(tmp_path: Path) -> None:
    (tmp_path / "functions_beside.py").write_text("def twice(value):\n    return 2 * value\n")
    operator = Map(inputs=("readings",), function="functions_beside:twice")
    assert list(operator.deep_problems(tmp_path)) == []
    with operator.open(Context("node", tmp_path)) as processor:
        batch = processor.process(batch_of([1, 2])).batch
    assert batch is not None
    assert batch.values == [2, 4]


@pytest.mark.parametrize(
    ("function", "cause"),
    [
        ("no_such_module:f", "expected no_such_module:f to import, found ModuleNotFoundError"),
        ("math:no_such", "expected math:no_such to import, found AttributeError"),
        ("math:pi", "expected math:pi to be callable, found float; name a function"),
    ],
)
def test_functions_that_do_not_import_are_deep_problems(function: str, cause: str) -> None:
    operator = Filter(inputs=("readings",), function=function)
    (problem,) = operator.deep_problems(Path())
    assert problem == Problem(("function",), problem.message)
    assert problem.message.startswith(cause)


def test_a_function_is_named_by_module_and_name() -> None:
    with pytest.raises(GraphError, match=r"expected package\.module:callable"):
        Map(inputs=("readings",), function="math.sqrt")
