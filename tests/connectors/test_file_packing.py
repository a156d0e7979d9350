"""Packed files: gzip and Zstandard, held against the libraries themselves."""

import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamflow import Graph, GraphError
from streamflow.contracts import Context
from streamflow.errors import ConnectorError, MissingExtraError
from streamflow.nodes import plugins
from streamflow.testing.connectors import make_batch
from streamflow_connectors.files import FileSink, FileSource
from streamflow_connectors.files.packing import packing_of
from tests.connectors.file_records import PARTS, pack, read, unpacked, zstd

pytestmark = pytest.mark.anyio

SUFFIXES = ["gz", "zst"]
both = pytest.mark.parametrize("suffix", SUFFIXES)


def unpacked_by(suffix: str, data: bytes, size: int) -> Iterator[bytes]:
    packing = packing_of(f"x.{suffix}")
    assert packing is not None
    unpacker = packing.unpacker()
    for start in range(0, len(data) + size, size):  # nothing at the end
        unpacker.feed(data[start : start + size])
        while unpacker.has_more:
            yield unpacker.take()


@both
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_members_follow_one_another(suffix: str, size: int) -> None:
    data = b"".join(pack(f"x.{suffix}", part) for part in (b"one", b"", b"two"))
    if suffix == "gz":
        data += b"\0" * 5  # padding
    else:
        data = b"\x50\x2a\x4d\x18\x03\0\0\0abc" + data  # a frame to be skipped
    assert b"".join(unpacked_by(suffix, data, size)) == b"onetwo"


@both
@pytest.mark.parametrize("size", [1, 1000, 2**20])
def test_data_are_unpacked_a_piece_at_a_time(suffix: str, size: int) -> None:
    content = b"0" * 200_000 + bytes(range(256)) * 500
    pieces = list(unpacked_by(suffix, pack(f"x.{suffix}", content) * 2, size))
    assert b"".join(pieces) == content * 2
    assert max(map(len, pieces)) <= 2**16


@pytest.mark.parametrize("content", [b"0" * 70_000, bytes(range(256)) * 300])
@both
def test_data_that_are_cut_off_give_what_is_there(suffix: str, content: bytes) -> None:
    packing = packing_of(f"x.{suffix}")
    assert packing is not None
    data = pack(f"x.{suffix}", content)
    for cut in range(len(data) - 1):
        unpacker = packing.unpacker()
        unpacker.feed(data[:cut])
        got = b""
        while unpacker.has_more:
            got += unpacker.take()
        member: Any = zstd.ZstdDecompressor() if suffix == "zst" else None
        member = member or zlib.decompressobj(wbits=31)
        assert got == member.decompress(data[:cut])


@both
@given(st.lists(st.binary(max_size=300) | st.sampled_from(["flush", "end"]), max_size=12))
@settings(deadline=None)
def test_what_is_packed_can_be_read_after_each_flush(suffix: str, steps: list[Any]) -> None:
    packing = packing_of(f"x.{suffix}")
    assert packing is not None
    packer = packing.packer(is_new=True)
    data, content = b"", b""
    for step in steps:
        if isinstance(step, bytes):
            data += packer.pack(step)
            content += step
            continue
        data += packer.flush() if step == "flush" else packer.end_member()
        unpacker = packing.unpacker()
        unpacker.feed(data)
        got = b""
        while unpacker.has_more:
            got += unpacker.take()
        assert got == content
        if step == "end":
            unpacker.feed(b"")  # which is no cut


@both
@pytest.mark.parametrize("cut", [10, -4])
async def test_data_that_are_cut_off(tmp_path: Path, suffix: str, cut: int) -> None:
    lines = b"".join(b"%d\n" % number for number in range(5000))
    if suffix == "zst":  # whose blocks are large
        packer = zstd.ZstdCompressor()
        halves = packer.compress(lines[:10_000]) + packer.flush(packer.FLUSH_BLOCK)
        packed = halves + packer.compress(lines[10_000:]) + packer.flush()
    else:
        packed = pack("x.gz", lines)
    (tmp_path / f"in.jsonl.{suffix}").write_bytes(packed[:cut])
    got: list[Any] = []

    async def read_all() -> None:
        source = FileSource(path=f"in.jsonl.{suffix}")
        async with source.open(Context("read", tmp_path)) as reader:
            while True:
                got.extend((await reader.receive()).batch.rows())

    with pytest.raises(ConnectorError, match=rf"in\.jsonl\.{suffix}.*cut off.*after row"):
        await read_all()
    assert got == list(range(len(got)))
    assert bool(got) == (cut < 0)


@both
def test_a_checksum_that_is_wrong(tmp_path: Path, suffix: str) -> None:
    append(tmp_path, f"in.jsonl.{suffix}", 1)
    data = bytearray((tmp_path / f"in.jsonl.{suffix}").read_bytes())
    data[-6 if suffix == "gz" else -1] ^= 1
    (tmp_path / f"in.jsonl.{suffix}").write_bytes(data)
    with pytest.raises(ConnectorError, match=rf"in\.jsonl\.{suffix}"):
        read(tmp_path, f"in.jsonl.{suffix}")


def append(folder: Path, path: str, value: Any) -> None:
    async def run() -> None:
        async with FileSink(path=path, mode="append").open(Context("node", folder)) as writer:
            await writer.write(make_batch([value]))

    anyio.run(run)


@both
@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_half_a_member_is_packed_anew(tmp_path: Path, suffix: str, cut: int) -> None:
    path = f"out.jsonl.{suffix}"
    first, second = (pack(path, PARTS["jsonl"]({"a": number})) for number in (1, 2))
    (tmp_path / path).write_bytes(first + second[:cut])
    append(tmp_path, path, {"a": 4})
    assert [entry.name for entry in tmp_path.iterdir()] == [path]
    lines = unpacked(tmp_path / path).splitlines()
    assert lines[0] == b'{"a": 1}'
    assert lines[-1] == b'{"a":4}'
    assert b"".join(lines[1:-1]) in b'{"a": 2}'


@both
def test_a_bomb_takes_no_memory(tmp_path: Path, suffix: str) -> None:
    path = f"bomb.jsonl.{suffix}"
    packing = packing_of(path)
    assert packing is not None
    packer = packing.packer(is_new=True)
    zeros = b"0" * 2**20
    data = b"".join(packer.pack(zeros) for _ in range(200)) + packer.end_member()
    assert len(data) < 2**20
    (tmp_path / path).write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(ConnectorError, match="a record of more than 67108864 bytes after row"):
            read(tmp_path, path)
        assert tracemalloc.get_traced_memory()[1] < 3 * 2**26
    finally:
        tracemalloc.stop()


def test_a_frame_that_asks_for_much_memory_is_refused(tmp_path: Path) -> None:
    options: dict[int, int] = {zstd.CompressionParameter.window_log: 30}
    packer = zstd.ZstdCompressor(options=options)
    (tmp_path / "in.jsonl.zst").write_bytes(packer.compress(b"1\n") + packer.flush())
    with pytest.raises(ConnectorError, match="requires too much memory"):
        read(tmp_path, "in.jsonl.zst")


GRAPH = """
name: packed
sources: {in: {type: file, path: in.jsonl.zst}}
sinks: {out: {type: file, inputs: [in], path: out.jsonl.zst}}
"""


async def test_a_missing_package_is_named_before_anything_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "graph.yaml").write_text(GRAPH)
    (tmp_path / "in.jsonl.zst").write_bytes(pack("in.jsonl.zst", b"1\n"))
    graph = Graph.from_yaml(tmp_path / "graph.yaml")
    assert list(graph.deep_problems()) == []
    monkeypatch.setattr(plugins, "find_spec", lambda _: None)
    assert len(list(graph.deep_problems())) == 2
    with pytest.raises(GraphError, match=r"graph\.yaml:3:.*streamflow-online\[zstd\]"):
        async with graph.open():
            pass
    for node in (graph.sources["in"], graph.sinks["out"]):
        [problem] = node.deep_problems(tmp_path)
        assert problem.location == ("path",)
        with pytest.raises(MissingExtraError, match=r"node: expected the package"):
            async with node.open(Context("node", tmp_path)):
                pass
    assert not (tmp_path / "out.jsonl.zst").exists()
    assert list(FileSink(path="out.jsonl.gz").deep_problems(tmp_path)) == []


def test_declaring_imports_no_library() -> None:
    code = (
        "import sys; from streamflow_connectors.files import FileSource; "
        "FileSource(path='a.jsonl.zst'); "
        "assert not any('zstd' in name for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
