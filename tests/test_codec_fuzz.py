"""Hostile and damaged bytes: each record is decoded or has a cause, and its neighbours are kept."""

import csv
import gzip
import io
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import msgpack  # type: ignore[import-untyped]  # it ships no types
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamflow.codecs import CsvFormat, Format, JsonFormat, MsgpackFormat, RawFormat
from streamflow.codecs.framing import MAX_PAYLOAD_BYTES
from streamflow.contracts import Context
from streamflow.errors import ConnectorError
from streamflow.records import Batch, Partition
from streamflow_connectors.files import FileSource

CSV = CsvFormat(fields=("a", "b"))
USUAL = {"a": [1, None, "€"], "b": {"c": -2500.0}}
FORMATS: list[tuple[Format, bytes, Any]] = [
    (CSV, b"1,x", {"a": 1, "b": "x"}),
    (JsonFormat(), b'{"a":[1,null,"\\u20ac"],"b":{"c":-2.5e3}}', USUAL),
    (MsgpackFormat(), msgpack.packb(USUAL), USUAL),
    (RawFormat(), b"x", b"x"),
]
"""Of each format a good payload, and its value."""


def tensor(*parts: Any) -> bytes:
    return bytes(msgpack.packb(msgpack.ExtType(1, msgpack.packb(parts))))


HOSTILE = [
    b"",
    b"\0" * 100,
    b"\xff\xfe\xc0\x80",
    b"\xed\xa0\x80",
    b"[" * 100_000,
    b"[" * 900 + b"]" * 900,
    b'{"a":' * 100_000,
    b"9" * 5000,
    b"-" + b"9" * 400,
    b"18446744073709551616",
    b"1e999",
    b"NaN",
    b"[Infinity,-Infinity]",
    b'"\\ud800"',
    b'{"a":1,"a":2}',
    b"null",
    b"9" * 5000 + b",1",
    b"0" * 5000 + b"1,1",
    b"+" * 5000 + b"1,1",
    b"1e-999999,1_0",
    b'"' * 100_001,
    b"," * 100_000,
    b"x" * 200_000 + b",1",
    b'"' + b"x" * 200_000 + b'",1',
    b"1\r2,3",
    b"\x91" * 100_000,
    b"\x91" * 900 + b"\x01",
    b"\x81\xa1a" * 100_000,
    b"\xc1",
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xc9\xff\xff\xff\xff\x01",
    b"\x82\xa1a\x01\xa1a\x02",
    b"\x81\x90\x01",
    b"\x81\xc0\x01",
    b"\xd6\xff\xff\xff\xff\xff",
    b"\xd7\xff" + b"\xff" * 8,
    b"\xc7\x0c\xff" + b"\xff" * 12,
    tensor("<f4", [2**40, 0], b""),
    tensor("<f4", [60_000, 60_000, 0], b""),
    tensor("<f4", [2**62, 4], b"\0" * 16),
    tensor("<f4", [-1], b"\0" * 8),
    tensor("<f4", ["x"], b"\0" * 4),
    tensor("<f4", [0] * 100, b""),
    tensor("O", [1], b"\0" * 8),
    tensor(),
]

good = st.sampled_from([payload for _, payload, _ in FORMATS])


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Draw a good payload with some bytes gone, added, changed or doubled."""
    payload = bytearray(draw(good))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(payload)))
        stop = start + draw(st.integers(0, 4))
        between = draw(st.binary(max_size=4) | st.sampled_from([b'"', b",", b"[", b"\xc9", b"\r"]))
        payload[start:stop] = between * draw(st.sampled_from([1, 1, 1, 2000]))
    return bytes(payload)


payloads = st.lists(st.binary(max_size=40) | damaged() | st.sampled_from(HOSTILE), max_size=5)


def batch_of(values: list[Any]) -> Batch:
    return Batch(values, [Partition("fuzz")] * len(values), range(len(values)))


def rows_of(values: Any) -> list[Any]:
    count = len(next(iter(values.values()))) if isinstance(values, dict) else len(values)
    return batch_of([None] * count).with_values(values).rows()


@given(payloads)
@settings(deadline=None, max_examples=300)
def test_any_payload_has_a_value_or_a_cause_and_its_neighbours_are_kept(bad: list[bytes]) -> None:
    for declared, payload, value in FORMATS:
        for codec in (declared.codec(), declared.line_codec()):
            between = [payload, *(part for item in bad for part in (item, payload))]
            decoded = codec.decode(between)
            assert all(decoded.causes.values())
            assert all(index % 2 for index in decoded.causes)
            rows = rows_of(decoded.values)
            assert len(rows) + len(decoded.causes) == len(between)
            kept = [index for index in range(len(between)) if index not in decoded.causes]
            neighbours = [row for index, row in zip(kept, rows, strict=True) if not index % 2]
            assert neighbours == [value] * (len(bad) + 1)


@pytest.mark.parametrize("payload", HOSTILE, ids=range(len(HOSTILE)))
def test_what_was_decoded_is_encoded_or_has_a_cause(payload: bytes) -> None:
    for source, _, _ in FORMATS:
        values = source.codec().decode([payload]).values
        for row in rows_of(values):
            for sink, _, _ in FORMATS:
                encoded = sink.codec().encode(batch_of([{"a": row}]))
                assert len(encoded.payloads) + len(encoded.causes) == 1


class Unwilling:
    """Fails whatever is asked of it."""

    def __repr__(self) -> str:
        raise ValueError

    def __array__(self, *_: Any) -> Any:
        raise RuntimeError


def deep(make: Any, levels: int) -> Any:
    value: Any = None
    for _ in range(levels):
        value = make(value)
    return value


def endless() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


VALUES = [
    deep(lambda inner: [inner], 100_000),
    deep(lambda inner: {"a": inner}, 100_000),
    deep(lambda inner: [inner], 300),
    endless(),
    10**4000,
    -(10**5000),
    2**64,
    "\ud800",
    {1: 2},
    {Unwilling(): 1},
    Unwilling(),
    {1, 2},
    1j,
    np.array([object()]),
    np.array(["x"]),
    np.datetime64("2026-01-01"),
    np.ma.masked,
    b"\xff",
    memoryview(b"x"),
    "a\nb\rc",
]


@pytest.mark.parametrize("index", range(len(VALUES)))
def test_any_value_has_a_payload_or_a_cause_and_its_neighbours_are_kept(index: int) -> None:
    value = VALUES[index]
    for declared, _, fine in FORMATS:
        for codec in (declared.codec(), declared.line_codec()):
            for bad in (value, {"a": value}, {"a": [value]}):
                encoded = codec.encode(batch_of([fine, bad, fine]))
                assert not encoded.causes or list(encoded.causes) == [1]
                assert len(encoded.payloads) + len(encoded.causes) == 3
                back = rows_of(codec.decode([encoded.payloads[0], encoded.payloads[-1]]).values)
                assert back == [fine, fine]


def split(declared: Format, data: bytes, sizes: list[int]) -> tuple[list[bytes], bool]:
    """Return the payloads of ``data``, and whether it could be cut to its end."""
    splitter = declared.splitter()
    found: list[bytes] = []
    try:
        for size in sizes:
            found += splitter.split(data[:size])
            data = data[size:]
        return found + splitter.split(data) + splitter.end(), True
    except ValueError:
        return found, False


@given(payloads, st.lists(st.integers(1, 60), max_size=8))
@settings(deadline=None, max_examples=200)
def test_any_bytes_are_cut_alike_however_they_come(parts: list[bytes], sizes: list[int]) -> None:
    for declared, payload, _ in FORMATS:
        data = declared.terminator.join([payload, *parts, payload])
        at_once, is_whole = split(declared, data, [])
        assert split(declared, data, sizes)[0][: len(at_once)] == at_once
        assert split(declared, data, sizes)[1] == is_whole
        if is_whole and declared is not CSV:  # which leaves out empty lines, as json does
            joined = declared.terminator.join(at_once)
            assert joined.replace(b"\n", b"").replace(b"\r", b"") == data.replace(
                b"\n", b""
            ).replace(b"\r", b"")


cells = st.text('ab",\r\n €', max_size=8)


@given(st.lists(st.lists(cells, min_size=2, max_size=3), max_size=6), st.integers(1, 30))
def test_csv_rows_are_those_of_the_csv_module(rows: list[list[str]], size: int) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    data = text.getvalue().encode()
    sizes = [size] * (len(data) // size)
    found, _ = split(CSV, data, sizes)
    again = [next(csv.reader([row.decode()])) for row in found]
    assert again == list(csv.reader(io.StringIO(text.getvalue(), newline="")))


@pytest.mark.parametrize("line", [b'a","', b'"', b'","', b'"a""', b'"""', b'a,"b', b'","\r'])
def test_quotes_that_match_nothing_cost_no_more_than_their_bytes(line: bytes) -> None:
    data = (line + b"\n") * 200_000 + b"1,x\n"
    chunks = [2**16] * (len(data) // 2**16)
    found, is_whole = split(CSV, data, chunks)
    assert is_whole
    assert found[-1] == b"1,x"
    assert b"".join(found).replace(b"\n", b"") == data.replace(b"\n", b"")


def test_a_quote_that_is_closed_too_late_spoils_one_row() -> None:
    rows = [b'1,"2', *([b"1,x"] * 40_000), b'a","b', *([b"2,x"] * 40_000), b'3","4"']
    found, _ = split(CSV, b"\n".join(rows), [2**16] * 5)
    assert found == rows


def test_a_row_that_never_ends_is_refused() -> None:
    part = (b"a" * 10_000 + b'","\n') * 50
    splitter = CSV.splitter()
    for _ in range(MAX_PAYLOAD_BYTES // len(part) + 1):
        assert splitter.split(part) == []
    with pytest.raises(ValueError, match="a record of more than"):
        splitter.split(part)


def received(folder: Path, path: str, most: int = 10**9) -> list[Any]:
    values: list[Any] = []

    async def run() -> None:
        async with FileSource(path=path).open(Context("fuzz", folder)) as reader:
            while len(values) < most:
                try:
                    fetch = await reader.receive()
                except anyio.EndOfStream:
                    return
                assert fetch.rejected is None or all(fetch.rejected.causes)
                values.extend(fetch.batch.rows())

    anyio.run(run)
    return values


@given(payloads, st.sampled_from(["csv", "jsonl", "msgpack", "csv.gz", "jsonl.gz"]), st.booleans())
@settings(deadline=None, max_examples=60)
def test_any_file_is_read_or_refused(parts: list[bytes], suffix: str, is_packed: bool) -> None:
    data = b"\n".join(parts)
    if suffix.endswith(".gz") and is_packed:
        data = gzip.compress(data)[: len(data) + 30]
    with TemporaryDirectory() as folder:
        Path(folder, f"in.{suffix}").write_bytes(data)
        try:
            received(Path(folder), f"in.{suffix}")
        except ConnectorError as error:
            assert f"fuzz: expected to read in.{suffix}, found" in str(error)  # noqa: PT017


def bomb(content: bytes, repeats: int) -> Iterator[bytes]:
    """Yield gzip data that unfold to ``repeats`` times ``content``."""
    packer = zlib.compressobj(9, wbits=31)
    yield packer.compress(b"") + packer.flush(zlib.Z_FULL_FLUSH)
    raw = zlib.compressobj(9, wbits=-15)
    part = raw.compress(content) + raw.flush(zlib.Z_FULL_FLUSH)
    for _ in range(repeats):
        yield part


@pytest.mark.parametrize("suffix", ["csv.gz", "jsonl.gz"])
def test_a_gigabyte_of_zeros_is_refused_in_little_memory(tmp_path: Path, suffix: str) -> None:
    data = b"".join(bomb(b"\0" * 2**20, 1024))
    assert len(data) < 2 * 2**20
    (tmp_path / f"in.{suffix}").write_bytes(
        (gzip.compress(b"a\n") if "csv" in suffix else b"") + data
    )
    tracemalloc.start()
    try:
        with pytest.raises(ConnectorError, match="a record of more than"):
            received(tmp_path, f"in.{suffix}")
        assert tracemalloc.get_traced_memory()[1] < 2 * MAX_PAYLOAD_BYTES
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("line", [b"\n", b"1\n", b'"x"\n'])
def test_packed_lines_unfold_in_little_memory(tmp_path: Path, line: bytes) -> None:
    content = line * (2**20 // len(line))
    (tmp_path / "in.jsonl.gz").write_bytes(b"".join(bomb(content, 32)))
    tracemalloc.start()
    try:
        if line == b"\n":
            with pytest.raises(ConnectorError, match="cut off"):
                received(tmp_path, "in.jsonl.gz")
        else:
            assert len(received(tmp_path, "in.jsonl.gz", most=5000)) == 5000
        assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
    finally:
        tracemalloc.stop()


MANY = 20 * 2**20

SWARMS = {
    "lists": ("json", "b'[' + b'[],' * MANY + b'[]]'"),
    "objects": ("json", "b'[' + b'{},' * MANY + b'{}]'"),
    "packed lists": ("msgpack", "b'\\xdd' + MANY.to_bytes(4, 'big') + b'\\x90' * MANY"),
    "packed maps": ("msgpack", "b'\\xdd' + MANY.to_bytes(4, 'big') + b'\\x80' * MANY"),
    "packed pairs": ("msgpack", "b'\\xdd' + MANY.to_bytes(4, 'big') + b'\\x91\\x90' * MANY"),
}

DECODING = """
import resource
from streamflow.codecs import decode, named_format
from streamflow.records import Batch, Partition

MANY = {many}
bad = {payload}
codec = named_format("{name}").codec()
payloads = [codec.encode(Batch([{{"a": 1}}], [Partition("p")], [0])).payloads[0], bad]
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + 2**29
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
decoded = codec.decode(payloads)
print(decoded.values, decoded.causes)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", SWARMS)
def test_a_record_of_millions_of_lists_is_rejected_in_little_memory(name: str) -> None:
    declared, payload = SWARMS[name]
    program = DECODING.format(many=MANY, payload=payload, name=declared)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    notation = "JSON" if declared == "json" else "msgpack"
    cause = f"expected {notation}, found more than 1,048,576 lists and mappings"
    assert done.stdout == f"{{'a': [1]}} {{1: '{cause}'}}\n"


@pytest.mark.parametrize("declared", [JsonFormat(), MsgpackFormat()])
def test_a_large_record_of_few_lists_is_read(declared: Format) -> None:
    value = {"x": [float(number) for number in range(300_000)], "text": "[" * 1000}
    [payload] = declared.codec().encode(batch_of([value])).payloads
    assert len(payload) > 2**20
    assert rows_of(declared.codec().decode([payload]).values) == [value]
