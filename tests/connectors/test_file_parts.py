"""Sinks that write several files, or show only whole ones."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamflow import Graph, GraphError
from streamflow.contracts import Context, Publishing, Resume, Writer
from streamflow.errors import ConnectorError
from streamflow.testing import ListSource
from streamflow.testing.connectors import make_batch
from streamflow_connectors.files import FileSink
from tests.connectors.clocks import by_clock
from tests.connectors.file_records import unpacked

pytestmark = pytest.mark.anyio


def texts(folder: Path, pattern: str = "*") -> dict[str, str]:
    """Return what each file holds by its path."""
    return {
        str(path.relative_to(folder)): unpacked(path).decode()
        for path in sorted(folder.rglob(pattern))
        if path.is_file()
    }


def contents(folder: Path, pattern: str = "*") -> dict[str, list[Any]]:
    """Return the rows of each file by its path."""
    found = texts(folder, pattern)
    return {path: list(map(json.loads, text.splitlines())) for path, text in found.items()}


def expected(values: Sequence[Any], sink: FileSink) -> dict[str, list[Any]]:
    """Return what should stand where, said plainly."""
    stem, suffix = sink.path.split(".", 1)
    files: dict[str, list[Any]] = {}
    sizes: dict[str, int] = {}
    numbers: dict[str, int] = {}
    if not (sink.rotate or sink.partition_by):
        files[sink.path] = []
    for value in values:
        folder = f"k={value['k']}/" if sink.partition_by else ""
        number = numbers.setdefault(folder, 1)
        name = f"{folder}{stem}-{number:06}.{suffix}" if sink.rotate else f"{folder}{sink.path}"
        files.setdefault(name, []).append(value)
        sizes[folder] = sizes.get(folder, 0) + len(json.dumps(value, separators=(",", ":"))) + 1
        if sink.rotate and sink.rotate.size and sizes[folder] >= sink.rotate.size:
            numbers[folder], sizes[folder] = number + 1, 0
    return files


sinks = st.builds(
    FileSink,
    path=st.sampled_from(["out.jsonl", "out.jsonl.gz", "out.jsonl.zst"]),
    rotate=st.none() | st.builds(dict, size=st.integers(1, 60)),
    partition_by=st.none() | st.just("k"),
    atomic=st.booleans(),
    open_files=st.integers(1, 3),
).filter(lambda sink: sink.rotate or sink.partition_by or sink.atomic)
batches = st.lists(
    st.lists(st.fixed_dictionaries({"k": st.sampled_from("abcd"), "n": st.integers(0, 999)})),
    max_size=5,
)
runs = st.lists(st.tuples(batches, batches, st.booleans()), min_size=1, max_size=3)
"""What is marked, what gets lost after it, and whether the mark is said to be safe in time."""


class Output:
    """What a sink writes in several runs, each of which may crash."""

    def __init__(self, folder: Path, sink: FileSink) -> None:
        self.folder = folder
        self.mark: dict[str, Any] | None = None
        self._sink = sink
        folder.mkdir()

    async def crash(self, kept: Any, lost: Any, is_said: bool) -> None:
        """Write, mark, lose, and leave what a killed process leaves."""
        async with self._sink.open(self._context()) as writer:
            assert isinstance(writer, Publishing)
            for batch in filter(None, kept):
                await writer.write(make_batch(batch))
                await writer.flush()
            mark = json.loads(json.dumps(dict(await writer.mark())))
            publish = writer.publication()
            await self._write(writer, lost[:1])
            if is_said:
                await publish()
            await self._write(writer, lost[1:])
            await writer.flush()
            crashed = shutil.copytree(self.folder, self.folder.with_name("crashed"))
        self.mark = mark
        shutil.rmtree(self.folder)
        crashed.rename(self.folder)

    async def finish(self) -> None:
        """Go on to the end of a stream that brings nothing more."""
        async with self._sink.open(self._context()) as writer:
            assert isinstance(writer, Publishing)
            await writer.mark()
            await writer.publication()()

    async def _write(self, writer: Writer, batches: Any) -> None:
        for batch in filter(None, batches):
            await writer.write(make_batch(batch))

    def _context(self) -> Context:
        resume = Resume(mark=self.mark) if self.mark else None
        return Context("sink", self.folder, is_checkpointed=True, resume=resume)


@pytest.mark.slow
@given(sinks, runs)
@settings(deadline=None)
def test_runs_that_crash_leave_what_one_run_leaves(sink: FileSink, runs: Any) -> None:
    safe: list[Any] = []
    with TemporaryDirectory() as temporary:
        output = Output(Path(temporary, "out"), sink)
        for kept, lost, is_said in runs:
            anyio.run(output.crash, kept, lost, is_said)
            safe += [value for batch in kept for value in batch]
            if sink.atomic:  # whoever takes what has its name takes nothing that will come again
                shown = contents(output.folder, "*[!t]")
                assert shown.items() <= expected(safe, sink).items()
        for _ in range(2):  # the second adds nothing
            anyio.run(output.finish)
            assert contents(output.folder) == expected(safe, sink)


@given(sinks, batches)
@settings(deadline=None, max_examples=50)
def test_without_checkpoints_all_is_there_at_the_end(sink: FileSink, batches: Any) -> None:
    async def run(folder: Path) -> None:
        async with sink.open(Context("sink", folder)) as writer:
            for batch in filter(None, batches):
                await writer.write(make_batch(batch))

    with TemporaryDirectory() as folder:
        Path(folder, "other.jsonl").write_text("1\n")
        for _ in range(2):  # the second writes over what the first wrote
            anyio.run(run, Path(folder))
        values = [value for batch in batches for value in batch]
        assert contents(Path(folder)) == expected(values, sink) | {"other.jsonl": [1]}


async def write(folder: Path, rows: list[Any], **options: Any) -> None:
    async with FileSink(**options).open(Context("sink", folder)) as writer:
        assert await writer.write(make_batch(rows)) is None


async def test_what_is_there_is_added_to(tmp_path: Path) -> None:
    rotated: dict[str, Any] = {"path": "r.jsonl", "rotate": {"size": 4}, "mode": "append"}
    parted: dict[str, Any] = {"path": "p.csv", "partition_by": "k", "mode": "append"}
    whole: dict[str, Any] = {"path": "w.jsonl.gz", "atomic": True, "mode": "append"}
    for number in (1, 2):
        await write(tmp_path, [number] * 3, **rotated)
        await write(tmp_path, [{"k": "x", "n": number}, {"k": f"y{number}", "n": number}], **parted)
        await write(tmp_path, [number], **whole)
    assert texts(tmp_path) == {
        "r-000001.jsonl": "1\n1\n",
        "r-000002.jsonl": "1\n",
        "r-000003.jsonl": "2\n2\n",
        "r-000004.jsonl": "2\n",
        "k=x/p.csv": "k,n\nx,1\nx,2\n",
        "k=y1/p.csv": "k,n\ny1,1\n",
        "k=y2/p.csv": "k,n\ny2,2\n",
        "w.jsonl.gz": "1\n2\n",
    }


async def test_columns_must_be_those_of_what_is_there(tmp_path: Path) -> None:
    for folder, header in (("k=a", "k,n"), ("k=b", "n,k")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "p.csv").write_text(f"{header}\n")
    with pytest.raises(ConnectorError, match=r"found the columns n, k in p\.csv of k=b, and k, n"):
        await write(tmp_path, [{"k": "a", "n": 1}], path="p.csv", partition_by="k", mode="append")


async def test_what_a_crash_left_is_shown_when_it_is_added_to(tmp_path: Path) -> None:
    (tmp_path / "r-000001.jsonl").write_text("1\n")
    (tmp_path / "r-000002.jsonl.part").write_text("2\n3")
    await write(tmp_path, [4], path="r.jsonl", rotate={"size": 99}, atomic=True, mode="append")
    assert contents(tmp_path) == {
        "r-000001.jsonl": [1],
        "r-000002.jsonl": [2, 3],
        "r-000003.jsonl": [4],
    }


async def test_a_whole_file_stays_until_another_one_is_whole(tmp_path: Path) -> None:
    sink = FileSink(path="w.jsonl", atomic=True)
    await write(tmp_path, [1], path="w.jsonl", atomic=True)

    async def fail() -> None:
        async with sink.open(Context("sink", tmp_path)) as writer:
            await writer.write(make_batch([2]))
            await writer.flush()
            assert contents(tmp_path) == {"w.jsonl": [1], "w.jsonl.part": [2]}
            raise KeyError

    with pytest.raises(KeyError):
        await fail()
    assert contents(tmp_path) == {"w.jsonl": [1], "w.jsonl.part": [2]}
    await write(tmp_path, [3], path="w.jsonl", atomic=True)
    assert contents(tmp_path) == {"w.jsonl": [3]}


async def test_a_finished_file_may_be_taken_away(tmp_path: Path) -> None:
    """Whoever takes files as they appear does not keep a run from going on."""
    sink = FileSink(path="r.jsonl", rotate={"size": 4}, atomic=True)
    context = Context("sink", tmp_path, is_checkpointed=True)
    taken: list[Any] = []
    for number in range(4):
        async with sink.open(context) as writer:
            assert isinstance(writer, Publishing)
            await writer.write(make_batch([number] * 3))
            mark = await writer.mark()
            await writer.publication()()
        for name, rows in contents(tmp_path).items():
            taken += rows
            (tmp_path / name).unlink()
        context = Context("sink", tmp_path, is_checkpointed=True, resume=Resume(mark=mark))
    assert taken == [number for number in range(4) for _ in range(3)]


@pytest.mark.parametrize("is_said", [True, False])
async def test_what_no_checkpoint_holds_is_not_shown_at_the_end(
    tmp_path: Path, is_said: bool
) -> None:
    """As where the disk of the checkpoints was full when the last one was written."""
    sink = FileSink(path="r.jsonl", rotate={"size": 6}, atomic=True)
    async with sink.open(Context("sink", tmp_path, is_checkpointed=True)) as writer:
        assert isinstance(writer, Publishing)
        await writer.write(make_batch([1, 2, 3, 4]))
        await writer.mark()
        publish = writer.publication()
        if not is_said:
            await writer.write(make_batch([5]))
        await publish()
    shown = {"r-000001.jsonl": [1, 2, 3]}
    assert contents(tmp_path) == shown | (
        {"r-000002.jsonl": [4]} if is_said else {"r-000002.jsonl.part": [4, 5]}
    )


async def test_going_back_to_an_older_checkpoint(tmp_path: Path) -> None:
    sink = FileSink(path="r.jsonl", rotate={"size": 6}, atomic=True)
    context = Context("sink", tmp_path, is_checkpointed=True)
    async with sink.open(context) as writer:
        assert isinstance(writer, Publishing)
        await writer.write(make_batch([1]))
        mark = await writer.mark()
        await writer.write(make_batch([2, 3, 4]))
        await writer.mark()
        await writer.publication()()
    assert contents(tmp_path) == {"r-000001.jsonl": [1, 2, 3], "r-000002.jsonl": [4]}
    context = Context("sink", tmp_path, is_checkpointed=True, resume=Resume(mark=mark))
    async with sink.open(context) as writer:
        assert isinstance(writer, Publishing)
        await writer.write(make_batch([5, 6, 7]))
        await writer.mark()
        await writer.publication()()
    assert contents(tmp_path) == {"r-000001.jsonl": [1, 5, 6], "r-000002.jsonl": [7]}


FOLDERS: Mapping[Any, str] = {
    "Rome": "c=Rome",
    "New York": "c=New York",
    "a/b=c%:\n": "c=a%2Fb%3Dc%25%3A%0A",
    "é€": "c=é€",
    "..": "c=..",
    7: "c=7",
    1.5: "c=1.5",
    True: "c=true",
    None: "c=__HIVE_DEFAULT_PARTITION__",
    "": "c=__HIVE_DEFAULT_PARTITION__",
}


@pytest.mark.parametrize("value", FOLDERS)
async def test_what_folders_are_called(tmp_path: Path, value: Any) -> None:
    await write(tmp_path, [{"c": value}], path="p.msgpack", partition_by="c")
    assert os.listdir(tmp_path) == [FOLDERS[value]]
    assert os.listdir(tmp_path / FOLDERS[value]) == ["p.msgpack"]


BAD: list[tuple[Any, str]] = [
    ({"d": 1}, "expected text or a number in the field c, found none"),
    ({"c": [1]}, "expected text or a number in the field c, found list"),
    ({"c": "x" * 300}, "expected a value of c that a folder may be called by, found a longer one"),
    ({"c": "\ud800"}, "surrogates not allowed"),
    ({"c": 2, "d": object()}, "expected a value that JSON holds"),
    (7, "expected text or a number in the field c, found none"),
]


async def test_records_that_belong_nowhere_are_rejected(tmp_path: Path) -> None:
    rows: list[Any] = [{"c": 0}, *(row for row, _ in BAD), {"c": 1}]
    async with FileSink(path="p.jsonl", partition_by="c").open(Context("n", tmp_path)) as writer:
        rejected = await writer.write(make_batch(rows, in_columns=False))
    assert rejected is not None
    assert list(rejected.indices) == list(range(1, len(BAD) + 1))
    for cause, (_, part) in zip(rejected.causes, BAD, strict=True):
        assert part in cause
    assert contents(tmp_path) == {"c=0/p.jsonl": [{"c": 0}], "c=1/p.jsonl": [{"c": 1}]}


async def test_few_files_are_open_at_once(tmp_path: Path) -> None:
    sink = FileSink(path="p.jsonl", partition_by="k", open_files=5)
    before = len(os.listdir("/proc/self/fd"))
    async with sink.open(Context("sink", tmp_path)) as writer:
        for start in range(3):
            rows = [{"k": k, "n": start} for k in range(100)]
            await writer.write(make_batch(rows))
            assert len(os.listdir("/proc/self/fd")) <= before + 5
    assert contents(tmp_path) == {
        f"k={k}/p.jsonl": [{"k": k, "n": n} for n in range(3)] for k in range(100)
    }


def test_files_are_finished_when_it_is_time(tmp_path: Path) -> None:
    async def run() -> None:
        sink = FileSink(path="r.jsonl", rotate={"every": "1h"}, atomic=True)
        async with sink.open(Context("sink", tmp_path)) as writer:
            await anyio.sleep(5000)  # time counts from the first record on
            await writer.write(make_batch([1]))
            await anyio.sleep(3500)
            await writer.write(make_batch([2]))
            assert contents(tmp_path) == {"r-000001.jsonl.part": [1, 2]}
            await anyio.sleep(200)  # in silence
            assert contents(tmp_path) == {"r-000001.jsonl": [1, 2]}
            await anyio.sleep(10_000)
            await writer.write(make_batch([3]))
            await anyio.sleep(10_000)
            assert contents(tmp_path) == {"r-000001.jsonl": [1, 2], "r-000002.jsonl": [3]}

    by_clock(run)


def test_a_file_keeps_its_age_over_a_restart(tmp_path: Path) -> None:
    async def run() -> None:
        sink = FileSink(path="r.jsonl", rotate={"every": 3600})
        context = Context("sink", tmp_path, is_checkpointed=True)
        async with sink.open(context) as writer:
            await writer.write(make_batch([1]))
            await anyio.sleep(3000)
            mark = await writer.mark()
        await anyio.sleep(50_000)
        context = Context("sink", tmp_path, is_checkpointed=True, resume=Resume(mark=mark))
        async with sink.open(context) as writer:
            await anyio.sleep(500)
            await writer.write(make_batch([2]))
            await anyio.sleep(200)
            await writer.write(make_batch([3]))
        assert contents(tmp_path) == {"r-000001.jsonl": [1, 2], "r-000002.jsonl": [3]}

    by_clock(run)


def test_a_file_that_cannot_be_finished_is_told(tmp_path: Path) -> None:
    async def run() -> None:
        sink = FileSink(path="o/r.jsonl", rotate={"every": 60}, atomic=True)
        async with sink.open(Context("sink", tmp_path)) as writer:
            await writer.write(make_batch([1]))
            (tmp_path / "o/r-000001.jsonl").mkdir()  # in its place
            await anyio.sleep(100)
            await writer.write(make_batch([2]))

    with pytest.raises(ConnectorError, match=r"sink: expected to write o/r\.jsonl, found Is a dir"):
        by_clock(run)


@pytest.mark.parametrize("changed", ["rotate", "partition_by", "atomic"])
async def test_a_checkpoint_of_other_files_is_refused(tmp_path: Path, changed: str) -> None:
    every: dict[str, Any] = {"rotate": {"size": 9}, "partition_by": "k", "atomic": True}
    for before, after in ((every, dict(every)), ({}, {changed: every[changed]})):
        after.pop(changed) if before else None
        for first, second in ((before, after), (after, before)):
            context = Context("sink", tmp_path, is_checkpointed=True)
            async with FileSink(path="x.jsonl", **first).open(context) as writer:
                mark = await writer.mark()
            context = Context("sink", tmp_path, is_checkpointed=True, resume=Resume(mark=mark))
            with pytest.raises(ConnectorError, match="partition_by and atomic as in the ch"):
                async with FileSink(path="x.jsonl", **second).open(context):
                    pass


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "-", "format": "jsonl", "atomic": True}, "atomic: expected none with a pipe"),
        ({"path": "/dev/null", "format": "jsonl", "rotate": {"size": 1}}, "rotate: expected none"),
        ({"path": "a.csv", "rotate": {}}, "rotate: expected size or every, found neither"),
        ({"path": "a.csv", "rotate": {"size": "many"}}, "expected a number of bytes"),
        ({"path": "a.csv", "rotate": {"every": "soon"}}, "expected a span of time"),
        ({"path": "a.csv", "partition_by": "c", "open_files": 0}, "open_files"),
    ],
)
def test_options_that_do_not_fit(options: Any, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        FileSink(**options)


async def test_a_run_that_is_aborted_goes_on_and_shows_each_record_once(tmp_path: Path) -> None:
    rows = tuple({"k": "ab"[n % 3 == 0], "n": n} for n in range(400))
    sink = FileSink(
        inputs=["in"],
        path=str(tmp_path / "out/x.jsonl.gz"),
        rotate={"size": 300},
        partition_by="k",
        atomic=True,
    )
    graph = Graph(
        name="parts",
        checkpoint={"path": str(tmp_path / "cp"), "every": 30},
        sources={"in": ListSource(values=rows, batch_size=7)},
        sinks={"out": sink},
    )
    seen: dict[str, list[Any]] = {}

    def look() -> None:
        """Take what appears; what has appeared once stays as it is."""
        for path, rows in contents(tmp_path / "out", "*.gz").items():
            assert seen.setdefault(path, rows) == rows

    with anyio.fail_after(60):
        for taken in (1, 3, 2, 4):
            async with graph.open() as run:
                while (stats := run.stats().checkpoints) is None or stats.taken < taken:
                    await anyio.lowlevel.checkpoint()
                    look()
                run.abort()
            look()
        async with graph.open() as run:
            await run.wait()
        look()
    assert contents(tmp_path / "out") == seen
    for kind in "ab":
        shown = [
            row for name in sorted(seen) if name.startswith(f"k={kind}/") for row in seen[name]
        ]
        assert shown == [row for row in rows if row["k"] == kind]
