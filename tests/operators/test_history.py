from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamflow.errors import GraphError
from streamflow.operators.history import History
from streamflow.records import Record
from streamflow.testing import check_operator
from tests.operators.samples import run
from tests.operators.test_passing import Remembered

rows = st.fixed_dictionaries({"a": st.integers(0, 99)}, optional={"b": st.text(max_size=1)})
halves = st.integers(0, 18).map(lambda n: 500 * n)
records = st.lists(
    st.builds(Record, rows, st.sampled_from(["x", "y", "z"]), halves),
    max_size=14,
)
cuts = st.lists(st.integers(0, 14), max_size=4)


def expected(operator: History, stream: list[Record]) -> list[Any]:
    """Do what `History` says."""
    known = Remembered(operator.max_keys, operator.ttl)
    values: list[Any] = []
    for record in stream:
        if not all(name in record.value for name in operator.fields):
            continue
        past = known.at(record.key, record.timestamp_ms or 0) or []
        known.put(record.key, [*past, record.value])
        if operator.current:
            past = [*past, record.value]
        past = past[-operator.length :]
        if operator.start == "pad" and past:
            past = [past[0]] * (operator.length - len(past)) + past
        if operator.start != "short" and len(past) < operator.length:
            continue
        lists = {
            name + operator.suffix: [value[name] for value in past] for name in operator.fields
        }
        values.append({**record.value, **lists})
    return values


@settings(max_examples=100, deadline=None)
@given(
    records,
    cuts,
    st.booleans(),
    st.fixed_dictionaries(
        {
            "fields": st.sampled_from([("a",), ("a", "b")]),
            "length": st.integers(1, 4),
            "current": st.booleans(),
            "start": st.sampled_from(["skip", "pad", "short"]),
            "suffix": st.sampled_from(["_history", "s"]),
            "max_keys": st.integers(1, 3),
            "ttl": st.none() | st.integers(1, 5),
        }
    ),
)
def test_history_is_its_definition(
    stream: list[Record], places: list[int], in_columns: bool, options: dict[str, Any]
) -> None:
    operator = History(inputs=("in",), **options)
    found = run(operator, stream, places, in_columns=in_columns)
    assert found.values == expected(operator, stream)
    lacking = {
        index
        for index, record in enumerate(stream)
        if not all(name in record.value for name in operator.fields)
    }
    assert found.causes == dict.fromkeys(lacking, "expected the field b, found none")
    assert found.report["records left out"] == len(stream) - len(lacking) - len(found.values)
    check_operator(lambda: operator, stream)


def test_other_fields_key_and_position_stay() -> None:
    stream = [Record({"a": n, "c": "c"}, "k", 10 * n) for n in range(3)]
    found = run(History(inputs=("in",), fields=("a",), length=2), stream)
    assert [(one.value, one.key, one.timestamp_ms, one.position) for one in found.records] == [
        ({"a": 1, "c": "c", "a_history": [0, 1]}, "k", 10, {"index": 1}),
        ({"a": 2, "c": "c", "a_history": [1, 2]}, "k", 20, {"index": 2}),
    ]


def test_what_has_no_fields_is_rejected() -> None:
    found = run(History(inputs=("in",), fields=("a",), length=1), [5, {"a": 1}])
    assert found.causes == {0: "expected the field a, found a int without fields"}
    assert found.values == [{"a": 1, "a_history": [1]}]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fields": ()}, "fields"),
        ({"length": 0}, "length: expected a number of at least 1"),
        ({"start": "wait"}, "start: expected"),
        ({"suffix": ""}, "suffix: expected text of 1 or more"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        History(**{"inputs": ("in",), "fields": ("a",), "length": 2} | options)
