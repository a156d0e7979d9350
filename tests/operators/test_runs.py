"""Operators in runs that go on from each of their checkpoints: nothing is lost, nothing twice."""

from typing import Any

import anyio
import pytest

from streamflow.checkpoints import Snapshot
from streamflow.graph import Graph
from streamflow.nodes import Operator
from streamflow.operators.deduplication import Deduplicate
from streamflow.operators.history import History
from streamflow.operators.joins import Join
from streamflow.operators.merging import Merge
from streamflow.operators.sampling import Sample
from streamflow.operators.throttling import Throttle
from streamflow.operators.windows import Window
from streamflow.records import Record
from streamflow.runtime.run import opened_run
from streamflow.runtime.starting import Checkpointing
from streamflow.testing import ListSink, ListSource

LEFT = [Record({"n": n, "k": n % 3}, timestamp_ms=700 * n - 900 * (n % 4)) for n in range(20)]
RIGHT = [Record({"m": m, "k": m % 3}, timestamp_ms=1100 * m) for m in range(13)]

BOTH: dict[str, Any] = {"inputs": ("left", "right"), "merge": "round_robin", "by": "k"}

OPERATORS: list[Operator] = [
    Window(**BOTH, size=3, delay=1, lateness=2, ttl=4, fields={"n": "count()"}),
    Window(**BOTH, gap=2, fields={"n": "count()"}),
    Join(**BOTH, delay=2),
    Join(**BOTH, match="all", within=1),
    Deduplicate(**BOTH, ttl=1),
    Throttle(**BOTH, per=3),
    Sample(**BOTH, every=2),
    Merge(inputs=("left", "right"), merge="round_robin", origin="from"),
    History(inputs=("left",), by="k", fields=("n",), length=2),
]


def graph_of(operator: Operator, **options: Any) -> tuple[Graph, ListSink]:
    sink = ListSink(inputs=("made",))
    sources: dict[str, Any] = {"left": ListSource(values=tuple(LEFT), batch_size=7, **options)}
    if "right" in operator.inputs:
        sources["right"] = ListSource(values=tuple(RIGHT), batch_size=3, **options)
    graph = Graph(
        name="g",
        checkpoint={"path": "nowhere", "every": 4},
        sources=sources,
        operators={"made": operator},
        sinks={"out": sink},
    )
    return graph, sink


async def run(graph: Graph, start: Snapshot | None, taken: list[Snapshot]) -> None:
    with anyio.fail_after(20):
        async with opened_run(graph, Checkpointing(start, False, taken.append)) as opened:
            await opened.wait()


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.type)
def test_a_run_goes_on_from_any_checkpoint(operator: Operator) -> None:
    graph, sink = graph_of(operator)
    snapshots: list[Snapshot] = []
    anyio.run(run, graph, None, snapshots)
    whole = sink.probe.values
    assert len(whole) > 4
    assert len(snapshots) > 4
    for snapshot in snapshots:
        again, rest = graph_of(operator)
        anyio.run(run, again, snapshot, [])
        assert whole[: snapshot.marks["out"]["records"]] + rest.probe.values == whole
    assert not rest.probe.values  # the last checkpoint is that of the end


async def stopped(graph: Graph, taken: list[Snapshot]) -> None:
    with anyio.fail_after(20):
        async with opened_run(graph, Checkpointing(None, False, taken.append)) as opened:
            while opened.stats().received < 10:  # real work
                await anyio.lowlevel.checkpoint()
            await opened.stop()


def test_over_a_stop_windows_stay_open() -> None:
    operator = Window(**BOTH, size=1000, delay=30, fields={"n": "count()"})
    graph, first = graph_of(operator, stays_open=True)
    taken: list[Snapshot] = []
    anyio.run(stopped, graph, taken)
    assert first.probe.values == []
    again, rest = graph_of(operator)
    anyio.run(run, again, taken[-1], [])
    given = first.probe.values + rest.probe.values
    assert sum(one["n"] for one in given) == len(LEFT) + len(RIGHT)
    assert len({(one["k"], one["start_ms"]) for one in given}) == len(given)
