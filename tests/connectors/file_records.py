"""Records in files, and how a run that goes on from a checkpoint reads them."""

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import msgpack  # type: ignore[import-untyped]  # it ships no types
from hypothesis import strategies as st

from streamflow.contracts import Context, Resume
from streamflow.records import Place
from streamflow_connectors.files import FileSource

if sys.version_info >= (3, 14):
    from compression import zstd as zstd
else:
    from backports import zstd as zstd

Item = tuple[str, int, Any]
"""A path, a row, and the value or the bytes that are none."""

texts = st.text('ab1",\n\r ;€', max_size=6)
cells = st.none() | st.integers(-99, 99) | texts
rows = st.fixed_dictionaries({"a": cells, "b": texts})
suffixes = st.sampled_from(
    ["csv", "jsonl", "msgpack", "csv.gz", "jsonl.gz", "msgpack.gz", "csv.zst", "jsonl.zst"]
)


def pack(path: str, data: bytes) -> bytes:
    """Return data as a file of this name holds them."""
    if path.endswith(".zst"):
        return zstd.compress(data)
    return gzip.compress(data) if path.endswith(".gz") else data


def unpacked(path: Path) -> bytes:
    """Return what a file holds, whose last member may not be ended yet."""
    data, content = path.read_bytes(), b""
    suffix = Path(path.name.removesuffix(".part")).suffix
    if suffix not in (".gz", ".zst"):
        return data
    while data:
        member: Any = zstd.ZstdDecompressor() if suffix == ".zst" else None
        member = member or zlib.decompressobj(wbits=31)
        content += member.decompress(data)
        data = member.unused_data
    return content


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
