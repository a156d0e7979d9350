import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamflow.contracts import Context
from streamflow.errors import GraphError
from streamflow.operators.fields import Rename, Select, Standardize
from tests.operators.samples import batch_of, cut, process

SELECT = Select(inputs=("readings",), fields=("b", "a"))
STANDARDIZE = Standardize(inputs=("readings",), fields=("a", "b"))

cuts = st.lists(st.integers(0, 10), max_size=4)
numbers = st.floats(-1e3, 1e3) | st.integers(-5, 5)
bad_values = st.sampled_from([None, True, "1", math.nan, math.inf, -1e200, 10**400])


def standardized(rows: list[Any], fields: tuple[str, ...]) -> tuple[list[Any], set[int]]:
    """Do what `Standardize` says, from all earlier values anew."""
    seen: dict[str, list[float]] = {name: [] for name in fields}
    results, bad = [], set()
    for index, row in enumerate(rows):
        values: list[Any] = [row.get(name) if isinstance(row, dict) else None for name in fields]
        if not all(type(value) in (int, float) and abs(value) <= 1e150 for value in values):
            bad.add(index)
            continue
        result = dict(row)
        for name, value in zip(fields, values, strict=True):
            earlier = seen[name]
            if len(set(earlier)) > 1:
                mean = math.fsum(earlier) / len(earlier)
                squares = math.fsum((one - mean) ** 2 for one in earlier)
                result[name] = (value - mean) / math.sqrt(squares / len(earlier))
            else:
                result[name] = 0.0
            earlier.append(value)
        results.append(result)
    return results, bad


# Numbers that are close, but not equal, have no exact definition in floating point.
def rounded(rows: list[Any]) -> list[Any]:
    return [
        {
            name: round(value, 3) if isinstance(value, float) and abs(value) <= 1e150 else value
            for name, value in row.items()
        }
        if isinstance(row, dict)
        else row
        for row in rows
    ]


rows_of_numbers = st.lists(
    st.fixed_dictionaries({"a": numbers, "b": numbers, "c": st.just(7)}), max_size=10
).map(rounded)
rows_of_anything = st.lists(
    st.fixed_dictionaries({"a": numbers | bad_values}, optional={"b": numbers | bad_values})
    | st.none(),
    max_size=10,
).map(rounded)


@settings(deadline=None)
@given(rows_of_numbers | rows_of_anything, cuts, st.booleans())
def test_standardize_is_its_definition(
    rows: list[Any], places: list[int], in_columns: bool
) -> None:
    batches = cut(rows, [min(place, len(rows)) for place in places], in_columns=in_columns)
    found, causes = process(STANDARDIZE, batches)
    expected, bad = standardized(rows, ("a", "b"))
    assert causes.keys() == bad
    assert [list(row) for row in found] == [list(row) for row in expected]
    for row, other in zip(found, expected, strict=True):
        assert row == pytest.approx(other, rel=1e-6, abs=1e-6)


@settings(deadline=None)
@given(rows_of_numbers | rows_of_anything, cuts, st.booleans())
def test_standardize_does_not_depend_on_batches(
    rows: list[Any], places: list[int], in_columns: bool
) -> None:
    whole = process(STANDARDIZE, cut(rows, [], in_columns=in_columns))
    single = process(STANDARDIZE, cut(rows, range(1, len(rows)), in_columns=not in_columns))
    places = [min(place, len(rows)) for place in places]
    assert process(STANDARDIZE, cut(rows, places, in_columns=in_columns)) == whole == single


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8"])
def test_arrays_as_columns_are_standardized_element_by_element(dtype: str) -> None:
    arrays = np.random.default_rng(1).integers(0, 100, size=(9, 2, 3)).astype(dtype)
    with Standardize(inputs=("r",), fields=("x",)).open(Context("node")) as processor:
        batch = processor.process(batch_of({"x": arrays})).batch
    assert batch is not None
    assert isinstance(batch.values, dict)
    found = batch.values["x"]
    assert isinstance(found, np.ndarray)
    for index in range(2, 9):
        earlier = arrays[:index].astype(float)
        deviation = np.where(earlier.std(axis=0) > 0, earlier.std(axis=0), np.inf)
        assert found[index] == pytest.approx((arrays[index] - earlier.mean(axis=0)) / deviation)
    assert (found[0] == 0).all()


def test_what_came_as_lists_stays_lists() -> None:
    rows: list[Any] = [{"x": [1, 2.0]}, {"x": np.array([3.0, 2.0])}, {"x": (5, 2)}]
    found, causes = process(Standardize(inputs=("r",), fields=("x",)), [batch_of(rows)])
    assert found[0] == {"x": [0.0, 0.0]}
    assert isinstance(found[1]["x"], np.ndarray)
    assert found[2] == {"x": [3.0, 0.0]}  # mean 2, deviation 1
    assert causes == {}


@pytest.mark.parametrize("places", [[], [1], [1, 2, 3, 4]])
def test_the_first_record_that_is_good_sets_the_shapes(places: list[int]) -> None:
    rows = [
        {"a": [1.0, 2.0], "b": None},  # of no account: rejected for b
        {"a": [1.0, 2.0, 3.0], "b": 1},
        {"a": [1.0, 2.0], "b": 1},
        {"a": 1.0, "b": 1},
        {"a": [4.0, 2.0, 3.0], "b": [1]},
    ]
    found, causes = process(STANDARDIZE, cut(rows, places, in_columns=True))
    assert len(found) == 1
    assert causes == {
        0: "b: expected numbers of at most 1e+150, found None",
        2: "a: expected the shape (3,), found (2,)",
        3: "a: expected the shape (3,), found ()",
        4: "b: expected the shape (), found (1,)",
    }


@pytest.mark.parametrize(
    ("value", "cause"),
    [
        ({"b": 1}, "expected the field a, found none"),
        ("text", "expected the field a, found a str without fields"),
        ({"a": "x", "b": 1}, "a: expected numbers of at most 1e+150, found 'x'"),
        ({"a": True, "b": 1}, "a: expected numbers of at most 1e+150, found True"),
        ({"a": math.nan, "b": 1}, "a: expected numbers of at most 1e+150, found nan"),
        (
            {"a": [[1], [2, 3]], "b": 1},
            "a: expected numbers of at most 1e+150, found [[1], [2, 3]]",
        ),
        ({"a": np.float64(1e200), "b": 1}, "a: expected numbers of at most 1e+150, found 1e+200"),
    ],
)
def test_causes_of_standardize(value: Any, cause: str) -> None:
    good = {"a": 1.0, "b": 2.0}
    assert process(STANDARDIZE, [batch_of([good, value, good])])[1] == {1: cause}


def test_a_rejected_record_keeps_its_original_and_columns_stay_columns() -> None:
    with STANDARDIZE.open(Context("node")) as processor:
        processed = processor.process(batch_of({"a": [1.0, None], "b": [1, 2], "c": ["x", "y"]}))
    assert processed.batch is not None
    assert isinstance(processed.batch.values, dict)
    assert list(processed.batch.values) == ["a", "b", "c"]
    assert processed.batch.keys == ["key 0"]
    assert processed.rejected is not None
    assert processed.rejected.batch.originals == [b"original 1"]
    assert processed.rejected.batch.rows() == [{"a": None, "b": 2, "c": "y"}]


@settings(deadline=None)
@given(rows_of_anything, cuts, st.booleans())
def test_select_is_its_definition(rows: list[Any], places: list[int], in_columns: bool) -> None:
    batches = cut(rows, [min(place, len(rows)) for place in places], in_columns=in_columns)
    found, causes = process(SELECT, batches)
    is_good = [row is not None and "b" in row for row in rows]
    expected = [
        {"b": row["b"], "a": row["a"]} for row, good in zip(rows, is_good, strict=True) if good
    ]
    assert repr(found) == repr(expected)  # nan is not equal to itself
    assert causes.keys() == {index for index, good in enumerate(is_good) if not good}


def test_causes_of_select() -> None:
    rows = [{"a": 1}, [1], None, {"a": 1, "b": 2}]
    assert process(SELECT, [batch_of(rows)]) == (
        [{"b": 2, "a": 1}],
        {
            0: "expected the field b, found none",
            1: "expected the field b, found a list without fields",
            2: "expected the field b, found a NoneType without fields",
        },
    )
    assert process(SELECT, [batch_of({"a": np.arange(2.0)})])[1].keys() == {0, 1}


@pytest.mark.parametrize("operator", [Select, Standardize])
def test_fields_are_checked(operator: type[Select] | type[Standardize]) -> None:
    with pytest.raises(GraphError, match="expected each field once"):
        operator(inputs=("r",), fields=("a", "a"))
    with pytest.raises(GraphError, match="fields"):
        operator(inputs=("r",), fields=())


names = st.sampled_from("abcd")
new_names = st.dictionaries(names, st.sampled_from("abcdef"), min_size=1, max_size=3).filter(
    lambda fields: len(set(fields.values())) == len(fields)
)
some_fields = st.dictionaries(names, st.integers(0, 9), min_size=1)
named_rows = st.lists(some_fields | st.none(), max_size=8)


def renamed(row: dict[str, Any], fields: dict[str, str]) -> dict[str, Any] | None:
    """Do what `Rename` says, or nothing where it rejects."""
    if row is None or not set(fields) <= set(row):
        return None
    pairs = [(fields.get(name, name), value) for name, value in row.items()]
    return dict(pairs) if len(dict(pairs)) == len(pairs) else None


@settings(max_examples=60, deadline=None)
@given(named_rows, new_names, cuts, st.booleans())
def test_rename_is_its_definition(
    rows: list[Any], fields: dict[str, str], places: list[int], in_columns: bool
) -> None:
    batches = cut(rows, [min(place, len(rows)) for place in places], in_columns=in_columns)
    found, causes = process(Rename(inputs=("readings",), fields=fields), batches)
    expected = [renamed(row, fields) for row in rows]
    assert list(map(str, found)) == [str(row) for row in expected if row is not None]  # in order
    assert causes.keys() == {index for index, row in enumerate(expected) if row is None}


def test_causes_of_rename() -> None:
    swap = Rename(inputs=("readings",), fields={"a": "b", "b": "a"})
    assert process(swap, [batch_of({"a": [1], "b": [2]})]) == ([{"b": 1, "a": 2}], {})
    taken = Rename(inputs=("readings",), fields={"a": "b"})
    cause = "expected no field b beside the one that gets this name, found one"
    assert process(taken, [batch_of([{"a": 1, "b": 2}])]) == ([], {0: cause})
    assert process(taken, [batch_of({"b": [2]})])[1] == {0: "expected the field a, found none"}
    assert process(taken, [batch_of(["a"])])[1] == {
        0: "expected the field a, found a str without fields"
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, r"expected old and new names, found none; write \{old: new\}"),
        ({"a": "c", "b": "c"}, "expected each new name once"),
    ],
)
def test_new_names_are_checked(fields: dict[str, str], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        Rename(inputs=("readings",), fields=fields)
