from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamflow.records import (
    MISSING,
    Batch,
    Columns,
    Partition,
    column_items,
    concatenate,
    estimate_bytes,
    split_rejected,
    to_columns,
    without_missing,
)

PLACES = [Partition("s", (("path", "a"),), "line"), Partition("s", (("path", "b"),), "line")]

scalars = st.none() | st.integers(-5, 5) | st.sampled_from(["x", 0.5, True])
names = st.sampled_from(["a", "b", "c"])
loose_rows = st.lists(st.dictionaries(names, scalars, max_size=3) | scalars, max_size=8)


@st.composite
def arrays(draw: st.DrawFn) -> dict[str, Any]:
    """Return columns of arrays and lists of one length."""
    size = draw(st.integers(0, 6))
    shape = draw(st.sampled_from([(), (2,), (2, 1)]))
    dtype = draw(st.sampled_from(["int64", "float32", "bool"]))
    array = (np.arange(size * int(np.prod(shape))).reshape(size, *shape) % 5).astype(dtype)
    return {"array": array, "list": draw(st.lists(scalars, min_size=size, max_size=size))}


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    values = draw(loose_rows.map(to_columns) | loose_rows | arrays())
    size = len(next(iter(values.values()), [])) if isinstance(values, dict) else len(values)
    if values == {}:
        size = draw(st.integers(0, 3))

    def maybe(entries: st.SearchStrategy[Any]) -> Any:
        return draw(st.none() | st.lists(entries, min_size=size, max_size=size))

    return Batch(
        values,
        [PLACES[index % 2] for index in range(size)],
        draw(st.sampled_from([range(size), list(range(7, 7 + size))])),
        keys=maybe(st.sampled_from(["k", None])),
        timestamps_ms=maybe(st.sampled_from([1, None])),
        headers=maybe(st.sampled_from([(), (("h", b"v"),)])),
        originals=maybe(st.binary(max_size=2)),
        size_bytes=100 * size,
    )


def plain(value: Any) -> Any:
    """Return a value that can be compared, types included."""
    if isinstance(value, dict):
        return {name: plain(entry) for name, entry in value.items()}
    if isinstance(value, np.ndarray):
        return (str(value.dtype), value.tolist())
    return (type(value), value)


def contents(batch: Batch) -> list[Any]:
    """Return all that a batch says about each record."""
    originals = batch.originals or [b""] * len(batch)
    records = list(batch.records())
    assert len(records) == len(batch)
    return [
        (plain(r.value), r.key, r.timestamp_ms, r.headers, r.position, original)
        for r, original in zip(records, originals, strict=True)
    ]


@given(batches(), st.data())
def test_select(batch: Batch, data: st.DataObject) -> None:
    indices = data.draw(st.lists(st.integers(0, len(batch) - 1)) if len(batch) else st.just([]))
    kind: Callable[[list[int]], Any] = data.draw(st.sampled_from([list, tuple]))
    chosen = batch.select(kind(indices))
    assert contents(chosen) == [contents(batch)[index] for index in indices]
    assert chosen.size_bytes == 100 * len(indices)


@given(batches(), st.integers(-3, 9), st.integers(-3, 9))
def test_slice(batch: Batch, start: int, stop: int) -> None:
    assert contents(batch.slice(start, stop)) == contents(batch)[start:stop]


@given(st.lists(batches(), min_size=1, max_size=4))
def test_concatenate(parts: list[Batch]) -> None:
    whole = concatenate(parts)
    assert contents(whole) == [entry for part in parts for entry in contents(part)]
    assert whole.size_bytes == sum(part.size_bytes for part in parts)


@given(batches(), st.data())
def test_parts_make_the_whole(batch: Batch, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(batch)))
    parts = concatenate([batch.slice(0, cut), batch.slice(cut, len(batch))])
    assert contents(parts) == contents(batch)


def test_arrays_of_other_shapes_and_types_stay_as_they_are() -> None:
    columns: list[Any] = [np.ones(1, "int64"), np.ones(1, "float32"), np.ones((1, 2)), ["x"]]
    parts = [Batch({"a": column}, PLACES[:1], [0]) for column in columns]
    assert [plain(row["a"]) for row in concatenate(parts).rows()] == [
        (int, 1),
        (float, 1.0),
        ("float64", [1.0, 1.0]),
        (str, "x"),
    ]
    same = concatenate([parts[0], parts[0]]).column("a")
    assert isinstance(same, np.ndarray)
    assert same.tolist() == [1, 1]


@given(batches())
def test_columns_are_fields_of_rows(batch: Batch) -> None:
    for name in ("a", "array", "list", "absent"):
        expected = [
            row.get(name, MISSING) if isinstance(row, dict) else MISSING for row in batch.rows()
        ]
        column = list(column_items(batch.column(name)))
        assert [plain(entry) for entry in column] == [plain(entry) for entry in expected]


@given(batches())
def test_changing_rows_of_columns_changes_no_batch(batch: Batch) -> None:
    before = contents(batch)
    if isinstance(batch.values, dict):
        for row in batch.rows():
            row["new"] = 1
    assert contents(batch) == before


@given(loose_rows)
def test_columns_of_rows_are_the_rows(rows: list[Any]) -> None:
    values = to_columns(rows)
    batch = Batch(values, PLACES[:1] * len(rows), range(len(rows)))
    assert [plain(row) for row in batch.rows()] == [plain(row) for row in rows]
    alike = len({tuple(row) if isinstance(row, dict) else None for row in rows}) == 1
    assert isinstance(values, dict) == (alike and isinstance(rows[0], dict))


@given(st.integers(1, 5), st.data())
def test_without_missing(size: int, data: st.DataObject) -> None:
    entries = st.lists(st.just(MISSING) | scalars, min_size=size, max_size=size)
    columns: Columns = data.draw(st.dictionaries(names, entries))
    columns["array"] = np.arange(size)
    expected = [
        {
            name: entry
            for name, column in columns.items()
            if (entry := list(column_items(column))[place]) is not MISSING
        }
        for place in range(size)
    ]
    values = without_missing(columns, size)
    batch = Batch(values, PLACES[:1] * size, range(size))
    assert [plain(row) for row in batch.rows()] == [plain(row) for row in expected]
    assert isinstance(values, dict) == (len(set(map(tuple, expected))) == 1)


@given(batches(), st.data())
def test_rejected_records_and_the_others_are_all(batch: Batch, data: st.DataObject) -> None:
    causes = data.draw(st.dictionaries(st.integers(0, max(len(batch) - 1, 0)), st.text()))
    causes = causes if len(batch) else {}
    good, rejected = split_rejected(batch, causes)
    assert contents(good) == [
        entry for index, entry in enumerate(contents(batch)) if index not in causes
    ]
    if rejected is None:
        assert not causes
        assert good is batch
        return
    assert list(rejected.indices) == sorted(causes)
    assert list(rejected.causes) == [causes[index] for index in sorted(causes)]
    assert contents(rejected.batch) == [contents(batch)[index] for index in sorted(causes)]


def test_positions() -> None:
    assert PLACES[0].position(3) == {"path": "a", "line": 3}
    assert str(PLACES[0]) == "s path=a"
    assert repr(MISSING) == "MISSING"
    assert repr(Batch(["x"], PLACES[:1], [0], size_bytes=5)) == "<Batch 1 records, rows, 5 bytes>"
    assert repr(Batch({"a": [1]}, PLACES[:1], [0])) == "<Batch 1 records, columns ['a'], 0 bytes>"


@pytest.mark.parametrize(
    ("small", "large"),
    [("x", "x" * 9), ([], [1]), ({}, {"a": 1}), ({"a": b""}, {"a": b"1234"}), (1, np.zeros(99))],
)
def test_larger_values_take_more_memory(small: Any, large: Any) -> None:
    assert 0 < estimate_bytes(small) < estimate_bytes(large)


def test_the_size_of_a_value_that_nests_without_end_is_estimated() -> None:
    value: Any = {}
    for _ in range(50_000):
        value = {"deeper": value}
    assert 64 < estimate_bytes(value) < 2000
    assert estimate_bytes({"a": {"b": "x" * 1000}}) > 1000
