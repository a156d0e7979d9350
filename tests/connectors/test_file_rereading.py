"""Files that are read on: the rest of a whole read, and nothing else."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streamflow.contracts import Resume
from streamflow.errors import ConnectorError
from streamflow_connectors.files import FileSink, FileSource
from streamflow_connectors.files.packing import without_packing
from tests.connectors.file_records import PARTS, pack, read, resuming, rows, suffixes

BAD = {
    "csv": [b"7\n", b"\xff,x\n", b"\r\n", b"\n", b'1,"\n'],
    "jsonl": [b"{\n", b"\xff\n", b"\r\n", b"\n"],
    "msgpack": [b"\xa1\xff"],
}


@st.composite
def files(draw: st.DrawFn) -> tuple[str, bytes]:
    """Draw a suffix, and the bytes of a file with good records, bad ones and empty lines."""
    suffix = draw(suffixes)
    kind = without_packing(suffix)
    parts = draw(st.lists(rows.map(PARTS[kind]) | st.sampled_from(BAD[kind]), max_size=8))
    content = b"".join(parts) * draw(st.sampled_from([1, 1, 700]))
    content = b"a,b\n" * (kind == "csv") + content + draw(st.sampled_from([b"", b"1"]))
    return suffix, pack(suffix, content)


@given(files(), st.integers(0, 10_000))
@example(("csv", b'\xef\xbb\xbfa,b\r\n1,"x\r\ny"\r\n\r\n2,z'), 1)
@settings(deadline=None)
def test_reading_on_is_reading_the_rest(file: tuple[str, bytes], cut: int) -> None:
    suffix, data = file
    with TemporaryDirectory() as folder:
        path = f"in.{suffix}"
        Path(folder, path).write_bytes(data)
        whole = read(Path(folder), path)
        start = 1 + cut % (len(whole) + 1)
        assert [row for _, row, _ in whole] == list(range(1, len(whole) + 1))
        assert read(Path(folder), path, {path: start}) == whole[start - 1 :]


def test_finished_files_are_left_out_and_new_ones_read_from_their_beginning(
    tmp_path: Path,
) -> None:
    for name in "acd":
        (tmp_path / f"{name}.csv").write_text(f"x\n{name}1\n{name}2\n{name}3\n")
    before = {"a.csv": 4, "c.csv": 3}
    (tmp_path / "b.csv").write_text("x\nb1\n")
    assert read(tmp_path, "*.csv", before) == [
        ("b.csv", 1, {"x": "b1"}),
        ("c.csv", 3, {"x": "c3"}),
        ("d.csv", 1, {"x": "d1"}),
        ("d.csv", 2, {"x": "d2"}),
        ("d.csv", 3, {"x": "d3"}),
    ]


def test_rows_that_were_added_to_a_finished_file_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"1\n2\n3\n")
    assert read(tmp_path, "a.jsonl", {"a.jsonl": 3}) == [("a.jsonl", 3, 3)]


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.jsonl", "a.csv.zst"])
def test_a_file_that_is_shorter_than_its_position(tmp_path: Path, name: str) -> None:
    content = b"x\n1\n2\n" if "csv" in name else b"1\n2\n"
    (tmp_path / name).write_bytes(pack(name, content))
    assert read(tmp_path, name, {name: 3}) == []
    expected = rf"expected at least 3 rows in {name} as the checkpoint says, found 2; .*--reset"
    with pytest.raises(ConnectorError, match=expected):
        read(tmp_path, name, {name: 4})


@pytest.mark.parametrize("path", ["*.csv", "gone.csv", "a.csv"])
def test_a_file_that_is_gone(tmp_path: Path, path: str) -> None:
    (tmp_path / "a.csv").write_text("x\n1\n")
    with pytest.raises(ConnectorError, match=r"expected to go on in gone\.csv .*--reset"):
        read(tmp_path, path, {"gone.csv": 1})
    (tmp_path / "b").write_text("x\n1\n")  # there, but not read any more
    with pytest.raises(ConnectorError, match=r"expected to go on in b .*--reset"):
        read(tmp_path, "a.csv", {"b": 1})


def test_damage_among_rows_that_are_left_out_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.msgpack").write_bytes(b"\x01\xc1\x02")
    with pytest.raises(ConnectorError, match="not msgpack after row 1"):
        read(tmp_path, "a.msgpack", {"a.msgpack": 3})


def test_many_rows_are_left_out_without_decoding_them(tmp_path: Path) -> None:
    lines = b"not json\n" * 600_000 + b"1\n"
    (tmp_path / "a.jsonl").write_bytes(lines)
    assert read(tmp_path, "a.jsonl", {"a.jsonl": 600_001}) == [("a.jsonl", 600_001, 1)]


@pytest.mark.parametrize("declare", [FileSource, FileSink])
def test_what_can_go_on_shows_where_the_path_tells(tmp_path: Path, declare: Any) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    paths = ["-", "/dev/null", str(tmp_path / "pipe"), str(tmp_path / "file"), "new", "/x/*.csv"]
    nodes = [declare(path=path, format="json") for path in paths]
    goes_on = [node.rereads if declare is FileSource else node.cuts_back for node in nodes]
    assert goes_on == [False, False, False, True, True, True]


def test_a_pipe_begins_where_it_is_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    descriptor = os.open(tmp_path / "pipe.jsonl", os.O_RDWR)
    os.write(descriptor, b"5\n6\n")

    async def run() -> None:
        resume = Resume(positions={(("path", "pipe.jsonl"),): 10})
        async with FileSource(path="pipe.jsonl").open(resuming(tmp_path, resume)) as reader:
            assert (await reader.receive()).batch.rows() == [5, 6]

    anyio.run(run)
    os.close(descriptor)
    assert "pipe.jsonl is no file that could be read again" in caplog.text
