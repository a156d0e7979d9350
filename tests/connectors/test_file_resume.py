"""Files that a run goes on with: what a checkpoint says is kept, and nothing else."""

import csv
import gzip
import io
import json
import logging
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import msgpack  # type: ignore[import-untyped]  # it ships no types
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streamflow.conformance import make_batch
from streamflow.errors import ConnectorError
from streamflow.nodes import Context, Resume
from streamflow.records import Place
from streamflow_connectors.files import FileSink, FileSource

Item = tuple[str, int, Any]
"""A path, a row, and the value or the bytes that are none."""

texts = st.text('ab1",\n\r ;€', max_size=6)
cells = st.none() | st.integers(-99, 99) | texts
rows = st.fixed_dictionaries({"a": cells, "b": texts})
suffixes = st.sampled_from(["csv", "jsonl", "msgpack", "csv.gz", "jsonl.gz", "msgpack.gz"])


def resuming(folder: Path, resume: Resume | None = None) -> Context:
    return Context("node", folder, is_checkpointed=True, resume=resume)


def read(folder: Path, path: str, positions: Mapping[str, int] | None = None) -> list[Item]:
    """Return every record of a source, good or bad, with its place, as they come."""
    places: dict[Place, int] = {(("path", name),): row for name, row in (positions or {}).items()}
    items: list[Item] = []

    async def run() -> None:
        context = resuming(folder, Resume(positions=places) if positions else None)
        async with FileSource(path=path).open(context) as reader:
            while True:
                try:
                    fetch = await reader.receive()
                except anyio.EndOfStream:
                    return
                parts = [(fetch.batch, fetch.batch.rows())]
                if fetch.rejected is not None:
                    originals = fetch.rejected.batch.originals
                    assert originals is not None
                    parts.append((fetch.rejected.batch, list(originals)))
                found = [
                    (str(position["path"]), int(position["line"]), value)
                    for batch, values in parts
                    for position, value in zip(batch.positions(), values, strict=True)
                ]
                items.extend(sorted(found, key=lambda item: item[1]))
                [end] = fetch.ends.values()
                assert end == items[-1][1] + 1

    anyio.run(run)
    return items


def values(items: Sequence[Item]) -> list[Any]:
    return [value for _, _, value in items]


def csv_row(row: Mapping[str, Any]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(row.values())
    return text.getvalue()[:-2].encode() + b"\n"


PARTS: dict[str, Callable[[Mapping[str, Any]], bytes]] = {
    "csv": csv_row,
    "jsonl": lambda row: json.dumps(row).encode() + b"\n",
    "msgpack": lambda row: bytes(msgpack.packb(row)),
}
BAD = {
    "csv": [b"7\n", b"\xff,x\n", b"\r\n", b"\n", b'1,"\n'],
    "jsonl": [b"{\n", b"\xff\n", b"\r\n", b"\n"],
    "msgpack": [b"\xa1\xff"],
}


@st.composite
def files(draw: st.DrawFn) -> tuple[str, bytes]:
    """Draw a suffix, and the bytes of a file with good records, bad ones and empty lines."""
    suffix = draw(suffixes)
    kind = suffix.removesuffix(".gz")
    parts = draw(st.lists(rows.map(PARTS[kind]) | st.sampled_from(BAD[kind]), max_size=8))
    content = b"".join(parts) * draw(st.sampled_from([1, 1, 700]))
    content = b"a,b\n" * (kind == "csv") + content + draw(st.sampled_from([b"", b"1"]))
    return suffix, gzip.compress(content) if suffix.endswith(".gz") else content


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


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.jsonl"])
def test_a_file_that_is_shorter_than_its_position(tmp_path: Path, name: str) -> None:
    content = b"x\n1\n2\n" if "csv" in name else b"1\n2\n"
    (tmp_path / name).write_bytes(gzip.compress(content) if "gz" in name else content)
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


class Output:
    """A sink's file, written in several runs, each of which but the last may crash."""

    def __init__(self, folder: Path, path: str, **options: Any) -> None:
        self._folder = folder
        self._sink = FileSink(path=path, **options)
        self._path = path
        self.mark: dict[str, Any] | None = None

    def run(self, batches: Sequence[list[Any]], lost: Sequence[list[Any]] | None = None) -> None:
        """Write and mark ``batches``; then end, or write what gets ``lost`` and crash."""
        anyio.run(self._run, batches, lost)

    async def _run(self, batches: Sequence[list[Any]], lost: Sequence[list[Any]] | None) -> None:
        resume = None if self.mark is None else Resume(mark=self.mark)
        crashed = self._folder / "crashed"
        async with self._sink.open(resuming(self._folder, resume)) as writer:
            for batch in batches:
                await writer.write(make_batch(batch, in_columns=False))
            await writer.flush()
            self.mark = json.loads(json.dumps(await writer.mark()))
            for batch in lost or ():
                await writer.write(make_batch(batch, in_columns=False))
            if lost is not None:  # what is there by now is all that a killed process leaves
                shutil.copy(self._folder / self._path, crashed)
        if lost is not None:
            crashed.replace(self._folder / self._path)

    def data(self) -> bytes:
        """Return what the file holds, unpacked."""
        data = (self._folder / self._path).read_bytes()
        return gzip.decompress(data) if self._path.endswith(".gz") else data


batches = st.lists(st.lists(rows, min_size=1, max_size=4), max_size=3)


@given(suffixes, st.sampled_from(["overwrite", "append"]), batches, batches, batches, batches)
@settings(deadline=None)
def test_a_file_cut_back_to_its_mark_goes_on_as_if_nothing_had_happened(
    suffix: str, mode: str, first: Any, second: Any, third: Any, lost: Any
) -> None:
    with TemporaryDirectory() as folder:
        broken = Output(Path(folder), f"broken.{suffix}", mode=mode)
        broken.run(first, lost)
        broken.run(second, lost)
        broken.run(third)
        whole = Output(Path(folder), f"whole.{suffix}", mode=mode)
        whole.run(first + second + third)
        assert broken.data() == whole.data()


@pytest.mark.parametrize("suffix", ["csv.gz", "jsonl.gz", "msgpack.gz"])
def test_a_mark_is_the_end_of_a_whole_gzip_file(tmp_path: Path, suffix: str) -> None:
    output = Output(tmp_path, f"out.{suffix}")
    for batch in ([], [{"a": 1}], [], [{"a": 2}]):
        output.run([batch] if batch else [], lost=[[{"a": 3}]])
        assert output.mark is not None
        data = (tmp_path / f"out.{suffix}").read_bytes()[: output.mark["bytes"]]
        (tmp_path / f"cut.{suffix}").write_bytes(data)
        assert gzip.decompress(data) is not None
    assert values(read(tmp_path, f"cut.{suffix}")) == [{"a": 1}, {"a": 2}]


def test_marks_without_records_between_add_nothing(tmp_path: Path) -> None:
    output = Output(tmp_path, "out.jsonl.gz")
    output.run([[1]])
    size = (tmp_path / "out.jsonl.gz").stat().st_size
    output.run([])
    output.run([])
    assert (tmp_path / "out.jsonl.gz").stat().st_size == size


def test_columns_go_on_as_they_were(tmp_path: Path) -> None:
    output = Output(tmp_path, "out.csv")
    output.run([[{"b": 1, "a": 2}]], lost=[])
    output.run([[{"a": 4, "b": 3}]])
    assert output.data() == b"b,a\n1,2\n3,4\n"


@pytest.mark.parametrize("mode", ["overwrite", "append"])
def test_what_was_there_before_is_kept_in_append_only(tmp_path: Path, mode: str) -> None:
    (tmp_path / "out.jsonl").write_bytes(b"0\n")
    output = Output(tmp_path, "out.jsonl", mode=mode)
    output.run([], lost=[[9]])
    output.run([[1]])
    assert output.data() == (b"0\n1\n" if mode == "append" else b"1\n")


@pytest.mark.parametrize(("content", "found"), [(b"1\n", "2"), (None, "no file")])
def test_a_file_that_is_shorter_than_its_mark(
    tmp_path: Path, content: bytes | None, found: str
) -> None:
    output = Output(tmp_path, "out.jsonl")
    output.run([[1, 2]])
    (tmp_path / "out.jsonl").unlink()
    if content is not None:
        (tmp_path / "out.jsonl").write_bytes(content)
    expected = f"expected at least 4 bytes in out.jsonl as the checkpoint says, found {found}"
    with pytest.raises(ConnectorError, match=f"{expected}; restore the file, or use --reset"):
        output.run([[3]])
    assert (tmp_path / "out.jsonl").exists() == (content is not None)


def test_a_sink_of_another_path_begins_there(tmp_path: Path) -> None:
    output = Output(tmp_path, "out.jsonl")
    output.run([[1]])
    other = Output(tmp_path, "other.jsonl")
    other.mark = output.mark
    other.run([[2]])
    assert (output.data(), other.data()) == (b"1\n", b"2\n")


def test_a_pipe_has_no_mark_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.mkfifo(tmp_path / "pipe")
    descriptor = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)

    async def run() -> None:
        sink = FileSink(path="pipe", format="json")
        async with sink.open(resuming(tmp_path, Resume(mark={}))) as writer:
            await writer.write(make_batch([1]))
            await writer.flush()
            assert await writer.mark() == {}

    anyio.run(run)
    assert os.read(descriptor, 10) == b"1\n"
    os.close(descriptor)
    assert "pipe is no file that could be cut back" in caplog.text


ROWS = [{"a": 1, "b": 'x "y"\nz'}, {"a": 2, "b": "€"}, {"a": 3, "b": 'end"'}]
NEW = {"a": 4, "b": 'new "one"'}


def append(folder: Path, path: str, row: Any) -> None:
    async def run() -> None:
        async with FileSink(path=path, mode="append").open(Context("node", folder)) as writer:
            await writer.write(make_batch([row]))

    anyio.run(run)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "msgpack"])
@pytest.mark.parametrize("is_packed", [False, True])
def test_half_a_record_spoils_no_other(
    tmp_path: Path, kind: str, is_packed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    head = b"a,b\n" if kind == "csv" else b""
    parts = list(map(PARTS[kind], ROWS))
    content = head + b"".join(parts)
    path = f"out.{kind}{'.gz' * is_packed}"
    for cut in range(len(head) + len(parts[0]), len(content) + 1):
        num_whole = sum(cut >= len(head + b"".join(parts[: count + 1])) for count in range(3))
        kept = content[:cut]
        if is_packed:  # each record is flushed, and the member never ended
            packer = zlib.compressobj(wbits=31)
            kept = packer.compress(kept) + packer.flush(zlib.Z_SYNC_FLUSH)
        (tmp_path / path).write_bytes(kept)
        caplog.clear()
        append(tmp_path, path, NEW)
        got = values(read(tmp_path, path))
        assert got[:num_whole] == ROWS[:num_whole]
        assert got[-1] == NEW
        is_torn = cut != len(head + b"".join(parts[:num_whole]))
        assert len(got) - num_whole - 1 in ((0, 1) if is_torn else (0,))
        assert [record.levelno for record in caplog.records] == [logging.WARNING] * (
            is_torn or is_packed
        )


@pytest.mark.parametrize("cut", range(1, 40))
def test_half_a_gzip_member_is_packed_anew(tmp_path: Path, cut: int) -> None:
    member = gzip.compress(b'{"a":1}\n')
    second = gzip.compress(b'{"a":2}\n')
    (tmp_path / "out.jsonl.gz").write_bytes(member + second[:cut])
    append(tmp_path, "out.jsonl.gz", NEW)
    assert os.listdir(tmp_path) == ["out.jsonl.gz"]
    lines = gzip.decompress((tmp_path / "out.jsonl.gz").read_bytes()).splitlines()
    assert lines[0] == b'{"a":1}'
    assert json.loads(lines[-1]) == NEW
    assert b"".join(lines[1:-1]) in b'{"a":2}'


def test_a_last_record_that_nothing_ends_is_kept(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_bytes(b"1\n2")
    append(tmp_path, "out.jsonl", 3)
    assert (tmp_path / "out.jsonl").read_bytes() == b"1\n2\n3\n"


def test_no_checkpoint_lets_bytes_be_cut_off_that_it_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "out.msgpack").write_bytes(b"\x01\x92\x01")
    output = Output(tmp_path, "out.msgpack", mode="append")
    with pytest.raises(ConnectorError, match=r"expected whole records .* last 2 bytes"):
        output.run([[1]])
    assert output.data() == b"\x01\x92\x01"


def test_what_is_not_of_the_format_is_not_appended_to(tmp_path: Path) -> None:
    (tmp_path / "out.msgpack").write_bytes(b"\x01\xc1")
    with pytest.raises(ConnectorError, match=r"expected to write out\.msgpack, found bytes that"):
        append(tmp_path, "out.msgpack", 1)


KILLED = '''
"""Writes numbers in batches, is killed amid that and begun again, until all are there."""
import anyio, json, os, random, signal, sys
from pathlib import Path
from streamflow.nodes import Context, Resume
from streamflow.conformance import make_batch
from streamflow_connectors.files import FileSink

folder, path, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
LAST, KILLS = 12_000, 20
sink = FileSink(path=path)
anyio.run(anyio.sleep, 0)  # what is imported here is there in every child

async def write(told):
    saved = folder / "mark.json"
    start, mark = json.loads(saved.read_text()) if saved.exists() else (0, None)
    context = Context("sink", folder, True, Resume(mark=mark) if mark else None)
    async with sink.open(context) as writer:
        while start < LAST:
            for _ in range(5):
                values = [{"n": n, "text": "x" * 100} for n in range(start, start + 20)]
                await writer.write(make_batch(values, start))
                start += 20
                os.write(told, b".")
            await writer.flush()
            state = json.dumps([start, dict(await writer.mark())])
            (folder / "mark.new").write_text(state)
            (folder / "mark.new").replace(saved)

def run_once(most):
    """Return whether a child ended before it had written `most` batches; then it is killed."""
    hear, told = os.pipe()
    child = os.fork()
    if not child:
        os.close(hear)
        anyio.run(write, told)
        os._exit(0)
    os.close(told)
    count = 0
    while count < most and (said := os.read(hear, 1)):
        count += len(said)
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    os.close(hear)
    return os.WIFEXITED(status)

chance = random.Random(seed)
for _ in range(KILLS):
    assert not run_once(chance.randrange(1, 20)), "expected to kill it"
run_once(LAST)
'''


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "msgpack.gz"])
def test_twenty_kills_leave_each_record_once(tmp_path: Path, suffix: str) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path), f"out.{suffix}", "7"]
    subprocess.run(command, check=True, timeout=100)
    got = values(read(tmp_path, f"out.{suffix}"))
    assert [value["n"] for value in got] == list(range(12_000))
    if suffix == "csv":
        assert (tmp_path / "out.csv").read_bytes().count(b"n,text\n") == 1
