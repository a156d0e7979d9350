"""Cells mean what they mean one by one, however many are read at once."""

import csv
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streamflow.codecs import CsvCodec
from streamflow.codecs.cells import read_cell, read_column

numbers = st.floats(allow_nan=False).map(repr) | st.integers().map(str)
odd = st.sampled_from(
    [
        *("", "-0", "+5", "007", ".5", "5.", "1e5", "1E-5", "1e400", "-1e-400", "1_0", " 5"),
        *("9" * 18, "9" * 19, "-" + "9" * 19, str(2**64), "9" * 5000, "0." + "1" * 25),
        *("1." + "0" * 5000, "1e" + "0" * 5000, "1e-" + "0" * 5000),
        *("1,2", "1\n2", "2020-01-01", "up", "nan", "null", "[1]"),
    ]
)
cells = numbers | odd | st.text("0123456789+-.eE,;\n\r\"'[] ", max_size=6)
payloads = st.lists(cells, max_size=3).map(",".join) | st.text("12.-;?,\n\r\"'", max_size=8)
rows = st.lists(st.tuples(numbers, numbers), min_size=1, max_size=4)


def same(found: Any, wanted: Any) -> bool:
    return repr(found) == repr(wanted)  # tells 1 from 1.0, and 0.0 from -0.0


@given(st.lists(numbers | odd, max_size=5) | st.lists(cells, max_size=5))
@example(["5", "1,2"])
@example(["9" * 5000])
@example(["-" + "9" * 19])
@example(["1." + "0" * 5000])
@example(["1e" + "0" * 5000])
def test_a_column_means_what_its_cells_mean(column: list[str]) -> None:
    assert same(read_column(column), [read_cell(cell) for cell in column])


def one_by_one(payload: bytes, delimiter: str, quotechar: str) -> list[Any] | None:
    """Read a row with the csv module alone; None if it is no row of two cells."""
    try:
        lines = [payload.decode(), ""]
        found = list(csv.reader(lines, delimiter=delimiter, quotechar=quotechar))
    except csv.Error:
        return None
    is_row = len(found) == 2 and len(found[0]) == 2
    return list(map(read_cell, found[0])) if is_row else None


@pytest.mark.parametrize("delimiter", [",", ";", "?", "-", "e"])
@pytest.mark.parametrize("quotechar", ['"', "1", "."])
@given(table=rows, payload=st.none() | payloads, place=st.integers(0, 3))
@example(table=[("1", "2")], payload="1\n2,3\n4", place=0)
@example(table=[("1", "2")], payload="1,2\n3,4", place=0)
@example(table=[("1", "2")], payload="5,6", place=0)
@example(table=[("3", "4"), ("5", "6")], payload="1\r,2\r", place=1)
@example(table=[("1.5", "12")], payload=None, place=0)
@example(table=[("1", "2")], payload="3,4,5", place=1)
def test_rows_mean_what_the_csv_module_says(
    delimiter: str,
    quotechar: str,
    table: list[tuple[str, str]],
    payload: str | None,
    place: int,
) -> None:
    payloads = [delimiter.join(row).encode() for row in table]
    if payload is not None:
        payloads.insert(place, payload.encode())
    wanted = [one_by_one(payload, delimiter, quotechar) for payload in payloads]
    decoded = CsvCodec(["a", "b"], delimiter=delimiter, quotechar=quotechar).decode(payloads)
    assert isinstance(decoded.values, dict)
    assert set(decoded.causes) == {place for place, row in enumerate(wanted) if row is None}
    found = list(zip(*decoded.values.values(), strict=True))
    assert same(found, [tuple(row) for row in wanted if row is not None])
