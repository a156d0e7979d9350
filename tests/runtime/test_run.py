import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Literal

import anyio
import pytest

from streamflow.contracts import Context
from streamflow.errors import NodeError
from streamflow.graph import Graph
from streamflow.nodes import Buffer
from streamflow.runtime import source_task
from streamflow.runtime.batch_size import CALL_SECONDS, MAX_RECORDS, Pace
from streamflow.testing import Gate, ListReader, ListSource
from tests.runtime.graphs import BlockingTimes, Times, graph_of, is_closed, numbers, sink

pytestmark = pytest.mark.anyio


async def run_to_end(graph: Graph) -> None:
    with anyio.fail_after(10):
        async with graph.open() as run:
            await run.wait()
            assert run.stats().state == "finished"


# Ending by itself


@pytest.mark.parametrize("kind", [Times, BlockingTimes])
async def test_a_graph_of_finite_sources_ends_by_itself(kind: type[Times]) -> None:
    source, out = numbers(3000, batch_size=700), sink("double")
    operator = kind(inputs=("in",))
    await run_to_end(graph_of(source, out, operators={"double": operator}))
    assert out.probe.values == [2 * n for n in range(3000)]
    assert out.probe.num_delivered == 3000
    assert set(source.probe.committed.values()) == {3000}
    assert operator.log == ["opened", "closed"]
    assert is_closed(source, out)


async def test_an_empty_source_ends_the_run() -> None:
    source, out = numbers(0), sink()
    await run_to_end(graph_of(source, out))
    assert (out.probe.values, source.probe.commits) == ([], [])


async def test_records_go_to_every_node_that_receives_from_theirs() -> None:
    source, first, second = numbers(50, num_partitions=3), sink(), sink("double")
    graph = graph_of(source, first, second, operators={"double": Times(inputs=("in",))})
    await run_to_end(graph)
    assert first.probe.values == list(range(50))
    assert second.probe.values == [2 * n for n in range(50)]
    assert sorted(source.probe.committed.values()) == [16, 17, 17]


async def test_streams_merge_in_turn() -> None:
    sources = {"a": numbers(7, batch_size=3), "b": ListSource(values=("x", "y"), batch_size=1)}
    out = sink("b", "a", merge="round_robin")
    await run_to_end(Graph(name="merge", sources=sources, sinks={"out": out}))
    assert out.probe.values == ["x", 0, "y", 1, 2, 3, 4, 5, 6]


async def test_two_merges_of_the_same_streams_do_not_wait_for_each_other() -> None:
    one, other = (sink("a", "b", merge="round_robin", buffer=Buffer(records=1)) for _ in range(2))
    graph = Graph(
        name="twice",
        sources={"a": numbers(3, batch_size=7), "b": numbers(6, batch_size=7)},
        sinks={"one": one, "other": other},
    )
    await run_to_end(graph)
    assert one.probe.values == other.probe.values == [0, 0, 1, 1, 2, 2, 3, 4, 5]


async def test_what_is_written_is_delivered_while_another_input_is_awaited() -> None:
    a, b = numbers(10), numbers(1, stays_open=True)
    out = sink("a", "b", merge="round_robin")
    async with Graph(name="merge", sources={"a": a, "b": b}, sinks={"out": out}).open():
        await anyio.wait_all_tasks_blocked()
        assert out.probe.values == [0, 0, 1]
        assert out.probe.num_delivered == 3


async def test_stats_count_records_by_node() -> None:
    source, out = numbers(20), sink("double")
    graph = graph_of(source, out, operators={"double": Times(inputs=("in",))})
    async with graph.open() as run:
        await run.wait()
        stats = run.stats()
        assert repr(run) == "<Run test: finished, 20 received, 20 delivered, 0 rejected>"
    assert [(node.kind, node.received, node.sent) for node in stats.nodes.values()] == [
        ("source", 20, 20),
        ("operator", 20, 20),
        ("sink", 20, 20),
    ]
    assert (stats.received, stats.delivered, stats.behind) == (20, 20, 0)


# Stopping


class RetryingSource(ListSource):
    """Tells that it tries again."""

    type: Literal["retrying"] = "retrying"  # type: ignore[assignment]

    @asynccontextmanager
    async def open(self, context: Context) -> AsyncGenerator[ListReader]:
        yield RetryingReader(self, context.name)


class RetryingReader(ListReader):
    def retrying(self) -> str | None:
        return "retrying Fetch for 3 s: no connection"

    def report(self) -> Mapping[str, int]:
        return {"retries": 4}


async def test_stats_tell_what_is_tried_again() -> None:
    with anyio.fail_after(10):
        async with graph_of(RetryingSource(values=(1,)), sink()).open() as run:
            await run.wait()
            nodes = run.stats().nodes
    assert nodes["in"].retrying == "retrying Fetch for 3 s: no connection"
    assert nodes["in"].report == {"retries": 4}
    assert (nodes["out0"].retrying, nodes["out0"].report) == (None, {})


async def test_stop_delivers_what_is_in_flight() -> None:
    source, out = numbers(35, stays_open=True), sink("double", gate=Gate(is_open=False))
    graph = graph_of(source, out, operators={"double": BlockingTimes(inputs=("in",))})
    with anyio.fail_after(10):
        async with graph.open() as run, anyio.create_task_group() as tasks:
            await out.gate.wait_until_held()
            tasks.start_soon(run.stop)
            await anyio.wait_all_tasks_blocked()
            assert run.stats().state == "stopping"
            out.gate.open()
            await run.wait()
            await run.stop()
    received = source.probe.num_received
    assert received > 0
    assert out.probe.num_delivered == received
    assert set(source.probe.committed.values()) == {received}


async def test_leaving_the_block_drains() -> None:
    source, out = numbers(35, stays_open=True), sink()
    async with graph_of(source, out).open():
        await anyio.wait_all_tasks_blocked()
    assert out.probe.num_delivered == 35
    assert set(source.probe.committed.values()) == {35}


async def test_a_blocked_sink_keeps_the_source_from_reading_ahead() -> None:
    source = numbers(50_000, batch_size=500)
    blocked, free = sink(gate=Gate(is_open=False)), sink()
    with anyio.fail_after(60):
        async with graph_of(source, blocked, free).open() as run:
            await anyio.wait_all_tasks_blocked()
            held = source.probe.num_received
            assert 1000 < held <= Buffer().records + MAX_RECORDS + 2 * 500
            assert source.probe.commits == []
            blocked.gate.open()
            await run.wait()
    assert blocked.probe.values == free.probe.values == list(range(50_000))


async def test_a_stuck_sink_is_abandoned_after_the_shutdown_timeout() -> None:
    source, out = numbers(30, stays_open=True), sink("double", gate=Gate(is_open=False))
    operators = {"double": Times(inputs=("in",))}
    graph = graph_of(source, out, operators=operators, shutdown_timeout=0.05)
    with anyio.fail_after(10):
        async with graph.open() as run:
            await out.gate.wait_until_held()
            expected = r"test: expected to finish within 0\.05 s .*, found still at work: out0;"
            with pytest.raises(NodeError, match=expected):
                await run.stop()
    assert source.probe.commits == []
    assert is_closed(source, out)


# Names


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda run: run.send("im", 1),
            KeyError,
            "name of a source, found 'im'; choose one of: in",
        ),
        (lambda run: run.send("in", 1), TypeError, "in: expected a source that can be pushed to"),
        (lambda run: run.end("in"), TypeError, "in: expected a source that can be pushed to"),
        (lambda run: anext(run.records("out0")), TypeError, "out0: expected a sink that can be"),
        (lambda run: anext(run.records("in")), KeyError, "name of a sink, found 'in'"),
    ],
)
async def test_pushing_and_pulling_need_memory_nodes(
    call: Callable[[Any], Any], error: type[Exception], message: str
) -> None:
    async with graph_of(numbers(3), sink()).open() as run:
        with pytest.raises(error, match=message):
            await call(run)


class Passing(ListSource):
    """Cannot be read again."""

    type: Literal["passing"] = "passing"  # type: ignore[assignment]

    @property
    def rereads(self) -> bool:
        return False


@pytest.mark.parametrize(("kind", "expected"), [(ListSource, 10), (Passing, 100)])
async def test_what_a_later_run_reads_again_is_let_go_when_a_run_stops(
    kind: type[ListSource], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_task, "MAX_RECORDS", 10)  # let in at once
    gate = Gate(is_open=False)
    source = kind(values=tuple(range(100)), batch_size=100, stays_open=True)
    out = sink(gate=gate, buffer=Buffer(records=1))
    with anyio.fail_after(10):
        async with graph_of(source, out).open() as run, anyio.create_task_group() as group:
            await anyio.wait_all_tasks_blocked()
            group.start_soon(run.stop)
            await anyio.wait_all_tasks_blocked()
            gate.open()
    assert out.probe.values == list(range(expected))
    assert set(source.probe.committed.values()) == {expected}


def test_as_many_records_are_handled_at_once_as_are_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    pace = Pace(8)
    for count, seconds, expected in [
        (8, CALL_SECONDS / 4, 16),
        (9, CALL_SECONDS / 4, 16),  # there were no more
        (16, CALL_SECONDS * 0.8, 20),
        (15, CALL_SECONDS * 0.8, 20),
        (20, CALL_SECONDS * 1.25, 16),
        (16, CALL_SECONDS * 9, 8),
        (1, CALL_SECONDS * 9, 1),
        (0, CALL_SECONDS * 9, 1),
    ]:
        with pace.watching(count):
            now += seconds
        assert pace.records == expected
    pace.records = MAX_RECORDS
    with pace.watching(MAX_RECORDS):
        pass
    assert pace.records == MAX_RECORDS
