import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from streamflow.contracts import Context, Fetch
from streamflow.errors import ConnectorError, GraphError
from streamflow.records import Batch, Partition
from streamflow_connectors.files import FileSink, FileSource
from streamflow_connectors.files.reading.opened import MOST_RECORDS
from tests.connectors.file_records import pack, unpacked

pytestmark = pytest.mark.anyio


async def read(folder: Path, path: str, **options: Any) -> list[Fetch]:
    fetches: list[Fetch] = []
    async with FileSource(path=path, **options).open(Context("read", folder)) as reader:
        while True:
            try:
                fetches.append(await reader.receive())
            except anyio.EndOfStream:
                return fetches


async def write(folder: Path, path: str, rows: list[Any], **options: Any) -> None:
    sink = FileSink(path=path, **options)
    async with sink.open(Context("write", folder)) as writer:
        await writer.write(Batch(rows, [Partition("test")] * len(rows), range(len(rows))))


def values(fetches: list[Fetch]) -> list[Any]:
    return [value for fetch in fetches for value in fetch.batch.rows()]


def positions(fetches: list[Fetch]) -> list[Any]:
    return [tuple(position.values()) for fetch in fetches for position in fetch.batch.positions()]


async def test_a_csv_file(tmp_path: Path) -> None:
    text = '\ufeffa,b\r\n1,"two\r\nlines"\r\n\r\n1.5,\r\n7'
    (tmp_path / "in.csv").write_bytes(text.encode())
    [fetch] = await read(tmp_path, "in.csv")
    assert values([fetch]) == [{"a": 1, "b": "two\r\nlines"}, {"a": 1.5, "b": None}]
    assert positions([fetch]) == [("in.csv", 1), ("in.csv", 2)]
    assert fetch.ends == {Partition("read", (("path", "in.csv"),), "line"): 4}
    assert fetch.rejected is not None
    assert fetch.rejected.batch.originals == [b"7"]
    assert fetch.rejected.batch.positions() == [{"path": "in.csv", "line": 3}]


async def test_a_csv_file_without_a_header(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("1;2\n")
    declared = {"csv": {"fields": ["a", "b"], "delimiter": ";"}}
    assert values(await read(tmp_path, "in.txt", format=declared)) == [{"a": 1, "b": 2}]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.msgpack", "a.csv.gz", "a.csv.zst"])
async def test_an_empty_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    assert await read(tmp_path, name) == []


async def test_several_files_are_read_in_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    for name, line in [
        ("b.jsonl", b"2"),
        ("a.jsonl", b"1"),
        ("c.jsonl.gz", b"3"),
        ("d.jsonl.zst", b"4"),
    ]:
        (tmp_path / "logs" / name).write_bytes(pack(name, line))
    fetches = await read(tmp_path, "logs/*", format="jsonl")
    assert values(fetches) == [1, 2, 3, 4]
    assert positions(fetches) == [
        ("logs/a.jsonl", 1),
        ("logs/b.jsonl", 1),
        ("logs/c.jsonl.gz", 1),
        ("logs/d.jsonl.zst", 1),
    ]


async def test_batches_are_bounded(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b"1\n" * 3000 + (b'"' + b"x" * 400_000 + b'"\n') * 5)
    fetches = await read(tmp_path, "in.jsonl")
    assert [len(fetch.batch) for fetch in fetches][:3] == [MOST_RECORDS] * 3
    assert len(values(fetches)) == 3005
    assert all(fetch.batch.size_bytes <= 2**20 for fetch in fetches)


@pytest.mark.parametrize("path", ["none.csv", "none*.csv", "."])
async def test_a_file_that_is_not_there(tmp_path: Path, path: str) -> None:
    with pytest.raises(ConnectorError, match=r"read: expected .*(none|folder)"):
        await read(tmp_path, path, format="csv")


async def test_msgpack_that_is_cut_off_or_damaged(tmp_path: Path) -> None:
    (tmp_path / "cut.msgpack").write_bytes(b"\x01\x92\x01")
    [fetch] = await read(tmp_path, "cut.msgpack")
    assert values([fetch]) == [1]
    assert fetch.rejected is not None
    assert "incomplete" in fetch.rejected.causes[0]
    (tmp_path / "bad.msgpack").write_bytes(b"\x01\xc1\x02")
    with pytest.raises(ConnectorError, match="not msgpack after row 1"):
        await read(tmp_path, "bad.msgpack")


@pytest.mark.parametrize("header", ["a,a", "a,", "a\rb,c"])
async def test_a_header_must_name_each_column_once(tmp_path: Path, header: str) -> None:
    (tmp_path / "in.csv").write_bytes(f"{header}\n1,2\n".encode())
    with pytest.raises(ConnectorError, match=r"in\.csv"):
        await read(tmp_path, "in.csv")


@pytest.mark.parametrize("declare", [FileSource, FileSink])
def test_a_format_must_be_known(declare: Any) -> None:
    with pytest.raises(GraphError, match="expected a format"):
        declare(path="data.txt")
    assert declare(path="data.CSV.gz", format="csv")
    assert declare(path="data.csv.zst").resolved_format.name == "csv"


@pytest.mark.parametrize("name", ["new/out.csv", "out.csv.gz", "out.jsonl", "out.csv.zst"])
async def test_a_file_is_overwritten_or_appended_to(tmp_path: Path, name: str) -> None:
    first, second = {"a": 1, "b": "x\ny"}, {"a": 2, "b": None}
    await write(tmp_path, name, [{"z": 0}])
    await write(tmp_path, name, [first])
    await write(tmp_path, name, [second], mode="append")
    assert values(await read(tmp_path, name)) == [first, second]


async def test_csv_has_the_fields_of_the_first_record(tmp_path: Path) -> None:
    await write(tmp_path, "out.csv", [{"b": 1, "a": "x"}, {"a": "y"}, {"c": 3}])
    assert (tmp_path / "out.csv").read_text() == "b,a\n1,x\n,y\n"


@pytest.mark.parametrize("first", [[7, {}], [7], [{}]])
async def test_csv_waits_for_a_record_that_has_fields(tmp_path: Path, first: list[Any]) -> None:
    async with FileSink(path="out.csv").open(Context("write", tmp_path)) as writer:
        rejected = await writer.write(
            Batch(first, [Partition("test")] * len(first), range(len(first)))
        )
        assert rejected is not None
        assert len(rejected.batch) == len(first)
        assert await writer.write(Batch([{"a": 1}], [Partition("test")], [2])) is None
    assert (tmp_path / "out.csv").read_text() == "a\n1\n"


@pytest.mark.parametrize("suffix", ["gz", "zst"])
async def test_flushed_records_can_be_read_at_once(tmp_path: Path, suffix: str) -> None:
    path = f"out.jsonl.{suffix}"
    async with FileSink(path=path).open(Context("write", tmp_path)) as writer:
        await writer.write(Batch([1, 2], [Partition("test")] * 2, range(2)))
        await writer.flush()
        assert unpacked(tmp_path / path) == b"1\n2\n"
        assert repr(writer) == f"<FileWriter write: {path}, 0 bytes waiting>"
    assert values(await read(tmp_path, path)) == [1, 2]


async def test_what_cannot_be_written_is_said_before_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConnectorError, match=r"write: expected to write \., found"):
        await write(tmp_path, ".", [1], format="json")


async def test_a_full_disk_is_an_error() -> None:
    with pytest.raises(ConnectorError, match="No space left"):
        await write(Path(), "/dev/full", [1], format="json")


async def test_devices_that_never_wait() -> None:
    assert await read(Path(), "/dev/null", format="json") == []
    await write(Path(), "/dev/null", [1], format="json")


async def test_a_pipe_without_a_reader(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConnectorError, match="nobody reads it"):
        await write(tmp_path, "pipe", [1], format="json")


async def test_a_pipe_whose_reader_goes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    descriptor = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    async with FileSink(path="pipe", format="raw").open(Context("write", tmp_path)) as writer:
        await writer.write(Batch(["x"], [Partition("test")], [0]))
        assert os.read(descriptor, 10) == b"x\n"
        os.close(descriptor)
        with pytest.raises(ConnectorError, match="nobody reads it"):
            await writer.write(Batch(["x"], [Partition("test")], [0]))


async def test_no_record_is_torn_by_a_cancelled_write(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    descriptor = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    rows = ["x" * 999] * 200
    batch = Batch(rows, [Partition("test")] * len(rows), range(len(rows)))
    got = io.BytesIO()
    async with FileSink(path="pipe", format="raw").open(Context("write", tmp_path)) as writer:
        with anyio.move_on_after(0.2) as scope:
            await writer.write(batch)
        assert scope.cancelled_caught
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(writer.flush)
            while len(got.getvalue()) < 200_000:
                await anyio.wait_readable(descriptor)
                got.write(os.read(descriptor, 2**16))
    os.close(descriptor)
    assert got.getvalue() == b"".join(row.encode() + b"\n" for row in rows)


PIPING = """
import anyio
from streamflow.contracts import Context
from streamflow_connectors.files import FileSink, FileSource

async def main():
    source, sink = FileSource(path="-", format="json"), FileSink(path="-", format="json")
    async with source.open(Context("in")) as reader, sink.open(Context("out")) as writer:
        while True:
            try:
                fetch = await reader.receive()
            except anyio.EndOfStream:
                return
            await writer.write(fetch.batch)

anyio.run(main)
"""


def test_standard_input_is_passed_on_as_it_comes() -> None:
    command = [sys.executable, "-c", PIPING]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for line in (b'{"a":1}\n', b'{"a":2}\n'):
            process.stdin.write(line)
            process.stdin.flush()
            assert process.stdout.readline() == line
        process.stdin.close()
        assert process.stdout.read() == b""
        assert process.wait() == 0


CANCELLED = """
import anyio
from streamflow.contracts import Context
from streamflow_connectors.files import FileSource

async def main():
    async with FileSource(path="-", format="json").open(Context("in")) as reader:
        with anyio.move_on_after(0.05):
            await reader.receive()

anyio.run(main)
"""


def test_waiting_for_standard_input_does_not_keep_a_process_alive() -> None:
    command = [sys.executable, "-c", CANCELLED]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.wait(timeout=60) == 0
