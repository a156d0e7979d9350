"""The examples of docs/files.md work as written."""

import json
import re
from pathlib import Path
from typing import Any

import anyio
import pyarrow as pa  # type: ignore[import-untyped]  # it ships no types
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest

from streamflow import Graph
from streamflow_connectors.files import FileSink, FileSource
from tests.connectors.file_records import pack, unpacked
from tests.test_docs import blocks

pytestmark = pytest.mark.anyio

PAGE = "docs/files.md"
GRAPHS = {text.split("\n", 1)[0].removeprefix("name: "): text for text in blocks(PAGE, "yaml")}


def put(path: Path, rows: list[Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pack(path.name, b"".join(json.dumps(row).encode() + b"\n" for row in rows)))


def got(path: Path) -> list[Any]:
    return [json.loads(line) for line in unpacked(path).splitlines()]


def graph(folder: Path, name: str) -> Graph:
    (folder / "graph.yaml").write_text(GRAPHS[name])
    return Graph.from_yaml(folder / "graph.yaml")


async def run(folder: Path, name: str) -> None:
    with anyio.fail_after(60):
        async with graph(folder, name).open() as opened:
            await opened.wait()


async def test_packing_anew(tmp_path: Path) -> None:
    put(tmp_path / "readings/a.jsonl.gz", [1, 2])
    put(tmp_path / "readings/b.jsonl.gz", [3])
    await run(tmp_path, "repack")
    assert got(tmp_path / "readings.jsonl.zst") == [1, 2, 3]


async def test_following(tmp_path: Path) -> None:
    put(tmp_path / "logs/a.jsonl", [1, 2])
    put(tmp_path / "logs/b.jsonl", [3])
    await run(tmp_path, "follow")
    assert sorted(got(tmp_path / "readings.jsonl")) == [1, 2, 3]


async def test_splitting(tmp_path: Path) -> None:
    rows = [{"city": "Oslo", "n": 1}, {"city": "Rome", "n": 2}, {"city": "Oslo", "n": 3}]
    put(tmp_path / "scores.jsonl", rows)
    await run(tmp_path, "split")
    assert got(tmp_path / "out/city=Oslo/scores-000001.jsonl.gz") == [rows[0], rows[2]]
    assert got(tmp_path / "out/city=Rome/scores-000001.jsonl.gz") == [rows[1]]


async def test_replaying(tmp_path: Path) -> None:
    rows = [{"time": f"2026-01-01T00:00:00.{n}", "n": n} for n in range(3)]
    put(tmp_path / "readings.jsonl", rows)
    await run(tmp_path, "replay")
    assert got(tmp_path / "copy.jsonl") == rows


async def test_columns(tmp_path: Path) -> None:
    rows = [{"city": "Oslo", "n": 1}, {"city": "Rome", "n": 2}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "scores.parquet")
    await run(tmp_path, "columns")
    assert pq.read_table(tmp_path / "out/scores-000001.parquet").to_pylist() == rows


def test_every_example_is_run() -> None:
    assert set(GRAPHS) == {"columns", "follow", "repack", "replay", "split"}


@pytest.mark.parametrize("declared", [FileSource, FileSink])
def test_the_page_names_every_option(declared: Any) -> None:
    text = (Path(__file__).parents[2] / PAGE).read_text(encoding="utf-8")
    shared = {"type", "inputs", "merge", "overflow", "buffer", "path"}
    assert declared.model_fields.keys() - shared <= set(re.findall(r"`(\w+)[`:]", text))
