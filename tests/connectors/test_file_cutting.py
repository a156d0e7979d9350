"""Files that are written on: as if nothing had happened, and no record lost or torn."""

import gzip
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamflow.contracts import Context, Resume
from streamflow.errors import ConnectorError
from streamflow.testing.connectors import make_batch
from streamflow_connectors.files import FileSink
from streamflow_connectors.files.packing import packing_of
from tests.connectors.file_records import (
    PARTS,
    pack,
    read,
    resuming,
    rows,
    suffixes,
    unpacked,
    values,
    zstd,
)


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
        return unpacked(self._folder / self._path)


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


@pytest.mark.parametrize("suffix", ["csv.gz", "jsonl.gz", "msgpack.gz", "jsonl.zst", "csv.zst"])
def test_a_mark_is_the_end_of_a_whole_packed_file(tmp_path: Path, suffix: str) -> None:
    output = Output(tmp_path, f"out.{suffix}")
    for batch in ([], [{"a": 1}], [], [{"a": 2}]):
        output.run([batch] if batch else [], lost=[[{"a": 3}]])
        assert output.mark is not None
        data = (tmp_path / f"out.{suffix}").read_bytes()[: output.mark["bytes"]]
        (tmp_path / f"cut.{suffix}").write_bytes(data)
        assert (gzip if suffix.endswith("gz") else zstd).decompress(data) is not None
    assert values(read(tmp_path, f"cut.{suffix}")) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_marks_without_records_between_add_nothing(tmp_path: Path, suffix: str) -> None:
    path = f"out.jsonl.{suffix}"
    output = Output(tmp_path, path)
    output.run([[1]])
    size = (tmp_path / path).stat().st_size
    output.run([])
    output.run([])
    assert (tmp_path / path).stat().st_size == size


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
@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
def test_half_a_record_spoils_no_other(
    tmp_path: Path, kind: str, packed: str, caplog: pytest.LogCaptureFixture
) -> None:
    head = b"a,b\n" if kind == "csv" else b""
    parts = list(map(PARTS[kind], ROWS))
    content = head + b"".join(parts)
    path = f"out.{kind}{packed}"
    packing = packing_of(path)
    for cut in range(len(head) + len(parts[0]), len(content) + 1):
        num_whole = sum(cut >= len(head + b"".join(parts[: count + 1])) for count in range(3))
        kept = content[:cut]
        if packing:  # each record is flushed, and the member never ended
            packer = packing.packer(is_new=True)
            kept = packer.pack(kept) + packer.flush()
        (tmp_path / path).write_bytes(kept)
        caplog.clear()
        append(tmp_path, path, NEW)
        got = values(read(tmp_path, path))
        assert got[:num_whole] == ROWS[:num_whole]
        assert got[-1] == NEW
        is_torn = cut != len(head + b"".join(parts[:num_whole]))
        assert len(got) - num_whole - 1 in ((0, 1) if is_torn else (0,))
        assert [record.levelno for record in caplog.records] == [logging.WARNING] * (
            is_torn or packing is not None
        )


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
from streamflow.contracts import Context, Resume
from streamflow.testing.connectors import make_batch
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


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["csv", "jsonl.zst", "msgpack.gz"])
def test_twenty_kills_leave_each_record_once(tmp_path: Path, suffix: str) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path), f"out.{suffix}", "7"]
    subprocess.run(command, check=True, timeout=100)
    got = values(read(tmp_path, f"out.{suffix}"))
    assert [value["n"] for value in got] == list(range(12_000))
    if suffix == "csv":
        assert (tmp_path / "out.csv").read_bytes().count(b"n,text\n") == 1


@pytest.mark.parametrize("path", ["out.csv", "out.csv.gz", "out.csv.zst"])
@pytest.mark.parametrize("torn", [b"n", b"num", b'"na', b"number,"])
def test_a_header_that_a_crash_cut_short_is_written_anew(
    tmp_path: Path, path: str, torn: bytes
) -> None:
    (tmp_path / path).write_bytes(pack(path, torn))
    append(tmp_path, path, {"number": 1})
    append(tmp_path, path, {"number": 2})
    assert values(read(tmp_path, path)) == [{"number": 1}, {"number": 2}]


def test_a_whole_header_is_kept(tmp_path: Path) -> None:
    (tmp_path / "out.csv").write_bytes(b"b,a\n")
    append(tmp_path, "out.csv", {"a": 1, "b": 2})
    assert (tmp_path / "out.csv").read_bytes() == b"b,a\n2,1\n"
