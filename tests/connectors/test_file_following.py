"""Files that are followed: each record once, whatever happens to the files meanwhile."""

import logging
import os
import shutil
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streamflow import Graph, GraphError
from streamflow.contracts import Context, Fetch, Reporting, Resume
from streamflow.errors import ConnectorError
from streamflow.records import Place
from streamflow.testing import ListSink
from streamflow_connectors.files import FileSink, FileSource
from streamflow_connectors.files.packing import packing_of
from streamflow_connectors.files.reading import following
from streamflow_connectors.files.reading.followed import FINISHED
from tests.connectors.clocks import by_clock
from tests.connectors.file_records import PARTS, pack, read, rows, suffixes

pytestmark = pytest.mark.anyio

PATIENCE = 30.0


class Follower:
    """A followed source, and how far it has been read."""

    def __init__(self, folder: Path, path: str = "app.jsonl", **options: Any) -> None:
        self._folder = folder
        self._source = FileSource(path=path, follow=True, **options)
        self.positions: dict[Place, int] = {}
        self.got: list[Any] = []
        self.reader: Any = None

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Read on from what has been read."""
        resume = Resume(positions=dict(self.positions)) if self.positions else None
        context = Context("log", self._folder, is_checkpointed=True, resume=resume)
        async with self._source.open(context) as self.reader:
            yield

    async def take(self, count: int) -> list[Any]:
        """Receive until there are so many more records; return those."""
        start = len(self.got)
        with anyio.fail_after(PATIENCE):
            while len(self.got) < start + count:
                self._keep(await self.reader.receive())
        return self.got[start:]

    async def take_all(self) -> list[Any]:
        """Receive until the stream ends."""
        start = len(self.got)
        with anyio.fail_after(PATIENCE):
            try:
                while True:
                    self._keep(await self.reader.receive())
            except anyio.EndOfStream:
                return self.got[start:]

    async def rest(self) -> None:
        """Receive until nothing comes for a while, by a clock that does not wait."""
        quiet = 0
        while quiet < 3:
            with anyio.move_on_after(1.0) as scope:
                self._keep(await self.reader.receive())
            quiet = quiet + 1 if scope.cancelled_caught else 0

    def _keep(self, fetch: Fetch) -> None:
        self.got += fetch.batch.rows()
        self.positions |= {partition.place: end for partition, end in fetch.ends.items()}


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def lines(*numbers: int) -> str:
    return "".join(f"{number}\n" for number in numbers)


async def test_a_last_line_waits_for_its_end(tmp_path: Path) -> None:
    log, follower = tmp_path / "app.jsonl", Follower(tmp_path)
    log.write_text("1\n2")
    async with follower.opened():
        assert await follower.take(1) == [1]
        append(log, "3\n4")
        assert await follower.take(1) == [23]
        append(log, "5\n")
        assert await follower.take(1) == [45]
    [(place, position)] = follower.positions.items()
    assert (dict(place)["path"], position) == ("app.jsonl", 4)


async def test_a_header_waits_for_its_end(tmp_path: Path) -> None:
    log, follower = tmp_path / "app.csv", Follower(tmp_path, "app.csv", end_after=0.05)
    log.write_text("a,")
    async with follower.opened():
        with anyio.move_on_after(0.03):
            await follower.take(1)
        append(log, "b\n1,2\n")
        assert await follower.take(1) == [{"a": 1, "b": 2}]


@given(suffixes, st.lists(rows, max_size=8), st.booleans())
@settings(deadline=None, max_examples=25)
def test_a_file_that_does_not_change_is_read_as_one_that_is_not_followed(
    suffix: str, values: list[Any], is_ended: bool
) -> None:
    path = f"in.{suffix}"
    kind = suffix.split(".")[0]
    content = b"a,b\n" * (kind == "csv") + b"".join(map(PARTS[kind], values))
    if not is_ended and values:
        content = content[:-1]

    async def run(folder: Path) -> list[Any]:
        follower = Follower(folder, path, end_after=1.0)
        async with follower.opened():
            while True:
                try:
                    follower._keep(await follower.reader.receive())
                except anyio.EndOfStream:
                    return follower.got

    with TemporaryDirectory() as folder:
        (Path(folder) / path).write_bytes(pack(path, content))
        whole = [value for _, _, value in read(Path(folder), path) if not isinstance(value, bytes)]
        assert by_clock(run, Path(folder)) == whole


async def test_a_packed_file_grows(tmp_path: Path) -> None:
    for suffix in ("gz", "zst"):
        path = tmp_path / f"app.jsonl.{suffix}"
        packing = packing_of(path)
        assert packing is not None
        packer = packing.packer(is_new=True)
        follower = Follower(tmp_path, path.name)
        path.write_bytes(packer.pack(b"1\n2\n") + packer.flush())
        async with follower.opened():
            assert await follower.take(2) == [1, 2]
            with path.open("ab") as file:
                file.write(packer.pack(b"3\n") + packer.end_member())
            assert await follower.take(1) == [3]
            with path.open("ab") as file:
                file.write(pack(path.name, b"4\n"))
            assert await follower.take(1) == [4]


async def test_a_file_that_is_renamed_is_read_to_its_end_before_the_next(tmp_path: Path) -> None:
    log, follower = tmp_path / "app.jsonl", Follower(tmp_path)
    log.write_text(lines(1, 2))
    async with follower.opened():
        await follower.take(2)
        append(log, lines(3))
        writer = log.open("a")  # a program that has not noticed yet
        log.rename(tmp_path / "app.jsonl.1")
        log.write_text(lines(5, 6))
        assert await follower.take(3) == [3, 5, 6]
        with writer:
            writer.write(lines(4))
        assert await follower.take(1) == [4]
        append(log, lines(7))
        assert await follower.take(1) == [7]
    assert sorted(follower.positions.values()) == [4, 5]


async def test_the_same_first_lines_in_the_next_file(tmp_path: Path) -> None:
    log, follower = tmp_path / "app.jsonl", Follower(tmp_path)
    log.write_text(lines(1, 2))
    async with follower.opened():
        await follower.take(2)
        log.rename(tmp_path / "old")
        log.write_text(lines(1, 2))
        assert await follower.take(2) == [1, 2]
    async with follower.opened():
        append(log, lines(3))
        append(tmp_path / "old", lines(4))
        assert await follower.take(1) == [3]


@pytest.mark.parametrize("is_copied", [True, False])
async def test_a_file_that_is_emptied(
    tmp_path: Path, is_copied: bool, caplog: pytest.LogCaptureFixture
) -> None:
    log, follower = tmp_path / "app.jsonl", Follower(tmp_path)
    log.write_text(lines(1, 2))
    async with follower.opened():
        await follower.take(2)
        append(log, lines(3))
        if is_copied:
            shutil.copy(log, tmp_path / "app.jsonl.1")
        log.write_text(lines(4, 5, 6, 7))  # more than there was
        assert await follower.take(4 + is_copied) == [3] * is_copied + [4, 5, 6, 7]
        assert isinstance(follower.reader, Reporting)
        assert follower.reader.report() == {"files cut short or gone": 1 - is_copied}
    told = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    lost = "log: app.jsonl was emptied or replaced; what it had after row 2 is lost unless it had"
    assert [message.startswith(lost) for message in told] == [True] * (not is_copied)


async def test_a_file_that_is_written_anew_with_the_same_beginning(tmp_path: Path) -> None:
    """What was read last tells that it is not the same file, where its first bytes do not."""
    same = [f"{number:09d}" for number in range(200)]  # more than is kept of the beginning
    log, follower = tmp_path / "app.txt", Follower(tmp_path, "app.txt", format="raw")
    log.write_text("".join(f"{line}\n" for line in [*same, "first"]))
    async with follower.opened():
        await follower.take(201)
        log.write_text("".join(f"{line}\n" for line in [*same, "other", "more"]))
        expected = [line.encode() for line in [*same, "other", "more"]]
        assert await follower.take(202) == expected


async def test_new_files_are_found_and_old_ones_followed_by_their_age(tmp_path: Path) -> None:
    follower = Follower(tmp_path, "logs/*.jsonl")
    (tmp_path / "logs").mkdir()
    for age, name in enumerate("bca"):
        (tmp_path / f"logs/{name}.jsonl").write_text(lines(age))
        os.utime(tmp_path / f"logs/{name}.jsonl", (age, age))
    async with follower.opened():
        assert await follower.take(3) == [0, 1, 2]
        (tmp_path / "logs/d.jsonl").write_text(lines(3))
        assert await follower.take(1) == [3]
        append(tmp_path / "logs/b.jsonl", lines(4))
        assert await follower.take(1) == [4]
        (tmp_path / "logs/b.jsonl").rename(tmp_path / "logs/z.jsonl")
        append(tmp_path / "logs/z.jsonl", lines(5))
        assert await follower.take(1) == [5]
        (tmp_path / "logs/c.jsonl").unlink()
        (tmp_path / "logs/c.jsonl").write_text(lines(6))
        assert await follower.take(1) == [6]
    assert {dict(place)["path"] for place in follower.positions} == {
        f"logs/{name}.jsonl" for name in "abcd"
    }


async def test_a_file_that_is_not_there_yet(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    follower = Follower(tmp_path, "new/app.jsonl")
    async with follower.opened():
        with anyio.move_on_after(0.03):
            await follower.take(1)
        (tmp_path / "new").mkdir()
        (tmp_path / "new/app.jsonl").write_text(lines(1))
        assert await follower.take(1) == [1]
    assert "log: waits for new/app.jsonl, which is not there yet" in caplog.text


async def test_a_silent_file_does_not_stay_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "_MOST_OPEN", 2)
    paths = [tmp_path / f"{number}.jsonl" for number in range(9)]
    for number, path in enumerate(paths):
        path.write_text(lines(number))
        os.utime(path, (number, number))
    follower = Follower(tmp_path, "*.jsonl")
    async with follower.opened():
        before = len(os.listdir("/proc/self/fd"))
        assert await follower.take(9) == list(range(9))
        with anyio.move_on_after(0.1):
            await follower.take(1)
        assert len(os.listdir("/proc/self/fd")) <= before + 2
        for number, path in enumerate(paths):
            append(path, lines(10 + number))
        assert sorted(await follower.take(9)) == list(range(10, 19))
        with anyio.move_on_after(0.1):
            await follower.take(1)
        paths[0].rename(tmp_path / "0.jsonl.old")  # beyond the pattern
        append(tmp_path / "0.jsonl.old", lines(20))
        paths[1].write_text(lines(21))
        assert sorted(await follower.take(2)) == [20, 21]


def rename(log: Path) -> None:
    log.rename(log.with_name("app.jsonl.1"))


def copy_and_empty(log: Path) -> None:
    shutil.copy(log, log.with_name("app.jsonl.1"))
    os.truncate(log, 0)


def restore(log: Path) -> None:
    shutil.copy(log, log.with_name("backup"))
    log.with_name("backup").replace(log)


RESTARTS: Mapping[str, Callable[[Path], object]] = {
    "nothing": lambda log: None,
    "renamed": rename,
    "copied": copy_and_empty,
    "restored": restore,
}


@pytest.mark.parametrize("event", RESTARTS)
async def test_what_happens_while_nothing_runs(
    tmp_path: Path, event: str, caplog: pytest.LogCaptureFixture
) -> None:
    log, follower = tmp_path / "app.jsonl", Follower(tmp_path)
    first = [1000 + number for number in range(30)]  # long enough to be told from others
    log.write_text(lines(*first))
    async with follower.opened():
        await follower.take(30)
    append(log, lines(1))
    RESTARTS[event](log)
    append(log, lines(2))
    async with follower.opened():
        assert await follower.take(2) == [1, 2]
    assert caplog.text == ""


async def test_what_is_lost_while_nothing_runs_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log, follower = tmp_path / "app.jsonl", Follower(tmp_path)
    log.write_text(lines(1, 2))
    async with follower.opened():
        await follower.take(2)
    log.write_text(lines(3))
    for expected in ([3], [4]):
        async with follower.opened():
            assert await follower.take(1) == expected
            assert follower.reader.report() == {"files cut short or gone": int(expected == [3])}
        append(log, lines(4))
    assert caplog.text.count("app.jsonl was emptied, replaced or removed") == 1
    assert sorted(follower.positions.values()) == [FINISHED, 3]


async def test_a_file_with_fewer_rows_than_before_is_read_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log, follower = tmp_path / "app.jsonl", Follower(tmp_path)
    log.write_text("1\n")
    async with follower.opened():
        await follower.take(1)
        append(log, lines(2, 3))
        await follower.take(2)
    os.truncate(log, 4)
    async with follower.opened():
        assert await follower.take(2) == [1, 2]
    assert "what it had after row 3 is lost" in caplog.text


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"path": "-", "format": "jsonl", "follow": True}, "follow: expected no follow with"),
        ({"path": "a.csv", "end_after": 1}, "end_after: expected it with follow: true, found 1"),
        ({"path": "a.csv", "follow": True, "end_after": 0}, "end_after"),
    ],
)
def test_options_that_do_not_fit(options: Any, expected: str) -> None:
    with pytest.raises(GraphError, match=expected):
        FileSource(**options)


async def test_a_pipe_is_not_followed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    async with Follower(tmp_path, "pipe", format="jsonl").opened() as _:
        pass
    follower = Follower(tmp_path, "pipe", format="jsonl")
    with pytest.raises(ConnectorError, match="log: expected a file to follow at pipe"):
        async with follower.opened():
            await follower.take(1)


def test_a_program_that_has_not_noticed_is_waited_for(tmp_path: Path) -> None:
    """A file is followed for a while after it has gone, and then not any more."""

    async def run() -> None:
        log, follower = tmp_path / "app.jsonl", Follower(tmp_path)
        log.write_text(lines(1))
        async with follower.opened():
            await follower.rest()
            log.rename(tmp_path / "old")
            append(tmp_path / "old", "2")  # a last line without an end
            await follower.rest()
            assert follower.got == [1]
            with anyio.move_on_after(2 * following.AFTERLIFE):
                while True:
                    follower._keep(await follower.reader.receive())
            assert follower.got == [1, 2]
            assert list(follower.positions.values()) == [FINISHED]
            assert repr(follower.reader) == "<FollowingReader log: app.jsonl, 0 files>"

    by_clock(run)


ACTIONS = st.sampled_from(["append", "half", "rename", "copy", "restart", "rest", "look"])


class Log:
    """What a program writes, and rotates, and what has been written."""

    def __init__(self, folder: Path) -> None:
        self.written: list[str] = []
        self._path = folder / "app.jsonl"
        self._path.touch()
        self._half = ""

    async def undergo(self, follower: Follower, actions: list[str]) -> None:
        """Let things happen, and somebody follow; to its end."""
        todo = iter(actions)
        is_over = False
        while not is_over:
            async with follower.opened():
                await follower.rest()
                for action in todo:
                    if action == "copy":  # a file of which nothing was read cannot be told
                        self._end_line()
                        append(self._path, self._text())
                        await follower.rest()
                    self._happen(action)
                    if action == "restart":
                        break
                    if action in ("rest", "rename", "copy"):  # what is not seen is not known
                        await follower.rest()
                    elif action == "look":
                        with anyio.move_on_after(0):
                            follower._keep(await follower.reader.receive())
                else:
                    self._end_line()
                    await follower.rest()
                    is_over = True

    def _happen(self, action: str) -> None:
        self._end_line()
        other = self._path.with_name(f"app.jsonl.{len(os.listdir(self._path.parent))}")
        if action == "half":
            text = self._text()
            append(self._path, text[:20])
            self._half = text[20:]
        elif action == "rename":
            self._path.rename(other)
            append(self._path, self._text())
        elif action == "copy":
            append(self._path, self._text())
            shutil.copy(self._path, other)
            os.truncate(self._path, 0)
            append(self._path, self._text())
        elif action in ("append", "restart"):
            append(self._path, self._text() + self._text())

    def _text(self) -> str:
        self.written.append(f"{len(self.written):040d}")
        return f'"{self.written[-1]}"\n'

    def _end_line(self) -> None:
        append(self._path, self._half)
        self._half = ""


@given(st.lists(ACTIONS, min_size=3, max_size=14))
@example(["append", "copy", "rename"])
@settings(deadline=None, max_examples=12)
def test_each_record_comes_once_whatever_happens(actions: list[str]) -> None:
    """Rotations happen to files that have been seen; their last records may not have been read."""

    with TemporaryDirectory() as folder:
        log = Log(Path(folder))
        follower = Follower(Path(folder))
        by_clock(log.undergo, follower, actions)
    assert follower.got == log.written


async def test_a_run_that_is_aborted_goes_on_after_a_rotation(tmp_path: Path) -> None:
    log, out = tmp_path / "app.jsonl", tmp_path / "out.jsonl"
    log.write_text(lines(*range(50)))
    probe = ListSink(inputs=("log",))

    def graph(**options: Any) -> Graph:
        return Graph(
            name="followed",
            checkpoint={"path": str(tmp_path / "cp"), "every": 7},
            sources={"log": FileSource(path=str(log), follow=True, **options)},
            sinks={"out": FileSink(inputs=["log"], path=str(out)), "probe": probe},
        )

    with anyio.fail_after(PATIENCE):
        for start in (50, 60, 70):
            async with graph().open() as run:
                while max(probe.probe.values, default=0) < start - 3:
                    await anyio.lowlevel.checkpoint()
                run.abort()
            log.rename(tmp_path / f"app.jsonl.{start}")
            append(tmp_path / f"app.jsonl.{start}", lines(*range(start, start + 5)))
            log.write_text(lines(*range(start + 5, start + 10)))
        async with graph(end_after=0.1).open() as run:
            await run.wait()
    assert out.read_text() == lines(*range(80))
