from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamflow.errors import GraphError
from streamflow.operators.derivation import Derive
from streamflow.operators.functions import Filter
from streamflow.testing import check_operator
from tests.operators.samples import batch_of, cut, process

numbers = st.integers(-9, 9) | st.none() | st.text(max_size=1)
rows = st.lists(st.fixed_dictionaries({"a": numbers}, optional={"b": numbers}), max_size=12)
cuts = st.lists(st.integers(0, 12), max_size=4)

DERIVE = Derive(inputs=("readings",), fields={"c": "a + b", "a": "c * 2", "d": "a - 1"})


def derived(row: dict[str, Any]) -> dict[str, Any] | None:
    """Do what `DERIVE` says, or nothing where it rejects."""
    if not all(isinstance(row.get(name), int) for name in "ab"):
        return None
    total = row["a"] + row["b"]
    return {**row, "c": total, "a": 2 * total, "d": 2 * total - 1}


@settings(max_examples=60, deadline=None)
@given(rows, cuts, st.booleans())
def test_derive_and_where_are_their_definitions(
    values: list[Any], places: list[int], in_columns: bool
) -> None:
    batches = cut(values, [min(place, len(values)) for place in places], in_columns=in_columns)
    expected = [derived(row) for row in values]
    is_text = [isinstance(row["a"], str) and isinstance(row.get("b"), str) for row in values]
    found, causes = process(DERIVE, batches)
    assert list(map(str, found)) == [str(row) for row in expected if row is not None]  # in order
    assert causes.keys() == {index for index, row in enumerate(expected) if row is None}
    assert all(
        causes[index].startswith("a: TypeError: expected a number, found a str")
        for index, text in enumerate(is_text)
        if text
    )
    where = Filter(inputs=("readings",), where="a > 0 and has('b')")
    kept, causes = process(where, batches)
    good = [row for row in values if isinstance(row["a"], int)]
    assert kept == [row for row in good if row["a"] > 0 and "b" in row]
    assert len(causes) == len(values) - len(good)


@settings(max_examples=20, deadline=None)
@given(rows)
def test_both_go_on(values: list[Any]) -> None:
    check_operator(lambda: DERIVE, values)
    check_operator(lambda: Filter(inputs=("readings",), where="a > 0"), values)


def test_causes_of_derive() -> None:
    rows = [{"a": 1}, [1], {"a": 1, "b": 2}]
    assert process(DERIVE, [batch_of(rows)]) == (
        [{"a": 6, "b": 2, "c": 3, "d": 5}],
        {
            0: "c: expected the field b, found none",
            1: "expected fields, found a list without",
        },
    )


def test_key_and_value_are_known() -> None:
    derive = Derive(inputs=("readings",), fields={"k": "key()", "all": "value()"})
    assert process(derive, [batch_of([{"a": 1}])])[0] == [
        {"a": 1, "k": "key 0", "all": {"a": 1, "k": "key 0"}}
    ]


def test_what_other_nodes_see_stays() -> None:
    values = [{"a": 1, "b": 2}, {"b": 3}]
    process(DERIVE, [batch_of(values)])
    assert values == [{"a": 1, "b": 2}, {"b": 3}]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "expected where or function, found neither; write one of them"),
        ({"where": "a", "function": len}, "expected where or function, found both; write one"),
        ({"where": "a.b"}, "where: expected what expressions can do, found 'a.b'"),
    ],
)
def test_a_filter_has_one_condition(options: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        Filter(inputs=("readings",), **options)


def test_fields_of_derive_are_checked() -> None:
    with pytest.raises(GraphError, match=r"found none; write \{name: expression\}"):
        Derive(inputs=("readings",), fields={})
    with pytest.raises(GraphError, match=r"fields\.b: expected an expression, found 'a \+'"):
        Derive(inputs=("readings",), fields={"b": "a +"})
