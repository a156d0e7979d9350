"""Every connector against `streamflow.contracts`, and the checks themselves."""

import json
import os
import shutil
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from streamflow.contracts import Context, Reader, Writer
from streamflow.records import Batch, Partition
from streamflow.testing import (
    Gate,
    ListReader,
    ListSink,
    ListSource,
    ListWriter,
    SinkProbe,
    check_cut_back_sink,
    check_live_source,
    check_rereading_source,
    check_sink,
    check_source,
    check_stalled_sink,
)
from streamflow_connectors.files import FileSink, FileSource
from streamflow_connectors.files.packing import without_packing
from streamflow_connectors.memory import MemorySink, MemorySource, QueueReader, QueueWriter
from tests.connectors.file_records import unpacked

pytestmark = pytest.mark.anyio

VALUES = [{"a": number, "b": f"text {number}"} for number in range(2500)]
BAD = {"a": object(), "b": "no format holds this"}
FORMATS = ["csv", "jsonl", "msgpack", "csv.gz", "jsonl.gz", "jsonl.zst", "msgpack.zst"]


class Anew:
    """An async iterable that begins anew each time, as a list does."""

    async def __aiter__(self) -> AsyncIterator[Any]:
        for value in VALUES:
            yield value


async def read_file(path: str, folder: Path) -> list[Any]:
    values: list[Any] = []
    async with FileSource(path=path).open(Context("read", folder)) as reader:
        while True:
            try:
                values += (await reader.receive()).batch.rows()
            except anyio.EndOfStream:
                return values


async def write_file(path: str, folder: Path) -> None:
    batch = Batch(VALUES, [Partition("test")] * len(VALUES), range(len(VALUES)))
    async with FileSink(path=path).open(Context("write", folder)) as writer:
        await writer.write(batch)


async def test_the_list_source() -> None:
    await check_source(lambda: ListSource(values=tuple(VALUES)), VALUES)
    await check_rereading_source(lambda: ListSource(values=tuple(VALUES)), VALUES)


async def test_the_list_sink() -> None:
    probe = SinkProbe()

    async def read_back() -> list[Any]:
        return probe.values[: probe.num_delivered]

    def reject(value: Any) -> str | None:
        return "bad" if value == BAD else None

    await check_sink(lambda: ListSink(reject=reject, probe=probe), read_back, VALUES, bad=BAD)
    await check_stalled_sink(lambda: ListSink(gate=Gate(is_open=False)), VALUES)
    probe.records.clear()
    await check_cut_back_sink(lambda: ListSink(probe=probe), read_back, VALUES)


async def test_a_memory_source_of_an_iterable() -> None:
    await check_source(lambda: MemorySource(records=VALUES), VALUES)


async def test_a_memory_source_of_an_async_iterable() -> None:
    await check_source(lambda: MemorySource(records=Anew()), VALUES)


async def test_a_memory_source_that_is_pushed_to() -> None:
    async def send(reader: Reader, value: Any) -> None:
        assert isinstance(reader, QueueReader)
        await reader.send(value)

    await check_live_source(MemorySource, send, VALUES[:2])


async def test_a_memory_sink() -> None:
    taken: list[Any] = []

    async def consume(writer: Writer) -> None:
        assert isinstance(writer, QueueWriter)
        async for record in writer.records():
            taken.append(record.value)  # noqa: PERF401  # read while it goes on

    async def read_back() -> list[Any]:
        return list(taken)

    await check_sink(MemorySink, read_back, VALUES, consume=consume)
    await check_stalled_sink(MemorySink, VALUES)


@pytest.mark.parametrize("suffix", FORMATS)
async def test_a_file_source(tmp_path: Path, suffix: str) -> None:
    path = f"in.{suffix}"
    await write_file(path, tmp_path)
    await check_source(lambda: FileSource(path=path), VALUES, folder=tmp_path)
    await check_rereading_source(lambda: FileSource(path=path), VALUES, folder=tmp_path)


@pytest.mark.parametrize("suffix", FORMATS)
async def test_a_file_sink(tmp_path: Path, suffix: str) -> None:
    path = f"out.{suffix}"

    async def read_back() -> list[Any]:
        copy = f"copy.{without_packing(suffix)}"  # since a packed one is not yet ended
        (tmp_path / copy).write_bytes(unpacked(tmp_path / path))
        return await read_file(copy, tmp_path)

    await check_sink(lambda: FileSink(path=path), read_back, VALUES, bad=BAD, folder=tmp_path)


@pytest.mark.parametrize("suffix", FORMATS)
async def test_a_file_sink_that_is_cut_back(tmp_path: Path, suffix: str) -> None:
    path = f"out.{suffix}"

    async def read_back() -> list[Any]:
        return await read_file(path, tmp_path)

    await check_cut_back_sink(lambda: FileSink(path=path), read_back, VALUES, folder=tmp_path)


PARTS: dict[str, dict[str, Any]] = {
    "rotated": {"path": "out.jsonl", "rotate": {"size": 10_000}},
    "rotated and packed": {"path": "out.jsonl.gz", "rotate": {"size": "20kB", "every": "1h"}},
    "whole": {"path": "out.jsonl.zst", "atomic": True},
    "rotated and whole": {"path": "out.jsonl", "rotate": {"size": 10_000}, "atomic": True},
    "partitioned": {"path": "out.jsonl", "partition_by": "kind"},
    "all": {
        "path": "out.jsonl.zst",
        "partition_by": "kind",
        "rotate": {"size": 10_000},
        "atomic": True,
    },
}


def read_all(folder: Path) -> list[Any]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [json.loads(line) for path in paths for line in unpacked(path).splitlines()]


@pytest.mark.parametrize("options", PARTS.values(), ids=PARTS)
async def test_a_file_sink_of_several_files(tmp_path: Path, options: dict[str, Any]) -> None:
    async def read_back() -> list[Any]:
        return read_all(tmp_path)

    values = [{**value, "kind": "even"} for value in VALUES]
    await check_sink(lambda: FileSink(**options), read_back, values, bad=BAD, folder=tmp_path)
    shutil.rmtree(tmp_path)
    await check_cut_back_sink(lambda: FileSink(**options), read_back, values, folder=tmp_path)


async def test_a_pipe_as_a_source(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    descriptor = os.open(path, os.O_RDWR)

    async def send(reader: Reader, value: Any) -> None:
        os.write(descriptor, b'{"a":%d}\n' % value["a"])

    values = [{"a": 1}, {"a": 2}]
    await check_live_source(lambda: FileSource(path=str(path), format="json"), send, values)
    os.close(descriptor)


async def test_a_pipe_that_nobody_empties(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    descriptor = os.open(path, os.O_RDWR)
    await check_stalled_sink(lambda: FileSink(path=str(path), format="json"), VALUES)
    os.close(descriptor)


async def test_the_checks_find_a_lost_record() -> None:
    with pytest.raises(AssertionError, match="in order"):
        await check_source(lambda: ListSource(values=tuple(VALUES[1:])), VALUES)


async def test_the_checks_find_a_sink_that_never_waits() -> None:
    with pytest.raises(AssertionError, match="expected write to wait"):
        await check_stalled_sink(ListSink, VALUES)


async def test_the_checks_find_what_flush_did_not_deliver() -> None:
    async def read_back() -> list[Any]:
        return []

    with pytest.raises(AssertionError, match="delivered after flush"):
        await check_sink(ListSink, read_back, VALUES)


class Forgetful(ListSource):
    """Begins anew whatever a checkpoint says."""

    @asynccontextmanager
    async def open(self, context: Context) -> AsyncGenerator[ListReader]:
        async with super().open(Context(context.name)) as reader:
            yield reader


class Careless(ListSink):
    """Keeps what it wrote after its mark."""

    @asynccontextmanager
    async def open(self, context: Context) -> AsyncGenerator[ListWriter]:
        async with super().open(Context(context.name)) as writer:
            yield writer


async def test_the_checks_find_what_does_not_go_on_at_a_checkpoint() -> None:
    with pytest.raises(AssertionError, match="from record 1 on"):
        await check_rereading_source(lambda: Forgetful(values=tuple(VALUES)), VALUES)
    probe = SinkProbe()

    async def read_back() -> list[Any]:
        return probe.values

    with pytest.raises(AssertionError, match="after it was cut back"):
        await check_cut_back_sink(lambda: Careless(probe=probe), read_back, VALUES)


async def test_memory_says_that_it_does_not_go_on_at_a_checkpoint() -> None:
    assert not MemorySource(records=VALUES).rereads
    assert not MemorySink().cuts_back
    async with MemorySink().open(Context("sink", is_checkpointed=True)) as writer:
        assert await writer.mark() == {}
