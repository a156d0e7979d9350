import math
import re
from datetime import UTC, datetime
from typing import Any

import msgpack  # type: ignore[import-untyped]  # it ships no types
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from streamflow.codecs import (
    CsvFormat,
    FileFormatField,
    Format,
    FormatField,
    JsonFormat,
    MsgpackFormat,
    RawFormat,
    decode,
    encode,
    named_format,
)
from streamflow.codecs.framing import Splitter
from streamflow.records import Batch, Partition

CSV = CsvFormat(fields=("a", "b"))
FORMATS = [CSV, JsonFormat(), MsgpackFormat(), RawFormat()]
PARTITION = Partition("test")

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
integers = st.integers(-(2**63), 2**63 - 1)
floats = st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | integers | floats | texts
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


def batch_of(rows: Any, **columns: Any) -> Batch:
    return Batch(rows, [PARTITION] * len(rows), range(len(rows)), **columns)


def decoded(declared: Format, payloads: list[bytes]) -> tuple[list[Any], dict[int, str]]:
    fetch = decode(declared.codec(), batch_of(payloads, originals=payloads), {PARTITION: 1})
    rejected = fetch.rejected
    causes = dict(zip(rejected.batch.offsets, rejected.causes, strict=True)) if rejected else {}
    return fetch.batch.rows(), causes


def encoded(declared: Format, rows: list[Any]) -> tuple[list[bytes], dict[int, str]]:
    _, payloads, rejected = encode(declared.codec(), batch_of(rows))
    causes = dict(zip(rejected.batch.offsets, rejected.causes, strict=True)) if rejected else {}
    return payloads, causes


def split(splitter: Splitter, data: bytes, size: int) -> list[bytes]:
    parts = [data[start : start + size] for start in range(0, len(data), size)]
    return [payload for part in parts for payload in splitter.split(part)] + splitter.end()


@given(st.lists(values, max_size=4))
def test_json_and_msgpack_bring_values_back(rows: list[Any]) -> None:
    for declared in (JsonFormat(), MsgpackFormat()):
        payloads, causes = encoded(declared, rows)
        assert not causes
        assert decoded(declared, payloads) == (rows, {})


@given(st.lists(st.tuples(integers | floats | st.none(), texts), max_size=4))
def test_csv_brings_numbers_and_text_back(pairs: list[tuple[Any, str]]) -> None:
    rows = [{"a": number, "b": f"<{text}>"} for number, text in pairs]
    payloads, causes = encoded(CSV, rows)
    assert not causes
    assert decoded(CSV, payloads) == (rows, {})


@given(st.lists(st.binary(max_size=20), max_size=6))
def test_no_payload_raises_and_neighbours_change_nothing(payloads: list[bytes]) -> None:
    for declared in FORMATS:
        together, causes = decoded(declared, payloads)
        alone = [decoded(declared, [payload]) for payload in payloads]
        assert repr(together) == repr([row for rows, _ in alone for row in rows])
        assert causes == {n: bad[0] for n, (_, bad) in enumerate(alone) if bad}


@given(st.lists(st.text("0123456789.+-e_ naif٣", max_size=6), min_size=1, max_size=6))
def test_a_cell_means_the_same_in_any_company(cells: list[str]) -> None:
    rows = [f'"{cell}",x'.encode() for cell in cells]
    together, _ = decoded(CSV, rows)
    alone = [decoded(CSV, [row])[0][0] for row in rows]
    assert [(type(row["a"]), row["a"]) for row in together] == [
        (type(row["a"]), row["a"]) for row in alone
    ]


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("", None),
        ("7", 7),
        ("-07", -7),
        (" 5", 5),
        ("1.5", 1.5),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("1_0", "1_0"),
        ("nan", "nan"),
        ("Infinity", "Infinity"),
        ("1e999", "1e999"),
        ("9" * 400, "9" * 400),
        ("٣", "٣"),
        ("2024-01-02", "2024-01-02"),
    ],
)
def test_what_a_csv_cell_means(cell: str, value: Any) -> None:
    [row], _ = decoded(CSV, [f"{cell},x".encode()])
    assert row["a"] == value
    assert type(row["a"]) is type(value)


@pytest.mark.parametrize(
    ("declared", "payload", "cause"),
    [
        (JsonFormat(), b"{} x", "expected JSON"),
        (JsonFormat(), b'{"a":', "expected JSON"),
        (JsonFormat(), b"\xff", "UTF-8"),
        (JsonFormat(), b"[" * 5000, "expected JSON"),
        (MsgpackFormat(), b"\x01\x02", "1 bytes after the value"),
        (MsgpackFormat(), b"\x92\x01", "incomplete"),
        (MsgpackFormat(), b"\xa1\xff", "utf-8"),
        (MsgpackFormat(), b"\x91" * 5000, "expected msgpack"),
        (MsgpackFormat(), b"\xdd\xff\xff\xff\xff", "expected msgpack"),
        (MsgpackFormat(), b"\x81\x01\x02", "int is not allowed"),
        (CSV, b"1,2,3", "found 3 fields"),
        (CSV, b"1", "found 1 fields"),
        (CSV, b'1,"2', "not closed"),
        (CSV, b"1,2\n3,4", "new-line"),
        (CSV, b"1,\xff", "utf-8"),
    ],
)
def test_what_cannot_be_decoded_has_a_cause(declared: Format, payload: bytes, cause: str) -> None:
    rows, causes = decoded(declared, [payload])
    assert rows == []
    assert cause in causes[0]


@pytest.mark.parametrize("declared", [JsonFormat(), MsgpackFormat()])
@pytest.mark.parametrize(
    "value", [{1: "a"}, {"a": [{"b": ({"c": {2.5: 1}},)}]}, [1, {None: 2}], {"a": 1, (1, 2): 3}]
)
def test_what_could_not_be_read_again_is_not_written(declared: Format, value: Any) -> None:
    payloads, causes = encoded(declared, [{"a": 1}, value])
    assert len(payloads) == 1
    assert list(causes) == [1]
    if isinstance(declared, MsgpackFormat):
        assert re.search(r"found the key .* of a mapping, which is no text", causes[1])


values_of_msgpack = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.binary() | st.integers(), inner),
)


@given(values_of_msgpack)
@settings(deadline=None)
def test_what_msgpack_writes_it_reads(value: Any) -> None:
    payloads, _ = encoded(MsgpackFormat(), [value])
    assert decoded(MsgpackFormat(), payloads)[1] == {}


@pytest.mark.parametrize("dtype", ["?", "i1", "u4", "<i8", ">f4", "f2", "f8", "c16"])
def test_msgpack_keeps_arrays(dtype: str) -> None:
    array = np.arange(12).reshape(3, 4).astype(dtype)
    [payload], _ = encoded(MsgpackFormat(), [{"x": array.T}])
    [row], _ = decoded(MsgpackFormat(), [payload])
    assert row["x"].dtype == array.dtype.newbyteorder("<")
    np.testing.assert_array_equal(row["x"], array.T)
    row["x"][0] = 0  # the caller's own


@pytest.mark.parametrize(
    "parts",
    [
        ["<f4", [3], b"\0" * 8],
        ["O", [1], b"\0" * 8],
        ["<f4", [-1, 0], b""],
        ["<f4", [-1], b"\0" * 8],
        ["<f4", [2**40, 0], b""],
        ["<f4"],
        5,
    ],
)
def test_a_damaged_array_has_a_cause(parts: Any) -> None:
    payload = msgpack.packb(msgpack.ExtType(1, msgpack.packb(parts)))
    assert decoded(MsgpackFormat(), [payload])[1]


def test_msgpack_keeps_times_bytes_and_foreign_extensions() -> None:
    rows = [{"t": datetime(2026, 1, 2, tzinfo=UTC), "b": b"\0", "e": msgpack.ExtType(9, b"x")}]
    assert decoded(MsgpackFormat(), encoded(MsgpackFormat(), rows)[0])[0] == rows


def test_text_formats_write_what_others_can_read() -> None:
    row = {"a": np.array([[1, 2]]), "b": [np.float32(0.5), b"12", True]}
    assert encoded(JsonFormat(), [row])[0] == [b'{"a":[[1,2]],"b":[0.5,"MTI=",true]}']
    assert encoded(CSV, [{"a": 'x"\n', "b": b"12"}])[0] == [b'"x""\n",MTI=']
    assert encoded(CSV, [{"a": True, "b": [1, None]}])[0] == [b'true,"[1,null]"']


@pytest.mark.parametrize("number", [math.nan, -math.inf, np.float32("nan"), np.array([math.inf])])
def test_text_formats_reject_what_is_not_finite(number: Any) -> None:
    for declared in (JsonFormat(), CSV):
        payloads, causes = encoded(declared, [{"a": 1}, {"a": number}, {"a": None}])
        assert len(payloads) == 2
        assert "not finite" in causes[1]


@pytest.mark.parametrize("declared", FORMATS)
def test_what_cannot_be_encoded_has_a_cause(declared: Format) -> None:
    payloads, causes = encoded(declared, [object(), {"a": object()}, {"c": object()}])
    assert payloads == []
    assert list(causes) == [0, 1, 2]


@given(
    st.lists(
        st.recursive(
            st.none() | st.floats() | st.integers() | st.text('\n,"{}x') | st.binary(max_size=2),
            lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("ab"), inner),
            max_leaves=4,
        ),
        max_size=4,
    )
)
@example([{"a": "\n,\n,"}, [{}, {}], {"a": None}])
@example([{"a": None, "b": math.nan}, {"a": None}, "null"])
@example([1.0, {1: 2}, np.ones(2)])
def test_a_batch_is_written_as_each_of_its_values_alone(values: list[Any]) -> None:
    codec = JsonFormat().codec()
    encoded = codec.encode(batch_of(values))
    alone = [codec.encode(batch_of([value])) for value in values]
    assert encoded.payloads == [payload for one in alone for payload in one.payloads]
    assert encoded.causes == {place: one.causes[0] for place, one in enumerate(alone) if one.causes}


def test_half_a_surrogate_pair_spoils_one_record() -> None:
    for declared in (CSV, JsonFormat(), MsgpackFormat(), RawFormat()):
        bad: Any = "\ud800" if isinstance(declared, RawFormat) else {"a": "\ud800"}
        good: Any = "x" if isinstance(declared, RawFormat) else {"a": "x"}
        payloads, causes = encoded(declared, [good, bad, good])
        assert len(payloads) == 2
        assert list(causes) == [1]


def test_csv_does_not_lose_a_field_in_silence() -> None:
    payloads, causes = encoded(CSV, [{"b": 2}, {"a": 1, "b": 2, "c": 3}])
    assert payloads == [b",2"]
    assert "unknown fields c" in causes[1]


ROWS = ["x,1", '"a\nb","c\r\n"', "2,", '"q""",3', "last,€"]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("line_break", ["\n", "\r\n"])
@pytest.mark.parametrize("last", ["", "\n", "\n\n"])
def test_csv_rows_are_found_however_the_file_is_read(size: int, line_break: str, last: str) -> None:
    data = b"\xef\xbb\xbf" + line_break.join(ROWS).encode() + last.encode()
    found = split(CSV.splitter(), data, size)
    assert [payload.decode().removesuffix("\r") for payload in found] == ROWS


@pytest.mark.parametrize("size", [1, 4, 100])
def test_an_open_quote_spoils_one_row_only(size: int) -> None:
    rows, causes = decoded(CSV, split(CSV.splitter(), b'1,2\n"x,3\n4,5\n6,7', size))
    assert rows == [{"a": 1, "b": 2}, {"a": 4, "b": 5}, {"a": 6, "b": 7}]
    assert list(causes) == [1]


@given(st.lists(values, max_size=4), st.integers(1, 20))
def test_lines_and_msgpack_values_are_found_however_they_are_read(
    rows: list[Any], size: int
) -> None:
    for declared in (JsonFormat(), MsgpackFormat()):
        payloads, _ = encoded(declared, rows)
        data = b"".join(payload + declared.terminator for payload in payloads)
        assert split(declared.splitter(), data, size) == payloads


def test_damaged_msgpack_is_said_after_what_is_before() -> None:
    splitter = MsgpackFormat().splitter()
    assert splitter.split(b"\x01\x02\xc1") == [b"\x01", b"\x02"]
    with pytest.raises(ValueError, match="not msgpack"):
        splitter.end()


def test_a_raw_line_cannot_hold_a_line_break() -> None:
    batch = batch_of([b"a\nb", "c"])
    assert list(RawFormat().line_codec().encode(batch).causes) == [0]
    assert RawFormat().codec().encode(batch).payloads == [b"a\nb", b"c"]


@pytest.mark.parametrize(
    "notation", ["json", "jsonl", "msgpack", "raw", {"csv": {"fields": ["a"], "delimiter": ";"}}]
)
def test_a_format_is_written_as_it_was_read(notation: Any) -> None:
    field: TypeAdapter[Format] = TypeAdapter(FormatField)
    declared = field.validate_python(notation)
    assert field.dump_python(declared, mode="json") == notation
    assert field.validate_python(declared) is declared


@pytest.mark.parametrize(
    ("notation", "message"),
    [
        ("cvs", "did you mean csv"),
        ("csv", "give csv its fields"),
        ({"csv": {"delimeter": ";"}}, "did you mean delimiter"),
        ({"csv": {}, "json": {}}, "expected the name of a format"),
        (7, "expected the name of a format"),
    ],
)
def test_what_is_not_a_format_is_explained(notation: Any, message: str) -> None:
    field: TypeAdapter[Format] = TypeAdapter(FormatField)
    with pytest.raises(ValidationError, match=message):
        field.validate_python(notation)


@pytest.mark.parametrize("name", ["delimiter", "quotechar"])
@pytest.mark.parametrize("character", ["", ";;", "€", "\n"])
def test_csv_takes_single_ascii_characters(name: str, character: str) -> None:
    field: TypeAdapter[Format] = TypeAdapter(FileFormatField)
    with pytest.raises(ValidationError, match="one ASCII character"):
        field.validate_python({"csv": {name: character}})


def test_names_of_one_class_stay_apart() -> None:
    assert named_format("jsonl").name == "jsonl"
    assert named_format("json") == JsonFormat()
