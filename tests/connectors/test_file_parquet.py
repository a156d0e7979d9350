"""Parquet files, held against pyarrow by itself."""

import os
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import anyio.lowlevel
import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]  # it ships no types
import pyarrow.dataset as dataset  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamflow import Graph, GraphError
from streamflow.contracts import Context, Fetch
from streamflow.errors import ConnectorError, MissingExtraError
from streamflow.nodes import plugins
from streamflow.records import Rejected
from streamflow.testing import check_cut_back_sink, check_rereading_source, check_source
from streamflow.testing.connectors import make_batch
from streamflow_connectors.files import FileSink, FileSource
from streamflow_connectors.kafka import KafkaSource
from tests.connectors.file_records import read
from tests.connectors.test_file_parts import Output

pytestmark = pytest.mark.anyio

VALUES = [{"a": number, "b": f"text {number % 7}", "c": number / 3} for number in range(2500)]


def put(path: Path, table: Any, **options: Any) -> None:
    pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), path, **options)


async def fetches(folder: Path, path: str, **options: Any) -> list[Fetch]:
    found: list[Fetch] = []
    async with FileSource(path=path, **options).open(Context("read", folder)) as reader:
        while True:
            try:
                found.append(await reader.receive())
            except anyio.EndOfStream:
                return found


@pytest.mark.parametrize("row_group_size", [1, 700, 5000])
async def test_a_parquet_source(tmp_path: Path, row_group_size: int) -> None:
    values = VALUES[:50] if row_group_size == 1 else VALUES
    put(tmp_path / "in.parquet", pa.Table.from_pylist(values), row_group_size=row_group_size)
    await check_source(lambda: FileSource(path="in.parquet"), values, folder=tmp_path)
    await check_rereading_source(lambda: FileSource(path="in.parquet"), values, folder=tmp_path)


async def test_columns_become_columns(tmp_path: Path) -> None:
    put(tmp_path / "in.parquet", {"i": [1, 2], "f": [0.5, None], "t": ["x", "x"]})
    [fetch] = await fetches(tmp_path, "in.parquet")
    values = fetch.batch.values
    assert isinstance(values, dict)
    assert isinstance(values["i"], np.ndarray)
    assert values["f"] == [0.5, None]
    assert values["t"][0] is values["t"][1]
    assert fetch.batch.positions()[1] == {"path": "in.parquet", "line": 2}


async def test_values_are_what_other_formats_have(tmp_path: Path) -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, 678, UTC)
    table = pa.table(
        {
            "day": [date(2026, 1, 2)],
            "clock": [time(3, 4, 5)],
            "moment": pa.array([moment], pa.timestamp("us", "UTC")),
            "plain": pa.array([1_767_323_045_000_000_123], pa.timestamp("ns")),
            "span": [timedelta(seconds=1.5)],
            "price": [Decimal("1.25")],
            "small": pa.array([3], pa.uint8()),
            "half": pa.array([np.float16(0.5)], pa.float16()),
            "truth": [True],
            "list": [[1, 2]],
            "nested": [{"x": [date(2026, 1, 2)], "y": None}],
            "raw": [b"\xff"],
            "none": pa.array([None], pa.null()),
            "kind": pa.array(["k"]).dictionary_encode(),
        }
    )
    put(tmp_path / "in.parquet", table)
    [fetch] = await fetches(tmp_path, "in.parquet")
    assert fetch.batch.rows() == [
        {
            "day": "2026-01-02",
            "clock": "03:04:05",
            "moment": "2026-01-02T03:04:05.000678+00:00",
            "plain": "2026-01-02T03:04:05",
            "span": 1.5,
            "price": 1.25,
            "small": 3,
            "half": 0.5,
            "truth": True,
            "list": [1, 2],
            "nested": {"x": ["2026-01-02"], "y": None},
            "raw": b"\xff",
            "none": None,
            "kind": "k",
        }
    ]


cells = st.none() | st.text(max_size=5)
tables = st.lists(
    st.fixed_dictionaries({"n": st.integers(-(2**63), 2**63 - 1), "t": cells, "f": st.floats()}),
    max_size=30,
)


def texts(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Return rows as text, of which two that are no number are alike."""
    return [str(sorted(row.items())) for row in rows]


@given(tables, st.integers(1, 7), st.integers(0, 30))
@settings(deadline=None)
def test_reading_on_is_reading_the_rest(rows: list[Any], group: int, cut: int) -> None:
    schema = pa.schema({"n": pa.int64(), "t": pa.string(), "f": pa.float64()})
    with TemporaryDirectory() as folder:
        table = pa.Table.from_pylist(rows, schema)
        put(Path(folder) / "in.parquet", table, row_group_size=group)
        whole = read(Path(folder), "in.parquet")
        assert texts(value for _, _, value in whole) == texts(rows)
        start = 1 + cut % (len(rows) + 1)
        rest = read(Path(folder), "in.parquet", {"in.parquet": start})
        assert str(rest) == str(whole[start - 1 :])


async def test_a_field_may_tell_the_time(tmp_path: Path) -> None:
    put(tmp_path / "in.parquet", {"at": [datetime(1970, 1, 1, 0, 0, 5), None]})
    [fetch] = await fetches(tmp_path, "in.parquet", time="at")
    assert fetch.batch.timestamps_ms == [5000]
    assert fetch.rejected is not None
    assert list(fetch.rejected.indices) == [1]


def test_a_file_that_is_shorter_than_its_position(tmp_path: Path) -> None:
    put(tmp_path / "in.parquet", {"a": [1, 2]})
    assert read(tmp_path, "in.parquet", {"in.parquet": 3}) == []
    with pytest.raises(ConnectorError, match=r"expected at least 3 rows in .*, found 2; .*--reset"):
        read(tmp_path, "in.parquet", {"in.parquet": 4})


@pytest.mark.parametrize("damage", ["none at all", "cut", "text", "twice"])
async def test_a_file_that_is_none(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "in.parquet"
    put(path, {"a": [1, 2]})
    if damage == "twice":
        put(path, pa.table([[1], [2]], names=["a", "a"]))
    elif damage != "none at all":
        path.write_bytes(path.read_bytes()[:-9] if damage == "cut" else b"a,b\n1,2\n")
    else:
        path.write_bytes(b"")
    with pytest.raises(ConnectorError, match=r"read: expected to read in\.parquet, found .* 0;"):
        await fetches(tmp_path, "in.parquet")


@given(st.data())
@settings(deadline=None, max_examples=30)
def test_damage_is_said_or_does_no_harm(data: st.DataObject) -> None:
    """A parquet file has no checksums unless asked for, so that other values may come."""
    rows = [{"a": number, "b": f"text {number}"} for number in range(50)]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "in.parquet"
        has_sums = data.draw(st.booleans())
        put(path, pa.Table.from_pylist(rows), row_group_size=10, write_page_checksum=has_sums)
        content = bytearray(path.read_bytes())
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content)
        try:
            found = read(Path(folder), "in.parquet")
        except ConnectorError as error:
            assert "node: expected to read in.parquet, found " in str(error)  # noqa: PT017
        else:
            assert len(found) <= len(rows)


async def test_a_byte_that_is_another_one_does_no_harm_wherever_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    put(path, {"t": ["x", "y", "x"]}, compression="none", store_schema=False)
    content = path.read_bytes()
    num_told = 0
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        try:
            found = await fetches(tmp_path, "in.parquet")
        except ConnectorError:
            num_told += 1
        else:
            assert sum(len(fetch.batch) for fetch in found) <= 3
    assert num_told > 50


@pytest.mark.slow
def test_a_bomb_takes_no_memory(tmp_path: Path) -> None:
    """A value of 16 MiB in each of 1,000 rows: 16 GiB, in a file of some kilobytes."""
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), ["x" * 2**24])
    put(tmp_path / "in.parquet", pa.table({"t": text}), compression="zstd", store_schema=False)
    assert (tmp_path / "in.parquet").stat().st_size < 2**16
    code = f"""
import resource
from pathlib import Path
from tests.connectors.file_records import read
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = read(Path({str(tmp_path)!r}), "in.parquet")
assert len(found) == 1000
assert {{len(value["t"]) for _, _, value in found}} == {{2**24}}
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert int(printed) < 1_000_000  # kilobytes


@pytest.mark.parametrize("declare", [FileSource, FileSink])
@pytest.mark.parametrize("path", ["-", "a.parquet.gz", "/dev/null"])
def test_paths_that_do_not_fit(declare: Any, path: str) -> None:
    with pytest.raises(GraphError, match="path: expected the path of a parquet file"):
        declare(path=path, format="parquet")


def test_options_that_do_not_fit() -> None:
    with pytest.raises(GraphError, match="follow: expected no follow with parquet"):
        FileSource(path="a.parquet", follow=True)
    with pytest.raises(GraphError, match="expected a format of single records, found parquet"):
        KafkaSource(bootstrap_servers="a:1", topics=("t",), format="parquet")


def test_dead_letters_of_columns_hold_values(tmp_path: Path) -> None:
    assert FileSource(path="a.parquet").decoder(tmp_path, {"path": "a.parquet", "line": 1}) is None


async def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "find_spec", lambda _: None)
    for node in (FileSource(path="a.parquet"), FileSink(path="a.parquet")):
        [problem] = node.deep_problems(tmp_path)
        assert (
            "pyarrow, found it is not installed; run: pip install 'streamflow-online[parquet]'"
            in str(problem)
        )
        with pytest.raises(MissingExtraError, match="pyarrow"):
            async with node.open(Context("node", tmp_path)):
                pass


def test_declaring_imports_no_library() -> None:
    code = (
        "import sys; from streamflow_connectors.files import FileSource, FileSink; "
        "FileSource(path='a.parquet'); FileSink(path='a.parquet'); "
        "assert not any('pyarrow' in name for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def written(folder: Path, pattern: str = "*.parquet") -> dict[str, list[Any]]:
    """Return the rows of each file by its path, as pyarrow reads them."""
    return {
        str(path.relative_to(folder)): pq.ParquetFile(path).read().to_pylist()
        for path in sorted(folder.rglob(pattern))
    }


async def write(folder: Path, *batches: list[Any], **options: Any) -> list[Rejected]:
    """Write batches, one after the other; return what is rejected."""
    async with FileSink(path="out.parquet", **options).open(Context("sink", folder)) as writer:
        found = [await writer.write(make_batch(batch, in_columns=False)) for batch in batches]
        await writer.flush()
    return [rejected for rejected in found if rejected]


async def test_a_parquet_sink_is_cut_back(tmp_path: Path) -> None:
    async def read_back() -> list[Any]:
        return [row for rows in written(tmp_path).values() for row in rows]

    options: Any
    for number, options in enumerate(({}, {"rotate": {"size": 5000}}, {"format": PACKED})):
        path = f"{number}.parquet"
        await check_cut_back_sink(
            lambda path=path, options=options: FileSink(path=path, **options),  # type: ignore[misc]
            read_back,
            VALUES,
            folder=tmp_path,
        )
        for file in written(tmp_path):
            (tmp_path / file).unlink()


PACKED = {"parquet": {"compression": "none", "row_group": 100}}


async def test_options_of_the_format(tmp_path: Path) -> None:
    await write(tmp_path, VALUES[:250], format=PACKED)
    metadata = pq.ParquetFile(tmp_path / "out-000001.parquet").metadata
    assert [metadata.row_group(index).num_rows for index in range(3)] == [100, 100, 50]
    assert metadata.row_group(0).column(0).compression == "UNCOMPRESSED"
    assert written(tmp_path) == {"out-000001.parquet": VALUES[:250]}


async def test_kinds_of_columns(tmp_path: Path) -> None:
    row = {
        "truth": True,
        "integer": -(2**63),
        "number": float("inf"),
        "text": "x€",
        "bytes": b"\xff",
        "integers": [1, 2],
        "numbers": np.array([0.5, 1.5]),
        "mixed": [1, 2.5],
        "empty": [],
        "scalar": np.int64(3),
        "nothing": None,
        "nested": {"a": [1, None]},
        "texts": ["a"],
    }
    assert await write(tmp_path, [row, {}]) == []
    schema = pq.read_schema(tmp_path / "out-000001.parquet")
    assert {field.name: str(field.type).replace("element", "item") for field in schema} == {
        "truth": "bool",
        "integer": "int64",
        "number": "double",
        "text": "string",
        "bytes": "binary",
        "integers": "list<item: int64>",
        "numbers": "list<item: double>",
        "mixed": "list<item: double>",
        "empty": "list<item: int64>",
        "scalar": "int64",
        "nothing": "null",
        "nested": "string",
        "texts": "string",
    }
    changed = {"numbers": [0.5, 1.5], "nested": '{"a":[1,null]}', "texts": '["a"]'}
    assert written(tmp_path) == {"out-000001.parquet": [row | changed, dict.fromkeys(row)]}


async def test_wider_columns_begin_another_file(tmp_path: Path) -> None:
    rows: list[dict[str, Any]]
    rows = [{"n": None, "l": [1]}, {"n": 1}, {"n": 2}, {"n": 2.5}, {"n": 3, "l": [0.5]}, {"n": 4}]
    for cut in range(len(rows) + 1):
        await write(tmp_path, rows[:cut], rows[cut:])
        full = [{"n": row["n"], "l": row.get("l")} for row in rows]
        assert written(tmp_path) == {
            "out-000001.parquet": full[:1],
            "out-000002.parquet": full[1:3],
            "out-000003.parquet": full[3:4],
            "out-000004.parquet": full[4:],
        }


BAD: list[tuple[Any, str]] = [
    ({"n": "text"}, "text in the field n, which holds integer"),
    ({"n": 2**63}, "a whole number of more than 64 bits"),
    ({"m": 1}, "the unknown fields m"),
    (7, "no fields in int"),
    ({"t": object()}, "object"),
    ({"t": "\ud800"}, "surrogates"),
    ({"t": {"x": float("nan")}}, "expected values that a parquet row holds"),
]


async def test_what_does_not_fit_is_rejected_alone(tmp_path: Path) -> None:
    good = {"n": 1, "t": "x"}
    [rejected] = await write(tmp_path, [good, *(value for value, _ in BAD), good])
    assert list(rejected.indices) == list(range(1, len(BAD) + 1))
    for cause, (_, part) in zip(rejected.causes, BAD, strict=True):
        assert part in cause
    assert written(tmp_path) == {"out-000001.parquet": [good, good]}


async def test_a_whole_number_that_would_change_is_rejected(tmp_path: Path) -> None:
    [rejected] = await write(tmp_path, [{"n": 0.5}, {"n": 2**53 + 1}, {"n": 2**53}])
    assert list(rejected.indices) == [1]
    assert written(tmp_path) == {"out-000001.parquet": [{"n": 0.5}, {"n": 2**53}]}


async def test_before_there_are_fields_all_is_rejected(tmp_path: Path) -> None:
    rejected = await write(tmp_path, [7, {}], [{"n": 1}])
    assert [len(found.batch) for found in rejected] == [2]
    assert written(tmp_path) == {"out-000001.parquet": [{"n": 1}]}


async def test_what_is_there_stays_or_goes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await write(tmp_path, [{"n": 1}])
    (tmp_path / "out-000002.parquet.part").write_bytes(b"PAR1")
    async with FileSink(path="out.parquet", mode="append").open(Context("n", tmp_path)) as writer:
        await writer.write(make_batch([{"n": 2}]))
    assert written(tmp_path) == {"out-000001.parquet": [{"n": 1}], "out-000003.parquet": [{"n": 2}]}
    assert "removed out-000002.parquet.part, which a crash had left without its end" in caplog.text
    async with FileSink(path="out.parquet").open(Context("n", tmp_path)) as writer:
        await writer.write(make_batch([{"n": 3}]))
    assert written(tmp_path) == {"out-000001.parquet": [{"n": 3}]}


async def test_folders_are_those_that_others_read(tmp_path: Path) -> None:
    rows = [{"city": city, "n": n} for n, city in enumerate(["Rome", "a/b é", None, "Rome"])]
    await write(tmp_path, rows, partition_by="city")
    table = dataset.dataset(tmp_path, partitioning="hive").to_table(columns=["n"])
    assert sorted(table["n"].to_pylist()) == [0, 1, 2, 3]
    parts = dataset.dataset(tmp_path, partitioning="hive", schema=pa.schema({"city": pa.string()}))
    found = parts.to_table(filter=dataset.field("city") == "a/b é")
    assert found["city"].to_pylist() == ["a/b é"]


async def test_which_file_is_closed_does_not_depend_on_batches(tmp_path: Path) -> None:
    rows = [{"k": kind, "n": number} for number, kind in enumerate("aabab")]
    expected = {
        "k=a/out-000001.parquet": rows[:2],
        "k=a/out-000002.parquet": rows[3:4],
        "k=b/out-000001.parquet": rows[2:3],
        "k=b/out-000002.parquet": rows[4:],
    }
    for batches in ([rows], [[row] for row in rows]):
        await write(tmp_path, *batches, partition_by="k", open_files=1)
        assert written(tmp_path) == expected


rows = st.lists(
    st.fixed_dictionaries(
        {
            "k": st.sampled_from("ab"),
            "n": st.none() | st.integers(0, 9) | st.sampled_from([0.5, "bad"]),
        }
    ),
    max_size=6,
)
runs = st.lists(
    st.tuples(st.lists(rows, max_size=3), st.lists(rows, max_size=3), st.booleans()),
    min_size=1,
    max_size=3,
)


@given(
    st.none() | st.builds(dict, size=st.integers(1, 60)),
    st.none() | st.just("k"),
    st.integers(1, 2),
    runs,
)
@settings(deadline=None, max_examples=20)
def test_runs_that_crash_leave_what_one_run_leaves(
    rotate: Any, partition_by: Any, open_files: int, runs: Any
) -> None:
    sink = FileSink(
        path="out.parquet", rotate=rotate, partition_by=partition_by, open_files=open_files
    )
    with TemporaryDirectory() as temporary:
        broken = Output(Path(temporary, "broken"), sink)
        whole = Output(Path(temporary, "whole"), sink)
        for kept, lost, is_said in runs:
            anyio.run(whole.crash, [[row] for batch in kept for row in batch], [], True)
            anyio.run(whole.finish)
            anyio.run(broken.crash, kept, lost, is_said)
            assert written(broken.folder).items() <= written(whole.folder).items()
        anyio.run(broken.finish)
        assert written(broken.folder) == written(whole.folder)
        assert not list(broken.folder.rglob("*.part"))
        got = [row for rows in written(broken.folder).values() for row in rows]
        kept = [row for kept, _, _ in runs for batch in kept for row in batch]
        assert sorted(map(known, got)) == sorted(map(known, accepted(kept)))


def known(row: dict[str, Any]) -> str:
    """Return a row as text, the same for whole numbers and others that are equal."""
    number = row["n"]
    return str((row["k"], float(number) if isinstance(number, int) else number))


def accepted(rows: list[Any]) -> list[Any]:
    """Return what fits a column of the first kind that comes, where one of numbers may widen."""
    kinds: set[str] = set()
    found = []
    for row in rows:
        kind = "text" if isinstance(row["n"], str) else "number"
        if row["n"] is None or not kinds - {kind}:
            found.append(row)
            kinds |= {kind} if row["n"] is not None else set()
    return found


@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_without_checkpoints_no_position_is_committed_too_early(is_checkpointed: bool) -> None:
    def graph() -> Graph:
        return Graph(
            name="g",
            checkpoint={"path": "cp"} if is_checkpointed else None,
            sources={"in": KafkaSource(bootstrap_servers="a:1", topics=("t",), group="g")},
            sinks={"out": FileSink(inputs=["in"], path="out.parquet")},
        )

    if is_checkpointed:
        assert graph().promises()[0].delivered == "exactly once"
        return
    with pytest.raises(GraphError, match=r"sinks\.out\.format: expected checkpoint with parquet"):
        graph()


async def test_a_run_that_is_aborted_goes_on(tmp_path: Path) -> None:
    put(tmp_path / "in.parquet", pa.Table.from_pylist(VALUES[:400]), row_group_size=60)
    graph = Graph(
        name="columns",
        checkpoint={"path": str(tmp_path / "cp"), "every": 50},
        sources={"in": FileSource(path=str(tmp_path / "in.parquet"))},
        sinks={"out": FileSink(inputs=["in"], path=str(tmp_path / "out.parquet"))},
    )
    with anyio.fail_after(60):
        for taken in (1, 2):
            async with graph.open() as run:
                while (stats := run.stats().checkpoints) is None or stats.taken < taken:
                    await anyio.lowlevel.checkpoint()
                run.abort()
        async with graph.open() as run:
            await run.wait()
    files = written(tmp_path, "out-*.parquet")
    assert [row for rows in files.values() for row in rows] == VALUES[:400]
    assert {len(rows) for rows in files.values()} == {50}
    assert len(os.listdir(tmp_path)) == len(files) + 2
