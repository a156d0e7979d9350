"""Files that are damaged amid, or change while they are read: said, and no record is made up."""

import os
import re
import zlib
from pathlib import Path
from typing import Any

import anyio
import pytest

from streamflow.contracts import Context, Reader
from streamflow.errors import ConnectorError
from streamflow.graph import Graph
from streamflow.testing import ListSink
from streamflow_connectors.files import FileSource
from streamflow_connectors.files.reading.opened import MOST_RECORDS

pytestmark = pytest.mark.anyio

NUM_BLOCKS, PER_BLOCK = 40, 600
NUMBERS = [10**9 + number for number in range(NUM_BLOCKS * PER_BLOCK)]


def blocks() -> list[bytes]:
    """Return gzip data in parts, each of which unfolds to so many lines whatever is before."""
    packer = zlib.compressobj(wbits=31)
    parts = []
    for start in range(0, len(NUMBERS), PER_BLOCK):
        lines = b"".join(b"%d\n" % number for number in NUMBERS[start : start + PER_BLOCK])
        parts.append(packer.compress(lines) + packer.flush(zlib.Z_FULL_FLUSH))
    return [*parts, packer.flush()]


def damaged(at: int) -> bytes:
    """Return the data with a part that begins as no part can."""
    parts = blocks()
    parts[at] = b"\xff" + parts[at][1:]
    return b"".join(parts)


async def read_all(reader: Reader, got: list[Any], ends: list[int]) -> None:
    while True:
        fetch = await reader.receive()
        assert fetch.rejected is None
        got += fetch.batch.rows()
        ends += fetch.ends.values()


@pytest.mark.parametrize("at", [1, 4, NUM_BLOCKS - 1])
async def test_damage_amid_gzip_data_is_said_after_what_is_before(tmp_path: Path, at: int) -> None:
    (tmp_path / "in.jsonl.gz").write_bytes(damaged(at))
    got: list[Any] = []
    ends: list[int] = []
    async with FileSource(path="in.jsonl.gz").open(Context("read", tmp_path)) as reader:
        with anyio.fail_after(30), pytest.raises(ConnectorError) as caught:
            await read_all(reader, got, ends)
        with pytest.raises(ConnectorError, match=re.escape(str(caught.value))):
            await reader.receive()
    expected = (
        rf"read: expected to read in\.jsonl\.gz, found Error .* after row {len(got)}; repair .*"
    )
    assert re.fullmatch(expected, str(caught.value))
    assert got == NUMBERS[: len(got)]
    assert len(got) <= at * PER_BLOCK
    assert ends[-1:] == ([len(got) + 1] if got else [])


async def test_a_run_goes_on_where_damage_was_repaired(tmp_path: Path) -> None:
    path, out = tmp_path / "in.jsonl.gz", ListSink(inputs=("in",))
    graph = Graph(
        name="damaged",
        checkpoint={"path": str(tmp_path / "cp"), "every": 700},
        sources={"in": FileSource(path=str(path))},
        sinks={"out": out},
    )
    for at in (15, 30, None):
        path.write_bytes(b"".join(blocks()) if at is None else damaged(at))
        with anyio.fail_after(60):
            async with graph.open() as run:
                if at is None:
                    await run.wait()
                else:
                    with pytest.raises(ConnectorError, match=r"invalid .* after row \d+;"):
                        await run.wait()
    assert out.probe.values == NUMBERS


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "msgpack", "jsonl.gz"])
@pytest.mark.parametrize("left", [0, 10, 5000])
async def test_a_file_that_is_cut_short_while_it_is_read(
    tmp_path: Path, suffix: str, left: int
) -> None:
    path = tmp_path / f"in.{suffix}"
    rows = [b"%d\n" % number for number in NUMBERS]
    if suffix == "msgpack":
        rows = [b"\xce" + number.to_bytes(4, "big") for number in NUMBERS]
    content = b"".join([b"n\n"] * (suffix == "csv") + rows * 8)
    # Stored and not packed, so that its size is about that of what it holds.
    stored = zlib.compressobj(0, wbits=31)
    packed = stored.compress(content) + stored.flush()
    path.write_bytes(packed if suffix.endswith(".gz") else content)
    got: list[Any] = []
    async with FileSource(path=path.name).open(Context("read", tmp_path)) as reader:
        got += (await reader.receive()).batch.rows()
        assert MOST_RECORDS <= len(got) < len(NUMBERS)
        os.truncate(path, left)
        with anyio.fail_after(30), pytest.raises(ConnectorError, match=r"cut (short|off)"):
            await read_all(reader, got, [])
    numbers = [value["n"] if suffix == "csv" else value for value in got]
    assert numbers == (NUMBERS * 8)[: len(numbers)]  # none is half a one


async def test_a_file_that_grows_while_it_is_read_is_read_to_its_new_end(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"".join(b"%d\n" % number for number in NUMBERS))
    got: list[Any] = []
    async with FileSource(path=path.name).open(Context("read", tmp_path)) as reader:
        got += (await reader.receive()).batch.rows()
        with path.open("ab") as file:
            file.write(b"1\n")
        with pytest.raises(anyio.EndOfStream):
            await read_all(reader, got, [])
    assert got == [*NUMBERS, 1]
