"""Replay: recorded records come when they would come from a live stream."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio import to_thread
from hypothesis import given, settings
from hypothesis import strategies as st

from streamflow import Graph, GraphError
from streamflow.checkpoints.identity import identify
from streamflow.contracts import Context, Fetch, Resume
from streamflow.errors import ConnectorError
from streamflow.nodes import Source
from streamflow.records import Record
from streamflow.testing import ListSink, check_rereading_source, check_source
from streamflow_connectors.files import FileSource
from streamflow_connectors.memory import MemorySource
from streamflow_connectors.replay import PacedReader
from tests.connectors.clocks import by_clock

pytestmark = pytest.mark.anyio

Arrivals = list[tuple[float, list[Any]]]
"""When records came, and which."""

CONTEXT = Context("in")


async def arrivals(source: Source, context: Context = CONTEXT, *, busy: float = 0.0) -> Arrivals:
    """Receive all records, with so much time between that the graph is busy."""
    found: Arrivals = []
    async with source.open(context) as reader:
        start = anyio.current_time()
        while True:
            try:
                fetch = await reader.receive()
            except anyio.EndOfStream:
                return found
            found.append((round(anyio.current_time() - start, 6), fetch.batch.rows()))
            await anyio.sleep(busy)


def recorded(*times_ms: int | None) -> list[Record]:
    return [Record(number, timestamp_ms=time) for number, time in enumerate(times_ms)]


def test_records_come_as_far_apart_as_they_were_recorded() -> None:
    records = recorded(5_000, 5_000, 6_500, None, 6_000, 66_500)
    found = by_clock(arrivals, MemorySource(records=records, pace="recorded"))
    assert found == [(0.0, [0, 1]), (1.5, [2, 3, 4]), (61.5, [5])]


def test_a_time_that_goes_backwards_lets_no_record_overtake() -> None:
    records = recorded(0, 1_000, 9_000, 2_000, 3_000)
    found = by_clock(partial(arrivals, busy=2.5), MemorySource(records=records, pace="recorded"))
    assert found == [(0.0, [0]), (2.5, [1]), (9.0, [2, 3, 4])]


@pytest.mark.parametrize("pace", ["4 per second", "4.0 per second"])
def test_records_come_at_a_rate(pace: str) -> None:
    found = by_clock(arrivals, MemorySource(records=range(5), pace=pace))
    assert found == [(number / 4, [number]) for number in range(5)]


def test_a_rate_goes_on_from_one_fetch_to_the_next() -> None:
    source = MemorySource(records=range(2500), pace="1000 per second")
    found = by_clock(partial(arrivals, busy=0.5), source)
    assert [value for _, values in found for value in values] == list(range(2500))
    assert [len(values) for _, values in found[:3]] == [1, 500, 499]  # the fetch ends there
    assert all(values[-1] <= 1000 * time for time, values in found)  # none comes early


def test_a_slow_graph_finds_what_has_come_meanwhile() -> None:
    records = recorded(*range(0, 10_000, 1000))
    found = by_clock(partial(arrivals, busy=3.5), MemorySource(records=records, pace="recorded"))
    assert found == [(0.0, [0]), (3.5, [1, 2, 3]), (7.0, [4, 5, 6, 7]), (10.5, [8, 9])]


async def test_an_async_iterable_is_paced(anyio_backend_name: str) -> None:
    async def items() -> Any:
        for record in recorded(0, 1, 2):
            yield record

    found = await arrivals(MemorySource(records=items(), pace="recorded"))
    assert [value for _, values in found for value in values] == [0, 1, 2]


class Cutting:
    """Gives what an iterable holds in fetches of other sizes."""

    def __init__(self, fetch: Fetch, sizes: Sequence[int]) -> None:
        self._rest = fetch
        self._sizes = iter(sizes)

    async def receive(self) -> Fetch:
        if not self._rest.num_records:
            raise anyio.EndOfStream
        head, self._rest = self._rest.cut(next(self._sizes))
        return head

    async def commit(self, positions: object) -> None: ...

    def behind(self) -> None: ...


async def cut_arrivals(records: list[Record], sizes: Sequence[int]) -> list[tuple[float, Any]]:
    """Receive from a paced reader whose own one gives fetches of these sizes."""
    async with MemorySource(records=records).open(CONTEXT) as reader:
        paced = PacedReader(Cutting(await reader.receive(), sizes), "recorded", "in")
    start = anyio.current_time()
    found: list[tuple[float, Any]] = []
    while True:
        try:
            part = await paced.receive()
        except anyio.EndOfStream:
            return found
        found += [(round(anyio.current_time() - start, 6), row) for row in part.batch.rows()]


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=12), st.lists(st.integers(1, 3), min_size=12)
)
@settings(deadline=None, max_examples=30)
def test_when_records_come_does_not_depend_on_batches(times: list[int], sizes: list[int]) -> None:
    records = recorded(*(1000 * time for time in times))
    latest = accumulate((time - times[0] for time in times), max)
    expected = list(zip(latest, range(len(times)), strict=True))
    assert by_clock(cut_arrivals, records, sizes) == expected


def test_a_wait_that_is_cancelled_loses_nothing() -> None:
    async def run() -> list[Any]:
        got: list[Any] = []
        async with MemorySource(records=range(50), pace="2 per second").open(CONTEXT) as reader:
            while len(got) < 50:
                with anyio.move_on_after(0.3):
                    got += (await reader.receive()).batch.rows()
        return got

    assert by_clock(run) == list(range(50))


ROWS = [
    {"at": "2026-01-01T00:00:00", "n": 0},
    {"at": "2026-01-01T01:00:01+01:00", "n": 1},
    {"n": 2},
    {"at": "soon", "n": 3},
    {"at": "2026-01-01T00:00:04Z", "n": 4},
]
START_MS = 1_767_225_600_000


def write(path: Path, rows: Sequence[Any], *, bad_after: int | None = None) -> None:
    lines = [json.dumps(row) for row in rows]
    if bad_after is not None:
        lines.insert(bad_after, "{")
    path.write_text("".join(f"{line}\n" for line in lines))


async def test_a_field_tells_the_time_of_records(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", ROWS, bad_after=3)
    source = FileSource(path="in.jsonl", time="at")
    async with source.open(Context("in", tmp_path)) as reader:
        fetch = await reader.receive()
    assert [row["n"] for row in fetch.batch.rows()] == [0, 1, 4]
    assert fetch.batch.timestamps_ms == [START_MS, START_MS + 1000, START_MS + 4000]
    assert fetch.batch.offsets == [1, 2, 6]
    assert fetch.rejected is not None
    assert list(fetch.rejected.indices) == [2, 3, 4]
    assert list(fetch.rejected.batch.offsets) == [3, 4, 5]
    starts = ("expected the field at, found none", "expected JSON", "at: expected a time, found")
    assert all(map(str.startswith, fetch.rejected.causes, starts))
    assert fetch.rejected.batch.originals == [b'{"n": 2}', b"{", b'{"at": "soon", "n": 3}']


@pytest.mark.parametrize(("unit", "factor"), [("s", 1), ("ms", 1000), ("us", 1_000_000)])
async def test_numbers_tell_the_time_in_a_unit(tmp_path: Path, unit: Any, factor: int) -> None:
    (tmp_path / "in.csv").write_text(f"at\n{5 * factor}\n{7 * factor}\n")
    source = FileSource(path="in.csv", time="at", time_unit=unit, follow=True, end_after=0.02)
    async with source.open(Context("in", tmp_path)) as reader:
        assert (await reader.receive()).batch.timestamps_ms == [5000, 7000]


def test_a_file_is_replayed_as_it_was_recorded(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", ROWS, bad_after=3)
    source = FileSource(path="in.jsonl", time="at", pace="recorded")
    found = by_clock(arrivals, source, Context("in", tmp_path))
    assert [(time, [row["n"] for row in rows]) for time, rows in found] == [
        (0.0, [0]),
        (1.0, [1]),  # and what is rejected after it
        (4.0, [4]),
    ]


def test_a_replay_that_goes_on_begins_at_once(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", [{"at": 1000 * n} for n in range(5)])
    source = FileSource(path="in.jsonl", time="at", pace="recorded")
    resume = Resume(positions={(("path", "in.jsonl"),): 4})
    found = by_clock(arrivals, source, Context("in", tmp_path, resume=resume))
    assert found == [(0.0, [{"at": 3000}]), (1000.0, [{"at": 4000}])]


async def test_paced_sources_keep_the_contract(tmp_path: Path) -> None:
    values = [{"at": n} for n in range(300)]
    write(tmp_path / "in.jsonl", values)
    replayed = {"time": "at", "time_unit": "us", "pace": "recorded"}
    for options in ({"pace": "50000 per second"}, replayed):

        def make(options: Any = options) -> FileSource:
            return FileSource(path="in.jsonl", **options)

        await check_source(make, values, folder=tmp_path)
        await check_rereading_source(make, values, folder=tmp_path)


async def test_a_run_that_waits_can_be_stopped(tmp_path: Path) -> None:
    out = ListSink(inputs=("in",))
    graph = Graph(
        name="replay",
        sources={"in": MemorySource(records=recorded(0, 10**9), pace="recorded")},
        sinks={"out": out},
    )
    with anyio.fail_after(30):
        async with graph.open() as run:
            while not out.probe.values:
                await anyio.lowlevel.checkpoint()
            await run.stop()
    assert out.probe.values == [0]


async def test_records_without_any_time_are_not_replayed() -> None:
    source = MemorySource(records=[1, 2], pace="recorded")
    async with source.open(CONTEXT) as reader:
        with pytest.raises(ConnectorError, match="in: expected records with a time, to give them"):
            await reader.receive()
        assert repr(reader) == "<PacedReader in: recorded, 0 records>"


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (
            partial(FileSource, path="a.csv", pace="slow"),
            "pace: expected recorded, as_f",
        ),
        (partial(FileSource, path="a.csv", pace="0 per second"), "pace: expected recorded"),
        (partial(FileSource, path="a.csv", pace="recorded"), "pace: expected time beside recorded"),
        (partial(FileSource, path="a.csv", time_unit="ms"), "time_unit: expected time beside"),
        (
            partial(FileSource, path="a.csv", follow=True, pace="1 per second"),
            "pace: expected none with follow",
        ),
        (partial(MemorySource, pace="1 per second"), "pace: expected none where records are push"),
    ],
)
def test_options_that_do_not_fit(declare: Callable[[], Any], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        declare()


def test_another_pace_is_no_other_graph() -> None:
    def graph(pace: str) -> Graph:
        source = FileSource(path="a.csv", time="at", pace=pace)
        return Graph(name="g", sources={"in": source}, sinks={"out": ListSink(inputs=("in",))})

    paces = ("recorded", "as_fast_as_possible", "5 per second")
    assert len({identify(graph(pace)).hash for pace in paces}) == 1


async def test_the_clock_of_these_tests_is_not_the_real_one() -> None:
    source = MemorySource(records=recorded(0, 10**9), pace="recorded")
    found = await to_thread.run_sync(by_clock, arrivals, source)
    assert found == [(0.0, [0]), (10.0**6, [1])]
