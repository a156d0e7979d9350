"""What happens at an edge without room, against a plain model that sees one record at a time."""

from collections.abc import Callable
from typing import Any

import anyio
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streamflow.errors import NodeError
from streamflow.graph import Graph
from streamflow.nodes import Buffer, Overflow
from streamflow.records import Batch, Partition
from streamflow.runtime.acks import Ledger
from streamflow.runtime.channels import Inbox
from streamflow.runtime.parcels import Parcel
from streamflow.runtime.stats import EdgeStats
from streamflow.testing import Gate, ListSink
from tests.runtime.graphs import Times, graph_of, numbers, sink

PARTITION = Partition("source")
DROPPING: list[Overflow] = ["drop_oldest", "drop_newest", "latest"]

BATCHES = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 9)), min_size=1, max_size=8)
"""How many records a batch has, and the bytes of each."""

TAKES = st.lists(st.integers(1, 15) | st.none(), min_size=8, max_size=8)
"""How many records are asked for after each batch, if any are."""


class ModelEdge:
    """One record at a time; ``waiting`` holds pairs of a record and its size."""

    def __init__(self, overflow: Overflow, records: int, size_bytes: int) -> None:
        self.overflow = overflow
        self.records = 1 if overflow == "latest" else records
        self.size_bytes = size_bytes
        self.waiting: list[tuple[int, int]] = []
        self.dropped: list[int] = []

    def has_room(self, size_bytes: int) -> bool:
        total = sum(size for _, size in self.waiting) + size_bytes
        fits = len(self.waiting) < self.records and total <= self.size_bytes
        return fits or not self.waiting

    def send(self, record: int, size_bytes: int) -> None:
        if self.overflow == "drop_newest" and not self.has_room(size_bytes):
            self.dropped.append(record)
            return
        while not self.has_room(size_bytes):
            self.dropped.append(self.waiting.pop(0)[0])
        self.waiting.append((record, size_bytes))


def parcel(first: int, count: int, each_bytes: int, ledger: Ledger) -> Parcel:
    places = list(range(first, first + count))
    batch = Batch(places, [PARTITION] * count, places, size_bytes=count * each_bytes)
    return Parcel(batch, (ledger.track({PARTITION: first + count}),))


@given(
    st.sampled_from(DROPPING), BATCHES, TAKES, st.integers(1, 20), st.integers(1, 60) | st.none()
)
@example("drop_oldest", [(1, 1), (3, 4)], [None] * 2, 20, 10)  # there is room left for the first
@example("drop_oldest", [(5, 2), (1, 4)], [None] * 2, 20, 10)  # a part of a batch makes room
def test_the_same_records_are_dropped_as_one_by_one(
    overflow: Overflow,
    batches: list[tuple[int, int]],
    takes: list[int | None],
    records: int,
    size_bytes: int | None,
) -> None:
    buffer = Buffer(records=records, bytes=size_bytes or 10**6)
    model, ledger = ModelEdge(overflow, records, buffer.bytes), Ledger()
    inbox = Inbox("out")
    edge = inbox.edge("in", overflow, buffer)
    taken: list[int] = []

    async def main() -> None:
        sent = 0
        for (count, each_bytes), most in zip(batches, takes, strict=False):
            await edge.send(parcel(sent, count, each_bytes, ledger))
            for record in range(sent, sent + count):
                model.send(record, each_bytes)
            sent += count
            most_bytes = max(buffer.bytes, each_bytes)
            assert edge.records == len(model.waiting) <= model.records
            assert edge.size_bytes == sum(size for _, size in model.waiting)
            assert edge.size_bytes <= most_bytes or edge.records == 1
            if most is not None:
                await take(most)
            stats = edge.stats
            assert stats.sent == sent == stats.taken + stats.dropped + stats.waiting
            assert (stats.dropped, stats.taken) == (len(model.dropped), len(taken))
        edge.close()
        while await take(10**6):
            pass

    async def take(most: int) -> bool:
        if (received := await inbox.receive(most)) is None:
            return False
        rows = received.batch.rows()
        assert rows == [record for record, _ in model.waiting[: len(rows)]]
        del model.waiting[: len(rows)]
        taken.extend(rows)
        received.finish()
        return True

    anyio.run(main)
    assert model.waiting == []
    assert sorted(taken + model.dropped) == list(range(sum(count for count, _ in batches)))
    assert ledger.is_idle
    assert ledger.take() == {PARTITION: sum(count for count, _ in batches)}


@given(BATCHES, TAKES, st.integers(1, 20), st.integers(1, 60))
def test_blocking_loses_nothing_and_keeps_within_its_bounds(
    batches: list[tuple[int, int]], takes: list[int | None], records: int, size_bytes: int
) -> None:
    ledger, inbox = Ledger(), Inbox("out")
    edge = inbox.edge("in", "block", Buffer(records=records, bytes=size_bytes))
    largest = max(each_bytes for _, each_bytes in batches)
    taken: list[int] = []
    sent = sum(count for count, _ in batches)

    async def send() -> None:
        first = 0
        for count, each_bytes in batches:
            await edge.send(parcel(first, count, each_bytes, ledger))
            first += count
        edge.close()

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            for most in [*(most for most in takes if most), *[7] * sent]:
                await anyio.wait_all_tasks_blocked()
                assert 0 <= edge.records <= records
                assert edge.size_bytes <= max(size_bytes, largest)
                stats = edge.stats
                assert stats.sent == stats.taken + stats.waiting
                assert stats.dropped == 0
                received = await inbox.receive(most)
                if received is None:
                    break
                taken.extend(received.batch.rows())
                received.finish()

    anyio.run(main)
    assert taken == list(range(sent))
    assert edge.stats == EdgeStats("block", sent, sent, 0, 0)
    assert ledger.is_idle


@given(BATCHES, TAKES, st.integers(1, 20), st.integers(1, 60))
def test_failing_takes_all_until_one_does_not_fit(
    batches: list[tuple[int, int]], takes: list[int | None], records: int, size_bytes: int
) -> None:
    ledger, inbox = Ledger(), Inbox("out")
    edge = inbox.edge("in", "fail", Buffer(records=records, bytes=size_bytes))
    model = ModelEdge("fail", records, size_bytes)

    async def main() -> None:
        first = 0
        for (count, each_bytes), most in zip(batches, takes, strict=False):
            before = list(model.waiting)
            fits = True
            for record in range(first, first + count):
                fits = fits and model.has_room(each_bytes)
                model.waiting.append((record, each_bytes))
            if not fits:
                with pytest.raises(NodeError, match=r"in -> out: expected room for .* more rec"):
                    await edge.send(parcel(first, count, each_bytes, ledger))
                assert edge.stats.sent == first
                assert edge.records == len(before)
                return
            await edge.send(parcel(first, count, each_bytes, ledger))
            first += count
            if most is not None:
                received = await inbox.receive(most)
                assert received is not None
                del model.waiting[: len(received.batch)]
                received.finish()

    anyio.run(main)
    assert edge.stats.dropped == 0


@pytest.mark.anyio
async def test_only_the_edge_that_is_full_drops() -> None:
    ledger, inbox = Ledger(), Inbox("out")
    latest = inbox.edge("a", "latest")
    oldest = inbox.edge("b", "drop_oldest", Buffer(records=3))
    for first in range(0, 12, 4):
        await latest.send(parcel(first, 2, 1, ledger))
        await oldest.send(parcel(first + 2, 2, 1, ledger))
    for edge in (latest, oldest):
        edge.close()
    received = await inbox.receive(100)
    assert received is not None
    assert received.batch.rows() == [7, 9, 10, 11]  # in the order of arrival
    received.finish()
    assert await inbox.receive(100) is None
    assert inbox.stats == {
        "a": EdgeStats("latest", 6, 1, 5, 0),
        "b": EdgeStats("drop_oldest", 6, 3, 3, 0),
    }
    assert ledger.is_idle
    assert repr(oldest) == "<Edge b -> out: 0 records wait>"


# Whole graphs: a source that is quicker than what receives from it

MOST = 30

KEPT: dict[Overflow, Callable[[int], list[int]]] = {
    "drop_oldest": lambda taken: [*range(taken), *range(1000 - MOST, 1000)],
    "drop_newest": lambda taken: list(range(taken + MOST)),
}
"""What arrives of 1,000 records, of which the receiver took some before it was held up."""


def held_graph(overflow: Any, gate: Gate) -> tuple[Graph, ListSink, Any]:
    source = numbers(1000, stays_open=True)
    slow = sink("double", gate=gate)
    operator = Times(inputs=("in",))
    slow = slow.model_copy(update={"overflow": overflow, "buffer": Buffer(records=MOST)})
    return graph_of(source, slow, operators={"double": operator}), slow, source


@pytest.mark.anyio
@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("overflow", DROPPING)
async def test_a_source_that_is_quicker_loses_exactly_what_has_no_room(
    overflow: Overflow, by_name: bool
) -> None:
    gate = Gate(is_open=False)
    graph, slow, source = held_graph({"double": overflow} if by_name else overflow, gate)
    async with graph.open() as run:
        await anyio.wait_all_tasks_blocked()
        assert source.probe.num_received == 1000
        edge = run.stats().nodes["out0"].edges["double"]
        taken, waiting = edge.taken, 1 if overflow == "latest" else MOST
        assert 1 <= taken <= waiting  # one batch, or what came before the sink had its turn
        assert edge == EdgeStats(overflow, 1000, taken, 1000 - taken - waiting, waiting)
        assert run.stats().dropped == edge.dropped
        assert run.stats().nodes["double"].dropped == 0
        gate.open()
        await run.stop()
        assert run.stats().nodes["out0"].edges["double"].waiting == 0
    if overflow == "latest":
        assert slow.probe.values[1:] == [2 * 999]
    else:
        assert slow.probe.values == [2 * n for n in KEPT[overflow](taken)]
    assert set(source.probe.committed.values()) == {1000}


@pytest.mark.anyio
async def test_a_source_that_is_quicker_waits_where_the_policy_is_to_block() -> None:
    gate = Gate(is_open=False)
    graph, slow, source = held_graph("block", gate)
    async with graph.open() as run:
        await anyio.wait_all_tasks_blocked()
        assert source.probe.num_received == 1000  # into the buffer before the operator
        edge = run.stats().nodes["out0"].edges["double"]
        assert edge == EdgeStats("block", edge.taken + MOST, edge.taken, 0, MOST)
        assert run.stats().dropped == 0
        gate.open()
        await run.stop()
    assert slow.probe.values == [2 * n for n in range(1000)]
    assert set(source.probe.committed.values()) == {1000}


@pytest.mark.anyio
async def test_a_full_edge_that_may_not_drop_fails_the_run_and_commits_nothing_unfinished() -> None:
    gate = Gate(is_open=False)
    graph, slow, source = held_graph("fail", gate)
    expected = (
        r"^double -> out0: expected room for 10 more records, found 30 of at most 30 waiting "
        r"\(3,000 of 16,777,216 bytes\); give out0 a larger buffer or another overflow than fail"
    )
    with anyio.fail_after(10):
        async with graph.open() as run:
            with pytest.raises(NodeError, match=expected):
                await run.wait()
            assert run.stats().state == "failed"
    assert slow.probe.values == []
    assert source.probe.commits == []


@pytest.mark.anyio
async def test_nodes_without_room_do_not_hold_up_each_other() -> None:
    gate = Gate(is_open=False)
    source = numbers(1000)
    held = sink(gate=gate).model_copy(update={"overflow": "latest"})
    free = sink()
    async with graph_of(source, held, free).open() as run:
        await anyio.wait_all_tasks_blocked()
        assert free.probe.values == list(range(1000))
        gate.open()
        await run.wait()
    assert held.probe.values[-1] == 999
