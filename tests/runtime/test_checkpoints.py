"""Checkpoints of a run: where they are taken, what they hold, and that a run goes on from them."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Literal

import anyio
import pytest
from pydantic import Field

from streamflow.checkpoints import Snapshot
from streamflow.contracts import Context, Fetch, Processed, Processor, Resume
from streamflow.errors import CheckpointError, ConnectorError, NodeError
from streamflow.graph import Graph
from streamflow.nodes import Buffer, Operator
from streamflow.operators.step import Step
from streamflow.records import Batch, Partition, Rejected
from streamflow.runtime.run import opened_run
from streamflow.runtime.starting import Checkpointing
from streamflow.runtime.stats import CheckpointStats
from streamflow.testing import Gate, ListSink, ListSource

pytestmark = pytest.mark.anyio


class Sums(Operator):
    """Replaces each number by the sum so far; at the end sends the total as well."""

    type: Literal["sums"] = "sums"
    error_at: int | None = None

    @contextmanager
    def open(self, context: Context) -> Iterator[Processor]:
        yield SumsStep(self)


class SumsStep(Step):
    def __init__(self, operator: Sums) -> None:
        self._operator = operator
        self._total = 0

    def process(self, batch: Batch) -> Processed:
        values = []
        for value in batch.rows():
            if value == self._operator.error_at:
                message = "power cut"
                raise RuntimeError(message)
            self._total += value
            values.append(self._total)
        return Processed(batch.with_values(values))

    def state(self) -> dict[str, Any]:
        return {"total": self._total}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._total = state["total"]


def summing(
    count: int = 20,
    *,
    every: int | str = 4,
    batch_size: int = 7,
    out: ListSink | None = None,
    error_at: int | None = None,
    **options: Any,
) -> Graph:
    source = ListSource(values=tuple(range(count)), batch_size=batch_size, **options)
    return Graph(
        name="sums",
        checkpoint={"path": "nowhere", "every": every},
        sources={"in": source},
        operators={"sums": Sums(inputs=("in",), error_at=error_at)},
        sinks={"out": out or ListSink(inputs=("sums",))},
    )


async def run_to_end(
    graph: Graph, start: Snapshot | None = None, taken: list[Snapshot] | None = None
) -> list[Snapshot]:
    written: list[Snapshot] = [] if taken is None else taken
    with anyio.fail_after(20):
        async with opened_run(graph, Checkpointing(start, False, written.append)) as run:
            await run.wait()
    return written


def probe(graph: Graph) -> Any:
    sink = graph.sinks["out"]
    assert isinstance(sink, ListSink)
    return sink.probe


@pytest.mark.parametrize("batch_size", [1, 3, 4, 20])
@pytest.mark.parametrize("bad", [{}, {3: "bad", 4: "bad", 11: "bad"}])
async def test_checkpoints_lie_at_multiples_however_the_stream_is_batched(
    batch_size: int, bad: dict[int, str]
) -> None:
    graph = summing(batch_size=batch_size, bad=bad)
    snapshots = await run_to_end(graph)
    totals = [sum(n for n in range(end) if n not in bad) for end in (4, 8, 12, 16, 20, 20)]
    assert [s.records["in"] for s in snapshots] == [4, 8, 12, 16, 20, 20]
    assert [s.states["sums"]["total"] for s in snapshots] == totals
    delivered = [sum(n not in bad for n in range(end)) for end in (4, 8, 12, 16, 20, 20)]
    assert [s.marks["out"]["records"] for s in snapshots] == delivered
    assert [sum(s.positions["in"].values()) for s in snapshots] == [4, 8, 12, 16, 20, 20]


async def test_positions_are_committed_after_each_checkpoint_and_only_then() -> None:
    graph = summing()
    source = graph.sources["in"]
    assert isinstance(source, ListSource)
    commits = source.probe.commits
    seen: list[tuple[int, int]] = []

    def write(snapshot: Snapshot) -> None:
        last = max(commits[-1].values()) if commits else 0
        seen.append((last, snapshot.records["in"]))

    with anyio.fail_after(20):
        async with opened_run(graph, Checkpointing(None, False, write)) as run:
            await run.wait()
    assert all(committed < written or written == 20 for committed, written in seen)
    assert max(commits[-1].values()) == 20


class StoringSink(ListSink):
    """Says that it stores the positions of the source."""

    type: Literal["storing"] = "storing"  # type: ignore[assignment]

    @property
    def stores_positions(self) -> bool:
        return True


class ResumingSource(ListSource):
    """Keeps what it is told when it is opened."""

    type: Literal["resuming"] = "resuming"  # type: ignore[assignment]
    told: list[Resume | None] = Field(default_factory=list)

    def open(self, context: Context) -> Any:
        self.told.append(context.resume)
        return super().open(context)


@pytest.mark.parametrize("is_stored", [False, True])
async def test_where_a_sink_stores_positions_nobody_else_does_and_the_checkpoint_wins(
    is_stored: bool,
) -> None:
    declare = StoringSink if is_stored else ListSink
    source = ResumingSource(values=tuple(range(20)), batch_size=7)
    graph = Graph(
        name="stored",
        checkpoint={"path": "nowhere", "every": 4},
        sources={"in": source},
        sinks={"out": declare(inputs=("in",))},
    )
    taken = await run_to_end(graph)
    assert bool(source.probe.commits) is not is_stored
    await run_to_end(graph, taken[1])
    assert source.told[0] is None
    assert source.told[1] is not None
    assert source.told[1].is_rewind is is_stored


@pytest.mark.parametrize("seed", range(8))
async def test_a_run_killed_anywhere_goes_on_from_its_last_checkpoint(seed: int) -> None:
    chance = random.Random(seed)
    out = ListSink(inputs=("sums",))
    whole = summing(50, every=6)
    await run_to_end(whole)
    taken: list[Snapshot] = []
    for _ in range(4):
        graph = summing(50, every=6, out=out, error_at=chance.randrange(1, 60))
        with suppress(NodeError):  # where the power cut lies before what is done, none comes
            await run_to_end(graph, taken[-1] if taken else None, taken)
    await run_to_end(summing(50, every=6, out=out), taken[-1] if taken else None, taken)
    assert out.probe.values == probe(whole).values
    # Once more at the end adds nothing.
    again = await run_to_end(summing(50, every=6, out=out), taken[-1])
    assert out.probe.values == probe(whole).values
    assert again[-1] == taken[-1]


async def test_a_stopped_run_takes_a_last_checkpoint_and_goes_on_later() -> None:
    out = ListSink(inputs=("sums",))
    gate = Gate()
    graph = summing(30, every="1h", batch_size=5, out=out, gate=gate)
    taken: list[Snapshot] = []
    with anyio.fail_after(20):
        async with opened_run(graph, Checkpointing(None, False, taken.append)) as run:
            while out.probe.num_delivered < 10:
                await anyio.lowlevel.checkpoint()
            await run.stop()
    assert len(taken) == 1
    assert taken[0].records["in"] == taken[0].marks["out"]["records"] == len(out.probe.values)
    await run_to_end(summing(30, every="1h", out=out), taken[0])
    assert out.probe.values == [sum(range(n + 1)) for n in range(30)]


async def test_a_last_checkpoint_that_fails_fails_the_run() -> None:
    graph = summing(10)
    source = graph.sources["in"]
    assert isinstance(source, ListSource)

    def write(snapshot: Snapshot) -> None:
        if snapshot.records["in"] == 10:
            message = "expected room, found a full disk"
            raise CheckpointError(message)

    with anyio.fail_after(20):
        async with opened_run(graph, Checkpointing(None, False, write)) as run:
            with pytest.raises(CheckpointError, match="found a full disk"):
                await run.wait()
    assert probe(graph).num_delivered == 10
    assert source.probe.committed == {Partition("in"): 8}


async def test_a_checkpoint_that_fails_is_counted_and_the_run_goes_on() -> None:
    graph = summing()
    source = graph.sources["in"]
    assert isinstance(source, ListSource)
    calls = iter(range(100))

    seen: list[CheckpointStats | None] = []

    def write(snapshot: Snapshot) -> None:
        seen.append(run.stats().checkpoints)
        if next(calls) < 3:
            message = "expected room, found a full disk"
            raise CheckpointError(message)

    with anyio.fail_after(20):
        async with opened_run(graph, Checkpointing(None, False, write)) as run:
            await run.wait()
            last = run.stats().checkpoints
    states = [(made.taken, made.failed, made.failure, made.age is None) for made in seen if made]
    full = "expected room, found a full disk"
    failed = [(0, 0, None, True), *[(0, count, full, True) for count in (1, 2, 3)]]
    assert states == [*failed, (1, 3, None, False), (2, 3, None, False)]
    assert last is not None
    assert (last.taken, last.failed, last.failure) == (3, 3, None)
    assert last.paused > 0
    assert probe(graph).num_delivered == 20
    assert max(source.probe.commits[-1].values()) == 20


async def test_positions_of_a_checkpoint_that_fails_are_committed_with_the_next_one() -> None:
    graph = summing(4, every=4)
    source = graph.sources["in"]
    assert isinstance(source, ListSource)
    failures = [CheckpointError("expected room, found a full disk")]

    def write(snapshot: Snapshot) -> None:
        if failures:
            raise failures.pop()

    with anyio.fail_after(20):
        async with opened_run(graph, Checkpointing(None, False, write)) as run:
            await run.wait()
    assert [list(commit.values()) for commit in source.probe.commits] == [[4]]


async def test_a_commit_that_fails_ends_the_run() -> None:
    class Refusing(ListSource):
        pass

    graph = summing()
    source = graph.sources["in"]
    assert isinstance(source, ListSource)

    class Commits(list[Any]):
        def append(self, item: Any) -> None:
            message = "in: expected to commit, found a fault"
            raise ConnectorError(message)

    source.probe.commits = Commits()
    with pytest.raises(ConnectorError, match="expected to commit"):
        await run_to_end(graph)


async def test_streams_merged_in_turn_stop_in_step() -> None:
    sources = {
        "a": ListSource(values=tuple(range(12)), batch_size=5),
        "b": ListSource(values=tuple(range(100, 109)), batch_size=2),
    }
    graph = Graph(
        name="turns",
        checkpoint={"path": "nowhere", "every": 4},
        sources=sources,
        operators={"sums": Sums(inputs=("a", "b"), merge="round_robin")},
        sinks={"out": ListSink(inputs=("sums",))},
    )
    snapshots = await run_to_end(graph)
    assert [dict(s.records) for s in snapshots] == [
        {"a": 4, "b": 4},
        {"a": 8, "b": 8},
        {"a": 12, "b": 9},
        {"a": 12, "b": 9},
    ]


class Odd(Operator):
    """Leaves out every third number."""

    type: Literal["odd"] = "odd"

    @contextmanager
    def open(self, context: Context) -> Iterator[Processor]:
        yield OddStep()


class OddStep(Step):
    def process(self, batch: Batch) -> Processed:
        kept = [index for index, value in enumerate(batch.rows()) if value % 3]
        return Processed(batch.select(kept) if kept else None)


def in_turn(out: ListSink, *, error_at: int | None = None) -> Graph:
    """Merge two streams in turn, of which one has lost records before."""
    return Graph(
        name="turns",
        checkpoint={"path": "nowhere", "every": 4},
        sources={
            "a": ListSource(values=tuple(range(30)), batch_size=5),
            "b": ListSource(values=tuple(range(100, 119)), batch_size=2),
        },
        operators={
            "odd": Odd(inputs=("a",)),
            "sums": Sums(inputs=("odd", "b"), merge="round_robin", error_at=error_at),
        },
        sinks={"out": out},
    )


class Tenth(Operator):
    """Keeps every tenth number."""

    type: Literal["tenth"] = "tenth"

    @contextmanager
    def open(self, context: Context) -> Iterator[Processor]:
        yield TenthStep()


class TenthStep(Step):
    def process(self, batch: Batch) -> Processed:
        kept = [index for index, value in enumerate(batch.rows()) if value % 10 == 0]
        return Processed(batch.select(kept) if kept else None)


def unequal(batch_size: int, every: int | str) -> Graph:
    """Merge two streams in turn of which one gives ten times as much as there is room for."""
    values = tuple(range(300))
    return Graph(
        name="unequal",
        checkpoint={"path": "nowhere", "every": every},
        sources={
            "a": ListSource(values=values, batch_size=batch_size),
            "b": ListSource(values=values, batch_size=batch_size),
        },
        operators={
            "tenth": Tenth(inputs=("a",)),
            "sums": Sums(
                inputs=("tenth", "b"), merge="round_robin", buffer=Buffer(records=batch_size)
            ),
        },
        sinks={"out": ListSink(inputs=("sums",))},
    )


@pytest.mark.parametrize("batch_size", [1, 7, 300])
async def test_streams_of_unequal_rates_stop_at_the_same_records_in_every_run(
    batch_size: int,
) -> None:
    graph = unequal(batch_size, 20)
    snapshots = await run_to_end(graph)
    assert len(probe(graph).values) == 330
    # At each multiple of 20 in a two more of its numbers are merged, with as many of b.
    merged = [n for pair in zip(range(0, 300, 10), range(30), strict=True) for n in pair]
    in_step = [s for s in snapshots if s.records["a"] < 300]
    assert [s.records["a"] for s in in_step] == list(range(20, 300, 20))
    for snapshot in in_step:
        count = 2 * snapshot.records["a"] // 10
        # b's next number is taken at once; the one of a that follows it is yet to come.
        assert snapshot.states["sums"]["total"] == sum(merged[:count])
    for start in snapshots[:: max(1, len(snapshots) // 5)]:
        again = unequal(batch_size, 20)
        await run_to_end(again, start)
        before = start.marks["out"]["records"]
        assert probe(graph).values[before:] == probe(again).values


@pytest.mark.parametrize("every", ["0.001s", "0.01s"])
async def test_timed_checkpoints_wait_for_no_stream_that_is_held_up(every: str) -> None:
    graph = unequal(7, every)
    await run_to_end(graph)
    assert len(probe(graph).values) == 330


class Totals(Operator):
    """Sends nothing before the end, and then the sum."""

    type: Literal["totals"] = "totals"

    @contextmanager
    def open(self, context: Context) -> Iterator[Processor]:
        yield TotalsStep()


class TotalsStep(SumsStep):
    def __init__(self) -> None:
        super().__init__(Sums(inputs=("in",)))

    def process(self, batch: Batch) -> Processed:
        super().process(batch)
        return Processed()

    def end(self) -> Processed:
        total, self._total = self._total, 0
        return Processed(Batch([total], [Partition("totals")], [0]) if total else None)


async def test_what_a_stream_gives_at_its_end_is_waited_for() -> None:
    gate = Gate(is_open=False)
    out = ListSink(inputs=("totals",), gate=gate)
    graph = Graph(
        name="ends",
        checkpoint={"path": "nowhere", "every": 4},
        sources={
            "short": ListSource(values=(1, 2, 3)),
            "long": ListSource(values=tuple(range(9)), batch_size=1),
        },
        operators={"totals": Totals(inputs=("short",))},
        sinks={"out": out, "rest": ListSink(inputs=("long",))},
    )
    taken: list[Snapshot] = []
    with anyio.fail_after(20):
        async with opened_run(graph, Checkpointing(None, False, taken.append)) as run:
            await anyio.wait_all_tasks_blocked()
            assert taken == []
            gate.open()
            await run.wait()
    for snapshot in taken:
        assert (snapshot.states["totals"]["total"], snapshot.marks["out"]["records"]) == (0, 1)
    assert out.probe.values == [6]


@pytest.mark.parametrize("seed", range(6))
async def test_what_waits_for_its_turn_is_part_of_a_checkpoint(seed: int) -> None:
    chance = random.Random(seed)
    whole, broken = ListSink(inputs=("sums",)), ListSink(inputs=("sums",))
    snapshots = await run_to_end(in_turn(whole))
    assert any(
        batches for s in snapshots for batches in s.states["sums:waiting"]["waiting"].values()
    )
    taken: list[Snapshot] = []
    for _ in range(5):
        error_at = chance.choice([*range(30), *range(100, 119)])
        with suppress(NodeError):
            start = taken[-1] if taken else None
            await run_to_end(in_turn(broken, error_at=error_at), start, taken)
    await run_to_end(in_turn(broken), taken[-1] if taken else None, taken)
    assert broken.probe.values == whole.probe.values


def test_cutting_a_fetch_keeps_places_and_ends() -> None:
    partitions = [Partition("s", (("partition", p),)) for p in (0, 1)]
    good = Batch([0, 2, 3, 5], [partitions[0]] * 2 + [partitions[1]] * 2, [10, 12, 7, 9])
    bad = Batch([1, 4], [partitions[0], partitions[1]], [11, 8])
    fetch = Fetch(
        good, {partitions[0]: 13, partitions[1]: 12}, Rejected(bad, ["x", "y"], [1, 4]), skipped=2
    )
    head, tail = fetch.cut(4)
    assert head.batch.rows() == [0, 2, 3]
    assert head.rejected is not None
    assert (head.rejected.batch.rows(), list(head.rejected.indices)) == ([1], [1])
    assert head.ends == {partitions[0]: 13, partitions[1]: 8}
    assert tail.batch.rows() == [5]
    assert tail.rejected is not None
    assert (tail.rejected.batch.rows(), list(tail.rejected.indices)) == ([4], [0])
    assert tail.ends == fetch.ends
    assert (head.skipped, tail.skipped) == (2, 0)


async def test_a_stop_is_no_end_of_the_stream() -> None:
    gate, out = Gate(), ListSink(inputs=("totals",))
    source = ListSource(values=tuple(range(30)), batch_size=5, gate=gate, stays_open=True)
    ended = source.model_copy(update={"stays_open": False})
    stopped, later = (
        Graph(
            name="totals",
            checkpoint={"path": "nowhere", "every": "1h"},
            sources={"in": read},
            operators={"totals": Totals(inputs=("in",))},
            sinks={"out": out},
        )
        for read in (source, ended)
    )
    taken: list[Snapshot] = []
    with anyio.fail_after(20):
        async with opened_run(stopped, Checkpointing(None, False, taken.append)) as run:
            while run.stats().nodes["totals"].received < 10:
                await anyio.lowlevel.checkpoint()
            await run.stop()
    assert out.probe.values == []
    await run_to_end(later, taken[-1])
    assert out.probe.values == [sum(range(30))]


async def test_a_run_tells_positions_also_of_partitions_that_runs_before_have_read() -> None:
    first, second = summing(10), summing(10)
    taken: list[Snapshot] = []
    with anyio.fail_after(20):
        async with opened_run(first, Checkpointing(None, False, taken.append)) as run:
            assert run.stats().nodes["in"].positions == {}
            await run.wait()
        assert run.stats().nodes["in"].positions == {"": 10}
        async with opened_run(second, Checkpointing(taken[-1], False, taken.append)) as run:
            await run.wait()
    assert run.stats().nodes["in"].received == 0
    assert run.stats().nodes["in"].positions == {"": 10}
