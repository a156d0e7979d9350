"""The time of day may go backwards: it is shown, and nothing depends on it."""

import ast
import time
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import streamflow
from streamflow.checkpoints import reading
from streamflow.graph import Graph
from streamflow.records import Record
from streamflow.testing import ListSink, ListSource
from streamflow_connectors import memory

pytestmark = pytest.mark.anyio

PACKAGES = [Path(streamflow.__file__).parent, Path(memory.__file__).parent]

OF_THE_DAY = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today"}

SHOWN = {
    "lock.py": "who holds a folder since when",
    "store.py": "when a checkpoint was written",
    "dead_letters.py": "when a record was rejected",
}
"""The files that look at the time of day, and what for."""


class Backwards(datetime):
    """A clock that goes back by an hour whenever somebody looks."""

    looks = 0

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Any:
        cls.looks += 1
        return datetime(2026, 1, 1, tzinfo=UTC) - timedelta(hours=cls.looks)


def timed(folder: Path, source: ListSource, out: ListSink) -> Graph:
    return Graph(
        name="timed",
        checkpoint={"path": str(folder / "cp"), "every": "0.001s", "keep": 100},
        sources={"in": source},
        sinks={"out": out},
    )


async def test_a_run_goes_on_while_the_clock_goes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = time.time()
    monkeypatch.setattr("streamflow.checkpoints.store.datetime", Backwards)
    monkeypatch.setattr("streamflow.runtime.dead_letters.datetime", Backwards)
    monkeypatch.setattr(time, "time", lambda: start - 3600.0 * time.monotonic())
    records = tuple(Record(n, timestamp_ms=10**12 - 10**6 * n) for n in range(30))
    out = ListSink(inputs=("in",))
    source = ListSource(values=records, batch_size=1, stays_open=True, bad={7: "bad"})
    with anyio.fail_after(60):
        async with timed(tmp_path, source, out).open() as run:
            while (taken := run.stats().checkpoints) is None or taken.taken < 3:
                await anyio.lowlevel.checkpoint()
            await run.stop()
        async with timed(tmp_path, source, out).open() as run:
            while len(out.probe.values) < 29:
                await anyio.lowlevel.checkpoint()
            await run.stop()
    assert out.probe.values == [n for n in range(30) if n != 7]
    names = reading.names(tmp_path / "cp")
    times = [reading.read(tmp_path / "cp" / name).manifest.time for name in names]
    assert times == sorted(times, reverse=True)
    assert len(times) > 4


def looks(path: Path) -> set[str]:
    """Return by which calls a file looks at the time of day."""
    calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    return {ast.unparse(call.func) for call in calls} & OF_THE_DAY


async def test_nothing_is_measured_by_the_time_of_day() -> None:
    paths = [path for package in PACKAGES for path in package.rglob("*.py")]
    assert len(paths) > 50
    assert {path.name for path in paths if looks(path)} == set(SHOWN)
